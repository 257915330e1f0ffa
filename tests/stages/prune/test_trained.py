"""On a trained model: sparsegpt loses less than wanda, wanda less than magnitude, in outputs and in perplexity."""

import math
from functools import cache
from pathlib import Path

import torch
from transformers import PreTrainedModel

from restorelcc.base.prunings import parse_pruning
from restorelcc.models.checkpoints import load_model, load_tokenizer
from restorelcc.stages.prune import PruneConfig
from restorelcc.stages.prune.calibration import calibration_batches
from restorelcc.stages.prune.prune import PrunedTensor, prune_model
from tests.real import real_folder, real_texts

CPU = torch.device("cpu")
PRUNERS = ("sparsegpt", "wanda", "magnitude")  # best first
CONFIG = PruneConfig(samples=64, sequence_length=256)


def pruned_by_each(
    folder: Path, texts: list[str], config: PruneConfig
) -> dict[str, tuple[PreTrainedModel, list[PrunedTensor]]]:
    batches = calibration_batches(load_tokenizer(folder), texts, config, CPU)
    pruned = {}
    for pruner in PRUNERS:
        model = load_model(folder, torch.float32, CPU)
        pruned[pruner] = model, prune_model(model, parse_pruning(f"{pruner}-0.5"), batches, config)
    return pruned


@cache
def _stories() -> dict[str, tuple[PreTrainedModel, list[PrunedTensor]]]:
    return pruned_by_each(real_folder() / "models" / "stories260K", real_texts("calibration", 128), CONFIG)


def share_in_order(pruned: dict[str, tuple[PreTrainedModel, list[PrunedTensor]]]) -> float:
    errors = zip(*([tensor.error for tensor in results] for _, results in pruned.values()), strict=True)
    in_order = [one < two < three for one, two, three in errors]  # type: ignore[operator]
    return sum(in_order) / len(in_order)


def _perplexity(model: PreTrainedModel, sequences: list[list[int]]) -> float:
    loss = tokens = 0.0
    with torch.no_grad():
        for ids in sequences:
            ids_1T = torch.tensor([ids])
            loss += float(model(input_ids=ids_1T, labels=ids_1T).loss) * (len(ids) - 1)
            tokens += len(ids) - 1
    return math.exp(loss / tokens)


def test_layer_errors_are_in_order_on_stories260k() -> None:
    assert share_in_order(_stories()) >= 0.8


def test_perplexities_are_in_order_on_stories260k() -> None:
    folder = real_folder() / "models" / "stories260K"
    tokenizer = load_tokenizer(folder)
    sequences = [tokenizer(text)["input_ids"][:256] for text in real_texts("heldout", 40)]
    dense = _perplexity(load_model(folder, torch.float32, CPU), sequences)
    found = {pruner: _perplexity(model, sequences) for pruner, (model, _) in _stories().items()}
    assert dense < found["sparsegpt"] < found["wanda"] < found["magnitude"]
    # Published for other stories: dense 4.29, Wanda 20.8, magnitude 42.6 per token.
    assert 3.5 < dense < 6
    assert 15 < found["wanda"] < 30
    assert 30 < found["magnitude"] < 60
