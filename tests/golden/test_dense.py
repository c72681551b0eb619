"""Every case of the reference data of dense prediction (folder: TTF_GOLDEN_DENSE, default ../shared/golden/dense)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.golden.dense import FOLDER, all_cases, reason_to_skip

CASES = [pytest.param(stem, check, id=f"{stem}-{name}") for stem, name, check in all_cases()]


@pytest.mark.real
@pytest.mark.skipif(not CASES, reason=f"needs the reference data of dense prediction in {FOLDER}")
@pytest.mark.parametrize(("stem", "check"), CASES or [("", None)])
def test_dense(stem: str, check: Callable[[], None] | None):
    if check is None and (reason := reason_to_skip(stem)):
        pytest.skip(reason)
    assert check is not None, f"no check for files named {stem}*"
    check()
