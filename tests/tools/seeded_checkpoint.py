"""Random checkpoints as Hugging Face folders: their weights are, bit for bit, those of tests/support/checkpoint.h.

A weight is a function of (seed, tensor name, index), so a golden needs to hold the config and the seed alone.
"""

import json
import math
import struct

import numpy as np
import torch
from hashes import SPLITMIX64_STEP, fnv1a, splitmix64

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
    states = np.arange(1, math.prod(shape) + 1, dtype=np.uint64) * np.uint64(SPLITMIX64_STEP)
    z = splitmix64(np.uint64(seed ^ fnv1a(name.encode())) + states)
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
