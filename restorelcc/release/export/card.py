"""The model card of a restored checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import PretrainedConfig

from restorelcc.base.escaping import for_markdown, for_yaml, markdown_table
from restorelcc.base.recoveries import COMPENSATIONS, HEADS, UNCHANGED, nothing_changed, what_no_bias_carries

_HEADS = """\
The checkpoint was pruned, and part of the loss was recovered with
[RestoreLCC](https://arxiv.org/abs/2510.21834): for the attention heads that matter most, a constant offset was trained
on the frozen pruned model and folded into biases."""
_NOTHING = """\
The checkpoint was pruned, and {tried} was tried on it. Nothing beat the pruned model on the validation pairs, so that
nothing was changed: every weight and every zero is that of the pruned checkpoint, bit for bit."""
_OTHER = "The checkpoint was pruned, and part of the loss was recovered by the method `{name}`: {does}."
_WEIGHTS = {
    "kept": "No pruned weight was touched: every zero of the pruned checkpoint is a zero here, and the surviving "
    "weights are the same, bit for bit.",
    UNCHANGED: "Training the weights gained nothing on the validation pairs: they are those of the pruned checkpoint, "
    "bit for bit, and so is every zero.",
    "trained": "Every zero of the pruned checkpoint is a zero here. The surviving weights are new.",
    "merged": "The adapter was merged into the weights: places that pruning had made zero are filled again, so the "
    "checkpoint is not sparse.",
    "merged, zeros put back": "The adapter was merged into the weights, and the zeros of the pruned checkpoint were "
    "put back. The surviving weights are new.",
}

# The four lines that a reader looks for. The folder is the one that this card lies in.
_USE = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model, tokenizer = (auto.from_pretrained("FOLDER_OR_HUB_ID") for auto in (AutoModelForCausalLM, AutoTokenizer))
inputs = tokenizer("The capital of France is", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=20)[0]))
```"""


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """Facts for the card that are not in the record: the base model, its licence, and metrics JSONs if they exist."""

    title: str | None = None
    base_model: str | None = None
    licence: str | None = None
    dense: dict[str, Any] | None = None
    pruned: dict[str, Any] | None = None
    restored: dict[str, Any] | None = None


def model_card(record: dict[str, Any], config: PretrainedConfig, facts: CardFacts) -> str:
    """README.md: front matter for the hub, then method, numbers, sparsity, how it loads, limits, licence."""
    keys = ("model", "pruning", "head_ratio", "recovery")
    names = [str(record[key]) for key in keys if record.get(key) is not None]
    title = facts.title or " ".join(["Restored", *(names or [config.model_type])])
    parts = [_front_matter(record, facts), f"# {for_markdown(title)}", _method(record), "## Numbers", _numbers(facts)]
    parts += [
        "## Use",
        _USE,
        "## Contents",
        _content(record),
        "## Limits",
        _limits(record, facts),
        "## Licence",
        _licence(facts),
    ]
    return "\n\n".join(parts) + "\n"


def _method(record: dict[str, Any]) -> str:
    method = record.get("method")
    if nothing_changed(record):
        paper = "[RestoreLCC](https://arxiv.org/abs/2510.21834)"
        return _NOTHING.format(tried=paper if method is None else f"the method `{method['name']}`")
    if method is None:
        return f"{_HEADS} {_WEIGHTS['kept']}"
    return f"{_told(method)} {_WEIGHTS[method['weights']]}"


def _told(method: dict[str, str]) -> str:
    """The method in words; of the paper's also what was trained beside the offsets of heads."""
    name, (first, _, rest) = method["name"], method["does"].partition(", and ")
    known = COMPENSATIONS.get(name)
    if known is None or first != known.does.partition(", and ")[0]:
        return _OTHER.format(**method)
    if not rest:
        return _HEADS
    called = "" if name == HEADS else f" (the method `{name}`)"
    return f"{_HEADS} Beside these offsets it has {rest}{called}."


def _keeps_zeros(record: dict[str, Any]) -> bool:
    return (record.get("method") or {}).get("weights") != "merged"


def _front_matter(record: dict[str, Any], facts: CardFacts) -> str:
    fields: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    if facts.base_model:
        fields |= {"base_model": facts.base_model, "base_model_relation": "finetune"}
    if facts.licence:
        fields["license"] = facts.licence
    fields["tags"] = ["pruned", *(["sparse"] if _keeps_zeros(record) else []), "restorelcc"]
    return for_yaml(fields)


def _numbers(facts: CardFacts) -> str:
    columns = {
        name: metrics
        for name, metrics in (("dense", facts.dense), ("pruned", facts.pruned), ("restored", facts.restored))
        if metrics is not None
    }
    if "restored" not in columns:
        return (
            "None were measured for this checkpoint. `restorelcc evaluate_restored`, or lm-eval on this folder, "
            "measures them."
        )
    titles, rows = ["task", *columns], []
    for task, found in columns["restored"]["tasks"].items():
        rows.append([f"{task} ({found['metric']}, n = {found['n']})", *(_share(m, task) for m in columns.values())])
    if columns["restored"].get("mean") is not None:
        rows.append(["mean", *(_number(metrics.get("mean"), 100, 1) for metrics in columns.values())])
    rows.append(["perplexity", *(_perplexity(metrics) for metrics in columns.values())])
    lines = markdown_table(dict(zip(titles, row, strict=True)) for row in rows)
    tasks = columns["restored"]["tasks"]
    shots = sorted({found["shots"] for found in tasks.values()})
    how = "zero-shot" if shots in ([], [0]) else f"with {' or '.join(map(str, shots))} shots"
    note = f"Accuracies in percent, {how}, with 95 % intervals (1.96 standard errors)."
    others = [name for name, found in tasks.items() if not found["averaged"]]
    if others:
        note += f" Not in the mean, because its metric is not an accuracy: {', '.join(others)}."
    return "\n".join([*lines, for_markdown(note + _recovered(columns["restored"]))])


def _share(metrics: dict[str, Any], task: str) -> str:
    found = metrics["tasks"].get(task)
    if found is None or found["value"] is None:
        return "-"
    scale, decimals = (100, 1) if found["averaged"] else (1, 2)
    error = "" if found["stderr"] is None else f" ± {1.96 * scale * found['stderr']:.{decimals}f}"
    return _number(found["value"], scale, decimals) + error


def _number(value: float | None, scale: int, decimals: int) -> str:
    return "-" if value is None else f"{scale * value:.{decimals}f}"


def _perplexity(metrics: dict[str, Any]) -> str:
    found = metrics.get("perplexity")
    return f"{_number(found['value'], 1, 2)} ({found['corpus']})" if found else "-"


def _recovered(restored: dict[str, Any]) -> str:
    found = restored.get("recovered")
    if not found:
        return ""
    if found.get("mean") is None:
        return f" The recovered share cannot be given: {found.get('reason', 'there is none')}."
    text = f" Of the accuracy that pruning lost, {100 * found['mean']:.1f} % was recovered"
    interval = found.get("ci95")
    if interval:
        bounds = "not bounded, because pruning lost too little"
        if None not in interval:
            bounds = f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}"
        text += f" (95 % interval {bounds}, {found['method']})"
    return text + "."


def _content(record: dict[str, Any]) -> str:
    sparsity, route = record["sparsity"], record["route"]
    patterns = f"; every row holds {' and '.join(sparsity['patterns'])}" if sparsity["patterns"] else ""
    lines = [
        f"- Sparsity: {100 * sparsity['share']:.2f} % of the {sparsity['targeted']:,} weights that pruning targets are "
        f"exactly zero{patterns}.",
        f"- Compensation: {len(route['folded'])} biases carry it ({for_markdown(route['name'])}); {_added(route)}."
        if route["folded"]
        else f"- Compensation: none; {what_no_bias_carries(record)}.",
        "- Loads with plain `AutoModelForCausalLM.from_pretrained`; no custom code, safetensors only.",
        "- `restorelcc.json` records what it was made from, with digests; `restorelcc verify` checks it.",
    ]
    if route["relabelled_from"]:
        lines.append(
            f"- Written as a {for_markdown(route['model_type'])} model: the "
            f"{for_markdown(route['relabelled_from'])} class {_why_relabelled(route)}, and the two compute the same."
        )
    if route["cut"]:
        lines.append("- Removed heads and channels are cut out: the checkpoint is smaller than the dense one.")
    return "\n".join(lines)


def _why_relabelled(route: dict[str, Any]) -> str:
    """What the pruned model's class cannot have: the biases, or, where none is folded in, the heads that are left."""
    return "has no such biases" if route["folded"] else "does not take the number of heads that is left"


def _added(route: dict[str, Any]) -> str:
    """How many parameters are new, as the report counts them, and how many more the class brings."""
    zero = route["added_parameters"] - route["carrying_parameters"]
    told = f"{route['carrying_parameters']:,} parameters were added"
    return told + (f", and {zero:,} that are zero, since this class has biases on other linears too" if zero else "")


def _limits(record: dict[str, Any], facts: CardFacts) -> str:
    what = "Not all of what was lost is restored"
    if nothing_changed(record):
        what = "What pruning lost is still lost"
    elif (record.get("method") or {"weights": "kept"})["weights"] in ("kept", UNCHANGED):
        what = "A constant offset restores the mean of what was lost, not all of it"
    lines = [
        f"- {what}: expect the dense model to be better.",
        "- It was made for this pruned checkpoint; with other weights, or after quantization, it was not measured.",
    ]
    if not record["route"]["cut"] and _keeps_zeros(record):
        lines.append(
            "- Zeros alone make nothing faster or smaller in most engines; `restorelcc engines` says which do."
        )
    if facts.restored is not None:
        lines.append("- The numbers hold for the tasks above; where several head ratios or methods were tried on")
        lines[-1] += " the same test items, the best of them is a little optimistic."
    return "\n".join(lines)


def _licence(facts: CardFacts) -> str:
    if facts.licence:
        return f"That of the base model: {for_markdown(facts.licence)}."
    return (
        "That of the base model. It was not found with the weights: look it up before you redistribute this checkpoint."
    )
