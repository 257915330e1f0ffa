"""The generation check: a model that repeats itself is flagged, a healthy one is not; divergence by hand."""

from pathlib import Path

import pytest
import torch

from restorelcc.base.errors import BadInput
from restorelcc.stages.evaluate import GenerationConfig
from restorelcc.stages.evaluate.generation import (
    agreement,
    completion,
    continuations,
    degenerate,
    describe,
    distinct,
    divergence,
    fixed_prompts,
    one_token_share,
    predictions,
    repetition,
)
from restorelcc.stages.evaluate.reference import dense_reference, read_reference, write_reference
from tests import pico

CONFIG = GenerationConfig(prompts=4, prompt_tokens=3, new_tokens=24, heldout_tokens=40)
TEXTS = [" ".join(f"w{3 + (11 * n + 5 * m) % 60}" for n in range(9)) for m in range(12)]


def _prompts():
    return fixed_prompts(pico.word_tokenizer(), TEXTS, CONFIG, 64)


def test_a_text_shorter_than_its_room_is_one_that_the_model_ended() -> None:
    found = completion([[5, 6], [], [7, 8, 9, 10], [1, 2, 3]], room=4)
    assert found == {"length": 9 / 4, "finished": 3 / 4}


def test_repetition_and_distinct_by_hand() -> None:
    assert repetition([[1, 2, 3, 4, 5, 6]]) == 0
    assert repetition([[7] * 9]) == pytest.approx(1 - 1 / 6)
    assert repetition([[1, 2, 3]]) == 0, "too short to repeat"
    assert distinct([[1, 2, 1], [2, 1]], 1) == pytest.approx(2 / 5)
    assert distinct([[1, 2, 1], [2, 1]], 2) == pytest.approx(2 / 3)
    assert one_token_share([[4] * 8, [4] * 7, list(range(9))]) == pytest.approx(1 / 3)
    assert agreement([[1, 2, 9], [5]], [[1, 2, 3], [5]]) == pytest.approx((2 / 3 + 1) / 2)


def test_prompts_are_fixed_of_one_length_and_inside_their_texts() -> None:
    prompts, again = _prompts(), _prompts()
    assert torch.equal(prompts.beginnings_PQ, again.beginnings_PQ)
    assert prompts.beginnings_PQ.shape == (4, 3)
    assert sum(map(len, prompts.heldout)) == CONFIG.heldout_tokens
    short = fixed_prompts(pico.word_tokenizer(), ["w5 w6", "w7 w8"], CONFIG, 64)
    assert short.beginnings_PQ.shape == (2, 1), "half of a short text"
    with pytest.raises(BadInput, match="longer texts"):
        fixed_prompts(pico.word_tokenizer(), ["w5"], CONFIG, 64)


def _written(model) -> dict:
    return continuations(model, _prompts().beginnings_PQ, CONFIG, context=64, seed=0)


def test_continuations_are_greedy_and_reproducible() -> None:
    model = pico.pico()
    written = _written(model)
    assert written == _written(model)
    ids = _prompts().beginnings_PQ[0].tolist()
    for token in written["greedy"][0]:
        assert token == int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        ids.append(token)


def test_what_a_checkpoint_recommends_for_generation_is_not_what_is_measured() -> None:
    """A penalty for repetition would hide that a model repeats itself."""
    model = pico.pico()
    written, advised = _written(model), model.generation_config
    advised.repetition_penalty, advised.no_repeat_ngram_size, advised.min_p = 5.0, 1, 0.5
    assert _written(model) == written
    assert model.generation_config is advised


def _stuck(margin: float):
    """A model that gives one token `margin` more than any other, always."""
    model = pico.pico()
    model.lm_head.weight.zero_()
    model.model.norm.weight.zero_()
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(pico.VOCABULARY), requires_grad=False)
    model.lm_head.bias[7] = margin
    return model


@pytest.mark.parametrize("margin", [20.0, 0.01])
def test_a_model_that_repeats_one_token_is_flagged(margin: float) -> None:
    """Even when sampled text hides it."""
    reasons = degenerate(describe(_written(_stuck(margin))), None, CONFIG.repetition_limit)
    assert any("one token over and over" in reason for reason in reasons)
    assert any("sampled text repeats" in reason for reason in reasons) == (margin > 1)


def test_a_model_that_varies_is_not_flagged() -> None:
    healthy = {"greedy": [list(range(n, n + 24)) for n in range(4)], "sampled": [list(range(24))] * 4}
    assert degenerate(describe(healthy), None, 0.5) == []


def test_greedy_loops_count_only_where_the_dense_model_has_none() -> None:
    looping = {"greedy": [[1, 2, 3, 4, 5] * 5] * 4, "sampled": [list(range(24))] * 4}
    fine = describe({"greedy": [list(range(24))] * 4})
    assert degenerate(describe(looping), describe(looping), 0.5) == []
    assert "the dense model's 0%" in degenerate(describe(looping), fine, 0.5)[0]


def test_silence_is_flagged() -> None:
    silent = {"greedy": [[], [], [], [3, 4]], "sampled": [list(range(24))] * 4}
    assert degenerate(describe(silent), None, 0.5) == ["75% of the greedy continuations are empty"]


def test_divergence_by_hand_over_the_whole_vocabulary_and_over_its_top() -> None:
    p, q = torch.tensor([[0.7, 0.2, 0.06, 0.04]]), torch.tensor([[0.1, 0.6, 0.2, 0.1]])
    order = torch.tensor([[0, 1, 2, 3]])
    kl, same = divergence(order, p.log(), q.log())
    assert kl == pytest.approx(float((p * (p / q).log()).sum()), rel=1e-5)
    assert same == 0
    bucketed = 0.7 * torch.log(torch.tensor(7.0)) + 0.3 * torch.log(torch.tensor(0.3 / 0.9))
    assert divergence(order[:, :1], p[:, :1].log(), q.log())[0] == pytest.approx(float(bucketed), rel=1e-5)
    assert divergence(order[:, :1], p[:, :1].log(), q.log())[0] <= kl
    assert divergence(order, p.log(), p.log()) == (0.0, 1.0)


def test_the_reference_comes_back_as_it_was_written(tmp_path: Path) -> None:
    model, prompts = pico.pico(), _prompts()
    written = _written(model)
    reference = dense_reference(prompts, predictions(model, prompts.heldout), written["greedy"])
    write_reference(tmp_path / "r.safetensors", reference, "digest")
    found = read_reference(tmp_path / "r.safetensors", pico.VOCABULARY)
    assert found.prompts.heldout == prompts.heldout
    assert found.greedy == written["greedy"]
    log_q = torch.cat(predictions(model, found.prompts.heldout))
    assert divergence(found.top_tokens_TK, found.top_log_p_TK, log_q) == (0.0, 1.0)
    other = torch.cat(predictions(pico.pico(seed=1), found.prompts.heldout))
    assert divergence(found.top_tokens_TK, found.top_log_p_TK, other)[0] > 1e-3
    with pytest.raises(BadInput, match="for a model with more tokens than the 8 of this one: run evaluate_dense again"):
        read_reference(tmp_path / "r.safetensors", 8)
