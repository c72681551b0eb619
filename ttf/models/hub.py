"""Whether the Hugging Face hub can be reached, asked once a process and briefly."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.utils import get_session

WITHIN = 2.0  # seconds, for its first answer: its own client tries again for a minute
LONGEST = 200  # characters of a reason

_asked: list[str | None] = []  # why it cannot be reached, None: it can; a sweep over many models finds out once


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it came from, the last one first."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _words(error: BaseException) -> str:
    first = list(causes(error))[-1]
    return f"{type(first).__name__}: {(str(first) or 'no reason given').splitlines()[0][:LONGEST]}"


def downloaded(name: str, file: str) -> Path | None:
    """A file of a model of the hub that was downloaded before. Raises ``ValueError`` for what is no name of the hub."""
    found = try_to_load_from_cache(name, file)
    return Path(found) if isinstance(found, str) else None


def unreachable() -> str | None:
    """Why the hub cannot be reached; None where it answers, whatever it says."""
    if not _asked:
        _asked.append(_ask())
    return _asked[0]


def _ask() -> str | None:
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        get_session().head(constants.ENDPOINT, timeout=WITHIN)
    except Exception as error:  # of whatever HTTP library its client uses
        return _words(error)
    return None


def noted(error: BaseException) -> str:
    """Why a download failed, in one line; a hub that was gone is not asked again."""
    if any(isinstance(cause, LocalEntryNotFoundError) for cause in causes(error)):
        _asked[:] = [_words(error)]
    return _words(error)
