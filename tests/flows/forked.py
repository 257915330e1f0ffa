"""`restorelcc` from a process that has imported everything: a stage of a pico model then takes its own time only.

    python -m tests.flows.forked serve SOCKET
    python -I -S tests/flows/forked.py SOCKET ARGUMENTS...

`serve-flows` is the same for `prefect ...`, `dvc ...` and `python -m ...` of a light project: DVC and Prefect are
imported, the project's own code is not. `serve-numerics` has imported torch and what goes with it in place of Prefect.
`serve-libraries` has imported all of these and what tests import, but not Prefect, whose import changes how every
library logs: forks of it are Pythons, with -m or -c, that have the libraries at once. The workers of `make test` are
such forks, and so are the servers above that they start.

The stage, its folder, environment and output are those of the caller, and so are the descriptors that it was given;
only the imports are shared, by fork. The fork ends with its caller.
"""

import ctypes
import fcntl
import gc
import importlib
import json
import os
import signal
import socket
import sys
import threading
import traceback
from pathlib import Path

# What stages import only when they need it.
LATER = ["restorelcc.stages.report.stage", "lm_eval.tasks", "lm_eval.models.huggingface", "sacrebleu", "datasets"]
LATER += ["sklearn.svm", "pyarrow.dataset", "matplotlib.pyplot", "PIL.JpegImagePlugin"]


def call(path, arguments):
    """Have the server run the command here; its exit code."""
    given = [number for number in (int(each.name) for each in Path("/dev/fd").iterdir()) if _was_given(number)]
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        folder = os.open(".", os.O_RDONLY)
        socket.send_fds(connection, [b"x"], [0, 1, 2, folder, *given])
        for number in given:
            os.close(number)  # whoever reads at the other end must see when the fork closes it
        mask = os.umask(0o077)
        os.umask(mask)
        connection.sendall(json.dumps([arguments, dict(os.environ), given, mask]).encode() + b"\n")
        answer = connection.makefile("rb").read()
    return int(answer) if answer else 1


def _was_given(number):
    try:
        return number > 2 and os.get_inheritable(number)
    except OSError:  # it was that of the list itself
        return False


def serve(path, modules, run):
    """Import modules, then have `run` run every command in a fork, until this process is ended."""
    for module in modules:
        importlib.import_module(module)
    gc.freeze()  # forks then share the pages of what was imported
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{path}.new")
        listener.listen(64)
        Path(f"{path}.new").rename(path)  # whoever sees it can connect
        while True:
            connection, _ = listener.accept()
            while _reaped():
                pass
            if os.fork() == 0:
                listener.close()
                _answer(connection, run)
            connection.close()


def _reaped():
    try:
        return os.waitpid(-1, os.WNOHANG)[0]
    except ChildProcessError:
        return 0


def _answer(connection, run):
    """In the fork: become the caller's command."""
    _, received, _, _ = socket.recv_fds(connection, 1, 64)
    arguments, environment, given, mask = json.loads(connection.makefile("rb").readline())
    os.umask(mask)
    os.fchdir(received.pop(3))
    high = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 256) for descriptor in received]
    connection = socket.socket(fileno=fcntl.fcntl(connection.detach(), fcntl.F_DUPFD_CLOEXEC, 256))
    for descriptor in received:
        os.close(descriptor)
    for number, descriptor in zip([0, 1, 2, *given], high, strict=True):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=_end_with_caller, args=(connection,), daemon=True).start()
    if sys.platform == "linux":
        _show(arguments)
    sys.path.insert(0, str(Path.cwd()))  # where a test puts what it pretends to have installed
    code = 1
    try:
        run(arguments)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(bool(end.code))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        connection.sendall(str(code).encode())
        os._exit(code)


def _show(arguments):
    """Have the command line of this process be its command's: by that a lock of DVC's is known to have its owner."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, size = int(fields[45]), int(fields[46]) - int(fields[45])  # where the kernel reads it
    text = f"python {' '.join(arguments)}".encode()[: size - 2]
    ctypes.memmove(start, text.ljust(size - 1, b"\0") + b"x", size)  # without a zero at the end it stops at the first


def _end_with_caller(connection):
    """As a process does that flows/tied.py has started: nothing comes over the connection but its end."""
    if not connection.recv(1):
        os.kill(os.getpid(), signal.SIGTERM)


def restorelcc(arguments):
    command = importlib.import_module("restorelcc.__main__")
    command.run_code_that_dvc_records = lambda: None  # what is imported here is the same code
    sys.argv = ["restorelcc", *arguments]
    command.main()


# What commands import that run DVC, at once or when they need it; then Prefect's, and those of stages.
DVC = ["dvc.cli", "dvc.cli.parser", "dvc.repo", "dvc.stage.run", "networkx", "typer", "dulwich.repo"]
DVC += ["dvc.cachemgr", "dvc.data_cloud", "dvc.lock", "dvc.rwlock", "dvc.scm", "dvc.utils.strictyaml"]
DVC += ["dvc._debug", "dvc.repo.artifacts", "dvc.repo.brancher", "dvc.repo.datasets", "dvc.repo.metrics"]
DVC += ["dvc.repo.open_repo", "dvc.repo.params", "dvc.repo.plots", "dvc.repo.stage", "dvc.repo.index"]
DVC += ["dvc.repo.worktree", "scmrepo.git", "dulwich.ignore", "dulwich.walk", "dvc_data.hashfile.db.local"]
DVC += ["dvc_data.hashfile.db.index", "dvc_data.hashfile.status", "flatten_dict", "dvc_data.index.checkout"]
DVC += ["dvc_data.index.collect", "dvc_data.index.fetch", "dvc_data.index.push", "dvc_render.html"]
DVC += ["dvc_render.vega", "dvc_render.image", "fsspec.implementations.memory", "filelock", "psutil"]
DVC += ["numpy", "pyarrow", "pyparsing", "ruamel.yaml", "tqdm.auto", "zc.lockfile"]
PREFECT = ["prefect.cli", "prefect.cli.deploy", "prefect.cli.deployment", "prefect.cli.work_pool"]
PREFECT += ["prefect.cli.flow_run", "prefect.client.orchestration", "prefect.deployments"]
PREFECT += ["prefect.task_runners", "prefect.artifacts", "prefect.workers.process", "prefect.flow_engine"]
PREFECT += ["prefect.task_engine", "prefect.engine", "prefect.cli.worker", "prefect.server.api.server"]
PREFECT += ["prefect.cli.server", "uvicorn", "git", "asyncssh"]
NUMERICS = ["torch", "transformers", "transformers.modeling_utils", "transformers.models.llama.modeling_llama"]
NUMERICS += ["transformers.models.mistral.modeling_mistral", "safetensors.torch", "pyarrow.parquet"]
NUMERICS += ["pyarrow.dataset", "datasets", "sklearn.svm"]


# What tests import besides, and the commands of S3 and SSH remotes.
TESTS = ["pytest", "boto3", "dvc_s3", "dvc_ssh", "s3fs", "sshfs", "aiobotocore.session"]
TESTS += ["peft", "gguf", "duckdb", "lm_eval.tasks", "lm_eval.models.huggingface", "sacrebleu", "matplotlib.pyplot"]
TESTS += ["PIL.JpegImagePlugin", "transformers.models.auto.modeling_auto", "jinja2", "numpy.testing"]


def _read_yaml_fast():
    """Where DVC was imported before: as fast_lock/sitecustomize.py has it otherwise."""
    serialize, yaml = (sys.modules.get(f"dvc.utils.serialize{name}") for name in ("", "._yaml"))
    if yaml and not yaml.parse_yaml.__module__.endswith("sitecustomize"):
        importlib.import_module("tests.flows.fast_lock.sitecustomize").patch_yaml(yaml)
        serialize.parse_yaml = yaml.parse_yaml


def _read_settings():
    """Of Prefect, as its import does: from the caller's environment."""
    if context := sys.modules.get("prefect.context"):
        context.refresh_global_settings_context()


def module(arguments):
    """In the fork: `prefect`, `dvc`, `-m module` or `-c text`, with the caller's settings and the project's code."""
    import runpy

    sys.executable = os.environ.get("LIGHT_PYTHON", sys.executable)
    if spawn := sys.modules.get("multiprocessing.spawn"):
        spawn.set_executable(sys.executable)
    sys.path[:0] = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if str(Path(__file__).with_name("fast_lock")) in sys.path:
        _read_yaml_fast()
    if arguments[0].startswith("-") and "-c" in arguments[:-1] and arguments[0] != "-m":
        _read_settings()
        place = arguments.index("-c")
        sys.argv = ["-c", *arguments[place + 2 :]]
        sys.modules["__main__"] = main = type(sys)("__main__")
        exec(arguments[place + 1], main.__dict__)
        return
    if arguments[0] == "-m":
        if arguments[1].startswith("flows."):
            importlib.import_module("flows")  # says where Prefect keeps its files
        arguments = arguments[1:]
    if arguments[0].partition(".")[0] in ("flows", "prefect", "uvicorn"):
        _read_settings()
    sys.argv = list(arguments)
    if arguments[0] == "restorelcc":  # which would begin again, and this fork would end without an answer
        importlib.import_module("restorelcc.base.processes").run_code_that_dvc_records = lambda: None
    if arguments[0] == "prefect":
        importlib.import_module("prefect.cli").app()
    elif arguments[0] == "dvc":
        sys.exit(importlib.import_module("dvc.cli").main(arguments[1:]))
    else:
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    if sys.argv[1].startswith("serve") and sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # it ends with the process that started it, also by kill -9
    if sys.argv[1] == "serve-libraries":
        serve(sys.argv[2], NUMERICS + DVC + TESTS, module)
    elif sys.argv[1] == "serve-flows":
        serve(sys.argv[2], PREFECT + DVC, module)
    elif sys.argv[1] == "serve-numerics":
        serve(sys.argv[2], NUMERICS + DVC, module)
    elif sys.argv[1] == "serve":
        from restorelcc.pipeline.stages import STAGES

        serve(sys.argv[2], [stage.module for stage in STAGES.values()] + LATER, restorelcc)
    else:
        sys.exit(call(sys.argv[1], sys.argv[2:]))
