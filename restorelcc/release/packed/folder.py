"""A checkpoint folder packed, and the stock one again, bit for bit.

packed.json has, for every weight file of the stock checkpoint, its digest and its header; `packed-N.safetensors` beside
it has the numbers: a weight that was packed as NAME.mask, NAME.offsets and NAME.values (matrix.py), all others as they
are. Every other file is the same in both folders, but for a stage's list of its files, which would not be true.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from restorelcc.base.digest import file_digest
from restorelcc.base.documents import read_document, write_document
from restorelcc.base.errors import BadInput
from restorelcc.base.manifest import MANIFEST, check_folder
from restorelcc.base.names import check_links, inside
from restorelcc.base.progress import progress
from restorelcc.base.stock_files import CODE, PICKLES
from restorelcc.base.weights import PACKED, weights_of
from restorelcc.models.architectures import family_of_config
from restorelcc.models.checkpoint_check import check_beside, check_checkpoint
from restorelcc.models.safetensors_header import Header, decoded, encoded, read_header, read_raw, tensors_of
from restorelcc.models.tensor_files import DTYPES, StoredTensor
from restorelcc.release.folders import check_apart, check_output, published_folder
from restorelcc.release.packed.matrix import PARTS, STORED, Packed, check, pack
from restorelcc.sparsity.streaming import read_config

FORMAT = 1
_NUMPY: dict[str, np.dtype[Any]] = {
    "U8": np.dtype("u1"),
    "U16": np.dtype("<u2"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
}
_AGAIN = "pack the checkpoint again, or fetch this folder again"


@dataclass(frozen=True)
class Shard:
    """A weight file of the stock checkpoint: its name, digest and header there, and the tensors of its packed file."""

    name: str
    digest: str
    raw: bytes  # the header with its length before it, as the stock file begins
    header: Header
    packed: Path
    stored: dict[str, StoredTensor]
    turned: bool  # whether the stock file has its weights as [I, O]


def is_packed(folder: Path) -> bool:
    return (folder / PACKED).is_file()


def pack_folder(source: Path, out: Path, *, overwrite: bool = False) -> dict[str, Any]:
    """Write `out`: the checkpoint in `source` with its sparse linears packed. Returns {"stock", "packed", "tensors"}:
    bytes of the weight files before and after, and how many tensors were packed.

    Raises BadInput for a source that is no checkpoint of a known family, and when something is in the way.
    """
    if is_packed(source):
        raise BadInput(f"{source} is packed already: copy it as it is")
    check_output(out, overwrite=overwrite)
    check_apart(out, source)
    check_folder(source)
    check_checkpoint(source)
    with published_folder(out, overwrite=overwrite) as folder:
        _copy_others(source, folder, weights_of(source).names)
        return _pack_weights(source, folder)


def pack_in_place(folder: Path) -> dict[str, Any]:
    """`pack_folder` for a folder that nobody else sees yet: its weight files make room for the packed ones."""
    weights = weights_of(folder)
    found = _pack_weights(folder, folder)
    for name in weights.names:
        (folder / name).unlink()
    return found


def _copy_others(source: Path, folder: Path, without: tuple[str, ...]) -> None:
    check_links(source)
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source)
        strange = path.suffix.lower() in (*PICKLES, *CODE) or (path.parent == source and path.suffix == ".safetensors")
        if path.is_file() and str(name) not in (*without, MANIFEST) and not strange:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / name)


def _pack_weights(source: Path, folder: Path) -> dict[str, Any]:
    family, weights = family_of_config(read_config(source)), weights_of(source)
    suffixes = tuple(f".{path}.weight" for path in family.linears)
    files, before, after, count, linears = [], 0, 0, 0, 0
    for number, name in enumerate(weights.files, start=1):
        stock, packed = source / name, folder / f"packed-{number:05d}.safetensors"
        header, begin = read_header(stock)
        wanted = {
            name
            for name, entry in tensors_of(header).items()
            if name.startswith(f"{family.stored}.") and name.endswith(suffixes)
            if entry["dtype"] in STORED and len(entry["shape"]) == 2
        }
        linears += len(wanted)
        count += _write_packed(stock, header, begin, wanted, packed, turned=family.transposed)
        text = read_raw(stock)[8:].decode()
        files.append({"name": name, "sha256": file_digest(stock), "header": text})
        files[-1] |= {"packed": packed.name, "packed_sha256": file_digest(packed)}
        before, after = before + stock.stat().st_size, after + packed.stat().st_size
    if not linears:
        raise BadInput(
            f"{source} has no weight to pack: none named {family.stored}.<number>.{family.linears[0]}.weight in "
            f"{', '.join(sorted(STORED))}; save the whole model, as AutoModelForCausalLM has it, in one of these"
        )
    index = None
    if weights.index is not None:
        index = {"name": weights.index, "text": (source / weights.index).read_bytes().decode()}
    sizes = {"stock": before, "packed": after, "tensors": count}
    write_document(folder / PACKED, {"format": FORMAT, "files": files, "index": index, "bytes": sizes})
    return sizes


def _write_packed(stock: Path, header: Header, begin: int, wanted: set[str], packed: Path, *, turned: bool) -> int:
    """Write the packed file of one weight file, a tensor at a time; how many tensors were packed.

    turned: whether weights are stored [I, O]; packed they are [O, I] all the same.
    """
    entries = tensors_of(header)
    names = sorted(entries, key=lambda name: (entries[name]["data_offsets"], name))
    if clash := sorted({f"{name}.{part}" for name in wanted for part in PARTS} & entries.keys()):
        raise BadInput(f"{stock} has a tensor {clash[0]}, a name that a packed checkpoint needs: rename it")
    # No header can get longer than this one; the real one is written over it when all lengths are known.
    longest = {name: entry | {"data_offsets": [10**15, 10**15]} for name, entry in entries.items()}
    for name in wanted:
        longest |= {f"{name}.{part}": {"dtype": "U16", "shape": [10**15] * 2} | longest[name] for part in PARTS}
    length = len(encoded(longest))
    written: Header = {}
    with packed.open("wb") as file:
        file.write(bytes(length))
        for name in progress(names, f"pack {stock.name}", "tensors"):
            entry = entries[name]
            content, small = _read(stock, begin, entry), None
            if name in wanted:
                bits = np.frombuffer(content, _NUMPY[STORED[entry["dtype"]]]).reshape(entry["shape"])
                small = pack(np.ascontiguousarray(bits.T) if turned else bits)
            if small is None:
                _append(file, written, name, entry["dtype"], entry["shape"], content)
                continue
            kinds = _kinds(entry)
            for part, value in small.parts().items():
                _append(file, written, f"{name}.{part}", kinds[part], list(value.shape), value.tobytes())
        file.seek(0)
        file.write(encoded(written, length=length))
    return sum(name not in written for name in names)


def _kinds(entry: dict[str, Any]) -> dict[str, str]:
    """The dtype of each part of a packed weight."""
    return {"mask": "U8", "offsets": "I32", "values": STORED[entry["dtype"]]}


def _read(path: Path, begin: int, entry: dict[str, Any]) -> bytes:
    start, end = entry["data_offsets"]
    with path.open("rb") as file:
        file.seek(begin + start)
        return file.read(end - start)


def _append(file: BinaryIO, header: Header, name: str, dtype: str, shape: list[int], content: bytes) -> None:
    start = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, start + len(content)]}
    file.write(content)


def open_packed(folder: Path) -> list[Shard]:
    """The weight files of a packed checkpoint, each held against its digest.

    Raises BadInput for a folder that is none, and for one whose files are missing, cut short or changed.
    """
    if not is_packed(folder):
        raise BadInput(f"{folder} has no {PACKED}: give a folder that `restorelcc export --packed` or `pack` wrote")
    check_beside(folder)
    turned = family_of_config(read_config(folder)).transposed
    path = folder / PACKED
    content = read_document(path)
    files = content.get("files")
    if content.get("format") != FORMAT or not isinstance(files, list) or not files:
        raise BadInput(f"{path} is not of the format {FORMAT}, which this version reads: {_AGAIN}")
    shards = [_shard(folder, path, entry, turned=turned) for entry in files]
    taken = [name for shard in shards for name in tensors_of(shard.header)]
    if len(set(taken)) < len(taken) or len({shard.name for shard in shards}) < len(shards):
        raise BadInput(f"{path} has a file or a tensor twice: {_AGAIN}")
    return shards


def _shard(folder: Path, document: Path, entry: Any, *, turned: bool) -> Shard:
    texts = ("name", "sha256", "header", "packed", "packed_sha256")
    if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in texts):
        raise BadInput(f"{document} does not describe its weight files: {_AGAIN}")
    packed = inside(folder, entry["packed"], str(document))
    inside(folder, entry["name"], str(document))
    if not entry["name"].endswith(".safetensors"):
        raise BadInput(f"{document} names {entry['name']!r:.80}, which is not a safetensors file: {_AGAIN}")
    if not packed.is_file():
        raise BadInput(f"{packed} is missing: {_AGAIN}")
    if file_digest(packed) != entry["packed_sha256"]:
        raise BadInput(f"{packed} was changed or cut short since it was written (its digest differs): {_AGAIN}")
    text = entry["header"].encode()
    raw = len(text).to_bytes(8, "little") + text
    try:
        header = decoded(raw)
    except ValueError as error:
        raise BadInput(f"{document} has a header of {entry['name']} that is none ({error}): {_AGAIN}") from error
    own, begin = read_header(packed)
    stored = {
        name: StoredTensor(
            packed, DTYPES[found["dtype"]], tuple(found["shape"]), *(begin + at for at in found["data_offsets"])
        )
        for name, found in tensors_of(own).items()
    }
    _check_names(packed, header, stored)
    return Shard(entry["name"], entry["sha256"], raw, header, packed, stored, turned)


def _check_names(packed: Path, header: Header, stored: dict[str, StoredTensor]) -> None:
    """Raises BadInput unless the packed file has the tensors of the stock file, whole or in parts, and no more."""
    expected: set[str] = set()
    for name, entry in tensors_of(header).items():
        whole = stored.get(name)
        if whole is not None and (whole.dtype, whole.shape) != (DTYPES[entry["dtype"]], tuple(entry["shape"])):
            raise BadInput(f"{packed} holds {name} in another dtype or shape than {PACKED} says: {_AGAIN}")
        if whole is None and (entry["dtype"] not in STORED or len(entry["shape"]) != 2):
            raise BadInput(f"{packed} lacks {name}: {_AGAIN}")
        expected |= {name} if whole is not None else {f"{name}.{part}" for part in PARTS}
    if missing := sorted(expected - stored.keys()):
        raise BadInput(f"{packed} lacks {missing[0]}: {_AGAIN}")
    if strange := sorted(stored.keys() - expected):
        raise BadInput(f"{packed} holds {strange[0]}, which {PACKED} does not know: {_AGAIN}")


def packed_matrix(shard: Shard, name: str) -> Packed | None:
    """A weight [O, I], checked; None for a tensor that is stored whole. Raises BadInput when its parts disagree."""
    if name in shard.stored:
        return None
    entry = shard.header[name]
    outputs, inputs = reversed(entry["shape"]) if shard.turned else entry["shape"]
    parts: dict[str, Any] = {}
    for part, kind in _kinds(entry).items():
        stored = shard.stored[f"{name}.{part}"]
        if stored.dtype != DTYPES[kind]:
            raise BadInput(f"{shard.packed}: {name}.{part} is of the dtype {stored.dtype}, not {kind}: {_AGAIN}")
        content = _read(shard.packed, 0, {"data_offsets": [stored.start, stored.end]})
        parts[part] = np.frombuffer(content, _NUMPY[kind]).reshape(stored.shape)
    packed = Packed(inputs, **parts)
    try:
        check(packed, outputs)
    except ValueError as error:
        raise BadInput(f"{shard.packed}: {name} cannot be unpacked, {error}: {_AGAIN}") from error
    return packed


def unpack_folder(source: Path, out: Path, *, overwrite: bool = False) -> dict[str, str]:
    """Write `out`: the stock checkpoint that was packed. Returns the digest of each weight file, which is that of the
    file that was packed.

    Raises BadInput as `open_packed` and `packed_matrix`, when the bytes are not those that were packed, and when
    something is in the way.
    """
    check_output(out, overwrite=overwrite)
    check_apart(out, source)
    with published_folder(out, overwrite=overwrite) as folder:
        return unpack_into(source, folder)


def unpack_into(source: Path, folder: Path) -> dict[str, str]:
    """`unpack_folder` into a folder that nobody else sees yet."""
    shards, digests = open_packed(source), {}
    _copy_others(source, folder, (PACKED,))
    for shard in shards:
        with (folder / shard.name).open("wb") as file:
            total = hashlib.sha256(shard.raw)
            file.write(shard.raw)
            for piece in _contents(shard):
                total.update(piece)
                file.write(piece)
        if total.hexdigest() != shard.digest:
            raise BadInput(f"{shard.packed} does not give the bytes of {shard.name} that were packed: {_AGAIN}")
        digests[shard.name] = shard.digest
    index = read_document(source / PACKED).get("index")
    if isinstance(index, dict):
        path = inside(folder, index.get("name"), str(source / PACKED))
        path.write_bytes(str(index.get("text")).encode())
    try:
        check_checkpoint(folder)  # config.json has no digest of its own: it must fit what was unpacked
    except BadInput as error:
        raise BadInput(str(error).replace(str(folder), str(source))) from error
    return digests


def _contents(shard: Shard) -> Iterator[bytes]:
    """The bytes behind the header of the stock file, tensor after tensor."""
    entries = tensors_of(shard.header)
    names = sorted(entries, key=lambda name: (entries[name]["data_offsets"], name))
    for name in progress(names, f"unpack {shard.name}", "tensors"):
        packed = packed_matrix(shard, name)
        if packed is None:
            stored = shard.stored[name]
            yield _read(shard.packed, 0, {"data_offsets": [stored.start, stored.end]})
        else:
            bits_OI = packed.dense()
            yield (bits_OI.T if shard.turned else bits_OI).tobytes()
