"""One decode step of an absorbed MLA layer over FP8 pages, beside plain torch attention in fp64 and a BF16 cache.

    python examples/decode_step.py [--batch 4] [--context 1000] [--heads 16] [--device cpu]
"""

import argparse

import torch

import snapmla
from snapmla import flash_mla as drop_in

HIDDEN, NOPE, ROPE, LATENT, V = 1024, 128, 64, 512, 128  # DeepSeek-V3's attention, but for HIDDEN
SCALE = (NOPE + ROPE) ** -0.5  # of the un-absorbed head dim

parser = argparse.ArgumentParser()
for name, value in dict(batch=4, context=1000, heads=16).items():
    parser.add_argument(f"--{name}", type=int, default=value)
parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
batch, context, heads, device = vars(parser.parse_args()).values()
torch.set_default_device(device)
torch.manual_seed(1)

# The layer, random. kv_b_proj is split once into W_UK and W_UV, a pair a head.
weight = lambda *shape: (torch.randn(shape) * shape[-1] ** -0.5).bfloat16()
w_q, w_kv = weight(heads * (NOPE + ROPE), HIDDEN), weight(LATENT + ROPE, HIDDEN)
w_uk, w_uv, norm = weight(heads, NOPE, LATENT), weight(heads, V, LATENT), torch.ones(LATENT).bfloat16()
angle = torch.arange(context)[:, None] * 10000.0 ** (-torch.arange(32) / 32)
cos_sin = torch.cat([angle.cos(), angle.sin()], -1)

# Projections of all tokens; the last of each request is the one decoded.
x = torch.randn(batch, context, HIDDEN).bfloat16()
kv, q = x @ w_kv.T, (x[:, -1:] @ w_q.T).view(batch, 1, heads, NOPE + ROPE)

# Append: norm, RoPE, quantize and scatter into pages of 64 tokens.
pages = -(-context // 64)
block_table = torch.arange(batch * pages, dtype=torch.int32).view(batch, pages)
slots = (64 * pages * torch.arange(batch)[:, None] + torch.arange(context)).flatten()
positions = torch.arange(context, dtype=torch.int32).repeat(batch)
caches = [snapmla.PagedCache.allocate(batch * pages, format) for format in ("fp8", "bf16")]
for cache in caches:
    snapmla.append_kv(kv.flatten(0, 1), slots, cache, norm_weight=norm, cos_sin=cos_sin, positions=positions)

# The step: absorb W_UK into the query, rotate and quantize it, plan once for all layers, decode, up-project.
seq_lens = torch.full((batch,), context, dtype=torch.int32)
plan = snapmla.plan(seq_lens, rows=heads)
q_latent = torch.einsum("bshn,hnl->bshl", q[..., :NOPE], w_uk)
query = snapmla.quantize_q(q_latent, q[..., NOPE:], cos_sin=cos_sin, positions=seq_lens[:, None] - 1)
latent, lse = snapmla.decode(*query, caches[0], block_table, seq_lens, plan, SCALE)
out = torch.einsum("bshl,hvl->bshv", latent, w_uv)

# The same with FlashMLA's function over the BF16 cache; q_rope as rotated above, which powers of two restore.
q_bf16 = torch.cat([q_latent, (query.rope * query.scale[..., None]).bfloat16()], -1)
flash = lambda module, meta: module.flash_mla_with_kvcache(
    q_bf16, caches[1].records[:, :, None], block_table, seq_lens, LATENT, meta, None, SCALE)[0]
out_bf16 = torch.einsum("bshl,hvl->bshv", flash(drop_in, drop_in.get_mla_metadata()[0]), w_uv)


# Plain torch, un-absorbed and without a cache: keys and values a head, softmax attention.
def rotate(x, cos_sin):
    a, b, (cos, sin) = x[..., 0::2].double(), x[..., 1::2].double(), cos_sin.double().chunk(2, -1)
    return torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)


c = torch.nn.functional.rms_norm(kv[..., :LATENT].double(), (LATENT,), eps=1e-6)
k_rope = rotate(kv[..., LATENT:], cos_sin)[:, None].expand(-1, heads, -1, -1)
k = torch.cat([torch.einsum("btl,hnl->bhtn", c, w_uk.double()), k_rope], -1)
q_plain = torch.cat([q[..., :NOPE].double(), rotate(q[..., NOPE:], cos_sin[-1])], -1).transpose(1, 2)
plain = torch.softmax(SCALE * q_plain @ k.mT, -1) @ torch.einsum("btl,hvl->bhtv", c, w_uv.double())
for cache, result in zip(caches, (out, out_bf16)):
    error = (result.double().transpose(1, 2) - plain).norm() / plain.norm()
    print(f"{cache.format:>4}: relative error {error:.2e}, cache {batch * pages * 64 * cache.token_bytes:,} bytes")

if torch.device(device).type == "cuda":
    from triton.testing import do_bench_cudagraph

    run = {"FP8 pages": lambda: snapmla.decode(*query, caches[0], block_table, seq_lens, plan, SCALE)}
    modules = {"BF16 drop-in": drop_in}
    try:
        modules["FlashMLA"] = __import__("flash_mla")
    except ImportError:
        print("FlashMLA is not installed")
    for name, module in modules.items():
        run[name] = lambda module=module, meta=module.get_mla_metadata()[0]: flash(module, meta)
    print(", ".join(f"{name} {1e3 * do_bench_cudagraph(call):.1f} us" for name, call in run.items()))
