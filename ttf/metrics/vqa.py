"""Metrics of questions about images: the official figure of each benchmark, and their mean.

Outcomes of n images, ragged by the questions of an image (``ttf.tasks.vqa.outcome``): score in [0, 1], NaN where the
answers are not public; benchmark, a place in ``BENCHMARKS``; split, a place in ``SPLITS`` (POPE); yes and truth (POPE);
same, whether the answer is that of the uncompressed model. tokens, tower_gmacs, prefill_gmacs (n,): how many tokens
the language model reads of the image, and what the tower and the prefill cost.

Intervals come from images drawn with replacement, all questions of an image together.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ttf.metrics import paired
from ttf.metrics.estimators import average, check_pair
from ttf.metrics.metric import Estimate, ImageOutcomes, Metric, declare
from ttf.metrics.outcomes import count, pieces

BENCHMARKS = ("pope", "scienceqa", "textvqa", "vqav2")
SPLITS = ("random", "popular", "adversarial")
RESAMPLES = 1000
MOST_WEIGHTS = 2**22  # of drawn sets at a time, 32 MB
ENDS = torch.tensor([0.025, 0.975], dtype=torch.float64)
FIELDS = ("score", "benchmark", "split", "yes", "truth", "same")
Figure = Callable[[dict[str, Tensor]], Tensor]


def _flat(outcomes: ImageOutcomes) -> tuple[dict[str, Tensor], Tensor]:
    """All questions one after the other, (Q,) a field, and the image of each, (Q,)."""
    parts = {name: pieces(outcomes, name) for name in FIELDS}
    lengths = torch.tensor([len(part) for part in parts["score"]])
    return {name: torch.cat(list(part)) for name, part in parts.items()}, torch.arange(len(lengths)).repeat_interleave(
        lengths
    )


def counts(outcomes: ImageOutcomes) -> dict[str, Tensor]:
    """The sums over the questions of each image that all figures are made of, (n,) float64 each."""
    fields, image = _flat(outcomes)
    known, benchmark = ~fields["score"].isnan(), fields["benchmark"]
    yes, truth, split = fields["yes"], fields["truth"], fields["split"]
    columns: dict[str, Tensor] = {"same": fields["same"], "questions": torch.ones_like(known)}
    for place, name in enumerate(BENCHMARKS):
        own = known & (benchmark == place)
        columns |= {f"{name}.score": fields["score"].nan_to_num() * own, f"{name}.questions": own}
    pope = known & (benchmark == 0)
    columns["pope.yes"] = pope & yes
    for place, name in enumerate(SPLITS):
        own = pope & (split == place)
        columns |= {f"{name}.tp": own & yes & truth, f"{name}.fp": own & yes & ~truth, f"{name}.fn": own & ~yes & truth}
        columns[f"{name}.questions"] = own
    none = torch.zeros(count(outcomes), dtype=torch.float64)
    return {name: none.index_add(0, image, column.double()) for name, column in columns.items()}


def _accuracy(benchmark: str) -> Figure:
    return lambda sums: sums[f"{benchmark}.score"] / sums[f"{benchmark}.questions"]


def pope_f1(sums: dict[str, Tensor]) -> Tensor:
    """Mean F1 of the splits that there are questions of; a split without a right or a wrong yes has F1 0."""
    found = []
    for split in SPLITS:
        tp, errors = sums[f"{split}.tp"], sums[f"{split}.fp"] + sums[f"{split}.fn"]
        f1 = 2 * tp / (2 * tp + errors).clamp_min(1)
        found.append(torch.where(sums[f"{split}.questions"] > 0, f1, torch.nan))
    return torch.stack(found).nanmean(0)


def _score(sums: dict[str, Tensor]) -> Tensor:
    """Mean of the official figures of the benchmarks that there are questions of."""
    figures = [pope_f1(sums), *(_accuracy(name)(sums) for name in BENCHMARKS[1:])]
    return torch.stack(figures).nanmean(0)


def _drawn(by_image: dict[str, Tensor]) -> dict[str, Tensor]:
    """The sums of ``RESAMPLES`` sets drawn from the images; the same draws for every row over as many images."""
    n, values = len(by_image["questions"]), torch.stack(list(by_image.values()))
    generator, sums = torch.Generator().manual_seed(0), list[Tensor]()
    at_once = max(1, min(RESAMPLES, MOST_WEIGHTS // n))
    while sum(part.shape[1] for part in sums) < RESAMPLES:
        places = torch.randint(n, (at_once, n), generator=generator)
        ones = torch.ones((), dtype=torch.float64).expand(at_once, n)
        weights = torch.zeros(at_once, n, dtype=torch.float64).scatter_add_(1, places, ones)
        sums.append(values @ weights.T)
    drawn = torch.cat(sums, dim=1)[:, :RESAMPLES]
    return dict(zip(by_image, drawn, strict=True))


def _whole(by_image: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: values.sum(0) for name, values in by_image.items()}


def _estimate(figure: Figure) -> Callable[[ImageOutcomes], Estimate]:
    def estimate(outcomes: ImageOutcomes) -> Estimate:
        by_image = counts(outcomes)
        low, high = (100 * figure(_drawn(by_image)).nanquantile(ENDS)).tolist()
        return Estimate(100 * figure(_whole(by_image)).item(), low, high)

    return estimate


def _difference(figure: Figure) -> Callable[[ImageOutcomes, ImageOutcomes], Estimate]:
    def difference(a: ImageOutcomes, b: ImageOutcomes) -> Estimate:
        one, other = counts(a), counts(b)
        check_pair(one["questions"], other["questions"])
        low, high = (100 * (figure(_drawn(one)) - figure(_drawn(other))).nanquantile(ENDS)).tolist()
        return Estimate(100 * (figure(_whole(one)) - figure(_whole(other))).item(), low, high)

    return difference


def _by_image(outcomes: ImageOutcomes) -> Tensor:
    return torch.stack([score.double().nanmean() for score in pieces(outcomes, "score")]).nan_to_num()


def _signed_rank(a: ImageOutcomes, b: ImageOutcomes) -> float:
    """Wilcoxon's p of the mean score of each image."""
    one, other = _by_image(a), _by_image(b)
    check_pair(one, other)
    return paired.signed_rank(one, other)


def _metric(name: str, label: str, figure: Figure, meaning: str = "", shown: bool = True) -> Metric:
    return Metric(
        name,
        label,
        "%",
        higher_is_better=True,
        estimate=_estimate(figure),
        difference=_difference(figure),
        meaning=meaning,
        in_tables=shown,
    )


def _cost(name: str, label: str, meaning: str) -> Metric:
    return Metric(name, label, "", higher_is_better=False, estimate=average(name), decimals=3, meaning=meaning)


declare(
    "vqa",
    [
        Metric(
            "score",
            "score",
            "%",
            higher_is_better=True,
            estimate=_estimate(_score),
            difference=_difference(_score),
            test=_signed_rank,
            meaning="mean of the official figures of the benchmarks; 95 % interval from images drawn with replacement",
            headline=True,
        ),
        _metric("scienceqa", "ScienceQA", _accuracy("scienceqa")),
        _metric("textvqa", "TextVQA", _accuracy("textvqa")),
        _metric("vqav2", "VQAv2", _accuracy("vqav2")),
        _metric("pope_f1", "POPE", pope_f1, "mean F1 of its splits"),
        _metric("pope_accuracy", "POPE accuracy", _accuracy("pope")),
        _metric("yes", "yes", lambda sums: sums["pope.yes"] / sums["pope.questions"], "share of yes in POPE"),
        _metric(
            "agreement",
            "agree",
            lambda sums: sums["same"] / sums["questions"],
            "answers that are those of the uncompressed model",
        ),
        Metric(
            "tokens",
            "tokens",
            "",
            higher_is_better=False,
            estimate=average("tokens"),
            decimals=0,
            meaning="that the language model reads of an image",
        ),
        _cost("tower_gmacs", "tower GMACs", "of the tower alone"),
        _cost("prefill_gmacs", "prefill GMACs", "of the language model, the image and 64 words"),
    ],
)
