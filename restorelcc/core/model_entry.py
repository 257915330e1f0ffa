"""One entry of the `models` catalogue."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from restorelcc.core.presets import PRESETS, over
from restorelcc.core.section import Section

MICROWORLD = "microworld"
SEQUENCE_LENGTH = {"prune": "sequence_length", "evaluate": "perplexity_tokens"}  # what an entry's length stands for
ROLES = ("text", "question", "response", "instruction", "input", "output", "messages", "choices", "gold")


class DataFiles(Section):
    """Data of a model that is not the embedded one. Each source is a local file (.jsonl, .json, .csv, .parquet, .txt),
    a dataset of the hub by name (c4, wikitext, alpaca) or by id (hub:<id>[:<config>[:<split>]])."""

    calibration: str  # texts for pruning
    instructions: str  # question/response pairs: training, probing and the choice of heads
    heldout: str  # texts for perplexity
    # What the rows of `instructions` are; auto: told by their columns. See docs/data.md.
    format: Literal["auto", "pairs", "alpaca", "chat", "choice", "text"] = "auto"
    columns: dict[str, str] = {}  # your own names for the columns, e.g. {question: prompt, response: completion}
    template: str = "{instruction}\n{input}"  # how a question is made of instruction and input; blanks are stripped
    chat_template: bool = False  # put every question through the chat template of the model's tokenizer

    @field_validator("columns")
    @classmethod
    def _columns_are_roles(cls, columns: dict[str, str]) -> dict[str, str]:
        for role in columns:
            if role not in ROLES:
                raise ValueError(f"{role!r} is no role of a column; roles are {', '.join(ROLES)}")
        return columns

    @field_validator("template")
    @classmethod
    def _template_takes_its_values(cls, template: str) -> str:
        try:
            template.format(instruction="", input="")
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(f"the template may hold {{instruction}} and {{input}} only ({error!r})") from error
        return template


class ModelEntry(Section):
    """Where a model comes from, how it runs, and what it is calibrated, restored and measured with."""

    source: str = Field(min_length=1)  # "microworld" (pretrained here), a folder, or a hub id
    revision: str | None = None  # hub ids only: branch, tag or commit; None is the main branch
    preset: Literal["paper"] | None = None  # shared settings, see core/presets.py; keys given here go first
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # auto: bfloat16 on a GPU, float32 on the CPU
    device: str = Field(default="auto", pattern=r"auto|cpu|cuda(:\d+)?")
    # Spread the model over all GPUs, main memory and disk (accelerate's device_map); None: it is on `device` whole.
    device_map: Literal["auto", "balanced", "sequential"] | None = None
    max_memory: dict[str, str] = {}  # per device at most, with device_map: {"0": 70GiB, cpu: 100GiB}; the rest on disk
    threads: int = Field(default=0, ge=0, le=1024)  # CPU threads of torch; 0 is torch's own choice
    # Tokens of a calibration and of a perplexity sequence; None: prune.sequence_length and evaluate.perplexity_tokens.
    sequence_length: int | None = Field(default=None, ge=2)
    data: DataFiles | None = None  # needed unless source is "microworld"
    tasks: tuple[str, ...] = ()  # lm-eval task names, presets (paper-7) or folders of task files
    # Over the sections of params.yaml, for this model alone: {prune: {samples: 64}, compensate: {epochs: 1}}.
    settings: dict[str, dict[str, Any]] = {}

    @model_validator(mode="before")
    @classmethod
    def _over_preset(cls, given: Any) -> Any:
        preset = PRESETS.get(given.get("preset") or "") if isinstance(given, dict) else None
        return over(preset, {key: value for key, value in given.items() if value is not None}) if preset else given

    @model_validator(mode="after")
    def _memory_needs_a_map(self) -> ModelEntry:
        if self.max_memory and self.device_map is None:
            raise ValueError("max_memory limits what device_map spreads: add device_map: auto, or leave it out")
        return self

    @property
    def is_microworld(self) -> bool:
        return self.source == MICROWORLD

    def section_changes(self, section: str) -> dict[str, Any]:
        """What this model puts over a section of params.yaml."""
        length = SEQUENCE_LENGTH.get(section)
        own = {length: self.sequence_length} if length and self.sequence_length else {}
        return own | self.settings.get(section, {})
