"""Every case of the official operators' reference data (folders: TTF_GOLDEN_METHODS, default ../shared)."""

from __future__ import annotations

from importlib import import_module

import pytest

from tests.golden.blocks import FOLDERS, Case, all_cases

CASES = all_cases()


@pytest.mark.real
@pytest.mark.skipif(not CASES, reason=f"needs the reference data of the official operators in {FOLDERS}")
@pytest.mark.parametrize("case", CASES or [None], ids=repr)
def test_operator(case: Case):
    checks = import_module(f"tests.golden.checks.{case.method}").CHECKS
    assert case.kind in checks, f"no check for cases named {case.kind}*"
    checks[case.kind](case)
