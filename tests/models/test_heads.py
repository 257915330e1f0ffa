"""Head arithmetic, with L != H so that a slip between the two cannot pass."""

import pytest
import torch

from restorelcc.base.errors import BadInput
from restorelcc.models.architectures import family_of, head_layout, out_projections, prunable_linears
from restorelcc.models.heads import HeadLayout, check_heads, chosen_count
from tests import pico


def test_flat_numbers_count_heads_within_layers() -> None:
    layout = HeadLayout(layers=3, heads=8, head_dim=4)
    assert layout.flat(2, 5) == 21
    assert [layout.pair(flat) for flat in (0, 7, 8, 21, 23)] == [(0, 0), (0, 7), (1, 0), (2, 5), (2, 7)]
    assert {layout.pair(flat) for flat in range(layout.total)} == {
        (layer, head) for layer in range(3) for head in range(8)
    }


def test_split_and_join_are_inverse_and_keep_heads_apart() -> None:
    layout = HeadLayout(layers=3, heads=4, head_dim=6)
    joined = torch.arange(2.0 * layout.width).reshape(2, layout.width)
    split = layout.split(joined)
    assert split.shape == (2, 4, 6)
    assert split[0, 1].tolist() == [6, 7, 8, 9, 10, 11]
    assert torch.equal(layout.join(split), joined)


@pytest.mark.parametrize(("ratio", "count"), [(0.05, 2), (0.1, 5), (0.25, 12), (1, 48)])
def test_chosen_count_rounds_half_up(ratio: float, count: int) -> None:
    assert chosen_count(ratio, HeadLayout(6, 8, 8)) == count


def test_a_ratio_that_chooses_no_head_is_refused() -> None:
    with pytest.raises(BadInput, match=r"^the share 0\.01 of 48 heads rounds to none: give at least 0\.011"):
        chosen_count(0.01, HeadLayout(6, 8, 8))
    with pytest.raises(BadInput, match=r"^recover\.head_ratio 0\.01 of 48 heads"):
        chosen_count(0.01, HeadLayout(6, 8, 8), "recover.head_ratio")


def test_a_head_is_given_once() -> None:
    """Twice, it would be trained twice, and only one of the two offsets kept."""
    check_heads([(0, 1), (1, 0)], HeadLayout(2, 2, 8))
    for heads, message in (
        ([(0, 1), (1, 0), (0, 1)], r"^heads has \(0, 1\) twice: give each head once"),
        ([(0, 2)], r"^heads has \(0, 2\), and the model has layers 0 to 1 and heads 0 to 1"),
        ([], r"^heads is empty"),
    ):
        with pytest.raises(BadInput, match=message):
            check_heads(heads, HeadLayout(2, 2, 8))


@pytest.mark.parametrize("family", pico.FAMILIES)
def test_the_layout_is_measured_at_the_out_projection(family: str) -> None:
    model = pico.pico(family)
    layout = head_layout(model)
    assert (layout.layers, layout.heads) == (pico.LAYERS, pico.HEADS)
    assert layout.head_dim == out_projections(model)[0].in_features // model.config.num_attention_heads
    assert layout.width == out_projections(model)[0].in_features


@pytest.mark.parametrize("family", pico.FAMILIES)
def test_the_table_names_every_linear_of_a_block(family: str) -> None:
    model = pico.pico(family)
    listed = {id(linear) for _, _, linear in prunable_linears(model)}
    blocks = model.get_submodule(family_of(model).blocks)
    found = {id(module) for module in blocks.modules() if isinstance(module, torch.nn.Linear)}
    assert listed == found


def test_an_unknown_family_is_refused_with_the_known_ones() -> None:
    model = pico.pico("llama")
    model.config.model_type = "rwkv"
    with pytest.raises(BadInput, match=r"rwkv.*llama, mistral.*inspect --family DIR`.*add a row"):
        head_layout(model)
