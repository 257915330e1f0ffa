"""Bytes and tokens per second of a restored model and its rivals, as the stage `speed` measured them."""

from __future__ import annotations

from typing import Any

from restorelcc.stages.report.tables import Table, size_text


def speed_table(document: dict[str, Any]) -> Table:
    """Of one run of the stage `speed`: bytes, and tokens per second with how many times the dense model's they are."""
    what = f"speed at {document['head_ratio']}"
    return [
        {
            what: name,
            "files": size_text(version["file_bytes"]),
            "in memory": size_text(version["memory_bytes"]),
            "decode, tokens/s": _figures(version["decode"]["tokens_per_second"]),
            "x dense": _quartiles(version["decode"]["times_dense"]),
            "prefill, tokens/s": _figures(version["prefill"]["tokens_per_second"]),
            "x dense ": _quartiles(version["prefill"]["times_dense"]),
        }
        for name, version in document["versions"].items()
    ]


def _figures(value: float) -> str:
    return f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def _quartiles(values: list[float]) -> str:
    low, middle, high = values
    return f"{middle:.2f} [{low:.2f}, {high:.2f}]"


def how_timed(document: dict[str, Any]) -> str:
    """What the table of speeds was measured on, and how."""
    settings, threads = document["settings"], document["threads"]
    kernel = "" if document["kernel"] is None else f" Packed weights by the kernel for {document['kernel']}."
    return (
        f"Measured in {settings['turns']} turns (prefill in {settings['prefill_turns']}) on {document['machine']}, "
        f"{threads} thread{'s' if threads != 1 else ''}, in {document['dtype']}: decoding one sequence token by token, "
        f"and a prompt of {settings['prefill']} tokens at once. Medians; x dense is the median of the turns' ratios "
        f"with its quartiles.{kernel} Packed and sliced are forms of the restored model. The dense one in 8 bits is "
        "rounded to nearest, with one scale a row, and is not stored."
    )
