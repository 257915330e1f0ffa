"""Fifty items of each of the paper's tasks on SmolLM2: asked and scored as by lm-eval as it comes. Long."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from restorelcc.base.package_data import SOURCE
from restorelcc.models.checkpoints import load_model, load_tokenizer
from restorelcc.stages.evaluate.batches import budgeted_lm, token_budget
from restorelcc.stages.evaluate.confined import sandboxed
from restorelcc.stages.evaluate.local_data import datasets_under
from restorelcc.stages.evaluate.package_data import task_rows
from restorelcc.stages.evaluate.shared_prefix import sharing
from restorelcc.stages.evaluate.tasks import PRESETS, Asked, load_tasks
from tests.package import real_model

pytestmark = pytest.mark.slow
PAPER_7 = PRESETS["paper-7"]
ITEMS = 50
Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    """The model of the package in float32, and its tokenizer."""
    file = real_model()
    from restorelcc.models.gguf import write_converted

    folder = tmp_path_factory.mktemp("smollm2") / "dense"
    write_converted(file, folder)
    return load_model(folder, torch.float32, torch.device("cpu")).eval(), load_tokenizer(folder)


@pytest.fixture(scope="module")
def manager() -> TaskManager:
    return TaskManager()


@pytest.mark.parametrize("name", PAPER_7)
def test_items_are_asked_and_scored_as_by_stock_lm_eval(
    name: str, smollm2: Loaded, manager: TaskManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = smollm2
    with sandboxed():
        ours = load_tasks([Asked(name)], datasets_under(Path(), SOURCE, (name,), str(tmp_path)), str(tmp_path))
        task, stock = ours["tasks"][name], _stock_task(name, manager, monkeypatch)
        task.build_all_requests(limit=ITEMS)
        stock.build_all_requests(limit=ITEMS)
    assert [request.args for request in task.instances] == [request.args for request in stock.instances]
    assert len({request.doc_id for request in stock.instances}) == ITEMS
    given: dict[str, Any] = {"pretrained": model, "tokenizer": tokenizer, "max_length": 2048}
    expected = HFLM(batch_size=8, **given).loglikelihood(stock.instances, disable_tqdm=True)
    budget = token_budget(model)
    found = budgeted_lm(sharing(HFLM, budget), budget, **given).loglikelihood(task.instances, disable_tqdm=True)
    torch.testing.assert_close([value for value, _ in found], [value for value, _ in expected], atol=1e-4, rtol=0)
    assert [right for _, right in found] == [right for _, right in expected]


def _stock_task(name: str, manager: TaskManager, monkeypatch: pytest.MonkeyPatch) -> ConfigurableTask:
    """lm-eval's own definition, whose download gives the first items, for every split that it may name."""

    def downloaded(path: str, name: str | None = None, **_: Any) -> DatasetDict:
        return DatasetDict(dict.fromkeys(("train", "validation", "test"), Dataset.from_list(rows)))

    rows = list(islice(task_rows(name), ITEMS))
    with monkeypatch.context() as patch:
        patch.setattr("datasets.load_dataset", downloaded)
        return manager.load([name])["tasks"][name]
