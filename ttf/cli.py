"""What the scripts share: one clear line instead of a traceback for mistakes that are the user's."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import Any

from omegaconf import OmegaConf

OmegaConf.register_new_resolver("product", lambda a, b: int(a) * int(b), replace=True)


def user_errors(run: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: a ``ValueError`` ends the program with its message and exit status 2 (TTF_TRACEBACK=1 shows all)."""

    @functools.wraps(run)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return run(*args, **kwargs)
        except ValueError as error:
            if os.environ.get("TTF_TRACEBACK"):
                raise
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(2) from error

    return wrapped
