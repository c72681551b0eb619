"""Metrics of classification; the outcomes are those of ``ttf.tasks.classification.outcomes``, (n,) each."""

from __future__ import annotations

from ttf.metrics.estimators import average, mcnemar, mean_difference, share, signed_rank
from ttf.metrics.metric import Metric, declare

KL = "KL(uncompressed || compressed)"

declare(
    "cls",
    [
        Metric(
            "top1",
            "top-1",
            "%",
            higher_is_better=True,
            estimate=share("top1"),
            difference=mean_difference("top1", 100),
            test=mcnemar("top1"),
            headline=True,
        ),
        Metric("top5", "top-5", "%", higher_is_better=True, estimate=share("top5"), in_tables=False),
        Metric(
            "agreement",
            "agree",
            "%",
            higher_is_better=True,
            estimate=share("agreement"),
            meaning="images with the uncompressed model's class",
        ),
        Metric(
            "kl",
            "KL",
            "nats",
            higher_is_better=False,
            estimate=average("kl"),
            decimals=4,
            small=True,
            in_figures=True,
            log=True,
            title=KL,
            meaning=KL,
            test=signed_rank("kl"),
        ),
        Metric(
            "class_token_error",
            "err",
            "",
            higher_is_better=False,
            estimate=average("class_token_error"),
            decimals=3,
            title="class-token error, ||c - c'|| / ||c||",
            meaning="relative L2 error of the classifier's input",
        ),
    ],
)
