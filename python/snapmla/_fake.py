"""Shapes and dtypes of what the ops return, for torch.compile, torch.export and opcheck. No op has a backward."""

from __future__ import annotations

import torch

LATENT_DIM, ROPE_DIM = 512, 64


@torch.library.register_fake("snapmla::quantize_q")
def _quantize_q(q_latent, q_rope, cos_sin=None, positions=None, interleaved=True, scale_rule="pow2"):
    rows = q_latent.shape[:3]
    return (
        q_latent.new_empty((*rows, LATENT_DIM), dtype=torch.float8_e4m3fn),
        q_latent.new_empty((*rows, ROPE_DIM), dtype=torch.bfloat16),
        q_latent.new_empty(rows, dtype=torch.float32),
    )


@torch.library.register_fake("snapmla::fetch_kv")
def _fetch_kv(cache, cache_rope, cache_scale, block_table, starts, offsets, total):
    return (
        cache.new_empty((total, LATENT_DIM), dtype=torch.bfloat16),
        cache.new_empty((total, ROPE_DIM), dtype=torch.bfloat16),
    )


@torch.library.register_fake("snapmla::decode")
def _decode(q_latent, q_rope, q_scale, cache, cache_rope, cache_scale, block_table, seq_lens, plan, num_workers,
            softmax_scale, causal=True, out_dtype=None):
    rows = q_latent.shape[:3]
    return (
        q_latent.new_empty((*rows, LATENT_DIM), dtype=out_dtype or torch.bfloat16),
        q_latent.new_empty(rows, dtype=torch.float32),
    )


@torch.library.register_fake("snapmla::decode.records")
def _decode_records(q_latent, q_rope, q_scale, cache, *arguments, **keywords):
    return _decode(q_latent, q_rope, q_scale, cache, None, None, *arguments, **keywords)


@torch.library.register_fake("snapmla::combine")
def _combine(partial_out, partial_lse, split_offsets, s, out_dtype=None):
    shape = (split_offsets.shape[0] - 1, s, partial_out.shape[1] // s)
    return (
        partial_out.new_empty((*shape, LATENT_DIM), dtype=out_dtype or torch.bfloat16),
        partial_out.new_empty(shape, dtype=torch.float32),
    )


def _writes_only(*args, **kwargs):
    return None


for _name in ("quantize_q.out", "append_kv", "fetch_kv.out", "plan", "decode.out", "decode.records_out", "combine.out"):
    torch.library.register_fake(f"snapmla::{_name}", _writes_only)
