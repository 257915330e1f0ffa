"""Continuations of many prompts at once: the model's own, in every order and beside any other prompt."""

from __future__ import annotations

import pytest
import torch

from restorelcc.models.continuation import Sampling, batches_of, continued, until_end
from tests import pico

PROMPTS = [[5, 6, 7], [9], [11, 12, 13, 14, 15, 16, 17], [3, 4]]
GREEDY = Sampling(new_tokens=6, temperature=0, seed=1)


@pytest.mark.parametrize("family", pico.FAMILIES)
def test_a_prompt_is_continued_as_if_it_were_alone(family: str) -> None:
    model = pico.pico(family)
    together = continued(model, PROMPTS, GREEDY)
    assert together == [continued(model, [prompt], GREEDY)[0] for prompt in PROMPTS]
    tokens = torch.tensor([PROMPTS[2]])
    for _ in range(GREEDY.new_tokens):  # the likeliest token each time
        tokens = torch.cat([tokens, model(input_ids=tokens).logits[:, -1:].argmax(-1)], dim=1)
    assert together[2].ids == until_end(tokens[0, len(PROMPTS[2]) :].tolist(), [2])


def test_a_text_ends_where_the_model_ends_it_and_says_so() -> None:
    model = pico.pico()
    model.generation_config.eos_token_id = None
    free = continued(model, PROMPTS, GREEDY)
    assert not any(one.finished for one in free) and all(len(one.ids) == 6 for one in free)
    model.generation_config.eos_token_id = [2, free[0].ids[3]]
    ended = continued(model, PROMPTS, GREEDY)[0]
    assert ended.finished and ended.ids == until_end(free[0].ids, [free[0].ids[3]])


def test_the_seed_decides_what_is_sampled() -> None:
    model = pico.pico()
    first, again, other = (
        continued(model, PROMPTS, Sampling(new_tokens=12, temperature=1.0, seed=seed)) for seed in (1, 1, 2)
    )
    assert first == again != other


def test_batches_hold_prompts_of_similar_length_within_a_budget() -> None:
    sampling = Sampling(new_tokens=96, temperature=0, seed=0)
    prompts = [[1] * length for length in (10, 400, 20, 30) for _ in range(20)]
    batches = batches_of(prompts, sampling, torch.device("cpu"))
    assert sorted(number for batch in batches for number in batch) == list(range(80))
    assert all(len(batch) * max(len(prompts[number]) + 96 for number in batch) <= 8192 for batch in batches)
