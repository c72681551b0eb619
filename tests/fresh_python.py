"""Python as it starts, but for torch and timm, which are imported already: eight seconds less a process.

A server imports both once and forks for every call; ttf itself is imported anew by each. Not for what is decided when
torch is imported (``LD_PRELOAD``, ``OMP_NUM_THREADS``): that needs ``scripts_under_test.python``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from tests.scripts_under_test import Done

SERVER = """
import json, os, runpy, sys, traceback
import huggingface_hub.constants, timm, torch

def run(call):
    kind, what, *sys.argv[1:] = call["arguments"]
    sys.path.insert(0, call["folder"])
    try:
        if kind == "-c":
            exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
        elif kind == "-m":
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            sys.path.insert(0, os.path.dirname(kind))
            sys.argv[:] = call["arguments"]
            runpy.run_path(kind, run_name="__main__")
    except SystemExit as end:
        return end.code or 0
    except BaseException:
        traceback.print_exc()
        return 1
    return 0

for line in sys.stdin:
    call = json.loads(line)
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
        continue
    os.chdir(call["folder"])
    os.environ.clear()
    os.environ.update(call["environment"])
    huggingface_hub.constants.HF_HUB_OFFLINE = os.environ.get("HF_HUB_OFFLINE") == "1"  # is read at import
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, file in enumerate(call["said"], 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    code = run(call)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # taking all modules down would be four seconds
"""


@cache
def _server() -> subprocess.Popen[str]:
    command = [sys.executable, "-u", "-c", SERVER]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def fresh(*arguments: str, folder: str | Path = ".", **environment: str | None) -> Done:
    """``python -c CODE``, ``python -m MODULE`` or ``python SCRIPT`` to its end.

    Args:
        arguments: of the command line.
        folder: to run in, and to import ttf from.
        environment: variables that differ from those of the tests; None takes one away.
    """
    changed = {**os.environ, **environment}
    kept = {name: value for name, value in changed.items() if value is not None}
    server = _server()
    assert server.stdin is not None and server.stdout is not None
    with tempfile.TemporaryDirectory() as place:
        said = [Path(place) / stream for stream in ("stdout", "stderr")]
        call = {
            "arguments": arguments,
            "environment": kept,
            "folder": os.path.abspath(folder),
            "said": [str(file) for file in said],
        }
        server.stdin.write(json.dumps(call) + "\n")
        server.stdin.flush()
        code = int(server.stdout.readline())
        return Done(code, *(file.read_text() for file in said))
