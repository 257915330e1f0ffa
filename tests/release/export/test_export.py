"""What an export holds, what it refuses, and that nothing is left when it ends badly."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from restorelcc.base.digest import file_digest, model_digest
from restorelcc.base.documents import write_document
from restorelcc.base.errors import BadInput
from restorelcc.base.prunings import parse_pruning
from restorelcc.compensation.compensation import Compensation
from restorelcc.compensation.file import write_compensation
from restorelcc.models.checkpoints import write_reference
from restorelcc.models.references import pinned_source
from restorelcc.release.export.card import CardFacts
from restorelcc.release.export.export import ExportOptions, export_checkpoint
from restorelcc.release.folders import check_output
from restorelcc.stages.prune import PruneConfig
from restorelcc.stages.prune.prune import prune_model
from tests import pico
from tests.release.export.restored import Pair, heads_of, pair_of, pruned_model, write_pair


def _export(pair: Pair, out: Path, **options: object) -> dict:
    return export_checkpoint(pair.pruned, pair.compensation, out, ExportOptions(**options))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return pair_of(tmp_path_factory.mktemp("pair"))


def test_the_folder_is_a_stock_checkpoint_in_shards(pair: Pair, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    _export(pair, out, max_shard_bytes=10_000)
    shards = sorted(out.glob("*.safetensors"))
    assert len(shards) > 2
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert {path.name for path in shards} == set(index["weight_map"].values())
    total = 0
    for path in shards:
        with safe_open(path, framework="pt") as file:  # as any other reader sees it
            assert file.metadata() == {"format": "pt"}
            sizes = [file.get_tensor(name).nbytes for name in file.keys()]  # noqa: SIM118
            assert dict.fromkeys(file.keys(), path.name).items() <= index["weight_map"].items()
        assert sum(sizes) <= 10_000
        total += sum(sizes)
    assert index["metadata"]["total_size"] == total
    names = {path.name for path in out.iterdir()} - {path.name for path in shards}
    assert names == {"README.md", "config.json", "generation_config.json", "model.safetensors.index.json"} | {
        "restorelcc",
        "restorelcc.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert AutoTokenizer.from_pretrained(out)("w5 w6")["input_ids"] == [5, 6]
    config = json.loads((out / "config.json").read_text())
    assert config["attention_bias"] is True
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.model.layers[0].self_attn.o_proj.bias.any()


def test_two_exports_are_byte_identical(pair: Pair, tmp_path: Path) -> None:
    for name in ("one", "two"):
        _export(pair, tmp_path / name)
    files = [path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file()]
    assert len(files) == 9
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_the_record_names_every_parent_by_digest(pair: Pair, tmp_path: Path) -> None:
    ancestor = tmp_path / "ancestor.parquet"
    ancestor.write_text("heads")
    write_compensation(
        tmp_path / "c.safetensors",
        Compensation(heads_of(pruned_model("llama"))),
        {"pruned": model_digest(pair.pruned), "ranking": file_digest(ancestor), "components": "a" * 64, "layers": "3"},
    )
    known = {"compensation.ranking": ancestor}
    options = ExportOptions(names={"model": "m"}, config={"probe": {"seed": 1}}, unknown=("prune",), ancestors=known)
    record = export_checkpoint(pair.pruned, tmp_path / "c.safetensors", tmp_path / "out", options)
    assert json.loads((tmp_path / "out" / "restorelcc.json").read_text()) == record
    assert {name: parent["digest"] for name, parent in record["parents"].items()} == {
        "pruned": model_digest(pair.pruned),
        "compensation": file_digest(tmp_path / "c.safetensors"),
        "compensation.ranking": file_digest(ancestor),
        "compensation.components": "a" * 64,
    }
    for name, path in (("pruned", pair.pruned), ("compensation.ranking", ancestor)):
        assert (tmp_path / "out" / record["parents"][name]["path"]).resolve() == path.resolve()
    assert record["model"] == "m"
    assert (record["config"], record["config_unknown"]) == ({"probe": {"seed": 1}}, ["prune"])
    assert {"torch", "transformers", "restorelcc", "python"} <= set(record["versions"])
    for name, digest in record["files"].items():
        assert file_digest(tmp_path / "out" / name) == digest
    ancestor.write_text("other heads")
    with pytest.raises(BadInput, match=r"is not what was recorded as compensation\.ranking"):
        export_checkpoint(pair.pruned, tmp_path / "c.safetensors", tmp_path / "again", options)


def test_the_card_has_method_numbers_sparsity_limits_and_licence(pair: Pair, tmp_path: Path) -> None:
    def metrics(value: float) -> dict:
        task = {"metric": "acc", "value": value, "stderr": 0.01, "n": 400, "shots": 0, "averaged": True}
        return {"tasks": {"boolq": task}, "mean": value, "perplexity": {"corpus": "heldout", "value": 7.0, "tokens": 9}}

    restored = metrics(0.7) | {"recovered": {"mean": 0.5, "ci95": [0.4, 0.6], "method": "paired bootstrap"}}
    facts = CardFacts(
        base_model="some/base", licence="llama2", dense=metrics(0.8), pruned=metrics(0.6), restored=restored
    )
    _export(pair, tmp_path / "out", card=facts)
    text = (tmp_path / "out" / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    fields = yaml.safe_load(front)
    assert (fields["license"], fields["base_model"]) == ("llama2", "some/base")
    assert "| boolq (acc, n = 400) | 80.0 ± 2.0 | 60.0 ± 2.0 | 70.0 ± 2.0 |" in body
    assert "50.0 % was recovered (95 % interval 40.0 to 60.0, paired bootstrap)" in body
    assert "50.00 % of the" in body
    assert "every row holds 2:4 and 4:8" in body
    assert "arxiv.org/abs/2510.21834" in body
    for heading in ("## Numbers", "## Limits", "## Licence"):
        assert heading in body
    _export(pair, tmp_path / "bare")
    text = (tmp_path / "bare" / "README.md").read_text()
    assert "None were measured" in text
    assert "license" not in text.split("---\n")[1]


def test_licence_and_base_model_come_from_the_pruned_folders_own_card(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from restorelcc.release.export.facts import file_facts

    folder = tmp_path / "pruned"
    shutil.copytree(pair.pruned, folder)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\nbase_model: a/b\n---\n# Hello\n")
    (folder / "LICENSE").write_text("the text")
    facts = file_facts(folder)
    assert (facts.base_model, facts.licence) == ("a/b", "apache-2.0")
    assert file_facts(folder, licence="mit").licence == "mit"
    write_reference(tmp_path / "reference", pinned_source("key", str(folder), None, tmp_path))
    assert file_facts(tmp_path / "reference").licence == "apache-2.0"
    shutil.move(folder, tmp_path / "elsewhere")
    assert file_facts(tmp_path / "reference") == CardFacts(), "no path of a disk is a base model"
    shutil.move(tmp_path / "elsewhere", folder)
    (folder / "README.md").write_text("---\nbase_model: /home/somebody/dense\n---\n")
    assert file_facts(folder).base_model is None
    (tmp_path / "here" / "models" / "dense").mkdir(parents=True)
    (tmp_path / "dense").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for base, found in (("models/dense", None), ("dense", None), ("models/other", "models/other"), ("gpt2", "gpt2")):
        (folder / "README.md").write_text(f"---\nbase_model: {base}\n---\n")
        assert file_facts(folder).base_model == found
    (folder / "README.md").write_text("---\n: [\n---\n")
    assert file_facts(folder) == CardFacts()
    _export(Pair(folder, pair.compensation), tmp_path / "out")
    assert (tmp_path / "out" / "LICENSE").read_text() == "the text"
    (folder / "README.md").write_text("---\nlicense: [mit, apache-2.0]\n---\n# Hello\n")
    assert file_facts(folder).licence == "mit, apache-2.0"
    (folder / "README.md").write_text("---\nlicense: []\n---\n# Hello\n")
    assert file_facts(folder).licence is None


def test_what_the_dense_model_was_made_from_is_not_the_base_model(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from restorelcc.release.export.facts import file_facts

    dense, pruned = tmp_path / "dense", tmp_path / "pruned"
    for folder in (dense, pruned):
        shutil.copytree(pair.pruned, folder)
    (dense / "README.md").write_text("---\nlicense: mit\nbase_model: the/parent\n---\n")
    assert file_facts(pruned, dense) == CardFacts(licence="mit")
    assert file_facts(pruned, dense, base_model="my/dense").base_model == "my/dense"
    (pruned / "README.md").write_text("---\nbase_model: the/dense\n---\n")
    assert file_facts(pruned, dense) == CardFacts(base_model="the/dense", licence="mit")
    (tmp_path / "hub").mkdir()
    write_document(tmp_path / "hub" / "model_ref.json", {"source": "a/hub", "revision": "0" * 40, "files": {}})
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert file_facts(pruned, tmp_path / "hub") == CardFacts(base_model="a/hub"), (
        "a hub that cannot be asked says nothing"
    )
    assert file_facts(tmp_path / "hub", dense) == CardFacts(base_model="a/hub", licence="mit")


def test_a_place_that_nothing_can_be_renamed_to_is_refused_at_the_start(pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/dev")
    for out in (Path("/dev"), tmp_path / "link"):
        with pytest.raises(BadInput, match=r"is where a disk is mounted.*give a folder inside it"):
            check_output(out, overwrite=True)
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "other").symlink_to(tmp_path / "file" / "restored")
    with pytest.raises(BadInput, match=r"other cannot be written: .*file is no folder"):
        check_output(tmp_path / "other", overwrite=False)


def test_what_is_in_the_way_is_kept_unless_it_may_be_overwritten(pair: Pair, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(BadInput, match=r"is not empty.*--overwrite"):
        _export(pair, out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    _export(pair, out, overwrite=True)
    assert not (out / "thesis.txt").exists()
    assert (out / "config.json").is_file()
    (tmp_path / "file").write_text("x")
    with pytest.raises(BadInput, match="is a file"):
        _export(pair, tmp_path / "file", overwrite=True)
    for inside in (pair.pruned, pair.pruned / "out", pair.pruned.parent):
        with pytest.raises(BadInput, match="contain one another"):
            _export(pair, inside, overwrite=True)
    assert (pair.pruned / "config.json").is_file()


def test_where_a_link_leads_is_written_and_the_link_stays(pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    out = tmp_path / "out"
    for there in ("there", "not yet there"):
        out.symlink_to(tmp_path / "disk" / there)
        _export(pair, out)
        _export(pair, out, overwrite=True)
        assert out.is_symlink() and (tmp_path / "disk" / there / "config.json").is_file()
        assert [path.name for path in (tmp_path / "disk").iterdir() if path.name.startswith(".")] == []
        out.unlink()


def test_an_export_that_fails_leaves_the_old_one_and_no_scratch(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    _export(pair, out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    broken = tmp_path / "broken"
    shutil.copytree(pair.pruned, broken)
    (broken / "tokenizer.json").unlink()
    write_compensation(tmp_path / "c.safetensors", Compensation(heads_of(pruned_model("llama"))), {})
    monkeypatch.setattr("restorelcc.release.export.export.write_weights", None)  # which may take minutes
    with pytest.raises(BadInput, match="has no tokenizer"):
        _export(Pair(broken, tmp_path / "c.safetensors"), out, overwrite=True)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "c.safetensors", "out"]


def _damaged(folder: Path, how: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    match how:
        case "truncated":
            (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-100])
        case "pickle":
            (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
        case "auto_map":
            (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "x.Y"}}))
        case "shape":
            (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 28}))
        case "no weights":
            (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("truncated", "cut short"),
        ("pickle", "pytorch_model.bin, a pickle, which is never loaded"),
        ("auto_map", r"custom code \(auto_map\)"),
        ("shape", r"its config.json says \(16, 28\): the checkpoint is damaged"),
        ("no weights", "holds no .safetensors file"),
    ],
)
def test_damaged_and_foreign_checkpoints_are_refused(pair: Pair, tmp_path: Path, how: str, message: str) -> None:
    folder = tmp_path / "pruned"
    shutil.copytree(pair.pruned, folder)
    _damaged(folder, how)
    write_compensation(tmp_path / "c.safetensors", Compensation(heads_of(pruned_model("llama"))), {})
    with pytest.raises(BadInput, match=message):
        _export(Pair(folder, tmp_path / "c.safetensors"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_compensation_for_another_pruned_model_is_refused(pair: Pair, tmp_path: Path) -> None:
    other = pair_of(tmp_path / "other", seed=5)
    with pytest.raises(BadInput, match="trained for another pruned model"):
        _export(Pair(pair.pruned, other.compensation), tmp_path / "out")
    elsewhere = pair_of(tmp_path / "wide", num_attention_heads=8, hidden_size=32)
    write_compensation(tmp_path / "c.safetensors", Compensation(heads_of(pruned_model("llama"))), {})
    with pytest.raises(BadInput, match="does not fit a model of"):
        _export(Pair(elsewhere.pruned, tmp_path / "c.safetensors"), tmp_path / "out")


def test_a_structured_model_is_cut_out_with_its_compensation(tmp_path: Path) -> None:
    model = pico.pico("mistral", intermediate_size=48)
    prune_model(model, parse_pruning("slimgpt-0.45"), [pico.tokens()], PruneConfig(slimgpt_first_layer=1.0))
    pair = write_pair(tmp_path, model, Compensation(heads_of(model)))
    whole, cut = _export(pair, tmp_path / "whole"), _export(pair, tmp_path / "cut", cut=True)
    sizes = [sum(path.stat().st_size for path in (tmp_path / n).glob("*.safetensors")) for n in ("whole", "cut")]
    assert sizes[1] < 0.9 * sizes[0]
    assert (whole["route"]["cut"], cut["route"]["cut"]) == (False, True)
    models = [AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("whole", "cut")]
    with torch.no_grad():
        logits = [model(input_ids=pico.tokens()).logits for model in models]
    torch.testing.assert_close(logits[1], logits[0], atol=1e-5, rtol=0)
    config = json.loads((tmp_path / "cut" / "config.json").read_text())
    assert config["model_type"] == "llama"
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
    unstructured = pair_of(tmp_path / "unstructured")
    with pytest.raises(BadInput, match="nothing to cut out"):
        _export(unstructured, tmp_path / "out", cut=True)
