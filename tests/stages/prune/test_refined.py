"""Refined pruning against brute force and numpy: swaps, least squares under a mask, centred statistics, the bias."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from restorelcc.base.cell import Cell
from restorelcc.base.errors import BadInput, StageFailed
from restorelcc.base.prunings import Sparsity, parse_pruning
from restorelcc.models.architectures import prunable_linears
from restorelcc.models.biases import biased_linears, give_zero_biases
from restorelcc.models.checkpoints import load_model
from restorelcc.models.tensor_files import stored_tensors
from restorelcc.sparsity.patterns import removal_mask
from restorelcc.stages.evaluate.details import pruning_details
from restorelcc.stages.prune import ExternalCheckpoint, PruneConfig, RefinedConfig
from restorelcc.stages.prune.inputs import observed_inputs
from restorelcc.stages.prune.prune import prune_model, refine, wanda_score
from restorelcc.stages.prune.refined import constant_part, least_squares, swapped
from restorelcc.stages.prune.sparsegpt import damped
from restorelcc.stages.report.results import Group
from restorelcc.stages.report.sentences import how_pruned
from tests import pico
from tests.real import real_folder, real_texts
from tests.stages.prune.project import CONFIG, project, prune
from tests.zeros import holds_pattern, zeros_per_row

HALF, TWO_OF_FOUR = Sparsity(0.5), Sparsity(0.5, 2, 4)
REFINED = CONFIG.model_copy(update={"refined": RefinedConfig()})
FEW = REFINED.model_copy(update={"samples": 8})


def _inputs(width: int, tokens: int = 300, seed: int = 0, mean: float = 0.0) -> torch.Tensor:
    """Correlated inputs [N, I]."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator)
    return torch.randn(tokens, width, generator=generator) @ mixing + mean


def _row_losses(error_OI: torch.Tensor, gram_II: torch.Tensor) -> torch.Tensor:
    """e G e^T for every row e of E, [O]: its summed squared output error, by G = sum of x x^T."""
    return ((error_OI @ gram_II) * error_OI).sum(dim=1)


def _weight(rows: int, width: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def _single_swaps(removed: torch.Tensor, group: int | None) -> list[torch.Tensor]:
    """Every mask of a row that one exchange makes."""
    found = []
    for out, back in itertools.product(torch.nonzero(~removed)[:, 0], torch.nonzero(removed)[:, 0]):
        if group is None or out // group == back // group:
            other = removed.clone()
            other[out], other[back] = True, False
            found.append(other)
    return found


@pytest.mark.parametrize("sparsity", [HALF, TWO_OF_FOUR, Sparsity(0.25, 3, 4)], ids=str)
def test_swaps_lower_every_rows_loss_and_end_where_no_single_swap_helps(sparsity: Sparsity) -> None:
    x, weight = _inputs(8), _weight(40, 8)
    gram = x.T @ x
    start = removal_mask(wanda_score(weight, gram.diagonal()), sparsity)
    end = swapped(weight, start, gram, sparsity, limit=100)
    before, after = _row_losses(weight * start, gram), _row_losses(weight * end, gram)
    assert (after <= before).all()
    assert (after < 0.9 * before).any()
    assert torch.equal(end.sum(dim=1), start.sum(dim=1))
    if sparsity.is_pattern:
        assert torch.equal(end.reshape(-1, 4).sum(dim=1), start.reshape(-1, 4).sum(dim=1))
    for row, mask, loss in zip(weight, end, after, strict=True):
        others = torch.stack([row * other for other in _single_swaps(mask, sparsity.group)])
        assert (_row_losses(others, gram) >= loss * (1 - 1e-4)).all()


def test_each_swap_more_lowers_the_loss_further_also_in_wide_rows() -> None:
    x, weight = _inputs(96), _weight(12, 96)
    gram = x.T @ x
    start = removal_mask(wanda_score(weight, gram.diagonal()), HALF)
    losses = [_row_losses(weight * swapped(weight, start, gram, HALF, limit), gram) for limit in (0, 1, 2, 5, 50)]
    for fewer, more in itertools.pairwise(losses):
        assert (more <= fewer).all()
        assert more.sum() < fewer.sum()


@pytest.mark.parametrize("width", [8, 40, 160])  # solved exactly, and by conjugate gradients
@pytest.mark.parametrize("sparsity", [HALF, TWO_OF_FOUR], ids=str)
def test_least_squares_is_numpys_restricted_to_the_mask(width: int, sparsity: Sparsity) -> None:
    x, weight = _inputs(width, tokens=8 * width).double(), _weight(6, width).double()
    removed = removal_mask(weight.abs().float(), sparsity)
    solved = least_squares(weight.float(), removed, (x.T @ x).float())
    for row, mask, found in zip(weight, removed, solved, strict=True):
        kept = ~mask
        expected = np.linalg.lstsq(x[:, kept].numpy(), (x @ row).numpy(), rcond=None)[0]
        scale = np.abs(expected).max()
        np.testing.assert_allclose(found[kept].double().numpy(), expected, atol=2e-3 * scale)
        assert (found[mask] == 0).all()


def test_fewer_samples_than_inputs_leave_the_weights_near_their_values() -> None:
    x, weight = _inputs(64, tokens=20), _weight(5, 64)
    hessian = damped(x.T @ x, 0.01)
    removed = removal_mask(weight.abs(), HALF)
    solved = least_squares(weight, removed, hessian)
    assert torch.isfinite(solved).all()
    before, after = _row_losses(weight * removed, hessian), _row_losses(weight - solved, hessian)
    assert (after < before).all()
    assert solved.abs().max() < 10 * weight.abs().max()


def test_a_hessian_that_is_not_positive_definite_is_reported() -> None:
    bad = torch.tensor([[1.0, 2.0, 0, 0], [2.0, 1.0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    removed = torch.tensor([[False, False, True, True]])
    with pytest.raises(StageFailed, match=r"raise prune\.damping"):
        least_squares(torch.ones(1, 4), removed, bad)


def test_the_bias_is_the_lost_weight_times_the_mean() -> None:
    x, weight = _inputs(6, mean=3.0), _weight(4, 6)
    pruned = weight * (weight.abs() > 0.5)
    bias = constant_part(weight, pruned, x.double().mean(dim=0))
    torch.testing.assert_close(bias, (x.double() @ (weight - pruned).double().T).mean(dim=0))
    left = x @ weight.T - (x @ pruned.T + bias.float())
    assert left.mean(dim=0).abs().max() < 1e-4


def test_observed_moments_are_those_of_the_inputs_also_far_from_zero() -> None:
    linear = torch.nn.Linear(5, 3)
    batches = [_inputs(5, tokens=count, seed=count, mean=1000.0) for count in (7, 50, 13)]
    with observed_inputs({"a": linear}, gram_of=["a"], means=True) as inputs:
        for batch in batches:
            linear(batch)
    x = torch.cat(batches).double()
    mean, centred = x.mean(dim=0), x - x.mean(dim=0)
    torch.testing.assert_close(inputs.mean_I("a"), mean, rtol=1e-7, atol=0)
    torch.testing.assert_close(inputs.centred_gram_II("a").double(), centred.T @ centred, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(inputs.gram_II("a").double(), x.T @ x, rtol=1e-6, atol=0)


def test_moments_do_not_depend_on_how_many_rows_are_added_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    linear = torch.nn.Linear(5, 3)
    with observed_inputs({"a": linear}, gram_of=["a"], means=True) as inputs:
        linear(_inputs(5, mean=10.0))
    whole = inputs.gram_II("a"), inputs.centred_gram_II("a")
    monkeypatch.setattr("restorelcc.stages.prune.inputs._WIDE_AT_ONCE", 10)  # two rows
    torch.testing.assert_close((inputs.gram_II("a"), inputs.centred_gram_II("a")), whole, rtol=1e-6, atol=1e-6)


def test_centred_is_plain_where_the_mean_is_zero() -> None:
    x = _inputs(16)
    x = torch.cat([x, -x])
    linear = torch.nn.Linear(16, 3)
    with observed_inputs({"a": linear}, gram_of=["a"], means=True) as inputs:
        linear(x)
    weight = _weight(20, 16)
    one, other = (refine(weight, g, HALF, REFINED) for g in (inputs.gram_II("a"), inputs.centred_gram_II("a")))
    assert torch.equal(one == 0, other == 0)
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("start", ["wanda", "sparsegpt"])
@pytest.mark.parametrize("sparsity", [HALF, TWO_OF_FOUR], ids=str)
def test_dead_and_constant_inputs(start: str, sparsity: Sparsity) -> None:
    x = _inputs(16)
    x[:, 3] = 0  # says nothing
    x[:, 5] = 7  # says nothing about its mean
    linear = torch.nn.Linear(16, 3)
    with observed_inputs({"a": linear}, gram_of=["a"], means=True) as inputs:
        linear(x)
    weight, config = _weight(20, 16), CONFIG.model_copy(update={"refined": RefinedConfig(start=start)})
    for gram in (inputs.gram_II("a"), inputs.centred_gram_II("a")):
        pruned = refine(weight, gram, sparsity, config)
        assert torch.isfinite(pruned).all()
        assert ((pruned == 0).sum(dim=1) == 8).all()
    # About the mean both cost nothing, so both go in every row (they share no group of four), whatever their weights;
    # the bias takes the constant one's part up. Only a swap may bring one back, where what goes instead is worth it.
    unswapped = CONFIG.model_copy(update={"refined": RefinedConfig(start=start, swaps=0)})
    assert (refine(weight, inputs.centred_gram_II("a"), sparsity, unswapped)[:, [3, 5]] == 0).all()


@pytest.mark.parametrize("family", pico.FAMILIES)
@pytest.mark.parametrize("pruning", ["refined-0.5", "refined-2of4"])
def test_every_family_keeps_counts_and_fills_biases(family: str, pruning: str) -> None:
    model = pico.pico(family)
    give_zero_biases(model)
    before = {name: linear.bias for _, name, linear in prunable_linears(model)}
    before = {name: None if bias is None else bias.clone() for name, bias in before.items()}
    prune_model(model, parse_pruning(pruning), [pico.tokens()], REFINED)
    for _, name, linear in prunable_linears(model):
        assert (zeros_per_row(linear.weight) == linear.in_features // 2).all(), name
        assert pruning == "refined-0.5" or holds_pattern(linear.weight, 2, 4), name
        old = before[name]
        assert (linear.bias is None) == (old is None), name
        assert old is None or not torch.equal(linear.bias, old), name


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "opt", "phi"])
def test_a_written_checkpoint_reloads_with_its_biases_and_is_the_same_again(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("restorelcc.stages.prune.stage.load_tokenizer", lambda _folder, **_how: pico.word_tokenizer())
    layout = project(tmp_path, pico.pico(family, num_hidden_layers=2))
    folder = prune(layout, "refined-0.5", FEW)
    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    dense = load_model(layout.dense(Cell("pico")), torch.float32, torch.device("cpu"))
    able = biased_linears(model.config)
    for _, name, linear in prunable_linears(model):
        assert (zeros_per_row(linear.weight) == linear.in_features // 2).all(), name
        assert (linear.bias is not None) == name.endswith(tuple(f".{path}" for path in able)), name
        own = dense.get_submodule(name).bias
        assert linear.bias is None or not torch.equal(
            linear.bias, torch.zeros_like(linear.bias) if own is None else own
        )
    if family in ("llama", "mistral", "qwen2"):
        assert model.config.model_type == "llama" and len(able) == 7
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert {path.name: path.read_bytes() for path in prune(layout, "refined-0.5", FEW).iterdir()} == before


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3"])  # its own class with keys turned on, or Llama's
def test_the_config_says_what_the_files_hold(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint of bfloat16 stays one where pruning computes in float32; the rope base is there by either key."""
    monkeypatch.setattr("restorelcc.stages.prune.stage.load_tokenizer", lambda _folder, **_how: pico.word_tokenizer())
    layout = project(tmp_path, pico.pico(family, num_hidden_layers=2).to(torch.bfloat16))
    folder = prune(layout, "refined-0.5", FEW)
    assert {tensor.dtype for tensor in stored_tensors(folder).values()} == {torch.bfloat16}
    config = json.loads((folder / "config.json").read_text())
    assert config["dtype"] == "bfloat16" and config["attention_bias"] is True
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
    own = json.loads((layout.dense(Cell("pico")) / "config.json").read_text())
    assert family == "mistral" or set(own) - set(config) == set(), "nothing of the model's own is lost"


def test_later_blocks_and_the_error_see_the_bias_that_is_stored(tmp_path: Path) -> None:
    """Of a checkpoint of bfloat16 the bias is rounded; the error of the first linear counts that."""
    layout = project(tmp_path, pico.pico(num_hidden_layers=2).to(torch.bfloat16))
    folder = prune(layout, "refined-0.5", FEW)
    external = {"pico": {"mine": ExternalCheckpoint(source=str(folder))}}
    other = prune(layout, "external-mine", PruneConfig.model_validate(FEW.model_dump() | {"external": external}))
    ours, theirs = (json.loads((each / "sparsity.json").read_text())["tensors"] for each in (folder, other))
    for name, found in ours.items():
        if any(path in name for path in ("q_proj", "k_proj", "v_proj")):  # in either run behind blocks as they are read
            assert theirs[name]["error"] == pytest.approx(found["error"], rel=1e-4), name


def test_changed_biases_are_counted_where_a_model_is_loaded_whole(tmp_path: Path) -> None:
    layout = project(tmp_path, pico.pico("gpt_neox", num_hidden_layers=2))  # its head has an older name in checkpoints
    counts = {}
    for pruning in ("refined-0.5", "wanda-0.5"):
        folder = prune(layout, pruning, FEW)
        external = {"pico": {"mine": ExternalCheckpoint(source=str(folder))}}
        other = prune(layout, "external-mine", PruneConfig.model_validate(FEW.model_dump() | {"external": external}))
        counts[pruning] = [json.loads((each / "sparsity.json").read_text()) for each in (folder, other)]
    assert [each["biases_changed"] for each in counts["refined-0.5"]] == [8, 8]
    assert not any("biases_changed" in each for each in counts["wanda-0.5"])


def test_a_bias_that_nothing_was_added_to_does_not_count_as_changed() -> None:
    """Of 32 inputs one goes, of 24 none."""
    model = pico.pico("opt")
    results = prune_model(model, parse_pruning("refined-0.035"), [pico.tokens()], REFINED)
    assert [bool(result.zeros) for result in results] == [result.bias_changed for result in results]
    assert {result.bias_changed for result in results} == {True, False}


def test_zero_biases_change_no_logit(tmp_path: Path) -> None:
    """Nothing removed: what is written as another class computes what the dense model does."""
    from restorelcc.models.biases import write_with_zero_biases

    tokens = torch.arange(3, 19)[None]
    for family in (
        *pico.FAMILIES,
        "deepseek_v2",
        "granitemoehybrid",
    ):  # the last two have not every linear in each layer
        dense = pico.pico(family)
        dense.save_pretrained(tmp_path / family)
        write_with_zero_biases(tmp_path / family, dense.config, tmp_path / f"{family}-biased")
        written = AutoModelForCausalLM.from_pretrained(tmp_path / f"{family}-biased")
        with torch.no_grad():
            torch.testing.assert_close(written(tokens).logits, dense(tokens).logits, rtol=1e-5, atol=1e-6, msg=family)


def test_parts_can_be_left_out(tmp_path: Path) -> None:
    layout = project(tmp_path, pico.pico(num_hidden_layers=2))
    errors = {}
    variants: dict[str, dict] = {
        "plain": {"swaps": 0, "update": False, "bias": False},
        "bias": {"swaps": 0, "update": False},
        "swaps": {"update": False, "bias": False},
        "update": {"swaps": 0, "bias": False},
        "all": {},
        "sparsegpt": {"start": "sparsegpt"},
    }
    for name, parts in variants.items():
        config = FEW.model_copy(update={"refined": RefinedConfig(**parts)})
        folder = prune(layout, "refined-0.5", config)
        report = json.loads((folder / "sparsity.json").read_text())
        errors[name] = sum(layer["error"] for layer in report["layers"])
        assert report["refined"] == RefinedConfig(**parts).model_dump()
        assert (json.loads((folder / "config.json").read_text())["attention_bias"]) == parts.get("bias", True)
    wanda = prune(layout, "wanda-0.5", FEW)
    plain = prune(layout, "refined-0.5", FEW.model_copy(update={"refined": RefinedConfig(**variants["plain"])}))
    name = "model.safetensors"
    assert (plain / name).read_bytes() == (wanda / name).read_bytes()  # its start is Wanda and nothing else
    for name in ("bias", "swaps", "update"):
        assert errors[name] < errors["plain"], errors
    assert errors["all"] < min(errors["swaps"], errors["update"]), errors


@pytest.mark.parametrize(
    ("family", "parts", "told"),
    [
        (
            "opt",
            {},
            "by least squares and biases take up the constant part of what is lost, all of it by statistics about",
        ),
        ("opt", {"centred": False}, "by least squares and biases take up the constant part of what is lost."),
        (
            "opt",
            {"bias": False},
            "while that lowers a layer's error and the surviving weights are fitted to it by least",
        ),
        ("opt", {"start": "sparsegpt", "swaps": 0, "update": False, "bias": False}, "the mask starts from SparseGPT."),
        ("qwen3", {}, "biases on 8 of 14 linears take up the constant part of what is lost there, those linears by"),
        ("exaone4", {}, "the surviving weights are fitted to it by least squares; no bias was changed."),
    ],
)
def test_the_report_says_what_was_done_to_this_model(family: str, parts: dict, told: str, tmp_path: Path) -> None:
    changes = {"layer_types": ["full_attention"] * 2} if family == "exaone4" else {}
    layout = project(tmp_path, pico.pico(family, num_hidden_layers=2, **changes))
    config = FEW.model_copy(update={"refined": RefinedConfig(**parts)})
    details = pruning_details(prune(layout, "refined-0.5", config))
    (sentence,) = how_pruned(Group("pico", "refined-0.5", [{"details": details}]))
    assert told in sentence


def test_in_memory_equals_the_stage(tmp_path: Path) -> None:
    import restorelcc
    from restorelcc.base.tables import read_texts

    layout = project(tmp_path, pico.pico())
    folder = prune(layout, "refined-0.5", REFINED)
    model = load_model(layout.dense(Cell("pico")), torch.float32, torch.device("cpu"))
    texts = read_texts(layout.corpus(Cell("pico")) / "calibration.parquet")
    settings = {"sequence_length": 24, "token_budget": 96}
    restorelcc.prune(model, "refined-0.5", tokenizer=pico.word_tokenizer(), texts=texts, **settings)
    written = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(written[name], value), name


@pytest.mark.parametrize(
    ("family", "pruning", "texts", "settings", "message"),
    [
        ("llama", "refined-0.5", [], {}, "no sequence of two tokens"),
        ("llama", "refined-3of7", ["w3 w4 w5"], {}, "a multiple of 7"),
        ("llama", "refined-2of4", ["w3 w4 w5"], {"allocation": "owl"}, r"prune\.allocation is owl"),
        ("qwen3_moe", "refined-0.5", ["w3 w4 w5"], {}, "cannot prune 'qwen3_moe' models"),
        ("llama", "external-mine", ["w3 w4 w5"], {}, "a checkpoint that is pruned already"),
    ],
)
def test_a_refused_model_gets_no_biases(
    family: str, pruning: str, texts: list[str], settings: dict, message: str
) -> None:
    import restorelcc

    model = pico.pico(family)
    config, names = model.config.to_dict(), list(model.state_dict())
    with pytest.raises(BadInput, match=message):
        restorelcc.prune(model, pruning, tokenizer=pico.word_tokenizer(), texts=texts, **settings)
    assert model.config.to_dict() == config and list(model.state_dict()) == names


def test_on_real_weights_it_wins_back_what_the_layers_promise() -> None:
    """Share of Wanda's lost log-likelihood on stories260K, held-out stories, nothing trained.

    The calibration here is small: with 128 stories it is 46 and 43 %."""
    from restorelcc.models.checkpoints import load_tokenizer
    from restorelcc.stages.prune.calibration import calibration_batches

    folder = real_folder() / "models" / "stories260K"
    tokenizer, cpu = load_tokenizer(folder), torch.device("cpu")
    config = PruneConfig(sequence_length=256)
    batches = calibration_batches(tokenizer, real_texts("calibration", 24), config, cpu)
    heldout = [torch.tensor([tokenizer(text)["input_ids"][:512]]) for text in real_texts("heldout", 16)]

    def loss(pruning: str | None) -> float:
        model = load_model(folder, torch.float32, cpu)
        if pruning is not None:
            if pruning.startswith("refined"):
                give_zero_biases(model)
            prune_model(model, parse_pruning(pruning), batches, config)
        with torch.no_grad():
            losses = [float(model(ids, labels=ids).loss) * (ids.shape[1] - 1) for ids in heldout]
        return sum(losses) / sum(ids.shape[1] - 1 for ids in heldout)

    dense = loss(None)
    for pattern, least in (("0.5", 0.40), ("2of4", 0.33)):
        wanda, refined = loss(f"wanda-{pattern}"), loss(f"refined-{pattern}")
        assert (wanda - refined) / (wanda - dense) > least
