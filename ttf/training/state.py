"""What a training run keeps in its folder to go on after any interruption: whole or absent, never half."""

from __future__ import annotations

import errno
import json
import zipfile
from pathlib import Path
from typing import Any

import torch

from ttf.data.files import atomic_write
from ttf.results.store import read_json, signature, write_json


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
        """Take the folder for a run with these settings, or go on with the same run.

        Raises:
            ValueError: the folder belongs to a run with other settings, or cannot be written.
        """
        wanted, path = json.loads(json.dumps(identity, default=str)), self.folder / "identity.json"
        if path.exists():
            differing = differences(self._identity(), wanted)
            if differing:
                here, what = self.folder.parent, ", ".join(differing)
                raise ValueError(f"{here} holds a run with another {what}: choose another output=FOLDER or remove it")
        write_json(path, wanted)

    def _identity(self) -> dict[str, Any] | None:
        """What ``claim`` wrote; None where the folder was not claimed. Raises ``ValueError`` where it is damaged."""
        path = self.folder / "identity.json"
        try:
            return read_json(path) if path.exists() else None
        except ValueError:
            again = f"remove {self.folder} to start again, or choose another output=FOLDER"
            raise ValueError(f"{path} is damaged, so nothing says whose run this is: {again}") from None

    def save(self, content: dict[str, Any]) -> None:
        """Replace the checkpoint. Raises ``ValueError`` where it cannot be written; the older one is then kept."""

        def write(path: Path) -> None:
            try:
                torch.save({**content, "run": signature(self._identity())}, path)
            except RuntimeError as error:  # what torch makes of a full disk, in words of its own
                raise OSError(errno.EIO, "the disk may be full") from error

        atomic_write(self.file, write)

    def load(self) -> dict[str, Any] | None:
        """The last complete checkpoint, on the CPU, or None. Raises ``ValueError`` where it cannot be read."""
        if not self.file.exists():
            return None
        try:
            with zipfile.ZipFile(self.file) as archive:  # torch itself compares no checksums
                if archive.testzip():
                    raise zipfile.BadZipFile
            content = torch.load(self.file, map_location="cpu", weights_only=True)
        except Exception as error:  # zip, pickle and torch have each their own, and advice that is not ours
            reason = type(error).__name__
            raise ValueError(f"{self.file} cannot be read ({reason}): remove {self.folder} to start again") from None
        if not isinstance(content, dict) or content.pop("run", None) not in (None, signature(self._identity())):
            raise self.of_another_run()
        return content

    def of_another_run(self) -> ValueError:
        """The error where the checkpoint does not fit."""
        return ValueError(f"{self.file} is no checkpoint of this run: remove {self.folder} to start again")
