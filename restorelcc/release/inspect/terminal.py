"""An inspection as a table on the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from restorelcc.base.escaping import PlainTable, say


def print_inspection(found: dict[str, Any]) -> None:
    """One row per layer, the total, and a line about the files."""
    table = PlainTable(title=f"{found['folder']} ({found['model_type']})")
    for name in ("layer", "sparsity", "N:M held", "heads removed", "channels removed"):
        table.add_column(name, justify="left" if name in ("layer", "N:M held") else "right")
    for layer in found["layers"]:
        table.add_row(
            str(layer["layer"]),
            f"{layer['sparsity']:.2%}",
            _patterns(layer["patterns"]),
            f"{layer['heads_removed']} of {layer['heads']}",
            f"{layer['channels_removed']} of {layer['channels']}",
        )
    table.add_section()
    heads, channels = (sum(layer[key] for layer in found["layers"]) for key in ("heads", "channels"))
    table.add_row(
        "all",
        f"{found['sparsity']:.2%}",
        _patterns(found["patterns"]),
        f"{found['heads_removed']} of {heads}",
        f"{found['channels_removed']} of {channels}",
    )
    console = Console()
    table.show(console, ("channels removed", "heads removed"), "--json")
    console.print()
    say(
        console,
        f"{found['zeros']:,} of {found['targeted']:,} targeted weights are zero; "
        f"{found['parameters']:,} parameters in all, {found['dtype']}, {_size(found['bytes'])} on disk",
    )
    if found["biases"]:
        carried = ", ".join(f"{path} in {count}" for path, count in found["biases"].items())
        say(console, f"biases that are not zero, by linear and number of layers: {carried}")


def _patterns(held: list[str]) -> str:
    return ", ".join(held) or "-"


def _size(count: int) -> str:
    size, unit = float(count), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:,.1f} {unit}"
