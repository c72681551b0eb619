"""The Token Transforming operator (Eq. 2-8): its invariants, and a slow reading of the equations beside it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from ttf.methods import LayerView, TokenTransform, build
from ttf.ops import transform
from ttf.ops.fused import TransformReduction
from ttf.ops.recovery import nearest_token
from ttf.ops.reduction import DenseReduction

OPTIONS: dict[str, st.SearchStrategy[Any]] = {
    "kappa": st.floats(-1.0, 1.0),
    "tau": st.floats(0.1, 500.0),
    "gate": st.sampled_from(["zero", "mask"]),
    "feature": st.sampled_from(["x", "norm", "keys", "xk"]),
    "selection": st.sampled_from(["informative", "redundancy"]),
    "accumulate": st.booleans(),
    "isolate": st.booleans(),
}


@dataclass(frozen=True)
class Case:
    """One layer to reduce: the method, what the layer knows, and how many tokens to keep."""

    method: TokenTransform
    view: LayerView
    keep: int

    def reduce(self) -> DenseReduction:
        reduction = self.method.reduce(self.view, self.keep)
        return reduction.dense() if isinstance(reduction, TransformReduction) else reduction

    @property
    def mass(self) -> Tensor:
        """(B, N) what the old tokens weigh."""
        if self.view.sizes is None or not self.method.accumulate:
            return torch.ones(self.view.x.shape[:2])
        return self.view.sizes


def _view(batch: int, patches: int, channels: int, prefix: int, sized: bool, seed: int) -> LayerView:
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, prefix + patches, channels)
    x, keys, normed = (torch.randn(shape, generator=generator) + 0.5 for _ in range(3))
    scores = torch.rand(shape[:2], generator=generator)
    sizes = 0.5 + 4 * torch.rand(shape[:2], generator=generator)
    sizes[:, :prefix] = 1.0
    return LayerView(x, prefix, sizes if sized else None, scores, keys, normed)


@st.composite
def cases(draw: st.DrawFn, **fixed: Any) -> Case:
    """Any method, any layer; ``fixed`` options keep their value."""
    options = {name: fixed[name] if name in fixed else draw(values) for name, values in OPTIONS.items()}
    batch, patches, channels, prefix = (draw(st.integers(*span)) for span in ((1, 3), (2, 14), (2, 6), (0, 3)))
    view = _view(batch, patches, channels, prefix, draw(st.booleans()), draw(st.integers(0, 9999)))
    ratio = draw(st.floats(0.05, 0.99))
    return Case(TokenTransform(**options), view, prefix + max(1, math.floor(ratio * patches)))


def _cosine(a: list[float], b: list[float]) -> float:
    dot = sum(p * q for p, q in zip(a, b, strict=True))
    return dot / math.sqrt(sum(p * p for p in a) * sum(q * q for q in b))


def _cosines(case: Case, image: int) -> list[list[float]]:
    """Eq. 4 between all tokens of one image."""
    view = case.view
    parts = {"x": [view.x], "norm": [view.normed], "keys": [view.keys], "xk": [view.x, view.keys]}
    chosen = [part[image].double().tolist() for part in parts[case.method.feature]]  # type: ignore[index]
    tokens = range(len(chosen[0]))
    return [[sum(_cosine(f[i], f[j]) for f in chosen) / len(chosen) for j in tokens] for i in tokens]


def _ranks(h: list[float], cosines: list[list[float]], selection: str, prefix: int) -> list[float]:
    """Eq. 2's H, or H times what no more informative patch already says."""
    if selection == "informative":
        return h
    ranks = list(h)
    for j in range(prefix, len(h)):
        above = [cosines[i][j] for i in range(prefix, len(h)) if h[i] > h[j]]
        ranks[j] = h[j] * (1.0 - max(above, default=-1.0))
    return ranks


def _share(cosines: list[float], own: int | None, method: TokenTransform) -> list[float]:
    """Eq. 3 and 5 for one old token: its shares of the new ones."""
    cosines = [1.0 if i == own else c for i, c in enumerate(cosines)]
    below = 0.0 if method.gate == "zero" else -math.inf
    logits = [method.tau * c if c >= method.kappa else below for c in cosines]
    highest = max(logits)
    if highest == -math.inf:
        return [0.0] * len(logits)
    weights = [math.exp(logit - highest) for logit in logits]
    return [weight / sum(weights) for weight in weights]


def _by_the_equations(case: Case, image: int) -> tuple[list[int], Tensor, Tensor]:
    """Informative tokens, W (M, N) and sizes (M,) of one image, token by token in double precision."""
    view, method, prefix = case.view, case.method, case.view.prefix
    cosines, h, tokens = _cosines(case, image), view.scores[image].tolist(), range(view.x.shape[1])  # type: ignore[index]
    ranks = _ranks(h, cosines, method.selection, prefix)
    best = sorted(range(prefix, len(h)), key=lambda j: -ranks[j])[: case.keep - prefix]
    kept = [*range(prefix), *sorted(best)]
    first = prefix if method.isolate else 0
    m = torch.zeros(len(kept), len(h), dtype=torch.float64)
    for j in tokens:
        if j < first:
            m[j, j] = 1.0
            continue
        own = kept.index(j) - first if j in kept else None
        shares = _share([cosines[i][j] for i in kept[first:]], own, method)
        m[first:, j] = torch.tensor(shares, dtype=torch.float64) * case.mass[image, j].item()
    return kept, m / m.sum(1, keepdim=True), m.sum(1)


@given(cases())
def test_every_reading_follows_the_equations(case: Case) -> None:
    reduction = case.reduce()
    assert reduction.kept is not None
    for image in range(case.view.x.shape[0]):
        kept, weights, sizes = _by_the_equations(case, image)
        assert reduction.kept[image].tolist() == kept
        torch.testing.assert_close(reduction.matrix()[image].double(), weights, atol=2e-4, rtol=1e-3)
        torch.testing.assert_close(reduction.sizes[image].double(), sizes, atol=2e-4, rtol=1e-3)


@given(cases())
def test_paper_preset_follows_the_literal_equations(case: Case) -> None:
    method = build("token_transform", preset="paper")
    literal = TokenTransform(0.5, 150.0, False, False, "x", "zero", "all", "informative")
    reduction = method.reduce(case.view, case.keep)
    for image in range(case.view.x.shape[0]):
        kept, weights, sizes = _by_the_equations(replace(case, method=literal), image)
        assert reduction.kept[image].tolist() == kept  # type: ignore[index]
        torch.testing.assert_close(reduction.matrix()[image].double(), weights, atol=2e-4, rtol=1e-3)
        torch.testing.assert_close(reduction.sizes[image].double(), sizes, atol=2e-4, rtol=1e-3)


@given(cases())
def test_matrix_is_row_stochastic(case: Case) -> None:
    weights = case.reduce().matrix()
    assert weights.shape == (case.view.x.shape[0], case.keep, case.view.x.shape[1])
    assert bool((weights >= 0).all())
    torch.testing.assert_close(weights.sum(2), torch.ones(weights.shape[:2]), atol=1e-5, rtol=0)


@given(cases(gate="zero"))
def test_no_token_is_lost(case: Case) -> None:
    reduction = case.reduce()
    torch.testing.assert_close(reduction.assignment.sum(2), torch.ones(reduction.assignment.shape[:2]))
    torch.testing.assert_close(reduction.sizes.sum(1), case.mass.sum(1), atol=1e-4, rtol=1e-5)


@given(cases(gate="mask"))
def test_masked_tokens_are_kept_whole_or_dropped_whole(case: Case) -> None:
    reduction = case.reduce()
    total = reduction.assignment.sum(2)
    assert bool(((total - 1).abs() < 1e-5).logical_or(total == 0).all())
    assert bool((reduction.sizes.sum(1) <= case.mass.sum(1) * (1 + 1e-5)).all())


def test_dropped_tokens_have_finite_gradients() -> None:
    cosines = torch.tensor([[[0.9, 0.1], [0.2, -0.3]]], requires_grad=True)
    shares = transform.assign(cosines, kappa=0.5, tau=2.0, gate="mask")
    assert shares.tolist() == [[[1.0, 0.0], [0.0, 0.0]]]
    shares.square().sum().backward()
    assert bool(torch.isfinite(cosines.grad).all())  # type: ignore[arg-type]


@given(cases(isolate=True))
def test_isolated_prefix_tokens_keep_to_themselves(case: Case) -> None:
    reduction, prefix = case.reduce(), case.view.prefix
    weights, own = reduction.matrix(), torch.eye(prefix).expand(case.view.x.shape[0], -1, -1)
    assert torch.equal(weights[:, :prefix, :prefix], own)
    assert weights[:, :prefix, prefix:].count_nonzero() == weights[:, prefix:, :prefix].count_nonzero() == 0
    assert torch.equal(reduction.sizes[:, :prefix], torch.ones(own.shape[:2]))
    assert torch.equal(reduction.down(case.view.x)[:, :prefix], case.view.x[:, :prefix])


@given(cases())
def test_kept_tokens_are_in_raster_order_with_the_prefix_first(case: Case) -> None:
    kept = case.reduce().kept
    assert kept is not None
    assert bool((kept.diff(dim=1) > 0).all())
    assert bool((kept[:, : case.view.prefix] == torch.arange(case.view.prefix)).all())


@given(cases())
def test_down_applies_the_matrix(case: Case) -> None:
    reduction = case.reduce()
    torch.testing.assert_close(reduction.down(case.view.x), reduction.matrix() @ case.view.x, atol=1e-5, rtol=1e-5)


def _placed(case: Case, order: Tensor) -> Tensor:
    """W of the permuted layer, (B, N, N): the row of an informative token and all columns at their old places."""
    view = case.view
    take = {
        name: value[:, order]
        for name in ("x", "sizes", "scores", "keys", "normed")
        if (value := getattr(view, name)) is not None
    }
    reduction = replace(case, view=replace(view, **take)).reduce()
    assert reduction.kept is not None
    placed = torch.zeros(view.x.shape[0], order.numel(), order.numel())
    for image, matrix in enumerate(reduction.matrix()):
        placed[image, order[reduction.kept[image]][:, None], order] = matrix
    return placed


@given(cases(), st.integers(0, 999))
def test_permuting_patches_permutes_the_answer(case: Case, seed: int) -> None:
    prefix, tokens = case.view.prefix, case.view.x.shape[1]
    shuffled = torch.randperm(tokens - prefix, generator=torch.Generator().manual_seed(seed)) + prefix
    order = torch.cat((torch.arange(prefix), shuffled))
    torch.testing.assert_close(_placed(case, order), _placed(case, torch.arange(tokens)), atol=1e-4, rtol=1e-4)


@given(cases(kappa=-1.0, tau=1e7))
def test_high_temperature_makes_the_matrix_exclusive(case: Case) -> None:
    weights = case.reduce().matrix()
    isolated = case.view.prefix if case.method.isolate else 0
    assert bool(((weights[:, isolated:, isolated:] > 0).sum(1) == 1).all())


@given(cases(tau=1e7))
def test_keeping_every_token_changes_nothing(case: Case) -> None:
    assume(case.method.kappa < 0.999)
    tokens = case.view.x.shape[1]
    reduction = replace(case, keep=tokens).reduce()
    assert torch.equal(reduction.kept, torch.arange(tokens).expand(case.view.x.shape[0], -1))  # type: ignore[arg-type]
    torch.testing.assert_close(reduction.down(case.view.x), case.view.x)


@given(cases(kappa=1.0, tau=150.0))
def test_strictest_gate_leaves_informative_tokens_themselves(case: Case) -> None:
    """No cosine but a token's own reaches 1: an informative token goes into itself alone."""
    reduction = case.reduce()
    assert reduction.kept is not None
    own = reduction.kept[:, reduction.prefix :] - reduction.prefix
    shares = reduction.assignment.gather(1, own.unsqueeze(-1).expand(-1, -1, own.shape[1]))
    torch.testing.assert_close(shares, torch.eye(own.shape[1]).expand_as(shares), atol=1e-6, rtol=0)


@given(st.integers(2, 64), st.integers(0, 999))
def test_loosest_gate_lets_everything_through(channels: int, seed: int) -> None:
    """No cosine is below -1, that of opposite tokens neither."""
    generator = torch.Generator().manual_seed(seed)
    line = torch.randn(1, 1, channels, generator=generator) * torch.randn(1, 12, 1, generator=generator)
    units = transform.unit_features(line)
    cosines = transform.similarity(units, units[:, :5])
    shares = transform.assign(cosines, kappa=-1.0, tau=3.0)
    torch.testing.assert_close(shares, torch.softmax(3.0 * cosines, dim=-1))


@given(cases(), st.sampled_from([torch.float16, torch.bfloat16, torch.float32]))
def test_large_tokens_stay_finite_in_every_precision(case: Case, dtype: torch.dtype) -> None:
    view, method = case.view, replace(case.method, tau=150.0)
    big = {name: 1e3 * getattr(view, name).to(dtype) for name in ("x", "keys", "normed")}
    reduction = method.reduce(replace(view, **big), case.keep)
    out = reduction.down(big["x"])
    reduction = replace(reduction, nearest=nearest_token(big["x"], out, view.prefix))
    assert out.dtype == dtype
    assert reduction.sizes.dtype == torch.float32
    assert bool(torch.isfinite(out).all())
    assert bool(torch.isfinite(reduction.up(out)).all())


@given(cases(), st.integers(0, 999))
def test_equal_and_empty_tokens_leave_no_hole(case: Case, seed: int) -> None:
    """Copies of a token and tokens of zeros: every new token is still a mean of old ones."""
    view, generator = case.view, torch.Generator().manual_seed(seed)
    rough = {
        name: torch.randint(-1, 2, getattr(view, name).shape, generator=generator).float()
        for name in ("x", "keys", "normed")
    }
    weights = replace(case, view=replace(view, **rough)).reduce().matrix()
    torch.testing.assert_close(weights.sum(2), torch.ones(weights.shape[:2]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("gate", ["zero", "mask"])
def test_informative_token_of_zeros_stays_itself(gate: str) -> None:
    view = _view(1, 6, 4, 0, False, 0)
    view.x[0, 2], view.scores[0, 2] = 0.0, 9.0  # type: ignore[index]
    reduction = TokenTransform(feature="x", gate=gate, selection="informative").reduce(view, 3)  # type: ignore[arg-type]
    assert reduction.kept is not None
    row = reduction.matrix()[0, reduction.kept[0].tolist().index(2)]
    torch.testing.assert_close(row.sum(), torch.tensor(1.0))
    assert row[2] > 0.0


@given(cases())
def test_autocast_does_not_touch_the_decisions(case: Case) -> None:
    plain = case.reduce()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = case.reduce()
        out = cast.down(case.view.x)
    assert torch.equal(plain.kept, cast.kept)  # type: ignore[arg-type]
    assert cast.sizes.dtype == torch.float32
    torch.testing.assert_close(cast.sizes, plain.sizes)
    assert out.dtype == case.view.x.dtype


@pytest.mark.parametrize("name", ["x", "scores"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_broken_values_are_refused(name: str, value: float) -> None:
    view = _view(2, 8, 4, 1, False, 0)
    getattr(view, name)[1, 3] = value
    with pytest.raises(ValueError, match="NaN or infinite"):
        TokenTransform().reduce(view, 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kappa": 1.01}, r"kappa .*\[-1, 1\], got 1.01"),
        ({"kappa": -1.01}, r"kappa .*\[-1, 1\], got -1.01"),
        ({"kappa": math.nan}, r"kappa .*\[-1, 1\]"),
        ({"tau": 0.0}, "tau .*positive and finite"),
        ({"tau": -150.0}, "tau .*positive and finite"),
        ({"tau": math.inf}, "tau .*positive and finite"),
        ({"tau": math.nan}, "tau .*positive and finite"),
        ({"gate": "soft"}, "gate must be one of zero, mask"),
        ({"feature": "values"}, "feature must be one of x, norm, keys, xk"),
        ({"selection": "random"}, "selection must be one of informative, redundancy"),
        ({"score_step": 0}, "score_step is a number of rows and must be at least 1, got 0"),
        ({"score_rows": "cls"}, "score_rows must be one of all, patch, class"),
    ],
)
def test_options_out_of_range_name_what_is_valid(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TokenTransform(**options)
