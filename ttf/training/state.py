"""What a training run keeps in its folder to go on after any interruption: whole or absent, never half."""

from __future__ import annotations

import errno
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from ttf.data.files import atomic_write
from ttf.results.store import read_json, write_json


def differences(one: Any, other: Any, name: str = "") -> list[str]:
    """Names of the settings, ``train.lr``, in which two nested dictionaries differ."""
    if not isinstance(one, dict) or not isinstance(other, dict):
        return [] if one == other else [name]
    keys = sorted(one.keys() | other.keys())
    return [d for key in keys for d in differences(one.get(key), other.get(key), f"{name}.{key}".lstrip("."))]


class StateFolder:
    """``identity.json``, the settings that the numbers depend on, and ``state.pt``, the last complete checkpoint.

    Args:
        folder: made by ``claim``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def file(self) -> Path:
        return self.folder / "state.pt"

    def claim(self, identity: dict[str, Any]) -> None:
        """Take the folder for a run with these settings, or go on with the same run; drop half-written files.

        Raises:
            ValueError: the folder belongs to a run with other settings, or cannot be written.
        """
        wanted, path = json.loads(json.dumps(identity, default=str)), self.folder / "identity.json"
        if path.exists():
            differing = differences(read_json(path), wanted)
            if differing:
                here, what = self.folder.parent, ", ".join(differing)
                raise ValueError(f"{here} holds a run with another {what}: choose another output=FOLDER or remove it")
        write_json(path, wanted)
        killed = [*self.folder.glob(".state.pt.*"), *self.folder.parent.glob(".*.safetensors.*")]
        for leftover in killed:  # what a process that was killed was about to write
            leftover.unlink(missing_ok=True)

    def save(self, content: dict[str, Any]) -> None:
        """Replace the checkpoint. Raises ``ValueError`` where it cannot be written; the older one is then kept."""

        def write(path: Path) -> None:
            try:
                torch.save(content, path)
            except RuntimeError as error:  # what torch makes of a full disk, in words of its own
                raise OSError(errno.EIO, "the disk may be full") from error

        atomic_write(self.file, write)

    def load(self) -> dict[str, Any] | None:
        """The last complete checkpoint, on the CPU, or None. Raises ``ValueError`` where it cannot be read."""
        if not self.file.exists():
            return None
        try:
            return torch.load(self.file, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, KeyError, zipfile.BadZipFile, pickle.UnpicklingError) as error:
            reason = type(error).__name__
            raise ValueError(f"{self.file} cannot be read ({reason}): remove {self.folder} to start again") from error
