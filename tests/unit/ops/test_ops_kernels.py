"""Triton kernels, in triton's interpreter, against the plain operators in float64.

The numerical contract is that of ``ttf.ops.kernels``. The interpreter is a process of its own, so that no other test
sees its environment variable.
"""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.unit.ops import kernels_worker
from ttf.ops import transform
from ttf.ops.kernels.fused import attention_with_lse
from ttf.ops.reduction import DenseReduction, gather_tokens

pytest.importorskip("triton", reason="needs triton")

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LENGTHS = (1, 2, 5, 17, 65)
TOKEN_ERROR = {torch.float16: 1e-3, torch.bfloat16: 8e-3}


class Interpreter:
    """Functions of ``ttf.ops.kernels``, run in the process of the interpreter."""

    def __init__(self, process: ProcessPoolExecutor) -> None:
        self.process = process

    def __call__(self, name: str, *arguments: Any) -> Any:
        module = f"ttf.ops.kernels.{'sums' if name == 'column_sums' else 'transform'}"
        return pickle.loads(self.process.submit(kernels_worker.call, module, name, pickle.dumps(arguments)).result())


@pytest.fixture(scope="module")
def kernels() -> Iterator[Interpreter]:
    kernels_worker.skip_without_loops()
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=kernels_worker.interpret) as process:
        yield Interpreter(process)


@dataclass(frozen=True)
class Heads:
    """One layer of attention: q, k, v as timm's qkv projection gives them (no dimension contiguous but the last)."""

    q: Tensor
    k: Tensor
    v: Tensor
    bias: Tensor | None
    scale: float

    @property
    def logits(self) -> Tensor:
        plain = (self.q.double() * self.scale) @ self.k.double().transpose(-2, -1)
        return plain if self.bias is None else plain + self.bias.double()

    def sums(self, first_row: int) -> Tensor:
        """Eq. 2 from the whole map."""
        return self.logits.softmax(-1)[:, :, first_row:].sum(dim=(1, 2)) / self.q.shape[1]

    @property
    def tolerance(self) -> float:
        finite = self.logits[self.logits > -torch.inf]
        return 3e-7 * (1 + finite.abs().max().item())


def _heads(n: int, dim: int, dtype: torch.dtype, gain: float = 1.0, biased: bool = True, batch: int = 2) -> Heads:
    """Sizes from 0 to 4, the last half of the last image's tokens padding (size 0) but for the first of them."""
    q, k, v = (torch.randn(batch, n, 3, 2, dim) * gain).to(dtype).permute(2, 0, 3, 1, 4)
    bias = (4 * torch.rand(batch, 1, 1, n) + 0.01).log()
    bias[-1, ..., n // 2 + 1 :] = -torch.inf
    return Heads(q, k, v, bias.to(dtype) if biased else None, dim**-0.5)


def _check_sums(kernels: Interpreter, heads: Heads, first_row: int) -> None:
    lse = heads.logits.logsumexp(-1).float()
    answer = kernels("column_sums", heads.q, heads.k, heads.bias, lse, heads.scale, first_row)
    assert answer.dtype == torch.float32
    torch.testing.assert_close(answer.double(), heads.sums(first_row), rtol=heads.tolerance, atol=1e-30)
    if heads.bias is not None:
        assert bool((answer[heads.bias[:, 0, 0] == -torch.inf] == 0).all())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("biased", [True, False])
def test_column_sums_are_those_of_the_map(kernels: Interpreter, n: int, dtype: torch.dtype, biased: bool) -> None:
    _check_sums(kernels, _heads(n, 24, dtype, biased=biased), first_row=min(1, n - 1))


@pytest.mark.parametrize(("dtype", "dim"), [(torch.float32, 80), (torch.float16, 64), (torch.bfloat16, 72)])
def test_column_sums_of_a_real_layer(kernels: Interpreter, dtype: torch.dtype, dim: int) -> None:
    _check_sums(kernels, _heads(197, dim, dtype, gain=2.0, batch=1), first_row=0)


@settings(max_examples=10)
@given(st.integers(1, 70), st.integers(1, 128), st.floats(0.0, 4.0), st.sampled_from(DTYPES), st.data())
def test_column_sums_of_any_shape(
    kernels: Interpreter, n: int, dim: int, gain: float, dtype: torch.dtype, data: st.DataObject
) -> None:
    _check_sums(kernels, _heads(n, dim, dtype, gain), data.draw(st.integers(0, n - 1)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_column_sums_behind_the_fused_attention(kernels: Interpreter, dtype: torch.dtype) -> None:
    """The sums of all tokens make the number of rows, because each row of the map sums to 1."""
    heads = _heads(37, 16, dtype)
    _, lse = attention_with_lse(heads.q, heads.k, heads.v, heads.bias, heads.scale)
    sums = kernels("column_sums", heads.q, heads.k, heads.bias, lse, heads.scale, 2)
    # half-precision attention on a CPU rounds what its log-sum-exp is made of: 6e-5 seen
    torch.testing.assert_close(
        sums.sum(1), torch.full((2,), 35.0), rtol=2e-6 if dtype == torch.float32 else 1e-4, atol=0
    )


def test_too_large_heads_are_refused(kernels: Interpreter) -> None:
    heads = _heads(3, 136, torch.float32)
    with pytest.raises(ValueError, match="up to 128 channels, got 136"):
        kernels("column_sums", heads.q, heads.k, None, heads.logits.logsumexp(-1).float(), heads.scale)


@dataclass(frozen=True)
class Layer:
    """One layer to transform, and what the plain operators make of it in float64."""

    units: Tensor
    index: Tensor
    mass: Tensor | None
    x: Tensor
    kappa: float
    tau: float
    gate: transform.Gate

    @property
    def cosines(self) -> Tensor:
        """(B, n, m) float64."""
        chosen = gather_tokens(self.units, self.index).double()
        return transform.mark_own(transform.similarity(self.units.double(), chosen), self.index)

    @property
    def shares(self) -> Tensor:
        return transform.assign(self.cosines, self.kappa, self.tau, self.gate)

    @property
    def lse(self) -> Tensor:
        closed = 0.0 if self.gate == "zero" else -torch.inf
        return (self.cosines * self.tau).masked_fill(self.cosines < self.kappa, closed).logsumexp(-1)

    @property
    def sizes(self) -> Tensor:
        return (self.shares if self.mass is None else self.shares * self.mass.double().unsqueeze(-1)).sum(1)

    @property
    def tokens(self) -> Tensor:
        mass = None if self.mass is None else self.mass.double()
        return DenseReduction(sizes=self.sizes, assignment=self.shares, mass=mass).down(self.x.double())

    @property
    def arguments(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.units, gather_tokens(self.units, self.index), self.index

    @property
    def unit(self) -> float:
        """e of the contract."""
        return 3e-7 * (4 + self.tau)


def _features(batch: int, n: int, features: int) -> Tensor:
    """Tokens with a common mean, as in a network; three are copies of the first, and the last of many is padding."""
    x = torch.randn(batch, n, features) + 0.7
    x[:, n // 2 : n // 2 + 3] = x[:, :1]
    x[:, 5:][:, -1:] = 0.0
    return x


def _layer(
    n: int, features: int, dtype: torch.dtype = torch.float32, *, kappa: float = 0.35, tau: float = 150.0,
    gate: transform.Gate = "zero", massive: bool = True, batch: int = 2, ratio: float = 0.7, channels: int = 20,
) -> Layer:  # fmt: skip
    """No cosine lies within 1e-6 of kappa, where float32 and float64 may see it on different sides; it moves away."""
    x = _features(batch, n, features)
    index = transform.select(torch.rand(batch, n), max(1, int(ratio * n)))
    mass = 4 * torch.rand(batch, n) if massive else None
    tokens = torch.randn(batch, n + 1, channels).to(dtype)[:, 1:]  # behind a prefix token, and so not contiguous
    layer = Layer(transform.unit_features(x), index, mass, tokens, kappa, tau, gate)
    offsets = torch.arange(0, 1e-3, 2.5e-6, dtype=torch.float64)
    free = [o for o in offsets.tolist() if (layer.cosines - kappa + o).abs().min() > 1e-6]
    return Layer(layer.units, index, mass, tokens, kappa - free[0], tau, gate)


def _check_layer(kernels: Interpreter, layer: Layer) -> None:
    """Log-sum-exp, sizes and tokens, the kernels one behind the other."""
    options = (layer.kappa, layer.tau, layer.gate)
    lse = kernels("assignment_lse", *layer.arguments, *options)
    torch.testing.assert_close(lse.double(), layer.lse, rtol=0, atol=layer.unit)
    y, sizes = kernels("transform_down", *layer.arguments, lse, layer.mass, layer.x, *options)
    assert lse.dtype == sizes.dtype == torch.float32 and y.dtype == layer.x.dtype
    torch.testing.assert_close(sizes.double(), layer.sizes, rtol=layer.unit, atol=1e-3 * layer.unit)
    largest = layer.x.double().abs().max().item()
    close = TOKEN_ERROR.get(layer.x.dtype, layer.unit / 4)
    torch.testing.assert_close(y.double(), layer.tokens, rtol=0, atol=close * largest)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("gate", transform.GATES)
def test_transform_is_the_plain_one(kernels: Interpreter, n: int, dtype: torch.dtype, gate: transform.Gate) -> None:
    """At tau = 150 the best cosine takes nearly all; at 5 also what lies below the gate counts."""
    _check_layer(kernels, _layer(n, 20, dtype, gate=gate, massive=n != 17, tau=150.0 if n in (2, 17) else 5.0))


@pytest.mark.parametrize("dtype", DTYPES)
def test_transform_of_a_real_layer(kernels: Interpreter, dtype: torch.dtype) -> None:
    """197 tokens; 320 channels are two blocks of them."""
    _check_layer(kernels, _layer(197, 40, dtype, batch=1, channels=320))


@settings(max_examples=12)
@given(
    st.integers(1, 70), st.integers(2, 40), st.floats(-1.0, 1.0), st.floats(0.1, 500.0),
    st.sampled_from(transform.GATES), st.floats(0.05, 1.0), st.booleans(), st.integers(0, 999),
)  # fmt: skip
def test_transform_of_any_layer(
    kernels: Interpreter, n: int, features: int, kappa: float, tau: float, gate: transform.Gate, ratio: float,
    massive: bool, seed: int,
) -> None:  # fmt: skip
    torch.manual_seed(seed)
    _check_layer(kernels, _layer(n, features, kappa=kappa, tau=tau, gate=gate, ratio=ratio, massive=massive))


@pytest.mark.parametrize("dtype", DTYPES)
def test_padding_among_the_informative_tokens(kernels: Interpreter, dtype: torch.dtype) -> None:
    """A new token whose own token has the size 0 is what little of the others goes into it, not 0 over 0."""
    layer = _layer(17, 20, dtype)
    assert layer.mass is not None
    layer.mass[:, layer.index[0, 1:4]] = 0.0
    layer.mass[:, -1] = 0.0  # a zero token, which goes into all others alike
    assert bool((layer.sizes < 1e-6).any()) and bool((layer.sizes > 0).all())
    _check_layer(kernels, layer)


def test_dropped_tokens_go_nowhere(kernels: Interpreter) -> None:
    """Gate "mask", and no cosine but a token's own reaches kappa: the others are in no new token."""
    layer = _layer(33, 40, kappa=0.9999, gate="mask", massive=False)
    options = (layer.kappa, layer.tau, layer.gate)
    lse = kernels("assignment_lse", *layer.arguments, *options)
    dropped = layer.lse == -torch.inf
    assert bool(dropped.any()) and torch.equal(lse == -torch.inf, dropped)
    y, sizes = kernels("transform_down", *layer.arguments, lse, None, layer.x, *options)
    torch.testing.assert_close(sizes.sum(1), (~dropped).sum(1).float(), rtol=1e-5, atol=0)
    spoiled = layer.x.masked_fill(dropped.unsqueeze(-1), 1e6)
    again, _ = kernels("transform_down", *layer.arguments, lse, None, spoiled, *options)
    assert torch.equal(again, y)


def test_shares_never_exceed_one(kernels: Interpreter) -> None:
    """A log-sum-exp that misses a term, as where rounding opens a gate in one kernel alone, blows no token up."""
    layer = _layer(17, 20, massive=False)
    arguments = (*layer.arguments, torch.full((2, 17), -1e4), None, layer.x, layer.kappa, layer.tau, layer.gate)
    y, sizes = kernels("transform_down", *arguments)
    assert bool((sizes <= 17).all()) and bool((y.abs() <= layer.x.abs().max() * (1 + 1e-5)).all())


@pytest.mark.parametrize("n", [*LENGTHS, 197])
def test_novelty_is_the_plain_one(kernels: Interpreter, n: int) -> None:
    """With ties, and copies, whose cosine rounds to more than 1."""
    units = transform.unit_features(_features(1 if n > 100 else 2, n, 40))
    scores = torch.rand(units.shape[:2])
    scores[:, n // 3 : n // 3 + 3] = scores[:, :1]
    plain = transform.novelty(scores.double(), transform.similarity(units.double(), units.double()))
    answer = kernels("novelty", units, scores)
    assert bool(((answer - plain).abs() <= 1e-6 * scores).all())
    assert bool((answer >= 0).all())


def test_two_runs_give_the_same_bits(kernels: Interpreter) -> None:
    heads, layer = _heads(40, 24, torch.float16), _layer(40, 24, torch.bfloat16)
    options = (layer.kappa, layer.tau, layer.gate)
    calls: list[tuple[Any, ...]] = [
        ("column_sums", heads.q, heads.k, heads.bias, heads.logits.logsumexp(-1).float(), heads.scale),
        ("transform_down", *layer.arguments, layer.lse.float(), layer.mass, layer.x, *options),
    ]
    for call in calls:
        torch.testing.assert_close(kernels(*call), kernels(*call), rtol=0, atol=0)
