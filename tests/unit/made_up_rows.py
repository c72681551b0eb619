"""Rows of one made-up model, and tables of them, without any file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ttf.experiments import Experiment, Table
from ttf.metrics import measure
from ttf.metrics.outcomes import count
from ttf.results.measured import Measured

IMAGES = 20
DEFAULT = {"class": "TokenTransform", "isolate": True, "accumulate": True}


def bits(right: int, n: int = IMAGES) -> torch.Tensor:
    return torch.arange(n) < right


def classified(right: int, kl: float) -> dict[str, torch.Tensor]:
    """Outcomes of 20 images of which ``right`` are right."""
    whole = torch.full((IMAGES,), kl)
    return {
        "top1": bits(right),
        "top5": bits(IMAGES),
        "agreement": bits(19),
        "kl": whole,
        "class_token_error": whole + 0.1,
    }


def row(
    name: str,
    images: Mapping[str, torch.Tensor],
    task: str = "cls",
    gmacs: float = 1.0,
    experiments: Sequence[str] = (),
    speed_up: float | None = None,
    **config: Any,
) -> Measured:
    """A row of results with these outcomes; ``config``: method, schedule, model, limit, weights."""
    settings = {"schema": 2, "task": task, "data_set": {"name": "scenes"}, "data": "d", "seed": 0, "limit": None}
    settings |= {"dtype": "float32", "method": DEFAULT, "schedule": None, **config}
    settings["model"] = {"name": config.get("model", "mini")}
    timed = {"batch_size": 4, "compressed": {"speed_up": speed_up}} if speed_up else None
    found = {
        "id": name,
        "schema": 2,
        "experiments": [{"name": one, "overrides": [], "title": ""} for one in experiments],
        "config": settings,
        "metrics": measure(task, images),
        "gmacs": gmacs,
        "params_m": 5.7,
        "images": count(images),
        "bad_images": [],
        "tokens": [{"block": 4, "tokens": 70.0}],
        "device": "cpu",
        "throughput": timed,
    }
    return Measured(found, lambda: dict(images))


def cls(name: str, right: int = IMAGES, gmacs: float = 1.0, kl: float = 0.1, **given: Any) -> Measured:
    """A row of classification."""
    return row(name, classified(right, kl), gmacs=gmacs, **given)


def base(**given: Any) -> Measured:
    """The uncompressed row."""
    name = f"none_{given.get('model', 'mini')}_{given.get('limit')}"
    return cls(name, **{"gmacs": 2.0, "kl": 0.0, "method": None, **given})


def table(name: str, layout: str, rows: Mapping[str, Any], **options: Any) -> Table:
    """A table of rows NAME/ROW: a title, or what the paper prints with a title."""
    named = {row: {"title": given} if isinstance(given, str) else {"title": "", **given} for row, given in rows.items()}
    experiments = (
        Experiment(f"{name}/{row}", given["title"], given.get("overrides", {}), paper=given.get("paper", {}))
        for row, given in named.items()
    )
    return Table(name, name, layout, tuple(experiments), {}, options)
