"""Draw docs/result.svg, the picture of README.md, from the table that stands there.

python -m benchmarks.readme_picture
"""

from __future__ import annotations

import io
import re
from pathlib import Path

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "result.svg"
COLOURS = {"dense": "#5b6673", "pruned": "#c24d5c"}  # restored models: the last one
RESTORED, INK = "#2f8f6b", "#7d8590"  # this grey is read on light and on dark


def means(readme: str) -> dict[str, float]:
    """Row to the embedded model's mean accuracy in %, of the table whose first column has no title."""
    rows = readme.split("|  | embedded: mean %")[1].split("\n\n")[0]
    return {name.strip(): float(mean) for name, mean in re.findall(r"^\| ([a-z][^|]*)\| ([\d.]+) \|", rows, re.M)}


def draw(found: dict[str, float]) -> str:
    """The bars as SVG; its text stays text, so that it is small and can be searched."""
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "restorelcc", "font.family": "sans-serif"}):
        figure = Figure(figsize=(6.2, 0.5 + 0.38 * len(found)), layout="constrained")
        figure.patch.set_visible(False)
        axes = figure.subplots()
        axes.patch.set_visible(False)
        names = list(found)
        bars = axes.barh(names, list(found.values()), height=0.7, color=[COLOURS.get(name, RESTORED) for name in names])
        axes.bar_label(bars, fmt="%.1f", padding=4, color=INK)
        axes.set(xlim=(0, 108), title="mean accuracy of the embedded model, %")
        axes.title.set(color=INK, size=10)
        axes.invert_yaxis()
        axes.tick_params(length=0, colors=INK)
        axes.xaxis.set_visible(False)
        axes.spines[:].set_visible(False)
        buffer = io.StringIO()
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    return buffer.getvalue()


if __name__ == "__main__":
    PICTURE.write_text(draw(means((ROOT / "README.md").read_text(encoding="utf-8"))), encoding="utf-8")
