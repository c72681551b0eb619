"""The command line: ``ttf COMMAND ...``, one module a command; ``python scripts/COMMAND.py`` is the same from a clone.

Nothing but the standard library is imported until a command is chosen.
"""

from __future__ import annotations

import ast
import difflib
import gc
import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

FOLDER = Path(__file__).parent
FIRST = ("eval", "finetune", "search", "benchmark", "sweep", "table", "figure", "visualize", "demo", "app", "doctor")
USAGE_ERROR = 2


def names() -> list[str]:
    """Names of the commands: the modules of this folder, those that most people need first."""
    found = sorted(file.stem for file in FOLDER.glob("*.py") if file.stem != "__init__")
    return sorted(found, key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))


def summary(name: str) -> tuple[str, str]:
    """What a command does and an example of it, from the first line of its module, which is not imported."""
    said = ast.get_docstring(ast.parse((FOLDER / f"{name}.py").read_text())) or ""
    what, _, example = said.splitlines()[0].partition(": ``")
    return what, example.partition("``")[0]


def usage() -> str:
    """What ``ttf --help`` prints."""
    lines = [f"  {name:<11} {summary(name)[0]}\n{'':14}{summary(name)[1]}".rstrip() for name in names()]
    return "\n".join(
        [
            "Token Transforming: training-free token compression for Vision Transformers.",
            "\nusage: ttf COMMAND [SETTING=VALUE ...]\n\ncommands:",
            *lines,
            "\nttf COMMAND --help lists the settings of a command, ttf COMMAND ... --cfg job shows them composed.",
            "Several values at once: ttf eval -m ratio=0.5,0.7",
        ]
    )


def start(name: str) -> None:
    """Run a command with ``sys.argv[1:]``; mistakes of the user end with one line and exit status 2."""
    gc.disable()  # nothing that importing makes is garbage, and looking for it takes half a second
    from ttf import cli

    function = import_module(f"ttf.commands.{name}").main
    gc.enable()
    cli.run(function)


def _unknown(word: str) -> str:
    close = difflib.get_close_matches(word, names(), 1, 0.5)
    advice = f"do you mean ttf {close[0]}?" if close else f"choose one of {', '.join(names())}"
    return f"there is no command {word!r}: {advice}"


def main() -> None:
    """The entry point ``ttf``."""
    word = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if word in ("--help", "-h", "help"):
        print(usage())
    elif word == "--version":
        print(f"ttf {_version()}")
    elif word in names():
        sys.argv[:2] = [f"ttf {word}"]
        start(word)
    else:
        print(f"error: {_unknown(word)}", file=sys.stderr)
        raise SystemExit(USAGE_ERROR)


def _version() -> str:
    try:
        return version("ttf")
    except PackageNotFoundError:
        return "of a folder that is not installed"
