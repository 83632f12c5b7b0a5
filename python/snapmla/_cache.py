"""PagedCache: a pool of pages as tensors, over one buffer or over planes of the caller's."""

from __future__ import annotations

import functools

import torch

from ._library import require

LATENT_DIM = 512
ROPE_DIM = 64
TOKEN_DIM = LATENT_DIM + ROPE_DIM
PAGE_TOKENS = 64
E4M3_MAX = 448.0

_TOKEN_BYTES = {"fp8": LATENT_DIM + 2 * ROPE_DIM + 4, "bf16": 2 * TOKEN_DIM}
_ROPE_AT = PAGE_TOKENS * LATENT_DIM
_SCALE_AT = _ROPE_AT + PAGE_TOKENS * ROPE_DIM * 2


_require = functools.partial(require, "cache")


def _token_bytes(format: str) -> int:
    _require(format in _TOKEN_BYTES, "format must be fp8 or bf16", format)
    return _TOKEN_BYTES[format]


class PagedCache:
    """A pool of pages of one layer. A page holds 64 tokens; slot = page * 64 + offset names one.

    Make one with `allocate`, `from_records` or `from_planes`. The layout is docs/format.md's: an FP8 page is the three
    planes latent e4m3 [64, 512], rope bf16 [64, 64], scale f32 [64], 644 bytes a token; a BF16 page is rows
    bf16 [64, 576], 1,152 bytes a token, FlashMLA's layout. The object owns nothing but references to its tensors,
    and never changes.

    Attributes:
        format: "fp8" or "bf16".
        num_pages: pages in the pool.
        records: the one tensor behind the pool, or None where the planes are separate tensors:
            u8 [num_pages, page_stride] for FP8, bf16 [num_pages, 64, 576] for BF16.
    """

    __slots__ = ("format", "num_pages", "records", "op_args")

    def __init__(self, format, num_pages, records, planes=(None, None, None)):
        self.format: str = format
        self.num_pages: int = num_pages
        self.records: torch.Tensor | None = records
        # One tensor to the ops where one will do: less to check in every call, and for torch.compile a pool that an op
        # writes must not come in as several views of different dtypes.
        self.op_args = planes if records is None else (records, None, None)

    @classmethod
    def allocate(cls, num_pages: int, format: str = "fp8", *, device: torch.device | str | None = None,
                 page_stride: int | None = None) -> PagedCache:
        """A new pool over one buffer. Its contents are arbitrary: no op lets an unwritten slot reach a result.

        Args:
            num_pages: at least 0.
            format: "fp8" (41,216 bytes a page) or "bf16" (73,728 bytes).
            device: where; torch's default device if None.
            page_stride: bytes from one page to the next, a multiple of 16, for padded pages (vLLM's 656 * 64 = 41,984);
                None for dense pages.

        Raises:
            ValueError: a negative count, another format, or a stride that is too small or not a multiple of 16.
        """
        page_bytes = PAGE_TOKENS * _token_bytes(format)
        _require(num_pages >= 0, "num_pages must not be negative", num_pages)
        stride = page_bytes if page_stride is None else page_stride
        _require(stride >= page_bytes and stride % 16 == 0,
                 f"page_stride must be a multiple of 16 and at least {page_bytes} for {format} pages", stride)
        if format == "fp8":
            return cls.from_records(torch.empty(num_pages, stride, dtype=torch.uint8, device=device))
        rows = torch.empty(num_pages, stride // 2, dtype=torch.bfloat16, device=device)
        return cls.from_records(rows[:, : PAGE_TOKENS * TOKEN_DIM].unflatten(1, (PAGE_TOKENS, TOKEN_DIM)))

    @classmethod
    def from_records(cls, records: torch.Tensor) -> PagedCache:
        """A view of pages that lie one behind the other in one tensor, as engines allocate them. Nothing is copied.

        Args:
            records: FP8 pages as uint8 [num_pages, ...] with at least 41,216 bytes a page, which the trailing
                dimensions hold densely (a vLLM cache [num_pages, 64, 656] is one); or BF16 pages as
                bfloat16 [num_pages, 64, 576] or [num_pages, 64, 1, 576]. Any page stride that is a multiple of 16 bytes.

        Raises:
            ValueError: another dtype or shape, or trailing dimensions that are not dense.
        """
        if records.dtype == torch.uint8:
            page_bytes = PAGE_TOKENS * _TOKEN_BYTES["fp8"]
            width = dense = 1
            for extent, stride in zip(reversed(records.shape[1:]), reversed(records.stride()[1:])):
                dense = dense and (extent == 1 or stride == width)
                width *= extent
            _require(dense and width >= page_bytes,
                     "FP8 records must be uint8 [num_pages, at least 41216], dense within a page", records)
            return cls("fp8", records.shape[0], records if records.dim() == 2 else records.flatten(1))
        rows = records.squeeze(2) if records.dim() == 4 and records.shape[2] == 1 else records
        _require(rows.dtype == torch.bfloat16 and rows.dim() == 3 and tuple(rows.shape[1:]) == (PAGE_TOKENS, TOKEN_DIM),
                 "records must be uint8 [num_pages, bytes] (FP8) or bfloat16 [num_pages, 64, 576] or "
                 "[num_pages, 64, 1, 576] (BF16)", records)
        return cls("bf16", rows.shape[0], rows)

    @classmethod
    def from_planes(cls, latent: torch.Tensor, rope: torch.Tensor, scale: torch.Tensor | None = None) -> PagedCache:
        """A pool of separate planes (SGLang-FluentLLM's layout), each with page and row strides of its own.

        Args:
            latent: float8_e4m3fn or bfloat16 [num_pages, 64, 512].
            rope: bfloat16 [num_pages, 64, 64].
            scale: float32 [num_pages, 64], for FP8 only.

        Strides are checked by the ops: pointers and page strides in multiples of 16 bytes.

        Raises:
            ValueError: another dtype or shape.
        """
        fp8 = latent.dtype == torch.float8_e4m3fn
        pages = latent.shape[0] if latent.dim() else 0
        _require((fp8 or latent.dtype == torch.bfloat16) and tuple(latent.shape) == (pages, PAGE_TOKENS, LATENT_DIM),
                 "latent must be float8_e4m3fn or bfloat16 [num_pages, 64, 512]", latent)
        _require(rope.dtype == torch.bfloat16 and tuple(rope.shape) == (pages, PAGE_TOKENS, ROPE_DIM),
                 f"rope must be bfloat16 [{pages}, 64, 64]", rope)
        _require((scale is not None) == fp8, "scale must be given for FP8 planes, and only there")
        if scale is not None:
            _require(scale.dtype == torch.float32 and tuple(scale.shape) == (pages, PAGE_TOKENS),
                     f"scale must be float32 [{pages}, 64]", scale)
        return cls("fp8" if fp8 else "bf16", pages, None, (latent, rope, scale))

    @property
    def latent(self) -> torch.Tensor:
        """View [num_pages, 64, 512], float8_e4m3fn or bfloat16. Real latent = stored * scale."""
        if self.records is None:
            return self.op_args[0]
        if self.format == "bf16":
            return self.records[..., :LATENT_DIM]
        return self.records[:, :_ROPE_AT].view(torch.float8_e4m3fn).unflatten(1, (PAGE_TOKENS, LATENT_DIM))

    @property
    def rope(self) -> torch.Tensor:
        """View [num_pages, 64, 64], bfloat16. Real rope = stored * scale."""
        if self.records is None:
            return self.op_args[1]
        if self.format == "bf16":
            return self.records[..., LATENT_DIM:]
        return self.records[:, _ROPE_AT:_SCALE_AT].view(torch.bfloat16).unflatten(1, (PAGE_TOKENS, ROPE_DIM))

    @property
    def scale(self) -> torch.Tensor | None:
        """View [num_pages, 64], float32; None for BF16."""
        if self.records is None:
            return self.op_args[2]
        if self.format == "bf16":
            return None
        return self.records[:, _SCALE_AT : PAGE_TOKENS * _TOKEN_BYTES["fp8"]].view(torch.float32)

    @property
    def device(self) -> torch.device:
        return self.op_args[0].device

    @property
    def token_bytes(self) -> int:
        """Bytes a token costs: 644 (FP8) or 1,152 (BF16)."""
        return _TOKEN_BYTES[self.format]

    def __repr__(self) -> str:
        kind = "records" if self.records is not None else "planes"
        return f"PagedCache({self.format}, {self.num_pages} pages, {kind}, {self.device})"


def pack(kv: torch.Tensor, format: str = "fp8", *, scale_rule: str = "pow2") -> PagedCache:
    """Pages made of BF16 rows in plain torch: for tests and conversions. append_kv writes the same bytes.

    Args:
        kv: bfloat16 [num_pages, 64, 576]: latent after its norm (512), then rope after rotation (64).
        format: "fp8" or "bf16".
        scale_rule: "pow2" or "amax", see quantize_q.

    Returns:
        A new pool on kv's device.
    """
    _require(kv.dtype == torch.bfloat16 and kv.dim() == 3 and tuple(kv.shape[1:]) == (PAGE_TOKENS, TOKEN_DIM),
             "kv must be bfloat16 [num_pages, 64, 576]", kv)
    cache = PagedCache.allocate(kv.shape[0], format, device=kv.device)
    latent, rope = kv[..., :LATENT_DIM].float(), kv[..., LATENT_DIM:].float()
    if format == "bf16":
        cache.latent.copy_(kv[..., :LATENT_DIM])
        cache.rope.copy_(kv[..., LATENT_DIM:])
        return cache
    scale = quantization_scale(latent.nan_to_num(0.0, float("inf"), float("inf")).abs().amax(-1), scale_rule)
    cache.scale.copy_(scale)
    cache.latent.copy_((latent / scale[..., None]).clamp(-E4M3_MAX, E4M3_MAX))
    cache.rope.copy_(rope / scale[..., None])
    return cache


def unpack(cache: PagedCache) -> torch.Tensor:
    """The BF16 rows of all pages, bfloat16 [num_pages, 64, 576], in plain torch: bf16(stored * scale)."""
    if cache.format == "bf16":
        return torch.cat([cache.latent, cache.rope], -1)
    scale = cache.scale[..., None]
    return torch.cat([cache.latent.float() * scale, cache.rope.float() * scale], -1).to(torch.bfloat16)


def quantization_scale(amax: torch.Tensor, scale_rule: str = "pow2") -> torch.Tensor:
    """The scale of rows whose largest latent magnitudes are `amax` (float32, any shape); real = stored * scale.

    "pow2": the smallest power of two >= amax / 448, exponent within +-40, and 1 where amax is 0, NaN or infinite.
    "amax": max(amax, 1e-26) / 448, the rule of the SnapMLA paper (arXiv 2602.10718), 1 where amax is NaN or infinite.
    """
    _require(scale_rule in ("pow2", "amax"), "scale_rule must be pow2 or amax", scale_rule)
    finite = torch.isfinite(amax)
    if scale_rule == "amax":
        # A division by a number would become a product with its reciprocal on CUDA, which rounds otherwise.
        return torch.where(finite, amax.clamp_min(1e-26) / torch.full_like(amax, E4M3_MAX), 1.0)
    # amax = fraction * 2^exponent with fraction in [0.5, 1), 448 = 0.875 * 2^9: no rounding anywhere.
    fraction, exponent = torch.frexp(amax)
    exponent = (exponent - torch.where(fraction <= 0.875, 9, 8)).clamp(-40, 40)
    scale = ((exponent + 127) << 23).to(torch.int32).view(torch.float32)
    return torch.where(finite & (amax > 0), scale, 1.0)
