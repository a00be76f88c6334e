"""The built-in families."""

from llmconv.sources import Family
from llmconv_plugins.sources.families.cohere import Cohere2
from llmconv_plugins.sources.families.ernie import Ernie45
from llmconv_plugins.sources.families.exaone import Exaone, Exaone4
from llmconv_plugins.sources.families.gemma import Gemma, Gemma2, Gemma3, VaultGemma
from llmconv_plugins.sources.families.glm import Glm, Glm4
from llmconv_plugins.sources.families.granite import Granite, Granite4
from llmconv_plugins.sources.families.hunyuan import Hunyuan
from llmconv_plugins.sources.families.llama import Arcee, Cwm, Helium, InternLM3, Llama, SeedOss
from llmconv_plugins.sources.families.mistral import Ministral, Ministral3, Mistral
from llmconv_plugins.sources.families.nemotron import Jais2, Nemotron
from llmconv_plugins.sources.families.olmo import Olmo2, Olmo3
from llmconv_plugins.sources.families.phi import Phi, Phi3
from llmconv_plugins.sources.families.qwen import Qwen2, Qwen3
from llmconv_plugins.sources.families.smollm3 import SmolLM3
from llmconv_plugins.sources.families.stablelm import StableLM
from llmconv_plugins.sources.families.starcoder import Starcoder2

FAMILIES: tuple[type[Family], ...] = (
    *(Llama, Qwen2, Qwen3, Mistral, Ministral, Phi3, SmolLM3, Granite, Gemma3, Gemma2, Gemma, Olmo2, Olmo3, Exaone),
    *(Exaone4, Glm, Glm4, StableLM, Hunyuan, Ernie45, Cohere2, Arcee, Phi, Starcoder2, Nemotron, Helium, SeedOss, Cwm),
    *(InternLM3, Jais2, VaultGemma, Granite4, Ministral3),
)
