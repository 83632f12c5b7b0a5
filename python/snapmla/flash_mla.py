"""FlashMLA's dense decode functions on snapmla's kernels: change the import, keep the calls.

    from snapmla.flash_mla import flash_mla_with_kvcache, get_mla_metadata          # was: from flash_mla import ...

What is FlashMLA's here: names, argument order and defaults (its flash_mla_interface.py of April 2026), the softmax scale
q.shape[-1]**-0.5, lse as [batch, heads, s] with +inf for rows that see no token, metadata planned on first use, block-table
entries past a request's last page never read, and any bytes, NaN included, in unused slots. What is not: sparse attention
(indices and what goes with it), FP16, more than one KV head, and head_dim 512.

For FP8 pages, `flash_mla_with_fp8_kvcache` takes the same arguments with a PagedCache (or the tensor behind one) as the
cache. It quantizes q itself; k_cache must be written by snapmla.append_kv.
"""

from __future__ import annotations

import dataclasses
import functools

import torch

from ._cache import LATENT_DIM, PAGE_TOKENS, TOKEN_DIM, PagedCache
from ._library import eager, python_error, require
from ._plan import Plan, plan

_QUANTIZE_Q, _DECODE = torch.ops.snapmla.quantize_q.default, torch.ops.snapmla.decode.default
_DECODE_RECORDS = torch.ops.snapmla.decode.records
_EAGER_QUANTIZE_Q, _EAGER_DECODE_RECORDS = eager(_QUANTIZE_Q), eager(_DECODE_RECORDS)
_PAGE_SHAPE = (PAGE_TOKENS, 1, TOKEN_DIM)
_SPARSE = ("indices", "attn_sink", "extra_k_cache", "extra_indices_in_kvcache", "topk_length", "extra_topk_length")
_refuse = functools.partial(require, "flash_mla", False)  # called where a rule is broken: a call that breaks none pays for none

__all__ = ["SchedMeta", "flash_mla_with_fp8_kvcache", "flash_mla_with_kvcache", "get_mla_metadata"]


@dataclasses.dataclass
class SchedMeta:
    """What get_mla_metadata returns: empty, until the first call with it plans for that call's cache_seqlens.

    It serves all later calls of the same shapes and the same lengths, as FlashMLA's does. For the next step's lengths take
    a new one, or, to keep a captured graph working, call meta.plan.update(cache_seqlens).
    """

    plan: Plan | None = None
    config: tuple | None = None


def get_mla_metadata(*args, **kwargs) -> tuple[SchedMeta, None]:
    """An empty SchedMeta and None, which stands where FlashMLA once returned num_splits. Arguments are ignored."""
    return SchedMeta(), None


def flash_mla_with_kvcache(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    block_table: torch.Tensor | None,
    cache_seqlens: torch.Tensor | None,
    head_dim_v: int,
    tile_scheduler_metadata: SchedMeta,
    num_splits: None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    is_fp8_kvcache: bool = False,
    indices: torch.Tensor | None = None,
    attn_sink: torch.Tensor | None = None,
    extra_k_cache: torch.Tensor | None = None,
    extra_indices_in_kvcache: torch.Tensor | None = None,
    topk_length: torch.Tensor | None = None,
    extra_topk_length: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Dense decode over a BF16 cache.

    Args:
        q: bfloat16 [batch, s, heads, 576], latent then rope; heads 1 .. 128, s * heads up to 1,024. Any strides;
            copied only where `decode` would not take it as it lies.
        k_cache: bfloat16 [num_pages, 64, 1, 576].
        block_table: int32 [batch, max_pages].
        cache_seqlens: int32 [batch], the s tokens being decoded included.
        head_dim_v: 512.
        tile_scheduler_metadata: of get_mla_metadata; planned by the first call.
        num_splits: None.
        softmax_scale: q.shape[-1]**-0.5 if None. MLA models want that of their un-absorbed head dim: give it.
        causal: query i of s sees the first seq_len - s + i + 1 tokens; else every query sees all.
        is_fp8_kvcache and the rest: must be left at their defaults; flash_mla_with_fp8_kvcache is for FP8.

    Returns:
        (out bfloat16 [batch, s, heads, 512], lse float32 [batch, heads, s], natural logarithm, +inf where a row sees
        nothing and out is 0).

    Raises:
        ValueError: an argument this package does not take, or that does not go with tile_scheduler_metadata's first call.
    """
    if is_fp8_kvcache:
        _refuse("is_fp8_kvcache=True means FlashMLA's sparse format; for FP8 pages call flash_mla_with_fp8_kvcache")
    for name, value in zip(_SPARSE, (indices, attn_sink, extra_k_cache, extra_indices_in_kvcache, topk_length, extra_topk_length)):
        if value is not None:
            _refuse(f"{name} must be None: there is no sparse attention here")
    if k_cache.dtype != torch.bfloat16 or k_cache.dim() != 4 or k_cache.shape[1:] != _PAGE_SHAPE:
        _refuse("k_cache must be bfloat16 [num_pages, 64, 1, 576]", k_cache)
    return _decode(q, "bf16", k_cache, None, block_table, cache_seqlens, head_dim_v, tile_scheduler_metadata, num_splits,
                   softmax_scale, causal)


def flash_mla_with_fp8_kvcache(
    q: torch.Tensor,
    k_cache: PagedCache | torch.Tensor,
    block_table: torch.Tensor,
    cache_seqlens: torch.Tensor,
    head_dim_v: int,
    tile_scheduler_metadata: SchedMeta,
    num_splits: None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """flash_mla_with_kvcache over FP8 pages, 644 bytes a token instead of 1,152.

    Args:
        k_cache: an FP8 PagedCache, or the uint8 tensor of its records [num_pages, 41,216 bytes or more].
        All others as in flash_mla_with_kvcache; q is BF16 and quantized here, one scale a (token, head).

    Returns and raises as flash_mla_with_kvcache.
    """
    cache = k_cache if isinstance(k_cache, PagedCache) else PagedCache.from_records(k_cache)
    if cache.format != "fp8":
        _refuse("k_cache must hold FP8 pages: a PagedCache of format fp8, or its uint8 records")
    return _decode(q, "fp8", cache.records, cache.op_args, block_table, cache_seqlens, head_dim_v, tile_scheduler_metadata,
                   num_splits, softmax_scale, causal)


def _decode(q, format, records, planes, block_table, cache_seqlens, head_dim_v, meta, num_splits, softmax_scale, causal):
    if not isinstance(meta, SchedMeta):
        _refuse("tile_scheduler_metadata must come from snapmla.flash_mla.get_mla_metadata")
    if num_splits is not None:
        _refuse("num_splits must be None")
    if head_dim_v != LATENT_DIM:
        _refuse("head_dim_v must be 512", head_dim_v)
    if block_table is None or cache_seqlens is None:
        _refuse("block_table and cache_seqlens must be given")
    if q.dtype != torch.bfloat16 or q.dim() != 4 or q.shape[3] != TOKEN_DIM:
        _refuse("q must be bfloat16 [batch, s, heads, 576]", q)
    batch, s, heads, _ = q.shape
    config = (batch, s, heads, causal, format, q.device)
    if meta.plan is None:
        meta.plan, meta.config = plan(cache_seqlens, rows=s * heads), config
    if meta.config != config:
        raise ValueError(f"[flash_mla] tile_scheduler_metadata was planned for {meta.config} "
                         f"(batch, s, heads, causal, format, device); got {config}")
    if not q.is_contiguous() and (q.stride(3) != 1 or q.stride(1) != heads * q.stride(2) and s > 1):
        q = q.contiguous()  # decode takes the rows of a request where they are evenly spaced
    scale = TOKEN_DIM**-0.5 if softmax_scale is None else softmax_scale
    planned = meta.plan
    compiling = torch.compiler.is_dynamo_compiling()
    try:
        query = (q, None, None)
        if format == "fp8":
            query = (_QUANTIZE_Q if compiling else _EAGER_QUANTIZE_Q)(q, None)
        arguments = (block_table, cache_seqlens, planned.data, planned.num_workers, scale, causal)
        if records is None:
            out, lse = _DECODE(*query, *planes, *arguments)
        else:
            out, lse = (_DECODE_RECORDS if compiling else _EAGER_DECODE_RECORDS)(*query, records, *arguments)
    except RuntimeError as error:
        raise python_error("decode", error) from None
    lse.nan_to_num_(torch.nan, torch.inf, torch.inf)  # NaN and +inf as they are, -inf to +inf, in one launch
    return out, lse.transpose(1, 2).contiguous()
