"""Several runs of one command (``-m``): each that fails says so at once, with its own settings; the end says how many.

Hydra's own launcher would name the first of them alone, and goes on as if the others had ended well.
"""

from __future__ import annotations

import os
import sys

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode


class Runs:
    """The runs of this command in this process."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """A command begins, in this process."""
        self._process, self._begun, self._failed = os.getpid(), 0, 0

    def begin(self) -> None:
        """Count one of several."""
        self._begun += several()

    def failed(self, line: str) -> bool:
        """Print why a run ended; whether ``end`` will count it, which that of another process is not."""
        given = [one for one in HydraConfig.get().overrides.task if one not in sys.argv]
        own = f" (of the run {' '.join(given)})" if given else ""
        print(f"error: {line}{own}", file=sys.stderr, flush=True)
        if os.getpid() != self._process:
            return False
        self._failed += 1
        return True

    def end(self) -> None:
        """Exit status 2 where one of several has failed."""
        if not self._failed:
            return
        text = f"error: {self._failed} of {self._begun} runs failed, see above; what the others wrote is kept"
        print(text, file=sys.stderr)
        raise SystemExit(2)


def several() -> bool:
    """Whether the run that asks is one of several."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
