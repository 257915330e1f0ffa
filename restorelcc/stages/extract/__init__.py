"""The components that pruning lost: directions, singular values and loadings of every head.

Here: the `extract` section of params.yaml.
"""

from __future__ import annotations

from typing import Literal

from restorelcc.base.section import Section


class ExtractConfig(Section):
    """How the lost activations are decomposed; all solvers compute in float64."""

    solver: Literal["auto", "svd", "gram"] = "auto"  # auto: gram when N >= D
