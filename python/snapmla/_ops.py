"""quantize_q, append_kv, fetch_kv, decode and combine: the ops of torch.ops.snapmla on a PagedCache and a Plan.

All of them run on the device of their tensors: on CPU tensors the reference backend, done on return; on CUDA tensors the
Hopper kernels, enqueued on the current stream of that device, without a sync. With `out` nothing is allocated (decode:
with `workspace` too). Wrong arguments raise ValueError with the core's text, things that are no tensors TypeError;
contents that only the device sees (slots, pages, lengths) are checked on the CPU, and the caller's promise on a GPU.
No op has a backward.

Notation, after DeepSeek-V2 (arXiv 2405.04434, section 2.1) and SnapMLA (arXiv 2602.10718): batch requests, s query tokens
each, heads query heads, which share one cached latent (512, key and value) and one RoPE key (64) a token.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from ._cache import LATENT_DIM, PagedCache
from ._library import eager, python_error
from ._plan import Plan

# The ops, looked up once. They are called by position: to torch a keyword costs as much again as the tensor it names.
_QUANTIZE_Q, _QUANTIZE_Q_OUT = torch.ops.snapmla.quantize_q.default, torch.ops.snapmla.quantize_q.out
_APPEND_KV = torch.ops.snapmla.append_kv.default
_FETCH_KV, _FETCH_KV_OUT = torch.ops.snapmla.fetch_kv.default, torch.ops.snapmla.fetch_kv.out
_DECODE, _DECODE_OUT = torch.ops.snapmla.decode.default, torch.ops.snapmla.decode.out
_DECODE_RECORDS, _DECODE_RECORDS_OUT = torch.ops.snapmla.decode.records, torch.ops.snapmla.decode.records_out
_COMBINE, _COMBINE_OUT = torch.ops.snapmla.combine.default, torch.ops.snapmla.combine.out
# Those that a step calls once a layer, as eager code calls them.
_EAGER_QUANTIZE_Q_OUT = eager(_QUANTIZE_Q_OUT)
_EAGER_DECODE_RECORDS, _EAGER_DECODE_RECORDS_OUT = eager(_DECODE_RECORDS), eager(_DECODE_RECORDS_OUT)
_is_compiling = torch.compiler.is_dynamo_compiling


class QuantizedQ(NamedTuple):
    """What quantize_q returns: unpack it into decode, `decode(*quantize_q(...), cache, ...)`.

    Attributes:
        latent: float8_e4m3fn [batch, s, heads, 512]; real = latent * scale.
        rope: bfloat16 [batch, s, heads, 64]; real = rope * scale.
        scale: float32 [batch, s, heads].
    """

    latent: torch.Tensor
    rope: torch.Tensor
    scale: torch.Tensor


def quantize_q(q_latent: torch.Tensor, q_rope: torch.Tensor | None, *, cos_sin: torch.Tensor | None = None,
               positions: torch.Tensor | None = None, interleaved: bool = True, scale_rule: str = "pow2",
               out: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None) -> QuantizedQ:
    """Quantizes absorbed query rows for FP8 pages, one scale a (token, head), rotating the rope part first if asked.

        scale = quantization_scale(max |q_latent|)    latent = e4m3(q_latent / scale)    rope = bf16(q_rope / scale)

    Args:
        q_latent: bfloat16 [batch, s, heads, 512], the query absorbed into the latent space; any strides but the last.
        q_rope: bfloat16 [batch, s, heads, 64]; any strides but the last. None where q_latent is [batch, s, heads, 576], both
            side by side.
        cos_sin: float32 [num_positions, 64], 32 cosines then 32 sines a position; None: q_rope is rotated already.
        positions: int32 [batch, s], with cos_sin.
        interleaved: pairs (2i, 2i + 1) as in DeepSeek checkpoints; else (i, i + 32).
        scale_rule: "pow2": the smallest power of two >= amax / 448, so that dividing and restoring are exact; "amax":
            amax / 448, the paper's rule.
        out: three dense tensors to write, as QuantizedQ says; else they are allocated.

    Returns:
        QuantizedQ. |stored * scale - real| <= 2^-4 |real| for |real| >= 2^-6 scale, and <= 2^-10 scale below.

    Raises:
        ValueError: a wrong dtype, shape, stride or device.
    """
    try:
        if out is None:
            return QuantizedQ(*_QUANTIZE_Q(q_latent, q_rope, cos_sin, positions, interleaved, scale_rule))
        latent_out, rope_out, scale_out = out
        op = _QUANTIZE_Q_OUT if _is_compiling() else _EAGER_QUANTIZE_Q_OUT
        op(q_latent, q_rope, cos_sin, positions, interleaved, scale_rule, latent_out, rope_out, scale_out)
        return QuantizedQ(latent_out, rope_out, scale_out)
    except RuntimeError as error:
        raise python_error("quantize_q", error) from None


def append_kv(kv: torch.Tensor, slot_mapping: torch.Tensor, cache: PagedCache, *,
              norm_weight: torch.Tensor | None = None, norm_eps: float = 1e-6, cos_sin: torch.Tensor | None = None,
              positions: torch.Tensor | None = None, interleaved: bool = True, scale_rule: str = "pow2") -> None:
    """Writes tokens into the cache: RMSNorm, RoPE, quantize (FP8 pages) and scatter in one pass.

    The normed latent and the rotated rope are rounded to BF16 first and quantized then, so this equals the separate
    steps bit for bit.

    Args:
        kv: bfloat16 [tokens, 576], latent (512) then rope key (64), as kv_a_proj gives them; any row stride.
        slot_mapping: int32 or int64 [tokens], dense: page * 64 + offset; -1 skips the token. No slot twice.
        cache: written.
        norm_weight: bfloat16 [512] for x / sqrt(mean(x^2) + norm_eps) * weight on the latent; None: it is normed already.
        norm_eps: see norm_weight.
        cos_sin, positions, interleaved: as in quantize_q, positions int32 [tokens]; None: the rope key is rotated already.
        scale_rule: as in quantize_q; FP8 pages only.

    Raises:
        ValueError: a wrong dtype, shape, stride or device; on the CPU also a slot out of range, before any byte is
            written.
    """
    try:
        _APPEND_KV(kv, slot_mapping, *cache.op_args, norm_weight, norm_eps, cos_sin, positions, interleaved, scale_rule)
    except RuntimeError as error:
        raise python_error("append_kv", error) from None


def fetch_kv(cache: PagedCache, block_table: torch.Tensor, starts: torch.Tensor, offsets: torch.Tensor,
             total: int | None = None, *,
             out: tuple[torch.Tensor, torch.Tensor] | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Gathers and dequantizes token ranges, for prefix-cache hits and chunked prefill: bf16(stored * scale).

    Args:
        cache: read.
        block_table: int32 [ranges, max_pages], the pages of the request each range lies in; any row stride.
        starts: int32 [ranges], first token of each range.
        offsets: int32 [ranges + 1], ascending: range i fills output rows offsets[i] .. offsets[i + 1].
        total: output rows; it is not read back from the device. Not needed with out.
        out: (latent bfloat16 [total, 512], rope bfloat16 [total, 64]) to write, any row strides.

    Returns:
        (latent, rope). Exact with "pow2" scales, but for BF16's own range.

    Raises:
        ValueError: a wrong dtype, shape, stride or device; on the CPU also a page or range out of range.
    """
    try:
        if out is None:
            if total is None:
                raise ValueError("[fetch_kv] total must be given without out: the number of output rows")
            return _FETCH_KV(*cache.op_args, block_table, starts, offsets, total)
        _FETCH_KV_OUT(*cache.op_args, block_table, starts, offsets, *out)
        return out
    except RuntimeError as error:
        raise python_error("fetch_kv", error) from None


def decode(q_latent: torch.Tensor, q_rope: torch.Tensor | None, q_scale: torch.Tensor | None, cache: PagedCache,
           block_table: torch.Tensor, seq_lens: torch.Tensor, plan: Plan, softmax_scale: float, *, causal: bool = True,
           out: torch.Tensor | None = None, lse: torch.Tensor | None = None, workspace: torch.Tensor | None = None,
           out_dtype: torch.dtype = torch.bfloat16) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of s * heads query rows a request over its cached tokens, in latent space.

        logit[t] = softmax_scale * (q_latent . latent[t] + q_rope . rope[t])
        lse = ln sum_t exp(logit[t])        out = sum_t exp(logit[t] - lse) latent[t]

    Args:
        q_latent: [batch, s, heads, 512]: float8_e4m3fn (quantize_q's) for FP8 pages, bfloat16 for BF16 pages.
            Heads 1 .. 128, s * heads up to 1,024. Rows are read where they lie: the last dimension is dense, the
            s * heads rows of a request are evenly spaced, and on CUDA each begins at a multiple of 16 bytes. So halves of
            one [batch, s, heads, 576] need no copy, nor does a product over heads, [heads, batch, 512] transposed.
        q_rope: bfloat16 [batch, s, heads, 64], as q_latent; divided by q_scale for FP8 pages, as quantize_q does. None for
            BF16 pages where q_latent is [batch, s, heads, 576], both side by side.
        q_scale: float32 [batch, s, heads], dense, for FP8 pages; None for BF16 pages.
        cache: the pages; on CUDA the scales of a page must lie side by side, as they do in all but odd planes.
        block_table: int32 [batch, max_pages], the page of each run of 64 tokens; entries past a request's last page are
            never read. Any row stride.
        seq_lens: int32 [batch], cached tokens of each request, the s being decoded included.
        plan: made or updated for these seq_lens.
        softmax_scale: from the un-absorbed head dim and the model's RoPE scaling, e.g. (128 + 64)**-0.5; not from 576.
        causal: query i of s sees the first seq_len - s + i + 1 tokens; else every query sees all.
        out: [batch, s, heads, 512] bfloat16 or float32, dense, to write, with lse; else both are allocated.
        lse: float32 [batch, s, heads], dense, to write.
        workspace: plan.workspace(s, heads), scratch; None: taken from torch's allocator.
        out_dtype: of an allocated out: torch.bfloat16, or torch.float32 for no final rounding.

    Returns:
        (out, lse), natural logarithm. A row that sees no token gets out 0 and lse -inf.

    Raises:
        ValueError: a wrong dtype, shape, stride or device, or only one of out and lse; on the CPU also a page or length
            out of range.

    Bitwise repeatable for the same inputs and plan. Error bounds: docs/numerics.md.
    """
    try:
        records = cache.records
        if out is None and lse is None and workspace is None:
            if records is None:
                return _DECODE(q_latent, q_rope, q_scale, *cache.op_args, block_table, seq_lens, plan.data,
                               plan.num_workers, softmax_scale, causal, out_dtype)
            op = _DECODE_RECORDS if _is_compiling() else _EAGER_DECODE_RECORDS
            return op(q_latent, q_rope, q_scale, records, block_table, seq_lens, plan.data, plan.num_workers,
                      softmax_scale, causal, out_dtype)
        if (out is None) != (lse is None):
            raise ValueError("[decode] out and lse must be given together, or neither")
        if out is None:
            out = torch.empty((*q_latent.shape[:3], LATENT_DIM), dtype=out_dtype, device=q_latent.device)
            lse = torch.empty(q_latent.shape[:3], dtype=torch.float32, device=q_latent.device)
        if records is None:
            _DECODE_OUT(q_latent, q_rope, q_scale, *cache.op_args, block_table, seq_lens, plan.data, plan.num_workers,
                        softmax_scale, causal, out, lse, workspace)
        else:
            op = _DECODE_RECORDS_OUT if _is_compiling() else _EAGER_DECODE_RECORDS_OUT
            op(q_latent, q_rope, q_scale, records, block_table, seq_lens, plan.data, plan.num_workers, softmax_scale,
               causal, out, lse, workspace)
        return out, lse
    except RuntimeError as error:
        raise python_error("decode", error) from None


def combine(partial_out: torch.Tensor, partial_lse: torch.Tensor, split_offsets: torch.Tensor, *, s: int = 1,
            out: torch.Tensor | None = None, lse: torch.Tensor | None = None,
            out_dtype: torch.dtype = torch.bfloat16) -> tuple[torch.Tensor, torch.Tensor]:
    """Merges partial attention results, e.g. of several devices (decode context parallelism). decode() does its own.

        lse = ln sum_i exp(lse_i)        out = sum_i exp(lse_i - lse) out_i

    Args:
        partial_out: float32 [partials, s * heads, 512], dense, each normalised by its own lse.
        partial_lse: float32 [partials, s * heads], dense; -inf marks a row without tokens, whose out may be anything.
        split_offsets: int32 [batch + 1]: request b merges partials [b] .. [b + 1].
        s: query tokens, to shape the result; ignored with out.
        out: [batch, s, heads, 512] bfloat16 or float32, dense, to write, with lse; else both are allocated.
        lse: float32 [batch, s, heads], dense, to write.
        out_dtype: of an allocated out.

    Returns:
        (out, lse).

    Raises:
        ValueError: a wrong dtype, shape, stride or device, or only one of out and lse.
    """
    try:
        if out is None and lse is None:
            return _COMBINE(partial_out, partial_lse, split_offsets, s, out_dtype)
        if out is None or lse is None:
            raise ValueError("[combine] out and lse must be given together, or neither")
        _COMBINE_OUT(partial_out, partial_lse, split_offsets, out, lse)
        return out, lse
    except RuntimeError as error:
        raise python_error("combine", error) from None
