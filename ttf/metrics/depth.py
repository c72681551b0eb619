"""Metrics of depth estimation, in the order of Table 3.

Outcomes (``ttf.tasks.depth``), (n,) each: the nine errors of each image (``ttf.data.depth_protocol.errors``),
deviation, and the block of neighbouring frames that the image belongs to. Metrics are plain means over the images.
"""

from __future__ import annotations

from typing import Any

from ttf.metrics.blocks import block_average, block_difference, block_signed_rank
from ttf.metrics.metric import Metric, declare

INTERVALS = "95 % intervals from images (of a video: blocks of neighbouring frames) drawn with replacement"
DEVIATION = "|p - q| / q, q that of the uncompressed model"


def _mean(name: str, label: str, unit: str = "", *, higher: bool = False, decimals: int = 3, **more: Any) -> Metric:
    return Metric(
        name,
        label,
        unit,
        higher_is_better=higher,
        estimate=block_average(name),
        decimals=decimals,
        difference=block_difference(name),
        test=block_signed_rank(name),
        **more,
    )


declare(
    "depth",
    [
        _mean("d1", "δ1", higher=True, meaning="share of pixels within a factor of 1.25, δ2 of 1.25², δ3 of 1.25³"),
        _mean("d2", "δ2", higher=True),
        _mean("d3", "δ3", higher=True),
        _mean("abs_rel", "AbsRel", decimals=4, headline=True, meaning=INTERVALS),
        _mean("sq_rel", "SqRel", "m", decimals=4),
        _mean("rmse", "RMSE", "m"),
        _mean("rmse_log", "RMSElog"),
        _mean("silog", "SILog", decimals=2),
        _mean("log10", "log10", decimals=4),
        _mean(
            "deviation",
            "deviation",
            decimals=4,
            small=True,
            in_figures=True,
            log=True,
            title="deviation from the uncompressed model",
            meaning=f"mean over all pixels of {DEVIATION}",
        ),
    ],
)
