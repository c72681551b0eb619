"""The documentation site: texts, tables, figures and recipes laid out as in the repository, so that their links hold.

``make docs`` writes it to ``outputs/site``; a link that leads nowhere is an error.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "outputs" / "site_source"
TEXTS = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "SECURITY.md",
    "LICENSE",
    "CITATION.cff",
    "ttf/models/weights.yaml",
)
FOLDERS = ("docs", "results/tables", "results/figures", "results/speed", "results/training")


def _output(found: dict[str, Any]) -> str:
    text = found.get("text") or found.get("data", {}).get("text/plain", "")
    return f"```text\n{''.join(text).rstrip()}\n```" if text else ""


def markdown(notebook: dict[str, Any]) -> str:
    """A notebook as a page: its texts, its code, and what the code printed when it was run last."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        code = cell["cell_type"] == "code"
        parts.append(f"```python\n{source}\n```" if code else source)
        parts += [text for text in map(_output, cell.get("outputs", [])) if text]
    return "\n\n".join(parts) + "\n"


def _stage() -> None:
    shutil.rmtree(SOURCE, ignore_errors=True)
    for name in TEXTS:
        (SOURCE / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, SOURCE / name)
    for name in FOLDERS:
        kept = shutil.ignore_patterns("*.py", "*.safetensors", "state")
        shutil.copytree(ROOT / name, SOURCE / name, ignore=kept)
    for file in (SOURCE / "docs" / "recipes").glob("*.ipynb"):
        file.with_suffix(".md").write_text(markdown(json.loads(file.read_text())))
        file.unlink()
    for file in SOURCE.rglob("*.md"):  # a page links to a notebook, the site has a page of it
        file.write_text(
            re.sub(r"(recipes/\w+)\.ipynb\)", r"\1.md)", re.sub(r"\((\w+)\.ipynb\)", r"(\1.md)", file.read_text()))
        )


def main() -> int:
    """Exit status of MkDocs."""
    _stage()
    quiet = {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict"],
        cwd=ROOT,
        env={**os.environ, **quiet},
        stderr=subprocess.PIPE,
        text=True,
    )
    print("".join(line for line in done.stderr.splitlines(keepends=True) if not line.startswith("INFO")), end="")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
