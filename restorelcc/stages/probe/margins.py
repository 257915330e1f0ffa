"""The scores that need the pruned model itself: what an edit of each head does to the answer margin.

Letters: N tuples, L layers, H heads, D head dim.
"""

from __future__ import annotations

from torch import Tensor

from restorelcc.activations.store import read_layout
from restorelcc.base.cell import Cell
from restorelcc.base.digest import expect_digest, file_digest, model_digest
from restorelcc.base.errors import BadInput
from restorelcc.base.layout import Layout
from restorelcc.base.model_entry import ModelEntry
from restorelcc.base.tables import CONTRAST, read_table
from restorelcc.models.architectures import head_layout
from restorelcc.models.checkpoints import load_entry, load_tokenizer
from restorelcc.models.runtime import positions_at_once
from restorelcc.models.text import context_length, encode_contrasts
from restorelcc.stages.probe import ProbeConfig
from restorelcc.stages.probe.attribution import causal_scores, gradient_scores, margin_batches


def margin_scores(
    cell: Cell, config: ProbeConfig, model: ModelEntry, layout: Layout, lost_LHD: Tensor
) -> dict[str, Tensor]:
    """Columns gradient and causal [L, H], those that are wanted; the model is loaded only then.

    lost_LHD: what each head is edited with, the mean of dz over the samples.
    """
    wanted = [name for name in ("gradient", "causal") if name in config.computed]
    if not wanted:
        return {}
    contrast, checkpoint = layout.corpus(cell) / "contrast.parquet", layout.pruned(cell)
    recorded = read_layout(layout.pruned_activations(cell))[1]
    expect_digest(
        "activations were captured from another pruned model", recorded["checkpoint"], model_digest(checkpoint)
    )
    expect_digest("activations were captured on other text", recorded["text"], file_digest(contrast))
    rows = read_table(contrast, CONTRAST)
    samples = evenly_spread(len(rows), config.margin_samples)
    tokenizer = load_tokenizer(checkpoint)
    network = load_entry(checkpoint, model)
    heads = head_layout(network)
    if (heads.layers, heads.heads, heads.head_dim) != tuple(lost_LHD.shape):
        raise BadInput(f"{checkpoint} is of {heads}, its components are of {tuple(lost_LHD.shape)}: run `dvc repro`")
    limit = context_length(network.config, config.max_tokens)
    tuples = encode_contrasts(tokenizer, [rows[sample] for sample in samples], limit)
    # The logits of the answers, and what a backward pass keeps, are there for a whole batch.
    budget = min(config.token_budget, positions_at_once(network.device, network.config.get_text_config().vocab_size))
    batches = margin_batches(network, tuples, token_budget=budget, pad=tokenizer.pad_token_id or 0)
    score = {"gradient": gradient_scores, "causal": causal_scores}
    return {name: score[name](network, batches, lost_LHD[:, None]) for name in wanted}


def evenly_spread(total: int, count: int) -> list[int]:
    """`count` of the numbers 0..total-1 (all when there are no more), at equal distances."""
    return list(range(total)) if count >= total else [number * total // count for number in range(count)]
