"""``python -m ttf.ops.native``: compile the operators for this machine; if it fails, the plain ones run on."""

from __future__ import annotations

from ttf.ops import native
from ttf.ops.native.build import build, library


def main() -> None:
    if not library().exists():
        print("compiling the operators for this machine, a quarter of a minute")
    try:
        path = build()
    except (ValueError, OSError) as error:
        print(f"the plain operators will run, the same answers a few percent slower: {error}")
        return
    if not native.available():  # there was none when this began
        native.available.cache_clear()
    print(path if native.available() else f"{path} cannot be loaded: delete it, and run this again")


if __name__ == "__main__":
    main()
