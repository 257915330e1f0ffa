"""The dense checkpoint: pretrained here on the embedded world, or a reference to the user's.

Here: the `dense` section of params.yaml.
"""

from __future__ import annotations

from pydantic import Field, model_validator

from restorelcc.base.section import Section


class ArchitectureConfig(Section):
    """Sizes of the embedded Llama; heads * head_dim need not equal width."""

    width: int = Field(default=64, ge=1, le=65536)
    layers: int = Field(default=4, ge=1, le=1000)
    heads: int = Field(default=16, ge=1, le=1024)
    kv_heads: int = Field(default=4, ge=1, le=1024)
    head_dim: int = Field(default=8, ge=2, le=1024, multiple_of=2)  # even, for rotary positions
    ffn_width: int = Field(default=96, ge=1, le=262144)
    context: int = Field(default=64, ge=8, le=1048576)  # tokens
    rope_theta: float = Field(default=100.0, gt=0)  # low: a small head tells places of a short text apart
    # Every embedding starts from one common vector with entries of +- this size: the hidden states of large models
    # share a large common component too. Pruning then shifts means, a loss that a constant can compensate.
    common: float = Field(default=0.7, ge=0, le=100)
    tied: bool = False  # one matrix for input and output embeddings

    @model_validator(mode="after")
    def _heads_share_kv_heads(self) -> ArchitectureConfig:
        if self.heads % self.kv_heads:
            raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        return self


class PretrainConfig(Section):
    """How the embedded model is trained; steps count batches, accuracies are fractions of dev items."""

    seed: int = Field(default=0, ge=0)
    batch_size: int = Field(default=64, ge=1)  # documents
    muon_lr: float = Field(default=0.01, gt=0, le=10)  # hidden matrices, in units of AdamW's update size
    adam_lr: float = Field(default=0.005, gt=0, le=10)  # embeddings, norms and the output matrix
    noise_weight: float = Field(default=0.02, ge=0, le=1)  # loss weight of tokens that nothing before them tells
    warmup_steps: int = Field(default=50, ge=0)
    decay_steps: int = Field(default=200, ge=1)  # linear fall to zero after the target is met
    eval_every: int = Field(default=100, ge=1)
    max_steps: int = Field(default=1000, ge=1)  # cap of the phase at full learning rate
    target_mean: float = Field(default=0.93, ge=0, le=1)  # mean dev accuracy that ends the full-rate phase
    target_min: float = Field(default=0.85, ge=0, le=1)  # and the least accuracy of any task
    floor: float = Field(default=0.90, ge=0, le=1)  # least mean dev accuracy of the finished model


class DenseConfig(Section):
    """Only the embedded model is trained; other models come from their source."""

    architecture: ArchitectureConfig = ArchitectureConfig()
    pretrain: PretrainConfig = PretrainConfig()
