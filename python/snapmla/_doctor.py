"""doctor: what of this package works here, and why the rest does not."""

from __future__ import annotations

import platform
import time

import torch

from ._cache import PAGE_TOKENS, TOKEN_DIM, PagedCache
from ._ops import append_kv, decode, quantize_q
from ._plan import plan


def doctor() -> str:
    """A report for people and bug reports: versions, backends and why one is missing, GPUs with the tokens that fit, and
    for each working device a decode step checked against fp64. Allocates a few megabytes and waits for the device."""
    lines = [
        f"snapmla {torch.ops.snapmla.version()}, torch {torch.__version__}, Python {platform.python_version()}, "
        f"{platform.machine()}"
    ]
    ok, reason, name = torch.ops.snapmla.backend_support("reference")
    lines.append(f"cpu   {name}: {_self_test('cpu') if ok else reason}")
    ok, reason, _ = torch.ops.snapmla.backend_support("cuda")
    if not ok:
        lines.append(f"cuda  not here: {reason}")
    elif not torch.cuda.is_available():
        lines.append("cuda  not here: this torch finds no CUDA device")
    else:
        lines += [f"cuda  {_gpu(index)}" for index in range(torch.cuda.device_count())]
    return "\n".join(lines)


def _gpu(index: int) -> str:
    name, capability = torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index)
    if capability != (9, 0):
        return f"{name} (cuda:{index}): not used, capability {capability[0]}.{capability[1]}; the kernels are for 9.0"
    free, _ = torch.cuda.mem_get_info(index)
    return (f"{name} (cuda:{index}): {_self_test(f'cuda:{index}')}; {free / 2**30:.1f} GiB free, for one layer "
            f"{free // 644:,} tokens in FP8 or {free // 1152:,} in BF16")


def _self_test(device: str) -> str:
    """One decode step over FP8 pages beside fp64 attention on the unquantized rows."""
    generator = torch.Generator().manual_seed(1)
    heads, tokens, scale = 16, 200, 192**-0.5
    kv = torch.randn(tokens, TOKEN_DIM, generator=generator).add_(0.5).bfloat16()
    q = torch.randn(1, 1, heads, TOKEN_DIM, generator=generator).bfloat16()
    logits = scale * (q.double()[0, 0] @ kv.double().T)
    expected = torch.softmax(logits, -1) @ kv.double()[:, :512]
    try:
        cache = PagedCache.allocate(-(-tokens // PAGE_TOKENS), device=device)
        append_kv(kv.to(device), torch.arange(tokens, device=device), cache)
        seq_lens = torch.tensor([tokens], dtype=torch.int32, device=device)
        block_table = torch.arange(cache.num_pages, dtype=torch.int32, device=device)[None]
        begin = time.perf_counter()
        query = quantize_q(q.to(device)[..., :512], q.to(device)[..., 512:])
        out, _ = decode(*query, cache, block_table, seq_lens, plan(seq_lens, rows=heads), scale)
        error = ((out.cpu().double()[0, 0] - expected).norm() / expected.norm()).item()
        milliseconds = 1e3 * (time.perf_counter() - begin)
    except Exception as failure:  # a report says what is wrong; it does not fail itself
        return f"FAILED: {failure}"
    # e4m3 rounds each latent by at most 2^-4 of it: the relative error of the sum stays below that.
    verdict = "works" if error < 2**-4 else "FAILED"
    return f"{verdict}, decode off by {100 * error:.2f} % of fp64 on the BF16 rows, first call {milliseconds:.1f} ms"
