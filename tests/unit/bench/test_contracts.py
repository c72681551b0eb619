"""The contract of the kernels as a command."""

from __future__ import annotations

import math

import pytest
import torch

from ttf.bench import contracts
from ttf.ops.kernels.contract import Outcome, Transform, few, many

CPU = torch.device("cpu")
CASE = Transform(9, 8, torch.bfloat16, 5)


def test_it_needs_a_gpu_or_the_interpreter() -> None:
    with pytest.raises(ValueError, match="TRITON_INTERPRET=1, device=cpu$"):
        contracts.check(CPU, "few")
    with pytest.raises(ValueError, match="cases must be one of few, many, got 'all'"):
        contracts.check(CPU, "all")


def test_cases_are_those_of_all_dtypes_up_to_a_length() -> None:
    dtypes = (torch.bfloat16, torch.float16)
    assert contracts.chosen("few", dtypes, None) == [*few(dtypes[0]), *few(dtypes[1])]
    short = contracts.chosen("many", dtypes, 20)
    assert {case.dtype for case in short} == set(dtypes) and max(case.tokens for case in short) <= 20
    assert all(case in contracts.chosen("many", dtypes, None) for case in many(dtypes[0]))


def test_a_kernel_that_does_not_run_breaks_it() -> None:
    """Here there is no card, and no interpreter either."""
    pytest.importorskip("triton", reason="needs triton")
    ((case, (outcome,)),) = contracts.outcomes(CPU, [CASE], None)
    assert case is CASE and not outcome.kept and math.isinf(outcome.share) and "Transform(tokens=9" in outcome.what


def test_what_is_said() -> None:
    kept, broken = Outcome("sizes", 0.25), Outcome("tokens", 3.0)
    assert contracts.said("float16", [kept]) == "float16: 1 numbers, all kept; largest error 0.25 of the allowed one"
    assert "1 BROKEN, first 3 x tokens" in contracts.said("float16", [kept, broken])
    assert contracts.rows([(CASE, [kept])], {"device": "a card"}) == [
        {"dtype": "bfloat16", "what": "sizes", "share": 0.25, "device": "a card"}
    ]
