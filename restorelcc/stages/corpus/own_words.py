"""The dense model's own words as data: its answers to the questions of a source, where a role says `self`.

A model with a chat template is asked through it. What was written is recorded in words.parquet beside the tables that
are made of it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
from transformers import PreTrainedModel

from restorelcc.base.digest import REFERENCE, model_digest
from restorelcc.base.documents import read_document, read_json, write_json
from restorelcc.base.errors import BadInput
from restorelcc.base.layout import Layout
from restorelcc.base.model_entry import ModelEntry
from restorelcc.base.progress import notice, progress
from restorelcc.base.publish import Scratch, locked, put
from restorelcc.base.tables import write_table
from restorelcc.base.unfinished import words_folder
from restorelcc.models.checkpoints import load_entry, write_source
from restorelcc.models.continuation import Continuation, Sampling, batches_of, continued
from restorelcc.models.response_mask import RENDERED, join_pair, split_pairs
from restorelcc.models.runtime import prepare
from restorelcc.stages.corpus import CorpusConfig
from restorelcc.stages.corpus.account import NO_TOKEN, Account
from restorelcc.stages.corpus.chat import Refused, asked
from restorelcc.stages.corpus.fit import Fitting
from restorelcc.stages.corpus.formats import Example

UNFINISHED = "unfinished response"
TABLE = "words.parquet"
WORDS = pa.schema(
    [
        ("role", pa.string()),
        ("row", pa.int64()),  # of the source of the questions
        ("prompt", pa.string()),
        ("text", pa.string()),
        ("tokens", pa.int32()),
        ("finished", pa.bool_()),
    ]
)


@dataclass
class Writer:
    """The dense model that answers questions; it is loaded when it is first asked."""

    config: CorpusConfig
    model: ModelEntry
    root: Path
    key: str
    fitting: Fitting
    rows: list[dict[str, Any]] = field(default_factory=list)  # what was written, for the table
    digest: str = ""  # of the model that wrote it
    held: ExitStack = field(default_factory=ExitStack)

    def responses(self, found: list[Example], account: Account) -> list[Example]:
        """Questions with the model's responses, for pairs. A response through a chat template that was not finished is
        left out: the template would end it in the middle."""
        kept = []
        for example, text, ended in self._answered("instructions", found, account):
            if ended or not example.messages:
                kept.append(replace(example, response=text))
            else:
                account.skip(UNFINISHED, example.row)
        return kept

    def texts(self, found: list[Example], account: Account) -> list[str]:
        """Questions and the model's responses as plain texts, to calibrate by; one that was not finished has no end
        mark."""
        return [
            self._text(example, text, ended) for example, text, ended in self._answered("calibration", found, account)
        ]

    def write(self, folder: Path) -> None:
        """Record every prompt with what was written."""
        words = self.config.own_words
        how = {"seed": self.config.seed, "new_tokens": words.new_tokens, "temperature": words.temperature}
        write_table(
            folder / TABLE, self.rows, WORDS, {name: str(value) for name, value in how.items()} | {"model": self.digest}
        )

    def record(self, role: str) -> dict[str, Any]:
        """What stands of a role's texts in sources.json."""
        own = [row for row in self.rows if row["role"] == role]
        told = {"texts": len(own), "tokens": sum(row["tokens"] for row in own)}
        return told | {"finished": sum(row["finished"] for row in own), "model": self.digest}

    def _text(self, example: Example, response: str, ended: bool) -> str:
        if example.messages and not ended:
            text = asked(self.fitting.tokenizer, example, self.key) + response
        else:
            written = self.fitting.written(replace(example, response=response))
            text = join_pair(written.question, written.response)
        start = self.fitting.tokenizer.bos_token or ""
        begun = self.fitting.tokenizer("")["input_ids"][:1] == [self.fitting.tokenizer.bos_token_id]
        return text.removeprefix(start) if begun else text  # which the tokenizer puts before every text itself

    def _answered(self, role: str, found: list[Example], account: Account) -> Iterator[tuple[Example, str, bool]]:
        """(example, what the model answers, whether it ended), those without an answer counted as skipped."""
        tokenizer = self.fitting.tokenizer
        if tokenizer.chat_template:
            said = [replace(one, messages=one.messages or _of_user(one.question)) for one in found]
        elif any(one.messages for one in found):
            raise BadInput(
                f"{self.key}.data.{role}: the questions are conversations, and the model's tokenizer has no chat "
                "template to put them through: give questions or plain texts"
            )
        else:
            said = found
        taken, asked_for = [], []
        for one in said:
            try:
                asked_for.append(RENDERED + asked(tokenizer, one, self.key) if one.messages else one.question.rstrip())
                taken.append(one)
            except Refused as refused:
                account.skip(refused.reason, one.row)
        prompts = self._prompts(asked_for)
        for example, ids in zip(taken, prompts, strict=True):
            if not ids:
                account.skip(NO_TOKEN, example.row)
        told = [each for each in zip(taken, asked_for, prompts, strict=True) if each[2]]
        answers = self._continuations(role, [ids for *_, ids in told])
        for (example, prompt, _), answer in zip(told, answers, strict=True):
            text = str(tokenizer.decode(answer.ids, skip_special_tokens=True)).strip()
            self.rows.append({"role": role, "row": example.row, "prompt": prompt.removeprefix(RENDERED), "text": text})
            self.rows[-1] |= {"tokens": len(answer.ids), "finished": answer.finished}
            if text:
                yield example, text, answer.finished
            else:
                account.skip("empty response", example.row)

    def _prompts(self, texts: list[str]) -> list[list[int]]:
        """Token ids of the prompts; a longer one loses tokens on the left, so that a response has room."""
        room = self.fitting.max_tokens - self._sampling().new_tokens
        prompts = []
        for split in split_pairs(self.fitting.tokenizer, texts, [""] * len(texts)):
            excess = max(0, split.start - room)
            prompts.append(split.ids[: split.lead] + split.ids[split.lead + excess : split.start])
        return prompts

    def _sampling(self) -> Sampling:
        words = self.config.own_words
        new = min(words.new_tokens, max(1, self.fitting.max_tokens // 2))
        return Sampling(new_tokens=new, temperature=words.temperature, seed=self.config.seed)

    def _continuations(self, role: str, prompts: list[list[int]]) -> list[Continuation]:
        """Batch by batch; a batch that an interrupted run has written is not written again."""
        sampling = self._sampling()
        found: dict[int, Continuation] = {}
        network = self._network
        bar = progress(None, f"corpus: the model writes {role}", "texts", total=len(prompts))
        for batch in batches_of(prompts, sampling, network.device):
            together = [prompts[number] for number in batch]
            name = self._name(network.dtype, network.device, sampling, together)
            found |= zip(batch, _remembered(name, partial(continued, network, together, sampling)), strict=True)
            bar.update(len(batch))
        bar.close()
        answers = [found[number] for number in range(len(prompts))]
        tokens, ended = sum(len(one.ids) for one in answers), sum(one.finished for one in answers)
        notice("corpus", f"{role}: the model wrote {tokens:,} tokens in {len(answers)} texts, {ended} of them finished")
        return answers

    def _name(self, *parts: Any) -> Path:
        versions = [version(name) for name in ("torch", "transformers")]
        told = json.dumps([self.digest, versions, *map(repr, parts)])
        return words_folder(Layout(self.root), self.key) / f"{hashlib.sha256(told.encode()).hexdigest()}.json"

    @cached_property
    def _network(self) -> PreTrainedModel:
        layout = Layout(self.root)
        prepare(seed=self.config.seed, threads=self.model.threads)
        self.held.enter_context(locked(words_folder(layout, self.key)))  # so that nobody takes it for left behind
        scratch = self.held.enter_context(Scratch(layout.work, "writer"))
        folder = Path(scratch) / "dense"
        write_source(folder, self.key, self.model.source, self.model.revision, self.root)
        reference = folder / REFERENCE
        self.digest = read_document(reference)["revision"] if reference.is_file() else model_digest(folder)
        return load_entry(folder, self.model, offload=layout.work)

    def close(self) -> None:
        """Let go of the model."""
        self.__dict__.pop("_network", None)
        self.held.close()


def forget_parts(layout: Layout, key: str) -> None:
    """Delete what an interrupted run would have gone on from. key: `models.<name>`."""
    shutil.rmtree(words_folder(layout, key), ignore_errors=True)


def _of_user(question: str) -> tuple[dict[str, str], ...]:
    return ({"role": "user", "content": question},)


def _remembered(path: Path, write: Callable[[], list[Continuation]]) -> list[Continuation]:
    if path.is_file():
        return [Continuation(list(ids), bool(finished)) for ids, finished in read_json(path)["texts"]]
    found = write()
    scratch = path.with_suffix(".part")
    write_json(scratch, {"texts": [[one.ids, one.finished] for one in found]})
    put(scratch, path)
    return found
