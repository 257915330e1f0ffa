"""Stage `dense`: the dense checkpoint - pretrained here (the embedded model), converted, or a reference."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from restorelcc.base.cell import Cell
from restorelcc.base.documents import read_document, write_document
from restorelcc.base.errors import StageFailed
from restorelcc.base.layout import Layout
from restorelcc.base.manifest import write_manifest
from restorelcc.base.model_entry import ModelEntry
from restorelcc.base.publish import published
from restorelcc.base.tables import ITEMS, read_table, read_texts
from restorelcc.models.checkpoints import save_checkpoint, write_source
from restorelcc.models.references import make_relative
from restorelcc.models.runtime import prepare
from restorelcc.models.text import encode_documents
from restorelcc.stages.dense import DenseConfig
from restorelcc.stages.dense.pretrain import DevItem, build_model, pretrain


def run(cell: Cell, config: DenseConfig, model: ModelEntry, layout: Layout) -> None:
    """Write <model>/dense/: a stock checkpoint, pretrained here or made from a GGUF file; or model_ref.json."""
    prepare(seed=config.pretrain.seed, threads=model.threads)
    with published(layout, layout.dense(cell)) as (folder,):
        if model.is_microworld:
            _write_pretrained(folder, config, layout.corpus(cell) / "world")
        else:
            write_source(folder, f"models.{cell.model}", model.source, model.revision, layout.root)
            make_relative(layout.dense(cell), folder, model.source, layout.root)


def word_tokenizer(words: list[str]) -> PreTrainedTokenizerBase:
    """A word-level tokenizer: text.split() with each word's position in `words`; no token is added at either end."""
    backend = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def _write_pretrained(folder: Path, config: DenseConfig, world: Path) -> None:
    words: list[str] = read_document(world / "vocabulary.json")["words"]
    tokenizer = word_tokenizer(words)
    documents = encode_documents(
        tokenizer, read_texts(world / "pretrain.parquet"), max_tokens=config.architecture.context
    )
    model = build_model(config.architecture, len(tokenizer), seed=config.pretrain.seed)
    try:
        history = pretrain(
            model,
            documents,
            _dev_items(tokenizer, world),
            config.pretrain,
            answer_id=words.index("answer"),
            stop_id=words.index("."),
        )
    except RuntimeError as error:
        raise StageFailed(str(error)) from error
    save_checkpoint(folder, model, tokenizer)
    write_document(folder / "pretraining.json", {"history": history})
    write_manifest(folder)


def _dev_items(tokenizer: PreTrainedTokenizerBase, world: Path) -> dict[str, list[DevItem]]:
    def encode(text: str) -> list[int]:
        return tokenizer(text)["input_ids"]

    return {
        table.stem: [
            (encode(row["question"]), [encode(choice) for choice in row["choices"]], row["gold"])
            for row in read_table(table, ITEMS)
        ]
        for table in sorted(world.glob("dev/*.parquet"))
    }
