"""snapmla: FP8 decoding for Multi-head Latent Attention, as PyTorch ops.

    cache = snapmla.PagedCache.allocate(num_pages, device="cuda")          # 644 bytes a token, beside 1,152 in BF16
    snapmla.append_kv(kv, slot_mapping, cache, norm_weight=weight, cos_sin=cos_sin, positions=positions)
    plan = snapmla.plan(seq_lens, rows=s * heads)                          # once a step, for all layers
    q = snapmla.quantize_q(q_latent, q_rope)
    out, lse = snapmla.decode(*q, cache, block_table, seq_lens, plan, softmax_scale)

`snapmla.flash_mla` has FlashMLA's functions on these ops; `snapmla.doctor()` says what works here. The ops themselves are
in torch.ops.snapmla. docs/python.md is the guide, docs/format.md the page byte by byte.
"""

from . import _library

_library.load()

import torch as _torch  # noqa: E402

from . import _fake  # noqa: E402, F401
from ._cache import PagedCache, pack, quantization_scale, unpack  # noqa: E402
from ._doctor import doctor  # noqa: E402
from ._ops import QuantizedQ, append_kv, combine, decode, fetch_kv, quantize_q  # noqa: E402
from ._plan import Plan, plan  # noqa: E402

__version__: str = _torch.ops.snapmla.version()

__all__ = [
    "PagedCache", "Plan", "QuantizedQ", "append_kv", "combine", "decode", "doctor", "fetch_kv", "pack", "plan",
    "quantization_scale", "quantize_q", "unpack",
]
