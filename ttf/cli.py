"""What the scripts share: one clear line instead of a traceback for mistakes that are the user's.

Imports neither torch nor timm, so a mistake in a name shows at once.
"""

from __future__ import annotations

import difflib
import errno
import functools
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ttf import experiments
from ttf.config_store import CONFIGS, GROUPS, choices, options
from ttf.settings import check
from ttf.several import Runs, several
from ttf.unread import check_once


def clone() -> str:
    """The folder of the clone that this code lies in, "." where that is the working directory or there is none."""
    root = CONFIGS.parent
    is_one = (root / "scripts" / "eval.py").is_file() and (root / "ttf").is_dir()
    return "." if not is_one or root == Path.cwd() else str(root)


experiments.register([])
OmegaConf.register_new_resolver("clone", clone, replace=True)
OmegaConf.register_new_resolver("product", lambda a, b: int(a) * int(b), replace=True)

USER_ERRORS = (ValueError, HydraException, OmegaConfBaseException, OSError, MemoryError)
INTERRUPTED = 130
RUNS = Runs()
TRACEBACK = "TTF_TRACEBACK"  # a variable of the environment
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FLAGS = {"--list": "list=true"}  # Hydra knows no flags of ours
OF_HYDRA = (
    *("--help", "--hydra-help", "--version", "--cfg", "--resolve", "--package", "--run", "--multirun", "--info"),
    *("--shell-completion", "--config-path", "--config-name", "--config-dir", "--experimental-rerun"),
)
SHORT = ("-h", "-c", "-p", "-r", "-m", "-i", "-sc", "-cp", "-cn", "-cd")  # the same of Hydra
CONFIG = ("--cfg", "-c")
SHOWABLE = ("job", "hydra", "all")  # what stands behind these
VALUED = (*CONFIG, "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd")
NAMED = {*GROUPS, "paths", "throughput", "experiment", "network"}  # groups of settings that a name chooses
SHOWN = 4  # names like the one that was meant


def _check_options(arguments: Sequence[str]) -> None:
    """Raise ``ValueError`` for options that Hydra does not have, and for a word behind one that it does not know."""
    for number, one in enumerate(arguments):
        name, equals, value = one.partition("=")
        if one.startswith("-") and name not in (*FLAGS, *OF_HYDRA, *SHORT):
            setting = name.lstrip("-") or "KEY"
            raise ValueError(f"{name} is no option: settings are written KEY=VALUE, such as {setting}=true")
        word = value if equals else next(iter(arguments[number + 1 :]), "nothing")
        if name in CONFIG and word not in SHOWABLE:
            raise ValueError(f"{name} is followed by one of {', '.join(SHOWABLE)}, got {word}")


def _options_first(arguments: Sequence[str]) -> list[str]:
    """Settings in one piece behind all options: Hydra's parser takes no others."""
    options, behind = list[str](), list[str]()
    for number, one in enumerate(arguments):
        is_value = number > 0 and arguments[number - 1] in VALUED
        (options if is_value or one.startswith("-") else behind).append(one)
    return [*options, *behind]


def _check_groups(arguments: Sequence[str]) -> None:
    """Raise ``ValueError`` where a group is set to something that is no name of an option."""
    for one in arguments:
        key, equals, value = one.partition("=")
        if equals and not key:
            raise ValueError(f"{one!r} is no setting: write KEY=VALUE")
        if (
            equals
            and key in NAMED
            and one != "augment=null"
            and (value in ("", "null") or re.fullmatch(r"[-+.\deE]+|true|false", value))
        ):
            names = "a name of ttf sweep table=TABLE --list" if key == "experiment" else ", ".join(options(key))
            raise ValueError(f"{one} chooses nothing: {key} is one of {names}")


def expanded(arguments: Sequence[str]) -> list[str]:
    """``experiment=glob(table/*)`` as a list of names: Hydra's own glob does not look into sub-folders. And flags.

    Raises:
        ValueError: nothing fits the pattern; an unknown option, or a group without a name.
    """
    _check_options(arguments)
    _check_groups(arguments)

    def expand(argument: str) -> str:
        found = re.fullmatch(r"experiment=glob\((.+)\)", argument)
        if argument == "augment=null":  # as Hydra writes it, for a group that there need not be
            return "~augment"
        return f"experiment={','.join(experiments.matching(found[1]))}" if found else FLAGS.get(argument, argument)

    return _options_first([expand(argument) for argument in arguments])


def _like(word: str, words: Iterable[str]) -> str:
    """Names like a word, or, where none is, all of them."""
    known = sorted(set(words))
    return ", ".join(difflib.get_close_matches(word, known, SHOWN, 0.5) or known)


def _no_such_file(text: str) -> str | None:
    """Of a group's option that does not exist, "Could not find 'method/foo'"."""
    found = re.search(r"Could not find '([\w/.-]+)/([^/']+)'", text)
    if not found:
        return None
    group, name = found[1], found[2]
    if group.startswith("experiment"):
        wanted = f"{group}/{name}".removeprefix("experiment/")
        close = difflib.get_close_matches(wanted, experiments.names(), SHOWN, 0.5)
        tables = (
            f"their tables are {', '.join(experiments.names_of_tables())}, and ttf sweep table=TABLE --list lists them"
        )
        meant = f"do you mean {', '.join(close)}?"
        return f"there is no experiment {wanted!r}: {meant if close else tables}"
    known = ", ".join(options(group))
    advice = f"choose one of {known}" if known else "perhaps a plugin of Hydra is not installed (the extra sweep)"
    return f"there is no {group}={name}: {advice}"


def _no_such_key(text: str) -> str | None:
    """Of an override of a key that does not exist, "Could not override 'rato'"."""
    found = re.search(r"Could not override '([\w/@.-]+)'", text)
    if not found:
        return None
    *path, last = found[1].split(".")
    chosen = [one for one in sys.argv[1:] if one.startswith(("experiment=", "+experiment="))]
    if chosen and not any(one.lstrip("+~").startswith(found[1]) for one in sys.argv[1:]):
        return f"{chosen[-1]} sets {found[1]}, which this command does not read: is it for ttf finetune?"
    close = _neighbours(path, last)
    if found[1] in close:
        return f"{found[1]} is no setting of what is chosen here, or is set as a whole"
    advice = f": do you mean {', '.join(close)}?" if close else ""
    return f"{found[1]} is no setting of this command{advice}"


def _ambiguous(text: str) -> str | None:
    """Of a value with a comma, "Ambiguous value for argument 'KEY=a,b'"."""
    found = re.search(r"Ambiguous value for argument '(.*)'", text)
    return found[1] if found else None


def _unquoted(told: str) -> str:
    """Of an override that cannot be read as it stands: how it would be written."""
    key, equals, value = told.partition("=")
    if not equals:
        return f"{told!r} is no setting: write KEY=VALUE"
    if value.startswith("["):
        items = ",".join(f"'{item.strip()}'" for item in value.strip("[]").split(","))
        return f'{told} cannot be read as it is: quote what is in the list, "{key}=[{items}]"'
    several = "; several runs, one a value, are -m KEY=a,b" if "," in value else ""
    quoted = value.strip("'\"")
    if key == "experiment":
        return f"experiment={value.partition(',')[0]},... are several runs: ttf eval -m takes them one after the other"
    if value.startswith("~"):
        return f"{told} begins with ~, which is a folder to shells alone: write '{key}='\"$HOME{value[1:]}\""
    return f"{told} cannot be read as it is: write text with special characters as '{key}=\"{quoted}\"'{several}"


def _not_given(text: str) -> str | None:
    """Of a value that has to be given, "Missing mandatory value: network.name"."""
    found = re.search(r"[Mm]issing mandatory value: ([\w.]+)", text)
    return f"{found[1]} is missing: add {found[1]}=VALUE" if found else None


def _not_there(text: str) -> str | None:
    """Of a key that was looked for in vain, "Key 'x' is not in struct", with "full_key: a.b.x" below."""
    found = re.search(r"Key '[\w@/-]+' (?:is not in struct|not found)", text)
    key = re.search(r"full_key: ([\w.@/-]+)", text)
    return f"{key[1]} is missing: what is chosen beside it reads it" if found and key else None


def _own_files() -> list[Path]:
    """The config of this command, and that of ``eval`` where it takes that as a start."""
    name = Path(sys.argv[0].split()[-1]).stem
    own = CONFIGS / f"{name if (CONFIGS / f'{name}.yaml').is_file() else 'eval'}.yaml"
    defaults = OmegaConf.select(OmegaConf.load(own), "defaults") or []
    return [own, *([CONFIGS / "eval.yaml"] if "eval" in defaults else [])]


def _neighbours(path: Sequence[str], last: str) -> list[str]:
    """Keys beside one that does not exist, of files that can be read without composing."""
    files = _own_files() if not path else list((CONFIGS / path[0]).glob("*.yaml"))
    nodes = [*map(OmegaConf.load, files), *(choices(path[0]).values() if len(path) == 1 else ())]
    keys = {str(key) for node in nodes for key in node if key != "defaults"}
    return [".".join([*path, key]) for key in difflib.get_close_matches(last, sorted(keys), SHOWN, 0.5)]


def _is_here() -> bool:
    """Whether the working directory exists."""
    try:
        return os.path.isdir(os.getcwd())
    except OSError:
        return False


def one_line(error: BaseException) -> str:
    """A mistake of the user in one line, without what Hydra and OmegaConf put around it."""
    text = str(error)
    if isinstance(error, OSError) and not isinstance(error, HydraException):
        place = f" {error.filename}" if error.filename is not None else ""
        reason = error.strerror or text or type(error).__name__
        if not place and not _is_here():
            return "the working directory is gone: go to a folder that exists"
        if error.errno in NO_SPACE:
            return f"no space left for{place or ' what is written'}: free some; paths.logs=FOLDER says where things go"
        return f"cannot read or write{place} ({reason}): paths.logs=FOLDER and the other paths say where things go"
    if isinstance(error, MemoryError):
        return f"not enough memory: choose a smaller batch_size or limit{f' ({text.splitlines()[0]})' if text else ''}"
    if isinstance(error, HydraException | OmegaConfBaseException):
        cause = error.__cause__
        told = getattr(error, "override", None) or _ambiguous(text)
        if told:
            return _unquoted(told)
        known = _no_such_file(text) or _no_such_key(text) or _not_given(text) or _not_there(text)
        if known is None and isinstance(error, MissingConfigException) is False and isinstance(cause, ValueError):
            return str(cause).splitlines()[0]
        lines = [line.strip() for line in text.splitlines()]
        kept = [line for line in lines if line and not line.startswith(("full_key:", "object_type=", "See https://"))]
        return known or " ".join(kept)
    return text


def _of_memory(error: RuntimeError) -> bool:
    """Whether torch ran out of memory, on a GPU or on the CPU."""
    return type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)


def _stop(error: BaseException) -> None:
    """One line and exit status 2; TTF_TRACEBACK=1 shows the whole traceback instead."""
    if os.environ.get(TRACEBACK):
        raise error
    print(f"error: {one_line(error)}", file=sys.stderr)
    raise SystemExit(2) from None


def job(function: Callable[[DictConfig], Any]) -> Callable[[DictConfig], Any]:
    """Below ``hydra.main``: settings are checked first, and a mistake of the user ends with one line."""

    @functools.wraps(function)
    def checked(cfg: DictConfig) -> Any:
        RUNS.begin()
        try:
            if HydraConfig.initialized():
                here = HydraConfig.get()
                check(cfg, here.overrides.task, function.__module__.rpartition(".")[2])
            return function(cfg)
        except BrokenPipeError:
            raise
        except USER_ERRORS as error:
            if not several():
                return _stop(error)
            if RUNS.failed(one_line(error)) and not os.environ.get(TRACEBACK):
                return None  # the others go on
            raise

    return checked


def _whole(main: Callable[[], Any]) -> None:
    """Call a function, and print all that it has said: what is printed to a full disk is an error, too."""
    try:
        main()
    finally:
        sys.stdout.flush()


def _give_up_output() -> None:
    """Let Python print nothing more when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """A warning as the command line shows it: without its kind and its place in the code, which are no user's."""
    del category, filename, lineno, line
    return f"warning: {message}\n"


def run(main: Callable[[], Any]) -> None:
    """Call a ``hydra.main`` function; mistakes of the user end with one message and exit status 2.

    TTF_TRACEBACK=1 shows the whole traceback instead.
    """
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra raises instead of printing and leaving
    warnings.formatwarning = _warning
    RUNS.start()
    logging.raiseExceptions = False  # a log file on a full disk is no reason for a traceback
    try:
        check_once(sys.argv[1:])
        sys.argv[1:] = expanded(sys.argv[1:])
        experiments.register(sys.argv[1:])
        _whole(main)
        RUNS.end()
    except BrokenPipeError:  # whoever read our output has seen enough
        _give_up_output()
        raise SystemExit(1) from None
    except USER_ERRORS as error:
        if isinstance(error, OSError) and error.filename is None:
            _give_up_output()
        _stop(error)
    except RuntimeError as error:
        if not _of_memory(error):
            raise
        _stop(MemoryError(str(error)))
    except KeyboardInterrupt:
        print("interrupted: what is finished is kept, the same command goes on where this one stopped", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
