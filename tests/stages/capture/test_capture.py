"""What is captured does not depend on batching, padding, or what else is computed in the same pass."""

from typing import Literal

import pytest
import torch

from restorelcc.base.errors import StageFailed
from restorelcc.models.architectures import out_projections
from restorelcc.stages.capture.capture import Sample, capture_heads, joint_pass_error, plan, why_not_joint
from tests import pico

# Windows of 8 tokens are shorter than the longest sequences; Mistral and Qwen have them only where told so.
WINDOWS = {
    "mistral-window": ("mistral", {"sliding_window": 5}),
    "qwen2-window": ("qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    "qwen3-window": ("qwen3", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    "gemma2-eager": ("gemma2", {"attn_implementation": "eager"}),
    "neox-partial-rotary": ("gpt_neox", {"rotary_pct": 0.5}),
}
MODELS = {family: (family, {}) for family in pico.FAMILIES} | WINDOWS


def _samples() -> list[Sample]:
    """Questions of 1 to 14 tokens with two responses each; some responses begin alike, one is the other's start."""
    samples = []
    for number, (question, positive, negative) in enumerate(
        [(3, 2, 1), (12, 1, 5), (5, 4, 4), (5, 1, 1), (9, 3, 2), (1, 1, 2), (11, 5, 1), (14, 2, 6), (2, 3, 3)]
    ):
        ids = pico.tokens(1, question + positive + negative, seed=number)[0].tolist()
        start, good, bad = ids[:question], ids[question : question + positive], ids[question + positive :]
        bad = good[:1] + bad[1:] if number in (2, 4) else bad
        samples.append(Sample(start + good, question - 1, start + bad))
    shorter = samples[6].first[:-2]
    return [*samples, Sample(samples[6].first, 10, shorter)]


def _reference(model: torch.nn.Module, samples: list[Sample]) -> torch.Tensor:
    """z_LNRX by one plain forward per sequence: no batch, no padding, no mask, every position looked at."""
    seen: list[torch.Tensor] = []
    hooks = [
        projection.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0][0]))
        for projection in out_projections(model)  # type: ignore[arg-type]
    ]
    found = []
    for sample in samples:
        roles = []
        for ids in (sample.first[: sample.question_end + 1], sample.first, sample.second):  # type: ignore[operator]
            seen.clear()
            with torch.no_grad():
                model(input_ids=torch.tensor([ids]), use_cache=False)
            roles.append(torch.stack([z_TX[-1] for z_TX in seen]))
        found.append(torch.stack(roles, dim=1))
    for hook in hooks:
        hook.remove()
    return torch.stack(found, dim=1)


@pytest.mark.parametrize("name", MODELS)
def test_one_joint_pass_in_batches_equals_single_passes_under_either_padding(name: str) -> None:
    family, changes = MODELS[name]
    model, samples = pico.pico(family, **changes), _samples()
    expected = _reference(model, samples)
    sides: tuple[Literal["right"], Literal["left"]] = ("right", "left")
    for side in sides:
        for budget in (1, 64, 10_000):
            found = capture_heads(model, samples, token_budget=budget, pad=0, side=side)
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5, msg=f"{side}, {budget} tokens")
    apart = capture_heads(model, samples, token_budget=64, pad=0, joint=False)
    torch.testing.assert_close(apart, expected, atol=1e-5, rtol=1e-5)
    questions = [Sample(sample.first[: (sample.question_end or 0) + 1]) for sample in samples]
    for side in sides:
        alone = capture_heads(model, questions, token_budget=64, pad=0, side=side)
        torch.testing.assert_close(alone, expected[:, :, :1], atol=1e-5, rtol=1e-5)
    assert joint_pass_error(model, samples, pad=0) < 1e-5
    assert why_not_joint(model, samples, pad=0) is None


def test_the_model_sees_no_token_twice() -> None:
    """Q + 2R tokens a tuple, and fewer where the responses begin alike."""
    samples = _samples()
    batches = plan(samples, token_budget=20)
    assert sum(batch.tokens for batch in batches) == sum(
        len(s.first) + len(s.second or []) - len(_common(s.first, s.second or [])) for s in samples
    )
    assert sorted(number for batch in batches for number in batch.samples) == list(range(len(samples)))
    model, seen = pico.pico(), []
    hook = model.get_input_embeddings().register_forward_pre_hook(
        lambda _m, inputs: seen.append(int((inputs[0] != 0).sum()))  # without padding
    )
    capture_heads(model, samples, token_budget=1, pad=0)
    hook.remove()
    assert sum(seen) == sum(batch.tokens for batch in batches)


def test_short_samples_share_lines_and_long_ones_have_their_own() -> None:
    samples = _samples()
    lengths = [len(sample.joint[0].ids) for sample in samples]
    for budget in (1, 20, 10_000):
        batches = plan(samples, token_budget=budget)
        assert sorted(number for batch in batches for number in batch.samples) == list(range(len(samples)))
        lines = [[lengths[number] for number in line] for batch in batches for line in batch.lines]
        assert all(sum(line) <= min(budget, 64) or len(line) == 1 for line in lines)
        assert any(len(line) > 1 for line in lines) is (budget > 1)
    apart = plan(samples, token_budget=10_000, joint=False)
    assert all(len(line) == 1 for batch in apart for line in batch.lines)


def _common(one: list[int], other: list[int]) -> list[int]:
    return [
        a for number, (a, b) in enumerate(zip(one, other, strict=False)) if one[: number + 1] == other[: number + 1]
    ]


def test_a_model_that_does_not_keep_the_responses_apart_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, samples = pico.pico(), _samples()
    plain = model.base_model.forward

    def deaf(**inputs: object) -> object:
        return plain(**{name: value for name, value in inputs.items() if name != "attention_mask"})

    monkeypatch.setattr(model.base_model, "forward", deaf)
    reason = why_not_joint(model, samples, pad=0)
    assert reason is not None
    assert "differ by" in reason
    monkeypatch.setattr(model.config, "_attn_implementation_internal", "flash_attention_2")
    assert "flash_attention_2" in str(why_not_joint(model, samples, pad=0))


def test_numbers_that_are_none_are_refused() -> None:
    model = pico.pico()
    out_projections(model)[1].weight.fill_(float("inf"))
    with pytest.raises(StageFailed, match="layer 2 hold NaN"):
        capture_heads(model, _samples(), token_budget=64, pad=0)
