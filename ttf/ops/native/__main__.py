"""``python -m ttf.ops.native``: compile the operators for this machine; if it fails, the plain ones run on."""

from __future__ import annotations

from ttf.ops import native
from ttf.ops.native.build import build


def main() -> None:
    if native.switched_off():
        print("the plain operators run: TTF_NATIVE is off")
        return
    if not native.loaded():
        print("compiling the operators for this machine, a quarter of a minute, unless that is done")
    try:
        path = build()
    except (ValueError, OSError) as error:
        print(f"the plain operators will run, the same answers a few percent slower: {error}")
        return
    print(path if native.loaded() or native.load() else f"{path} cannot be loaded: delete it, and run this again")


if __name__ == "__main__":
    main()
