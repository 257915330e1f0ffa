"""A packed folder gives back the stock one bit for bit, and whatever is done to it is refused in one sentence."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

import restorelcc
from restorelcc.__main__ import main
from restorelcc.base.digest import file_digest
from restorelcc.base.documents import read_document, write_document
from restorelcc.base.errors import BadInput
from restorelcc.base.manifest import check_folder, write_manifest
from restorelcc.models.checkpoints import load_model, local_folder, save_checkpoint
from restorelcc.models.tensor_files import stored_tensors
from restorelcc.release.export.export import ExportOptions, export_checkpoint
from restorelcc.release.packed import model as model_module
from restorelcc.release.packed.folder import pack_folder, unpack_folder
from restorelcc.release.packed.kernel import kernel
from restorelcc.release.packed.model import PackedLinear, load_packed
from restorelcc.release.verify.files import Violation
from restorelcc.release.verify.verify import subject, verify
from tests import pico
from tests.dag import ROOT
from tests.release.export.restored import Pair, pair_of, pruned_model

WEIGHT = "model.layers.1.mlp.up_proj.weight"


def _files(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): file_digest(path) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return pair_of(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def restored(pair: Pair) -> Path:
    out = pair.pruned.parent / "restored"
    export_checkpoint(pair.pruned, pair.compensation, out, ExportOptions(max_shard_bytes=20_000))
    return out


@pytest.fixture(scope="module")
def packed(pair: Pair) -> Path:
    out = pair.pruned.parent / "packed"
    export_checkpoint(pair.pruned, pair.compensation, out, ExportOptions(max_shard_bytes=20_000, packed=True))
    return out


@pytest.fixture
def copy(packed: Path, tmp_path: Path) -> Path:
    shutil.copytree(packed, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.mark.parametrize("family", pico.ALL_FAMILIES)
def test_every_family_comes_back_and_computes_the_same(family: str, tmp_path: Path) -> None:
    model = pruned_model(family)
    save_checkpoint(tmp_path / "stock", model, pico.word_tokenizer())
    pack_folder(tmp_path / "stock", tmp_path / "packed")
    unpack_folder(tmp_path / "packed", tmp_path / "again")
    assert _files(tmp_path / "again") == _files(tmp_path / "stock")
    loaded = load_packed(tmp_path / "packed")
    assert any(isinstance(module, PackedLinear) for module in loaded.modules())
    assert type(loaded) is type(model)
    tokens = pico.tokens(2, 7)
    expected = model(input_ids=tokens).logits
    difference = (loaded(input_ids=tokens).logits - expected).abs().max()
    assert float(difference) <= 1e-5 * float(expected.abs().max())


@pytest.mark.parametrize("family", pico.FAMILIES)
def test_bfloat16_is_within_the_models_own_rounding(family: str, tmp_path: Path) -> None:
    model = pruned_model(family, torch.bfloat16)
    save_checkpoint(tmp_path / "stock", model, pico.word_tokenizer())
    pack_folder(tmp_path / "stock", tmp_path / "packed")
    loaded, tokens = load_packed(tmp_path / "packed"), pico.tokens(2, 12)
    assert loaded.dtype == torch.bfloat16
    found, own = loaded(input_ids=tokens).logits.float(), model(input_ids=tokens).logits.float()
    rounding = (own - model.float()(input_ids=tokens).logits).abs().max()
    assert float((found - own).abs().max()) <= 2 * float(rounding)  # both round


def test_a_packed_export_unpacks_to_the_export(restored: Path, packed: Path, tmp_path: Path) -> None:
    digests = unpack_folder(packed, tmp_path / "again")
    assert _files(tmp_path / "again") == _files(restored)
    assert len(digests) == 2
    assert digests == {name: file_digest(restored / name) for name in digests}
    assert {path.name for path in packed.glob("*.safetensors")} == {f"packed-{n:05d}.safetensors" for n in (1, 2)}


def test_a_checkpoint_with_no_weight_to_pack_is_refused(tmp_path: Path) -> None:
    """The body of a model alone, whose names have no prefix, would come out as it went in."""
    save_checkpoint(tmp_path / "stock", pruned_model("llama"), pico.word_tokenizer())
    path = tmp_path / "stock" / "model.safetensors"
    save_file({name.removeprefix("model."): value for name, value in load_file(path).items()}, path)
    with pytest.raises(
        BadInput, match=r"no weight to pack: none named model\.layers\.<number>\.self_attn\.\w+\.weight"
    ):
        pack_folder(tmp_path / "stock", tmp_path / "packed")
    assert [each.name for each in tmp_path.iterdir()] == ["stock"]


def test_packing_that_does_not_pay_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_checkpoint(tmp_path / "stock", pico.pico("llama"), pico.word_tokenizer())
    command = ["restorelcc", "pack", str(tmp_path / "stock"), "--out", str(tmp_path / "packed")]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    assert "is no smaller than" in capsys.readouterr().err


def test_the_list_of_a_stages_files_stays_behind(restored: Path, tmp_path: Path) -> None:
    shutil.copytree(restored, tmp_path / "stage")
    write_manifest(tmp_path / "stage")
    pack_folder(tmp_path / "stage", tmp_path / "packed")
    check_folder(tmp_path / "packed")
    unpack_folder(tmp_path / "packed", tmp_path / "again")
    assert _files(tmp_path / "again") == _files(restored)


@pytest.mark.parametrize(
    ("key", "value"), [("num_hidden_layers", 1), ("intermediate_size", 99), ("model_type", "gpt2")]
)
def test_a_config_that_does_not_fit_the_weights_is_refused(copy: Path, tmp_path: Path, key: str, value: Any) -> None:
    config = json.loads((copy / "config.json").read_text()) | {key: value}
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadInput) as raised:
        unpack_folder(copy, tmp_path / "again")
    assert str(copy) in str(raised.value) and "unfinished" not in str(raised.value)
    assert not (tmp_path / "again").exists()


def test_it_generates_what_the_stock_checkpoint_does(restored: Path, packed: Path) -> None:
    model, stock = restorelcc.load_packed(str(packed)), load_model(restored, torch.float32, torch.device("cpu"))
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    tokens = pico.tokens(3, 5)
    assert torch.equal(model.generate(tokens, **options), stock.generate(tokens, **options))


def test_a_checkpoint_without_its_weights_is_not_written(packed: Path, tmp_path: Path) -> None:
    model = restorelcc.load_packed(packed)
    for save in (model.state_dict, lambda: model.save_pretrained(tmp_path / "saved")):
        with pytest.raises(BadInput, match="not saved from memory: copy its folder, or run `restorelcc unpack`"):
            save()


def test_the_model_stays_packed_in_memory(tmp_path: Path) -> None:
    model = pruned_model("llama", torch.bfloat16, hidden_size=128, intermediate_size=256)
    save_checkpoint(tmp_path / "stock", model, pico.word_tokenizer())
    sizes = pack_folder(tmp_path / "stock", tmp_path / "packed")
    loaded = load_packed(tmp_path / "packed")
    blocks = model.model.layers.get_submodule("0"), loaded.model.layers.get_submodule("0")
    stock, packed = (
        sum(each.nbytes for each in (*block.parameters(), *block.buffers()) if not each.is_meta) for block in blocks
    )
    assert packed < 0.65 * stock
    assert sizes["packed"] < 0.75 * sizes["stock"]


def test_the_reader_of_the_docs_needs_nothing_but_numpy_and_safetensors(packed: Path, restored: Path) -> None:
    page = (ROOT / "docs" / "packed.md").read_text(encoding="utf-8")
    code = next(block for block in page.split("```python\n") if "def read_packed" in block).partition("```")[0]
    scope: dict[str, Any] = {}
    exec(code, scope)
    found = {name: (dtype, tuple(shape), bits) for name, dtype, shape, bits in scope["read_packed"](packed)}
    expected = {
        name: ("F32", tensor.shape, tensor.read().numpy().tobytes())
        for name, tensor in stored_tensors(restored).items()
    }
    assert found == expected


def test_other_commands_name_unpack(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"is a packed checkpoint: run `restorelcc unpack"):
        local_folder(packed)
    with pytest.raises(BadInput, match="is packed already"):
        pack_folder(packed, tmp_path / "out")


def _edit(folder: Path, part: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Change one part of WEIGHT, and write all digests anew: only the content is wrong."""
    content = read_document(folder / "packed.json")
    for entry in content["files"]:
        path, name = folder / entry["packed"], f"{WEIGHT}.{part}"
        tensors = load_file(path)
        if name in tensors:
            tensors[name] = np.ascontiguousarray(change(tensors[name].copy()))
            save_file(tensors, path)
            entry["packed_sha256"] = file_digest(path)
    write_document(folder / "packed.json", content)


def _flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def _flip_bit(mask: np.ndarray) -> np.ndarray:
    mask[0, 0] ^= 1
    return mask


def _swap_rows(mask: np.ndarray) -> np.ndarray:
    """Another mask with as many bits in each row, which only the digest of the stock file can tell."""
    mask[0] = np.packbits(np.unpackbits(mask[0], bitorder="little")[:16][::-1], bitorder="little").tolist() + [0] * 6
    return mask


def _edit_document(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = read_document(folder / "packed.json")
    change(content)
    write_document(folder / "packed.json", content)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a flipped bit": (lambda d: _flip(d / "packed-00002.safetensors", -1), "its digest differs"),
    "a flipped bit of the header": (lambda d: _flip(d / "packed-00001.safetensors", 20), "its digest differs"),
    "a truncated file": (lambda d: _truncate(d / "packed-00001.safetensors"), "its digest differs"),
    "a missing file": (lambda d: (d / "packed-00002.safetensors").unlink(), "is missing"),
    "a changed document": (lambda d: _flip(d / "packed.json", 60), "changed|not valid JSON|not of the format"),
    "a mask that disagrees": (lambda d: _edit(d, "mask", _flip_bit), "not as many bits in every row"),
    "offsets past the end": (lambda d: _edit(d, "offsets", lambda a: a + 7), "its offsets go from 7"),
    "values cut": (lambda d: _edit(d, "values", lambda a: a[:-1]), "and there are"),
    "values of another dtype": (lambda d: _edit(d, "values", lambda a: a.astype(np.uint16)), "is of the dtype"),
    "another version": (lambda d: _edit_document(d, lambda c: c.update(format=2)), "not of the format 1"),
    "a name that leads out": (lambda d: _edit_document(d, lambda c: c["files"][0].update(name="../x")), "leads out"),
    "a packed name that leads out": (
        lambda d: _edit_document(d, lambda c: c["files"][0].update(packed="/etc/passwd")),
        "leads out",
    ),
    "a header that is none": (lambda d: _edit_document(d, lambda c: c["files"][0].update(header="{")), "is none"),
    "a file twice": (lambda d: _edit_document(d, lambda c: c["files"].append(c["files"][0])), "twice"),
    "an empty list": (lambda d: _edit_document(d, lambda c: c.update(files=[])), "not of the format"),
    "an unknown tensor": (
        lambda d: _edit_document(d, lambda c: c["files"][0].update(header='{"x":' + _ENTRY + "}")),
        "lacks x",
    ),
}
_ENTRY = '{"dtype":"I64","shape":[1],"data_offsets":[0,8]}'


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_refused(name: str, copy: Path, tmp_path: Path) -> None:
    damage, reason = DAMAGE[name]
    damage(copy)
    with pytest.raises(BadInput, match=reason):
        unpack_folder(copy, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy"]
    with pytest.raises(BadInput, match=reason):
        load_packed(copy)


def test_another_mask_of_the_same_size_is_found_by_the_digest(copy: Path, tmp_path: Path) -> None:
    _edit(copy, "mask", _swap_rows)
    with pytest.raises(
        BadInput, match=r"does not give the bytes of model-0000\d-of-00002.safetensors that were packed"
    ):
        unpack_folder(copy, tmp_path / "out")


@pytest.mark.parametrize("verb", ["unpack", "verify"])
def test_damage_ends_with_2_and_one_sentence(
    verb: str, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _edit(copy, "mask", _flip_bit)
    arguments = ["--out", str(tmp_path / "out")] if verb == "unpack" else []
    monkeypatch.setenv("RESTORELCC_PROGRESS", "0")
    monkeypatch.setattr("sys.argv", ["restorelcc", verb, str(copy), *arguments])
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("restorelcc: error:")
    assert said.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy"]


def test_verify_proves_a_packed_export(packed: Path, stock_forks: None) -> None:
    found = dict(verify(subject(packed, None, None)))
    assert found["packed"].endswith("unpacked with the digests that were packed")
    assert {"tensors", "digests", "parents", "fresh process", "packed logits", "logits"} <= found.keys()
    assert found["parents"].startswith("compensation")
    assert not list(packed.parent.glob(".*unpacked*"))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("pytorch_model.bin", "is a pickle"),
        ("modeling_own.py", "is a program"),
        ("model.safetensors", r"does not belong to the packed checkpoint.*delete it"),
    ],
)
def test_verify_looks_at_the_packed_folder_itself(name: str, said: str, copy: Path) -> None:
    (copy / name).write_bytes(b"whatever")
    with pytest.raises(Violation, match=rf"{name} {said}"):
        dict(verify(subject(copy, None, None), logits=False))


def test_verify_runs_the_product_of_few_tokens(
    packed: Path, compiler: str, stock_forks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decoding has a product of its own: a fault in it alone is found."""
    library = kernel()
    assert library is not None

    def wrong(*arguments: Any) -> int:
        arguments = (*arguments[:2], arguments[1], *arguments[3:])  # the mask read as values
        return library.linear(*arguments)

    broken = SimpleNamespace(linear=wrong, expand=library.expand)
    monkeypatch.setattr(model_module, "kernel", lambda: broken)
    with pytest.raises(Violation, match="logits differ from the packed model"):
        dict(verify(subject(packed, None, None)))


def test_the_verbs(
    pair: Pair, restored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from typer.testing import CliRunner

    from restorelcc.cli.app import app

    def run(*arguments: object) -> str:
        done = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    files = ["--pruned", pair.pruned, "--compensation", pair.compensation]
    run("export", *files, "--out", tmp_path / "one", "--packed", "--max-shard-size", "20kB")
    assert "tensors packed" in run("pack", restored, "--out", tmp_path / "two")
    for name in ("one", "two"):
        assert "as it was packed" in run("unpack", tmp_path / name, "--out", tmp_path / f"{name}-again")
        other = {"restorelcc.json"} if name == "one" else set()  # which says where the parents are
        expected, found = _files(restored), _files(tmp_path / f"{name}-again")
        assert {key for key in expected | found if expected.get(key) != found.get(key)} == other


def test_a_header_is_padded_up_to_where_the_numbers_begin(packed: Path) -> None:
    with (packed / "packed-00001.safetensors").open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        assert file.read(length).rstrip(b" ").endswith(b"}")
