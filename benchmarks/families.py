"""Write docs/families.md: what can be done with each family of the table, told by the table itself.

python -m benchmarks.families
"""

from __future__ import annotations

from pathlib import Path

from restorelcc.models.biases import LLAMA_EQUIVALENTS
from restorelcc.models.families import FAMILIES
from restorelcc.models.family import Family
from restorelcc.release.engines.table import ENGINES

PAGE = Path(__file__).parents[1] / "docs" / "families.md"
_INTRODUCTION = """\
# Model families

A checkpoint can be used if the `model_type` of its `config.json` is in this table. Every family is tested from a tiny
random checkpoint to a restored one (`tests/models/test_families.py`). No checkpoint of full size was run for this page.
`python -m benchmarks.families` writes the page, and a test compares the two.

- **prune**: all linears of the blocks, with any pruner. `not slimgpt`: heads and channels cannot be removed as wholes.
  `elsewhere`: a model that another tool pruned is restored, and nothing is pruned here.
- **restore**: head outputs captured, heads chosen, compensation trained and applied. This works in every family. Some
  models have attention in some layers only; it is these that are restored.
- **bias**: how a checkpoint carries the compensation of the heads. `own`: the class always has a bias there, unless its
  config says otherwise. A key such as `attention_bias` turns one on. `file`: the class has no place for it, so keep
  `compensation.safetensors` beside the pruned checkpoint and use `restorelcc.attach`, which gives the same logits.
  `v_proj, else file`: exact only if all query heads that share a key/value head have the same offset.
- **slice**: what `--slice` can cut out after structured pruning.
- **written as**: the class of the exported checkpoint. Llama takes the place of classes that compute the same and have
  no bias; this needs full attention, so a sliding window shorter than the context leads to `file` instead.
- **engines**: those whose source was read and that read the bias of the out-projection, once the checkpoint is written.
  An engine that is not named drops the bias, refuses it, or was not read for this family ([engines.md](engines.md)).

`restorelcc plan` says which way a model goes before anything runs. `restorelcc check` refuses what cannot be done.

"""
_HEAD = """\
| family (`model_type`) | prune | restore | bias | slice | written as | engines |
|---|---|---|---|---|---|---|
"""
_NOTES = """
## Mixtures of experts and hybrids

Their attention heads are restored like any others, and `compensate.sites` may name the FFN that all tokens share
(`gate`, `up`, `down`) where there is one. Experts and routers stay as they are, bit for bit. The pruned model may have
fewer experts than the dense one, as after REAP: only the tensors of experts and routers may differ in size. Give it to
`restorelcc restore --pruned`, or as `external-<name>`. Pruning by score (wanda, sparsegpt, ...) is refused before
anything runs: experts are fused into one tensor per layer, not stored as Linear layers.

In a hybrid (Qwen3-Next, Jamba, LFM2, Granite 4, ...) only the attention layers count: `layer` 0 in `heads.parquet` and
in a compensation is the first block with heads. `restorelcc.models.architectures.head_layout(model).blocks` has the
numbers of these blocks, and `restorelcc inspect` lists them.

Where a family has no place for the biases, `restorelcc restore --compensation-only` writes `compensation.safetensors`
for `restorelcc.attach` instead of a checkpoint.

## Notes

`gpt2` stores its weights transposed. Here they are seen as ordinary Linear layers, so that N:M runs along the inputs,
and are written as they were. Such a model cannot be spread over devices (`device_map`).

`gemma3` is the model of pictures and text (Gemma 3 4B and larger). Its text part is pruned and restored, and everything
else is carried along as it is. It is loaded whole for pruning, because its checkpoints name their tensors in another
way than its class does.

Heads cannot be sliced out of models that normalize queries and keys of each head with weights of its own (Cohere with
`use_qk_norm`, StableLM and Phi with `qk_layernorm`); channels can.

Models with ALiBi, and GPT-Neo, are captured with one sequence per line, which takes longer.

## A family that is not in the table

    restorelcc inspect --family DIR

makes a model of two layers from the folder's `config.json`, with random weights. It finds the blocks and their linears,
prints the row to add, and says what it has proved of it by running it: a block that is run again gives what it gave,
and a compensation by hooks equals one that is folded into biases. Where no row can describe the class, it says what
does not hold. CONTRIBUTING.md says what to do with the row.

## Not in the table

| family | why |
|---|---|
| Mamba, RWKV, xLSTM | they have no attention heads |
| Zamba, RecurrentGemma | layers share their attention, or `layer_types` does not tell which have it |
| CodeGen | its fused q, k and v lie in an order of their own |
| Llava, Mistral 3, PaliGemma, Qwen-VL | `AutoModelForCausalLM` does not load them, and models are loaded by it alone |
| Llama 4 and Qwen3.5 with pictures, Gemma 3n, Gemma 4 | no row; text models of Llama 4 and Qwen3.5 have one |
| BitNet | its checkpoints are quantized |
| Baichuan, InternLM and others with code of their own | such code is never run; convert them to the Llama class |
| DeepSeek-V3.2 and V4, Longcat, MiMo, Kimi Linear | no row; try `restorelcc inspect --family` |
"""


def page() -> str:
    """docs/families.md as the table has it."""
    rows = (f"| `{kind}` | {' | '.join(cells(kind, family))} |\n" for kind, family in FAMILIES.items())
    return _INTRODUCTION + _HEAD + "".join(rows) + _NOTES


def cells(kind: str, family: Family) -> list[str]:
    """prune, restore, bias, slice, written as, engines."""
    relabelled = kind in LLAMA_EQUIVALENTS
    values = family.bias_route(family.qkv[-1]) if len(family.qkv) == 3 else "none"
    bias = {"native": "own", "flag": f"`{family.bias_flag(family.out_proj)}`", "none": "file"}[family.bias]
    if family.bias == "none" and values != "none":
        bias = "v_proj, else file"
    slices = "heads, channels" if family.free_head_dim else "channels"
    return [
        "elsewhere" if family.partial else "not slimgpt" if family.whole_parts_refused else "yes",
        "attention layers" if family.hybrid else "yes",
        f"as Llama, {bias}".replace("file", "else file").replace("else else", "else") if relabelled else bias,
        "no" if family.whole_parts_refused else slices,
        "Llama" if relabelled else "-" if bias == "file" else "its own class",
        _engines("llama" if relabelled else kind),
    ]


def _engines(kind: str) -> str:
    names = [engine.name for engine in ENGINES if kind in engine.rows and engine.rows[kind].out == "read"]
    return ", ".join(names) or "-"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
