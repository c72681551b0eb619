"""Is everything ready for a tag: version, changelog, citation, a clean tree? ``make release`` checks numbers, too.

Nothing is tagged or published here: it ends with the commands that do.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def version(root: Path = ROOT) -> str:
    """Of ``pyproject.toml``."""
    return str(tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"])


def disagreements(root: Path = ROOT) -> list[str]:
    """What the files of a folder say against a release of their version."""
    wanted, found = version(root), []
    cited = re.search(r"^version: (\S+)$", (root / "CITATION.cff").read_text(), re.M)
    if cited is None or cited[1] != wanted:
        found.append(f"CITATION.cff has version {cited and cited[1]}, pyproject.toml {wanted}")
    log = (root / "CHANGELOG.md").read_text()
    heads = re.findall(r"^## \[(.+?)\](?: - (\d{4}-\d{2}-\d{2}))?$", log, re.M)
    dated = {name: date for name, date in heads if date}
    if wanted not in dated:
        found.append(f"CHANGELOG.md has no '## [{wanted}] - YEAR-MONTH-DAY'")
    open_part = re.search(r"^## \[Unreleased\]\n(.*?)(?=^## )", log, re.M | re.S)
    if open_part and open_part[1].strip():
        found.append(f"CHANGELOG.md has entries under Unreleased: move them under [{wanted}], or raise the version")
    return found


def main() -> int:
    """0 where nothing stands against the release."""
    found = disagreements()
    if _git("status", "--porcelain"):
        found.append("the working tree is not clean")
    if f"v{version()}" in _git("tag").split():
        found.append(f"there is a tag v{version()}: raise the version")
    print("\n".join(found) or f"ready: git tag v{version()} && git push --tags, then uv publish outputs/dist/*")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
