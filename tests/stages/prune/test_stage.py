"""The stage on disk: streamed equals in memory, what sparsity.json says, checkpoints from elsewhere, bad input."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from restorelcc.base.cell import Cell
from restorelcc.base.errors import BadInput, StageFailed
from restorelcc.base.manifest import MANIFEST
from restorelcc.base.prunings import parse_pruning
from restorelcc.base.tables import read_texts, write_texts
from restorelcc.models.architectures import prunable_linears
from restorelcc.models.checkpoints import load_model, load_tokenizer
from restorelcc.models.continuation import end_tokens
from restorelcc.stages.prune import PruneConfig
from restorelcc.stages.prune.calibration import calibration_batches
from restorelcc.stages.prune.prune import prune_model
from restorelcc.stages.prune.stage import run
from tests import pico
from tests.stages.prune.project import CONFIG, ENTRY, project, prune, words

CPU = torch.device("cpu")


def _external(**sources: object) -> PruneConfig:
    return PruneConfig.model_validate(
        CONFIG.model_dump() | {"external": {"pico": {name: {"source": str(path)} for name, path in sources.items()}}}
    )


@pytest.mark.parametrize("family", pico.FAMILIES)
@pytest.mark.parametrize("pruning", ["sparsegpt-0.5", "slimgpt-0.3"])
def test_streamed_equals_in_memory_and_is_a_stock_checkpoint(
    family: str, pruning: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # transformers gives every Qwen2 checkpoint Qwen2's own tokenizer class, which cannot read the one of the tests.
    monkeypatch.setattr("restorelcc.stages.prune.stage.load_tokenizer", lambda _folder: pico.word_tokenizer())
    layout = project(tmp_path, pico.pico(family))
    folder = prune(layout, pruning)
    dense = layout.dense(Cell("pico"))
    model = load_model(dense, torch.float32, CPU)
    texts = read_texts(layout.corpus(Cell("pico")) / "calibration.parquet")
    prune_model(model, parse_pruning(pruning), calibration_batches(pico.word_tokenizer(), texts, CONFIG, CPU), CONFIG)
    written, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    for name, value in model.state_dict().items():
        assert torch.equal(written.state_dict()[name], value), name
    for source in dense.iterdir():
        assert (folder / source.name).is_file(), source.name


@pytest.mark.parametrize(
    ("family", "pruning"), [("gpt_neo", "refined-0.5"), ("gptj", "wanda-0.5"), ("gpt2", "wanda-0.5")]
)
def test_masks_that_an_older_class_stored_are_carried_along(family: str, pruning: str, tmp_path: Path) -> None:
    """GPT-Neo and GPT-J on the hub, and older GPT-2."""
    layout = project(tmp_path, pico.pico(family))
    expected = load_file(prune(layout, pruning) / "model.safetensors")
    masks = pico.store_masks(layout.dense(Cell("pico")), family)
    folder = prune(layout, pruning)
    written = load_file(folder / "model.safetensors")
    assert written.keys() == expected.keys() | set(masks)
    for name, value in expected.items():
        assert torch.equal(written[name], value), name
    load_model(folder, torch.float32, CPU)


@pytest.mark.parametrize("pruning", ["wanda-0.5", "slimgpt-0.3"])
@pytest.mark.parametrize("former", [False, True])
def test_the_tokenizer_is_the_dense_models_own(pruning: str, former: bool, tmp_path: Path) -> None:
    """Without a padding token it stays without one, streamed or, under former names, loaded whole."""
    layout = project(tmp_path, pico.pico())
    dense = layout.dense(Cell("pico"))
    settings = dense / "tokenizer_config.json"
    own = json.loads(settings.read_text()) | {"pad_token": None, "chat_template": "{{ messages }}"}
    settings.write_text(json.dumps(own))
    (dense / "additional_chat_templates").mkdir()
    (dense / "additional_chat_templates" / "short.jinja").write_text("{{ messages[0] }}")
    if former:
        path = dense / "model.safetensors"
        save_file({name.removeprefix("model."): value for name, value in load_file(path).items()}, path)
    folder = prune(layout, pruning)
    for name in ("tokenizer.json", "tokenizer_config.json", "additional_chat_templates/short.jinja"):
        assert (folder / name).read_bytes() == (dense / name).read_bytes(), name
    assert load_tokenizer(folder).pad_token == "</s>"
    assert load_tokenizer(folder, padded=False).pad_token is None


@pytest.mark.parametrize("pruning", ["wanda-0.5", "sparsegpt-0.5", "refined-0.5"])
@pytest.mark.parametrize("computed", ["float32", "bfloat16"])
def test_a_checkpoint_that_is_loaded_whole_keeps_its_dtypes_and_what_is_not_pruned(
    computed: str, pruning: str, tmp_path: Path
) -> None:
    """Under former names, half in bfloat16 and half in float32, whatever the model computes in."""
    layout = project(tmp_path, pico.pico())
    path = layout.dense(Cell("pico")) / "model.safetensors"
    dense = load_file(path)
    dense |= {name: value.bfloat16() for name, value in dense.items() if "proj" in name}
    save_file({name.removeprefix("model."): value for name, value in dense.items()}, path)
    run(Cell("pico", pruning), CONFIG, ENTRY.model_copy(update={"dtype": computed}), layout)
    pruned = load_file(layout.pruned(Cell("pico", pruning)) / "model.safetensors")
    biases = {name: pruned.pop(name) for name in set(pruned) - set(dense)}
    assert bool(biases) == (pruning == "refined-0.5")
    assert all(value.dtype == torch.bfloat16 and value.any() for value in biases.values())
    assert {name: value.dtype for name, value in pruned.items()} == {name: value.dtype for name, value in dense.items()}
    changed = {name for name in dense if not torch.equal(dense[name], pruned[name])}
    assert changed == {f"{name}.weight" for _, name, _ in prunable_linears(pico.pico())}
    if pruning == "wanda-0.5":
        assert all(torch.equal(pruned[name], dense[name] * (pruned[name] != 0)) for name in changed)
    assert sum(int((pruned[name] == 0).sum()) for name in changed) == sum(pruned[name].numel() for name in changed) // 2


@pytest.mark.parametrize("former", [False, True])
def test_a_relabelled_checkpoint_has_the_tokens_of_the_dense_model(former: bool, tmp_path: Path) -> None:
    """By its class transformers chooses that of the tokenizer: a Mistral's is tokenizer.json as it stands."""
    layout = project(tmp_path, pico.pico("mistral", sliding_window=None))
    if former:
        path = layout.dense(Cell("pico")) / "model.safetensors"
        save_file({name.removeprefix("model."): value for name, value in load_file(path).items()}, path)
    settings = layout.dense(Cell("pico")) / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"tokenizer_class": "LlamaTokenizer"}))
    folder = prune(layout, "refined-0.5")
    assert json.loads((folder / "config.json").read_text())["model_type"] == "llama"
    dense, pruned = (load_tokenizer(each) for each in (layout.dense(Cell("pico")), folder))
    text = "w5 w6  w7, w8"
    assert pruned(text)["input_ids"] == dense(text)["input_ids"]


def test_two_runs_write_the_same_bytes(tmp_path: Path) -> None:
    layout = project(tmp_path, pico.pico())
    for pruning in ("sparsegpt-2of4", "slimgpt-0.3"):
        first = {path.name: path.read_bytes() for path in prune(layout, pruning).iterdir()}
        assert {path.name: path.read_bytes() for path in prune(layout, pruning).iterdir()} == first


def test_a_bfloat16_checkpoint_stays_one_and_is_pruned_in_float32(tmp_path: Path) -> None:
    folder = prune(project(tmp_path, pico.pico().to(torch.bfloat16)), "sparsegpt-0.5")
    weights = load_file(folder / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    zeros = (weights["model.layers.0.self_attn.q_proj.weight"] == 0).sum(dim=1)
    assert (zeros == 8).all()
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize("stored", [torch.float32, torch.float16])
@pytest.mark.parametrize("pruning", ["wanda-0.5", "sparsegpt-0.5"])
def test_pruned_in_fewer_digits_than_stored_what_stays_keeps_those_that_it_has(
    pruning: str, stored: torch.dtype, tmp_path: Path
) -> None:
    layout = project(tmp_path, pico.pico("opt").to(stored))
    cell = Cell("pico", pruning)
    run(cell, CONFIG, ENTRY.model_copy(update={"dtype": "bfloat16"}), layout)
    dense, pruned = (load_file(folder / "model.safetensors") for folder in (layout.dense(cell), layout.pruned(cell)))
    changed = [name for name in dense if not torch.equal(dense[name], pruned[name])]
    assert len(changed) == 18 and all(name.endswith("weight") for name in changed), "18 linears, and no bias"
    for name in changed:
        stays = pruned[name] != 0
        assert (~stays).sum() == stays.numel() // 2
        same = dense[name] == pruned[name]
        assert same[stays].all() if pruning == "wanda-0.5" else 0 < same[stays].sum() < stays.sum()


def test_a_sparsity_that_removes_no_weight_is_refused(tmp_path: Path) -> None:
    layout = project(tmp_path, pico.pico())
    for pruning, message in (
        ("wanda-0.01", "wanda-0.01 removes nothing: the longest row has 24 weights, of which it is less than one"),
        ("slimgpt-0.001", "slimgpt-0.001 removes nothing: its share of a layer is less than the smallest part of one"),
    ):
        with pytest.raises((BadInput, StageFailed), match=message):
            prune(layout, pruning)
        assert not layout.pruned(Cell("pico", pruning)).exists()


def test_sharded_checkpoints_keep_their_shards(tmp_path: Path) -> None:
    layout = project(tmp_path, pico.pico())
    folder = prune(layout, "wanda-0.5")
    whole = load_file(folder / "model.safetensors")
    dense = layout.dense(Cell("pico"))
    (dense / "model.safetensors").unlink()
    pico.pico().save_pretrained(dense, max_shard_size="8KB")
    assert len(list(dense.glob("*.safetensors"))) > 1
    folder = prune(layout, "wanda-0.5")
    assert {path.name for path in folder.glob("*.safetensors")} == {path.name for path in dense.glob("*.safetensors")}
    for path in folder.glob("*.safetensors"):
        for name, tensor in load_file(path).items():
            assert torch.equal(tensor, whole[name])


def test_tied_embeddings_stream(tmp_path: Path) -> None:
    folder = prune(project(tmp_path, pico.pico(tie_word_embeddings=True)), "wanda-0.5")
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    AutoModelForCausalLM.from_pretrained(folder)


def test_names_of_older_checkpoints_are_loaded_whole(tmp_path: Path) -> None:
    layout = project(tmp_path, pico.pico(tie_word_embeddings=True))
    expected = load_file(prune(layout, "wanda-0.5") / "model.safetensors")
    path = layout.dense(Cell("pico")) / "model.safetensors"
    save_file({name.removeprefix("model."): value for name, value in load_file(path).items()}, path, {"format": "pt"})
    found = load_file(prune(layout, "wanda-0.5") / "model.safetensors")
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_a_longer_context_in_the_config_changes_nothing(tmp_path: Path) -> None:
    short = prune(project(tmp_path / "short", pico.pico()), "sparsegpt-0.5")
    long = prune(project(tmp_path / "long", pico.pico(max_position_embeddings=131072)), "sparsegpt-0.5")
    assert (short / "model.safetensors").read_bytes() == (long / "model.safetensors").read_bytes()


def test_sequences_end_where_the_models_context_ends(tmp_path: Path) -> None:
    """OPT has an embedding for each of 64 positions, and none for a 65th."""
    layout, cell = project(tmp_path, pico.pico("opt")), Cell("pico")
    write_texts(layout.corpus(cell) / "calibration.parquet", [words(200, number) for number in range(4)])
    folder = prune(layout, "wanda-0.5", CONFIG.model_copy(update={"sequence_length": 2048}))
    assert json.loads((folder / "sparsity.json").read_text())["calibration"]["tokens"] == 4 * 64


@pytest.mark.parametrize("pruning", ["wanda-0.5", "sparsegpt-2of4", "slimgpt-0.3"])
def test_sparsity_json_counts_what_the_files_hold(pruning: str, tmp_path: Path) -> None:
    folder = prune(project(tmp_path, pico.pico()), pruning)
    report = json.loads((folder / "sparsity.json").read_text())
    weights = load_file(folder / "model.safetensors")
    zeros = total = 0
    assert len(report["tensors"]) == 7 * pico.LAYERS
    for name, entry in report["tensors"].items():
        array = weights[name].numpy()
        assert (entry["zeros"], entry["total"]) == (np.count_nonzero(array == 0), array.size)
        assert 0 < entry["error"] < 1.5
        zeros, total = zeros + entry["zeros"], total + entry["total"]
    assert report["achieved"] == zeros / total
    assert report["achieved"] == pytest.approx(report["requested"], abs=0.02)
    assert report["pattern"] == ("2:4" if "of" in pruning else None)
    assert [layer["layer"] for layer in report["layers"]] == list(range(pico.LAYERS))
    assert report["calibration"]["tokens"] > 0


def test_the_error_is_the_relative_output_error_on_the_calibration_inputs() -> None:
    model, dense, batch = pico.pico(), pico.pico(), pico.tokens(4, 12)
    results = prune_model(model, parse_pruning("magnitude-0.5"), [batch])
    seen: list[torch.Tensor] = []
    _, name, linear = next(prunable_linears(dense))
    linear.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0].flatten(0, 1)))
    dense(input_ids=batch)
    pruned = dict(model.named_modules())[name].weight
    expected = ((linear.weight - pruned) @ seen[0].T).norm() / (linear.weight @ seen[0].T).norm()
    assert results[0].error == pytest.approx(float(expected), rel=1e-5)


def test_an_external_checkpoint_is_referred_to_and_measured(tmp_path: Path) -> None:
    layout = project(tmp_path, pico.pico())
    elsewhere = tmp_path / "elsewhere"
    prune(layout, "wanda-2of4").rename(elsewhere)
    ours = json.loads((elsewhere / "sparsity.json").read_text())
    folder = prune(layout, "external-mine", _external(mine=elsewhere))
    assert {path.name for path in folder.iterdir()} == {"model_ref.json", "sparsity.json"}
    assert json.loads((folder / "model_ref.json").read_text())["source"] == str(elsewhere), "a whole path stays one"
    folder = prune(layout, "external-mine", _external(mine="elsewhere"))
    assert json.loads((folder / "model_ref.json").read_text())["source"] == "../../../../elsewhere", "in every clone"
    report = json.loads((folder / "sparsity.json").read_text())
    assert report["requested"] is None
    assert report["achieved"] == ours["achieved"] == 0.5
    first = "model.layers.0.self_attn.q_proj.weight"
    assert report["tensors"][first] == ours["tensors"][first], "the first linear sees the same inputs"
    network = load_model(folder, torch.float32, CPU)
    assert torch.equal(network.state_dict()[first], load_file(elsewhere / "model.safetensors")[first])
    load_tokenizer(folder)


def test_the_biases_of_an_external_checkpoint_are_compared_as_the_model_computes_with_them(tmp_path: Path) -> None:
    layout = project(tmp_path, pico.pico("opt"))
    prune(layout, "wanda-0.5").rename(tmp_path / "elsewhere")
    for number in (0, 1):
        cell = Cell("pico", f"external-mine{number}")
        config = _external(**{f"mine{number}": tmp_path / "elsewhere"})
        run(cell, config, ENTRY.model_copy(update={"dtype": "bfloat16"}), layout)
        assert json.loads((layout.pruned(cell) / "sparsity.json").read_text()).get("biases_changed", 0) == number
        weights = load_file(tmp_path / "elsewhere" / "model.safetensors")
        weights["model.decoder.layers.0.fc1.bias"] += 1
        save_file(weights, tmp_path / "elsewhere" / "model.safetensors", {"format": "pt"})
        (tmp_path / "elsewhere" / "restorelcc-manifest.json").unlink(missing_ok=True)


def test_an_external_checkpoint_writes_as_the_dense_model_or_it_is_told(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    layout, elsewhere, name = project(tmp_path, pico.pico()), tmp_path / "elsewhere", "generation_config.json"
    shutil.copytree(layout.dense(Cell("pico")), elsewhere)
    (layout.dense(Cell("pico")) / name).write_text(json.dumps({"eos_token_id": [9, 2], "temperature": 0.6}))
    (elsewhere / name).unlink()
    folder = prune(layout, "external-mine", _external(mine=elsewhere))
    assert {path.name for path in folder.iterdir()} >= {name, MANIFEST}
    assert end_tokens(load_model(folder, torch.float32, CPU)) == [9, 2]
    told = capfd.readouterr().err
    assert f"has no {name}: the dense model's is used" in told and "writes by other settings" not in told
    (elsewhere / name).write_text(json.dumps({"eos_token_id": 2, "num_beams": 4, "max_new_tokens": 9, "top_p": 0.9}))
    folder = prune(layout, "external-mine", _external(mine=elsewhere))
    assert not (folder / name).exists() and end_tokens(load_model(folder, torch.float32, CPU)) == [2]
    said = "than the dense model (eos_token_id [2], not [2, 9]; num_beams 4, not 1; max_new_tokens 9, not None)"
    assert said in capfd.readouterr().err


def test_an_external_checkpoint_without_zeros_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    layout = project(tmp_path, pico.pico())
    prune(layout, "external-mine", _external(mine=layout.dense(Cell("pico"))))
    assert "external-mine has no zeros among the weights that pruning targets: is it pruned?" in capfd.readouterr().err


def test_external_checkpoints_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    layout = project(tmp_path, pico.pico())
    others = {
        "narrow": pico.pico(intermediate_size=16),
        "family": pico.pico("mistral"),
        "nan": pico.pico(),
    }
    next(prunable_linears(others["nan"]))[2].weight[0, 0] = float("nan")
    for name, other in others.items():
        other.save_pretrained(tmp_path / name)
        pico.word_tokenizer().save_pretrained(tmp_path / name)
    config = _external(nowhere="no/such/folder/at/all", **{name: tmp_path / name for name in others})
    for name, message in {
        "narrow": r"external\.pico\.narrow .* does not fit the dense model: .* has shape \(16, 16\), not \(24, 16\)",
        "family": r"is of the family 'mistral', the dense model of 'llama'",
        "nan": "holds NaN or infinity",
        "nowhere": r"external\.pico\.nowhere\.source is 'no/such/folder/at/all', which is not a folder",
        "unknown": r"prune\.external\.pico\.unknown is missing",
    }.items():
        with pytest.raises(BadInput, match=message) as caught:
            prune(layout, f"external-{name}", config)
        assert "\n" not in str(caught.value)
        assert not layout.pruned(Cell("pico", f"external-{name}")).exists()


def test_weights_that_are_not_numbers_are_refused(tmp_path: Path) -> None:
    for position, name in enumerate(("model.layers.2.mlp.down_proj", "model.embed_tokens")):
        model = pico.pico()
        model.get_submodule(name).weight[5, 0] = float("nan")
        layout = project(tmp_path / str(position), model)
        with pytest.raises(BadInput, match="holds NaN or infinity"):
            prune(layout, "sparsegpt-0.5", PruneConfig(sequence_length=24, samples=30))
        assert not layout.pruned(Cell("pico", "sparsegpt-0.5")).exists()


def test_calibration_text_shorter_than_one_sequence_is_refused(tmp_path: Path) -> None:
    layout = project(tmp_path, pico.pico())
    with pytest.raises(BadInput, match=r"hold \d+ tokens, less than one sequence of prune\.sequence_length 2048"):
        prune(layout, "wanda-0.5", PruneConfig())


def test_damaged_and_quantized_checkpoints_are_refused(tmp_path: Path) -> None:
    layout = project(tmp_path, pico.pico())
    dense = layout.dense(Cell("pico"))
    config = json.loads((dense / "config.json").read_text())
    (dense / "config.json").write_text(json.dumps(config | {"intermediate_size": 32}))
    with pytest.raises(BadInput, match=r"its config\.json says"):
        prune(layout, "wanda-0.5")
    (dense / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(BadInput, match="quantized"):
        prune(layout, "wanda-0.5")
    (dense / "config.json").write_text(json.dumps(config))
    (dense / "model.safetensors").write_bytes((dense / "model.safetensors").read_bytes()[:-400])
    with pytest.raises(BadInput, match="cut short"):
        prune(layout, "wanda-0.5")
