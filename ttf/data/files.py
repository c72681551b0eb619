"""Files that are either whole or absent."""

from __future__ import annotations

import glob
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from safetensors import SafetensorError

PARTIAL = ".partial"  # ends names of folders in which a file is being written
KINDS = {
    "a folder": stat.S_ISDIR,
    "a link": stat.S_ISLNK,
    "a device": lambda mode: stat.S_ISCHR(mode) or stat.S_ISBLK(mode),
    "a pipe": stat.S_ISFIFO,
    "a socket": stat.S_ISSOCK,
}


def check_replaceable(path: Path, is_ours: Callable[[Path], bool], kind: str) -> None:
    """Raise ``ValueError`` where writing a file would replace something that this project has not written.

    Args:
        path: where it goes.
        is_ours: whether a regular file that is there is one of the same kind.
        kind: in words, such as "a row of results".
    """
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise ValueError(f"cannot write {path} ({error.strerror}): choose another name") from error
    what = next((name for name, test in KINDS.items() if test(found.st_mode)), None)
    if what is None and not is_ours(path):
        what = f"a file, but not {kind}"
    if what:
        raise ValueError(f"{path} is {what}, and is not replaced: choose another name")


def _lock(folder: Path, wait: bool) -> int | None:
    """A handle that says that a living process is at work in a folder; None: another one is, or may be."""
    try:
        import fcntl  # not on every system

        handle = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        os.close(handle)
        return None
    return handle


@contextmanager
def _workplace(path: Path) -> Iterator[Path]:
    """A folder beside a file, in which it is written. What processes that were killed have left of it is removed."""
    beginning = f".{path.name}."
    for left in path.parent.glob(f"{glob.escape(beginning)}????????{PARTIAL}"):
        handle = _lock(left, wait=False)
        if handle is not None:
            shutil.rmtree(left, ignore_errors=True)
            os.close(handle)
    while True:
        folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=beginning, suffix=PARTIAL))
        handle = _lock(folder, wait=True)
        if folder.is_dir():  # another process may have taken it for what a killed one has left
            break
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if handle is not None:
            os.close(handle)


def atomic_write(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then rename it: readers never see half a file.

    Args:
        path: the final file; its folder is made.
        write: called with the temporary path, whose name is that of the file; what else it leaves there is removed.

    Raises:
        ValueError: the folder cannot be written (no permission, disk full); an older ``path`` is left as it was.
    """
    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = stack.enter_context(_workplace(path)) / path.name
        except OSError as error:
            raise ValueError(f"cannot write in {path.parent} ({error.strerror}): choose another folder") from error
        try:
            write(temporary)
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(temporary, 0o666 & ~umask)
            os.replace(temporary, path)
        except (OSError, SafetensorError) as error:  # safetensors has words of its own for a full disk
            reason = getattr(error, "strerror", None) or error
            raise ValueError(f"cannot write {path} ({reason}): free some space or choose another folder") from error


def append_lines(path: Path, lines: Sequence[str]) -> None:
    """Append whole lines to a text file, which is made; behind one that was cut off a new line begins.

    Raises:
        ValueError: the file cannot be written (no permission, disk full); the lines before stay as they are.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
            begin = b"\n" if file.read(1) not in (b"", b"\n") else b""
            file.write(begin + "".join(f"{line}\n" for line in lines).encode())
    except OSError as error:
        raise ValueError(f"cannot write {path} ({error.strerror}): free some space or choose another folder") from error
