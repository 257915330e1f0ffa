"""The shipped pipeline, run twice from nothing: what it promises holds, and both runs are byte-identical. Minutes."""

from __future__ import annotations

import random

import pytest
import torch

from restorelcc.base.tables import ITEMS, read_table, read_texts
from restorelcc.models.architectures import out_projections
from restorelcc.models.checkpoints import load_model, load_tokenizer
from restorelcc.stages.dense.pretrain import DevItem, choice_accuracy
from tests.stages.prune.test_trained import CONFIG, pruned_by_each, share_in_order
from tests.whole_project import Project

pytestmark = pytest.mark.slow
RATIOS = (0.1, 0.25)
CHANCE = {"world_boolq": 0.5, "world_arc": 0.25, "world_hellaswag": 0.25, "world_winogrande": 0.5, "world_rte": 0.5}


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = Project(tmp_path_factory.mktemp("shipped") / "project", changes={})
    project.repro()
    return project


def test_the_default_keeps_its_promises(shipped: Project) -> None:
    dense, pruned = (shipped.json(f"data/metrics/tiny/{name}.json") for name in ("dense", "wanda-0.5/pruned"))
    assert dense["mean"] >= 0.90
    assert all(task["n"] >= 300 and task["value"] >= 0.80 for task in dense["tasks"].values())
    assert dense["mean"] - pruned["mean"] >= 0.15
    shares = [shipped.json(f"data/metrics/tiny/wanda-0.5/heads-{ratio}.json")["recovered"] for ratio in RATIOS]
    best = max(shares, key=lambda share: share["mean"])
    assert best["mean"] > 0
    assert best["ci95"][0] > 0


def test_layer_errors_are_in_order_on_the_embedded_model(shipped: Project) -> None:
    """sparsegpt < wanda < magnitude at 50 %, on at least 80 % of the layers."""
    texts = read_texts(shipped.folder / "data/corpus/tiny/calibration.parquet")
    assert share_in_order(pruned_by_each(shipped.folder / "data/tiny/dense", texts, CONFIG)) >= 0.8


def _items(shipped: Project, task: str) -> list[tuple[str, list[str], int]]:
    rows = read_table(shipped.folder / f"data/corpus/tiny/tasks/{task}.parquet", ITEMS)
    return [(row["question"], row["choices"], row["gold"]) for row in rows]


@pytest.mark.parametrize("task", CHANCE)
def test_every_task_falls_to_chance_without_attention_or_word_order(shipped: Project, task: str) -> None:
    folder = shipped.folder / "data/tiny/dense"
    model, tokenizer = load_model(folder, torch.float32, torch.device("cpu")), load_tokenizer(folder)
    rng = random.Random(0)

    def accuracy(items: list[tuple[str, list[str], int]]) -> float:
        encoded: list[DevItem] = [
            (tokenizer(q)["input_ids"], [tokenizer(c)["input_ids"] for c in choices], gold)
            for q, choices, gold in items
        ]
        return choice_accuracy(model, encoded)

    items = _items(shipped, task)
    assert accuracy(items) > CHANCE[task] + 0.3
    shuffled = []
    for question, choices, gold in items:
        *words, last = question.split()
        shuffled.append((" ".join([*rng.sample(words, len(words)), last]), choices, gold))
    assert abs(accuracy(shuffled) - CHANCE[task]) < 0.1
    questions = rng.sample([question for question, _, _ in items], len(items))
    exchanged = [(question, choices, gold) for question, (_, choices, gold) in zip(questions, items, strict=True)]
    assert abs(accuracy(exchanged) - CHANCE[task]) < 0.1
    for projection in out_projections(model):
        projection.weight.zero_()
    assert abs(accuracy(items) - CHANCE[task]) < 0.1


def test_a_second_run_from_nothing_is_byte_identical(
    shipped: Project, tmp_path_factory: pytest.TempPathFactory
) -> None:
    again = Project(tmp_path_factory.mktemp("again") / "project", changes={})
    again.repro()
    base = "data/tiny/wanda-0.5"
    names = [f"{base}/components.safetensors", f"{base}/heads.parquet", "data/tiny/dense/model.safetensors"]
    names += [f"{base}/heads-{ratio}/compensation.safetensors" for ratio in RATIOS]
    for name in names:
        assert (again.folder / name).read_bytes() == (shipped.folder / name).read_bytes(), name
    for name in ("dense", "wanda-0.5/pruned", *(f"wanda-0.5/heads-{ratio}" for ratio in RATIOS)):
        ours, theirs = (project.json(f"data/metrics/tiny/{name}.json") for project in (shipped, again))
        for metrics in (ours, theirs):
            del metrics["sha256"]
        assert ours == theirs, name
