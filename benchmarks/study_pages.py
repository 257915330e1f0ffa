"""The pages of the study, from its cells: docs/results/recovery.md and ablation.md."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean

from benchmarks import pruning_parts
from benchmarks.results import half_width, interval, missing_text
from benchmarks.study_cells import PAPER, SEEDS, Method, StudyCell
from restorelcc.base.documents import read_json

_HOW = """Recovered: the share of what pruning lost that came back, of mean task accuracy for the embedded model and
of the held-out log-likelihood for stories260K (200 stories; story endings are scored per character). The interval is
Student's 95 % over the seeds; one seed has none. For the embedded model, the seed is that of its pretraining as well.

All trained methods see the same pairs equally often and choose among two learning rates on the validation pairs. On
stories260K, which is one model for all seeds, the first seed chooses for the others, and all methods that train biases
alone take the rate that a bias everywhere chose; LoRA and the surviving weights choose among two of their own. There,
some settings were chosen in trials that looked at the held-out stories, with a bias everywhere: how a story is divided
into question and response, the number of epochs (3) and the batch size (2). This flatters the share of a bias
everywhere a little (2 epochs and openings of 20 words gave 51.8 %).

At Wanda 50 % all methods are compared, at 60 % and 2:4 the five main ones of each model. `refined` has won back a part
of Wanda's loss before anything is trained, so its table has the share of Wanda's loss too.
Seconds are those of the slowest seed, of one thread beside other work. `make study` continues the study and writes
this page.
"""


def recovered(cell: dict, variant: str | None = None) -> float:
    """The recovered share of a cell, or of a variant of it: of accuracy or of the held-out log-likelihood."""
    own = cell["restored"] if variant is None else cell["variants"][variant]
    if cell["measure"] == "accuracy":
        dense, pruned, restored = (each["accuracy"] for each in (cell["dense"], cell["pruned"], own))
        return (restored - pruned) / (dense - pruned)
    dense, pruned, restored = (math.log(each["perplexity"]) for each in (cell["dense"], cell["pruned"], own))
    return (pruned - restored) / (pruned - dense)


def won_back(cell: dict, of: dict) -> float:
    """The share of the log-likelihood lost by the pruning of cell `of`, a plainer one, that the recovered model of
    `cell` does not lack."""
    dense, plain, restored = (math.log(each["perplexity"]) for each in (of["dense"], of["pruned"], cell["restored"]))
    return (plain - restored) / (plain - dense)


def write_pages(results: Path, planned: Iterable[StudyCell]) -> None:
    """Write both pages from the cells that are measured (results/cells/*.json), and say which are not."""
    results.mkdir(parents=True, exist_ok=True)
    known = list(planned)
    found = {path.stem: read_json(path) for path in sorted((results / "cells").glob("*.json"))}
    for table, title in (("recovery", "Recovery methods, measured"), ("ablation", "Ablations of the method, measured")):
        lines = [f"# {title}", "", *_HOW.splitlines(), ""]
        for model, pruning in dict.fromkeys((cell.subject.model, cell.pruning) for cell in known):
            own = [c for c in known if (c.subject.model, c.pruning) == (model, pruning)]
            if table == "recovery" and pruning.startswith("refined") and pruning_parts.CELL.stem in found:
                lines += pruning_parts.section(found[pruning_parts.CELL.stem])
            lines += _section(f"{model}, {pruning}", _methods(own, table), own, found)
            if table == "recovery":
                title = f"{model}, {pruning}, 100 examples of one task"
                lines += _section(title, _methods(own, "target"), own, found)
        (results / f"{table}.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def _methods(own: list[StudyCell], table: str) -> list[Method]:
    methods = list(dict.fromkeys(cell.method for cell in own if cell.method.table == table))
    return [PAPER, *methods] if methods and table == "ablation" else methods


def _section(title: str, methods: list[Method], own: list[StudyCell], found: dict) -> list[str]:
    measured: dict[Method, list[dict]] = {}
    missing: list[tuple[str, int]] = []
    for method in methods:
        cells = [cell for cell in own if cell.method == method]
        if there := [found[cell.name] for cell in cells if cell.name in found]:
            measured[method] = there
            for cell in there:  # the same, pruned by Wanda, if it is there
                plain = f"{cell['subject']}-{cell['seed']}-wanda-{cell['pruning'].partition('-')[2]}-"
                cell["plain"] = next((each for name, each in found.items() if name.startswith(plain)), None)
        missing += [(method.title, cell.seed) for cell in cells if cell.name not in found]
    if not methods:
        return []
    lines = [f"## {title}", ""]
    if measured:
        lines += [_lost(next(iter(measured.values()))[0]), "", *_table(measured), "", *_verdicts(measured)]
    if missing:
        lines += [missing_text(missing), ""]
    return lines


def _table(measured: dict[Method, list[dict]]) -> list[str]:
    first = next(iter(measured.values()))[0]
    of_stories = first["measure"] == "log-likelihood"
    columns = ["method", "seeds", "recovered %", "trained", "added", "zeros kept", "seconds"]
    columns += ["bits per byte", "story endings %"] if of_stories else []
    on_top = (
        of_stories
        and first["pruning"].startswith("refined")
        and all(cell["plain"] for cells in measured.values() for cell in cells)
    )
    columns += ["of Wanda's loss %"] if on_top else []
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    if on_top:
        before = interval([won_back(first | {"restored": first["pruned"]}, first["plain"])])
        lines = [f"Pruned alone, it has {before} % of Wanda's loss back.", "", *lines]

    def row(title: str, cells: list[dict], variant: str | None, facts: list[str]) -> str:
        found = [cell["restored"] if variant is None else cell["variants"][variant] for cell in cells]
        values = [title, str(len(cells)), interval([recovered(cell, variant) for cell in cells]), *facts]
        if of_stories:
            values.append(f"{mean(each['bits_per_byte'] for each in found):.3f}")
            values.append(f"{100 * mean(each['accuracy'] for each in found):.1f}")
        if on_top:
            values.append(interval([won_back(cell, cell["plain"]) for cell in cells]))
        return f"| {' | '.join(values)} |"

    for method in sorted(measured, key=lambda method: -mean(map(recovered, measured[method]))):
        cells = measured[method]
        zeros = {True: "yes", False: "**no**", None: "beside them"}[cells[0]["zeros_kept"]]
        numbers = [f"{cells[0].get(name) or 0:,}" for name in ("params_trained", "params_added")]
        seconds = f"{max(cell['seconds'] for cell in cells):.0f}"
        lines.append(row(method.title, cells, None, [*numbers, zeros, seconds]))
        for variant in cells[0].get("variants") or ():
            sparsity = f"sparsity {100 * cells[0]['variants'][variant]['sparsity']:.0f} %"
            lines.append(row(f"... {variant}", cells, variant, ["-", "-", sparsity, "-"]))
    return lines


def _verdicts(measured: dict[Method, list[dict]]) -> list[str]:
    """Which method a budget suggests, as the numbers above show it, and the paired differences to LoRA or the paper."""
    lines = []
    groups = {
        "Biases alone, no weight touched": [m for m in measured if m.ships == "biases"],
        "Every zero kept": [m for m in measured if m.ships != "adapter"],
        "No labels at hand": [m for m in measured if not m.labels],
        "Adapters beside the weights": [m for m in measured if m.ships == "adapter"],
    }
    for budget, methods in groups.items():
        if methods:
            best = max(methods, key=lambda method: mean(map(recovered, measured[method])))
            cells = measured[best]
            size = f"{cells[0].get('params_trained') or 0:,} numbers trained"
            shares = interval([recovered(cell) for cell in cells])
            lines += [f"- {budget}: {best.title}, {shares} % ({size}, {len(cells)} of {len(SEEDS)} seeds)."]
    return [*lines, "", *_against(measured, "lora-r1-o"), *_against(measured, PAPER.name, among="ablation")]


def _against(measured: dict[Method, list[dict]], rival: str, among: str = "") -> list[str]:
    """By how many points the methods differ from one of them, and from its variant that keeps every zero, seed by seed:
    those of table `among`, or else those that are biases alone."""
    other = next((method for method in measured if method.name.removeprefix("target-") == rival), None)
    compared = [m for m in measured if m != other and (m.table == among if among else m.ships == "biases")]
    if other is None or not compared:
        return []
    variants = [None, *(name for name in measured[other][0].get("variants") or () if "zeros" in name)]
    titles = [other.title, *(f"it {variant}" for variant in variants[1:])]
    lines = [
        f"| points, paired by seed | {' | '.join(f'minus {title}' for title in titles)} |",
        "|---" * (1 + len(titles)) + "|",
    ]
    for method in compared:
        cells = []
        for variant in variants:
            by_seed = {cell["seed"]: recovered(cell, variant) for cell in measured[other]}
            both = [recovered(c) - by_seed[c["seed"]] for c in measured[method] if c["seed"] in by_seed]
            cells.append(_difference(both))
        lines.append(f"| {method.title} | {' | '.join(cells)} |")
    return [*lines, ""]


def _difference(pairs: Sequence[float]) -> str:
    """The mean difference with its interval, and whether that leaves a doubt on which side of 0 it lies."""
    if not pairs:
        return "-"
    if len(pairs) == 1:
        return f"{interval(pairs)} (one seed)"
    verdict = "not told apart" if abs(mean(pairs)) <= half_width(pairs) else "ahead" if mean(pairs) > 0 else "behind"
    return f"{interval(pairs)}, {verdict}"


def _lost(cell: dict) -> str:
    dense, pruned = cell["dense"], cell["pruned"]
    if cell["measure"] == "accuracy":
        accuracy = f"dense {100 * dense['accuracy']:.1f} %, pruned {100 * pruned['accuracy']:.1f} %"
        return f"Mean accuracy of seed {cell['seed']}: {accuracy}."
    measures = {"perplexity": ("perplexity", 2), "bits per byte": ("bits_per_byte", 3)}
    parts = [f"{title} {dense[key]:.{n}f} and {pruned[key]:.{n}f}" for title, (key, n) in measures.items()]
    parts.append(f"story endings {100 * dense['accuracy']:.1f} % and {100 * pruned['accuracy']:.1f} %")
    return f"Dense and pruned on held-out stories: {', '.join(parts)}."
