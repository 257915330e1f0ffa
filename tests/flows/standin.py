"""Stands in for `restorelcc` in tests of the workflow: the real dvc.yaml, and commands that take milliseconds.

Reads from dvc.yaml what the stage reads and writes, and writes outputs that are a digest of the stage's command, its
parameters, the package versions and every file it depends on. Each start and end is a line in $STANDIN_LOG.
$STANDIN_FAIL maps stages to an exit code; $STANDIN_SECONDS, or a file .slow beside the log, is how long a stage takes.
It is a command, or a call of `main` in the test's own process.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path


def sections(kind):
    """The lists of one stage of dvc.yaml, and every dep of all stages, by a parser that needs no import."""
    stage, section, own, deps = "", "", {}, set()
    for line in Path("dvc.yaml").read_text().splitlines():
        if match := re.fullmatch(r"  (\w+):", line):
            stage = match[1]
        elif match := re.match(r"    (\w+):", line):
            section = match[1]
        elif match := re.match(r"      - ([^\s:]+):?", line):
            if stage == kind:
                own.setdefault(section, []).append(match[1])
            if section == "deps":
                deps.add(match[1])
    return own, deps


def parameters(text):
    """The tests write JSON, which is YAML too; a sweep and `dvc exp run` write it anew, as YAML."""
    try:
        return json.loads(text)
    except ValueError:
        sys.path.append(os.environ["STANDIN_PACKAGES"])
        import yaml

        return yaml.safe_load(text)


def filled(path, cell):
    return re.sub(r"\$\{item\.(\w+)\}", lambda match: cell.get(match[1], "?"), path)


def log(what, name):
    with Path(os.environ["STANDIN_LOG"]).open("a") as file:
        file.write(f"{what} {name} {os.getpid()} {time.time():.3f}\n")


def of_grid(folder, grid):
    """Files of the cells of the grid, which alone the report reads: others may lie in the folder."""
    axes = (grid["model"], grid["pruning"])
    files = (path for path in folder.rglob("*") if path.is_file())
    return [
        file
        for file in files
        if all(part in axis for part, axis in zip(file.relative_to(folder).parts[:-1], axes, strict=False))
    ]


def digest(paths, head):
    total = hashlib.sha256(head.encode())
    for file in sorted(file for path in paths for file in ([path] if path.is_file() else path.rglob("*"))):
        if file.is_file():
            total.update(str(file).encode() + file.read_bytes())
    return total.hexdigest()


# What of a user's files each table of a corpus is made of, as restorelcc/stages/corpus makes it.
INSTRUCTIONS = ("instructions", "tokenizer")
TABLES = {
    "calibration.parquet": ("calibration",),
    "heldout.parquet": ("heldout",),
    "valid.parquet": INSTRUCTIONS,
    "train.parquet": (*INSTRUCTIONS, "encoder"),
    "contrast.parquet": (*INSTRUCTIONS, "encoder"),
}


def table_text(file, cell, head):
    """A table changes with the files that it is made of, and with the section."""
    inputs = Path("data/inputs") / cell["model"]
    return digest([inputs / role for role in TABLES.get(file.name, ())], head)


def moved(out, data):
    """What of an output changes with data that it depends on: of a corpus some tables, else all of it."""
    if Path(out).parent.name != "corpus":
        return [out]
    roles = {Path(path).name for path in data}
    return [f"{out}/{table}" for table, made_of in TABLES.items() if roles & set(made_of)]


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".json":
        text = json.dumps({"value": int(text[:6], 16) / 16**6, "digest": text}, indent=1)
    path.write_text(text)


def look(model):
    """Real stages begin so: they look at the files that the user named, without torch. Where a test runs it a hundred
    times, it copies what that once made."""
    if made := os.environ.get("STANDIN_INPUTS"):
        shutil.rmtree(f"data/inputs/{model}", ignore_errors=True)
        shutil.copytree(f"{made}/{model}", f"data/inputs/{model}", symlinks=True)
        return 0
    python = os.environ.get("LIGHT_PYTHON", sys.executable)
    return subprocess.run([python, "-m", "restorelcc", "inputs", "--model", model], check=False).returncode


def main(arguments, look):
    """Run a stage in the working folder; `look` lays out a model's files. The exit code."""
    kind, options = arguments[0], dict(zip(arguments[1::2], arguments[2::2], strict=True))
    if kind == "table":
        return 0
    cell = {option[2:].replace("-", "_"): value for option, value in options.items()}
    name = os.environ.get("DVC_STAGE", kind)
    log("start", name)
    if kind in ("inputs", "evaluate_dense"):
        code = look(options["--model"])
        if kind == "inputs" or code:
            log("end", name)
            return code
    own, deps = sections(kind)
    params = parameters(Path("params.yaml").read_text())
    parts = []
    for key in own.get("params", []):
        value = params
        for part in filled(key, cell).split("."):
            value = value[part]
        parts.append(value)
    slow = Path(os.environ["STANDIN_LOG"]).with_suffix(".slow")
    time.sleep(float(slow.read_text() if slow.exists() else os.environ.get("STANDIN_SECONDS", "0")))
    failures = json.loads(os.environ.get("STANDIN_FAIL", "{}"))
    code = failures.get(name, failures.get(kind, 0))
    if flag := os.environ.get("STANDIN_FAIL_ONCE"):
        code = 0 if Path(flag).exists() else code
        Path(flag).touch()
    if code:
        print(f"restorelcc: error: the stand-in was told to end {name} with {code}", file=sys.stderr)
        return code
    data = [Path(filled(dep, cell)) for dep in own["deps"] if dep.startswith("data/")]
    if kind == "report":
        data = of_grid(Path("data/metrics"), params["grid"])
    head = json.dumps([arguments, parts])
    text = digest(data, head)
    for out in own.get("outs", []) + own.get("metrics", []) + own.get("plots", []):
        path = Path(filled(out, cell))
        if path.suffix in (".json", ".parquet", ".safetensors", ".csv", ".md", ".html"):
            write(path, text)
            continue
        inside = {Path(filled(dep, cell)) for dep in deps if filled(dep, cell).startswith(f"{path}/")}
        for file in inside or {path / "artifact"}:
            content = table_text(file, cell, head) if kind == "corpus" else text
            write(file if file.suffix else file / "artifact", content)
        write(path / "content.txt", text)
        if kind == "report":
            write(path / "report.md", f"# Results\n\n| digest |\n|---|\n| {text[:12]} |\n")
            write(path / "plots" / "recovered.csv", f"head_ratio,recovered\n0.25,{int(text[:2], 16)}\n")
            write(path / "plots" / "tasks.csv", f"task,accuracy\nfacts,{int(text[:2], 16)}\n")
    log("end", name)
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from restorelcc.base.processes import end_with_parent

    end_with_parent()  # as the real stage: it ends with dvc
    sys.path.pop(0)
    sys.exit(main(sys.argv[1:], look))
