#!/usr/bin/env python3
"""Makes tests/data/goldens/*.json: logits of tiny random models of every family by Hugging Face transformers.

Weights are a function of (seed, tensor name, index), the same one as in tests/support/checkpoint.h, so only
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
import struct
import sys
import tempfile

import numpy as np
import torch
from transformers import AutoModelForCausalLM, Mistral4ForCausalLM
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

OUT = pathlib.Path(__file__).resolve().parent.parent / "data" / "goldens"
PROMPT_TOKENS = 132
GREEDY_TOKENS = 8
PREFILL_POSITIONS = [0, 40, 63, 64, 100, 127, PROMPT_TOKENS - 1]
CANDIDATES = 24  # prompt tokens tried for each position
MIN_MARGIN = 6.0  # in units of the rms rounding noise of what is compared
MIN_LOGIT_STD = 2.0

COMMON = {
    "vocab_size": 300,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "hidden_act": "silu",
    "max_position_embeddings": 1280,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 0,
    "eos_token_id": 1,
}

DEEPSEEK = {"num_hidden_layers": 3, "first_k_dense_replace": 1}

MODELS = {
    # Transformers 4 style rope_scaling, low-rank queries, groups, correction bias.
    "v3_yarn": {
        **DEEPSEEK,
        "test_query_gain": 1.25,
        "model_type": "deepseek_v3",
        "architectures": ["DeepseekV3ForCausalLM"],
        "hidden_size": 96,
        "intermediate_size": 128,
        "moe_intermediate_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "q_lora_rank": 48,
        "qk_nope_head_dim": 32,
        "v_head_dim": 32,
        "n_routed_experts": 16,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "n_group": 4,
        "topk_group": 1,
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "attention_bias": False,
        "tie_word_embeddings": False,
        "rope_theta": 10000.0,
        "rope_scaling": {
            "type": "yarn",
            "factor": 40,
            "original_max_position_embeddings": 32,
            "beta_fast": 32,
            "beta_slow": 1,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
        },
    },
    # No low-rank queries, plain rope, tied embeddings, one group, attention biases, odd sizes.
    "v3_plain": {
        **DEEPSEEK,
        "test_query_gain": 2.3,
        "model_type": "deepseek_v3",
        "architectures": ["DeepseekV3ForCausalLM"],
        "hidden_size": 80,
        "intermediate_size": 112,
        "moe_intermediate_size": 48,
        "num_attention_heads": 5,
        "num_key_value_heads": 5,
        "q_lora_rank": None,
        "qk_nope_head_dim": 48,
        "v_head_dim": 80,
        "n_routed_experts": 8,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.0,
        "attention_bias": True,
        "tie_word_embeddings": True,
        "rope_theta": 10000.0,
        "rope_scaling": None,
    },
    # As DeepSeek-V2-Lite: transformers 5 style rope_parameters.
    "v2_greedy": {
        **DEEPSEEK,
        "test_query_gain": 1.5,
        "model_type": "deepseek_v2",
        "architectures": ["DeepseekV2ForCausalLM"],
        "hidden_size": 96,
        "intermediate_size": 128,
        "moe_intermediate_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "q_lora_rank": None,
        "qk_nope_head_dim": 32,
        "v_head_dim": 32,
        "n_routed_experts": 12,
        "n_shared_experts": 2,
        "num_experts_per_tok": 3,
        "n_group": 1,
        "topk_group": 1,
        "topk_method": "greedy",
        "norm_topk_prob": False,
        "routed_scaling_factor": 1.0,
        "attention_bias": False,
        "tie_word_embeddings": False,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 40.0,
            "original_max_position_embeddings": 48,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "mscale": 0.707,
            "mscale_all_dim": 0.707,
        },
    },
    # As DeepSeek-V2: groups by their best expert, weights not normalised, and a mscale that scales cos and sin.
    "v2_groups": {
        **DEEPSEEK,
        "test_query_gain": 1.6,
        "model_type": "deepseek_v2",
        "architectures": ["DeepseekV2ForCausalLM"],
        "hidden_size": 96,
        "intermediate_size": 96,
        "moe_intermediate_size": 48,
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
        "q_lora_rank": 64,
        "qk_nope_head_dim": 40,
        "v_head_dim": 24,
        "n_routed_experts": 16,
        "n_shared_experts": 2,
        "num_experts_per_tok": 4,
        "n_group": 4,
        "topk_group": 2,
        "topk_method": "group_limited_greedy",
        "norm_topk_prob": False,
        "routed_scaling_factor": 16.0,
        "attention_bias": True,
        "tie_word_embeddings": False,
        "rope_theta": 10000.0,
        "rope_scaling": {
            "type": "yarn",
            "factor": 16,
            "original_max_position_embeddings": 64,
            "beta_fast": 32,
            "beta_slow": 1,
            "mscale": 1.0,
            "mscale_all_dim": 0.707,
        },
    },
    # As Moonlight, with the rope layout that no released checkpoint of the family has: halves, not pairs.
    "v3_halves": {
        **DEEPSEEK,
        "test_query_gain": 2.3,
        "model_type": "deepseek_v3",
        "architectures": ["DeepseekV3ForCausalLM"],
        "hidden_size": 96,
        "intermediate_size": 128,
        "moe_intermediate_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "q_lora_rank": None,
        "qk_nope_head_dim": 32,
        "v_head_dim": 32,
        "n_routed_experts": 12,
        "n_shared_experts": 2,
        "num_experts_per_tok": 3,
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.446,
        "attention_bias": False,
        "tie_word_embeddings": False,
        "rope_theta": 50000.0,
        "rope_interleave": False,
        "rope_scaling": None,
    },
    # Kimi K2: one group, and a YaRN ramp between equal betas, one pair wide.
    "kimi_k2": {
        **DEEPSEEK,
        "test_query_gain": 1.3,
        "model_type": "kimi_k2",
        "architectures": ["DeepseekV3ForCausalLM"],
        "hidden_size": 96,
        "intermediate_size": 128,
        "moe_intermediate_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "q_lora_rank": 48,
        "qk_nope_head_dim": 32,
        "v_head_dim": 32,
        "n_routed_experts": 16,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.827,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "attention_bias": False,
        "tie_word_embeddings": False,
        "rope_theta": 50000.0,
        "rope_scaling": {
            "type": "yarn",
            "factor": 32.0,
            "original_max_position_embeddings": 64,
            "beta_fast": 1.0,
            "beta_slow": 1.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
        },
    },
    # DeepSeek-V3's way of storing weights: FP8 with a scale a block; sizes that blocks do not divide.
    "v3_fp8": {
        **DEEPSEEK,
        "test_query_gain": 2.2,
        "model_type": "deepseek_v3",
        "architectures": ["DeepseekV3ForCausalLM"],
        "hidden_size": 160,
        "intermediate_size": 192,
        "moe_intermediate_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "q_lora_rank": 144,
        "qk_nope_head_dim": 32,
        "v_head_dim": 32,
        "n_routed_experts": 8,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "n_group": 2,
        "topk_group": 1,
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
        "attention_bias": False,
        "tie_word_embeddings": False,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "quantization_config": {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": [128, 128],
        },
    },
    # GLM-4.7-Flash: its head count and head widths, and a pattern of layers of its own.
    "glm4_moe_lite": {
        "num_hidden_layers": 2,
        "test_query_gain": 2.6,
        "model_type": "glm4_moe_lite",
        "architectures": ["Glm4MoeLiteForCausalLM"],
        "hidden_size": 96,
        "intermediate_size": 128,
        "moe_intermediate_size": 48,
        "num_attention_heads": 20,
        "num_key_value_heads": 20,
        "q_lora_rank": 48,
        "qk_nope_head_dim": 192,
        "v_head_dim": 256,
        "n_routed_experts": 16,
        "n_shared_experts": 1,
        "num_experts_per_tok": 4,
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.8,
        "mlp_layer_types": ["sparse", "dense"],
        "attention_bias": False,
        "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0, "partial_rotary_factor": 1.0},
    },
    # Youtu-LLM: dense, tied although the file does not say so. An eps so large that it shows where it is used.
    "youtu": {
        "num_hidden_layers": 3,
        "rms_norm_eps": 1.0,
        "test_query_gain": 3.2,
        "model_type": "youtu",
        "architectures": ["YoutuForCausalLM"],
        "hidden_size": 96,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "q_lora_rank": 48,
        "qk_nope_head_dim": 32,
        "v_head_dim": 32,
        "attention_bias": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1600000.0},
    },
    # A.X-K1: a norm behind the experts, stored for dense layers too, which do not use it; no correction bias.
    "axk1": {
        **DEEPSEEK,
        "test_query_gain": 2.3,
        "model_type": "axk1",
        "architectures": ["AXK1ForCausalLM"],
        "hidden_size": 96,
        "intermediate_size": 128,
        "moe_intermediate_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "q_lora_rank": 48,
        "qk_nope_head_dim": 32,
        "v_head_dim": 32,
        "n_routed_experts": 16,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "n_group": 4,
        "topk_group": 1,
        "norm_topk_prob": True,
        "routed_scaling_factor": 8.0,
        "attention_bias": False,
        "tie_word_embeddings": False,
        "rope_theta": 10000.0,
        "rope_scaling": None,
    },
    # LongCat-Flash: two attentions and FFNs a layer, experts on a shortcut, half of the experts the identity.
    "longcat_flash": {
        "num_layers": 2,
        "test_query_gain": 0.5,
        "model_type": "longcat_flash",
        "architectures": ["LongcatFlashForCausalLM"],
        "hidden_size": 1152,
        "ffn_hidden_size": 192,
        "expert_ffn_hidden_size": 64,
        "num_attention_heads": 4,
        "q_lora_rank": 96,
        "qk_nope_head_dim": 32,
        "v_head_dim": 32,
        "n_routed_experts": 12,
        "zero_expert_num": 6,
        "zero_expert_type": "identity",
        "moe_topk": 4,
        "routed_scaling_factor": 6.0,
        "mla_scale_q_lora": True,
        "mla_scale_kv_lora": True,
        "attention_method": "MLA",
        "attention_bias": False,
        "tie_word_embeddings": False,
        "rope_theta": 10000000.0,
    },
    # Mistral Large 3 in the layout of mistral4: softmax routing, no m^2, queries that grow with their position.
    "mistral_large3": {
        **DEEPSEEK,
        "test_query_gain": 1.6,
        "model_type": "mistral4",
        "architectures": ["Mistral4ForCausalLM"],
        "hidden_size": 96,
        "intermediate_size": 128,
        "moe_intermediate_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "q_lora_rank": 48,
        "qk_nope_head_dim": 32,
        "v_head_dim": 32,
        "n_routed_experts": 12,
        "n_shared_experts": 1,
        "num_experts_per_tok": 3,
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": True,
        "routed_scaling_factor": 6.0,
        "attention_bias": False,
        "tie_word_embeddings": False,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 36.0,
            "original_max_position_embeddings": 32,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "attention_factor": 1.0,
            "llama_4_scaling_beta": 0.5,
        },
    },
}


# LongCat's names for what the other families call otherwise.
LONGCAT = {
    "intermediate_size": "ffn_hidden_size",
    "moe_intermediate_size": "expert_ffn_hidden_size",
    "num_experts_per_tok": "moe_topk",
    "num_hidden_layers": "num_layers",
}


def field(config, name, otherwise=None):
    if config["model_type"] == "longcat_flash":
        name = LONGCAT.get(name, name)
    return config.get(name, otherwise)


# The seeded weights, bit for bit those of tests/support/checkpoint.h.


def fnv1a(text):
    value = 0xCBF29CE484222325
    for byte in text.encode():
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return value


def to_bf16_bits(values):
    bits = values.view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def gain_and_offset(name, shape, query_gain):
    if "norm." in name:
        return np.float32(0.25), np.float32(1)
    if name.endswith("embed_tokens.weight"):
        return np.float32(1), np.float32(0)
    if name.endswith("e_score_correction_bias"):
        return np.float32(0.2), np.float32(0)
    if name.endswith(".bias"):
        return np.float32(0.5), np.float32(0)
    gain = 1.0
    if name.endswith(("q_proj.weight", "q_b_proj.weight")):
        gain = query_gain
    if name.endswith("o_proj.weight"):
        gain = 2.0
    if name.endswith(("down_proj.weight", "down_proj")):
        gain = 1.5
    if name.endswith("lm_head.weight"):
        gain = 2.0
    return np.float32(gain / math.sqrt(shape[-1])), np.float32(0)


def random_bf16(seed, name, shape, query_gain):
    with np.errstate(over="ignore"):
        z = np.uint64(seed ^ fnv1a(name)) + np.arange(1, math.prod(shape) + 1, dtype=np.uint64) * np.uint64(
            0x9E3779B97F4A7C15
        )
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    total = sum((z >> np.uint64(shift)) & np.uint64(0xFFFF) for shift in (0, 16, 32, 48))
    unit = (total.astype(np.int64) - 131070).astype(np.float32) * np.float32(1 / 37837.2)
    gain, offset = gain_and_offset(name, shape, query_gain)
    return to_bf16_bits(offset + unit * gain)


def expert_layers(config):
    """Whether each layer has experts."""
    layers = field(config, "num_hidden_layers")
    if "mlp_layer_types" in config:
        return [kind == "sparse" for kind in config["mlp_layer_types"]]
    if not config.get("n_routed_experts"):
        return [False] * layers
    return [layer >= config.get("first_k_dense_replace", 0) for layer in range(layers)]


def attention_shapes(config):
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    nope, v = config["qk_nope_head_dim"], config["v_head_dim"]
    latent, rope = config["kv_lora_rank"], config["qk_rope_head_dim"]
    shapes = {"kv_a_proj_with_mqa.weight": [latent + rope, hidden], "kv_a_layernorm.weight": [latent]}
    shapes["kv_b_proj.weight"] = [heads * (nope + v), latent]
    shapes["o_proj.weight"] = [hidden, heads * v]
    if config["q_lora_rank"]:
        shapes["q_a_proj.weight"] = [config["q_lora_rank"], hidden]
        shapes["q_a_layernorm.weight"] = [config["q_lora_rank"]]
        shapes["q_b_proj.weight"] = [heads * (nope + rope), config["q_lora_rank"]]
    else:
        shapes["q_proj.weight"] = [heads * (nope + rope), hidden]
    if config["attention_bias"]:
        for name in ("q_a_proj", "kv_a_proj_with_mqa", "o_proj"):
            if name + ".weight" in shapes:
                shapes[name + ".bias"] = shapes[name + ".weight"][:1]
    return shapes


def mlp_shapes(config, inter):
    hidden = config["hidden_size"]
    return {
        "gate_proj.weight": [inter, hidden],
        "up_proj.weight": [inter, hidden],
        "down_proj.weight": [hidden, inter],
    }


def expert_shapes(config):
    """What is behind "mlp." in a layer with experts."""
    family, hidden = config["model_type"], config["hidden_size"]
    experts, inter = config["n_routed_experts"], field(config, "moe_intermediate_size")
    if family == "mistral4":
        return {
            "gate.weight": [experts, hidden],
            "experts.gate_up_proj": [experts, 2 * inter, hidden],
            "experts.down_proj": [experts, hidden, inter],
        }
    routed = experts + config.get("zero_expert_num", 0)
    router, bias = "gate.weight", "gate.e_score_correction_bias"
    if family == "longcat_flash":
        router, bias = "router.classifier.weight", "router.e_score_correction_bias"
    shapes = {router: [routed, hidden]}
    if family not in ("deepseek_v2", "axk1"):
        shapes[bias] = [routed]
    for expert in range(experts):
        shapes.update({f"experts.{expert}.{name}": shape for name, shape in mlp_shapes(config, inter).items()})
    return shapes


def tensor_shapes(config):
    hidden, family = config["hidden_size"], config["model_type"]
    shapes = {"model.embed_tokens.weight": [config["vocab_size"], hidden]}
    for layer, has_experts in enumerate(expert_layers(config)):
        prefix = f"model.layers.{layer}."

        def add(below, tensors):
            shapes.update({prefix + below + name: shape for name, shape in tensors.items()})

        norms = ["input_layernorm", "post_attention_layernorm"]
        dense = mlp_shapes(config, field(config, "intermediate_size"))
        if family == "longcat_flash":
            add("mlp.", expert_shapes(config))
            for i in range(2):
                add(f"self_attn.{i}.", attention_shapes(config))
                add(f"mlps.{i}.", dense)
                add("", {f"{norm}.{i}.weight": [hidden] for norm in norms})
            continue
        add("self_attn.", attention_shapes(config))
        if family == "axk1":
            norms.append("post_mlp_layernorm")
        add("", {f"{norm}.weight": [hidden] for norm in norms})
        if not has_experts:
            add("mlp.", dense)
            continue
        add("mlp.", expert_shapes(config))
        shared = config["n_shared_experts"] * config["moe_intermediate_size"]
        add("mlp.shared_experts.", mlp_shapes(config, shared))
    shapes["model.norm.weight"] = [hidden]
    if not config.get("tie_word_embeddings", family == "youtu"):
        shapes["lm_head.weight"] = [config["vocab_size"], hidden]
    return shapes


def is_quantized(name, shape):
    """What DeepSeek-V3 stores in FP8: all matrices of a layer but the router."""
    return len(shape) == 2 and ".layers." in name and not name.endswith("gate.weight")


def through_fp8(bits, blocks):
    """bf16 bits -> fp32 values after FP8 with a scale a block: tests/support/checkpoint.h makes the same codes."""
    values = torch.from_numpy((bits.astype(np.uint32) << 16).view(np.float32))
    for top in range(0, values.shape[0], blocks[0]):
        for left in range(0, values.shape[1], blocks[1]):
            block = values[top : top + blocks[0], left : left + blocks[1]]
            scale = block.abs().max() / 448
            block.copy_((block / scale).to(torch.float8_e4m3fn).float() * scale)
    return values.numpy()


def add_identity_experts(config, tensors):
    """transformers wants gate and up projections of the identity experts, which no checkpoint has: zeros."""
    shape = (config["expert_ffn_hidden_size"], config["hidden_size"])
    for layer in range(config["num_layers"]):
        for expert in range(config["n_routed_experts"], config["n_routed_experts"] + config["zero_expert_num"]):
            for name in ("gate_proj", "up_proj"):
                tensors[f"model.layers.{layer}.mlp.experts.{expert}.{name}.weight"] = np.zeros(shape, np.uint16)


def write_folder(folder, config, seed):
    header, data = {}, bytearray()
    tensors = {
        name: random_bf16(seed, name, shape, config["test_query_gain"]).reshape(shape)
        for name, shape in tensor_shapes(config).items()
    }
    if config["model_type"] == "longcat_flash":
        add_identity_experts(config, tensors)
    if "quantization_config" in config:  # transformers cannot read blocks that do not divide a matrix
        blocks = config["quantization_config"]["weight_block_size"]
        for name, values in tensors.items():
            if is_quantized(name, values.shape):
                tensors[name] = through_fp8(values, blocks)
        config = {key: value for key, value in config.items() if key != "quantization_config"}
    for name, values in tensors.items():
        begin, dtype = len(data), "F32" if values.dtype == np.float32 else "BF16"
        data += values.tobytes()
        header[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": [begin, len(data)]}
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    text += b" " * (-len(text) % 8)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    if config["model_type"] == "kimi_k2":
        config = {**config, "model_type": "deepseek_v3"}
    (folder / "config.json").write_text(json.dumps(config))


# Runs and margins.


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
    config = {**COMMON, **MODELS[name]}
    seed = fnv1a(name) % 2**31
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
