"""Hooks: counted, and gone whatever happens."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from restorelcc.models.architectures import blocks_of
from restorelcc.models.hooks import added_to_inputs, hooked, logits_at, observed
from restorelcc.models.walk import walk_blocks
from tests import pico
from tests.dag import PACKAGE


def test_every_module_has_its_hook_inside_and_none_outside() -> None:
    linears = {"a": nn.Linear(3, 3, bias=False), "b": nn.Linear(3, 3, bias=False)}
    seen: list[tuple[str, torch.Tensor]] = []
    x = torch.ones(1, 3)
    with observed(linears.items(), lambda key, found: seen.append((key, found)), expected=2):
        linears["b"](linears["a"](x))
    linears["a"](x)
    assert [key for key, _ in seen] == ["a", "b"]
    assert seen[0][1] is x
    assert torch.equal(seen[1][1], linears["a"](x))
    with added_to_inputs([("a", linears["a"])], lambda _key: x.double(), expected=1):
        torch.testing.assert_close(linears["a"](x), linears["a"].weight.sum(1)[None] * 2)


def test_no_other_file_registers_a_hook() -> None:
    found = [path.name for path in PACKAGE.rglob("*.py") if "register_forward" in path.read_text(encoding="utf-8")]
    assert found == ["hooks.py"]


def test_another_number_of_modules_than_expected_is_refused_and_nothing_stays() -> None:
    linear = nn.Linear(3, 3)
    with pytest.raises(RuntimeError, match="1 hooks where 2 are expected"), observed([(0, linear)], print, expected=2):
        pass
    assert not linear._forward_pre_hooks


@pytest.mark.parametrize("after", [False, True])
def test_hooks_go_when_the_block_raises(after: bool) -> None:
    linear = nn.Linear(3, 3)
    with pytest.raises(KeyError), hooked([(0, linear)], lambda _key: print, expected=1, after=after):
        raise KeyError
    assert not linear._forward_pre_hooks
    assert not linear._forward_hooks


def test_a_walk_gives_every_block_its_own_forward_back() -> None:
    model = pico.pico("llama")
    blocks = blocks_of(model)
    own = blocks[0].forward
    blocks[0].forward = wrapped = lambda *args, **keywords: own(*args, **keywords)  # as accelerate does
    for step in walk_blocks(model, [pico.tokens(1, 4)]):
        assert step.output(0).shape[:2] == (1, 4)
    assert blocks[0].__dict__["forward"] is wrapped
    assert "forward" not in blocks[1].__dict__


@pytest.mark.parametrize("family", pico.FAMILIES)
def test_logits_at_some_places_are_the_models_own_there(family: str) -> None:
    model = pico.pico(family)
    ids = torch.randint(3, pico.VOCABULARY, (3, 7), generator=torch.Generator().manual_seed(0))
    chosen = torch.rand(ids.shape, generator=torch.Generator().manual_seed(1)) < 0.3
    with torch.no_grad():
        torch.testing.assert_close(logits_at(model, chosen, input_ids=ids), model(ids).logits[chosen])
    assert not model.get_output_embeddings()._forward_pre_hooks
