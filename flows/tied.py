"""`python tied.py PARENT COMMAND...`: become COMMAND, which the kernel ends when the process PARENT does.

A file of its own that imports nothing of the project: it starts in milliseconds, and sets what a fork in a process
with threads could not set safely.
"""

import ctypes
import os
import signal
import sys

if __name__ == "__main__":
    parent, *command = sys.argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG, kept over exec
    if os.getppid() != int(parent):
        raise SystemExit(1)
    os.execvp(command[0], command)
