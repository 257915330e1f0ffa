"""lm-eval and perplexity against hand computations."""

import math
from pathlib import Path

import pytest
import torch
import yaml

from restorelcc.core.errors import BadInput
from restorelcc.evaluate.harness import item_rows, run_harness, selected_tasks, task_metrics
from restorelcc.evaluate.perplexity import token_perplexity
from restorelcc.evaluate.stage import folded_parameters, parameter_counts, sparsity_of
from restorelcc.io.corpus_tables import ITEMS
from restorelcc.io.documents import write_json
from restorelcc.io.tables import write_table
from tests import pico


def test_perplexity_equals_a_hand_computation() -> None:
    model, tokenizer = pico.pico(), pico.word_tokenizer()
    texts = ["w5 w6 w7", "w8 w9", "w10"]  # the last has no token with a past
    with torch.no_grad():
        first = model(input_ids=torch.tensor([[5, 6, 7]])).logits.log_softmax(-1)
        second = model(input_ids=torch.tensor([[8, 9]])).logits.log_softmax(-1)
    nll = -(first[0, 0, 6] + first[0, 1, 7] + second[0, 0, 9]).item() / 3
    found = token_perplexity(model, tokenizer, texts, 8)
    assert found["tokens"] == 3
    assert math.isclose(found["value"], math.exp(nll), rel_tol=1e-5)


def test_perplexity_of_nothing_is_refused() -> None:
    with pytest.raises(BadInput, match="longer texts"):
        token_perplexity(pico.pico(), pico.word_tokenizer(), ["w5"], 8)


def _write_task(folder: Path, count: int) -> list[dict]:
    from restorelcc.corpus.stage import _task

    generator = torch.Generator().manual_seed(0)
    words = [[f"w{n}" for n in row] for row in torch.randint(3, 63, (count, 9), generator=generator).tolist()]
    rows = [
        {
            "item_id": n,
            "question": " ".join(w[:4]),
            "choices": [" ".join(w[4:6]), w[6], " ".join(w[7:9])],
            "gold": n % 3,
        }
        for n, w in enumerate(words)
    ]
    write_table(folder / "pico_task.parquet", rows, ITEMS)
    (folder / "pico_task.yaml").write_text(yaml.safe_dump(_task("pico_task", Path("elsewhere/pico_task.parquet"))))
    write_json(folder / "tasks.json", {"embedded": ["pico_task"], "lm_eval": []})
    return rows


def test_lm_eval_equals_a_direct_log_likelihood_computation(tmp_path: Path) -> None:
    rows = _write_task(tmp_path, 50)
    model, tokenizer = pico.pico(), pico.word_tokenizer()
    tasks = selected_tasks(tmp_path, str(tmp_path / "cache"))
    results = run_harness(model, tokenizer, tasks, batch_size=7, limit=None, seed=0)
    found = item_rows(results)
    assert [row["item_id"] for row in found] == list(range(50))
    correct = 0
    for row, ours in zip(rows, found, strict=True):
        question, expected = tokenizer(row["question"])["input_ids"], []
        for choice in row["choices"]:
            ids = question + tokenizer(choice)["input_ids"]
            with torch.no_grad():
                log_p = model(input_ids=torch.tensor([ids])).logits.log_softmax(-1)[0]
            expected.append(sum(log_p[at - 1, ids[at]].item() for at in range(len(question), len(ids))))
        assert ours["log_likelihoods"] == pytest.approx(expected, abs=1e-4)
        assert ours["prediction"] == max(range(3), key=expected.__getitem__)
        assert ours["correct"] == (ours["prediction"] == row["gold"] == ours["gold"])
        correct += ours["correct"]
    metrics = task_metrics(results)["pico_task"]
    assert (metrics["metric"], metrics["n"], metrics["version"]) == ("acc", 50, 1.0)
    assert metrics["value"] == pytest.approx(correct / 50)
    assert metrics["stderr"] == pytest.approx(math.sqrt(correct / 50 * (1 - correct / 50) / 49))


def test_a_task_that_lm_eval_does_not_know_is_refused() -> None:
    with pytest.raises(BadInput, match="no_such_task"):
        run_harness(pico.pico(), pico.word_tokenizer(), ["no_such_task"], batch_size=1, limit=1, seed=0)


def test_counts_of_parameters_and_zeros() -> None:
    model = pico.pico()
    first = model.model.layers[0].self_attn.q_proj.weight
    before = parameter_counts(model)["params_nonzero"]  # the embedding of the padding token is zero from the start
    first[0] = 0
    counts = parameter_counts(model)
    assert counts["params_total"] == sum(p.numel() for p in model.parameters())
    assert counts["params_nonzero"] == before - first.shape[1]
    prunable = sum(m.weight.numel() for m in model.model.layers.modules() if isinstance(m, torch.nn.Linear))
    assert sparsity_of(model) == pytest.approx(first.shape[1] / prunable)


def test_added_parameters_are_bias_entries_of_layers_with_a_compensated_head() -> None:
    offset = torch.zeros(pico.LAYERS, pico.HEADS, pico.HEAD_DIM)
    offset[1, 2, 3] = 1.0
    assert folded_parameters(pico.pico("llama"), offset) == pico.WIDTH
    assert folded_parameters(pico.pico("opt"), offset) == 0, "OPT's out-projection has a bias already"
