"""Official weight files that no hub has: where they are published, how they come here, and how they are verified."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from http.client import HTTPException
from pathlib import Path
from typing import Any, BinaryIO
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from filelock import FileLock, Timeout
from omegaconf import OmegaConf
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from ttf.data.files import atomic_write
from ttf.data.transforms import Preprocessing
from ttf.errors import MissingError

TABLE = Path(__file__).with_name("weights.yaml")
CHUNK = 2**20
TIMEOUT = 30.0  # seconds without a byte
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
RANGE_NOT_SATISFIABLE = 416
WEB_PAGE = "a web page, not a checkpoint (a quota or a login page?)"


@dataclass(frozen=True)
class Published:
    """The published weights of one model; see ``weights.yaml``.

    Attributes:
        name: of the model's config.
        page: where a person fetches the file.
        licence: SPDX identifier.
        top1, miou, ap, abs_rel: published, the first three in percent; one of them.
        params_m: millions of parameters.
        preprocessing: of the published evaluation of a classifier.
        keys: where the tensors may lie in the file, the preferred place first.
        source: of these facts.
        hub: timm's tag, or None.
        url: direct download, where there is no tag.
        file: name under which the file is kept.
        sha256, sha384, md5_prefix: hexadecimal digests of the file, as far as they are known.
        bytes: size of the file, if known.
    """

    name: str
    page: str
    licence: str
    params_m: float
    keys: tuple[str, ...]
    source: str
    top1: float | None = None
    miou: float | None = None
    ap: float | None = None
    abs_rel: float | None = None
    preprocessing: Preprocessing | None = None
    hub: str | None = None
    url: str | None = None
    file: str | None = None
    sha256: str | None = None
    sha384: str | None = None
    md5_prefix: str | None = None
    bytes: int | None = None

    def path(self, folder: str | Path) -> Path:
        """Where the official file lies in ``folder``."""
        assert self.file is not None, f"{self.name} has no official file"
        return Path(folder) / self.file

    def by_hand(self, folder: str | Path) -> str:
        """What a person can do instead of a download into ``folder``."""
        return f"fetch it by hand from {self.page} and put it at {self.path(folder)}, or give checkpoint=FILE"


@cache
def _table() -> dict[str, Any]:
    return OmegaConf.to_container(OmegaConf.load(TABLE))  # type: ignore[return-value]


def published(name: str) -> Published:
    """What is known about the published weights of a model.

    Raises:
        ValueError: nothing is known.
    """
    if name not in _table():
        raise ValueError(f"no published weights of {name!r} are known: give checkpoint=FILE")
    entry: dict[str, Any] = _table()[name]
    how: dict[str, Any] | None = entry.get("preprocessing")
    if how is not None:
        how = {k: tuple(v) if isinstance(v, list) else v for k, v in how.items()}
    shown = None if how is None else Preprocessing(**how)
    return Published(**{**entry, "name": name, "preprocessing": shown, "keys": tuple(entry["keys"])})


def _digest(path: Path, algorithm: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def _record(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _wrong(entry: Published, file: Path, record: Path) -> str | None:
    """What is wrong with ``file``, given the published hashes or the one in ``record``; None: nothing."""
    with open(file, "rb") as opened:
        if opened.read(64).lstrip().startswith(b"<"):
            return f"is {WEB_PAGE}"
    known = entry.sha256 or (record.read_text().partition(" ")[0] if record.exists() else None)
    if known is not None:
        return None if _digest(file, "sha256") == known else f"is tampered or damaged: its sha256 is not {known!r}"
    if entry.bytes is not None and file.stat().st_size != entry.bytes:
        return f"is not the published file: it has {file.stat().st_size} bytes, not {entry.bytes}"
    if entry.sha384 is not None and _digest(file, "sha384") != entry.sha384:
        return f"is not the published file: its sha384 is not {entry.sha384}"
    if entry.md5_prefix is not None and not _digest(file, "md5").startswith(entry.md5_prefix):
        return f"is not the published file: its md5 does not start with {entry.md5_prefix}"
    return None


def verify(entry: Published, path: Path) -> None:
    """Compare a file with the published hashes; from the first time on with its own sha256 of then, kept beside it.

    Raises:
        ValueError: it is another file than the published one, a web page, or no longer the same.
    """
    record = _record(path)
    wrong = _wrong(entry, path, record)
    if wrong:
        kept = f" and {record.name}" if record.exists() else ""
        raise ValueError(
            f"{path} {wrong}: remove it{kept} and fetch it again from {entry.page}, "
            f"or give it as checkpoint={path} if it is what you want"
        )
    if not record.exists():
        line = f"{_digest(path, 'sha256')}  {path.name}\n"  # the format of sha256sum -c
        with suppress(ValueError):  # a folder that cannot be written, such as a shared one
            atomic_write(record, lambda temporary: temporary.write_text(line))


def _locked(path: Path) -> FileLock:
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        Console(stderr=True).print(f"waiting for another process that downloads {path.name}")
        lock.acquire()
    return lock


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process at a time downloads ``path``; the others wait."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = _locked(path)
    except OSError as error:
        raise ValueError(f"cannot write in {path.parent} ({error.strerror}): set paths.downloads=FOLDER") from error
    try:
        yield
    finally:
        lock.release()


def _request(url: str, start: int) -> Any:
    headers = {"User-Agent": "ttf"} | ({"Range": f"bytes={start}-"} if start else {})
    return urlopen(Request(url, headers=headers), timeout=TIMEOUT)


def _answer(url: str, start: int) -> tuple[Any, int]:
    """The response and the byte that it begins with: 0 where the server cannot or will not continue at ``start``."""
    if start:
        try:
            response = _request(url, start)
        except HTTPError as error:
            if error.code != RANGE_NOT_SATISFIABLE:
                raise
        else:
            if response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                return response, start
            response.close()
    return _request(url, 0), 0


def _copy(response: Any, file: BinaryIO, start: int, name: str) -> None:
    """Append what the server sends to ``file``. Raises ``ConnectionError`` where it stops too early."""
    length = response.headers.get("Content-Length")
    total = start + int(length) if length else None
    columns = (TextColumn(name), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=total, completed=start)
        while chunk := response.read(CHUNK):
            file.write(chunk)
            bar.advance(task, len(chunk))
    if total is not None and file.tell() != total:
        raise ConnectionError(f"{file.tell()} of {total} bytes came")


def _transfer(entry: Published, part: Path) -> None:
    """Download into ``part``, from where an earlier attempt ended. Raises ``MissingError`` for a web page."""
    assert entry.url is not None
    response, start = _answer(entry.url, part.stat().st_size if part.exists() else 0)
    with response:
        if response.headers.get_content_type() == "text/html":
            raise MissingError(f"{entry.url} gives {WEB_PAGE}: {entry.by_hand(part.parent)}")
        with open(part, "ab" if start else "wb") as file:
            _copy(response, file, start, str(entry.file))


def _explained(error: Exception, entry: Published, part: Path) -> ValueError:
    by_hand = entry.by_hand(part.parent)
    if isinstance(error, HTTPError):
        return MissingError(f"the server answered {error.code} ({error.reason}) for {entry.url}: {by_hand}")
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        return ValueError(f"no space left for {part}: free some, or set paths.downloads=FOLDER")
    reason = getattr(error, "reason", None) or str(error) or type(error).__name__
    if part.exists() and part.stat().st_size:
        again = "give the same command again, and it goes on"
        return MissingError(f"the download of {entry.file} broke off ({reason}): {again}; or {by_hand}")
    return MissingError(f"{entry.url} cannot be reached ({reason}): {by_hand}")


def _download(entry: Published, path: Path) -> None:
    part = path.with_name(f"{path.name}.part")
    try:
        _transfer(entry, part)
    except (OSError, HTTPException) as error:
        raise _explained(error, entry, part) from error
    wrong = _wrong(entry, part, _record(path))
    if wrong:
        part.unlink()
        raise ValueError(
            f"what {entry.url} gave {wrong}; it was removed: try again later, or {entry.by_hand(path.parent)}"
        )
    os.replace(part, path)


def fetch(entry: Published, folder: str | Path) -> Path:
    """The official file in ``folder``: downloaded if it is not there, and verified in any case.

    A download that broke off goes on where it ended. A file appears under its name only when it is complete and has
    passed the checks, also when several processes ask for it.

    Raises:
        MissingError: no connection, or an answer that is not the file; the message says what to do.
        ValueError: another file than the published one, a file that has changed since, a full disk.
    """
    path = entry.path(folder)
    if not path.is_file():
        with _alone(path):
            if not path.is_file():
                _download(entry, path)
    verify(entry, path)
    return path
