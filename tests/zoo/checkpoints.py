"""The zoo: a tiny random checkpoint of every architecture that people train, made with transformers' own classes."""

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedConfig

from tests.support.models import Architecture, save_tokenizer

VOCABULARY = 320
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,  # large enough for logits that are far from uniform
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": 1,
}
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2}
ROUTED: dict[str, Any] = {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 1}
ROUTED |= {"topk_group": 1, "moe_intermediate_size": 64, "first_k_dense_replace": 1}
LATENT: dict[str, Any] = {"q_lora_rank": 32, "kv_lora_rank": 32, "qk_rope_head_dim": 16, "qk_nope_head_dim": 16}
LATENT |= {"v_head_dim": 32, "num_key_value_heads": 4}
MAMBA: dict[str, Any] = {"mamba_n_heads": 4, "mamba_d_head": 32, "mamba_d_state": 16, "mamba_chunk_size": 16}
DELTA: dict[str, Any] = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16}
DELTA |= {"linear_value_head_dim": 16, "head_dim": 16, "layer_types": ["linear_attention", "full_attention"]}
SLIDING: dict[str, Any] = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
VISION: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4}
VISION |= {"image_size": 32, "patch_size": 16, "num_channels": 3}
QWEN_VISION: dict[str, Any] = {
    "depth": 1,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_heads": 4,
    "patch_size": 16,
}
QWEN_VISION |= {"out_hidden_size": 64, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
QWEN_TOKENS = {"image_token_id": 310, "video_token_id": 311, "vision_start_token_id": 312, "vision_end_token_id": 313}
MROPE: dict[str, Any] = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}}


@dataclass(frozen=True)
class Checkpoint:
    """How a tiny checkpoint is made.

    family: what people call it. public: a small public model of that architecture, by its name on the hub.
    model_type: of transformers' configuration. config: beside SIZES; a value of None takes a size away.
    text: the configuration of the text model inside a wrapper, beside SIZES; None for a model that is no wrapper.
    """

    family: str
    public: str
    model_type: str
    config: dict[str, Any] = field(default_factory=dict)
    text: dict[str, Any] | None = None

    def make_config(self) -> PreTrainedConfig:
        """The tiny configuration."""
        if self.text is None:
            sizes = SIZES | copy.deepcopy(self.config)
            return CONFIG_MAPPING[self.model_type](**{name: value for name, value in sizes.items() if value != DROP})
        default = CONFIG_MAPPING[self.model_type]()
        sizes = SIZES | copy.deepcopy(self.text)
        text = CONFIG_MAPPING[sizes.pop("model_type", default.get_text_config().model_type)](**sizes)
        return CONFIG_MAPPING[self.model_type](text_config=text.to_dict(), **copy.deepcopy(self.config))


DROP = "without this size"


def _wrapper(family: str, public: str, model_type: str, text: dict[str, Any], **config: Any) -> Checkpoint:
    return Checkpoint(family, public, model_type, config, text)


CHECKPOINTS: dict[str, Checkpoint] = {
    # dense text models
    "apertus": Checkpoint("Apertus", "swiss-ai/Apertus-8B-Instruct-2509", "apertus"),
    "arcee": Checkpoint("Arcee AFM", "arcee-ai/AFM-4.5B", "arcee"),
    "bitnet": Checkpoint("BitNet (16 bits)", "microsoft/bitnet-b1.58-2B-4T-bf16", "bitnet"),
    "codegen": Checkpoint(
        "CodeGen",
        "Salesforce/codegen-350M-mono",
        "codegen",
        {"n_embd": 64, "n_layer": 2, "n_head": 4, "rotary_dim": 8, "n_positions": 256, "n_ctx": 256},
    ),
    "cohere": Checkpoint("Command R", "CohereLabs/c4ai-command-r7b-12-2024", "cohere", {"logit_scale": 0.25}),
    "cohere2": Checkpoint("Command R7B", "CohereLabs/c4ai-command-r7b-12-2024", "cohere2", SLIDING),
    "diffllama": Checkpoint("DiffLlama", "kajuma/DiffLlama-0.3B-handcut", "diffllama"),
    "ernie4_5": Checkpoint("ERNIE 4.5", "baidu/ERNIE-4.5-0.3B-PT", "ernie4_5", {"head_dim": 16}),
    "exaone4": Checkpoint("EXAONE 4", "LGAI-EXAONE/EXAONE-4.0-1.2B", "exaone4", SLIDING),
    "falcon": Checkpoint("Falcon", "tiiuae/falcon-rw-1b", "falcon", {"multi_query": False, "parallel_attn": False}),
    "falcon_alibi": Checkpoint(
        "Falcon RW (ALiBi)",
        "tiiuae/falcon-rw-1b",
        "falcon",
        {"multi_query": False, "parallel_attn": False, "alibi": True},
    ),
    "gemma": Checkpoint("Gemma", "google/gemma-2b-it", "gemma", {"head_dim": 16, "num_key_value_heads": 1}),
    "gemma2": Checkpoint(
        "Gemma 2", "google/gemma-2-2b-it", "gemma2", SLIDING | {"head_dim": 16, "final_logit_softcapping": 3.0}
    ),
    "gemma3_text": Checkpoint("Gemma 3 (text)", "google/gemma-3-270m-it", "gemma3_text", SLIDING | {"head_dim": 16}),
    "gemma3n_text": Checkpoint(
        "Gemma 3n (text)",
        "google/gemma-3n-E2B-it",
        "gemma3n_text",
        SLIDING
        | {
            "head_dim": 16,
            "num_kv_shared_layers": 0,
            "hidden_size_per_layer_input": 16,
            "laurel_rank": 16,
            "vocab_size_per_layer_input": VOCABULARY,
            "activation_sparsity_pattern": [0.0, 0.0],
        },
    ),
    "gemma4_text": Checkpoint(
        "Gemma 4 (text)",
        "google/gemma-4-E2B-it",
        "gemma4_text",
        SLIDING
        | {
            "head_dim": 16,
            "global_head_dim": 16,
            "hidden_size_per_layer_input": 16,
            "vocab_size_per_layer_input": VOCABULARY,
        },
    ),
    "glm4": Checkpoint("GLM-4", "THUDM/GLM-4-9B-0414", "glm4", {"head_dim": 16}),
    "gpt2": Checkpoint(
        "GPT-2",
        "openai-community/gpt2",
        "gpt2",
        {"n_embd": 64, "n_inner": 128, "n_layer": 2, "n_head": 4, "n_positions": 256},
    ),
    "gpt_bigcode": Checkpoint(
        "StarCoder",
        "bigcode/gpt_bigcode-santacoder",
        "gpt_bigcode",
        {"n_embd": 64, "n_inner": 128, "n_layer": 2, "n_head": 4, "n_positions": 256},
    ),
    "gpt_neo": Checkpoint(
        "GPT-Neo",
        "EleutherAI/gpt-neo-125m",
        "gpt_neo",
        {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 8},
    ),
    "gpt_neox": Checkpoint("Pythia", "EleutherAI/pythia-70m", "gpt_neox"),
    "gptj": Checkpoint(
        "GPT-J",
        "EleutherAI/gpt-j-6b",
        "gptj",
        {"n_embd": 64, "n_layer": 2, "n_head": 4, "rotary_dim": 8, "n_positions": 256},
    ),
    "granite": Checkpoint(
        "Granite 3",
        "ibm-granite/granite-3.3-2b-instruct",
        "granite",
        {"logits_scaling": 8.0, "residual_multiplier": 0.5, "embedding_multiplier": 2.0, "attention_multiplier": 0.2},
    ),
    "helium": Checkpoint("Helium", "kyutai/helium-1-2b", "helium", {"head_dim": 16}),
    "hunyuan_v1_dense": Checkpoint("Hunyuan", "tencent/Hunyuan-0.5B-Instruct", "hunyuan_v1_dense", {"head_dim": 16}),
    "internlm3": Checkpoint("InternLM 3", "internlm/internlm3-8b-instruct", "internlm3", {"head_dim": 16}),
    "llama": Checkpoint("Llama", "meta-llama/Llama-3.1-8B-Instruct", "llama"),
    "llama_bias": Checkpoint(
        "Llama with biases", "no public model in mind", "llama", {"attention_bias": True, "mlp_bias": True}
    ),
    "llama_tied": Checkpoint(
        "Llama, tied embeddings", "meta-llama/Llama-3.2-1B-Instruct", "llama", {"tie_word_embeddings": True}
    ),
    "ministral": Checkpoint(
        "Ministral", "mistralai/Ministral-8B-Instruct-2410", "ministral", SLIDING | {"head_dim": 16}
    ),
    "ministral3": Checkpoint("Ministral 3 (text)", "mistralai/Ministral-3-3B-Instruct-2512", "ministral3"),
    "mistral": Checkpoint("Mistral", "mistralai/Mistral-7B-v0.1", "mistral", {"sliding_window": 8}),
    "nanochat": Checkpoint("nanochat", "karpathy/nanochat-d32", "nanochat"),
    "nemotron": Checkpoint("Nemotron", "nvidia/Minitron-4B-Base", "nemotron", {"head_dim": 16}),
    "olmo": Checkpoint("OLMo", "allenai/OLMo-1B-hf", "olmo"),
    "olmo2": Checkpoint("OLMo 2", "allenai/OLMo-2-0425-1B-Instruct", "olmo2"),
    "olmo3": Checkpoint("OLMo 3", "allenai/Olmo-3-7B-Instruct", "olmo3", SLIDING),
    "opt": Checkpoint("OPT", "facebook/opt-125m", "opt", {"ffn_dim": 128, "word_embed_proj_dim": 64}),
    "opt_proj": Checkpoint(
        "OPT with projections",
        "facebook/opt-350m",
        "opt",
        {"ffn_dim": 128, "word_embed_proj_dim": 32, "do_layer_norm_before": False},
    ),
    "phi": Checkpoint("Phi-2", "microsoft/phi-2", "phi"),
    "phi3": Checkpoint(
        "Phi-3, Phi-4", "microsoft/Phi-4-mini-instruct", "phi3", {"original_max_position_embeddings": 256}
    ),
    "qwen2": Checkpoint("Qwen2.5", "Qwen/Qwen2.5-0.5B-Instruct", "qwen2"),
    "qwen3": Checkpoint("Qwen3", "Qwen/Qwen3-0.6B", "qwen3", {"head_dim": 16}),
    "seed_oss": Checkpoint("Seed-OSS", "ByteDance-Seed/Seed-OSS-36B-Instruct", "seed_oss", {"head_dim": 16}),
    "smollm3": Checkpoint("SmolLM3", "HuggingFaceTB/SmolLM3-3B", "smollm3"),
    "stablelm": Checkpoint("StableLM 2", "stabilityai/stablelm-2-1_6b-chat", "stablelm"),
    "starcoder2": Checkpoint("StarCoder2", "bigcode/starcoder2-3b", "starcoder2"),
    "vaultgemma": Checkpoint("VaultGemma", "google/vaultgemma-1b", "vaultgemma", SLIDING | {"head_dim": 16}),
    "xglm": Checkpoint(
        "XGLM",
        "facebook/xglm-564M",
        "xglm",
        {"d_model": 64, "ffn_dim": 128, "num_layers": 2, "attention_heads": 4, "init_std": 0.2},
    ),
    # hybrids: attention beside linear attention, short convolutions or state spaces
    "bamba": Checkpoint("Bamba", "ibm-ai-platform/Bamba-9B-v2", "bamba", MAMBA | {"attn_layer_indices": [1]}),
    "falcon_h1": Checkpoint(
        "Falcon-H1", "tiiuae/Falcon-H1-0.5B-Instruct", "falcon_h1", MAMBA | {"mamba_d_ssm": 128, "num_hidden_layers": 3}
    ),
    "granitemoehybrid": Checkpoint(
        "Granite 4",
        "ibm-granite/granite-4.0-h-tiny",
        "granitemoehybrid",
        MAMBA | EXPERTS | {"layer_types": ["mamba", "attention"], "shared_intermediate_size": 64},
    ),
    "granitemoehybrid_dense": Checkpoint(
        "Granite 4 without experts",
        "ibm-granite/granite-4.0-h-350m",
        "granitemoehybrid",
        MAMBA | {"layer_types": ["mamba", "attention"], "shared_intermediate_size": 64, "num_local_experts": 0},
    ),
    "jamba": Checkpoint(
        "Jamba",
        "ai21labs/AI21-Jamba-Reasoning-3B",
        "jamba",
        {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "mamba_d_state": 8,
            "use_mamba_kernels": False,
        },
    ),
    "lfm2": Checkpoint("LFM2", "LiquidAI/LFM2-350M", "lfm2", {"layer_types": ["conv", "full_attention"]}),
    "lfm2_moe": Checkpoint(
        "LFM2 MoE",
        "LiquidAI/LFM2-8B-A1B",
        "lfm2_moe",
        {
            "layer_types": ["conv", "full_attention"],
            "num_dense_layers": 1,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 64,
        },
    ),
    "lfm3": Checkpoint("LFM3", "LiquidAI/LFM3", "lfm3", {"layer_types": ["conv", "full_attention"], "head_dim": 16}),
    "nemotron_h": Checkpoint(
        "Nemotron-H, Nemotron Nano 2",
        "nvidia/NVIDIA-Nemotron-Nano-9B-v2",
        "nemotron_h",
        {
            "layers_block_type": ["mamba", "mlp", "attention"],
            "num_hidden_layers": DROP,
            "head_dim": 16,
            "mamba_num_heads": 4,
            "mamba_head_dim": 32,
            "ssm_state_size": 16,
            "n_groups": 1,
            "chunk_size": 16,
            "use_mamba_kernels": False,
        },
    ),
    "nemotron_h_moe": Checkpoint(
        "Nemotron 3",
        "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B",
        "nemotron_h",
        {
            "layers_block_type": ["mamba", "moe", "attention"],
            "num_hidden_layers": DROP,
            "head_dim": 16,
            "mamba_num_heads": 4,
            "mamba_head_dim": 32,
            "ssm_state_size": 16,
            "n_groups": 1,
            "chunk_size": 16,
            "use_mamba_kernels": False,
            "n_routed_experts": 4,
            "moe_intermediate_size": 64,
            "moe_shared_expert_intermediate_size": 64,
        },
    ),
    "olmo_hybrid": Checkpoint(
        "OLMo hybrid",
        "allenai/Olmo-Hybrid-7B",
        "olmo_hybrid",
        {name: value for name, value in DELTA.items() if name != "head_dim"} | {"linear_num_value_heads": 2},
    ),
    "qwen3_5_text": Checkpoint("Qwen3.5 (text)", "Qwen/Qwen3.5-0.8B", "qwen3_5_text", DELTA),
    "qwen3_5_moe_text": Checkpoint(
        "Qwen3.5 MoE (text)",
        "Qwen/Qwen3.5-35B-A3B",
        "qwen3_5_moe_text",
        DELTA | EXPERTS | {"moe_intermediate_size": 64, "shared_expert_intermediate_size": 64},
    ),
    "qwen3_next": Checkpoint(
        "Qwen3-Next",
        "Qwen/Qwen3-Next-80B-A3B-Instruct",
        "qwen3_next",
        DELTA | EXPERTS | {"moe_intermediate_size": 64, "shared_expert_intermediate_size": 64},
    ),
    "zamba2": Checkpoint(
        "Zamba2",
        "Zyphra/Zamba2-1.2B-instruct",
        "zamba2",
        {
            "layers_block_type": ["linear_attention", "hybrid"],
            "n_mamba_heads": 4,
            "mamba_d_state": 16,
            "mamba_headdim": 32,
            "chunk_size": 16,
            "use_mamba_kernels": False,
            "num_key_value_heads": 4,
            "attention_head_dim": 32,
            "adapter_rank": 8,
        },
    ),
    "minimax": Checkpoint(
        "MiniMax",
        "MiniMaxAI/MiniMax-Text-01-hf",
        "minimax",
        {
            "num_local_experts": 4,
            "layer_types": ["linear_attention", "full_attention"],
            "head_dim": 16,
            "block_size": 16,
        },
    ),
    "kimi_linear": Checkpoint(
        "Kimi Linear",
        "moonshotai/Kimi-Linear-48B-A3B-Instruct",
        "kimi_linear",
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 64,
            "kv_lora_rank": 32,
            "qk_rope_head_dim": 16,
            "qk_nope_head_dim": 16,
            "v_head_dim": 32,
            "linear_head_dim": 16,
            "linear_num_heads": 4,
            "layer_types": ["linear_attention", "full_attention"],
            "mlp_layer_types": ["dense", "sparse"],
            "num_key_value_heads": 4,
        },
    ),
    # mixtures of experts
    "afmoe": Checkpoint(
        "Trinity (AFMoE)",
        "arcee-ai/Trinity-Nano-Preview",
        "afmoe",
        SLIDING
        | {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "num_shared_experts": 1,
            "moe_intermediate_size": 64,
            "head_dim": 16,
        },
    ),
    "dbrx": Checkpoint(
        "DBRX",
        "databricks/dbrx-instruct",
        "dbrx",
        {
            "d_model": 64,
            "n_heads": 4,
            "n_layers": 2,
            "max_seq_len": 256,
            "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8},
            "ffn_config": {"hidden_size": 64, "ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2},
            "num_key_value_heads": DROP,
        },
    ),
    "deepseek_v2": Checkpoint(
        "DeepSeek V2", "deepseek-ai/DeepSeek-V2-Lite-Chat", "deepseek_v2", LATENT | ROUTED | {"head_dim": 16}
    ),
    "deepseek_v3": Checkpoint("DeepSeek V3, R1", "deepseek-ai/DeepSeek-V3", "deepseek_v3", LATENT | ROUTED),
    "deepseek_v4": Checkpoint(
        "DeepSeek V4",
        "deepseek-ai/DeepSeek-V4",
        "deepseek_v4",
        {
            "moe_intermediate_size": 64,
            "num_key_value_heads": 1,
            "head_dim": 32,
            "q_lora_rank": 32,
            "num_experts_per_tok": 2,
            "n_routed_experts": 4,
            "o_groups": 2,
            "o_lora_rank": 32,
            "index_n_heads": 2,
            "index_head_dim": 32,
            "index_topk": 8,
            "sliding_window": 16,
            "hc_mult": 2,
        },
    ),
    "ernie4_5_moe": Checkpoint(
        "ERNIE 4.5 MoE",
        "baidu/ERNIE-4.5-21B-A3B-PT",
        "ernie4_5_moe",
        {"moe_num_experts": 4, "moe_k": 2, "moe_num_shared_experts": 1, "moe_intermediate_size": 64},
    ),
    "exaone_moe": Checkpoint(
        "K-EXAONE",
        "LGAI-EXAONE/K-EXAONE-236B-A23B",
        "exaone_moe",
        SLIDING
        | {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "num_shared_experts": 1,
            "moe_intermediate_size": 64,
            "mlp_layer_types": ["dense", "sparse"],
            "head_dim": 16,
        },
    ),
    "flex_olmo": Checkpoint("FlexOlmo", "allenai/FlexOlmo-7x7B-1T", "flex_olmo", EXPERTS),
    "gemma4_moe": Checkpoint(
        "Gemma 4 MoE (text)",
        "google/gemma-4-26B-A4B-it",
        "gemma4_text",
        SLIDING
        | {
            "head_dim": 16,
            "global_head_dim": 16,
            "hidden_size_per_layer_input": 0,
            "enable_moe_block": True,
            "num_experts": 4,
            "top_k_experts": 2,
            "moe_intermediate_size": 64,
        },
    ),
    "glm4_moe": Checkpoint("GLM-4.5", "zai-org/GLM-4.5-Air", "glm4_moe", ROUTED | {"head_dim": 16}),
    "gpt_oss": Checkpoint(
        "gpt-oss",
        "openai/gpt-oss-20b",
        "gpt_oss",
        SLIDING | {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16},
    ),
    "granitemoe": Checkpoint("Granite 3 MoE", "ibm-granite/granite-3.1-1b-a400m-instruct", "granitemoe", EXPERTS),
    "jetmoe": Checkpoint(
        "JetMoE",
        "jetmoe/jetmoe-8b-chat",
        "jetmoe",
        {"kv_channels": 16, "num_local_experts": 4, "num_experts_per_tok": 2, "num_attention_heads": DROP},
    ),
    "longcat_flash": Checkpoint(
        "LongCat Flash",
        "meituan-longcat/LongCat-Flash-Chat",
        "longcat_flash",
        LATENT
        | {
            "num_layers": 1,
            "num_hidden_layers": DROP,
            "ffn_hidden_size": 128,
            "expert_ffn_hidden_size": 64,
            "n_routed_experts": 4,
            "zero_expert_num": 2,
            "moe_topk": 2,
            "head_dim": 16,
        },
    ),
    "llama4_text": Checkpoint(
        "Llama 4 (text)",
        "meta-llama/Llama-4-Scout-17B-16E-Instruct",
        "llama4_text",
        {
            "head_dim": 16,
            "intermediate_size_mlp": 128,
            "num_local_experts": 4,
            "num_experts_per_tok": 1,
            "interleave_moe_layer_step": 2,
            "attention_chunk_size": 128,
        },
    ),
    "mimo_v2_flash": Checkpoint(
        "MiMo V2 Flash",
        "XiaomiMiMo/MiMo-V2-Flash",
        "mimo_v2_flash",
        SLIDING
        | {
            "moe_intermediate_size": 64,
            "num_experts_per_tok": 2,
            "n_routed_experts": 4,
            "head_dim": 16,
            "v_head_dim": 16,
            "mlp_layer_types": ["dense", "sparse"],
        },
    ),
    "minimax_m2": Checkpoint("MiniMax M2", "MiniMaxAI/MiniMax-M2", "minimax_m2", EXPERTS | {"head_dim": 16}),
    "mixtral": Checkpoint("Mixtral", "mistralai/Mixtral-8x7B-Instruct-v0.1", "mixtral", {"num_local_experts": 4}),
    "olmoe": Checkpoint("OLMoE", "allenai/OLMoE-1B-7B-0125-Instruct", "olmoe", EXPERTS),
    "phimoe": Checkpoint(
        "Phi-3.5-MoE", "microsoft/Phi-3.5-MoE-instruct", "phimoe", {"num_local_experts": 4, "num_experts_per_tok": 2}
    ),
    "qwen2_moe": Checkpoint(
        "Qwen1.5 MoE",
        "Qwen/Qwen1.5-MoE-A2.7B-Chat",
        "qwen2_moe",
        EXPERTS | {"moe_intermediate_size": 64, "shared_expert_intermediate_size": 64, "mlp_only_layers": [0]},
    ),
    "qwen3_moe": Checkpoint(
        "Qwen3 MoE",
        "Qwen/Qwen3-30B-A3B-Instruct-2507",
        "qwen3_moe",
        EXPERTS | {"moe_intermediate_size": 64, "head_dim": 16, "mlp_only_layers": [0]},
    ),
    # wrappers: a text model beside a vision or audio tower
    "gemma3": _wrapper(
        "Gemma 3",
        "google/gemma-3-4b-it",
        "gemma3",
        SLIDING | {"head_dim": 16},
        vision_config=VISION | {"image_size": 32, "patch_size": 8},
        mm_tokens_per_image=4,
        boi_token_index=310,
        eoi_token_index=311,
        image_token_index=312,
    ),
    "gemma4": _wrapper(
        "Gemma 4",
        "google/gemma-4-E2B-it",
        "gemma4",
        SLIDING
        | {
            "head_dim": 16,
            "global_head_dim": 16,
            "hidden_size_per_layer_input": 16,
            "vocab_size_per_layer_input": VOCABULARY,
        },
        vision_config={
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "head_dim": 16,
            "position_embedding_size": 64,
            "use_clipped_linears": True,
        },
        audio_config=None,
        boi_token_id=310,
        eoi_token_id=311,
        image_token_id=312,
        video_token_id=313,
        boa_token_id=314,
        eoa_token_index=315,
        audio_token_id=316,
    ),
    "llama4": _wrapper(
        "Llama 4",
        "meta-llama/Llama-4-Scout-17B-16E-Instruct",
        "llama4",
        {
            "head_dim": 16,
            "intermediate_size_mlp": 128,
            "num_local_experts": 4,
            "num_experts_per_tok": 1,
            "interleave_moe_layer_step": 2,
            "attention_chunk_size": 128,
        },
        vision_config={
            "hidden_size": 64,
            "intermediate_size": 256,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "image_size": 32,
            "patch_size": 8,
            "vision_output_dim": 64,
            "projector_input_dim": 64,
            "projector_output_dim": 64,
        },
        boi_token_index=310,
        eoi_token_index=311,
        image_token_index=312,
    ),
    "mistral3": _wrapper(
        "Mistral Small 3, Ministral 3",
        "mistralai/Ministral-3-3B-Instruct-2512",
        "mistral3",
        {"head_dim": 16},
        vision_config=VISION | {"model_type": "pixtral", "head_dim": 16},
        image_token_index=310,
    ),
    "mistral4": _wrapper(
        "Mistral Small 4",
        "mistralai/Mistral-Small-4",
        "mistral3",
        LATENT | ROUTED | {"model_type": "mistral4"},
        vision_config=VISION | {"model_type": "pixtral", "head_dim": 16},
        image_token_index=310,
    ),
    "phi4_multimodal": Checkpoint(
        "Phi-4-multimodal",
        "microsoft/Phi-4-multimodal-instruct",
        "phi4_multimodal",
        {
            "original_max_position_embeddings": 256,
            "vision_config": VISION | {"num_hidden_layers": 2, "crop_size": 32, "image_token_id": 310, "patch_size": 8},
            "audio_config": {
                "hidden_size": 64,
                "intermediate_size": 64,
                "num_blocks": 1,
                "num_attention_heads": 4,
                "ext_pw_out_channel": 64,
                "depthwise_separable_out_channel": 64,
                "nemo_conv_channels": 16,
                "audio_token_id": 311,
            },
        },
    ),
    "qwen2_5_vl": _wrapper(
        "Qwen2.5-VL",
        "Qwen/Qwen2.5-VL-3B-Instruct",
        "qwen2_5_vl",
        MROPE,
        vision_config=QWEN_VISION | {"fullatt_block_indexes": [0], "window_size": 32},
        **QWEN_TOKENS,
    ),
    "qwen3_vl": _wrapper(
        "Qwen3-VL",
        "Qwen/Qwen3-VL-2B-Instruct",
        "qwen3_vl",
        MROPE | {"head_dim": 16},
        vision_config=QWEN_VISION,
        **QWEN_TOKENS,
    ),
    "qwen3_5": _wrapper("Qwen3.5", "Qwen/Qwen3.5-0.8B", "qwen3_5", DELTA, vision_config=QWEN_VISION, **QWEN_TOKENS),
    "qwen3_5_moe": _wrapper(
        "Qwen3.5 MoE",
        "Qwen/Qwen3.5-35B-A3B",
        "qwen3_5_moe",
        DELTA | EXPERTS | {"moe_intermediate_size": 64, "shared_expert_intermediate_size": 64},
        vision_config=QWEN_VISION,
        **QWEN_TOKENS,
    ),
    "smolvlm": _wrapper(
        "SmolVLM2",
        "HuggingFaceTB/SmolVLM2-256M-Video-Instruct",
        "smolvlm",
        {"head_dim": 16},
        vision_config=VISION,
        image_token_id=310,
        scale_factor=2,
    ),
    # text models of other kinds, most of which cannot be trained here
    "bloom": Checkpoint("BLOOM", "bigscience/bloom-560m", "bloom", {"n_layer": 2, "n_head": 4}),
    "mamba": Checkpoint("Mamba", "state-spaces/mamba-130m-hf", "mamba", {"state_size": 8}),
    "mamba2": Checkpoint(
        "Mamba 2",
        "AntonV/mamba2-130m-hf",
        "mamba2",
        {"num_heads": 4, "head_dim": 32, "state_size": 16, "n_groups": 1, "chunk_size": 16},
    ),
    "modernbert_decoder": Checkpoint(
        "Ettin",
        "jhu-clsp/ettin-decoder-17m",
        "modernbert-decoder",
        {"layer_types": ["full_attention", "sliding_attention"], "local_attention": 16, "bos_token_id": 0},
    ),
    "mpt": Checkpoint(
        "MPT", "mosaicml/mpt-7b", "mpt", {"d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 256}
    ),
    "recurrent_gemma": Checkpoint(
        "RecurrentGemma",
        "google/recurrentgemma-2b-it",
        "recurrent_gemma",
        {"lru_width": 64, "attention_window_size": 16, "block_types": ["recurrent", "attention"]},
    ),
    "rwkv": Checkpoint("RWKV 4", "RWKV/rwkv-4-169m-pile", "rwkv", {"attention_hidden_size": 64, "context_length": 256}),
    "xlstm": Checkpoint("xLSTM", "NX-AI/xLSTM-7b", "xlstm", {"num_heads": 4, "num_blocks": 2, "chunk_size": 16}),
}


def save_checkpoint(name: str, folder: Path) -> None:
    """Write a checkpoint and its tokenizer. The same bytes each time."""
    checkpoint = CHECKPOINTS[name]
    config = checkpoint.make_config()
    torch.manual_seed(sorted(CHECKPOINTS).index(name))
    auto = AutoModelForCausalLM if checkpoint.text is None else AutoModelForImageTextToText
    auto.from_config(config).save_pretrained(folder)
    save_tokenizer(Architecture({}, template=True, pad="<|pad|>"), folder)
