"""One decode step of an absorbed MLA layer: projections, append, quantize, plan, decode, up-projection.

    python examples/decode_step.py [--batch 4] [--context 1000] [--heads 16] [--device cpu]

Random weights in the shape of DeepSeek-V3's attention; the last token of each request is decoded over FP8 pages and over
BF16 pages and compared with plain torch attention in fp64, un-absorbed, on the same BF16 projections. Prints the error, the
cache's bytes and, on a GPU, the time beside snapmla's BF16 drop-in and, where it is installed, FlashMLA.
"""

import argparse

import torch

import snapmla
from snapmla.flash_mla import flash_mla_with_kvcache, get_mla_metadata

HIDDEN, NOPE, ROPE, LATENT, V = 1024, 128, 64, 512, 128
SCALE = (NOPE + ROPE) ** -0.5  # of the un-absorbed head dim

parser = argparse.ArgumentParser()
parser.add_argument("--batch", type=int, default=4)
parser.add_argument("--context", type=int, default=1000)
parser.add_argument("--heads", type=int, default=16)
parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
args = parser.parse_args()
batch, context, heads, device = args.batch, args.context, args.heads, torch.device(args.device)

# The layer and its past. kv_b_proj is split once into W_UK and W_UV, a pair a head.
torch.manual_seed(1)
weight = lambda *shape: (torch.randn(shape) * shape[-1] ** -0.5).bfloat16().to(device)
w_q, w_kv = weight(heads * (NOPE + ROPE), HIDDEN), weight(LATENT + ROPE, HIDDEN)
w_uk, w_uv = weight(heads, NOPE, LATENT), weight(heads, V, LATENT)
norm = torch.ones(LATENT, dtype=torch.bfloat16, device=device)
angle = torch.arange(context)[:, None] * 10000.0 ** (-torch.arange(32) / 32)
cos_sin = torch.cat([angle.cos(), angle.sin()], -1).to(device)
x = torch.randn(batch, context, HIDDEN).bfloat16().to(device)  # hidden states of all tokens, the new one last
kv = x @ w_kv.T  # [batch, context, 576]
q = (x[:, -1] @ w_q.T).view(batch, 1, heads, NOPE + ROPE)

# Pages for each request, and every token appended: norm, RoPE, quantize and scatter in one op.
pages = -(-context // 64)
block_table = torch.randperm(batch * pages, dtype=torch.int32).view(batch, pages).to(device)
token = torch.arange(context, device=device)
slots = (block_table.long()[:, token // 64] * 64 + token % 64).flatten()
positions = token.int().repeat(batch)
caches = {format: snapmla.PagedCache.allocate(batch * pages, format, device=device) for format in ("fp8", "bf16")}
for cache in caches.values():
    snapmla.append_kv(kv.flatten(0, 1), slots, cache, norm_weight=norm, cos_sin=cos_sin, positions=positions)

# The step. Absorb W_UK into the query, rotate and quantize it, plan once for all layers, decode in latent space.
seq_lens = torch.full((batch,), context, dtype=torch.int32, device=device)
plan = snapmla.plan(seq_lens, rows=heads)
q_latent = torch.einsum("bshn,hnl->bshl", q[..., :NOPE], w_uk).contiguous()
last = torch.full((batch, 1), context - 1, dtype=torch.int32, device=device)
query = snapmla.quantize_q(q_latent, q[..., NOPE:], cos_sin=cos_sin, positions=last)
exact_query = (query.rope.float() * query.scale[..., None]).bfloat16()  # rotated, restored: exact
results = {
    "fp8": snapmla.decode(*query, caches["fp8"], block_table, seq_lens, plan, SCALE)[0],
    "bf16": snapmla.decode(q_latent, exact_query, None, caches["bf16"], block_table, seq_lens, plan, SCALE)[0],
}

# Plain torch, un-absorbed, fp64: keys and values a head from the normed latent, softmax attention, no cache.
c, r = snapmla.unpack(caches["bf16"]).flatten(0, 1)[slots].view(batch, context, -1).double().split([LATENT, ROPE], -1)
k = torch.cat([torch.einsum("btl,hnl->bhtn", c, w_uk.double()), r[:, None].expand(-1, heads, -1, -1)], -1)
q_full = torch.cat([q[..., :NOPE], exact_query], -1).double().transpose(1, 2)
p = torch.softmax(SCALE * q_full @ k.mT, -1)
expected = p @ torch.einsum("btl,hvl->bhtv", c, w_uv.double())
for format, out_latent in results.items():
    out = torch.einsum("bshl,hvl->bhsv", out_latent.double(), w_uv.double())
    cache_bytes = batch * pages * 64 * caches[format].token_bytes
    print(f"{format:>4}: relative error {(out - expected).norm() / expected.norm():.2e}, cache {cache_bytes:,} bytes")


def microseconds(run, count=50):
    graph, begin, end = torch.cuda.CUDAGraph(), torch.cuda.Event(True), torch.cuda.Event(True)
    run()
    with torch.cuda.graph(graph):
        run()
    graph.replay()
    begin.record()
    for _ in range(count):
        graph.replay()
    end.record()
    end.synchronize()
    return 1e3 * begin.elapsed_time(end) / count


if device.type == "cuda":
    q_bf16, kv_bf16 = torch.cat([q_latent, exact_query], -1), caches["bf16"].records[:, :, None]
    drop_in = lambda call, meta: call(q_bf16, kv_bf16, block_table, seq_lens, LATENT, meta, None, SCALE, True)
    meta = get_mla_metadata()[0]
    fp8 = lambda: snapmla.decode(*query, caches["fp8"], block_table, seq_lens, plan, SCALE)
    print(f"decode over FP8 pages {microseconds(fp8):.1f} us, "
          f"BF16 drop-in {microseconds(lambda: drop_in(flash_mla_with_kvcache, meta)):.1f} us")
    try:
        import flash_mla

        theirs = flash_mla.get_mla_metadata()[0]
        print(f"FlashMLA {microseconds(lambda: drop_in(flash_mla.flash_mla_with_kvcache, theirs)):.1f} us")
    except ImportError:
        print("FlashMLA is not installed")
