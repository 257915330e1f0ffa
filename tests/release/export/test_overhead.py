"""What a restored model costs: parameters added at real sizes, and that the benchmark measures what it says."""

from __future__ import annotations

import statistics

import pytest
import torch
from accelerate import init_empty_weights
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from benchmarks.overhead import GOAL_ADDED, latency_ratio
from restorelcc.models.architectures import head_layout
from restorelcc.release.routes import plan_route
from tests import pico

LLAMA_7B = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
SHAPES = [
    ("llama", LLAMA_7B | {"vocab_size": 32000}),
    ("llama", {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 24, "num_attention_heads": 16}),
    ("mistral", LLAMA_7B | {"intermediate_size": 14336, "num_key_value_heads": 8, "sliding_window": None}),
    ("qwen2", {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12}),
    ("qwen3", {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16}),
    ("gemma2", {"hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8}),
]


def _parameters(config: PretrainedConfig) -> int:
    with init_empty_weights():
        return AutoModelForCausalLM.from_config(config).num_parameters()


@pytest.mark.parametrize(("family", "shape"), SHAPES)
def test_parameters_added_are_few_above_a_thousand_wide(family: str, shape: dict) -> None:
    config = AutoConfig.for_model(family, **shape)
    with init_empty_weights():
        layout = head_layout(AutoModelForCausalLM.from_config(config))
    offset = torch.ones(layout.layers, layout.heads, layout.head_dim)
    written = plan_route(config, offset, layout).config
    added = _parameters(written) - _parameters(config)
    assert 0 < added / _parameters(config) <= GOAL_ADDED


def test_both_models_are_timed_in_turns() -> None:
    order: list[int] = []
    models = [pico.pico(seed=number) for number in (0, 1)]
    for number, model in enumerate(models):
        model.register_forward_hook(lambda *_, number=number: order.append(number))
    ratios = latency_ratio(models[0], models[1], pico.tokens(1), pairs=6)
    assert len(ratios) == 6
    assert statistics.median(ratios) > 0
    assert [sorted(order[at : at + 2]) for at in range(0, len(order), 2)] == [[0, 1]] * 7
    assert len({tuple(order[at : at + 2]) for at in range(0, len(order), 2)}) == 2
