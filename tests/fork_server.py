"""Processes that have imported torch already: one server for all workers of a test run, which forks for every call.

``python -m tests.fork_server SOCKET PROCESS`` listens at SOCKET with torch and timm imported, and at SOCKET.scripts
with what the scripts import as well, until PROCESS has ended. A call is a line of JSON (``arguments``, ``environment``,
``folder``, ``said``); two lines answer, the process and how it ended. A call whose connection closes is killed.
See ``tests.scripts_under_test`` for the other side.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import select
import signal
import socket
import sys
import traceback
from typing import Any

SCRIPTS = ".scripts"


def _ran(call: dict[str, Any]) -> int:
    kind, *given = call["arguments"]
    sys.path.insert(0, call["folder"])
    sys.argv[:] = [kind, *given[1:]] if kind in ("-c", "-m") else [kind, *given]
    try:
        if kind == "-c":
            exec(compile(given[0], "<string>", "exec"), {"__name__": "__main__"})
        elif kind == "-m":
            runpy.run_module(given[0], run_name="__main__", alter_sys=True)
        else:
            sys.path.insert(0, os.path.join(call["folder"], os.path.dirname(kind)))
            runpy.run_path(kind, run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return end.code or 0
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _child(call: dict[str, Any]) -> None:
    import huggingface_hub.constants

    os.chdir(call["folder"])
    os.environ.clear()
    os.environ.update(call["environment"])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, file in enumerate(call["said"], 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False, errors="backslashreplace")
    huggingface_hub.constants.HF_HUB_OFFLINE = os.environ.get("HF_HUB_OFFLINE") == "1"  # is read at import
    code = _ran(call)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # taking all modules down would be four seconds


def _handle(connection: socket.socket) -> None:
    """One call to its end."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    lines = connection.makefile("rw")
    call = json.loads(lines.readline())
    child = os.fork()
    if not child:
        connection.close()
        _child(call)
    lines.write(f"{child}\n")
    lines.flush()
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if select.select([connection], [], [], 0.02)[0]:  # nobody waits for it any more
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return
    lines.write(f"{os.waitstatus_to_exitcode(ended[1])}\n")
    lines.flush()


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def _serve(address: str, process: int) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen(64)
        gc.collect()
        gc.freeze()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        while _lives(process):
            if not select.select([server], [], [], 1.0)[0]:
                continue
            connection, _ = server.accept()
            if not os.fork():
                try:
                    server.close()
                    _handle(connection)
                finally:
                    os._exit(0)
            connection.close()


def main(address: str, process: int) -> None:
    """Serve until the process, the test run's, is gone."""
    import timm  # noqa: F401
    import torch  # noqa: F401

    if not os.fork():
        import tests.imports_of_scripts  # noqa: F401

        address += SCRIPTS
    _serve(address, process)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
