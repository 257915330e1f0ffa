"""A project folder just before recovery: a pruned pico model, components, ranked heads, pairs, held-out text."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from transformers import PreTrainedModel

from restorelcc.base.cell import Cell
from restorelcc.base.digest import file_digest, model_digest
from restorelcc.base.documents import write_document
from restorelcc.base.layout import Layout
from restorelcc.base.model_entry import DataFiles, ModelEntry
from restorelcc.base.prunings import parse_pruning
from restorelcc.base.tables import EXAMPLES, HEADS, write_table, write_texts
from restorelcc.models.architectures import head_layout
from restorelcc.models.checkpoints import save_checkpoint
from restorelcc.models.heads import HeadLayout
from restorelcc.models.tensors import write_tensors
from restorelcc.stages.evaluate import EvaluateConfig, GenerationConfig
from restorelcc.stages.evaluate.stage import run_dense, run_pruned
from restorelcc.stages.prune.prune import prune_model
from tests import pico

CELL = Cell("pico", "wanda-0.5")
ENTRY = ModelEntry(source="some/model", threads=1, data=DataFiles(calibration="c", instructions="i", heldout="h"))


EVALUATE = EvaluateConfig(
    batch_size=4, sanity_gate=False, generation=GenerationConfig(prompts=2, new_tokens=8, prompt_tokens=4)
)


def words(count: int, seed: int) -> str:
    """Random words of the pico tokenizer."""
    rng = random.Random(seed)
    return " ".join(f"w{rng.randrange(3, pico.VOCABULARY - 1)}" for _ in range(count))


@torch.no_grad()
def log_likelihoods(model: PreTrainedModel, texts: list[str]) -> list[float]:
    """log P(token | earlier tokens) summed over each text, a forward for each."""
    tokenizer, found = pico.word_tokenizer(), []
    for text in texts:
        ids = torch.tensor(tokenizer(text)["input_ids"])
        log_TV = model(input_ids=ids[None, :-1]).logits[0].log_softmax(-1)
        found.append(float(log_TV.gather(1, ids[1:, None]).sum()))
    return found


def recovery_project(root: Path, pairs: int = 24, family: str = "llama", **changes: object) -> Layout:
    """Write all that the stages compensate, recover and evaluate read; changes: of the model's config."""
    layout, model, tokenizer = Layout(root), pico.pico(family, **changes), pico.word_tokenizer()
    save_checkpoint(layout.dense(CELL), model, tokenizer)
    prune_model(model, parse_pruning("wanda-0.5"), [pico.tokens()])
    save_checkpoint(layout.pruned(CELL), model, tokenizer)
    write_document(layout.pruned(CELL) / "sparsity.json", {"layers": [], "parameters_added": 0})
    corpus = layout.corpus(CELL)
    write_texts(corpus / "calibration.parquet", [words(5 + number % 7, number) for number in range(20)])
    write_texts(corpus / "heldout.parquet", [words(8, 100 + number) for number in range(8)])
    for name, count in (("train", pairs), ("valid", 8)):
        rows = [
            {"task": "t", "question": words(3 + number % 3, number), "response": words(1 + number % 2, 50 + number)}
            for number in range(count)
        ]
        write_table(corpus / f"{name}.parquet", rows, EXAMPLES)
    write_document(corpus / "tasks" / "tasks.json", {"embedded": []})
    write_components(layout, head_layout(model))
    return layout


def evaluated_project(root: Path) -> Layout:
    """The same, with the metrics of the dense and the pruned model, which every evaluation is held against."""
    layout = recovery_project(root)
    run_dense(Cell(CELL.model), EVALUATE, ENTRY, layout)
    run_pruned(CELL, EVALUATE, ENTRY, layout)
    return layout


def write_components(layout: Layout, heads: HeadLayout) -> None:
    """Random orthonormal directions and random ranks, recorded as those of the pruned model."""
    generator = torch.Generator().manual_seed(7)
    shape = (heads.layers, heads.heads, heads.head_dim)
    directions, _ = torch.linalg.qr(torch.randn(*shape, heads.head_dim, generator=generator))
    tensors = {"directions": directions, "loadings": 0.1 * torch.randn(shape, generator=generator)}
    tensors["singular_values"] = torch.ones(shape)
    write_tensors(layout.components(CELL), tensors, {"pruned": model_digest(layout.pruned(CELL)), "model": "pico"})
    rows = []
    for rank, flat in enumerate(torch.randperm(heads.total, generator=generator).tolist()):
        layer, head = heads.pair(flat)
        row = {"layer": layer, "head": head, "rank": rank, "score": 1.0 - rank / heads.total}
        rows.append(row | {name: 0.5 for name in HEADS.names if name not in row})
    write_table(layout.heads(CELL), rows, HEADS, {"components": file_digest(layout.components(CELL))})
