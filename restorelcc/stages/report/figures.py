"""The report's figures, drawn by matplotlib in the colours of a palette.

On the page the palette is of CSS variables, so that one drawing serves light and dark; matplotlib needs colours that
it knows, so each stands in for its variable until the SVG is written. Letters: L layers, H heads.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import matplotlib.axes
import matplotlib.figure
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from restorelcc.stages.report.results import Group, Row

WIDTH = 4.7  # inches: about a phone's width at the size of text that is drawn
SERIES = 6


@dataclass(frozen=True)
class Palette:
    """Colours by purpose."""

    text: str
    muted: str
    line: str
    dense: str
    pruned: str
    series: tuple[str, ...]  # restored and recovered models, in order


LIGHT = Palette(
    text="#1f2328",
    muted="#66707b",
    line="#d5dae0",
    dense="#5b6673",
    pruned="#b9c1ca",
    series=("#2563a8", "#d9822b", "#2f8f6b", "#8a5bb5", "#c24d5c", "#7a8a2e"),
)
# Stand-ins: no other colour is drawn, so each can be found and replaced in the SVG.
_STAND_INS = Palette(
    text="#010101",
    muted="#020202",
    line="#030303",
    dense="#040404",
    pruned="#050505",
    series=("#060606", "#070707", "#080808", "#090909", "#0a0a0a", "#0b0b0b"),
)
Draw = Callable[[Palette], matplotlib.figure.Figure]


def series_colour(palette: Palette, position: int) -> str:
    return palette.series[position % SERIES]


def page_svg(draw: Draw, name: str, title: str) -> str:
    """The figure as an SVG element for the page: colours are CSS variables, its size is that of its place."""
    svg = _svg(_drawn(draw, _STAND_INS), name)
    for number, colour in enumerate(_STAND_INS.series):
        svg = svg.replace(colour, f"var(--series-{number + 1})")
    for part in ("text", "muted", "line", "dense", "pruned"):
        svg = svg.replace(getattr(_STAND_INS, part), f"var(--{part})")
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(
        r' id="(figure|axes|patch|line2d|text|matplotlib\.axis|xtick|ytick|legend|[A-Za-z]*Collection)_\d+"', "", svg
    )
    return svg.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)


def static_files(draw: Draw, name: str) -> dict[str, bytes]:
    """The figure as <name>.svg and <name>.png, in the colours of the light page."""
    figure = _drawn(draw, LIGHT)
    png = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(png, format="png", dpi=160, facecolor="white", metadata={"Software": None})
    return {f"{name}.svg": _svg(figure, name).encode(), f"{name}.png": png.getvalue()}


def _drawn(draw: Draw, palette: Palette) -> matplotlib.figure.Figure:
    with mpl.rc_context({"text.parse_math": False}):  # a $ in a name begins no formula
        return draw(palette)


def _svg(figure: matplotlib.figure.Figure, name: str) -> str:
    text = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "text.parse_math": False}):
        FigureCanvasSVG(figure)
        figure.savefig(text, format="svg", metadata={"Date": None}, transparent=True)
    return text.getvalue()


def _axes(
    palette: Palette, height: float, panels: int = 1
) -> tuple[matplotlib.figure.Figure, list[matplotlib.axes.Axes]]:
    figure = matplotlib.figure.Figure(figsize=(WIDTH, height), layout="constrained")
    axes = [figure.add_subplot(1, panels, number + 1) for number in range(panels)]
    for axis in axes:
        axis.patch.set_alpha(0)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
        for side in ("left", "bottom"):
            axis.spines[side].set_color(palette.line)
        axis.tick_params(colors=palette.muted, labelcolor=palette.text, labelsize=8, length=3, width=0.6)
        axis.xaxis.label.set(color=palette.muted, fontsize=8)
        axis.yaxis.label.set(color=palette.muted, fontsize=8)
        axis.set_axisbelow(True)
    return figure, axes


def _legend(axis: matplotlib.axes.Axes, palette: Palette, **place: Any) -> None:
    axis.legend(frameon=False, fontsize=8, labelcolor=palette.text, handlelength=1.4, **place)


def recovered_figure(group: Group) -> Draw | None:
    """Recovered share against head ratio, with intervals; each other method is a level."""
    restored = sorted((r for r in group.of_kind("restored") if r["recovered"] is not None), key=_ratio)
    recovered = [row for row in group.of_kind("recovered") if row["recovered"] is not None]
    if not restored and not recovered:
        return None

    def draw(palette: Palette) -> matplotlib.figure.Figure:
        figure, (axis,) = _axes(palette, 3.0)
        axis.grid(axis="y", color=palette.line, linewidth=0.6)
        axis.axhline(100, color=palette.dense, linewidth=1)
        axis.axhline(0, color=palette.pruned, linewidth=1.4)
        if restored:
            x, y = [100 * _ratio(row) for row in restored], [100 * row["recovered"] for row in restored]
            axis.errorbar(x, y, yerr=_errors(restored), color=series_colour(palette, 0), marker="o", markersize=5)
            axis.lines[-1].set_label("chosen heads")
            axis.set_xticks(x, [f"{value:g}" for value in x])
            axis.set_xlim(min(0, min(x)), max(x) * 1.12)
        for number, row in enumerate(recovered):
            level = axis.axhline(100 * row["recovered"], label=row["what"], linewidth=1.3, linestyle="--")
            level.set_color(series_colour(palette, number + 1))
        axis.set_xlabel("heads with a compensation, %")
        axis.set_ylabel("lost accuracy recovered, %")
        shares = [row["recovered"] for row in (*restored, *recovered)]
        top = 100 * max(1.0, *shares, *(row["ci95"][1] for row in restored if _bounded(row)))
        axis.set_ylim(top=top * 1.06)
        at = axis.get_yaxis_transform()
        for share, name in ((100, "dense "), (0, "pruned ")):
            axis.text(0.995, share, name, transform=at, ha="right", va="bottom", **_small(palette))
        if recovered:
            _legend(axis, palette, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
        return figure

    return draw


def _ratio(row: Row) -> float:
    return float(row["head_ratio"])


def _bounded(row: Row) -> bool:
    return row["ci95"] is not None and None not in row["ci95"]


def _small(palette: Palette) -> dict[str, Any]:
    return {"color": palette.muted, "fontsize": 7.5}


def _errors(rows: list[Row]) -> list[list[float]]:
    low = [100 * (row["recovered"] - row["ci95"][0]) if _bounded(row) else 0.0 for row in rows]
    high = [100 * (row["ci95"][1] - row["recovered"]) if _bounded(row) else 0.0 for row in rows]
    return [low, high]


def tasks_figure(group: Group) -> Draw | None:
    """Accuracy per task, of those measured by one, of every model of the group, with 95 % intervals."""
    counted = (name for row in group.rows for name, task in row["tasks"].items() if task["averaged"])
    names = list(dict.fromkeys(counted))
    if not names:
        return None
    rows, thickness = group.rows, 0.13

    def draw(palette: Palette) -> matplotlib.figure.Figure:
        step = thickness * len(rows) + 0.16
        figure, (axis,) = _axes(palette, 0.75 + step * len(names))
        axis.grid(axis="x", color=palette.line, linewidth=0.6)
        place = 0
        for number, row in enumerate(rows):
            colour = {"dense": palette.dense, "pruned": palette.pruned}.get(row["kind"])
            if colour is None:
                colour, place = series_colour(palette, place), place + 1
            shown = [(at, row["tasks"][name]) for at, name in enumerate(names) if name in row["tasks"]]
            middle = [at * step + (number + 0.5) * thickness for at, _ in shown]
            errors = [196 * (task["stderr"] or 0) for _, task in shown]
            axis.barh(
                middle, [100 * task["value"] for _, task in shown], thickness * 0.86, color=colour, label=row["what"]
            )
            axis.errorbar(
                [100 * task["value"] for _, task in shown],
                middle,
                xerr=errors,
                fmt="none",
                ecolor=palette.text,
                elinewidth=0.7,
            )
        axis.set_yticks([at * step + thickness * len(rows) / 2 for at in range(len(names))], names)
        axis.tick_params(axis="y", length=0)
        axis.set_xlim(0, 104)
        axis.invert_yaxis()
        axis.set_xlabel("accuracy, %")
        _legend(axis, palette, loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=min(4, len(rows)))
        return figure

    return draw


def heads_figure(group: Group, row: Row) -> Draw | None:
    """Layers x heads: a deeper colour is a higher rank, and each chosen head has a ring."""
    heads = row["details"].get("heads")
    if not heads:
        return None
    ranks: list[list[int]] = heads["ranks"]
    layers, width = len(ranks), len(ranks[0])

    def draw(palette: Palette) -> matplotlib.figure.Figure:
        figure, (axis,) = _axes(
            palette, min(6.5, 0.8 + WIDTH * 0.82 * layers / width * (1 if layers > width else 1.15))
        )
        accent = mpl.colors.to_rgb(series_colour(palette, 0))
        for layer, of_layer in enumerate(ranks):
            for head, rank in enumerate(of_layer):
                depth = 0.06 + 0.84 * (1 - rank / max(1, layers * width - 1)) ** 2
                axis.add_patch(
                    Rectangle((head - 0.46, layer - 0.46), 0.92, 0.92, facecolor=(*accent, depth), edgecolor="none")
                )
        chosen = heads["chosen"]
        size = min(40.0, 900 / max(layers, width))
        axis.scatter(
            [h for _, h in chosen],
            [layer for layer, _ in chosen],
            s=size,
            facecolors="none",
            edgecolors=palette.text,
            linewidths=1.1,
        )
        axis.set_xlim(-0.6, width - 0.4)
        axis.set_ylim(layers - 0.4, -0.6)
        for spine in axis.spines.values():
            spine.set_visible(False)
        axis.tick_params(length=0)
        axis.set_xticks(range(0, width, 1 if width <= 16 else max(2, width // 8)))
        axis.set_yticks(range(0, layers, 1 if layers <= 12 else max(2, layers // 8)))
        axis.set_xlabel("head")
        axis.set_ylabel("layer")
        return figure

    return draw


def spectra_figure(group: Group) -> Draw | None:
    """How much of what a layer lost lies in its first components: cumulative share of energy, one line a layer."""
    spectra: list[list[float]] | None = group.detail("spectra")
    if not spectra:
        return None

    def draw(palette: Palette) -> matplotlib.figure.Figure:
        figure, (axis,) = _axes(palette, 2.8)
        axis.grid(color=palette.line, linewidth=0.6)
        deepest = max(1, len(spectra) - 1)
        for layer, shares in enumerate(spectra):
            cumulative = [100 * sum(shares[: count + 1]) for count in range(len(shares))]
            label = f"layer {layer}" if len(spectra) <= 6 or layer in (0, len(spectra) - 1) else None
            axis.plot(
                range(1, len(shares) + 1),
                cumulative,
                color=series_colour(palette, 0),
                alpha=0.25 + 0.75 * layer / deepest,
                marker="o" if len(shares) <= 16 else None,
                markersize=3,
                linewidth=1.4,
                label=label,
            )
        axis.set_ylim(0, 104)
        axis.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axis.set_xlabel("components, largest first")
        axis.set_ylabel("lost energy, cumulative %")
        _legend(axis, palette, loc="lower right")
        return figure

    return draw


def layers_figure(group: Group) -> Draw | None:
    """Sparsity of every layer, and the error that pruning left in its outputs."""
    layers: list[dict[str, Any]] | None = group.detail("layers")
    if not layers:
        return None

    def draw(palette: Palette) -> matplotlib.figure.Figure:
        with_error = [layer for layer in layers if layer["error"] is not None]
        figure, axes = _axes(palette, 2.5, panels=2 if with_error else 1)
        panels = [("sparsity, %", [(x["layer"], x["sparsity"]) for x in layers], palette.dense)]
        if with_error:
            panels.append(
                ("output error, %", [(x["layer"], x["error"]) for x in with_error], series_colour(palette, 1))
            )
        for axis, (title, points, colour) in zip(axes, panels, strict=True):
            axis.grid(axis="y", color=palette.line, linewidth=0.6)
            axis.bar([layer for layer, _ in points], [100 * value for _, value in points], 0.7, color=colour)
            axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            axis.set_xlabel("layer")
            axis.set_ylabel(title)
        return figure

    return draw
