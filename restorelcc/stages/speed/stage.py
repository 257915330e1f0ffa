"""Stage `speed`: a restored model beside the dense, pruned, packed, sliced and an 8-bit one, timed in turns.

Times are of the machine and of the moment: two runs do not give the same bytes.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

from restorelcc.base.cell import Cell
from restorelcc.base.digest import file_digest, model_digest
from restorelcc.base.documents import write_document
from restorelcc.base.errors import BadInput
from restorelcc.base.layout import Layout
from restorelcc.base.model_entry import ModelEntry
from restorelcc.base.progress import notice
from restorelcc.base.prunings import STRUCTURED_PRUNERS, parse_pruning
from restorelcc.base.publish import Scratch, published
from restorelcc.base.weights import weight_files
from restorelcc.models.architectures import text_config
from restorelcc.models.checkpoint_check import loaded_config
from restorelcc.models.checkpoints import load_model, local_folder
from restorelcc.models.runtime import pick_device, prepare
from restorelcc.models.tensor_files import stored_tensors
from restorelcc.models.text import context_length
from restorelcc.release.export.export import ExportOptions, export_checkpoint
from restorelcc.release.export.source import main_dtype
from restorelcc.release.packed.folder import pack_folder
from restorelcc.release.packed.kernel import kernel
from restorelcc.release.packed.model import load_packed
from restorelcc.stages.speed import SpeedConfig
from restorelcc.stages.speed.measure import INT8, Int8Linear, Version, measured, take_turns, with_linears


def run(cell: Cell, config: SpeedConfig, model: ModelEntry, layout: Layout) -> None:
    """Write metrics/<model>/<pruning>/heads-<ratio>.speed.json. Raises BadInput as `export` does."""
    prepare(seed=config.seed, threads=model.threads)
    device = pick_device(model.device)
    config = _within_context(config, loaded_config(local_folder(layout.dense(cell))))
    with published(layout, layout.speed(cell)) as (path,), _scratch(layout) as scratch:
        versions = list(_versions(cell, layout, scratch, device))
        take_turns(versions, config, text_config(versions[0].model.config).vocab_size)
        packed = kernel() if device.type == "cpu" else None
        document: dict[str, Any] = {
            "model": cell.model,
            "pruning": cell.pruning,
            "head_ratio": cell.head_ratio,
            "device": device.type,
            "machine": _machine(device),
            "threads": torch.get_num_threads(),
            "dtype": str(versions[0].model.dtype).removeprefix("torch."),
            "kernel": None if packed is None else packed.level,
            "settings": config.model_dump(),
            "versions": {version.name: measured(version, versions[0]) for version in versions},
            "parents": {
                "dense": model_digest(layout.dense(cell)),
                "pruned": model_digest(layout.pruned(cell)),
                "compensation": file_digest(layout.compensation(cell)),
            },
        }
        write_document(path, document)


def _within_context(config: SpeedConfig, model: PretrainedConfig) -> SpeedConfig:
    """With a shorter prefill where the model takes in fewer tokens. Raises BadInput where too many are decoded."""
    decoded = config.prompt + config.new_tokens
    if decoded > (most := context_length(model, decoded)):
        raise BadInput(f"speed.prompt + new_tokens is {decoded}, and the model takes in {most} tokens: give fewer")
    return config.model_copy(update={"prefill": context_length(model, config.prefill)})


def _versions(cell: Cell, layout: Layout, scratch: Path, device: torch.device) -> Iterator[Version]:
    """Each in the dtype that its files have. Packed and 8-bit weights are computed with on a CPU only."""

    def stock(name: str, folder: Path) -> Version:
        return Version(name, _loaded(folder, device), _bytes(weight_files(folder)))

    dense, restored = local_folder(layout.dense(cell)), scratch / "restored"
    yield stock("dense", dense)
    yield stock("pruned", local_folder(layout.pruned(cell)))
    export_checkpoint(layout.pruned(cell), layout.compensation(cell), restored, ExportOptions())
    yield stock("restored", restored)
    if parse_pruning(str(cell.pruning)).pruner in STRUCTURED_PRUNERS:
        cut = ExportOptions(cut=True)
        export_checkpoint(layout.pruned(cell), layout.compensation(cell), scratch / "sliced", cut)
        yield stock("sliced", scratch / "sliced")
    if device.type != "cpu":
        notice(f"speed {cell}", "packed and 8-bit weights are left out: only a CPU computes with them here")
        return
    packed = scratch / "packed"
    if pack_folder(restored, packed)["tensors"]:
        yield Version("packed", load_packed(packed), _bytes(packed.glob("*.safetensors")))
    else:
        notice(f"speed {cell}", "there is no packed version: no weight of the restored model gets smaller by it")
    if hasattr(torch, INT8):
        yield Version("dense in 8 bits", with_linears(_loaded(dense, device), Int8Linear), None)
    else:
        notice(f"speed {cell}", f"there is no 8-bit version: this torch has no {INT8}")


def _loaded(folder: Path, device: torch.device) -> PreTrainedModel:
    return load_model(folder, main_dtype(stored_tensors(folder)), device).eval().requires_grad_(False)


def _bytes(files: Iterable[Path]) -> int:
    return sum(path.stat().st_size for path in files)


def _machine(device: torch.device) -> str:
    """What ran: the name of the GPU or of the processor, as far as the system says."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return named or platform.processor() or platform.machine()


@contextmanager
def _scratch(layout: Layout) -> Iterator[Path]:
    with Scratch(layout.work, "speed") as folder:
        yield Path(folder)
