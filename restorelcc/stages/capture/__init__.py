"""Head outputs of the dense and the pruned model at the last tokens of questions and responses.

Here: the `capture` section of params.yaml.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from restorelcc.base.section import Section


class CaptureConfig(Section):
    """Shape of the forward passes that read activations."""

    max_tokens: int = Field(default=1024, ge=2)  # question + response; longer questions lose tokens on the left
    # Tokens of one batch, padding included; auto: 768 on a CPU, 4,096 on a GPU. Small batches need less memory.
    token_budget: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
