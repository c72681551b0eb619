"""Files that are either whole or absent."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError


def atomic_write(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then rename it: readers never see half a file.

    Args:
        path: the final file; its folder is made.
        write: called with the temporary path.

    Raises:
        ValueError: the folder cannot be written (no permission, disk full); an older ``path`` is left as it was.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise ValueError(f"cannot write in {path.parent} ({error.strerror}): choose another folder") from error
    os.close(handle)
    try:
        write(Path(name))
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)
        os.replace(name, path)
    except (OSError, SafetensorError) as error:  # safetensors has words of its own for a full disk
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"cannot write {path} ({reason}): free some space or choose another folder") from error
    finally:
        Path(name).unlink(missing_ok=True)
