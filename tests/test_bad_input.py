"""Bad input as one table: no traceback, one sentence with what is wrong, where and what to do, exit code 2, and nothing
written. The cases come from the settings themselves, field by field, and from lists of what people have written."""

from __future__ import annotations

import contextlib
import copy
import io
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from typer.main import get_command

from restorelcc.__main__ import main
from restorelcc.base.errors import BadInput
from restorelcc.base.section import Section, _kinds
from restorelcc.cli.app import app
from restorelcc.pipeline.params import Params, checked
from tests.dag import ROOT

SHIPPED = ROOT / "params.yaml"
CONTENT = yaml.safe_load(SHIPPED.read_text(encoding="utf-8"))
# A model of every key, so that each has a place to be wrong at.
CONTENT["models"] = {
    "tiny": CONTENT["models"]["tiny"],
    "mine": {
        "source": "some/model",
        "data": {"calibration": "c4", "instructions": "alpaca", "heldout": "wikitext"},
        "tasks": [{"name": "rte"}],
    },
}
CONTENT["compensate"]["distill"] = {}
CONTENT["prune"]["external"] = {"mine": {"theirs": {"source": "some/pruned"}}}

VALUES: dict[str, Any] = {
    "null": None,
    "negative": -1,
    "zero": 0,
    "huge": 10**30,
    "tiny": 1e-300,
    "not a number": math.nan,
    "infinite": -math.inf,
    "text": "three",
    "a number as text": "3",
    "empty text": "",
    "true": True,
    "an empty list": [],
    "a list": [[1]],
    "keys": {"a": {"b": 1}},
    "a control character": "a\x07b",
    "too long": "x" * 300,
    "blank": "   ",
}
TEXTS = ("text", "a number as text")


def _sections(model: type[BaseModel], above: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], FieldInfo]]:
    """(key, field) of everything below a section; of lists and catalogues the example in CONTENT."""
    for name, field in model.model_fields.items():
        key = (*above, name)
        yield key, field
        for kind in _kinds(field.annotation):
            if issubclass(kind, Section):
                yield from _sections(kind, key)


_AT = {  # where the example of an entry stands
    ("models",): ("models", "mine"),
    ("models", "tasks"): ("models", "mine", "tasks", "0"),
    ("models", "data"): ("models", "mine", "data"),
    ("prune", "external"): ("prune", "external", "mine", "theirs"),
}


def _place(key: tuple[str, ...]) -> tuple[str, ...]:
    for above, place in sorted(_AT.items(), key=lambda pair: -len(pair[0])):
        if key[: len(above)] == above and len(key) > len(above):
            return (*place, *key[len(above) :])
    return key


def _is_taken(name: str, value: Any, field: FieldInfo) -> bool:
    """Whether the field says that it takes a value."""
    kinds, annotation = _kinds(field.annotation), str(field.annotation)
    if value is None:
        return type(None) in kinds
    if name == "zero":
        return (
            kinds & {int, float}
            and not any(getattr(rule, "gt", None) == 0 for rule in field.metadata)
            and (min((rule.ge for rule in field.metadata if getattr(rule, "ge", None) is not None), default=1) <= 0)
        )
    if value == []:
        return "tuple" in annotation and not any(getattr(rule, "min_length", 0) for rule in field.metadata)
    if name == "true":
        return bool in kinds
    return isinstance(value, str) and str in kinds and "tuple" not in annotation and name in TEXTS


def _with(content: dict[str, Any], key: tuple[str, ...], value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(content)
    at: Any = changed
    for part in key[:-1]:
        at = at[int(part)] if isinstance(at, list) else at.setdefault(part, {})
    at[int(key[-1]) if isinstance(at, list) else key[-1]] = value
    return changed


def _cases() -> dict[tuple[str, ...], dict[str, Any]]:
    """{key: {name of a value: value}} of everything that has to be refused."""
    return {
        _place(key): {name: value for name, value in VALUES.items() if not _is_taken(name, value, field)}
        for key, field in _sections(Params, ())
    }


CASES = _cases()
OF_A_MODEL = {key: values for key, values in CASES.items() if key[0] not in ("grid", "models", "report") and key[1:]}


def _sentence(change: Any) -> str | None:
    """What the loader says of a content; None where it takes it."""
    try:
        checked(change)
    except BadInput as error:
        return str(error)
    return None


def _is_one_sentence(said: str) -> None:
    assert "\n" not in said and len(said) < 1200, said
    assert not re.search(r"Traceback|pydantic|Error\(|NoneType|<class|constrained|__|None|inputshould", said), said


@pytest.mark.parametrize("key", CASES, ids=".".join)
def test_every_setting_refuses_what_it_cannot_mean(key: tuple[str, ...]) -> None:
    for name, value in CASES[key].items():
        said = _sentence(_with(CONTENT, key, value))
        assert said is not None, f"{name} is taken"
        _is_one_sentence(said)
        # The key itself, or the one that it stands in, where a rule concerns several of them.
        assert key[-1] in said or ".".join(key[:-1]) in said, said
        assert re.search(r"[;:] .*\b(write|belongs?|remove|shorten|give|use|add|is|be|missing|name|one of)\b", said), (
            said
        )


@pytest.mark.parametrize("key", OF_A_MODEL, ids=".".join)
def test_and_so_do_the_settings_of_a_model(key: tuple[str, ...]) -> None:
    for name in ("text", "infinite", "a list"):
        if name in OF_A_MODEL[key]:
            said = _sentence(_with(CONTENT, ("models", "mine", "settings", *key), VALUES[name]))
            assert said is not None, f"{name} is taken"
            _is_one_sentence(said)
            assert f"models.mine.settings.{key[0]}" in said, said


def test_the_table_is_long_and_is_good_without_a_change() -> None:
    assert sum(map(len, CASES.values())) > 2000
    assert _sentence(copy.deepcopy(CONTENT)) is None


TEXT = SHIPPED.read_text(encoding="utf-8")
# The embedded model with all settings at their defaults.
SMALL = yaml.safe_dump(
    {name: {} for name in Params.model_fields}
    | {"models": {"tiny": {"source": "microworld"}}}
    | {"grid": {"model": ["tiny"], "pruning": ["wanda-0.5"], "head_ratio": [0.1]}}
)
BUILT = get_command(app)  # which typer does anew for every call
FILES: dict[str, tuple[bytes, str]] = {
    "Latin-1": (TEXT.encode() + b"# caf\xe9\n", r"is not UTF-8 \(line \d+\): save it"),
    "UTF-16": (TEXT.encode("utf-16"), r"is not UTF-8 \(line 1\)"),
    "binary": (bytes(range(256)), "is not UTF-8|not valid YAML"),
    "empty": (b"", "it holds nothing"),
    "blank": (b" \n\n", "it holds nothing"),
    "a comment": (b"# nothing\n", "it holds nothing"),
    "null": (b"null\n", "it holds nothing"),
    "a list": (b"- grid\n", "it holds list"),
    "text": (b"grid\n", "it holds str"),
    "a number": (b"3\n", "it holds int"),
    "no mapping": (b"{}\n", r"key 'grid' is missing.*\(11 more to correct: models, corpus"),
    "unclosed": (b"grid: [1\n", "is not valid YAML"),
    "tabs": (b"grid:\n\tmodel: [tiny]\n", "is not valid YAML"),
    "two documents": (f"{TEXT}---\n{TEXT}".encode(), "is not valid YAML"),
    "NUL": (TEXT.encode() + b"\0", "is not valid YAML"),
    "an object": (b"grid: !!python/object:os.system {}\n", "is not valid YAML"),
    "a tag": (b"grid: !mine 3\n", "is not valid YAML"),
    "an alias of nothing": (b"grid: *none\n", "is not valid YAML"),
    "an alias of itself": (b"grid: &a [*a]\n", "too many values, or values nested too deeply"),
    "aliases of aliases": (
        b"a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
        + b"".join(b"a%d: &a%d [%s]\n" % (n, n, b", ".join([b"*a%d" % (n - 1)] * 9)) for n in range(1, 9)),
        "too many values",
    ),
    "deep brackets": (b"grid: " + b"[" * 5000 + b"]" * 5000, "nested too deeply"),
    "deep lists": (b"- " * 5000 + b"a", "nested too deeply"),
    "deep keys": ("\n".join(" " * n + "a:" for n in range(800)).encode(), "nested too deeply|holds too many"),
    "large": (b"#" * 2**21, "larger than 1 MiB"),
    "a duplicate section": (
        TEXT.encode() + b"\nextract:\n  solver: svd\n",
        r"line \d+: the key 'extract' appears a s",
    ),
    "a duplicate key": (
        TEXT.replace("  train: 2000", "  train: 2000\n  train: 3").encode(),
        "'train' appears",
    ),
    "a duplicate model": (
        TEXT.replace("models:\n", "models:\n  tiny: {source: a}\n").encode(),
        "'tiny' appears",
    ),
    "a duplicate in braces": (
        TEXT.replace("{ samples: 256 }", "{ samples: 1, samples: 2 }").encode(),
        "'samples'",
    ),
    "the same key twice as text": (TEXT.encode() + b'\n"extract": {}\n', "'extract' appears"),
    "a key that is a number": (TEXT.replace("  tiny:", "  7:").encode(), "has the key 7, which is not text"),
    "a key that is null": (TEXT.replace("  tiny:", "  ~:").encode(), "has the key null, which is not text"),
    "a key that is a list": (TEXT.replace("  tiny:", "  ? [a]\n  :").encode(), "not valid YAML|not text"),
    "octal": (
        TEXT.replace("seed: 42", "seed: 010", 1).encode(),
        r"seed is 10 in YAML 1\.2.* and 8 in YAML 1\.1",
    ),
    "octal of YAML 1.2": (TEXT.replace("seed: 42", "seed: 0o10", 1).encode(), r"corpus\.seed is 8 in YAML 1\.2"),
    "a leading zero": (TEXT.replace("seed: 42", "seed: 08", 1).encode(), r"corpus\.seed is 8 in YAML 1\.2"),
    "an octal with a directive": (
        b"%YAML 1.1\n---\n" + TEXT.replace("seed: 42", "seed: 010", 1).encode(),
        r"corpus\.seed is 10 in YAML 1\.2",
    ),
    "sexagesimal": (
        TEXT.replace("samples: 128", "samples: 2:08", 1).encode(),
        r"samples is '2:08' in YAML 1\.2",
    ),
    "yes": (TEXT.replace("sanity_gate: true", "sanity_gate: yes").encode(), r"sanity_gate is 'yes' in YAML 1\.2"),
    "off": (TEXT.replace("sanity_gate: true", "sanity_gate: off").encode(), r"sanity_gate is 'off' in YAML 1\.2"),
    "no as a name": (TEXT.replace("model: [tiny]", "model: [no]").encode(), r"grid\.model\.0 is 'no' in YAML 1\.2"),
    "a date": (TEXT.replace("title: RestoreLCC results", "title: 2026-11-28").encode(), r"report\.title is a date"),
    "no date": (TEXT.replace("title: RestoreLCC results", "title: 2026-99-99").encode(), "not valid YAML"),
    "a set": (TEXT.replace("scores: [", "scores: !!set [").encode(), "not valid YAML"),
    "bytes": (TEXT.replace("title: RestoreLCC", "title: !!binary aGk= #").encode(), r"report\.title is a bytes"),
    "5000 digits": (TEXT.replace("seed: 42", f"seed: {'9' * 5000}", 1).encode(), "not valid YAML.*4300 digits"),
    "a bell in a text": (TEXT.replace("title: RestoreLCC", 'title: "\\a" #').encode(), r"control character U\+0007"),
    "a NUL in a text": (TEXT.replace("title: RestoreLCC", 'title: "\\0" #').encode(), r"control character U\+0000"),
    "half a character": (TEXT.replace("title: RestoreLCC", 'title: "\\ud800" #').encode(), "U.D800|not valid YAML"),
    "misspelled and so missing": (
        TEXT.replace("  head_ratio: [0.10, 0.25]", "  head_ration: [0.1]").encode(),
        r"key 'grid\.head_ration' is unknown: did you mean 'grid\.head_ratio'\?$",
    ),
    "both names of a key": (TEXT.encode() + b"\nbaseline: {}\n", "has both recover and baseline"),
    "many errors": (
        TEXT.replace("train: 2000", "train: -1")
        .replace("valid: 200", "valid: x")
        .replace("damping: 0.01", "dampin: 1")
        .encode(),
        r"'prune\.dampin' is unknown: did you mean 'prune\.damping'\? \(2 more to correct: corpus\.train, c",
    ),
}

SET: list[tuple[str, str]] = [
    ("corpus.seed", r"is not section\.key=value"),
    ("=3", r"is not section\.key=value"),
    ("corpus..seed=3", r"is not section\.key=value"),
    (".=3", r"is not section\.key=value"),
    ("grid.model.x.y=3", r"is not section\.key=value"),
    ("corpus.seed=[", r"the value of --set 'corpus\.seed=\[' is not valid YAML"),
    ("corpus.seed={a: 1, a: 2}", "the key 'a' appears a second time"),
    ("corpus.seed=010", "is 10 in YAML 1.2"),
    ("corpus.seed=4294967296", "at most 4294967295"),
    ("grid.head_ratio=['0.1']", "text is no number; write it without quotes"),
    ("grid.head_ratio=[true]", "true and false are not numbers"),
    ("grid.head_ratio=[1e-300]", "such a small number"),
    ("grid.head_ratio=[0.00001]", r"0\.0001 at least"),
    ("grid.head_ratio=[.nan]", "a finite number|head_ratio"),
    ("grid.head_ratio=[1, 1.0]", "twice"),
    ("grid.head_ratio=[AUTO]", "number"),
    ("grid.pruning=[wanda-0.50]", r"another spelling of wanda-0\.5: write wanda-0\.5"),
    ("grid.pruning=[wanda-.5]", r"another spelling of wanda-0\.5"),
    ("grid.pruning=[wanda-00.5]", r"another spelling of wanda-0\.5"),
    ("grid.pruning=[wanda-02of4]", "another spelling of wanda-2of4"),
    ("grid.pruning=[wanda-0.5, wanda-0.50]", "another spelling of wanda-0.5"),
    ("grid.pruning=[wanda-0.5000000001]", "6 decimals at most"),
    ("grid.pruning=[wanda-\u0660.\u0665]", "is not <pruner>-<sparsity>"),
    ("grid.pruning=[wanda-\u0662of\u0664]", "is not <pruner>-<sparsity>"),
    ("grid.pruning=['wanda-0.5; touch X;']", "is not <pruner>-<sparsity>"),
    ("grid.pruning=['wanda-0.5\n']", "is not <pruner>-<sparsity>"),
    (f"grid.pruning=[wanda-2of{'9' * 5000}]", "is not <pruner>-<sparsity>"),
    (f"grid.pruning=[external-{'a' * 300}]", "of 300 characters: use 64 at most"),
    ("compensate.learning_rates=[0.03, 0.03]", r"0\.03 appears twice"),
    ("compensate.learning_rates=[1e9]", "less than or equal to 10"),
    ("compensate.auto_ratios=[0.1, 0.10]", "appears twice"),
    ("recover.lora_sites=[q, q]", "appears twice"),
    ("prune.external={'../x': {a: {source: b}}}", r"prune\.external '\.\./x' is unknown"),
    ("prune.external={tiny: {'../x': {source: b}}}", r"has the key '\.\./x': use lower-case letters"),
    ("prune.external={tiny: {con: {source: b}}}", "a device on Windows"),
    ("models.tiny.preset=[1]", "should be 'paper'"),
    ("models.tiny.preset=papr", "should be 'paper'"),
    ("models.tiny.device=gpu", "write auto, cpu, cuda or cuda:<number>"),
    ("models.tiny.device=xcpux", "write auto, cpu, cuda or cuda:<number>"),
    ("models.tiny.device=cuda:\u0661", "write auto, cpu, cuda or cuda:<number>"),
    ("models.tiny.dtype=float8", "'float32', 'bfloat16' or 'float16'"),
    ("models.tiny.max_memory={gpu: 7GiB}", "'gpu' is no device"),
    ("models.tiny.max_memory={cpu: much}", "'much' is no size; write for example 70GiB"),
    ("models.tiny.source='~nobody/model'", "only ~/ stands for a home folder"),
    ("models.tiny.source=' model'", "no blanks at its ends"),
    ("models.tiny.settings={grid: {model: [a]}}", "'grid' is unknown"),
    ("models.tiny.settings={corpus: {seed: '3'}}", "text is no number"),
    ("models.tiny.data.template='{instruction.x}'", "may hold nothing else in braces"),
    ("models.tiny.data.template='none'", "has to hold {instruction} or {input}"),
    *(
        (
            f"models.{name}.source=microworld",
            "device on Windows" if name in ("con", "nul", "com1") else "names a folder",
        )
        for name in ("con", "nul", "com1", "data", "dense", "corpus", "prune", "activations", "grid", "evaluate")
    ),
    ("models.Tiny.source=microworld", "lower-case"),
    ("models.a--b.source=microworld", "lower-case"),
    ("models.\u0661.source=microworld", "lower-case"),
    (f"models.{'a' * 65}.source=microworld", "65 characters: use 64 at most"),
]

ARGUMENTS: list[tuple[tuple[str, ...], str]] = [
    (("check", "--params", "."), "is no file"),
    (("check", "--params", "nowhere.yaml"), "does not exist"),
    (("check", "--params", "x" * 300), "cannot be read|does not exist"),
    (("check", "--params", "params.yaml/x"), "does not exist|cannot be read"),
    (("check", "--model", "tinny"), "did you mean 'tiny'"),
    (("check", "--model", "a\nb"), "is unknown"),
    (("check", "--model", "x" * 5000), "is unknown"),
    (("inputs", "--model", "tinny"), "did you mean 'tiny'"),
    (("prune", "-m", "tiny", "-p", "wanda-0.50"), r"another spelling of wanda-0\.5"),
    (("prune", "-m", "tiny", "-p", "../x"), "is not <pruner>-<sparsity>"),
    (("compensate", "-m", "tiny", "-p", "wanda-0.5", "-r", "nan"), "'nan' is not a number"),
    (("compensate", "-m", "tiny", "-p", "wanda-0.5", "-r", "\u0660.\u0661"), "is not a number"),
    (("compensate", "-m", "tiny", "-p", "wanda-0.5", "-r", "1e-300"), "0.0001 at least"),
    (("compensate", "-m", "tiny", "-p", "wanda-0.5", "-r", "1_0"), "is not a number"),
    (("recover", "-m", "tiny", "-p", "wanda-0.5", "-b", "../lora"), "is not a recovery method"),
]


def _refused(folder: Path, arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> str:
    """What the command line says of its arguments. Asserts the exit code, one sentence, and that nothing is written."""
    before = sorted(folder.rglob("*"))
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.argv", ["restorelcc", *arguments])
    monkeypatch.setattr("restorelcc.__main__._with_asked", lambda *_: BUILT)
    with contextlib.redirect_stderr(io.StringIO()) as told, pytest.raises(SystemExit) as caught:
        main()
    said = told.getvalue()
    assert caught.value.code == 2, said
    assert said.startswith("restorelcc: error: ") and said.endswith("\n"), said
    _is_one_sentence(said.removesuffix("\n"))
    assert sorted(folder.rglob("*")) == before
    return said


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_cannot_be_meant(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content, message = FILES[name]
    (tmp_path / "params.yaml").write_bytes(content)
    assert re.search(message, _refused(tmp_path, ("check",), monkeypatch).strip())
    if name in ("both names of a key", "Latin-1", "unclosed", "a list"):
        assert re.search(message, _refused(tmp_path, ("inputs",), monkeypatch)), "it renames old keys first"
    assert (tmp_path / "params.yaml").read_bytes() == content


@pytest.mark.parametrize(("override", "message"), SET, ids=[override[:40] for override, _ in SET])
def test_a_setting_on_the_command_line(
    override: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "params.yaml").write_text(SMALL, encoding="utf-8")
    assert re.search(message, _refused(tmp_path, ("check", "--set", override), monkeypatch))


@pytest.mark.parametrize(("arguments", "message"), ARGUMENTS, ids=[" ".join(each)[:40] for each, _ in ARGUMENTS])
def test_names_on_the_command_line(
    arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "params.yaml").write_text(SMALL, encoding="utf-8")
    assert re.search(message, _refused(tmp_path, arguments, monkeypatch))
