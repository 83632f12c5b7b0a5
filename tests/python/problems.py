"""Decode problems and what they must give, in plain torch and fp64.

A Problem draws its tensors, fills a pool whose other bytes are NaN in every format, and runs the ops. `expected` is
softmax attention in fp64 on the numbers that the ops were given: quantized query and stored tokens. So what is left
between the two is the rounding of P and the width of the sums, and `tolerance` bounds just that.
"""

from dataclasses import dataclass, field

import torch

import snapmla

PAGE, LATENT, ROPE, TOKEN = 64, 512, 64, 576
POISON = 0xFF  # e4m3, bf16 and f32 made of such bytes are NaN
UNUSED_PAGE = 0x7FFFFF00
SCALE = 192**-0.5


@dataclass(frozen=True)
class Case:
    seq_lens: tuple
    s: int = 1
    heads: int = 4
    format: str = "fp8"
    rule: str = "pow2"
    layout: str = "records"
    causal: bool = True
    num_workers: int = 0
    fixed: int = 0
    std: float = 1.2  # of the logits
    rope_outliers: bool = False
    seed: int = 1

    def __str__(self):
        changed = [f"{name}={value}" for name, value in vars(self).items()
                   if name not in ("seq_lens", "seed") and value != Case.__dataclass_fields__[name].default]
        return " ".join(["-".join(map(str, self.seq_lens)), *changed])


def empty_cache(num_pages, format, layout, device):
    """A poisoned pool: dense records, padded records, or planes of their own with rows apart; sparse: scales too."""
    fp8 = format == "fp8"
    if layout not in ("planes", "sparse"):
        page = PAGE * (644 if fp8 else 1152)
        stride = page if layout == "records" else 656 * PAGE if fp8 else page + 4096
        buffer = torch.full((num_pages, stride), POISON, dtype=torch.uint8, device=device)
        if fp8:
            return snapmla.PagedCache.from_records(buffer)
        return snapmla.PagedCache.from_records(buffer[:, :page].view(torch.bfloat16).unflatten(1, (PAGE, TOKEN)))

    def plane(width, dtype, row_bytes):
        page_stride = PAGE * row_bytes + 16
        bytes_ = torch.full((num_pages, page_stride), POISON, dtype=torch.uint8, device=device)
        rows = bytes_[:, : PAGE * row_bytes].unflatten(1, (PAGE, row_bytes))
        return rows[..., : width * dtype.itemsize].view(dtype)

    latent_type = torch.float8_e4m3fn if fp8 else torch.bfloat16
    latent = plane(LATENT, latent_type, LATENT * latent_type.itemsize + 16)
    rope = plane(ROPE, torch.bfloat16, 2 * ROPE + 16)
    scale_bytes = 8 if layout == "sparse" else 4
    return snapmla.PagedCache.from_planes(latent, rope, plane(1, torch.float32, scale_bytes)[..., 0] if fp8 else None)


@dataclass
class Problem:
    case: Case
    device: torch.device
    q_latent: torch.Tensor = field(init=False)
    q_rope: torch.Tensor = field(init=False)

    def __post_init__(self):
        case, generator = self.case, torch.Generator().manual_seed(self.case.seed)
        normal = lambda *shape: torch.randn(*shape, generator=generator)
        batch, outliers = len(case.seq_lens), case.rope_outliers
        rope_size = torch.where(torch.arange(ROPE) < 3, 1e3 if outliers else 1.0, 1.0)
        q_std = case.std / (SCALE * TOKEN**0.5)
        self.q_latent = (q_std * normal(batch, case.s, case.heads, LATENT)).bfloat16().to(self.device)
        self.q_rope = (q_std * normal(batch, case.s, case.heads, ROPE) / rope_size).bfloat16().to(self.device)
        mean = normal(LATENT)  # zero-mean noise alone hides errors of accumulation
        self.kv = [torch.cat([mean + normal(n, LATENT), rope_size * normal(n, ROPE)], -1).bfloat16().to(self.device)
                   for n in case.seq_lens]
        pages = [-(-n // PAGE) for n in case.seq_lens]
        order = torch.randperm(sum(pages) + 3, generator=generator).to(torch.int32)
        self.block_table = torch.full((batch, max(1, *pages)), UNUSED_PAGE, dtype=torch.int32)
        self.cache = empty_cache(len(order), case.format, case.layout, self.device)
        at = 0
        for row, count, rows in zip(self.block_table, pages, self.kv):
            row[:count] = order[at : at + count]
            at += count
            slots = (row[:count, None] * PAGE + torch.arange(PAGE)).flatten()[: len(rows)]
            snapmla.append_kv(rows, slots.to(self.device), self.cache, scale_rule=case.rule)
        self.block_table = self.block_table.to(self.device)
        self.seq_lens = torch.tensor(case.seq_lens, dtype=torch.int32, device=self.device)
        self.softmax_scale = SCALE

    def plan(self):
        case = self.case
        return snapmla.plan(self.seq_lens, rows=case.s * case.heads, max_seq_len=max(1, *case.seq_lens),
                            num_workers=case.num_workers, fixed_split_tokens=case.fixed)

    def query(self):
        if self.case.format == "fp8":
            return snapmla.quantize_q(self.q_latent, self.q_rope, scale_rule=self.case.rule)
        return self.q_latent, self.q_rope, None

    def solve(self, **keywords):
        keywords = {"out_dtype": torch.float32, **keywords}
        return snapmla.decode(*self.query(), self.cache, self.block_table, self.seq_lens, self.plan(),
                              self.softmax_scale, causal=self.case.causal, **keywords)

    def request(self, b):
        """Query rows [s, heads, 576] and stored tokens [seq_len, 576] of a request as the ops see them, fp64, CPU; and
        the stored tokens' scales [seq_len]."""
        latent, rope, scale = (None if x is None else x[b].cpu().double() for x in self.query())
        q = torch.cat([latent, rope], -1) * (1 if scale is None else scale[..., None])
        count = -(-self.case.seq_lens[b] // PAGE)
        pages = self.block_table[b, :count].long().cpu()
        of = lambda plane: plane.cpu()[pages].flatten(0, 1)[: self.case.seq_lens[b]].double()
        k = torch.cat([of(self.cache.latent), of(self.cache.rope)], -1)
        if self.case.format == "bf16":
            return q, k, torch.ones(len(k), dtype=torch.float64)
        return q, k * of(self.cache.scale)[:, None], of(self.cache.scale)


def expected(problem):
    """out, lse, and their tolerances: out_error [batch, s, heads] for the norm of a row's error, lse_error alike."""
    case = problem.case
    shape = (len(case.seq_lens), case.s, case.heads)
    out = torch.zeros(*shape, LATENT, dtype=torch.float64)
    lse = torch.full(shape, -torch.inf, dtype=torch.float64)
    out_error, lse_error = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
    for b, seq_len in enumerate(case.seq_lens):
        q, k, scale = problem.request(b)
        for i in range(case.s):
            sees = seq_len - case.s + i + 1 if case.causal else seq_len
            if sees <= 0:
                continue
            keys = k[:sees]
            logits = problem.softmax_scale * (q[i] @ keys.T)  # [heads, sees]
            lse[b, i] = logits.logsumexp(-1)
            p = (logits - lse[b, i, :, None]).exp()
            out[b, i] = p @ keys[:, :LATENT]
            magnitude = problem.softmax_scale * (q[i].abs() @ keys.abs().T).amax(-1)
            # Sums in fp32: 576 roundings of 2^-24, here taken as 2^-17 together. A tensor core adds e4m3 products with
            # about 14 bits, in 16 steps (docs/numerics.md): 2^-10.
            width = 2**-10 if problem.device.type == "cuda" and case.format == "fp8" else 2**-17
            lse_error[b, i] = width * magnitude + 2**-20 * (1 + lse[b, i].abs())
            out_error[b, i] = rounding_of_p(problem, p, keys, scale[:sees]) + 4 * width * (1 + magnitude) * (
                p @ keys[:, :LATENT].norm(dim=-1))
    return out, lse, out_error, lse_error


def rounding_of_p(problem, p, keys, scale):
    """Six standard deviations of the error that rounding P causes in a row of out. A step is 2^-3 of the value for e4m3
    (2^-9 of the block's unit where subnormal, the unit being max(p s) / 448 / s), 2^-7 for bf16; the error of a step is
    uniform, so its deviation is step / sqrt(12). A block is a page; on CUDA it is two, and the unit a bound that costs up
    to two binades (docs/numerics.md)."""
    if problem.case.format == "bf16":
        step = 2**-7 * p
    else:
        step = 2**-3 * p
        tokens, bound = (2 * PAGE, 4) if problem.device.type == "cuda" else (PAGE, 1)
        for begin in range(0, p.shape[1], tokens):
            block = slice(begin, begin + tokens)
            unit = bound * (p[:, block] * scale[block]).amax(-1, keepdim=True) / 448 / scale[block]
            step[:, block] = torch.maximum(step[:, block], 2**-9 * unit)
    value = keys[:, :LATENT].norm(dim=-1)
    return 6 / 12**0.5 * (step * value).square().sum(-1).sqrt()


def assert_matches(problem, out, lse):
    want_out, want_lse, out_error, lse_error = expected(problem)
    out, lse = out.cpu().double(), lse.cpu().double()
    assert not out.isnan().any() and not lse.isnan().any()
    assert torch.equal(lse.isinf(), want_lse.isinf())
    assert (lse[lse.isinf()] < 0).all() and (out[lse.isinf()] == 0).all()
    seen = ~want_lse.isinf()
    lse_ratio = ((lse - want_lse).abs() / lse_error)[seen]
    out_ratio = ((out - want_out).norm(dim=-1) / out_error)[seen]
    assert lse_ratio.numel() == 0 or lse_ratio.max() <= 1, f"lse off by {lse_ratio.max():.2f} times its bound"
    assert out_ratio.numel() == 0 or out_ratio.max() <= 1, f"out off by {out_ratio.max():.2f} times its bound"
