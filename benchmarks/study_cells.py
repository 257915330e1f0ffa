"""What the recovery study consists of: subjects, methods, and the order of their cells."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from restorelcc.base.cell import Cell
from restorelcc.base.recoveries import RECOVERIES, Ships

SEEDS = (0, 1, 2)
ALL_SITES = "[o, v, q, k, gate, up, down]"
OPENING_WORDS, STORY_TOKENS = 4, 490  # of a story: given at least, and used at most (the context has 512)
STORY_ENDING = {
    "task": "story_ending",
    "dataset_path": "json",
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "query",
    "doc_to_choice": "choices",
    "doc_to_target": "gold",
    "metric_list": [{"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True}],
    "metadata": {"version": 1.0},
}


@dataclass(frozen=True)
class Subject:
    """A model with its data. The embedded one is trained anew with each seed; the others are what they are.

    real: the folder of stories260K and its data; budget: of the model from packages (docs/real-model.md). Of that model
    the held-out texts are scored one by one as well, for intervals over texts. own_words: the model answers the pairs'
    questions itself, and is trained on that.
    """

    name: str
    model: str
    pretrain_seed: int | None = None
    real: Path | None = None
    overrides: tuple[str, ...] = ()
    budget: str | None = None
    own_words: bool = False

    @property
    def items_of_each(self) -> int | None:
        """Of all seven tasks, where the budget `quick` would ask three of them; None: as the budget says."""
        return 100 if self.budget == "quick" else None

    @property
    def measured_as(self) -> str:
        """The model, and its budget where that is not `quick`: what was measured with one is no result of another."""
        return self.model if self.budget in (None, "quick") else f"{self.model}-{self.budget}"

    def params(self, shipped: dict, root: Path) -> dict:
        """params.yaml of the subject's folder."""
        shipped["grid"]["model"] = [self.model]
        if self.budget is not None:
            shipped["models"][self.model] |= {"budget": self.budget, "threads": 1}
            if self.items_of_each is not None:
                amounts = {"corpus": {"heldout": 100}, "evaluate": {"limit": self.items_of_each}}
                shipped["models"][self.model] |= {"tasks": ["paper-7"], "settings": amounts}
        if self.own_words:
            shipped["models"][self.model]["data"] = {"instructions": "self"}
        if self.pretrain_seed is not None:
            shipped["dense"]["pretrain"]["seed"] = self.pretrain_seed
        if self.real is not None:
            data = self.real / "data" / "stories"
            tokenizer = AutoTokenizer.from_pretrained(self.real / "models" / "stories260K", trust_remote_code=False)
            write_story_pairs(data / "train.jsonl", root / "pairs.jsonl", tokenizer)
            task = STORY_ENDING | {
                "dataset_kwargs": {"data_files": {"test": str(self.real / "data" / "story_ending" / "test.jsonl")}}
            }
            (root / "tasks").mkdir(exist_ok=True)
            (root / "tasks" / "story_ending.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
            shipped["models"] = {
                self.model: {
                    "source": str(self.real / "models" / "stories260K"),
                    "threads": 1,
                    "data": {"calibration": str(data / "calibration.jsonl"), "instructions": str(root / "pairs.jsonl")}
                    | {"heldout": str(data / "heldout.jsonl")},
                    "tasks": [str(root / "tasks")],
                }
            }
            shipped["corpus"] |= {"train": 2000, "valid": 100, "contrast": 200}
            shipped["prune"] |= {"samples": 128, "sequence_length": 512}
            shipped["corpus"]["max_tokens"] = shipped["capture"]["max_tokens"] = 512
            shipped["evaluate"]["perplexity_tokens"] = 512
        return shipped


def write_story_pairs(stories: Path, pairs: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Stories, cut to the context, as question (an opening that no other story has) and response (the rest, line breaks
    and all). Nearly every token of a story is trained on, and no story is left out as a question seen before."""
    texts = []
    for line in stories.read_text(encoding="utf-8").splitlines():
        text = json.loads(line)["text"]
        offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
        texts.append(text[: offsets[STORY_TOKENS][0]].rstrip() if len(offsets) > STORY_TOKENS else text)
    ends = [[word.end() for word in re.finditer(r"\S+", text)] for text in texts]
    times = Counter(text[:end].casefold() for text, of_text in zip(texts, ends, strict=True) for end in of_text)
    lines = []
    for text, of_text in zip(texts, ends, strict=True):
        own = (end for end in of_text[OPENING_WORDS - 1 : -1] if times[text[:end].casefold()] == 1)
        if end := next(own, None):
            lines.append(json.dumps({"question": text[:end], "response": text[end:].lstrip()}))
    pairs.write_text("\n".join(lines) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Method:
    """A way to recover: the stage that does it, what it is told, and how the tables call it."""

    name: str
    title: str
    stage: str = "compensate"
    ratio: str = "0.25"
    recovery: str = ""
    overrides: tuple[str, ...] = ()
    ranking: str | None = None  # probe.score, where it is not the shipped one
    table: str = "recovery"
    task: str | None = None  # the recovered share is of this task

    @property
    def ships(self) -> Ships:
        """What a user has to ship beside, or in place of, the pruned checkpoint."""
        return RECOVERIES[self.recovery].ships if self.recovery else "biases"

    @property
    def labels(self) -> bool:
        """Whether it is trained on responses."""
        return RECOVERIES[self.recovery].labels if self.recovery else True

    def cell(self, pruned: Cell) -> Cell:
        if self.stage == "compensate":
            return dataclasses.replace(pruned, head_ratio=self.ratio)
        return dataclasses.replace(pruned, recovery=self.recovery)


@dataclass(frozen=True)
class StudyCell:
    """One number of the study."""

    subject: Subject
    pruning: str
    method: Method
    seed: int

    @property
    def name(self) -> str:
        return f"{self.subject.measured_as}-{self.seed}-{self.pruning}-{self.method.name}"

    @property
    def asks_tasks(self) -> bool:
        """Whether the stage `evaluate` runs. Of the model from packages it does for the first seed alone: there it
        takes as long as the recovery, and so few items tell nothing of seeds. The texts are scored for all."""
        return self.subject.budget is None or self.seed == SEEDS[0]

    @property
    def rates_from(self) -> str | None:
        """The cell whose choice of the learning rate this one takes over, where the model is the same for all seeds:
        the first seed's, and for all that train biases alone that of a bias everywhere."""
        if self.subject.pretrain_seed is not None:
            return None
        method = ALL_SITES_FREE if self.method.ships == "biases" else self.method
        first = dataclasses.replace(self, seed=SEEDS[0], method=method)
        return None if first == self else first.name

    def as_json(self) -> dict:
        """What the pages need to know of the cell beside what is measured."""
        measure = "accuracy" if self.subject.pretrain_seed is not None else "log-likelihood"
        named = {"subject": self.subject.model, "seed": self.seed, "pruning": self.pruning}
        return named | {"method": self.method.name, "measure": measure}


def _other(name: str, title: str, *overrides: str, recovery: str = "", table: str = "recovery") -> Method:
    return Method(name, title, "recover", recovery=recovery or name, overrides=overrides, table=table)


def _sites(name: str, title: str, *overrides: str, ratio: str = "0.25") -> Method:
    return Method(name, title, ratio=ratio, overrides=(f"compensate.sites={ALL_SITES}", *overrides))


def _ablation(name: str, title: str, *overrides: str, ranking: str | None = None) -> Method:
    return Method(name, title, overrides=overrides, ranking=ranking, table="ablation")


# Rates that changes of whole weights and adapters choose from: as many as the compensations have, but lower ones.
_WEIGHT_RATES = "recover.learning_rates=[0.001, 0.005]"
_RANK_1 = ("recover.rank=1", "recover.lora_sites=[o]")

PAPER = Method("paper-0.25", "heads, 25 % (the paper)")
PAPER_ALL = Method("paper-1.0", "heads, all (the paper)", ratio="1.0")
SITES = _sites("sites", "heads 25 % and a bias on every other linear")
BIAS = _other("bias", "a free bias on every out-projection (limit of heads)")
MASKED_BOTH = _other("masked-compensated", "surviving weights, then biases", _WEIGHT_RATES)
LORA_1 = _other("lora-r1-o", "LoRA r=1 on the out-projections, unmerged", *_RANK_1, recovery="lora")
MASKED = _other("masked", "surviving weights", _WEIGHT_RATES)
RECONSTRUCTED_DISTILLED = _other("reconstruct-distilled", "block reconstruction, then distillation", _WEIGHT_RATES)
RECONSTRUCTED_BOTH = _other("reconstruct-compensated", "block reconstruction, then biases", _WEIGHT_RATES)
FIRST: tuple[Method, ...] = (PAPER, SITES, MASKED_BOTH, LORA_1, BIAS)
FURTHER: tuple[Method, ...] = (
    Method("paper-0.1", "heads, 10 % (the paper)", ratio="0.1"),
    PAPER_ALL,
    Method("heads-meanshift", "heads, 25 %, from the mean shift", overrides=("compensate.start=meanshift",)),
    Method("heads-ridge", "heads, 25 %, from the ridge", overrides=("compensate.start=ridge",)),
    _sites("sites-distilled", "heads 25 %, biases, and distillation", "compensate.distill={weight: 0.5}"),
    Method("heads-auto", "heads, ratio chosen on the validation pairs", ratio="auto"),
    MASKED,
    _other("masked-lora", "LoRA r=8 under the mask, merged", _WEIGHT_RATES),
    _other("reconstruct", "block reconstruction", _WEIGHT_RATES),
    RECONSTRUCTED_BOTH,
    RECONSTRUCTED_DISTILLED,
    _other("lora", "LoRA r=8 on every linear, unmerged", _WEIGHT_RATES),
    _other("dora", "DoRA r=8 on every linear, unmerged", _WEIGHT_RATES),
    _other("eora", "EoRA r=8 on every linear, unmerged"),
    _other("meanshift", "mean shift (FLAP-style)"),
    _other("lofit", "LoFiT"),
    _other("ffn", "a free bias on every FFN output"),
)
ABLATIONS: tuple[Method, ...] = (
    _other("random", "random heads", table="ablation"),
    _ablation("mse", "heads by the mean squared error of their activations", ranking="mse"),
    _ablation("kl", "heads by the divergence of their activations (KL)", ranking="kl"),
    _ablation("no-directions", "no directions (b only)", "compensate.parts=[bias]"),
    _ablation("no-bias", "no bias (beta only)", "compensate.parts=[beta]"),
    _other("ffn-ablation", "FFN outputs instead of heads", recovery="ffn", table="ablation"),
    _ablation("heads-and-ffn", "heads and FFN outputs", "compensate.sites=[o, down]"),
)
TARGET = "world_hellaswag"
TASK_SPECIFIC: tuple[Method, ...] = tuple(
    dataclasses.replace(method, name=f"target-{method.name}", title=f"{method.title}; 100 examples of {TARGET}",
                        overrides=(*method.overrides, f"{method.stage}.task={TARGET}", f"{method.stage}.examples=100"),
                        task=TARGET, table="target")
    for method in (PAPER, SITES, MASKED_BOTH, LORA_1)
)  # fmt: skip
ALL_SITES_FREE = _sites("all-sites", "all heads and a bias on every other linear", ratio="1.0")
STORIES_FIRST: tuple[Method, ...] = (ALL_SITES_FREE, PAPER_ALL, BIAS, MASKED_BOTH, LORA_1)
STORIES_ON_TOP: tuple[Method, ...] = (ALL_SITES_FREE, PAPER_ALL, MASKED)  # of a pruning that has biases already
STORIES_FURTHER: tuple[Method, ...] = (SITES, MASKED, RECONSTRUCTED_BOTH)


def all_subjects(real: Path) -> list[Subject]:
    """The embedded default with three seeds of its pretraining, and stories260K."""
    budget = ("compensate.learning_rates=[0.01, 0.03]", "recover.learning_rates=[0.01, 0.03]")
    found = [Subject(f"tiny-s{seed}", "tiny", seed, overrides=budget) for seed in SEEDS]
    stories = [f"{stage}.{key}" for stage in ("compensate", "recover") for key in ("epochs=3", "batch_size=2")]
    stories += ["compensate.learning_rates=[0.03, 0.05]", "recover.learning_rates=[0.01, 0.03]"]
    return [*found, Subject("stories", "stories", real=real, overrides=tuple(stories))]


def all_cells(subjects: list[Subject]) -> Iterator[StudyCell]:
    """Most telling first; every cell once."""
    tiny = [subject for subject in subjects if subject.pretrain_seed is not None]
    stories = [subject for subject in subjects if subject.real is not None]

    def on_tiny(methods: tuple[Method, ...], pruning: str) -> Iterator[StudyCell]:
        for subject in tiny:
            for method in methods:
                yield StudyCell(subject, pruning, method, subject.pretrain_seed or 0)

    def on_stories(methods: tuple[Method, ...], pruning: str) -> Iterator[StudyCell]:
        for seed in SEEDS:
            for method in methods:
                for subject in stories:
                    yield StudyCell(subject, pruning, method, seed)

    yield from on_tiny(FIRST, "wanda-0.5")
    yield from on_stories(STORIES_FIRST + STORIES_FURTHER, "wanda-0.5")
    yield from on_tiny(ABLATIONS, "wanda-0.5")
    yield from on_tiny(TASK_SPECIFIC, "wanda-0.6")
    yield from on_tiny(FURTHER, "wanda-0.5")
    for pruning in ("wanda-0.6", "wanda-2of4"):
        yield from on_tiny(FIRST, pruning)
        yield from on_stories(STORIES_FIRST, pruning)
    yield from on_stories(STORIES_ON_TOP, "refined-0.5")


# A model of 135 M parameters wants lower rates. Those that train biases alone take the rate that all sites chose.
_REAL_WEIGHT_RATES = "recover.learning_rates=[0.0001, 0.0003]"
_REAL_LORA_1 = _other("lora-r1-o", LORA_1.title, *_RANK_1, "recover.learning_rates=[0.001, 0.003]", recovery="lora")
_REAL_MASKED = _other("masked", MASKED.title, _REAL_WEIGHT_RATES)
SMOLLM2_MAIN: tuple[Method, ...] = (ALL_SITES_FREE, PAPER, _REAL_MASKED, _REAL_LORA_1, PAPER_ALL)
SMOLLM2_FURTHER: tuple[Method, ...] = (
    _other("random", "random heads, 25 %"),
    _other("ffn", "a free bias on every FFN output"),
    _other("lora", "LoRA r=8 on every linear, unmerged", "recover.learning_rates=[0.0003, 0.001]"),
    BIAS,
    _other("reconstruct", "block reconstruction", _REAL_WEIGHT_RATES),
    Method("paper-0.1", "heads, 10 % (the paper)", ratio="0.1"),
)


# The same on pairs whose responses are the dense model's own.
SMOLLM2_OWN_WORDS: tuple[Method, ...] = tuple(
    dataclasses.replace(method, name=f"{method.name}-self", title=f"{method.title}, on the model's own words")
    for method in (PAPER, _REAL_MASKED)
)


def smollm2_cells(budget: str) -> Iterator[StudyCell]:
    """A real model from packages, most telling first: the five main methods with three seeds, all others with one."""
    rates = ("compensate.learning_rates=[0.001, 0.003, 0.01]", "recover.learning_rates=[0.001, 0.003, 0.01]")
    subject = Subject(f"smollm2-{budget}", "smollm2-135m-pip", overrides=rates, budget=budget)
    own_words = dataclasses.replace(subject, name=f"smollm2-self-{budget}", own_words=True)
    main, further = SMOLLM2_MAIN, SMOLLM2_FURTHER
    prunings = ("wanda-0.5", "sparsegpt-2of4", "slimgpt-0.2", "refined-0.5")
    for pruning in prunings:
        yield from (StudyCell(subject, pruning, method, SEEDS[0]) for method in (*main, *further))
        yield from (StudyCell(own_words, pruning, method, SEEDS[0]) for method in SMOLLM2_OWN_WORDS)
    for pruning in prunings:
        yield from (StudyCell(subject, pruning, method, seed) for seed in SEEDS[1:] for method in main)


def ablation_cells(subjects: list[Subject]) -> Iterator[StudyCell]:
    """Those of the page of ablations: the method itself and each ablation, on the embedded default."""
    shown = {method.name for method in (PAPER, *ABLATIONS)}
    return (
        cell
        for cell in all_cells(subjects)
        if cell.subject.real is None and cell.pruning == "wanda-0.5" and cell.method.name in shown
    )
