"""What is captured does not depend on batching, padding or the response behind a question."""

import pytest
import torch

from restorelcc.capture.capture import Reading, capture_heads
from restorelcc.core.architectures import out_projections
from tests import pico


def _readings() -> list[Reading]:
    """Ten sequences of different lengths, read at an inner token and at the last."""
    sequences = [pico.tokens(1, length, seed=length)[0].tolist() for length in (3, 12, 5, 5, 9, 4, 11, 7, 2, 8)]
    return [Reading(ids, (len(ids) // 2, len(ids) - 1)) for ids in sequences]


@pytest.mark.parametrize("family", pico.FAMILIES)
def test_batched_equals_one_by_one(family: str) -> None:
    model, readings = pico.pico(family), _readings()
    batched = capture_heads(model, readings, token_budget=10_000, pad=0, title="batched")
    single = capture_heads(model, readings, token_budget=1, pad=0, title="one by one")
    for slot in range(2):
        for layer in range(pico.LAYERS):
            torch.testing.assert_close(batched[slot][layer], single[slot][layer], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", pico.FAMILIES)
def test_the_joint_pass_reads_the_question_like_a_pass_of_its_own(family: str) -> None:
    model, readings = pico.pico(family), _readings()
    joint = capture_heads(model, readings, token_budget=64, pad=0, title="joint")[0]
    alone = [Reading(r.ids[: r.positions[0] + 1], (r.positions[0],)) for r in readings]
    separate = capture_heads(model, alone, token_budget=64, pad=0, title="alone")[0]
    for layer in range(pico.LAYERS):
        torch.testing.assert_close(joint[layer], separate[layer], atol=1e-5, rtol=1e-5)


def test_what_is_read_is_the_out_projections_input_at_that_token() -> None:
    model = pico.pico()
    ids = pico.tokens(1, 6)[0].tolist()
    seen: list[torch.Tensor] = []
    handle = out_projections(model)[1].register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model(input_ids=torch.tensor([ids]))
    handle.remove()
    z = capture_heads(model, [Reading(ids, (2, 5))], token_budget=64, pad=0, title="one")
    assert torch.equal(z[0][1][0], seen[0][0, 2])
    assert torch.equal(z[1][1][0], seen[0][0, 5])
    assert not torch.equal(z[0][1][0], z[1][1][0])
