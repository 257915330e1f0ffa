"""`restorelcc` from a process that has imported everything: a stage of a pico model then takes its own time only.

    python -m tests.flows.forked serve SOCKET
    python -I -S tests/flows/forked.py SOCKET ARGUMENTS...

The stage, its folder, environment and output are those of the caller; only the imports are shared, by fork.
"""

import gc
import importlib
import json
import os
import signal
import socket
import sys
import traceback
from pathlib import Path

# What stages import only when they need it.
LATER = ["restorelcc.stages.report.stage", "lm_eval.tasks", "lm_eval.models.huggingface", "sacrebleu", "datasets"]
LATER += ["sklearn.svm", "pyarrow.dataset", "matplotlib.pyplot", "PIL.JpegImagePlugin"]


def call(path, arguments):
    """Have the server run the command here; its exit code."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        folder = os.open(".", os.O_RDONLY)
        socket.send_fds(connection, [b"x"], [0, 1, 2, folder])
        connection.sendall(json.dumps([arguments, dict(os.environ)]).encode() + b"\n")
        answer = connection.makefile("rb").read()
    return int(answer) if answer else 1


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
    _, descriptors, _, _ = socket.recv_fds(connection, 1, 4)
    arguments, environment = json.loads(connection.makefile("rb").readline())
    for number, descriptor in enumerate(descriptors[:3]):
        os.dup2(descriptor, number)
    os.fchdir(descriptors[3])
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)
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


def restorelcc(arguments):
    from restorelcc.__main__ import main

    sys.argv = ["restorelcc", *arguments]
    main()


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        from restorelcc.pipeline.stages import STAGES

        serve(sys.argv[2], [stage.module for stage in STAGES.values()] + LATER, restorelcc)
    else:
        sys.exit(call(sys.argv[1], sys.argv[2:]))
