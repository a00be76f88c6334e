"""Model types that the decoder module does not compute, with the reason."""

_EXPERTS, _STATES = "it is a mixture of experts", "some layers keep a state instead of keys and values"
_LATENT, _IMAGES = "its keys and values are compressed (MLA)", "it reads images; convert its text model by itself"
_OWN = "its layers share keys or embeddings in ways of their own"

OUTSIDE: dict[str, str] = {
    **dict.fromkeys(
        (
            *("dbrx", "ernie4_5_moe", "flex_olmo", "glm4_moe", "gpt_oss", "granitemoe", "granitemoeshared"),
            *("hunyuan_v1_moe", "jetmoe", "llama4_text", "minimax", "mixtral", "olmoe", "phimoe", "qwen2_moe"),
            *("qwen3_moe", "smallthinker"),
        ),
        _EXPERTS,
    ),
    **dict.fromkeys(
        (
            *("bamba", "falcon_h1", "falcon_mamba", "jamba", "lfm2", "lfm2_moe", "mamba"),
            *("mamba2", "nemotron_h", "qwen3_5_text", "qwen3_next", "recurrent_gemma", "rwkv", "zamba", "zamba2"),
        ),
        _STATES,
    ),
    **dict.fromkeys(("deepseek_v2", "deepseek_v3", "kimi_k2", "minicpm3", "youtu"), _LATENT),
    **dict.fromkeys(("gemma3n", "gemma3n_text", "gemma4", "gemma4_text"), _OWN),
    **dict.fromkeys(
        (
            *("idefics3", "internvl", "llama4", "llava", "llava_next", "llava_onevision", "mllama"),
            *("paligemma", "phi4_multimodal", "pixtral", "qwen2_5_vl", "qwen2_vl", "qwen3_5", "qwen3_vl", "smolvlm"),
        ),
        _IMAGES,
    ),
}
