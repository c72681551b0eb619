"""Triton kernels, in triton's interpreter, held to the numerical contract of ``ttf.ops.kernels``.

The interpreter is a process of its own, so that no other test sees its environment variable.
"""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.unit.ops import kernels_worker
from ttf.ops.kernels.contract import Attention, Case, Transform, few, many
from ttf.ops.plain import Reading
from ttf.ops.transform import GATES

pytest.importorskip("triton", reason="needs triton")

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
READING = Reading(0.5, 150.0, "zero", True)


class Interpreter:
    """Functions of ``tests.unit.kernels_worker``, run in the process of the interpreter."""

    def __init__(self, process: ProcessPoolExecutor) -> None:
        self.process = process

    def __call__(self, name: str, *arguments: Any) -> Any:
        """``ttf.ops.kernels.dispatch.name``."""
        return self._run(kernels_worker.call, "ttf.ops.kernels.dispatch", name, pickle.dumps(arguments))

    def check(self, case: Case, seed: int = 0, blocks: bool = False) -> None:
        """Assert that a case keeps the contract; ``blocks``: by the kernels for long sequences, whatever its length."""
        outcomes = self._run(kernels_worker.outcomes, pickle.dumps(case), seed, blocks)
        assert outcomes and not [outcome for outcome in outcomes if not outcome.kept]

    def _run(self, *arguments: Any) -> Any:
        return pickle.loads(self.process.submit(*arguments).result())


@pytest.fixture(scope="module")
def kernels() -> Iterator[Interpreter]:
    kernels_worker.skip_without_loops()
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=kernels_worker.interpret) as process:
        yield Interpreter(process)


def _named(cases: list[Case]) -> Any:
    return pytest.mark.parametrize("case", cases, ids=lambda case: f"{type(case).__name__}-{case.tokens}-{case.dtype}")


def _short(case: Case) -> bool:
    """Whether the interpreter takes seconds: in float32 there are many small tiles."""
    return case.tokens < 200 or (case.dtype == torch.bfloat16 and case.tokens < 300)


@_named([case for dtype in DTYPES for case in many(dtype)[len(few(dtype)) :] if _short(case)])
def test_the_contract_holds(kernels: Interpreter, case: Case) -> None:
    kernels.check(case)


@_named([case for dtype in DTYPES for case in few(dtype)[6:9]])
def test_the_contract_holds_for_a_real_layer(kernels: Interpreter, case: Transform) -> None:
    kernels.check(replace(case, batch=1, channels=min(case.channels, 160)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gate", GATES)
def test_long_sequences_are_worked_on_in_blocks(kernels: Interpreter, dtype: torch.dtype, gate: Any) -> None:
    """Ranks by two kernels, W in several tiles a row, images one by one; the same contract."""
    kernels.check(Transform(68, 24, dtype, 50, gate=gate), blocks=True)
    kernels.check(Transform(40, 24, dtype, 36, 0, 3, tau=5.0, gate=gate, kind="copies"), blocks=True)
    kernels.check(Attention(65, 24, dtype, gate == "zero", first=1), blocks=True)


@settings(max_examples=8)
@given(
    st.integers(1, 70),
    st.integers(1, 128),
    st.floats(0.0, 4.0),
    st.sampled_from(DTYPES),
    st.booleans(),
    st.booleans(),
    st.data(),
)
def test_attention_of_any_shape(
    kernels: Interpreter,
    n: int,
    dim: int,
    gain: float,
    dtype: torch.dtype,
    biased: bool,
    blocks: bool,
    data: st.DataObject,
) -> None:
    case = Attention(n, dim, dtype, biased, data.draw(st.integers(0, n - 1)), gain, batch=1)
    kernels.check(case, blocks=blocks)


@settings(max_examples=12)
@given(
    st.integers(1, 70),
    st.integers(2, 40),
    st.floats(-0.9, 0.9),
    st.floats(0.1, 500.0),
    st.sampled_from(GATES),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["random", "equal", "copies", "padded"]),
    st.sampled_from(DTYPES),
    st.booleans(),
    st.integers(0, 999),
    st.data(),
)
def test_transform_of_any_layer(
    kernels: Interpreter,
    n: int,
    channels: int,
    kappa: float,
    tau: float,
    gate: Any,
    massive: bool,
    redundancy: bool,
    kind: Any,
    dtype: torch.dtype,
    blocks: bool,
    seed: int,
    data: st.DataObject,
) -> None:
    prefix = data.draw(st.integers(0, min(5, n - 1)))
    isolated, keep = data.draw(st.integers(0, prefix)), data.draw(st.integers(prefix + 1, n))
    case = Transform(
        n, channels, dtype, keep, isolated, prefix, tau, gate, redundancy, massive, kind, batch=1, kappa=kappa
    )
    kernels.check(case, seed, blocks)


def _layer(n: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(2, n, 24) + 0.7
    return x.to(dtype), torch.rand(2, n), 4 * torch.rand(2, n - 1)


def test_dropped_tokens_go_nowhere(kernels: Interpreter) -> None:
    """Gate "mask", and no cosine but a token's own reaches kappa: the others are in no new token."""
    x, scores, mass = _layer(33, torch.float32)
    reading = Reading(0.9999, 150.0, "mask", True)
    y, sizes, index = kernels("transform", x, x[:, 1:], scores, mass, 20, 1, reading)
    torch.testing.assert_close(sizes[:, 1:], mass.gather(1, index))
    torch.testing.assert_close(y[:, 1:], x[:, 1:].gather(1, index.unsqueeze(-1).expand(-1, -1, 24)))
    dropped = torch.ones(2, 33, dtype=torch.bool).scatter(1, index + 1, False)
    dropped[:, 0] = False
    spoiled = x.masked_fill(dropped.unsqueeze(-1), 1e6)
    again, *_ = kernels("transform", spoiled, x[:, 1:], scores, mass, 20, 1, reading)
    assert torch.equal(again, y)


@pytest.mark.parametrize("dtype", DTYPES)
def test_new_tokens_that_little_goes_into_are_means_all_the_same(kernels: Interpreter, dtype: torch.dtype) -> None:
    """An informative token of mass 0 is what little of the others goes into it, not 0 over 0, in float16 either."""
    x, scores, mass = _layer(17, dtype)
    x = x + 1.5
    x[:, 1:4] *= -1.0  # away from all others
    scores[:, 1:4], mass[:, :3] = 5.0, 0.0
    y, sizes, _ = kernels("transform", x, x[:, 1:], scores, mass, 9, 1, Reading(-1.0, 10.0, "zero", False))
    assert bool((sizes[:, 1:4] < 1e-4).all()) and bool((sizes > 0).all())
    assert bool((y.float().abs().amax(-1) > 0.1).all()) and bool((y.float().abs() <= x.float().abs().max()).all())


@pytest.mark.parametrize("redundancy", [False, True])
@pytest.mark.parametrize("blocks", [False, True])
def test_scores_that_are_no_numbers_rank_first_as_in_topk(kernels: Interpreter, redundancy: bool, blocks: bool) -> None:
    x, scores, _ = _layer(17, torch.float32)
    scores[0, [3, 8, 9, 12]] = float("nan")
    call = (x, x, scores, None, 6, 0, Reading(0.5, 30.0, "zero", redundancy))
    index = kernels._run(kernels_worker.blocked, "transform", pickle.dumps(call), blocks)[2]
    assert {3, 8, 9, 12} <= set(index[0].tolist())
    assert index[0].tolist() == sorted(set(index[0].tolist()))


def test_equal_scores_go_to_the_first_tokens(kernels: Interpreter) -> None:
    x, _, _ = _layer(17, torch.float32)
    for blocks in (False, True):
        call = (x, x[:, 1:], torch.ones(2, 17), None, 9, 2, READING)
        index = kernels._run(kernels_worker.blocked, "transform", pickle.dumps(call), blocks)[2]
        assert index.tolist() == [list(range(8))] * 2


def test_rows_may_lie_anywhere_in_memory(kernels: Interpreter) -> None:
    x, scores, mass = _layer(17, torch.float32)
    wide = torch.randn(2, 17, 48)[..., ::2].copy_(x)
    views = (wide, wide[:, 1:], scores.t().contiguous().t(), mass.t().contiguous().t())
    for got, expected in zip(
        kernels("transform", *views, 9, 1, READING),
        kernels("transform", x, x[:, 1:], scores, mass, 9, 1, READING),
        strict=True,
    ):
        assert torch.equal(got, expected)
    q, k, v = torch.randn(3, 2, 2, 17, 16)
    bias = torch.rand(2, 1, 1, 34)[..., ::2]
    columns = [part.transpose(2, 3).contiguous().transpose(2, 3) for part in (q, k, v)]
    got = kernels("summed_attention", *columns, bias, 0.3, 1)
    expected = kernels("summed_attention", q, k, v, bias.contiguous(), 0.3, 1)
    assert torch.equal(got[0], expected[0]) and torch.equal(got[1], expected[1])
    assert got[0].transpose(1, 2).is_contiguous()


def test_a_block_of_padding_is_passed_over(kernels: Interpreter) -> None:
    """All of the first block of keys at minus infinity, as no model with a class token has it."""
    q, k, v = torch.randn(3, 1, 1, 70, 16)
    bias = torch.zeros(1, 1, 1, 70)
    bias[..., :64] = -torch.inf
    out, sums = kernels("summed_attention", q, k, v, bias, 0.3, 0)
    logits = (0.3 * q) @ k[:, :, 64:].transpose(2, 3)
    torch.testing.assert_close(out, logits.softmax(-1) @ v[:, :, 64:])
    torch.testing.assert_close(sums[:, 64:], logits.softmax(-1).sum((1, 2)))
    assert not sums[:, :64].any()


def test_empty_batches(kernels: Interpreter) -> None:
    q = torch.zeros(0, 2, 5, 8)
    out, sums = kernels("summed_attention", q, q, q, None, 0.3, 0)
    assert out.shape == q.shape and sums.shape == (0, 5)
    assert kernels("attention", q, q, q, torch.zeros(0, 1, 1, 5), 0.3).shape == q.shape
    x = torch.zeros(0, 5, 8)
    y, sizes, index = kernels("transform", x, x[:, 1:], torch.zeros(0, 5), None, 3, 1, READING)
    assert (y.shape, sizes.shape, index.shape) == ((0, 3, 8), (0, 3), (0, 2))


def test_two_runs_give_the_same_bits(kernels: Interpreter) -> None:
    x, scores, mass = _layer(40, torch.bfloat16)
    q, k, v = torch.randn(3, 1, 2, 40, 24).half()
    for name, arguments in (
        ("summed_attention", (q, k, v, None, 0.2, 0)),
        ("transform", (x, x[:, 1:], scores, mass, 20, 1, READING)),
    ):
        once, twice = kernels(name, *arguments), kernels(name, *arguments)
        assert all(torch.equal(a, b) for a, b in zip(once, twice, strict=True))
