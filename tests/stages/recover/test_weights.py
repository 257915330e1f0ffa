"""Methods that change weights: their formulas, and that no zero is filled where that is promised."""

from __future__ import annotations

import copy
import dataclasses
import shutil
import weakref
from itertools import islice
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from restorelcc.base.cell import Cell
from restorelcc.base.documents import read_json
from restorelcc.base.errors import BadInput
from restorelcc.base.layout import Layout
from restorelcc.base.manifest import write_manifest
from restorelcc.base.prunings import parse_pruning
from restorelcc.base.tables import TEXT_SCORES, read_table, read_texts
from restorelcc.compensation.adapter import read_adapter
from restorelcc.compensation.file import read_compensation
from restorelcc.compensation.hooks import compensated
from restorelcc.models.architectures import (
    blocks_of,
    family_of,
    head_layout,
    linears_of,
    out_projections,
    prunable_linears,
)
from restorelcc.models.checkpoints import load_entry, load_model
from restorelcc.models.heads import HeadLayout
from restorelcc.models.hooks import hooked
from restorelcc.models.tensor_files import stored_tensors
from restorelcc.models.walk import first_output, walk_blocks
from restorelcc.stages.evaluate.stage import run_recovered
from restorelcc.stages.prune.prune import prune_model
from restorelcc.stages.recover import RecoverConfig
from restorelcc.stages.recover.adapters import eigenspace, eigenspace_factors, still_lost, with_adapters
from restorelcc.stages.recover.lofit import strongest_heads
from restorelcc.stages.recover.reconstruct import _block_task
from restorelcc.stages.recover.stage import run
from restorelcc.training.attached import site_linears
from restorelcc.training.attached_weights import HeadScales, MaskedChange, MaskedLora, apply_change, attached_weights
from restorelcc.training.closed_form import input_moments
from restorelcc.training.config import SITES
from restorelcc.training.pairs import read_pairs
from tests import pico
from tests.recovery_project import CELL, ENTRY, EVALUATE, evaluated_project, log_likelihoods

CONFIG = RecoverConfig(learning_rates=(0.005, 0.02), epochs=2, batch_size=8, max_tokens=16, rank=2)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    return evaluated_project(tmp_path_factory.mktemp("project"))


def _run(name: str, layout: Layout) -> tuple[Cell, dict]:
    cell = dataclasses.replace(CELL, recovery=name)
    run(cell, CONFIG, ENTRY, layout)
    return cell, read_json(layout.recovered(cell) / "recovery.json")


def _trained(name: str, layout: Layout) -> tuple[Cell, dict]:
    """The same, but not once more where a test before has: for those that read alone."""
    cell = dataclasses.replace(CELL, recovery=name)
    document = layout.recovered(cell) / "recovery.json"
    return (cell, read_json(document)) if document.is_file() else _run(name, layout)


def _weights(model) -> dict[str, torch.Tensor]:
    return {name: linear.weight for _, name, linear in prunable_linears(model)}


@pytest.mark.parametrize(
    "name", ["masked", "masked-lora", "reconstruct", "masked-compensated", "reconstruct-distilled"]
)
def test_survivors_change_and_every_zero_stays(name: str, layout: Layout) -> None:
    cell, document = _trained(name, layout)
    folder = layout.recovered(cell) / "model"
    before = load_model(layout.pruned(CELL), torch.float32, CPU)
    after = load_model(folder, torch.float32, CPU)
    for key, weight in _weights(before).items():
        changed = _weights(after)[key]
        assert torch.equal(changed == 0, weight == 0), key
        assert not torch.equal(changed, weight), key
    others = {key for key in before.state_dict() if key.removesuffix(".weight") not in _weights(before)}
    assert all(torch.equal(after.state_dict()[key], before.state_dict()[key]) for key in others)
    survivors = sum(int((weight != 0).sum()) for weight in _weights(before).values())
    for path in layout.pruned(CELL).glob("tokenizer*"):
        assert (folder / path.name).read_bytes() == path.read_bytes(), "the pruned model's own"
    if name in ("masked", "reconstruct"):
        assert document["params_trained"] == survivors
    if name == "masked-compensated":
        run_recovered(cell, EVALUATE, ENTRY, layout)
        assert read_json(layout.metrics(cell))["sparsity"] == pytest.approx(0.5)
        assert read_json(layout.metrics(cell))["params_trained"] == document["params_trained"]
        with compensated(after, read_compensation(layout.recovered(cell) / "compensation.safetensors")[0]):
            expected = log_likelihoods(after, read_texts(layout.corpus(CELL) / "heldout.parquet"))
        found = [row["log_likelihood"] for row in read_table(layout.text_scores(cell), TEXT_SCORES)]
        assert found == pytest.approx(expected, rel=1e-5)


def test_distillation_goes_on_from_the_blocks_towards_the_dense_models_predictions(layout: Layout) -> None:
    """Its validation loss is the divergence from the dense model: computed here over the whole vocabulary."""
    cell, document = _trained("reconstruct-distilled", layout)
    first, _ = _trained("reconstruct", layout)
    stages = document["training"]
    assert stages["weights"]["blocks"]
    found = stages["distillation"]
    losses = {each["candidate"]: each["valid_loss"] for each in found["candidates"]}
    assert found["valid_loss"] == losses["training"] < losses["no change"]
    dense = load_model(layout.dense(CELL), torch.float32, CPU)
    pairs = read_pairs(layout.corpus(CELL), layout.pruned(CELL), CONFIG)
    for model, loss in ((first, losses["no change"]), (cell, losses["training"])):
        network = load_model(layout.recovered(model) / "model", torch.float32, CPU)
        total = tokens = 0.0
        for pair in pairs.valid:
            ids = torch.tensor([pair.ids])
            with torch.no_grad():
                p, q = (each(ids).logits[0, pair.question_tokens - 1 : -1].log_softmax(-1) for each in (dense, network))
            total, tokens = total + float((p.exp() * (p - q)).sum()), tokens + len(p)
        assert loss == pytest.approx(total / tokens, rel=1e-4)


def test_training_survivors_lowers_the_loss_and_more_with_biases(layout: Layout) -> None:
    training = _trained("masked-compensated", layout)[1]["training"]
    assert training["weights"]["valid_loss"] < training["weights"]["runs"][0]["initial_loss"]
    assert training["compensation"]["runs"][0]["initial_loss"] == pytest.approx(training["weights"]["valid_loss"], 1e-4)
    assert [run["learning_rate"] for run in training["weights"]["runs"]] == [0.005, 0.02]


def test_a_compensation_of_another_checkpoint_is_refused(layout: Layout) -> None:
    cell, _ = _trained("masked-compensated", layout)
    folder = layout.recovered(cell)
    kept = shutil.copytree(folder, folder.with_name("kept"))
    model = load_model(folder / "model", torch.float32, CPU)
    out_projections(model)[0].weight[0] += 1.0
    model.save_pretrained(folder / "model")
    write_manifest(folder / "model")
    with pytest.raises(BadInput, match="was trained for another pruned model"):
        run_recovered(cell, EVALUATE, ENTRY, layout)
    shutil.rmtree(folder)
    kept.rename(folder)


@pytest.mark.parametrize("name", ["dora", "eora"])
def test_adapters_are_reported_unmerged_merged_and_with_the_zeros_put_back(
    name: str, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_pruning = 9  # biases that `refined` has added
    monkeypatch.setattr("restorelcc.stages.evaluate.evaluation.added_by_pruning", lambda _: by_pruning)
    cell, document = _trained(name, layout)
    loaded: list[weakref.ref] = []

    def load(*arguments: Any, **keywords: Any) -> Any:
        assert not any(each() is not None for each in loaded), "one model at a time"
        network = load_entry(*arguments, **keywords)
        loaded.append(weakref.ref(network))
        return network

    monkeypatch.setattr("restorelcc.stages.evaluate.evaluation.load_entry", load)
    assert document["kind"] == "adapter"
    assert {path.suffix for path in (layout.recovered(cell) / "adapter").iterdir()} == {".json", ".safetensors"}
    run_recovered(cell, EVALUATE, ENTRY, layout)
    assert len(loaded) == 3
    metrics = read_json(layout.metrics(cell))
    merged, remasked = (metrics["variants"][key] for key in ("merged", "merged, zeros put back"))
    assert merged["perplexity"]["value"] == pytest.approx(metrics["perplexity"]["value"], rel=1e-3)
    assert metrics["sparsity"] == remasked["sparsity"] == pytest.approx(0.5)
    assert merged["sparsity"] < 0.01, "merging fills the zeros"
    assert remasked["perplexity"]["value"] != merged["perplexity"]["value"]
    assert merged["params_added"] == remasked["params_added"] == by_pruning, "what pruning added stays"
    assert metrics["params_added"] > by_pruning
    assert document["params_trained"] == (metrics["params_added"] - by_pruning if name == "dora" else 0)
    sizes = [read_json(layout.metrics(each))["file_bytes"] for each in (CELL, cell)]
    assert sizes[1] - sizes[0] == (layout.recovered(cell) / "adapter" / "adapter_model.safetensors").stat().st_size


def test_adapters_are_on_the_language_models_linears_alone() -> None:
    """The linears of Gemma 3's vision tower go by the same names."""
    model = pico.pico("gemma3")
    wanted = sum(2 * (linear.in_features + linear.out_features) for linear in site_linears(model, SITES).values())
    adapted = with_adapters(model, SITES, 2)
    assert sum(part.numel() for part in adapted.parameters() if part.requires_grad) == wanted
    assert not [name for name, part in adapted.named_parameters() if part.requires_grad and "vision" in name]


def test_dora_leaves_out_linears_with_rows_of_zeros(capsys: pytest.CaptureFixture[str]) -> None:
    """Their norm is what it divides by."""
    model = pico.pico()
    linears = site_linears(model, SITES)
    with torch.no_grad():
        next(iter(linears.values())).weight[3] = 0
        expected = model(input_ids=pico.tokens()).logits
    adapted = with_adapters(model, SITES, 2, dora=True)
    assert f"1 of {len(linears)} linears have rows of zeros and get no adapter" in capsys.readouterr().err
    other = pico.pico()
    with torch.no_grad():
        torch.testing.assert_close(adapted(input_ids=pico.tokens()).logits, expected)
        for linear in site_linears(other, SITES).values():
            linear.weight[0] = 0
    with pytest.raises(BadInput, match="take lora in place of dora"):
        with_adapters(other, SITES, 2, dora=True)


def test_an_adapter_that_is_no_safetensors_file_is_refused(layout: Layout) -> None:
    cell, _ = _trained("eora", layout)
    folder = shutil.copytree(layout.recovered(cell) / "adapter", layout.root / "adapter")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(BadInput, match=r"holds no adapter_model\.safetensors"):
        read_adapter(folder, load_model(layout.pruned(CELL), torch.float32, CPU))


def test_eigenspace_factors_are_the_best_of_their_rank_for_the_inputs() -> None:
    generator = torch.Generator().manual_seed(0)
    lost = torch.randn(12, 8, generator=generator, dtype=torch.float64)
    inputs = torch.randn(8, 200, generator=generator, dtype=torch.float64) * torch.logspace(0, -2, 8)[:, None].double()
    gram = inputs @ inputs.T / 200

    def error(up: torch.Tensor, down: torch.Tensor) -> float:
        return float(((lost - up @ down) @ inputs).norm())

    up, down = eigenspace_factors(lost, eigenspace(gram), 2)
    left, values, right = torch.linalg.svd(lost, full_matrices=False)
    plain = error(left[:, :2] * values[:2], right[:2])
    best = torch.linalg.svdvals(lost @ inputs)[2:].norm().item()
    assert error(up, down) == pytest.approx(best, rel=1e-6)
    assert error(up, down) < 0.8 * plain
    whole = eigenspace_factors(lost, eigenspace(gram), 8)
    torch.testing.assert_close(whole[0] @ whole[1], lost)
    dead = eigenspace_factors(lost, eigenspace(torch.diag(torch.tensor([1.0] * 7 + [0.0]))), 8)
    torch.testing.assert_close((dead[0] @ dead[1])[:, :7], lost[:, :7])
    assert not (dead[0] @ dead[1])[:, 7].any(), "a feature that is never there gets no weight"


def test_linears_that_read_one_input_have_one_matrix_of_it() -> None:
    model, batches = pico.pico(), [pico.tokens(2, 5), pico.tokens(3, 4, seed=1)]
    linears = site_linears(model, ("q", "k", "v", "o", "gate", "up", "down"))
    found, apart = input_moments(model, linears, batches, "t"), {}
    for name, linear in linears.items():
        apart |= input_moments(model, {name: linear}, batches, "t")
    for name in linears:
        for one, other in zip(found[name], apart[name], strict=True):
            assert torch.equal(one, other)
    assert len({id(gram) for _, gram in found.values()}) == 4 * pico.LAYERS, (
        "of q, k and v, of o, of gate and up, of down"
    )


def test_what_a_bias_gives_already_is_not_given_again() -> None:
    generator = torch.Generator().manual_seed(0)
    lost = torch.randn(12, 8, generator=generator, dtype=torch.float64)
    inputs = torch.randn(8, 200, generator=generator, dtype=torch.float64) + 2
    mean, gram = inputs.mean(dim=1), inputs @ inputs.T / 200
    wanted = lost @ inputs - (lost @ mean)[:, None]  # beside a bias lost @ mean
    fitted = still_lost(lost, lost @ mean, mean, eigenspace(gram))
    torch.testing.assert_close(fitted, torch.linalg.lstsq(inputs.T, wanted.T).solution.T)
    up, down = eigenspace_factors(fitted, eigenspace(gram), 2)
    twice = eigenspace_factors(lost, eigenspace(gram), 2)
    unreached, best = (wanted - fitted @ inputs).norm(), torch.linalg.svdvals(fitted @ inputs)[2:].norm()
    error = (wanted - up @ down @ inputs).norm()
    assert float(error) == pytest.approx(float((unreached**2 + best**2).sqrt()), rel=1e-6)
    assert error < 0.5 * (wanted - twice[0] @ twice[1] @ inputs).norm()
    torch.testing.assert_close(still_lost(lost, torch.zeros(12), mean, eigenspace(gram)), lost, rtol=0, atol=0)
    dead = torch.diag(torch.tensor([1.0] * 7 + [0.0]))
    assert still_lost(lost, lost @ mean, dead.diagonal(), eigenspace(dead)).isfinite().all()


def _pruned():
    model = pico.pico()
    prune_model(model, parse_pruning("wanda-0.5"), [pico.tokens()])
    return model


def test_attached_weights_equal_applied_ones_and_leave_no_trace() -> None:
    model = _pruned()
    linears = site_linears(model, SITES)
    change = MaskedLora(linears, 2, seed=0)
    for up in change.up:
        up.data.normal_()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad(), attached_weights(model, linears, change):
        ours = model(input_ids=pico.tokens()).logits
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    apply_change(linears, change)
    torch.testing.assert_close(model(input_ids=pico.tokens()).logits, ours)
    for name, weight in _weights(model).items():
        assert torch.equal(weight == 0, before[f"{name}.weight"] == 0)


def test_no_trained_weight_rounds_to_a_zero() -> None:
    """In float16 some of the smallest would, and join the mask."""
    linear = torch.nn.Linear(512, 512, bias=False).half()
    with torch.no_grad():
        linear.weight.fill_(1e-3).view(-1)[::2] = 0
        kept = linear.weight[0, 1].item()
    change = MaskedChange({"0.a": linear})
    change.deltas[0].data.view(-1)[1::2] = torch.linspace(-1e-7, 1e-7, 512 * 256) - kept
    apply_change({"0.a": linear}, change)
    assert not linear.weight.view(-1)[::2].any()
    assert bool((linear.weight.view(-1)[1::2] != 0).all())


def test_gradients_reach_survivors_alone() -> None:
    model = _pruned()
    linears = site_linears(model, SITES)
    change = MaskedChange(linears)
    with attached_weights(model, linears, change):
        model(input_ids=pico.tokens()).logits.square().mean().backward()
    for linear, delta in zip(linears.values(), change.deltas, strict=True):
        assert delta.grad is not None
        assert not delta.grad[linear.weight == 0].any()
        assert delta.grad[linear.weight != 0].any()


def test_head_scales_multiply_what_a_head_gives() -> None:
    model = pico.pico()
    layout, linears = head_layout(model), site_linears(model, ("o",))
    scales = HeadScales(linears, 0.3, seed=0)
    with torch.no_grad(), attached_weights(model, linears, scales):
        ours = model(input_ids=pico.tokens()).logits
    handles = [
        projection.register_forward_pre_hook(
            lambda _m, inputs, layer=layer: (inputs[0] * (1 + scales.scale_LX[layer].detach()),)
        )
        for layer, projection in enumerate(out_projections(model))
    ]
    torch.testing.assert_close(model(input_ids=pico.tokens()).logits, ours, atol=1e-5, rtol=1e-5)
    for handle in handles:
        handle.remove()
    scales.scale_LX.data.zero_()
    scales.scale_LX.data[2, layout.head_dim * 3 : layout.head_dim * 4] = 1.0
    assert strongest_heads(scales.score_LH(layout), layout, 0.08) == [(2, 3)]


def test_heads_of_equal_strength_come_in_order() -> None:
    layout = HeadLayout(3, 5, 2)
    assert strongest_heads(torch.zeros(3, 5), layout, 0.2) == [(0, 0), (0, 1), (0, 2)]


@torch.no_grad()
def _block_outputs(model: PreTrainedModel, batches: list[torch.Tensor]) -> list[list[torch.Tensor]]:
    """What every block gives for every batch in a forward of the whole model, [layer][batch] [B, T, M]."""
    found: list[list[torch.Tensor]] = [[] for _ in blocks_of(model)]

    def keeping(layer: int) -> Any:
        return lambda _module, _inputs, output: found[layer].append(first_output(output))

    with hooked(enumerate(blocks_of(model)), keeping, expected=len(found), after=True):
        for tokens in batches:
            model.base_model(input_ids=tokens, use_cache=False)
    return found


@pytest.mark.parametrize("family", pico.FAMILIES)
def test_blocks_replayed_one_by_one_give_the_whole_model(family: str) -> None:
    model, batches = pico.pico(family), [pico.tokens(2, 6), pico.tokens(3, 4, seed=1)]
    wanted = _block_outputs(model, batches)
    for step in walk_blocks(model, batches):
        for batch in range(len(batches)):
            torch.testing.assert_close(step.output(batch).detach(), wanted[step.layer][batch])
    assert step.layer == len(wanted) - 1


def test_reconstruction_brings_every_block_closer_to_the_dense_one(layout: Layout) -> None:
    """Measured in whole forwards of the three models, on the pairs that it trains on."""
    cell, document = _trained("reconstruct", layout)
    for block in document["training"]["blocks"]:
        assert block["valid_loss"] < block["runs"][0]["initial_loss"]
        best = next(run for run in block["runs"] if run["learning_rate"] == block["learning_rate"])
        assert best["train_losses"][-1] < 0.9 * best["train_losses"][0]
    batches = [torch.tensor([pair.ids]) for pair in read_pairs(layout.corpus(CELL), layout.pruned(CELL), CONFIG).train]
    folders = (layout.dense(CELL), layout.pruned(CELL), layout.recovered(cell) / "model")
    dense, pruned, mended = (_block_outputs(load_model(folder, torch.float32, CPU), batches) for folder in folders)
    for layer in range(pico.LAYERS):
        wanted = torch.cat([output_BTM.flatten() for output_BTM in dense[layer]])
        far, near = (torch.cat([out.flatten() for out in each[layer]]).dist(wanted) for each in (pruned, mended))
        assert near < 0.95 * far


def test_reconstruction_in_float16_learns_where_a_few_numbers_are_huge(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss is a share of the output's energy: without a scale its gradients would round to zero."""
    dense = pico.pico("llama").half()
    dense.model.embed_tokens.weight[:, 0] = 200.0  # as a few numbers of real models are
    pruned = copy.deepcopy(dense)
    for _, _, linear in prunable_linears(pruned):
        linear.weight.masked_fill_(linear.weight.abs() < linear.weight.abs().median(), 0)
    batches = [pico.tokens(2, 6, seed=seed) for seed in range(4)]
    (dense_step, *_), (step, *_) = (list(islice(walk_blocks(each, batches), 1)) for each in (dense, pruned))
    wanted = [output_BTM.float() for output_BTM in dense_step.outputs()]
    task = _block_task(step, wanted, [1, 2, 3], [0])
    linears = dict(linears_of(step.block, family_of(pruned)))
    change = MaskedChange(linears)
    with torch.enable_grad(), attached_weights(step.block, linears, change):
        (task.summed_loss([0, 1, 2]) / sum(task.tokens) * task.loss_scale).backward()
    grown = torch.cat([delta.grad[mask] for delta, mask in zip(change.deltas, change.masks, strict=True)])
    assert bool(grown.isfinite().all())
    assert float((grown != 0).float().mean()) > 0.95


def test_streamed_reconstruction_equals_that_of_models_in_memory(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell, streamed = _trained("reconstruct", layout)
    before = {name: tensor.read() for name, tensor in stored_tensors(layout.recovered(cell) / "model").items()}
    monkeypatch.setattr("restorelcc.stages.recover.reconstruct.can_stream", lambda *_: False)
    _, document = _run("reconstruct", layout)
    assert document == streamed
    after = {name: tensor.read() for name, tensor in stored_tensors(layout.recovered(cell) / "model").items()}
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
