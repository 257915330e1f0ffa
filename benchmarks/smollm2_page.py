"""The page of the study on a real model, docs/results/smollm2.md, from its cells."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from statistics import mean, variance
from typing import Any

from scipy.stats import t

from benchmarks.results import gain_per_token, interval, missing_text, share_won_back, table
from benchmarks.study_cells import Method, StudyCell
from restorelcc.base.documents import read_json

Found = dict[tuple[str, str], list[dict]]  # by pruning and method: one cell of each seed

_INTRODUCTION = """SmolLM2-135M-Instruct and the items of the paper's seven tasks, from packages (docs/real-model.md),
with the budget `{budget}`{items}. `{command}`
continues the study and writes this page. {measured}

**Won back** is the share of the log-likelihood of {texts} held-out texts, passages of novels, that pruning lost and
that came back. Its interval is a bootstrap over the texts for one seed, and Student's over the seeds for several. **Of
responses** is the same share of the loss on the validation pairs: questions of the kind that is trained on, which also
choose the learning rate. A method that trains on the dense model's own responses is validated on such, too. Tasks are
evaluated for the first seed only; **points** are how far its mean accuracy is above the pruned model's, with a paired
interval. A seed decides the start of the training and the order of the pairs. CPU seconds and peak memory are those of
the recovery alone, on one thread, the most of all seeds; they include choosing the learning rate where the method did
so. Cells were run on several machines: for the same work, one machine took 1.5 times the CPU seconds of another. `-`
was not measured.

All methods see the same pairs, once. The bias on every linear chooses among three rates on the validation pairs, and
all methods that train biases alone take the rate that it chose; LoRA and the weights choose among two of their own. If
no candidate beats the pruned model on the validation pairs, the pruned model is kept.

A difference between two methods is that of the means over their seeds. Its interval covers the texts, paired, and the
seeds where a method has several; a method with one seed is assumed to vary as much as the other.
"""

# When and with what the cells were measured that do not say it themselves.
_UNRECORDED: dict[str, Any] = {
    "dates": ["2026-11-29", "2026-11-30"],
    "versions": {"torch": "2.13.0", "transformers": "5.23.0", "peft": "0.21.2", "lm-eval": "0.4.13"},
}

# The paper says that the first is ahead of the second.
_CLAIMS = (
    ("compensated heads are ahead of FFN outputs", "paper-0.25", "ffn"),
    ("compensated heads are ahead of FFN outputs", "paper-1.0", "ffn"),
    ("probed heads are ahead of random ones", "paper-0.25", "random"),
    ("the compensation is ahead of LoRA", "paper-0.25", "lora-r1-o"),
    ("the compensation is ahead of LoRA", "paper-1.0", "lora"),
)
_CLAIMED_SHARE, _OPEN = 0.8, (-math.inf, math.inf)


def write_smollm2(results: Path, planned: Iterable[StudyCell], budget: str, command: str) -> None:
    """Write the budget's page, with the cells that are not measured by name."""
    known, cells = list(planned), results / "cells"
    methods = {cell.method.name: cell.method for cell in known}
    measured = {cell: read_json(path) for cell in known if (path := cells / f"{cell.name}.json").is_file()}
    asked = {(cell.pruning, cell.method.name) for cell in measured if cell.asks_tasks}
    measured = {cell: numbers for cell, numbers in measured.items() if (cell.pruning, cell.method.name) in asked}
    found: Found = {}
    for cell, numbers in measured.items():
        found.setdefault((cell.pruning, cell.method.name), []).append(numbers)
    texts = max((len(numbers["dense"]["tokens"]) for numbers in measured.values()), default=0)
    of_each = known[0].subject.items_of_each
    items = "" if of_each is None else f", {of_each} items of each"
    told = {"budget": budget, "command": command, "texts": texts, "items": items, "measured": _when(measured.values())}
    introduction = _INTRODUCTION.format(**told)
    lines = ["# A real model, measured", "", *map(str.rstrip, introduction.splitlines()), "", *_claims(found, methods)]
    for pruning in dict.fromkeys(cell.pruning for cell in known):
        own = {name: of_method for (of, name), of_method in found.items() if of == pruning}
        missing = [cell for cell in known if cell.pruning == pruning and cell not in measured]
        lines += [f"## {pruning}", "", *_section(own, methods), *_not_measured(missing)]
    page = "smollm2.md" if budget == "quick" else f"smollm2-{budget}.md"
    (results / page).write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def _when(cells: Iterable[dict]) -> str:
    """A sentence that says from when to when the cells were measured, and with which versions."""
    records = [cell.get("measured", _UNRECORDED) for cell in cells]
    if not records:
        return ""
    dates = sorted({date for record in records for date in record["dates"]})
    versions = {", ".join(f"{name} {number}" for name, number in record["versions"].items()) for record in records}
    days = f"on {dates[0]}" if len(dates) == 1 else f"from {dates[0]} to {dates[-1]}"
    return f"Measured {days}\nwith {'; or with '.join(sorted(versions))}."


def _claims(found: Found, methods: dict[str, Method]) -> list[str]:
    rows = []
    papers = ("paper-0.1", "paper-0.25", "paper-1.0")
    heads = {name: cells for name in papers if (cells := found.get(("wanda-0.5", name)))}
    if heads:
        name, cells = max(heads.items(), key=lambda item: _share(item[1])[0])
        accuracy, said = _of_accuracy(cells[0])
        numbers = f"{methods[name].title}: {accuracy}; {_percent(*_share(cells))} of the texts' log-likelihood"
        rows.append(["about 80 % of the accuracy that is lost comes back", "wanda-0.5", numbers, f"**{said}**"])
    for claim, ours, theirs in _CLAIMS:
        for pruning in dict.fromkeys(of for of, _ in found):
            if (one := found.get((pruning, ours))) and (other := found.get((pruning, theirs))):
                gain, low, high = _ahead(one, other)
                said = _verdict(low, high)
                numbers = f"{methods[ours].title} - {methods[theirs].title}: {gain:+.4f} [{low:+.4f}, {high:+.4f}]"
                rows.append([claim, pruning, numbers, f"**{said}**"])
    if not rows:
        return []
    columns = ["the paper's claim", "pruning", "measured (differences: nats a token)", ""]
    return ["## The paper's claims", "", *table(columns, rows).splitlines(), ""]


def _verdict(low: float, high: float) -> str:
    """On a claim that a number is above 0, by its interval."""
    return "confirmed here" if low > 0 else "contradicted here" if high < 0 else "not seen here"


def _of_accuracy(cell: dict) -> tuple[str, str]:
    """The share of the accuracy that came back, and the verdict on the paper's share."""
    recovered, dense, pruned = (cell[name] for name in ("recovered_accuracy", "dense", "pruned"))
    if recovered["mean"] is None:
        before = f"{100 * dense['accuracy']:.1f} % dense, {100 * pruned['accuracy']:.1f} % pruned"
        return f"these items show no loss of accuracy ({before})", "not seen here"
    low, high = (infinite if end is None else end for end, infinite in zip(recovered["ci95"], _OPEN, strict=True))
    numbers = f"{_percent(recovered['mean'], *recovered['ci95'])} of accuracy"
    return numbers, _verdict(low - _CLAIMED_SHARE, high - _CLAIMED_SHARE)


def _percent(share: float, low: float | None, high: float | None) -> str:
    ends = ("open" if end is None else f"{100 * end:.1f}" for end in (low, high))
    return f"{100 * share:.1f} % [{', '.join(ends)}]"


def _share(cells: list[dict]) -> tuple[float, float, float]:
    """Won back on average over the seeds, and its 95 % interval over the texts."""
    pruned, dense = (cells[0][name] for name in ("pruned", "dense"))
    above = [own + gain for own, gain in zip(pruned["log_likelihood"], _gains(cells), strict=True)]
    return share_won_back({"log_likelihood": above}, pruned, dense)


def _gains(cells: list[dict]) -> list[float]:
    """How far each text's log-likelihood is above that of the pruned model which the method started from, the mean over
    the seeds. Pruning once more on another machine gives almost, but not quite, the same model."""
    restored, pruned = (
        [mean(of_text) for of_text in zip(*(cell[name]["log_likelihood"] for cell in cells), strict=True)]
        for name in ("restored", "pruned")
    )
    return [above - base for above, base in zip(restored, pruned, strict=True)]


def _ahead(one: list[dict], other: list[dict]) -> tuple[float, float, float]:
    """Nats a token that the gain of one is above that of the other, each side the mean of its seeds, with a 95 %
    interval: over the texts, paired, and over the seeds by Student's t where a side has several. A side of one seed is
    taken to spread as the other one does."""
    tokens = one[0]["restored"]["tokens"]
    gain, low, high = gain_per_token(*({"log_likelihood": _gains(cells), "tokens": tokens} for cells in (one, other)))
    several = [variance(map(_gain, cells)) for cells in (one, other) if len(cells) > 1]
    if not several:
        return gain, low, high
    freedom = sum(len(cells) - 1 for cells in (one, other))
    spreads = [variance(map(_gain, cells)) if len(cells) > 1 else several[0] for cells in (one, other)]
    of_mean = sum(spread / len(cells) for spread, cells in zip(spreads, (one, other), strict=True))
    seeds = float(t.ppf(0.975, freedom)) * math.sqrt(of_mean)
    return gain, gain - math.hypot(gain - low, seeds), gain + math.hypot(high - gain, seeds)


def _gain(cell: dict) -> float:
    """Nats a token that the restored model is above the pruned one."""
    return sum(_gains([cell])) / sum(cell["restored"]["tokens"])


def _section(own: dict[str, list[dict]], methods: dict[str, Method]) -> list[str]:
    if not own:
        return []
    first = next(iter(own.values()))[0]
    ordered = sorted(own.items(), key=lambda item: -_share(item[1])[0])
    columns = [
        "method",
        "seeds",
        "won back %",
        "of responses %",
        "perplexity",
        "mean accuracy %",
        "points",
        "trained",
        "added",
    ]
    columns += ["zeros kept", "CPU s", "peak memory, GB"]
    rows = []
    for name, cells in ordered:
        rows.append(_row(methods[name].title, cells))
        for variant in cells[0]["variants"]:
            rows.append(_variant_row(variant, cells))
    tasks = list(first["dense"]["tasks"])
    by_task = [[methods[name].title, *(_task(cells[0], task) for task in tasks)] for name, cells in ordered]
    return [
        _before(first),
        *_pruned_anew(cells for _, cells in ordered),
        "",
        *table(columns, rows).splitlines(),
        "",
        "Accuracy of each task, and the points that the first seed is ahead of the pruned model:",
        "",
        *table(["method", *tasks], by_task).splitlines(),
        "",
    ]


def _before(cell: dict) -> str:
    parts = []
    models = {"dense": cell["dense"], "pruned": cell["pruned"]}
    models |= {f"dense in {name}": rival for name, rival in cell["rivals"].items()}
    for name, numbers in models.items():
        value = numbers["perplexity"]["value"] if isinstance(numbers["perplexity"], dict) else numbers["perplexity"]
        accuracy = numbers["mean"] if "mean" in numbers else numbers["accuracy"]
        parts.append(f"{name} {value:.2f} and {100 * accuracy:.1f} %")
    return f"Perplexity of the held-out texts and mean accuracy: {'; '.join(parts)}."


def _pruned_anew(methods: Iterable[list[dict]]) -> list[str]:
    """What to know where the pruned model was made more than once, and is not the same each time."""
    sums = [sum(cell["pruned"]["log_likelihood"]) for cells in methods for cell in cells]
    least, most = min(sums), max(sums)
    if least == most:
        return []
    apart = f"{100 * (most - least) / -least:.1g} %"
    return [
        f"The pruned model was made on several machines, and its log-likelihood of the texts differs by up to {apart}. "
        "What a method gains is counted from the model that it started from."
    ]


def _row(title: str, cells: list[dict]) -> list[str]:
    zeros = {True: "yes", False: "**no**", None: "beside them"}[cells[0]["zeros_kept"]]
    against = cells[0]["versus"]["pruned"]
    low, high = against["ci95"]
    peak, seconds = (max(cell[name] or 0 for cell in cells) for name in ("peak_memory_bytes", "cpu_seconds"))
    return [
        title,
        str(len(cells)),
        _share_text(cells),
        interval([_of_responses(cell) for cell in cells]),
        f"{_geometric([_perplexity(cell['restored']) for cell in cells]):.2f}",
        f"{100 * cells[0]['restored']['accuracy']:.1f}",
        f"{100 * against['difference']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]",
        *(f"{cells[0].get(name) or 0:,}" for name in ("params_trained", "params_added")),
        zeros,
        f"{seconds:,.0f}" if seconds else "-",
        f"{peak / 1e9:.1f}" if peak else "-",
    ]


def _share_text(cells: list[dict]) -> str:
    if len(cells) > 1:
        return interval([_share([cell])[0] for cell in cells])
    return _percent(*_share(cells)).replace(" %", "")


def _of_responses(cell: dict) -> float:
    """The share of the validation pairs' loss that pruning added and that is gone again."""
    dense, pruned, restored = (cell[name]["response_loss"] for name in ("dense", "pruned", "restored"))
    return (pruned - restored) / (pruned - dense)


def _variant_row(variant: str, cells: list[dict]) -> list[str]:
    own = [cell["variants"][variant] for cell in cells if variant in cell.get("variants", {})]
    share = "-"
    if all("log_likelihood" in each for each in own):
        share = _share_text([cells[number] | {"restored": each} for number, each in enumerate(own)])
    perplexity = _geometric([each["perplexity"] for each in own])
    accuracy = 100 * own[0]["accuracy"]
    return [f"... {variant}", str(len(own)), share, "-", f"{perplexity:.2f}", f"{accuracy:.1f}", "-", "-", "-",
            f"sparsity {100 * own[0]['sparsity']:.0f} %", "-", "-"]  # fmt: skip


def _perplexity(scored: dict) -> float:
    """Of the held-out texts, from the log-likelihood of each."""
    return math.exp(-sum(scored["log_likelihood"]) / sum(scored["tokens"]))


def _geometric(values: list[float]) -> float:
    return math.exp(mean(map(math.log, values)))


def _task(cell: dict, task: str) -> str:
    against = cell["versus_by_task"]["pruned"][task]
    low, high = against["ci95"]
    return f"{100 * against['second']:.0f}, {100 * against['difference']:+.0f} [{100 * low:+.0f}, {100 * high:+.0f}]"


def _not_measured(missing: list[StudyCell]) -> list[str]:
    return [missing_text((cell.method.title, cell.seed) for cell in missing), ""] if missing else []
