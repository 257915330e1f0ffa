"""What the recovery study consists of: subjects, methods, and the order of their cells."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from restorelcc.core.cell import Cell

SEEDS = (0, 1, 2)
ALL_SITES = "[o, v, q, k, gate, up, down]"
QUESTION_WORDS, CHUNK_WORDS = 20, 165  # of a story: what is given, and how much at most in all (under 512 tokens)


@dataclass(frozen=True)
class Subject:
    """A model with its data. The embedded one is trained anew with each seed; stories260K is what it is."""

    name: str
    model: str
    pretrain_seed: int | None = None
    real: Path | None = None
    overrides: tuple[str, ...] = ()

    def params(self, shipped: dict, root: Path) -> dict:
        """params.yaml of the subject's folder."""
        shipped["grid"]["model"] = [self.model]
        if self.pretrain_seed is not None:
            shipped["dense"]["pretrain"]["seed"] = self.pretrain_seed
        if self.real is not None:
            data = self.real / "data" / "stories"
            write_story_pairs(data / "train.jsonl", root / "pairs.jsonl")
            shipped["models"] = {
                self.model: {
                    "source": str(self.real / "models" / "stories260K"),
                    "threads": 1,
                    "data": {"calibration": str(data / "calibration.jsonl"), "instructions": str(root / "pairs.jsonl")}
                    | {"heldout": str(data / "heldout.jsonl")},
                }
            }
            shipped["corpus"] |= {"train": 2000, "valid": 100, "contrast": 200}
            shipped["prune"] |= {"samples": 128, "sequence_length": 512}
            shipped["capture"]["max_tokens"] = 512
            shipped["evaluate"]["perplexity_tokens"] = 512
        return shipped


def write_story_pairs(stories: Path, pairs: Path) -> None:
    """Stories as question (the first words) and response (the rest), cut to what the model's context holds."""
    lines = []
    for line in stories.read_text(encoding="utf-8").splitlines():
        words = json.loads(line)["text"].split()[:CHUNK_WORDS]
        if len(words) > 2 * QUESTION_WORDS:
            question, response = " ".join(words[:QUESTION_WORDS]), " ".join(words[QUESTION_WORDS:])
            lines.append(json.dumps({"question": question, "response": response}))
    pairs.write_text("\n".join(lines) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Method:
    """A way to recover: the stage that does it, what it is told, and how the tables call it."""

    name: str
    title: str
    stage: str = "compensate"
    ratio: str = "0.25"
    baseline: str = ""
    overrides: tuple[str, ...] = ()
    ranking: str | None = None  # probe.score, where it is not the shipped one
    table: str = "recovery"

    def cell(self, pruned: Cell) -> Cell:
        if self.stage == "compensate":
            return dataclasses.replace(pruned, head_ratio=self.ratio)
        return dataclasses.replace(pruned, baseline=self.baseline)


@dataclass(frozen=True)
class StudyCell:
    """One number of the study."""

    subject: Subject
    pruning: str
    method: Method
    seed: int

    @property
    def name(self) -> str:
        return f"{self.subject.model}-{self.seed}-{self.pruning}-{self.method.name}"

    def as_json(self) -> dict:
        return {"subject": self.subject.model, "seed": self.seed, "pruning": self.pruning, "method": self.method.name}


def _weights(name: str, title: str, *overrides: str) -> Method:
    return Method(name, title, stage="baseline", baseline=name.split("+")[0], overrides=overrides)


PAPER = Method("paper-0.25", "paper: 25 % of the heads")
PAPER_TENTH = Method("paper-0.1", "paper: 10 % of the heads", ratio="0.1")
PAPER_ALL = Method("paper-1.0", "paper: all heads", ratio="1.0")
SITES = Method(
    "all-sites", "25 % of the heads and a bias on every other linear", overrides=(f"compensate.sites={ALL_SITES}",)
)
RECOVERY: tuple[Method, ...] = (PAPER, SITES, PAPER_TENTH)
ABLATIONS: tuple[Method, ...] = ()


def all_subjects(real: Path) -> list[Subject]:
    """The embedded default with three seeds of its pretraining, and stories260K where it is at hand."""
    rates = "[0.01, 0.03]"
    budget = (f"compensate.learning_rates={rates}",)
    tiny = [Subject(f"tiny-s{seed}", "tiny", seed, overrides=budget) for seed in SEEDS]
    stories = (*budget, "compensate.epochs=2", "compensate.batch_size=8")
    found = tiny + ([Subject("stories", "stories", real=real, overrides=stories)] if (real / "models").is_dir() else [])
    return found


def all_cells(subjects: list[Subject]) -> Iterator[StudyCell]:
    """Most telling first."""
    tiny = [subject for subject in subjects if subject.pretrain_seed is not None]
    stories = [subject for subject in subjects if subject.real is not None]
    for method in RECOVERY:
        for subject in tiny:
            yield StudyCell(subject, "wanda-0.5", method, subject.pretrain_seed or 0)
    for subject in stories:
        for seed in SEEDS:
            for method in (PAPER_ALL, SITES):
                yield StudyCell(subject, "wanda-0.5", method, seed)
