"""What the scripts share: one clear line instead of a traceback for mistakes that are the user's."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ttf import experiments

experiments.register()
OmegaConf.register_new_resolver("product", lambda a, b: int(a) * int(b), replace=True)

USER_ERRORS = (ValueError, HydraException, OmegaConfBaseException)
INTERRUPTED = 130


def expand_experiments(arguments: Sequence[str]) -> list[str]:
    """``experiment=glob(table/*)`` as a list of names: Hydra's own glob does not look into sub-folders.

    Raises:
        ValueError: nothing fits the pattern.
    """

    def expand(argument: str) -> str:
        found = re.fullmatch(r"experiment=glob\((.+)\)", argument)
        return f"experiment={','.join(experiments.matching(found[1]))}" if found else argument

    return [expand(argument) for argument in arguments]


def run(main: Callable[[], Any]) -> None:
    """Call a ``hydra.main`` function; mistakes of the user end with one message and exit status 2.

    TTF_TRACEBACK=1 shows the whole traceback instead.
    """
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra raises instead of printing and leaving
    try:
        sys.argv[1:] = expand_experiments(sys.argv[1:])
        main()
    except USER_ERRORS as error:
        if os.environ.get("TTF_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted: what is finished is kept, the same command goes on where this one stopped", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
