"""Claims: which process measures which row, so that several of them share a sweep and no row is measured twice.

A claim is a file that one process can create and that it touches while it lives. A claim that nobody has touched for a
while, or whose process is gone from this machine, is void. Works in a folder that several machines share.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

BEAT = 20.0  # seconds between touches
VOID = 300.0  # seconds without one


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _is_void(path: Path) -> bool:
    """Whether nobody holds the claim any more. Raises ``FileNotFoundError`` where it is gone."""
    silent = time.time() - path.stat().st_mtime
    try:
        holder = json.loads(path.read_text())
        here = holder["host"] == socket.gethostname()
        return silent > VOID or (here and not _alive(int(holder["pid"])))
    except (ValueError, KeyError, TypeError):
        return silent > BEAT  # being written, or damaged


def _create(path: Path) -> bool:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return False
    try:
        with os.fdopen(handle, "w") as file:
            json.dump({"host": socket.gethostname(), "pid": os.getpid()}, file)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise ValueError(f"cannot write {path} ({error.strerror}): free some space or choose another folder") from error
    return True


def _clear(path: Path) -> None:
    """Remove a void claim; of several processes that try, one succeeds."""
    aside = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}")
    with suppress(FileNotFoundError):
        os.rename(path, aside)
        if not _is_void(aside):  # another process had cleared and claimed it meanwhile: give it back
            with suppress(FileExistsError):
                os.link(aside, path)
        aside.unlink()


def _beat(path: Path, stop: threading.Event) -> None:
    while not stop.wait(BEAT):
        with suppress(OSError):
            os.utime(path)


@contextmanager
def claim(path: Path) -> Iterator[bool]:
    """Hold a claim for the length of a ``with`` block.

    Args:
        path: of its file.

    Yields:
        Whether it is held: False where another process holds it.
    """
    with suppress(FileNotFoundError):
        if path.exists() and _is_void(path):
            _clear(path)
    if not _create(path):
        yield False
        return
    stop = threading.Event()
    beat = threading.Thread(target=_beat, args=(path, stop), daemon=True)
    beat.start()
    try:
        yield True
    finally:
        stop.set()
        beat.join()
        path.unlink(missing_ok=True)
