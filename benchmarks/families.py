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
- **restore**: head outputs captured, heads chosen, compensation trained and applied. This works in every family.
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
| GPT-2 (`gpt2`) | its linears are stored transposed (`Conv1D`) |
| Phi-4 multimodal, and other models of pictures or sound and text | only `gemma3` has a row |
| Baichuan, InternLM and others with code of their own | such code is never run; convert them to the Llama class |
| mixtures of experts | their experts are fused into one tensor per layer |
| Mamba, LFM2, Qwen3-Next and other hybrids | some or all of their layers have no attention heads |
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
        "not slimgpt" if family.whole_parts_refused else "yes",
        "yes",
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
