"""lm-eval with its doors shut: templates in a sandbox, and no code from the files of a user who has not said so.

lm-eval renders every prompt in one Jinja environment, `lm_eval.utils.env`, in which a template reaches all of Python
(`{{ cycler.__init__.__globals__.os.system(...) }}`). It has one place where `!function` becomes a function, and one
where a metric that it does not know is fetched as a script. These three are replaced for as long as they are needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, cast

from jinja2 import BaseLoader, StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from restorelcc.base.errors import BadInput, one_line


@contextmanager
def sandboxed() -> Iterator[None]:
    """Templates of all tasks see values and filters, and nothing that begins with an underscore, inside the `with`."""
    from lm_eval import utils

    original = utils.env
    if isinstance(original, ImmutableSandboxedEnvironment):
        yield
        return
    env = ImmutableSandboxedEnvironment(loader=BaseLoader(), undefined=StrictUndefined, keep_trailing_newline=True)
    env.filters.update(original.filters)
    env.tests.update(original.tests)
    env.globals.update(original.globals)
    utils.env = env
    try:
        yield
    finally:
        utils.env = original


@contextmanager
def without_code(task: str, *, trusted: bool) -> Iterator[None]:
    """Inside the `with`, a task file that calls a function or names a metric that lm-eval would have to fetch raises
    BadInput, unless it is trusted."""
    if trusted:
        yield
        return
    from lm_eval.api import registry
    from lm_eval.api import task as tasks
    from lm_eval.tasks import _yaml_loader

    def refuse(called: Any, *_: Any) -> NoReturn:
        raise BadInput(
            f"evaluation task {one_line(task)!r} calls {one_line(called)!r:.80}, code that runs as you: read its "
            "folder, and if you trust its maker name it as {name: <folder>, trusted: true} in models.<name>.tasks"
        )

    def known_metric(name: str, hf_evaluate_metric: bool = False) -> Any:
        if hf_evaluate_metric:
            refuse(name)
        if name not in registry.metric_registry:
            raise ValueError(f"lm-eval has no metric {name!r}, and one fetched from the hub is code that needs trust")
        return registry.metric_registry[name]

    loader, building = cast(Any, _yaml_loader), cast(Any, tasks)
    before = loader._import_func_in_yml, building.get_metric
    loader._import_func_in_yml, building.get_metric = refuse, known_metric
    try:
        yield
    finally:
        loader._import_func_in_yml, building.get_metric = before
