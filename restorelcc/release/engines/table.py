"""What inference engines do with the biases and the zeros of a checkpoint; every row names the source that was read.

Verdicts on a bias: "read"; "dropped" (loads, and computes without it, silently); "refused" (does not load); "unknown".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["read", "dropped", "refused", "unknown"]


@dataclass(frozen=True)
class Row:
    """One family in one engine: biases of q, k and v, of the out-projection, and of the FFN; and the source."""

    qkv: Verdict
    out: Verdict
    ffn: Verdict
    source: str


@dataclass(frozen=True)
class Engine:
    """One engine: the package it is installed as, its families by model_type, and what zeros do in it."""

    name: str
    package: str
    rows: dict[str, Row]
    zeros: str
    patterns: str  # what N:M zeros do
    zeros_source: str


_VLLM = "https://github.com/vllm-project/vllm/blob/{commit}/vllm/model_executor/models/{file}.py"
_SGLANG = "https://github.com/sgl-project/sglang/blob/{commit}/python/sglang/srt/models/{file}.py"
_LLAMA_CPP = "https://github.com/ggml-org/llama.cpp/tree/master/src/models/{file}.cpp (as in llama-cpp-python 0.3.36)"


def _vllm(file: str, commit: str) -> str:
    return _VLLM.format(file=file, commit=commit)


def _sglang(file: str, commit: str) -> str:
    return _SGLANG.format(file=file, commit=commit)


def _llama_cpp(file: str) -> str:
    return _LLAMA_CPP.format(file=file)


# Families whose own checkpoints have all of these biases: an engine that runs them at all reads them.
_NATIVE = "the family's own checkpoints have these biases"

TRANSFORMERS = Engine(
    "transformers",
    "transformers",
    {
        "llama": Row("read", "read", "read", "LlamaAttention and LlamaMLP: attention_bias, mlp_bias"),
        "qwen2": Row("read", "dropped", "dropped", "Qwen2Attention: bias on q, k and v only"),
        "mistral": Row("dropped", "dropped", "dropped", "MistralAttention, MistralMLP: no bias"),
        "qwen3": Row("read", "read", "dropped", "Qwen3Attention: attention_bias; Qwen3MLP: none"),
        "gemma": Row("read", "read", "dropped", "GemmaAttention: attention_bias; GemmaMLP: none"),
        "gemma2": Row("read", "read", "dropped", "Gemma2Attention: attention_bias; Gemma2MLP: none"),
        "gemma3_text": Row("read", "read", "dropped", "Gemma3Attention: attention_bias; Gemma3MLP: none"),
        "gpt_neox": Row("read", "read", "read", "GPTNeoXAttention: attention_bias, by default true; GPTNeoXMLP"),
        "opt": Row("read", "read", "read", "OPTDecoderLayer: enable_bias, true by default"),
        "phi": Row("read", "read", "read", "PhiAttention, PhiMLP: always"),
        "olmo": Row("read", "read", "dropped", "OlmoAttention: attention_bias; OlmoMLP: none"),
        "olmo2": Row("read", "read", "dropped", "Olmo2Attention: attention_bias; Olmo2MLP: none"),
        "olmo3": Row("read", "read", "dropped", "Olmo3Attention: attention_bias; Olmo3MLP: none"),
        "smollm3": Row("read", "read", "read", "SmolLM3Attention: attention_bias; SmolLM3MLP: mlp_bias"),
        "granite": Row("read", "read", "read", "GraniteAttention: attention_bias; GraniteMLP: mlp_bias"),
        "cohere": Row("read", "read", "dropped", "CohereAttention: attention_bias; CohereMLP: none"),
        "cohere2": Row("read", "read", "dropped", "Cohere2Attention: attention_bias; Cohere2MLP: none"),
        "stablelm": Row("read", "dropped", "dropped", "StableLmAttention: use_qkv_bias, on q, k and v only"),
        "starcoder2": Row("read", "read", "read", "Starcoder2Attention, Starcoder2MLP: use_bias, true by default"),
        "nemotron": Row("read", "read", "read", "NemotronAttention: attention_bias; NemotronMLP: mlp_bias"),
        "ministral": Row("dropped", "dropped", "dropped", "MinistralAttention, MinistralMLP: no bias"),
        "ministral3": Row("dropped", "dropped", "dropped", "Ministral3Attention, Ministral3MLP: no bias"),
        "apertus": Row("read", "read", "dropped", "ApertusAttention: attention_bias; ApertusMLP: none"),
        "arcee": Row("read", "read", "read", "ArceeAttention: attention_bias; ArceeMLP: mlp_bias"),
        "seed_oss": Row("read", "read", "read", "SeedOss: attention_bias, attention_out_bias, mlp_bias"),
        "ernie4_5": Row("read", "read", "read", "Ernie4_5Attention, Ernie4_5MLP: use_bias"),
        "hunyuan_v1_dense": Row("read", "read", "dropped", "HunYuanDenseV1Attention: attention_bias; its MLP: none"),
        "helium": Row("read", "dropped", "read", "HeliumAttention: attention_bias, not on o; HeliumMLP: mlp_bias"),
        "exaone4": Row("dropped", "dropped", "dropped", "Exaone4Attention, Exaone4MLP: no bias"),
        "jais2": Row("read", "read", "read", "Jais2Attention: attention_bias; Jais2MLP: mlp_bias"),
        "vaultgemma": Row("read", "read", "dropped", "VaultGemmaAttention: attention_bias; VaultGemmaMLP: none"),
        "nanochat": Row("read", "read", "dropped", "NanoChatAttention: attention_bias; NanoChatMLP: none"),
        "cwm": Row("dropped", "dropped", "read", "CwmAttention: no bias; CwmMLP: mlp_bias"),
        "glm": Row("read", "dropped", "dropped", "GlmAttention: attention_bias, on q, k and v only; GlmMLP: none"),
        "glm4": Row("read", "dropped", "dropped", "Glm4Attention: attention_bias, on q, k and v only; Glm4MLP: none"),
        "phi3": Row("dropped", "dropped", "dropped", "Phi3Attention, Phi3MLP: no bias"),
        "minicpm3": Row("dropped", "read", "read", "MiniCPM3Attention: attention_bias, not on all its factors"),
        "gptj": Row("dropped", "dropped", "read", "GPTJAttention: no bias; GPTJMLP: always"),
        "gpt_neo": Row("dropped", "read", "read", "GPTNeoSelfAttention: on out_proj only; GPTNeoMLP: always"),
        "persimmon": Row("read", "read", "read", "PersimmonAttention, PersimmonMLP: always"),
        "bloom": Row("read", "read", "read", "BloomAttention, BloomMLP: always"),
        "mpt": Row("dropped", "dropped", "dropped", "MptAttention, MptMLP: no bias"),
        "falcon": Row("read", "read", "read", "FalconAttention, FalconMLP: bias"),
        "xglm": Row("read", "read", "read", "XGLMAttention, XGLMDecoderLayer: always"),
        "gpt2": Row("read", "read", "read", "GPT2Attention, GPT2MLP: always"),
        "gpt_bigcode": Row("read", "read", "read", "GPTBigCodeAttention, GPTBigCodeMLP: always"),
        "mixtral": Row("dropped", "dropped", "dropped", "MixtralAttention: no bias"),
        "qwen2_moe": Row("read", "dropped", "dropped", "Qwen2MoeAttention: qkv_bias, on q, k and v only"),
        "qwen3_moe": Row("read", "read", "dropped", "Qwen3MoeAttention: attention_bias"),
        "olmoe": Row("read", "read", "dropped", "OlmoeAttention: attention_bias"),
        "flex_olmo": Row("read", "read", "dropped", "FlexOlmoAttention: attention_bias"),
        "granitemoe": Row("read", "read", "dropped", "GraniteMoeAttention: attention_bias"),
        "granitemoeshared": Row("read", "read", "dropped", "GraniteMoeSharedAttention: attention_bias"),
        "gpt_oss": Row("read", "read", "dropped", "GptOssAttention: attention_bias"),
        "deepseek_v2": Row(
            "dropped",
            "read",
            "read",
            "DeepseekV2Attention: attention_bias, not on all factors; its MLP: mlp_bias",
        ),
        "deepseek_v3": Row("dropped", "read", "dropped", "DeepseekV3Attention: attention_bias, not on all its factors"),
        "glm4_moe": Row("read", "dropped", "dropped", "Glm4MoeAttention: attention_bias, on q, k and v only"),
        "dots1": Row("read", "read", "dropped", "Dots1Attention: attention_bias"),
        "ernie4_5_moe": Row("dropped", "dropped", "dropped", "Ernie4_5_Moe: use_bias, which its output head reads too"),
        "hunyuan_v1_moe": Row("read", "read", "dropped", "HunYuanMoEV1Attention: attention_bias"),
        "exaone_moe": Row("dropped", "dropped", "dropped", "ExaoneMoeAttention: no bias"),
        "afmoe": Row("read", "read", "dropped", "AfmoeAttention: attention_bias"),
        "minimax_m2": Row("dropped", "dropped", "dropped", "MiniMaxM2Attention: no bias"),
        "phimoe": Row("read", "read", "dropped", "PhimoeAttention: attention_bias"),
        "llama4_text": Row("read", "read", "dropped", "Llama4TextAttention: attention_bias"),
        "qwen3_next": Row("read", "read", "dropped", "Qwen3NextAttention: attention_bias"),
        "qwen3_5_text": Row("read", "read", "dropped", "Qwen3_5Attention: attention_bias"),
        "qwen3_5_moe_text": Row("read", "read", "dropped", "Qwen3_5MoeAttention: attention_bias"),
        "olmo_hybrid": Row("read", "read", "dropped", "OlmoHybridAttention: attention_bias"),
        "jamba": Row("dropped", "dropped", "dropped", "JambaAttention: no bias"),
        "lfm2": Row("dropped", "dropped", "dropped", "Lfm2Attention, Lfm2MLP: no bias"),
        "lfm2_moe": Row("dropped", "dropped", "dropped", "Lfm2MoeAttention: no bias"),
        "bamba": Row("read", "read", "read", "BambaAttention: attention_bias; BambaMLP: mlp_bias"),
        "falcon_h1": Row("read", "read", "read", "FalconH1Attention: attention_bias; FalconH1MLP: mlp_bias"),
        "granitemoehybrid": Row("read", "read", "dropped", "GraniteMoeHybridAttention: attention_bias"),
        "minimax": Row("dropped", "dropped", "dropped", "MiniMaxAttention: no bias"),
        "nemotron_h": Row("dropped", "dropped", "dropped", "NemotronHAttention: no bias"),
        "gemma3": Row("read", "read", "dropped", "Gemma3Attention: attention_bias; Gemma3MLP: none"),
    },
    zeros="computed like any other weight",
    patterns="computed like any other weight: from_pretrained makes dense Linear layers",
    zeros_source="torch.nn.Linear",
)

VLLM = Engine(
    "vLLM",
    "vllm",
    {
        "llama": Row("read", "read", "read", _vllm("llama", "0035bdf2b1ac243ef6f31eef27411b022461df8e")),
        "qwen3": Row("read", "dropped", "dropped", _vllm("qwen3", "002456df36fc7a63ca4463f335a49d05634ab2ab")),
        "gemma": Row("dropped", "dropped", "dropped", _vllm("gemma", "02e37cdc103a6172467c68a397c1394894547ccd")),
        "gemma2": Row("read", "read", "dropped", _vllm("gemma2", "025adfb931744df8f19b31c7f8ddcc409e34a0f4")),
        "gemma3_text": Row("read", "read", "dropped", _vllm("gemma3", "004dc924965cf24a4ade341394c45290169dd2ba")),
        "gpt_neox": Row("read", "read", "read", _NATIVE),
        "opt": Row("read", "read", "read", _NATIVE),
        "phi": Row("read", "read", "read", _NATIVE),
    },
    zeros="computed like any other weight",
    patterns="computed like any other weight: its kernels for 2:4 were removed in March 2026, and since vLLM 0.19.1 a "
    "checkpoint that asks for them (compressed-tensors, sparse24) ends in NotImplementedError",
    zeros_source="https://github.com/vllm-project/vllm/pull/36799",
)

SGLANG = Engine(
    "SGLang",
    "sglang",
    {
        "llama": Row("read", "read", "dropped", _sglang("llama", "00239548f1cd1a06ca145a5447a86738090a48f1")),
        "qwen3": Row("read", "read", "dropped", _sglang("qwen3", "01b5f572b7b678e2fa5a727881f1ff3ab4dd3c6d")),
        "gemma2": Row("read", "read", "dropped", _sglang("gemma2", "00b08c497f0735678e084ae5e3dd88ca06b46627")),
        "gpt_neox": Row("read", "read", "read", _NATIVE),
        "opt": Row("read", "read", "read", _NATIVE),
        "phi": Row("read", "read", "read", _NATIVE),
    },
    zeros="computed like any other weight",
    patterns="computed like any other weight: the model classes make dense parallel Linear layers",
    zeros_source=_sglang("llama", "00239548f1cd1a06ca145a5447a86738090a48f1"),
)

LLAMA_CPP = Engine(
    "llama.cpp",
    "llama_cpp_python",
    {
        "llama": Row("read", "read", "read", _llama_cpp("llama")),
        "qwen2": Row("read", "refused", "refused", _llama_cpp("qwen2")),
        "qwen3": Row("read", "refused", "refused", _llama_cpp("qwen3")),
        "gemma": Row("read", "refused", "refused", _llama_cpp("gemma")),
        "gemma2": Row("read", "refused", "refused", _llama_cpp("gemma2")),
        "gemma3_text": Row("read", "refused", "refused", _llama_cpp("gemma3")),
        "gpt_neox": Row("read", "read", "read", _llama_cpp("gptneox")),
        "phi": Row("read", "read", "read", _llama_cpp("phi2")),
        "opt": Row("refused", "refused", "refused", "convert_hf_to_gguf.py knows no OPTForCausalLM"),
    },
    zeros="stored and computed like any other weight",
    patterns="stored and computed like any other weight: GGUF has no sparse type",
    zeros_source="gguf-py/gguf/constants.py, GGMLQuantizationType",
)

ENGINES = (TRANSFORMERS, VLLM, SGLANG, LLAMA_CPP)
