"""What the prune stage refuses: one sentence on stderr, exit code 2, nothing written."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from transformers import PretrainedConfig, PreTrainedModel

from restorelcc.__main__ import main
from restorelcc.base.cell import Cell
from restorelcc.base.errors import BadInput
from restorelcc.base.tables import write_texts
from restorelcc.models.architectures import family_of_config, prunable_linears
from tests import pico
from tests.dag import ROOT
from tests.stages.prune.project import project


def _nan(root: Path, model: PreTrainedModel) -> None:
    next(prunable_linears(model))[2].weight[0, 0] = float("nan")
    project(root, model)


def _family(root: Path, _model: PreTrainedModel) -> None:
    config = root / "data/pico/dense/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": "mamba"}))


def _experts(root: Path, _model: PreTrainedModel) -> None:
    config = root / "data/pico/dense/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": "jetmoe", "num_local_experts": 4}))


def _short(root: Path, _model: PreTrainedModel) -> None:
    write_texts(root / "data/corpus/pico/calibration.parquet", ["w3 w4 w5"])


def _narrow(root: Path, _model: PreTrainedModel) -> None:
    pico.pico(intermediate_size=16).save_pretrained(root / "narrow")
    pico.word_tokenizer().save_pretrained(root / "narrow")


def _nothing(_root: Path, _model: PreTrainedModel) -> None:
    pass


CASES: list[tuple[str, Callable[[Path, PreTrainedModel], None], str]] = [
    ("wanda-0.5", _family, "model family 'mamba' is not supported: known are llama, mistral"),
    ("wanda-0.5", _experts, "model family 'jetmoe' is a mixture of experts"),
    ("sparsegpt-0.5", _short, "hold 3 tokens, less than one sequence of prune.sequence_length 24"),
    ("magnitude-0.5", _nan, "model.layers.0.self_attn.q_proj holds NaN or infinity"),
    ("slimgpt-0.3", _nan, "model.layers.0.self_attn.q_proj holds NaN or infinity"),
    ("sparsegpt-4of2", _nothing, "N must be at least 1 and less than M"),
    ("sparsegpt-3of7", _nothing, "the pattern 3:7 needs rows whose length is a multiple of 7, this one has 16"),
    ("slimgpt-2of4", _nothing, "slimgpt removes whole heads and channels, give a fraction"),
    ("external-narrow", _narrow, "does not fit the dense model"),
    ("external-unknown", _nothing, "no prune.external.pico.unknown: add it"),
]


@pytest.mark.parametrize(("pruning", "spoil", "message"), CASES, ids=[f"{c[0]}{c[1].__name__}" for c in CASES])
def test_bad_input_is_one_sentence_and_exit_code_2(
    pruning: str,
    spoil: Callable[[Path, PreTrainedModel], None],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = pico.pico()
    layout = project(tmp_path, model)
    spoil(tmp_path, model)
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    files = {"calibration": "c", "instructions": "i", "heldout": "h"}
    params["models"] = {"pico": {"source": "some/model", "threads": 1, "data": files}}
    params["grid"]["model"] = ["pico"]
    params["prune"] |= {"sequence_length": 24, "external": {"pico": {"narrow": {"source": "narrow"}}}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RESTORELCC_PROGRESS", "0")
    monkeypatch.setattr("sys.argv", ["restorelcc", "prune", "--model", "pico", "--pruning", pruning])
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main()
    error = capsys.readouterr().err
    assert caught.value.code == 2, error
    assert error.startswith("restorelcc: error: "), error
    assert message in error
    assert error.count("\n") == 1, error
    assert not layout.pruned(Cell("pico", pruning)).exists()
    assert [path for path in layout.work.rglob("*") if path.is_file() and path.parent.name != "locks"] == []


@pytest.mark.parametrize("key", ["num_local_experts", "num_experts", "n_routed_experts"])
def test_fused_experts_are_refused_with_a_clear_sentence(key: str) -> None:
    config = PretrainedConfig(**{key: 8})
    config.model_type = "some_moe"
    with pytest.raises(BadInput, match="mixture of experts that is not supported: known are mixtral"):
        family_of_config(config)
