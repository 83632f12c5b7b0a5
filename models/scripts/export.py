"""Write a checkpoint as a transformers folder (BF16) and check it against model.py."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from data import BEGIN, END
from model import Config, Model, initialise
from safetensors.torch import save_file
from torch import Tensor


def config_json(c: Config) -> dict:
    """config.json of DeepseekV3ForCausalLM."""
    return {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": BEGIN,
        "eos_token_id": END,
        "pad_token_id": None,
        "vocab_size": c.vocab_size,
        "hidden_size": c.hidden_size,
        "intermediate_size": c.intermediate_size,
        "moe_intermediate_size": c.moe_intermediate_size,
        "num_hidden_layers": c.num_hidden_layers,
        "num_attention_heads": c.num_attention_heads,
        "num_key_value_heads": c.num_attention_heads,
        "q_lora_rank": None,
        "kv_lora_rank": c.kv_lora_rank,
        "qk_nope_head_dim": c.qk_nope_head_dim,
        "qk_rope_head_dim": c.qk_rope_head_dim,
        "v_head_dim": c.v_head_dim,
        "first_k_dense_replace": c.first_k_dense_replace,
        "moe_layer_freq": 1,
        "n_routed_experts": c.n_routed_experts,
        "n_shared_experts": c.n_shared_experts,
        "num_experts_per_tok": c.num_experts_per_tok,
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.0,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "num_nextn_predict_layers": 0,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "rms_norm_eps": c.rms_norm_eps,
        "max_position_embeddings": c.max_position_embeddings,
        "rope_theta": c.rope_theta,
        "rope_scaling": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": c.rope_theta},
        "rope_interleave": True,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
    }


def tensors(model: Model) -> dict[str, Tensor]:
    """The weights under their names in DeepSeek-V3 checkpoints (output matrix written out)."""
    out: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        parts = name.split(".")
        if parts[-1] == "router":
            out[f"model.{'.'.join(parts[:-1])}.gate.weight"] = value
        elif parts[-1] == "e_score_correction_bias":
            out[f"model.{'.'.join(parts[:-1])}.gate.e_score_correction_bias"] = value
        elif value.ndim == 3:
            for e, expert in enumerate(value):
                out[f"model.{'.'.join(parts[:-1])}.experts.{e}.{parts[-1]}.weight"] = expert
        else:
            out[f"model.{name}"] = value
    out["lm_head.weight"] = out["model.embed_tokens.weight"].clone()
    keep = "e_score_correction_bias"  # FP32 as in DeepSeek-V3: it decides the routing
    return {k: (v.float() if k.endswith(keep) else v.bfloat16()).contiguous().cpu() for k, v in out.items()}


def write(model: Model, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors(model), str(folder / "model.safetensors"), {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config_json(model.c), indent=2) + "\n")
    generation = {"bos_token_id": BEGIN, "eos_token_id": END, "do_sample": False}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")


@torch.no_grad()
def difference(model: Model, folder: Path, length: int = 300) -> float:
    """Largest difference of logits from transformers' in FP32, both with the exported weights."""
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ours = Model(model.c)
    ours.load_state_dict({k: v if "correction" in k else v.bfloat16().float() for k, v in model.state_dict().items()})
    ids = torch.randint(2, model.c.vocab_size, (2, length), generator=torch.Generator().manual_seed(0))
    hidden, _ = ours(ids, torch.arange(length).expand(2, length))
    return float((ours.logits(hidden) - theirs(ids).logits).abs().max())


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--checkpoint", type=Path, help="without one, random weights are written")
    args.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "tiny-mla")
    opts = args.parse_args()
    if opts.checkpoint:
        saved = torch.load(opts.checkpoint, map_location="cpu", weights_only=False)
        model = Model(Config(**saved["config"]))
        model.load_state_dict(saved["model"])
        print(f"{saved['steps']} steps, {saved['tokens']} tokens, {saved['seconds'] / 60:.1f} minutes")
    else:
        model = Model(Config())
        initialise(model)
    write(model, opts.out)
    print(f"{sum(p.numel() for p in model.parameters())} parameters; "
          f"largest difference from transformers: {difference(model, opts.out):.2e}")


if __name__ == "__main__":
    main()
