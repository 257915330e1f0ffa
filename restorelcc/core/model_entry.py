"""One entry of the `models` catalogue."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from restorelcc.core.section import Section

MICROWORLD = "microworld"


class DataFiles(Section):
    """Local data for a model that is not the embedded one: .jsonl, .json, .parquet or .txt files, by path."""

    # Texts for pruning: column `text`, or one text a line in a .txt file; or from the hub, streamed once: c4, wikitext,
    # alpaca, or hub:<id>[:<config>[:<split>]].
    calibration: str
    instructions: str  # training pairs: columns `instruction`, `input` (optional), `output`; or `question`, `response`
    heldout: str  # texts for perplexity: column `text`
    template: str = "{instruction}\n{input}"  # how a question is made of instruction and input; blanks are stripped


class ModelEntry(Section):
    """Where a model comes from and how it runs."""

    source: str = Field(min_length=1)  # "microworld" (pretrained here), a folder, or a hub id
    revision: str | None = None  # hub ids only: branch, tag or commit; None is the main branch
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # auto: bfloat16 on a GPU, float32 on the CPU
    device: str = Field(default="auto", pattern=r"auto|cpu|cuda(:\d+)?")
    threads: int = Field(default=0, ge=0, le=1024)  # CPU threads of torch; 0 is torch's own choice
    data: DataFiles | None = None  # needed unless source is "microworld"
    tasks: tuple[str, ...] = ()  # lm-eval task names or folders of task files; the microworld brings its own

    @property
    def is_microworld(self) -> bool:
        return self.source == MICROWORLD
