"""MLA + MoE language model in DeepSeek-V3 layout, lean enough to train on a CPU.

Same function as `DeepseekV3ForCausalLM` of transformers; parameter names follow
it, except that the experts of a layer are stacked (export.py unstacks them).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class Config:
    """Dimensions, named as in DeepSeek-V3's config.json."""

    vocab_size: int = 2048
    hidden_size: int = 256
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    kv_lora_rank: int = 512
    qk_nope_head_dim: int = 32
    qk_rope_head_dim: int = 64
    v_head_dim: int = 64
    intermediate_size: int = 512
    first_k_dense_replace: int = 1
    moe_intermediate_size: int = 128
    n_routed_experts: int = 8
    num_experts_per_tok: int = 2
    n_shared_experts: int = 1
    rope_theta: float = 1e6
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 65536

    def dict(self) -> dict:
        return asdict(self)


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), (x.shape[-1],), self.weight, self.eps)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of interleaved pairs (x0, x1), (x2, x3), ..."""
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x as an FP8 product sees it: tiles of 128 with a scale each; gradients pass straight through."""
    tiles = x.float().unflatten(-1, (-1, 128))
    scale = tiles.abs().amax(-1, keepdim=True).clamp_min(1e-26) / torch.finfo(dtype).max
    stored = ((tiles / scale).to(dtype).float() * scale).flatten(-2)
    return x + (stored.to(x.dtype) - x).detach()


@dataclass
class Past:
    """What a layer keeps of earlier tokens: normed latents and rotated rope keys."""

    latent: Tensor
    rope: Tensor


class Attention(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.c = c
        heads, qk = c.num_attention_heads, c.qk_nope_head_dim + c.qk_rope_head_dim
        self.q_proj = nn.Linear(c.hidden_size, heads * qk, bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(c.hidden_size, c.kv_lora_rank + c.qk_rope_head_dim, bias=False)
        self.kv_a_layernorm = RMSNorm(c.kv_lora_rank, 1e-6)
        self.kv_b_proj = nn.Linear(c.kv_lora_rank, heads * (c.qk_nope_head_dim + c.v_head_dim), bias=False)
        self.o_proj = nn.Linear(heads * c.v_head_dim, c.hidden_size, bias=False)
        self.scale = qk**-0.5
        self.round_to: torch.dtype | None = None  # what kv_b_proj's input is rounded to in training

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, past: Past | None,
                rows: Tensor | None) -> tuple[Tensor, Past]:
        """Attend; with `rows`, only those positions ask (all are still keys)."""
        c, (batch, length, _) = self.c, x.shape
        heads = c.num_attention_heads
        latent, rope = self.kv_a_proj_with_mqa(x).split((c.kv_lora_rank, c.qk_rope_head_dim), -1)
        latent, rope = self.kv_a_layernorm(latent), rotate(rope, cos, sin)
        asking, qcos, qsin = (x, cos, sin) if rows is None else (x[:, rows], cos[:, rows], sin[:, rows])
        q = self.q_proj(asking).view(batch, asking.shape[1], heads, -1).transpose(1, 2)
        q_nope, q_rope = q.split((c.qk_nope_head_dim, c.qk_rope_head_dim), -1)
        q = torch.cat((q_nope, rotate(q_rope, qcos[:, None], qsin[:, None])), -1)
        kept = Past(latent, rope)
        before = 0
        if past is not None:
            before = past.latent.shape[1]
            latent, rope = torch.cat((past.latent, latent), 1), torch.cat((past.rope, rope), 1)
        total = before + length
        seen = latent if self.round_to is None else rounded(latent, self.round_to)
        kv = self.kv_b_proj(seen).view(batch, total, heads, -1).transpose(1, 2)
        k_nope, v = kv.split((c.qk_nope_head_dim, c.v_head_dim), -1)
        k = torch.cat((k_nope, rope[:, None].expand(-1, heads, -1, -1)), -1)
        mask, causal = None, True
        if before or rows is not None:
            at = torch.arange(length, device=x.device) if rows is None else rows
            mask = torch.arange(total, device=x.device)[None] <= (at + before)[:, None]
            causal = False
        v = F.pad(v, (0, k.shape[-1] - c.v_head_dim))
        out = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=self.scale)
        out = out[..., : c.v_head_dim].transpose(1, 2).flatten(2)
        return self.o_proj(out), kept


class MLP(nn.Module):
    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, inner, bias=False)
        self.up_proj = nn.Linear(hidden, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class MoE(nn.Module):
    """Sigmoid router with a selection bias (noaux_tc), tokens sorted per expert."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.c = c
        experts, hidden, inner = c.n_routed_experts, c.hidden_size, c.moe_intermediate_size
        self.router = nn.Parameter(torch.empty(experts, hidden))
        self.register_buffer("e_score_correction_bias", torch.zeros(experts))
        self.gate_proj = nn.Parameter(torch.empty(experts, inner, hidden))
        self.up_proj = nn.Parameter(torch.empty(experts, inner, hidden))
        self.down_proj = nn.Parameter(torch.empty(experts, hidden, inner))
        self.shared_experts = MLP(hidden, inner * c.n_shared_experts)
        self.load = torch.zeros(experts)

    def forward(self, x: Tensor) -> Tensor:
        c, shape = self.c, x.shape
        flat = x.reshape(-1, shape[-1])
        with torch.autocast(x.device.type, enabled=False):  # FP32 as in transformers: it decides the routing
            scores = F.linear(flat.float(), self.router.float()).sigmoid()
        chosen = (scores + self.e_score_correction_bias).topk(c.num_experts_per_tok, -1).indices
        weights = scores.gather(1, chosen)
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        order = chosen.flatten().argsort()
        counts = torch.bincount(chosen.flatten(), minlength=c.n_routed_experts)
        self.load = counts.detach()
        tokens = order // c.num_experts_per_tok
        groups = flat[tokens].split(counts.tolist())
        outs = [
            F.linear(F.silu(F.linear(g, self.gate_proj[e])) * F.linear(g, self.up_proj[e]), self.down_proj[e])
            for e, g in enumerate(groups)
        ]
        routed = torch.cat(outs) * weights.flatten()[order, None].to(x.dtype)
        y = torch.zeros_like(flat).index_add(0, tokens, routed.to(flat.dtype))
        return y.view(shape) + self.shared_experts(x)

    @torch.no_grad()
    def balance(self, rate: float) -> None:
        """Auxiliary-loss-free balancing: raise the bias of experts used too little."""
        load = self.load.float()
        self.e_score_correction_bias += rate * torch.sign(load.mean() - load)


class Layer(nn.Module):
    def __init__(self, c: Config, index: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.self_attn = Attention(c)
        self.post_attention_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        dense = index < c.first_k_dense_replace
        self.mlp = MLP(c.hidden_size, c.intermediate_size) if dense else MoE(c)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, past: Past | None = None,
                rows: Tensor | None = None) -> tuple[Tensor, Past]:
        out, kept = self.self_attn(self.input_layernorm(x), cos, sin, past, rows)
        x = (x if rows is None else x[:, rows]) + out
        return x + self.mlp(self.post_attention_layernorm(x)), kept


class Model(nn.Module):
    """Tied embeddings; `forward` returns normed hidden states and the new cache entries."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.c = c
        self.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size)
        self.layers = nn.ModuleList(Layer(c, i) for i in range(c.num_hidden_layers))
        self.norm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        half = torch.arange(0, c.qk_rope_head_dim, 2).float() / c.qk_rope_head_dim
        self.register_buffer("inv_freq", 1.0 / c.rope_theta**half, persistent=False)

    def forward(self, ids: Tensor, positions: Tensor, past: list[Past] | None = None,
                rows: Tensor | None = None) -> tuple[Tensor, list[Past]]:
        """`rows`: the only positions whose last hidden state is wanted."""
        angles = positions[..., None].float() * self.inv_freq
        cos, sin = angles.cos(), angles.sin()
        x = self.embed_tokens(ids)
        kept = []
        for i, layer in enumerate(self.layers):
            last = i == len(self.layers) - 1
            x, entry = layer(x, cos, sin, past[i] if past else None, rows if last else None)
            kept.append(entry)
        return self.norm(x), kept

    def logits(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.embed_tokens.weight)


def orthonormal(rows: int, columns: int, g: torch.Generator) -> Tensor:
    """A random matrix with orthonormal rows (rows <= columns)."""
    q, _ = torch.linalg.qr(torch.randn(columns, rows, generator=g))
    return q.T.contiguous()


@torch.no_grad()
def initialise(model: Model, seed: int = 0) -> None:
    """Random weights, except that attention starts out able to look back and to match.

    Layer 0: head h attends to the token h + 1 back (a constant embedding channel
    drives the rope part) and writes that token into a channel block of its own.
    Later layers: two heads a layer start as induction heads, which compare the
    current tokens with what layer 0 wrote about earlier ones and copy what they find.
    Everything stays trainable; this saves the many steps in which such heads form.
    """
    c = model.c
    g = torch.Generator().manual_seed(seed)
    std = 1.0  # of the residual stream; the final norm scales the logits down
    for name, p in model.named_parameters():
        if p.ndim >= 2:
            p.copy_(torch.randn(p.shape, generator=g) / math.sqrt(p.shape[-1]))
            if "down_proj" in name or "o_proj" in name:
                p.mul_(0.1 * std)
            if name.endswith("router"):
                p.mul_(0.5)
    model.norm.weight.fill_(0.02)
    heads, nope, rope, vdim = c.num_attention_heads, c.qk_nope_head_dim, c.qk_rope_head_dim, c.v_head_dim
    hidden, half = c.hidden_size, c.hidden_size // 2
    block = half // heads
    # channel 0 is constant, 1..half-1 hold the token, the upper half is free for heads to write
    emb = model.embed_tokens.weight
    emb.copy_(std * torch.randn(emb.shape, generator=g))
    emb[:, half:] *= 0.25
    emb[:, 0] = 3 * std
    read = torch.zeros(block, hidden)
    read[:, 1:half] = orthonormal(block, half - 1, g)
    for i, layer in enumerate(model.layers):
        a = layer.self_attn
        a.kv_a_proj_with_mqa.weight[:hidden] = torch.eye(hidden) + 0.02 * torch.randn(hidden, hidden, generator=g)
        kv_b = a.kv_b_proj.weight.view(heads, nope + vdim, c.kv_lora_rank)
        q = a.q_proj.weight.view(heads, nope + rope, hidden)
        q[:, nope:] *= 0.2
        o = a.o_proj.weight.view(hidden, heads, vdim)
        k_rope = a.kv_a_proj_with_mqa.weight[c.kv_lora_rank:]
        if i == 0:
            used = 14  # the faster rotations tell neighbours apart
            size = 2.2
            k_rope[: 2 * used, :] *= 0.1
            k_rope[0 : 2 * used : 2, 0] = size
            q[:, :nope] *= 0.2
            for h in range(heads):
                angle = -model.inv_freq[:used] * (h + 1)
                q[h, nope:] *= 0.1
                q[h, nope : nope + 2 * used : 2, 0] = size * angle.cos()
                q[h, nope + 1 : nope + 2 * used : 2, 0] = size * angle.sin()
                kv_b[h, nope : nope + block, :hidden] = 2 * read
                start = half + block * h
                o[start : start + block, h, :block] = 0.7 * std * torch.eye(block)
        else:
            for h in range(2):
                # compare (t, t-1) or (t-1, t-2) with what stands before the earlier token
                turn = orthonormal(nope, nope, g)[:, :block]
                q[h] *= 0.1
                k = torch.zeros(nope, hidden)
                want = torch.zeros(nope, hidden)
                for j in range(3):
                    gain = (1.0, 0.8, 0.6)[j]
                    mix = orthonormal(nope, nope, g)[:, :block] if j else turn
                    source = read if j == 0 else torch.zeros(block, hidden)
                    if j:
                        source[:, half + block * (j - 1) : half + block * j] = torch.eye(block)
                    want += gain * mix @ source
                    k[:, half + block * j : half + block * (j + 1)] += gain * mix
                q[h, :nope] = 1.5 * want
                kv_b[h, :nope, :hidden] = 1.5 * k
                copy = torch.zeros(vdim, hidden)
                copy[:, 1:half] = orthonormal(vdim, half - 1, g)
                kv_b[h, nope:, :hidden] = copy
                o[:, h, :] = 0.5 * std * copy.T
