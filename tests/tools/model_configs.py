"""The config.json of each golden model: MODELS, by name. Goldens hold them, keys in this order.

All are small models with the pages' own sizes (kv_lora_rank 512, qk_rope_head_dim 64); each is there for what its comment
says. `test_query_gain` is for the weights (seeded_checkpoint.py): it gives attention logits their spread.
"""

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

# What most models have: a model takes these and names what differs.
LAYERS = {"num_hidden_layers": 3, "first_k_dense_replace": 1}
FFN = {"hidden_size": 96, "intermediate_size": 128, "moe_intermediate_size": 48}
DENSE_FFN = {"hidden_size": 96, "intermediate_size": 128}
ATTENTION = {
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": 48,
    "qk_nope_head_dim": 32,
    "v_head_dim": 32,
}
EXPERTS = {"n_routed_experts": 16, "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1}
NOAUX_TC = {"scoring_func": "sigmoid", "topk_method": "noaux_tc"}
HEAD = {"attention_bias": False, "tie_word_embeddings": False}
PLAIN_ROPE = {"rope_theta": 10000.0, "rope_scaling": None}
YARN = {
    "type": "yarn",
    "factor": 40,
    "original_max_position_embeddings": 32,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}


def family(model_type, architecture, query_gain):
    return {"test_query_gain": query_gain, "model_type": model_type, "architectures": [architecture]}


def weights_of_experts(norm_topk_prob, routed_scaling_factor):
    return {"norm_topk_prob": norm_topk_prob, "routed_scaling_factor": routed_scaling_factor}


def rope_parameters(rope_type, theta, **more):
    """Transformers 5 style; `rope_scaling` is that of 4."""
    return {"rope_parameters": {"rope_type": rope_type, "rope_theta": theta, **more}}


MODELS = {
    # Transformers 4 style rope_scaling, low-rank queries, groups, correction bias.
    "v3_yarn": {
        **LAYERS,
        **family("deepseek_v3", "DeepseekV3ForCausalLM", 1.25),
        **FFN | {"moe_intermediate_size": 64},
        **ATTENTION,
        **EXPERTS | {"n_group": 4},
        **weights_of_experts(True, 2.5),
        **NOAUX_TC,
        **HEAD,
        **PLAIN_ROPE | {"rope_scaling": YARN},
    },
    # No low-rank queries, plain rope, tied embeddings, one group, attention biases, odd sizes.
    "v3_plain": {
        **LAYERS,
        **family("deepseek_v3", "DeepseekV3ForCausalLM", 2.3),
        **FFN | {"hidden_size": 80, "intermediate_size": 112},
        **{
            "num_attention_heads": 5,
            "num_key_value_heads": 5,
            "q_lora_rank": None,
            "qk_nope_head_dim": 48,
            "v_head_dim": 80,
        },
        **EXPERTS | {"n_routed_experts": 8},
        **weights_of_experts(True, 1.0),
        **HEAD | {"attention_bias": True, "tie_word_embeddings": True},
        **PLAIN_ROPE,
    },
    # As DeepSeek-V2-Lite: transformers 5 style rope_parameters.
    "v2_greedy": {
        **LAYERS,
        **family("deepseek_v2", "DeepseekV2ForCausalLM", 1.5),
        **FFN | {"moe_intermediate_size": 64},
        **ATTENTION | {"q_lora_rank": None},
        **EXPERTS | {"n_routed_experts": 12, "n_shared_experts": 2, "num_experts_per_tok": 3},
        "topk_method": "greedy",
        **weights_of_experts(False, 1.0),
        **HEAD,
        **rope_parameters(
            "yarn",
            10000.0,
            factor=40.0,
            original_max_position_embeddings=48,
            beta_fast=32.0,
            beta_slow=1.0,
            mscale=0.707,
            mscale_all_dim=0.707,
        ),
    },
    # As DeepSeek-V2: groups by their best expert, weights not normalised, and a mscale that scales cos and sin.
    "v2_groups": {
        **LAYERS,
        **family("deepseek_v2", "DeepseekV2ForCausalLM", 1.6),
        **FFN | {"intermediate_size": 96},
        **{
            "num_attention_heads": 3,
            "num_key_value_heads": 3,
            "q_lora_rank": 64,
            "qk_nope_head_dim": 40,
            "v_head_dim": 24,
        },
        **EXPERTS | {"n_shared_experts": 2, "num_experts_per_tok": 4, "n_group": 4, "topk_group": 2},
        "topk_method": "group_limited_greedy",
        **weights_of_experts(False, 16.0),
        **HEAD | {"attention_bias": True},
        **PLAIN_ROPE
        | {"rope_scaling": YARN | {"factor": 16, "original_max_position_embeddings": 64, "mscale_all_dim": 0.707}},
    },
    # As Moonlight, with the rope layout that no released checkpoint of the family has: halves, not pairs.
    "v3_halves": {
        **LAYERS,
        **family("deepseek_v3", "DeepseekV3ForCausalLM", 2.3),
        **FFN,
        **ATTENTION | {"q_lora_rank": None},
        **EXPERTS | {"n_routed_experts": 12, "n_shared_experts": 2, "num_experts_per_tok": 3},
        **weights_of_experts(True, 2.446),
        **HEAD,
        "rope_theta": 50000.0,
        "rope_interleave": False,
        "rope_scaling": None,
    },
    # Kimi K2: one group, and a YaRN ramp between equal betas, one pair wide.
    "kimi_k2": {
        **LAYERS,
        **family("kimi_k2", "DeepseekV3ForCausalLM", 1.3),
        **FFN,
        **ATTENTION,
        **EXPERTS,
        **weights_of_experts(True, 2.827),
        **NOAUX_TC,
        **HEAD,
        "rope_theta": 50000.0,
        "rope_scaling": YARN | {"factor": 32.0, "original_max_position_embeddings": 64, "beta_fast": 1.0, "beta_slow": 1.0},
    },
    # DeepSeek-V3's way of storing weights: FP8 with a scale a block; sizes that blocks do not divide.
    "v3_fp8": {
        **LAYERS,
        **family("deepseek_v3", "DeepseekV3ForCausalLM", 2.2),
        **FFN | {"hidden_size": 160, "intermediate_size": 192},
        **ATTENTION | {"q_lora_rank": 144},
        **EXPERTS | {"n_routed_experts": 8, "n_group": 2},
        **weights_of_experts(True, 2.5),
        **HEAD,
        **PLAIN_ROPE,
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
        **family("glm4_moe_lite", "Glm4MoeLiteForCausalLM", 2.6),
        **FFN,
        **ATTENTION | {"num_attention_heads": 20, "num_key_value_heads": 20, "qk_nope_head_dim": 192, "v_head_dim": 256},
        **EXPERTS | {"num_experts_per_tok": 4},
        **weights_of_experts(True, 1.8),
        "mlp_layer_types": ["sparse", "dense"],
        **HEAD,
        **rope_parameters("default", 1000000.0, partial_rotary_factor=1.0),
    },
    # Youtu-LLM: dense, tied although the file does not say so. An eps so large that it shows where it is used.
    "youtu": {
        "num_hidden_layers": 3,
        "rms_norm_eps": 1.0,
        **family("youtu", "YoutuForCausalLM", 3.2),
        **DENSE_FFN,
        **ATTENTION,
        "attention_bias": False,
        **rope_parameters("default", 1600000.0),
    },
    # A.X-K1: a norm behind the experts, stored for dense layers too, which do not use it; no correction bias.
    "axk1": {
        **LAYERS,
        **family("axk1", "AXK1ForCausalLM", 2.3),
        **FFN,
        **ATTENTION,
        **EXPERTS | {"n_group": 4},
        **weights_of_experts(True, 8.0),
        **HEAD,
        **PLAIN_ROPE,
    },
    # LongCat-Flash: two attentions and FFNs a layer, experts on a shortcut, half of the experts the identity.
    "longcat_flash": {
        "num_layers": 2,
        **family("longcat_flash", "LongcatFlashForCausalLM", 0.5),
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
        **HEAD,
        "rope_theta": 10000000.0,
    },
    # Mistral Large 3 in the layout of mistral4: softmax routing, no m^2, queries that grow with their position.
    "mistral_large3": {
        **LAYERS,
        **family("mistral4", "Mistral4ForCausalLM", 1.6),
        **FFN,
        **ATTENTION,
        **EXPERTS | {"n_routed_experts": 12, "num_experts_per_tok": 3},
        **weights_of_experts(True, 6.0),
        **HEAD,
        **rope_parameters(
            "yarn",
            10000.0,
            factor=36.0,
            original_max_position_embeddings=32,
            beta_fast=32.0,
            beta_slow=1.0,
            attention_factor=1.0,
            llama_4_scaling_beta=0.5,
        ),
    },
}
MODELS = {name: COMMON | model for name, model in MODELS.items()}
