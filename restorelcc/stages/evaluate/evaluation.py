"""One model in memory, and everything that is measured of it."""

from __future__ import annotations

import math
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from restorelcc.base.cell import AUTO, Cell
from restorelcc.base.digest import expect_digest, file_digest, model_digest
from restorelcc.base.documents import SCHEMA, rounded, write_document
from restorelcc.base.errors import StageFailed
from restorelcc.base.fingerprint import Fingerprint
from restorelcc.base.layout import Layout
from restorelcc.base.model_entry import ModelEntry
from restorelcc.base.publish import published
from restorelcc.base.tables import MEASURED, SAMPLES, TEXT_SCORES, read_texts, write_table
from restorelcc.compensation.adapter import ADAPTER_WEIGHTS, with_adapter
from restorelcc.compensation.file import adapter_digest, check_ratio, read_compensation
from restorelcc.compensation.fold import fold
from restorelcc.models.checkpoints import load_entry, load_tokenizer, local_folder
from restorelcc.models.placement import all_at_hand
from restorelcc.models.runtime import give_back_memory, prepare
from restorelcc.models.tensor_files import stored_tensors
from restorelcc.models.tensors import read_tensors
from restorelcc.models.text import context_length
from restorelcc.stages.evaluate import EvaluateConfig, cost, generation
from restorelcc.stages.evaluate.details import added_by_pruning
from restorelcc.stages.evaluate.harness import (
    context_of,
    item_rows,
    longest,
    run_harness,
    scratch_cache,
    task_metrics,
)
from restorelcc.stages.evaluate.local_data import datasets_under
from restorelcc.stages.evaluate.measured import how_without_tasks, with_tasks
from restorelcc.stages.evaluate.perplexity import block_perplexity, document_perplexity, text_scores, word_perplexity
from restorelcc.stages.evaluate.reference import Reference, dense_reference, read_reference, write_reference
from restorelcc.stages.evaluate.rivals import packed_bytes, stored_bytes
from restorelcc.stages.evaluate.tasks import load_tasks, selected_tasks
from restorelcc.stages.evaluate.versus import Outcome, averaged_tasks, check_alike, versus

_PACKAGES = ("restorelcc", "torch", "transformers", "lm_eval", "datasets")


class Evaluation:
    """One model in memory and what was measured of it; every step adds to `metrics` and `details`."""

    def __init__(
        self,
        cell: Cell,
        config: EvaluateConfig,
        model: ModelEntry,
        layout: Layout,
        checkpoint: Path,
        *,
        at_hand: bool = False,
    ) -> None:
        """Load tasks and model. Tasks come first: a name that is not known is refused before any weight is read.

        at_hand: whether all weights have to be; otherwise a spread model may be in main memory and on disk too.
        """
        self.started = time.perf_counter()
        self.cell, self.config, self.layout, self.checkpoint = cell, config, layout, checkpoint
        prepare(seed=config.seed, threads=model.threads)
        self._cache = scratch_cache(layout.work)
        folder = layout.corpus(cell) / "tasks"
        selected = selected_tasks(folder, model.tasks_document, layout.root, self._cache.name)
        names = [asked.name for asked in selected]
        copies = datasets_under(layout.root, config.datasets, names, self._cache.name)
        self._tasks = load_tasks(selected, copies, self._cache.name, layout.root)
        self.network: PreTrainedModel = load_entry(checkpoint, model, offload=None if at_hand else layout.work)
        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(checkpoint)
        self.texts = read_texts(layout.corpus(cell) / "heldout.parquet")
        self.vocabulary = int(self.network.config.get_text_config().vocab_size)
        self.metrics: dict[str, Any] = cost.parameter_counts(self.network)
        if cell.pruning is not None:
            self.metrics["params_added"] = added_by_pruning(layout.pruned(cell))
        self.metrics["file_bytes"] = cost.file_bytes(local_folder(checkpoint))
        self.details: dict[str, Any] = {"schema": SCHEMA, "seconds": {"load": self.elapsed()}}
        self.details["digests"] = {"model": model_digest(checkpoint)}
        self.rows: list[dict[str, Any]] = []
        self.scored_texts: list[dict[str, Any]] = []
        self.averaged: dict[str, bool] = {}  # whether a task counts into the mean
        self.reference: Reference | None = None
        limits: dict[str, Any] = {"limit": config.limit, "perplexity_tokens": config.perplexity_tokens}
        limits["context"] = context_of(self.network)
        self.fingerprint: Fingerprint = how_without_tasks(
            self.tokenizer, self.texts, dtype=self.network.dtype, **limits
        )

    def expect_like(self, others: list[Cell]) -> None:
        """Before anything is computed. Raises BadInput, naming what differs, for others that were measured in another
        way; how the tasks were asked is known afterwards alone (`compare_with`)."""
        check_alike(self.cell, self.fingerprint, others, self.layout)

    def restore(self, compensation: Path) -> cost.Biases | None:
        """Fold a compensation into the pruned model; returns the biases of before, to time the two against each other,
        or None where reading weights from elsewhere would be all that is timed.

        Raises BadInput when it was trained for another pruned model.
        """
        content, metadata = read_compensation(compensation)
        recorded, found = metadata.get("pruned"), model_digest(self.checkpoint)
        expect_digest(f"{compensation} was trained for another pruned model", recorded, found)
        check_ratio(compensation, metadata, self.cell)
        trained = read_tensors(compensation, ("beta", "bias"))[0]
        self.details["digests"]["compensation"] = file_digest(compensation)
        before = cost.linear_biases(self.network) if all_at_hand(self.network) else None
        added = cost.folded_parameters(self.network, content)
        fold(self.network, content)
        self.metrics["params_added"] += added
        if self.cell.head_ratio == AUTO:
            self.metrics |= {"head_ratio": float(metadata["head_ratio"]), "head_ratio_auto": True}
        written = sum(part.numel() for part in (*trained.values(), *content.sites.values()))
        self.metrics["params_trained"] = int(metadata.get("params_trained", written))
        self.metrics["file_bytes"] += added * stored_bytes(self.network, self.metrics["file_bytes"])
        return before

    def adapt(self, adapter: Path, variant: str | None) -> None:
        """Put an adapter beside the weights, or merge it as the variant says, rounded as an export would ship it."""
        stored = None if variant is None else stored_tensors(local_folder(self.checkpoint))
        self.network, added = with_adapter(self.network, adapter, variant, stored)
        self.details["digests"]["adapter"] = adapter_digest(adapter)
        self.metrics["params_added"] += added
        if variant is None:
            self.metrics["file_bytes"] += (adapter / ADAPTER_WEIGHTS).stat().st_size

    def measure(self, before: cost.Biases | None = None) -> None:
        """Quality, continuations and latency. before: biases of the model before it was restored."""
        self.measure_quality(of_blocks=True)
        self._check_finite()
        seconds, started = self.details["seconds"], time.perf_counter()
        self._check_generation()
        seconds["generation"], started = time.perf_counter() - started, time.perf_counter()
        self.details["latency"] = cost.latency(self.network, self._latency_batch(), before)
        seconds["latency"] = time.perf_counter() - started
        self.details["peak_memory_bytes"] = cost.peak_memory_bytes(self.network)
        if self.cell.pruning is not None:
            self.details["packed_bytes"] = packed_bytes(self.network, self.metrics["file_bytes"])

    def _check_finite(self) -> None:
        """Raises StageFailed for a model that predicts no numbers: nothing can be written with it either."""
        lost = [row["text_id"] for row in self.scored_texts if not math.isfinite(row["log_likelihood"])]
        if lost:
            kind = str(self.network.dtype).removeprefix("torch.")
            large = f", or its numbers too large for {kind}: try models.<name>.dtype: float32"
            raise StageFailed(
                f"{self.checkpoint} gives no finite number for {len(lost)} of {len(self.scored_texts)} held-out texts: "
                f"its weights are damaged{': create it again' if kind == 'float32' else large}"
            )

    def let_go(self) -> None:
        """Free the model; everything is measured. Forwards that were replaced on it refer to it in circles."""
        del self.network
        give_back_memory()

    def measure_quality(self, *, of_blocks: bool = False, averaged: dict[str, bool] | None = None) -> None:
        """Tasks, perplexity and sparsity: what does not depend on the machine's speed, nor on another model.

        of_blocks: perplexity of blocks too, of which the rounded and merged models have no line anywhere.
        averaged: which tasks count into the mean; None: those of the dense model, or its own.
        """
        config, seconds = self.config, self.details["seconds"]
        started = time.perf_counter()
        how: dict[str, Any] = {"batch_size": config.batch_size, "limit": config.limit, "seed": config.seed}
        results = run_harness(self.network, self.tokenizer, self._tasks, **how)
        self._cache.cleanup()
        self.averaged = averaged_tasks(results, self.cell, self.layout) if averaged is None else averaged
        self.rows, tasks = item_rows(results), task_metrics(results, self.averaged, config.seed)
        self.metrics["tasks"] = tasks
        counted = [task["value"] for task in tasks.values() if task["averaged"]]
        self.metrics["mean"] = sum(counted) / len(counted) if counted else None
        self.fingerprint = with_tasks(self.fingerprint, results, self.averaged)
        self.metrics["measured"] = self.fingerprint.digest
        seconds["tasks"], started = time.perf_counter() - started, time.perf_counter()
        self._measure_perplexity(of_blocks)
        seconds["perplexity"] = time.perf_counter() - started
        self.metrics["sparsity"] = cost.sparsity_of(self.network)

    def _measure_perplexity(self, of_blocks: bool) -> None:
        model, tokenizer, texts = self.network, self.tokenizer, self.texts
        corpus = {"corpus": "heldout"}
        tokens = context_length(model.config, self.config.perplexity_tokens)
        window = min(tokens, longest(model))
        self.scored_texts = text_scores(model, tokenizer, texts, tokens)
        self.metrics["perplexity"] = corpus | document_perplexity(self.scored_texts)
        if of_blocks:
            self.metrics["token_perplexity"] = corpus | block_perplexity(model, tokenizer, texts, window)
        words = word_perplexity(model, tokenizer, texts, window)
        self.metrics["bits_per_byte"] = words.pop("bits_per_byte")
        self.metrics["word_perplexity"] = corpus | words

    def _check_generation(self) -> None:
        config, context = self.config.generation, longest(self.network)
        cell, dense = self.cell, Cell(self.cell.model)
        if cell != dense and self.layout.reference(cell).is_file():
            self.reference = read_reference(self.layout.reference(cell), self.vocabulary)
            prompts = self.reference.prompts
        else:
            prompts = generation.fixed_prompts(self.tokenizer, self.texts, config, context)
        written = generation.continuations(
            self.network, prompts.beginnings_PQ, config, context=context, seed=self.config.seed
        )
        measured = generation.describe(written)
        log_q = generation.predictions(self.network, prompts.heldout)
        if cell == dense:
            self.reference = dense_reference(prompts, log_q, written["greedy"])
        theirs = generation.describe({"greedy": self.reference.greedy}) if self.reference and cell != dense else None
        reasons = generation.degenerate(measured, theirs, config.repetition_limit)
        self.metrics["generation"] = {"degenerate": bool(reasons), "reasons": reasons}
        self.metrics["generation"] |= self._against_dense(log_q, written["greedy"])
        self.details["generation"] = measured
        room = generation.room_for(prompts.beginnings_PQ, config, context)
        self.details["completions"] = {way: generation.completion(ids, room) for way, ids in written.items()}
        if self.reference is not None:
            self.details["completions"]["dense"] = generation.completion(self.reference.greedy, room)
        self.details["continuations"] = self._texts_of(prompts.beginnings_PQ.tolist(), written)

    def _against_dense(self, log_q: list[torch.Tensor], greedy: list[list[int]]) -> dict[str, float | None]:
        """Divergence and agreement; None of both where evaluate_dense has not run, which dvc.yaml forbids."""
        names = ("kl_to_dense", "top_token_agreement", "greedy_agreement")
        if self.reference is None:
            return dict.fromkeys(names)
        kl, same = generation.divergence(self.reference.top_tokens_TK, self.reference.top_log_p_TK, torch.cat(log_q))
        return dict(zip(names, (kl, same, generation.agreement(greedy, self.reference.greedy)), strict=True))

    def _texts_of(self, prompts: list[list[int]], written: dict[str, list[list[int]]]) -> list[dict[str, str]]:
        """The first few continuations as text, for a person to read."""
        ways = {"prompt": prompts, **written}
        shown = range(min(4, len(prompts)))
        return [{way: str(self.tokenizer.decode(ids[at])) for way, ids in ways.items()} for at in shown]

    def _latency_batch(self) -> torch.Tensor:
        ids = self.tokenizer("\n\n".join(self.texts[:256]))["input_ids"]
        length = min(64, longest(self.network), len(ids))
        rows = max(1, min(8, len(ids) // length))
        return torch.tensor(ids[: rows * length], device=self.network.device).view(rows, length)

    def compare_with(self, others: list[Cell]) -> None:
        """Tests against dense (and pruned) on the same items into the details, the recovered share into the metrics.

        Raises BadInput, naming what differs, for others that were measured in another way.
        """
        outcome = Outcome(
            cell=self.cell,
            rows=self.rows,
            texts=self.scored_texts,
            tasks=self.metrics["tasks"],
            fingerprint=self.fingerprint,
        )
        draws, seed = self.config.bootstrap_samples, self.config.seed
        metrics, details = versus(outcome, others, self.layout, samples=draws, seed=seed)
        self.metrics |= metrics
        self.details |= details

    def elapsed(self) -> float:
        """Seconds since the evaluation began."""
        return time.perf_counter() - self.started

    def write(self) -> None:
        """Publish metrics, details, samples and scores of texts; of the dense model also the reference.

        The metrics hold the main results only, so that `dvc metrics diff` fits a terminal. Details are the rest: tests,
        how continuations repeat, time, and versions.
        """
        cell, layout = self.cell, self.layout
        metrics: dict[str, Any] = {"schema": SCHEMA, "model": cell.model, "pruning": cell.pruning}
        ratio = self.metrics.pop("head_ratio", cell.head_ratio)
        metrics["head_ratio"] = None if ratio is None else float(ratio)
        if cell.recovery is not None:
            metrics["recovery"] = cell.recovery
        first = ("measured", "tasks", "mean", "perplexity", "token_perplexity", "word_perplexity", "bits_per_byte")
        metrics |= {name: self.metrics[name] for name in first} | self.metrics
        seconds = {"total": self.elapsed()} | self.details["seconds"]
        self.details["seconds"] = {name: round(value, 3) for name, value in seconds.items()}
        self.details["versions"] = {name: version(name) for name in _PACKAGES} | {"python": platform.python_version()}
        paths = [layout.metrics(cell), layout.details(cell), layout.samples(cell), layout.text_scores(cell)]
        if cell == Cell(cell.model):
            paths.append(layout.reference(cell))
        with published(layout, *paths) as scratch:
            write_document(scratch[0], rounded(metrics))
            write_document(scratch[1], self.details)
            write_table(scratch[2], self.rows, SAMPLES, {MEASURED: self.fingerprint.as_text()})
            write_table(scratch[3], self.scored_texts, TEXT_SCORES, {MEASURED: self.fingerprint.as_text()})
            if len(scratch) > 4 and self.reference is not None:
                write_reference(scratch[4], self.reference, model_digest(self.checkpoint))
