"""The wheel carries ``configs/`` as ``ttf/configs``; an editable install reads those of the clone."""

from __future__ import annotations

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class Configs(BuildHookInterface):
    """See the module."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called before a wheel is built."""
        if version != "editable":
            build_data["force_include"]["configs"] = "ttf/configs"
