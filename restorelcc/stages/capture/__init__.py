"""Head outputs of the dense and the pruned model at the last tokens of questions and responses.

Here: the `capture` section of params.yaml.
"""

from __future__ import annotations

from pydantic import Field

from restorelcc.base.section import Section


class CaptureConfig(Section):
    """Shape of the forward passes that read activations."""

    max_tokens: int = Field(default=1024, ge=2)  # question + response; longer questions lose tokens on the left
    token_budget: int = Field(default=768, ge=1)  # tokens of one batch, padding included; small ones need less memory
