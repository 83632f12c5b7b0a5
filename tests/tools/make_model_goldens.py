#!/usr/bin/env python3
"""Makes tests/data/goldens/*.json: logits of tiny random models of every family by Hugging Face transformers.

The models are those of model_configs.py with the weights of seeded_checkpoint.py, which the test makes again, so only
configs, tokens and logits are stored. Each model is written as a Hugging Face folder and loaded from it, in
fp32 (the goldens) and in BF16; the differences between the two are stored, and the C++ test allows twice them.

So that a mistake shows and rounding does not, the script asserts
  - attention logits with a standard deviation of at least 2 over the keys of a row, in every layer,
  - prompts longer than YaRN's original context,
  - routing and greedy choices with a clear margin: prompt tokens are searched one by one for it, and the last
    one so that eight greedy steps have it too,
  - what the C++ code takes for granted about transformers: m^2 in the softmax scale of every family, and an
    eps of 1e-6 in the latent norms whatever rms_norm_eps says.

Kimi K2 has no class in transformers: its config.json is that of DeepSeek-V3 by another name, and loads as such.

Usage: python3 tests/tools/make_model_goldens.py [name ...]      (needs torch, transformers >= 5.17, numpy)
"""

import json
import math
import pathlib
import sys
import tempfile

import numpy as np
import torch
from hashes import fnv1a
from model_configs import MODELS
from seeded_checkpoint import field, write_folder
from transformers import AutoModelForCausalLM, Mistral4ForCausalLM
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

OUT = pathlib.Path(__file__).resolve().parent.parent / "data" / "goldens"
PROMPT_TOKENS = 132
GREEDY_TOKENS = 8
PREFILL_POSITIONS = [0, 40, 63, 64, 100, 127, PROMPT_TOKENS - 1]
CANDIDATES = 24  # prompt tokens tried for each position
MIN_MARGIN = 6.0  # in units of the rms rounding noise of what is compared
MIN_LOGIT_STD = 2.0

def load(config, folder, dtype, attention):
    # The automatic class takes mistral4 for a part of a multimodal model.
    kind = Mistral4ForCausalLM if config["model_type"] == "mistral4" else AutoModelForCausalLM
    model, info = kind.from_pretrained(
        folder, dtype=dtype, attn_implementation=attention, output_loading_info=True
    )
    problems = {key: value for key, value in info.items() if value}
    assert not problems, problems
    return model.eval()


def choice_scores(model, router_logits):
    """What top-k looks at, before groups are cut."""
    softmax = model.config.model_type in ("deepseek_v2", "longcat_flash", "mistral4")
    scores = [logits.float().softmax(-1) if softmax else logits.float().sigmoid() for logits in router_logits]
    moes = [layer.mlp for layer in model.model.layers if hasattr(layer.mlp, "experts")]
    routers = [moe.router if hasattr(moe, "router") else moe.gate for moe in moes]
    return [s + getattr(router, "e_score_correction_bias", 0) for s, router in zip(scores, routers, strict=True)]


def route_margin(config, scores):
    """Gap between the last chosen and the first rejected, of groups and of experts; [..., experts] -> [...]."""
    groups, kept = config.get("n_group") or 1, config.get("topk_group") or 1
    if config.get("topk_method") == "greedy":
        groups, kept = 1, 1
    margin = torch.full(scores.shape[:-1], torch.inf)
    grouped = scores.unflatten(-1, (groups, -1))
    if kept < groups:
        best = 1 if config["model_type"] == "deepseek_v2" else 2
        group_scores = grouped.topk(best, -1).values.sum(-1)
        top = group_scores.topk(kept + 1, -1).values
        margin = torch.minimum(margin, top[..., kept - 1] - top[..., kept])
        keep = torch.zeros_like(group_scores).scatter(-1, group_scores.topk(kept, -1).indices, 1).bool()
        grouped = grouped.masked_fill(~keep.unsqueeze(-1), -torch.inf)
    k = field(config, "num_experts_per_tok")
    top = grouped.flatten(-2).topk(k + 1, -1).values
    return torch.minimum(margin, top[..., k - 1] - top[..., k])


def run(model, tokens):
    """Logits [batch, n, vocab] and choice scores a layer with experts [batch, n, experts]."""
    dense = not hasattr(model.config, "n_routed_experts")
    with torch.no_grad():
        out = model(torch.tensor(tokens), use_cache=False, **({} if dense else {"output_router_logits": True}))
    if dense:
        return out.logits.float(), []
    shape = (len(tokens), len(tokens[0]), -1)
    scores = choice_scores(model, [logits.reshape(shape) for logits in out.router_logits])
    return out.logits.float(), scores


def margins(config, logits, scores, noise):
    """The smallest routing margin over layers, in units of noise; [batch, n]."""
    clear = [torch.full(logits.shape[:-1], torch.inf)]
    return torch.stack(clear + [route_margin(config, s) / n for s, n in zip(scores, noise)]).amin(0)


def gap(logits):
    top = logits.topk(2, -1).values
    return top[..., 0] - top[..., 1]


def rounding_noise(a, b):
    """Standard deviation of a - b, unmoved by the few rows where a routing choice flipped."""
    return 1.48 * (a - b).abs().median()


def find_prompt(config, fp32, bf16, rng):
    tokens = rng.integers(2, config["vocab_size"], PROMPT_TOKENS).tolist()
    logits32, scores32 = run(fp32, [tokens])
    logits16, scores16 = run(bf16, [tokens])
    noise = [rounding_noise(a, b) for a, b in zip(scores32, scores16)]
    logit_noise = rounding_noise(logits32, logits16)
    prompt = []
    while len(prompt) < PROMPT_TOKENS - 1:
        tries = [prompt + [t] for t in rng.integers(2, config["vocab_size"], CANDIDATES).tolist()]
        logits, scores = run(fp32, tries)
        clear = margins(config, logits, scores, noise)[:, -1]
        if len(prompt) in PREFILL_POSITIONS:
            clear = torch.minimum(clear, gap(logits)[:, -1] / logit_noise)
        prompt = tries[int(clear.argmax())]
    best, best_clear = None, -1.0
    for _ in range(40):
        tries = [prompt + [t] for t in rng.integers(2, config["vocab_size"], CANDIDATES).tolist()]
        clear = torch.full((CANDIDATES,), torch.inf)
        for _ in range(GREEDY_TOKENS + 1):
            logits, scores = run(fp32, tries)
            step = torch.minimum(margins(config, logits, scores, noise)[:, -1], gap(logits)[:, -1] / logit_noise)
            clear = torch.minimum(clear, step)
            alive = [i for i in range(len(tries)) if clear[i] > best_clear]
            if not alive:
                break
            tries = [tries[i] + [int(logits[i, -1].argmax())] for i in alive]
            clear = clear[alive]
        if alive:
            best, best_clear = tries[int(clear.argmax())], float(clear.max())
        if best_clear >= 0.75 * MIN_MARGIN:
            break
    # The last token of `best` came from the last step's logits and is not fed.
    return best[:-1], best[PROMPT_TOKENS:], best_clear


def check_attention(config, fp32, tokens):
    with torch.no_grad():
        out = fp32(torch.tensor([tokens]), output_attentions=True, use_cache=False)
    n = len(tokens)
    for layer, attention in enumerate(out.attentions):
        rows = [attention[0, :, i, : i + 1].log().clamp(min=-80).std(-1).mean() for i in range(n // 2, n)]
        std = float(torch.stack(rows).mean())
        assert std >= MIN_LOGIT_STD, f"layer {layer}: attention logits have std {std:.2f}"
        print(f"  layer {layer}: attention logit std {std:.2f}")


def check_fp8():
    """A scale multiplies, one a block of 128 x 128."""
    codes = torch.randn(256, 384).to(torch.float8_e4m3fn)
    scales = torch.rand(2, 3) + 0.5
    expected = codes.float() * scales.repeat_interleave(128, 0).repeat_interleave(128, 1)
    assert torch.equal(Fp8Dequantize(None)._dequantize_one(codes, scales, torch.float32), expected)


def check_transformers(config, model):
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    scale = (config["qk_nope_head_dim"] + config["qk_rope_head_dim"]) ** -0.5
    if "factor" in rope:
        scale *= (0.1 * rope.get("mscale_all_dim", 0) * math.log(rope["factor"]) + 1) ** 2
        assert PROMPT_TOKENS > 2 * rope["original_max_position_embeddings"]
    for layer in model.model.layers:
        several = config["model_type"] == "longcat_flash"
        for attention in layer.self_attn if several else [layer.self_attn]:
            assert math.isclose(attention.scaling, scale, rel_tol=1e-6), (attention.scaling, scale)
            assert attention.kv_a_layernorm.variance_epsilon == 1e-6
            if config["q_lora_rank"]:
                assert attention.q_a_layernorm.variance_epsilon == 1e-6
        for norm in layer.input_layernorm if several else [layer.input_layernorm]:
            assert norm.variance_epsilon == config["rms_norm_eps"]


def make(name):
    config = MODELS[name]
    seed = fnv1a(name.encode()) % 2**31
    print(name)
    with tempfile.TemporaryDirectory() as temp:
        folder = pathlib.Path(temp)
        write_folder(folder, config, seed)
        fp32 = load(config, folder, torch.float32, "eager")
        bf16 = load(config, folder, torch.bfloat16, "sdpa")
    check_transformers(config, fp32)
    tokens, greedy, clear = find_prompt(config, fp32, bf16, np.random.default_rng(seed))
    check_attention(config, fp32, tokens)
    logits32, scores32 = run(fp32, [tokens])
    logits16, scores16 = run(bf16, [tokens])
    positions = PREFILL_POSITIONS + list(range(PROMPT_TOKENS, PROMPT_TOKENS + GREEDY_TOKENS))
    noise = [rounding_noise(a, b) for a, b in zip(scores32, scores16)]
    prompt_margin = float(margins(config, logits32, scores32, noise).min())
    difference = (logits32 - logits16)[0, positions]
    max_abs, rms = float(difference.abs().max()), float(difference.square().mean().sqrt())
    std = float(logits32[0, positions].std())
    print(f"  margins: prompt {prompt_margin:.1f}, greedy {clear:.1f}")
    print(f"  logit std {std:.2f}; BF16 - fp32: max {max_abs:.4f}, rms {rms:.4f} ({100 * rms / std:.2f} %)")
    assert min(prompt_margin, clear) >= 0.5 * MIN_MARGIN, "no clear margins: try another seed"
    assert torch.equal(logits32[0, positions].argmax(-1), logits16[0, positions].argmax(-1))
    golden = {
        "seed": seed,
        "config": config,
        "prompt": tokens[:PROMPT_TOKENS],
        "greedy": greedy,
        "positions": positions,
        "bf16_max_abs": float(f"{max_abs:.6g}"),
        "bf16_rms": float(f"{rms:.6g}"),
        "logits": [[float(f"{x:.6g}") for x in row] for row in logits32[0, positions].tolist()],
    }
    rows = ",\n".join("  " + json.dumps(row) for row in golden.pop("logits"))
    head = json.dumps(golden, indent=1)[:-2]
    (OUT / f"{name}.json").write_text(f'{head},\n "logits": [\n{rows}\n ]\n}}\n')


def main():
    torch.set_num_threads(1)
    check_fp8()
    OUT.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[1:] or MODELS:
        make(name)


if __name__ == "__main__":
    main()
