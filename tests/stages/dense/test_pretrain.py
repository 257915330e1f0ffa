"""Pretraining is deterministic, stops by accuracy, and its parts do what their docstrings say."""

from itertools import islice

import pytest
import torch

from restorelcc.base.errors import BadInput
from restorelcc.stages.dense import ArchitectureConfig, PretrainConfig
from restorelcc.stages.dense.muon import orthogonalised
from restorelcc.stages.dense.pretrain import (
    _batches,
    build_model,
    choice_accuracy,
    learning_rate_factor,
    pad_batch,
    predictable,
    pretrain,
)

torch.set_num_threads(1)
PICO = ArchitectureConfig(width=16, layers=2, heads=4, kv_heads=2, head_dim=8, ffn_width=24, context=16)
# "4 x 5 y": the token after 5 repeats the token after 4.
DOCUMENTS = [[4, token, 5, token] for token in range(6, 12)] * 20
DEV = {"copy": [([4, token, 5], [[token], [6 + (token - 5) % 6]], 0) for token in range(6, 12)]}


def run(seed=0, **changes):
    settings = {"seed": seed, "batch_size": 12, "warmup_steps": 5, "decay_steps": 10, "eval_every": 10, "max_steps": 60}
    model = build_model(PICO, 12, seed=seed)
    history = pretrain(model, DOCUMENTS, DEV, PretrainConfig(**{**settings, "floor": 0.0, **changes}))
    return model, history


def test_the_model_is_a_stock_llama_without_biases_and_with_wide_heads():
    model = build_model(PICO, 12)
    assert model.config.model_type == "llama"
    assert not [name for name, _ in model.named_parameters() if name.endswith("bias")]
    assert model.model.layers[0].self_attn.o_proj.weight.shape == (16, 32)  # H*D differs from the width
    assert model.model.layers[0].self_attn.k_proj.weight.shape == (16, 16)


def test_equal_seeds_give_identical_weights_and_others_do_not():
    first, _ = run()
    again, _ = run()
    other, _ = run(seed=1)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)


def test_training_stops_soon_after_the_target_is_met():
    _, history = run(target_mean=0.0, target_min=0.0)
    assert history[-1]["step"] == 20  # the first evaluation at 10, then the decay
    assert set(history[-1]) == {"step", "loss", "mean", "tasks"}


def test_training_learns_to_copy_and_fails_below_the_floor():
    _, history = run(target_mean=1.0, target_min=1.0, max_steps=200)
    assert history[-1]["mean"] == 1.0
    with pytest.raises(RuntimeError, match="below the floor"):
        run(max_steps=10, decay_steps=1, muon_lr=1e-9, adam_lr=1e-9, floor=1.0)


def test_fewer_documents_than_a_batch_are_refused():
    with pytest.raises(
        BadInput, match=r"dense\.pretrain\.batch_size is 121, and .* 120 .*corpus\.microworld\.documents"
    ):
        run(batch_size=121)


def test_every_epoch_is_whole_batches_in_an_order_of_its_own():
    batches = list(islice(_batches(7, 3, seed=0), 6))
    epochs = [[*batches[at], *batches[at + 1]] for at in (0, 2, 4)]
    assert all(len(set(epoch)) == 6 and set(epoch) < set(range(7)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 3


def test_the_common_vector_is_shared_by_all_embeddings():
    weight_VM = build_model(ArchitectureConfig(common=3.0), 50).model.embed_tokens.weight
    assert torch.allclose(weight_VM.mean(0).abs(), torch.full((64,), 3.0), atol=0.1)


def test_orthogonalised_brings_singular_values_near_one():
    for shape in ((3, 8, 5), (2, 4, 9)):
        values = torch.linalg.svdvals(orthogonalised(torch.randn(shape, generator=torch.Generator().manual_seed(0))))
        assert values.min() > 0.5 and values.max() < 1.3


def test_learning_rate_warms_up_holds_and_falls_to_just_above_zero():
    config = PretrainConfig(warmup_steps=10, decay_steps=5)
    assert learning_rate_factor(0, None, config) == pytest.approx(0.1)
    assert learning_rate_factor(500, None, config) == 1.0
    falling = [learning_rate_factor(step, 100, config) for step in range(100, 105)]
    assert falling == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])


def test_batched_accuracy_equals_one_by_one():
    model = build_model(PICO, 12).eval()
    items = [([4, 5, 6], [[7], [8, 9]], 0), ([4], [[5, 6, 7], [8]], 1), ([6, 6], [[9], [10], [11]], 2)]
    one_by_one = sum(choice_accuracy(model, [item]) for item in items) / len(items)
    assert choice_accuracy(model, items, batch_size=2) == pytest.approx(one_by_one)


def test_predictable_marks_responses_and_the_values_of_facts():
    answer, stop = 1, 2
    assert predictable([7, 8, 9, stop, 7, 6, 5, stop], answer, stop) == [False, False, True, False] * 2
    assert predictable([7, 8, answer, 9, stop], answer, stop) == [False, False, False, True, True]
    assert predictable([7, 8], None, None) == [True, True]


def test_padding_is_on_the_right():
    assert pad_batch([[1, 2, 3], [4]], 0).tolist() == [[1, 2, 3], [4, 0, 0]]


@pytest.mark.parametrize("wrong", [{"heads": 6, "kv_heads": 4}, {"head_dim": 7}, {"width": 0}])
def test_impossible_architectures_are_refused(wrong):
    with pytest.raises(ValueError, match="validation error"):
        ArchitectureConfig(**wrong)


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"muon_lr": 0.0}, {"floor": 1.5}])
def test_impossible_training_settings_are_refused(wrong):
    with pytest.raises(ValueError, match="validation error"):
        PretrainConfig(**wrong)
