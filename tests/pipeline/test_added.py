"""Files of `dvc add`: an older version is no edit, and nothing is lost of a record in another place."""

from __future__ import annotations

import hashlib
from pathlib import Path

from dvc.repo import Repo

from restorelcc.pipeline.added import added_here, differing


def test_another_version_is_told_from_an_edit(tmp_path: Path) -> None:
    """After a `git pull`, the old file and the new .dvc file: adding the old one would take a colleague's back."""
    root, file = tmp_path.resolve(), tmp_path.resolve() / "pairs.jsonl"
    with Repo.init(str(root), no_scm=True) as repo:
        for text in ("old", "new"):
            file.write_text(text)
            repo.add([str(file)])

    def said() -> list[str]:
        return [each.in_words(root) for each in differing(added_here(root), root)]

    assert said() == []
    file.write_text("old")
    assert said() == ["`pairs.jsonl` is another version than pairs.jsonl.dvc names: run `dvc checkout pairs.jsonl.dvc`"]
    digest = hashlib.md5(b"new").hexdigest()
    (root / ".dvc/cache/files/md5" / digest[:2] / digest[2:]).unlink()
    assert said() == ["`pairs.jsonl` is another version than pairs.jsonl.dvc names: run `dvc pull pairs.jsonl.dvc`"]
    file.write_text("edited")
    assert said() == ["`pairs.jsonl` is not what pairs.jsonl.dvc names: run `dvc add pairs.jsonl` and commit it"]


def test_a_record_may_lie_elsewhere_and_a_broken_one_hides_no_other(tmp_path: Path) -> None:
    root = tmp_path.resolve()
    for name in ("pairs.jsonl", "broken.jsonl"):
        (root / name).write_text("first")
    with Repo.init(str(root), no_scm=True) as repo:
        repo.add([str(root / "pairs.jsonl")])
    beside, record = root / "pairs.jsonl.dvc", root / "records" / "mine.dvc"
    record.parent.mkdir()
    record.write_text(f"wdir: ..\n{beside.read_text()}")
    beside.unlink()
    (root / "a.dvc").write_text("outs: [")
    (root / "b.dvc").write_text("outs:\n- path: broken.jsonl\n  unknown: 1\n")
    (root / ".work" / "clone").mkdir(parents=True)
    (root / ".work" / "clone" / "pairs.jsonl.dvc").write_text("outs:\n- path: pairs.jsonl\n")
    assert [each.path.name for each in added_here(root)] == ["broken.jsonl", "pairs.jsonl"]
    assert differing(added_here(root), root) == []
    (root / "pairs.jsonl").write_text("edited")
    assert [each.in_words(root) for each in differing(added_here(root), root)] == [
        "`pairs.jsonl` is not what records/mine.dvc names: run `dvc add pairs.jsonl` and commit it"
    ]
