"""Run a command in a fork of the process behind a socket: tests/flows/forked.py has that process.

    python -I -S tests/flows/in_fork.py SOCKET ARGUMENTS...

It starts hundreds of times, so it is a file of its own, short, and imports nothing that is not compiled into Python:
`socket` and `json` would take longer than all else here.
"""

import _socket
import array
import os
import sys


def call(path, arguments):
    """Have the process behind the socket run the command; its exit code."""
    given = [number for number in map(int, os.listdir("/dev/fd")) if _was_given(number)]  # noqa: PTH208
    connection = _socket.socket(_socket.AF_UNIX)
    connection.connect(path)
    folder = os.open(".", os.O_RDONLY)
    descriptors = array.array("i", [0, 1, 2, folder, *given])
    connection.sendmsg([b"x"], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, descriptors)])
    for number in given:
        os.close(number)  # whoever reads at the other end must see when the fork closes it
    connection.sendall(ascii([arguments, dict(os.environ), given]).encode() + b"\n")
    answer = b""
    while more := connection.recv(16):
        answer += more
    return int(answer or 1)


def _was_given(number):
    try:
        return number > 2 and os.get_inheritable(number)
    except OSError:  # it was that of the list itself
        return False


if __name__ == "__main__":
    sys.exit(call(sys.argv[1], sys.argv[2:]))
