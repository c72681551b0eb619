"""Metrics: one declaration each, read by tasks, tables, figures, the terminal and W&B.

Every module of this folder is imported here, so a new task declares its metrics in a file of its own.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module

from ttf.metrics.metric import Estimate, Metric, declare, headline, measure, named, of_task

for _module in pkgutil.iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["Estimate", "Metric", "declare", "headline", "measure", "named", "of_task"]
