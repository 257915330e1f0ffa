"""`restorelcc restore` of mixtures of experts, hybrids, GPT-2, and models of pictures and text, as a user runs it."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from typer.testing import CliRunner

from restorelcc.api import attach
from restorelcc.base.errors import BadInput
from restorelcc.cli.app import app
from restorelcc.models.checkpoints import save_checkpoint
from restorelcc.models.tensor_files import stored_tensors
from restorelcc.release.verify.verify import subject, verify
from tests import pico
from tests.fresh import verify_in_forks
from tests.here import stages_run_here
from tests.hub.client import point_at
from tests.hub.repositories import folder_files
from tests.hub.server import LoopbackHub
from tests.release.export.restored import pruned_model

QUICK = ["--set", "probe.steps=5", "--set", "compensate.epochs=1", "--set", "compensate.learning_rates=[0.05]"]
QUICK += ["--threads", "1", "--head-ratio", "0.5", "--set", "prune.sequence_length=30"]


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("RESTORELCC_PROGRESS", "0")
    with stages_run_here():
        yield


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pairs.jsonl, whose responses are easily learned, and texts.txt."""
    folder, rng = tmp_path_factory.mktemp("texts"), random.Random(0)

    def words(count: int, least: int = 3, beyond: int = 60) -> str:
        return " ".join(f"w{rng.randrange(least, beyond)}" for _ in range(count))

    rows = [{"instruction": words(5), "input": words(2), "output": words(3, 9, 12)} for _ in range(40)]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "texts.txt").write_text("\n".join(words(30) for _ in range(30)))
    return folder


def _save(folder: Path, model: PreTrainedModel) -> Path:
    save_checkpoint(folder, model, pico.word_tokenizer())
    return folder


def _restore(*arguments: object) -> str:
    done = CliRunner().invoke(app, ["restore", *map(str, [*arguments, *QUICK])], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@torch.no_grad()
def _logits(model: PreTrainedModel) -> Tensor:
    return model(input_ids=pico.tokens()).logits


def _same_bytes(folder: Path, pruned: Path, but: str) -> None:
    """Every tensor of the pruned checkpoint is in the restored one, bit for bit, and only biases are added."""
    before, after = stored_tensors(pruned), stored_tensors(folder)
    for name, tensor in before.items():
        assert torch.equal(after[name].read().view(torch.uint8), tensor.read().view(torch.uint8)), name
    added = set(after) - set(before)
    assert added and all(name.endswith(".bias") and but in name for name in added)


def _verified(folder: Path) -> None:
    with verify_in_forks():
        assert {"parents", "logits"} <= {title for title, _ in verify(subject(folder, None, None))}


def with_fewer_experts(family: str, count: int) -> PreTrainedModel:
    """The dense pico model, pruned as REAP prunes: of every layer's experts the first ones are left."""
    dense = pico.pico(family).state_dict()
    keys = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
    model = pico.pico(family, **dict.fromkeys(keys, count))
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.copy_(dense[name][tuple(slice(length) for length in tensor.shape)])
    return model


@pytest.mark.parametrize("family", ["qwen3_moe", "qwen3_next"])
def test_experts_that_another_tool_removed(family: str, texts: Path, tmp_path: Path) -> None:
    dense, pruned = (
        _save(tmp_path / "dense", pico.pico(family)),
        _save(tmp_path / "pruned", with_fewer_experts(family, 3)),
    )
    sources = ["--dense", dense, "--pruned", pruned, "--instructions", texts / "pairs.jsonl"]
    _restore(*sources, "--out", tmp_path / "out")
    _same_bytes(tmp_path / "out", pruned, "self_attn")
    _verified(tmp_path / "out")
    restored, before = (AutoModelForCausalLM.from_pretrained(path) for path in (tmp_path / "out", pruned))
    assert (_logits(restored) - _logits(before)).abs().max() > 1e-3
    assert restored.config.num_experts == 3


@pytest.mark.parametrize("family", ["mixtral", "jamba"])
def test_a_class_without_place_for_a_bias_gets_the_compensation_alone(family: str, texts: Path, tmp_path: Path) -> None:
    dense, pruned = _save(tmp_path / "dense", pico.pico(family)), _save(tmp_path / "pruned", pruned_model(family))
    sources = ["--dense", dense, "--pruned", pruned, "--instructions", texts / "pairs.jsonl", "--out", tmp_path / "out"]
    with pytest.raises(BadInput, match=r"no bias on self_attn\.o_proj.*--compensation-only writes this file alone"):
        _restore(*sources)
    assert not (tmp_path / "out.work").exists(), "it is told before any work"
    _restore(*sources, "--compensation-only")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["compensation.safetensors"]
    model = AutoModelForCausalLM.from_pretrained(pruned)
    before = _logits(model)
    with attach(model, tmp_path / "out" / "compensation.safetensors"):
        assert (_logits(model) - before).abs().max() > 1e-3
    assert torch.equal(_logits(model), before)


def test_biases_that_no_class_carries_are_told_of_hub_ids_and_of_settings_before_any_work(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = _save(tmp_path / "dense", pico.pico("qwen3"))
    inputs = ["--instructions", texts / "pairs.jsonl", "--calibration", texts / "texts.txt", "--out", tmp_path / "out"]
    pruning = ["--pruning", "wanda-0.5"]
    with LoopbackHub() as hub:
        hub.add_model("org/mixtral", folder_files(_save(tmp_path / "mixtral", pico.pico("mixtral"))))
        point_at(hub, tmp_path / "home", monkeypatch)
        with pytest.raises(BadInput, match=r"no bias on self_attn\.o_proj.*--compensation-only writes this file alone"):
            _restore("--dense", "org/mixtral", "--pruned", "org/mixtral", *inputs)
    for further, message in (
        (["--set", "compensate.sites=[o,gate]"], r"no bias on mlp\.gate_proj.*--compensation-only writes this"),
        (["--method", "every-bias"], r"no bias on mlp\.gate_proj, mlp\.up_proj, mlp\.down_proj"),
        (["--slice"], "--slice cuts out whole heads and channels, and wanda-0.5 removes single weights"),
        (["--slice", "--compensation-only"], "--compensation-only writes none: leave one out"),
    ):
        with pytest.raises(BadInput, match=message):
            _restore("--dense", dense, *pruning, *inputs, *further)
    assert not (tmp_path / "out.work").exists()


def test_experts_are_not_pruned_by_score(tmp_path: Path) -> None:
    dense = _save(tmp_path / "dense", pico.pico("qwen3_moe"))
    with pytest.raises(BadInput, match=r"wanda-0\.5 cannot prune 'qwen3_moe' models: their experts are fused"):
        _restore("--dense", dense, "--pruning", "wanda-0.5", "--out", tmp_path / "out")
    assert not (tmp_path / "out.work").exists()


def test_gpt2_is_pruned_along_its_inputs(texts: Path, tmp_path: Path) -> None:
    dense = tmp_path / "dense"
    model = pico.pico("gpt2")
    _save(dense, model)
    inputs = ["--instructions", texts / "pairs.jsonl", "--calibration", texts / "texts.txt"]
    _restore("--dense", dense, "--pruning", "wanda-2of4", *inputs, "--out", tmp_path / "out")
    record = json.loads((tmp_path / "out" / "restorelcc.json").read_text())
    assert record["sparsity"]["patterns"] == ["2:4", "4:8"]
    weight_IO = stored_tensors(tmp_path / "out")["transformer.h.1.mlp.c_fc.weight"].read()
    assert weight_IO.shape == (24, 32)
    assert bool(((weight_IO.T != 0).unflatten(1, (-1, 4)).sum(dim=2) == 2).all())
    _verified(tmp_path / "out")


def test_pictures_pass_through_a_model_of_pictures_and_text(texts: Path, tmp_path: Path) -> None:
    dense = _save(tmp_path / "dense", pico.pico("gemma3"))
    inputs = ["--instructions", texts / "pairs.jsonl", "--calibration", texts / "texts.txt"]
    _restore("--dense", dense, "--pruning", "wanda-0.5", *inputs, "--out", tmp_path / "out")
    before, after = stored_tensors(dense), stored_tensors(tmp_path / "out")
    seeing = [name for name in before if "language_model" not in name]
    assert len(seeing) > 10
    for name in seeing:
        assert torch.equal(after[name].read().view(torch.uint8), before[name].read().view(torch.uint8)), name
    _verified(tmp_path / "out")
    weight_OI = after["language_model.model.layers.1.mlp.up_proj.weight"].read()
    assert int((weight_OI == 0).sum()) == weight_OI.numel() // 2
