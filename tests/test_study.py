"""The study's cells and pages, on made-up numbers."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import yaml
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from benchmarks import pruning_parts
from benchmarks.recovery_study import prepare_subject, run_cell
from benchmarks.results import interval, measured_with
from benchmarks.smollm2_page import _ahead, write_smollm2
from benchmarks.study_cells import (
    ABLATIONS,
    OPENING_WORDS,
    STORY_TOKENS,
    StudyCell,
    Subject,
    all_cells,
    all_subjects,
    smollm2_cells,
    write_story_pairs,
)
from benchmarks.study_pages import recovered, write_pages
from restorelcc.base.cell import Cell
from restorelcc.base.documents import write_json
from restorelcc.base.layout import Layout
from restorelcc.base.recoveries import RECOVERIES
from restorelcc.pipeline.params import load_params
from tests.dag import ROOT

CELLS = list(all_cells(all_subjects(Path("/nowhere"))))


def _cell(name: str, restored: float, **changes: object) -> dict:
    study = next(cell for cell in CELLS if cell.name == name)
    made_up = {"seconds": 10.0, "zeros_kept": True, "params_trained": 1234, "params_added": 8, "variants": {}}
    numbers = {
        name: {"accuracy": accuracy, "perplexity": perplexity, "bits_per_byte": 1.0}
        for name, accuracy, perplexity in (("dense", 0.9, 2.0), ("pruned", 0.5, 8.0), ("restored", restored, 4.0))
    }
    return study.as_json() | made_up | numbers | changes


def test_cells_are_distinct_start_with_the_telling_ones_and_use_settings_that_exist() -> None:
    assert len({cell.name for cell in CELLS}) == len(CELLS)
    assert CELLS[0].name == "tiny-0-wanda-0.5-paper-0.25"
    assert {cell.method.recovery for cell in CELLS} - {""} == set(RECOVERIES)
    for overrides in {(*cell.subject.overrides, *cell.method.overrides) for cell in CELLS}:
        load_params(ROOT / "params.yaml", overrides)


def test_the_recovered_share_is_of_accuracy_or_of_log_likelihood() -> None:
    cell = _cell("tiny-0-wanda-0.5-paper-0.25", 0.8)
    assert recovered(cell) == pytest.approx(0.75)
    assert recovered(cell | {"measure": "log-likelihood"}) == pytest.approx(0.5)
    variant = {"merged": {"accuracy": 0.6, "perplexity": 8.0, "sparsity": 0.0}}
    assert recovered(cell | {"variants": variant}, "merged") == pytest.approx(0.25)
    assert recovered(cell | {"variants": variant, "measure": "log-likelihood"}, "merged") == 0.0


def test_intervals_are_students_over_seeds() -> None:
    assert interval([0.5]) == "50.0"
    half = 4.302653 * 10 / math.sqrt(3)
    assert interval([0.4, 0.5, 0.6]) == f"50.0 ± {half:.1f}"


def test_the_pages_hold_what_is_measured_and_name_what_is_not(tmp_path: Path) -> None:
    names = ["tiny-0-wanda-0.5-paper-0.25", "tiny-1-wanda-0.5-paper-0.25", "tiny-0-wanda-0.5-lora-r1-o"]
    merged = {"merged": {"accuracy": 0.55, "perplexity": 8.0, "sparsity": 0.0}}
    merged["merged, zeros put back"] = {"accuracy": 0.52, "perplexity": 8.0, "sparsity": 0.5}
    for name, restored in zip(names, (0.8, 0.7, 0.6), strict=True):
        extra = {"variants": merged, "zeros_kept": None} if "lora" in name else {}
        write_json(tmp_path / "cells" / f"{name}.json", _cell(name, restored, **extra))
    write_json(tmp_path / "cells" / "tiny-0-wanda-0.5-random.json", _cell("tiny-0-wanda-0.5-random", 0.6))
    write_pages(tmp_path, CELLS)
    page = (tmp_path / "recovery.md").read_text()
    assert "| heads, 25 % (the paper) | 2 | 62.5 ± " in page
    assert "| ... merged | 1 | 12.5 | - | - | sparsity 0 % | - |" in page
    assert "| LoRA r=1 on the out-projections, unmerged | 1 | 25.0 | 1,234 | 8 | beside them | 10 |" in page
    assert "| minus LoRA r=1 on the out-projections, unmerged | minus it merged, zeros put back |" in page
    assert "| heads, 25 % (the paper) | 50.0 (one seed) | 70.0 (one seed) |" in page
    assert "Biases alone, no weight touched: heads, 25 % (the paper)" in page
    assert "heads, 25 % (the paper) (seed 2)" in page
    ablation = (tmp_path / "ablation.md").read_text()
    assert ablation.index("heads, 25 % (the paper)") < ablation.index("random heads")


def _real_cell(study: StudyCell, won_back: tuple[float, ...]) -> dict:
    """A cell of the real model: texts of 10 tokens each, of which pruning loses 10 nats; won_back: share per text."""

    def scored(nats: list[float], accuracy: float, response_loss: float) -> dict:
        perplexity = math.exp(sum(nats) / 10 / len(nats))
        numbers = {"accuracy": accuracy, "perplexity": perplexity, "bits_per_byte": 1.0, "tasks": {"rte": accuracy}}
        numbers |= {"log_likelihood": [-each for each in nats], "tokens": [10] * len(nats)}
        return numbers | {"response_loss": response_loss}

    texts = len(won_back)
    against = {"second": 0.45, "difference": 0.05, "ci95": [0.01, 0.09]}
    found = study.as_json() | {"zeros_kept": True, "params_trained": 1234, "params_added": 8, "variants": {}}
    found |= {"seconds": 10.0, "cpu_seconds": 12.0 + study.seed, "peak_memory_bytes": 3_210_000_000}
    found |= {"dense": scored([20.0] * texts, 0.5, 1.8), "pruned": scored([30.0] * texts, 0.4, 2.6)}
    found["restored"] = scored([30.0 - 10 * share for share in won_back], 0.45, 2.0)
    found |= {"versus": {"pruned": against}, "versus_by_task": {"pruned": {"rte": against}}}
    found["recovered_accuracy"] = {"mean": 0.5, "ci95": [0.1, None]}
    return found | {"rivals": {"int8": {"perplexity": {"value": 7.5}, "mean": 0.49}}}


def _of_texts_alone(found: dict) -> dict:
    """A cell of a later seed: the tasks are not asked."""
    of_tasks = (
        "params_trained",
        "params_added",
        "variants",
        "versus",
        "versus_by_task",
        "recovered_accuracy",
        "rivals",
    )
    kept = {name: value for name, value in found.items() if name not in of_tasks}
    scored = ("log_likelihood", "tokens", "response_loss")
    return kept | {name: {key: found[name][key] for key in scored} for name in ("dense", "pruned", "restored")}


def test_the_study_of_a_real_model_judges_the_claims_and_names_what_is_not_run(tmp_path: Path) -> None:
    cells = list(smollm2_cells("quick"))
    assert len({cell.name for cell in cells}) == len(cells)
    assert {cell.pruning for cell in cells} == {"wanda-0.5", "sparsegpt-2of4", "slimgpt-0.2", "refined-0.5"}
    for overrides in {(*cell.subject.overrides, *cell.method.overrides) for cell in cells}:
        load_params(ROOT / "params.yaml", overrides)
    shipped = yaml.safe_load((ROOT / "params.yaml").read_text())
    entry = cells[0].subject.params(shipped, tmp_path)["models"]["smollm2-135m-pip"]
    assert (entry["budget"], entry["tasks"], entry["settings"]["evaluate"]["limit"]) == ("quick", ["paper-7"], 100)
    assert "data" not in entry
    (own_words,) = (cell for cell in cells if cell.name == "smollm2-135m-pip-0-wanda-0.5-paper-0.25-self")
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(own_words.subject.params(shipped, tmp_path)))
    data = load_params(tmp_path / "params.yaml").models["smollm2-135m-pip"].data
    assert data.instructions == f"self:{data.heldout}" and data.calibration == data.heldout
    shares = {"paper-0.25": (0.2, 0.4, 0.3), "random": (0.3, 0.2, 0.4), "ffn": (0.1, 0.3, 0.2)}
    shares |= {"lora-r1-o": (0.5, 0.7, 0.6), "all-sites": (0.6, 0.6, 0.6)}
    for name, won_back in shares.items():
        study = next(cell for cell in cells if (cell.pruning, cell.seed, cell.method.name) == ("wanda-0.5", 0, name))
        made_up = _real_cell(study, won_back)
        if name == "lora-r1-o":
            merged = {"accuracy": 0.42, "perplexity": 20.0, "sparsity": 0.5}
            texts = {"log_likelihood": [-30.0, -28.0, -29.0], "tokens": [10, 10, 10]}
            made_up |= {"zeros_kept": None, "variants": {"merged": merged | {"sparsity": 0.0}, "back": merged | texts}}
        write_json(tmp_path / "cells" / f"{study.name}.json", made_up)
    again = next(cell for cell in cells if cell.name == "smollm2-135m-pip-1-wanda-0.5-all-sites")
    write_json(tmp_path / "cells" / f"{again.name}.json", _of_texts_alone(_real_cell(again, (0.8, 0.8, 0.8))))
    alone = next(cell for cell in cells if cell.name == "smollm2-135m-pip-1-wanda-0.5-masked")
    write_json(tmp_path / "cells" / f"{alone.name}.json", _of_texts_alone(_real_cell(alone, (0.8, 0.8, 0.8))))
    write_smollm2(tmp_path, cells, "quick", "the command")
    page = (tmp_path / "smollm2.md").read_text()
    rows = [[each.strip() for each in line.strip("| ").split("|")] for line in page.splitlines() if line[:1] == "|"]
    judged = {row[2].partition(":")[0]: row[2:] for row in rows if row[0].startswith(("the comp", "comp", "probed"))}
    paper = "heads, 25 % (the paper)"
    assert judged[f"{paper} - a free bias on every FFN output"][1] == "**confirmed here**"
    assert judged[f"{paper} - a free bias on every FFN output"][0].endswith(": +0.1000 [+0.1000, +0.1000]")
    assert judged[f"{paper} - LoRA r=1 on the out-projections, unmerged"][1] == "**contradicted here**"
    assert judged[f"{paper} - random heads, 25 %"][1] == "**not seen here**"
    about_80 = next(row for row in rows if row[0].startswith("about 80"))
    log_likelihood = "30.0 % [20.0, 40.0] of the texts' log-likelihood"
    assert about_80[2] == f"{paper}: 50.0 % [10.0, open] of accuracy; {log_likelihood}"
    assert about_80[3] == "**not seen here**", "80 % is in the interval"
    own = {row[0]: row[1:] for row in rows if len(row) == 12}
    points = "+5.0 [+1.0, +9.0]"
    assert own[paper] == ["1", "30.0 [20.0, 40.0]", "75.0", "14.88", "45.0", points, "1,234", "8", "yes", "12", "3.2"]
    assert own["all heads and a bias on every other linear"][:2] == ["2", interval([0.6, 0.8])]
    of_both = math.exp((3.0 - 0.6 + 3.0 - 0.8) / 2)
    assert own["all heads and a bias on every other linear"][3:5] == [f"{of_both:.2f}", "45.0"]
    assert own["all heads and a bias on every other linear"][-2] == "13"
    assert "surviving weights" not in own, "a later seed is shown beside the first alone"
    assert own["LoRA r=1 on the out-projections, unmerged"][8] == "beside them"
    assert own["... merged"][:5] == ["1", "-", "-", "20.00", "42.0"] and own["... merged"][8] == "sparsity 0 %"
    assert own["... back"][:2] == ["1", "10.0 [0.0, 20.0]"]
    assert [row for row in rows if row[0] == paper][1:] == [[paper, "45, +5 [+1, +9]"]]
    assert "dense 7.39 and 50.0 %; pruned 20.09 and 40.0 %; dense in int8 7.50 and 49.0 %." in page
    every_bias = "all heads and a bias on every other linear"
    assert f"{every_bias} (seed 2)" in page
    assert f"{every_bias} (seeds 0, 1, 2); {paper} (seeds 0, 1, 2)" in page.partition("## slimgpt-0.2")[2]


def test_a_claim_is_held_against_the_spread_of_the_seeds() -> None:
    """0.1 nats ahead with no spread over the texts, but 0.1 of it over three seeds: t(2) * 0.1 * sqrt(1/3 + 1)."""

    def cell(loss: float, pruned: float = 3.0) -> dict:
        losses = {"restored": loss, "pruned": pruned}
        return {name: {"log_likelihood": [-10 * each] * 3, "tokens": [10] * 3} for name, each in losses.items()}

    assert _ahead([cell(2.0)], [cell(2.1)]) == pytest.approx((0.1, 0.1, 0.1))
    gain, low, high = _ahead([cell(1.9), cell(2.0), cell(2.1)], [cell(2.1)])
    half = 4.302653 * 0.1 * math.sqrt(1 / 3 + 1)
    assert (gain, low, high) == pytest.approx((0.1, 0.1 - half, 0.1 + half), rel=1e-5)
    assert _ahead([cell(2.0, 3.2)], [cell(2.1, 3.0)]) == pytest.approx((0.3, 0.3, 0.3)), (
        "each from its own pruned model"
    )


def test_the_page_says_where_the_pruned_models_are_not_the_same(tmp_path: Path) -> None:
    first, second, _ = (cell for cell in smollm2_cells("quick") if cell.name.endswith("-wanda-0.5-all-sites"))
    for cell, moved in ((first, 1.0), (second, 1.01)):
        found = _real_cell(cell, (0.2, 0.4))
        found["pruned"]["log_likelihood"] = [moved * each for each in found["pruned"]["log_likelihood"]]
        write_json(tmp_path / "cells" / f"{cell.name}.json", found)
        write_smollm2(tmp_path, list(smollm2_cells("quick")), "quick", "the command")
        page = (tmp_path / "smollm2.md").read_text()
        assert ("its log-likelihood of the texts differs by up to 1 %." in page) is (cell is second)


def test_the_page_says_when_and_with_what_its_cells_were_measured(tmp_path: Path) -> None:
    first, second, _ = (cell for cell in smollm2_cells("quick") if cell.name.endswith("-wanda-0.5-all-sites"))
    for cell, own in ((first, {}), (second, {"measured": {"dates": ["2027-01-02"], "versions": {"torch": "3.0"}}})):
        write_json(tmp_path / "cells" / f"{cell.name}.json", _real_cell(cell, (0.2, 0.4)) | own)
        write_smollm2(tmp_path, list(smollm2_cells("quick")), "quick", "the command")
        told = " ".join((tmp_path / "smollm2.md").read_text().split())
        assert f"Measured from 2026-11-29 to {'2027-01-02' if own else '2026-11-30'} with torch 2.13.0, " in told
        assert ("lm-eval 0.4.13; or with torch 3.0." in told) is bool(own)
    assert set(measured_with("torch", "lm-eval")["versions"]) == {"torch", "lm-eval"}


def test_what_one_budget_measured_is_no_result_of_another(tmp_path: Path) -> None:
    quick, day = (list(smollm2_cells(budget)) for budget in ("quick", "day"))
    assert not {cell.name for cell in quick} & {cell.name for cell in day}
    assert not {cell.subject.name for cell in quick} & {cell.subject.name for cell in day}
    write_json(tmp_path / "cells" / f"{quick[0].name}.json", _real_cell(quick[0], (0.2, 0.4)))
    for cells, budget in ((quick, "quick"), (day, "day")):
        write_smollm2(tmp_path, cells, budget, "the command")
    assert "| all heads and a bias on every other linear | 1 | " in (tmp_path / "smollm2.md").read_text()
    assert f"| {quick[0].method.title} |" not in (tmp_path / "smollm2-day.md").read_text()


def test_a_model_trained_on_its_own_words_is_not_what_the_paper_claims_of(tmp_path: Path) -> None:
    cells = [cell for cell in smollm2_cells("quick") if (cell.pruning, cell.seed) == ("wanda-0.5", 0)]
    for name, won_back in {"paper-0.25": (0.2, 0.4), "paper-0.25-self": (0.8, 0.9)}.items():
        (study,) = (cell for cell in cells if cell.method.name == name)
        write_json(tmp_path / "cells" / f"{study.name}.json", _real_cell(study, won_back))
    write_smollm2(tmp_path, cells, "quick", "the command")
    (line,) = (line for line in (tmp_path / "smollm2.md").read_text().splitlines() if "about 80 %" in line)
    assert "30.0 % [20.0, 40.0]" in line


def test_a_cell_that_is_broken_off_leaves_the_shipped_ranking_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = Subject("tiny", "tiny", pretrain_seed=0)
    layout, pruned = Layout(tmp_path / subject.name), Cell("tiny", "wanda-0.5")
    (other,) = (method for method in ABLATIONS if method.name == "mse")

    def run_stage(_root: Path, stage: str, cell: Cell, overrides: tuple[str, ...] = ()) -> None:
        if stage == "compensate":
            raise KeyboardInterrupt
        if stage == "probe":
            layout.heads(cell).write_text(f"ranked with {overrides}")

    monkeypatch.setattr("benchmarks.recovery_study.run_stage", run_stage)
    layout.heads(pruned).parent.mkdir(parents=True)
    with pytest.raises(KeyboardInterrupt):
        run_cell(tmp_path, StudyCell(subject, "wanda-0.5", other, 0), [])
    assert layout.heads(pruned).read_text() == "ranked with ('probe.score=mse',)"
    prepare_subject(tmp_path / subject.name, subject, "wanda-0.5")
    assert layout.heads(pruned).read_text() == "ranked with ()"


@pytest.mark.parametrize(
    ("mean", "ci95", "verdict"),
    [
        (0.9, [0.85, 0.95], "**confirmed here**"),
        (0.5, [0.3, 0.7], "**contradicted here**"),
        (None, None, "**not seen here**"),
    ],
)
def test_what_the_paper_says_of_accuracy_is_judged_by_accuracy(
    mean: float | None, ci95: list[float] | None, verdict: str, tmp_path: Path
) -> None:
    cells = list(smollm2_cells("quick"))
    study = next(cell for cell in cells if cell.name == "smollm2-135m-pip-0-wanda-0.5-paper-0.25")
    made_up = _real_cell(study, (0.2, 0.4)) | {"recovered_accuracy": {"mean": mean, "ci95": ci95}}
    write_json(tmp_path / "cells" / f"{study.name}.json", made_up)
    write_smollm2(tmp_path, cells, "quick", "the command")
    line = next(line for line in (tmp_path / "smollm2.md").read_text().splitlines() if "about 80 %" in line)
    assert line.endswith(f"{verdict} |")
    assert ("these items show no loss of accuracy (50.0 % dense, 40.0 % pruned)" in line) == (mean is None)


def test_stories_become_pairs_whose_questions_differ_and_that_fit_the_context(tmp_path: Path) -> None:
    stories = ["One day a cat sat.\n\nIt slept.", "One day a cat ran far.", "word " * 600, "too short"]
    (tmp_path / "s.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in stories))
    words = Tokenizer(WordLevel({"word": 0, "<unk>": 1}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
    write_story_pairs(tmp_path / "s.jsonl", tmp_path / "p.jsonl", tokenizer)
    cat, ran, long = (json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines())
    assert cat == {"question": "One day a cat sat.", "response": "It slept."}
    assert ran == {"question": "One day a cat ran", "response": "far."}
    assert long["question"] == "word word word word"
    assert long["response"].split() == ["word"] * (STORY_TOKENS - OPENING_WORDS)


def test_a_difference_is_called_one_only_where_its_interval_leaves_out_zero(tmp_path: Path) -> None:
    shares = {"paper-0.25": (0.60, 0.62, 0.64), "random": (0.59, 0.65, 0.60), "mse": (0.55, 0.57, 0.595)}
    for method, of_seeds in shares.items():
        for seed, restored in enumerate(of_seeds):
            name = f"tiny-{seed}-wanda-0.5-{method}"
            write_json(tmp_path / "cells" / f"{name}.json", _cell(name, restored))
    write_pages(tmp_path, CELLS)
    page = (tmp_path / "ablation.md").read_text()
    assert "| points, paired by seed | minus heads, 25 % (the paper) |" in page
    rows = {line.split(" | ")[0]: line for line in page.splitlines() if "told apart" in line or "behind |" in line}
    assert "not told apart" in rows["| random heads"]
    assert rows["| heads by the mean squared error of their activations"].endswith("behind |")


def test_the_parts_of_refined_are_shares_of_wandas_loss_over_the_draws() -> None:
    def cell(nats: float) -> dict[str, float]:
        return {"log_likelihood": -nats, "tokens": 100, "cpu_seconds": 1.0}

    found = {"dense||0": cell(100.0)}
    for seed, share in enumerate((0.4, 0.5, 0.6)):
        found[f"Wanda|0.5|{seed}"] = cell(200.0)
        found[f"SparseGPT|0.5|{seed}"] = cell(200.0 - 100 * share) | {"cpu_seconds": 2.5 + seed}
    lines = {line.split(" | ")[0].strip("| "): line for line in pruning_parts.section(found)}
    own = [each.strip() for each in lines["SparseGPT"].strip("| ").split("|")]
    assert own == ["SparseGPT", "4.50", interval([0.4, 0.5, 0.6]), "4.5", "-", "-", "-"]
    assert lines["Wanda"].count(" - ") == 4, "no share of its own, and 2:4 is not measured"
    assert "dense: 2.72" in "".join(pruning_parts.section(found))
