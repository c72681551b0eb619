"""Which blocks reduce, and to how many tokens."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ttf.schedule import Counts, KeepRatio, Late, RemovePerBlock, RemoveShare, thirds


@pytest.mark.parametrize(
    ("depth", "blocks"), [(12, (3, 6, 9)), (16, (4, 8, 12)), (14, (3, 7, 10)), (24, (6, 12, 18)), (32, (8, 16, 24))]
)
def test_default_blocks(depth: int, blocks: tuple[int, ...]) -> None:
    assert thirds(depth) == blocks


@given(st.integers(1, 64))
def test_default_blocks_exist_in_every_model(depth: int) -> None:
    KeepRatio(0.5, thirds(depth)).check(depth)


@pytest.mark.parametrize(
    ("ratio", "n", "rounding", "kept"),
    [
        (0.29, 100, "floor", 29),  # 0.29 * 100 is 28.999999999999996
        (0.29, 100, "ceil", 29),
        (0.07, 100, "ceil", 7),  # 0.07 * 100 is 7.000000000000001
        (0.7, 196, "floor", 137),
        (0.7, 196, "ceil", 138),
        (0.7, 196, "round", 137),
        (0.6, 196, "round", 118),
        (0.25, 1200, "floor", 300),
        (0.01, 10, "floor", 1),
    ],
)
def test_keep_ratio_rounding(ratio: float, n: int, rounding: str, kept: int) -> None:
    assert KeepRatio(ratio, (3,), rounding).kept(3, n) == kept  # type: ignore[arg-type]


@given(st.integers(1, 100), st.integers(1, 1000))
def test_percentages_floor_as_integers_do(percent: int, n: int) -> None:
    assert KeepRatio(percent / 100, (0,)).kept(0, n) == max(1, percent * n // 100)


@given(
    st.floats(0.0, 1.0, exclude_min=True, allow_subnormal=False),
    st.integers(1, 5000),
    st.sampled_from(["floor", "round", "ceil"]),
)
def test_at_least_one_token_stays_and_none_is_added(ratio: float, n: int, rounding: str) -> None:
    assert 1 <= KeepRatio(ratio, (0,), rounding).kept(0, n) <= n  # type: ignore[arg-type]


def test_tokens_are_left_alone_elsewhere() -> None:
    schedule = KeepRatio(0.5, (3, 6))
    assert [schedule.kept(block, 64) for block in range(8)] == [64, 64, 64, 32, 64, 64, 32, 64]
    assert KeepRatio(1.0, (3, 6)).kept(3, 64) == 64


@pytest.mark.parametrize("ratio", [0.0, -0.1, 1.0001, 2.0, math.nan, math.inf])
def test_ratio_out_of_range(ratio: float) -> None:
    with pytest.raises(ValueError, match=r"ratio .*\(0, 1\]"):
        KeepRatio(ratio, (3,))


def test_unknown_rounding_lists_the_valid_ones() -> None:
    with pytest.raises(ValueError, match="floor, round, ceil"):
        KeepRatio(0.7, (3,), "up")  # type: ignore[arg-type]


def test_block_named_twice() -> None:
    with pytest.raises(ValueError, match="twice"):
        KeepRatio(0.7, (3, 3))


@pytest.mark.parametrize("schedule", [KeepRatio(0.7, (3, 12)), RemovePerBlock(2, (12,)), Counts(((12, 4),))])
def test_blocks_out_of_range(schedule: KeepRatio | RemovePerBlock | Counts) -> None:
    with pytest.raises(ValueError, match=r"\[12\].*0 to 11"):
        schedule.check(12)
    schedule.check(13)


def test_negative_block_is_out_of_range() -> None:
    with pytest.raises(ValueError, match=r"\[-1\]"):
        KeepRatio(0.7, (-1,)).check(12)


def test_remove_per_block() -> None:
    schedule = RemovePerBlock(7)
    assert [schedule.kept(block, 256) for block in (0, 31)] == [249, 249]
    assert RemovePerBlock(7, (2,)).kept(1, 256) == 256
    assert RemovePerBlock(0).kept(0, 256) == 256


@given(st.integers(0, 300), st.integers(1, 300))
def test_remove_per_block_never_takes_more_than_half(r: int, n: int) -> None:
    assert RemovePerBlock(r).kept(0, n) == max(n - r, math.ceil(n / 2))


def test_negative_removal() -> None:
    with pytest.raises(ValueError, match=">= 0"):
        RemovePerBlock(-1)


def _removed(schedule: RemovePerBlock, depth: int) -> list[int]:
    schedule.check(depth)
    return [1000 - schedule.kept(block, 1000) for block in range(depth)]


def test_one_number_for_each_block() -> None:
    assert _removed(RemovePerBlock([8, 4]), 4) == [8, 4, 0, 0]
    assert RemovePerBlock([8, 4]) == RemovePerBlock((8, 4))
    assert _removed(RemovePerBlock((8, 4, 2), (0, 2)), 4) == [8, 0, 2, 0]


def test_inflection_shrinks_or_grows_from_block_to_block() -> None:
    assert _removed(RemovePerBlock(11, inflection=-1.0), 12) == list(range(22, -1, -2))
    assert _removed(RemovePerBlock(11, inflection=1.0), 12) == list(range(0, 23, 2))
    assert _removed(RemovePerBlock(3, inflection=0.5, depth=4), 4) == [1, 2, 3, 5]
    assert _removed(RemovePerBlock(11, (0, 11), inflection=-1.0), 12) == [22] + [0] * 11


@given(st.integers(0, 30), st.floats(-1.0, 1.0), st.integers(2, 40))
def test_inflection_keeps_the_total(r: int, inflection: float, depth: int) -> None:
    removed = _removed(RemovePerBlock(r, inflection=inflection, depth=depth), depth)
    assert r * depth - depth <= sum(removed) <= r * depth
    assert removed == sorted(removed, reverse=inflection < 0)


def test_inflection_of_another_depth() -> None:
    RemovePerBlock(4).check(24)
    with pytest.raises(ValueError, match=r"depth 12.*24 blocks"):
        RemovePerBlock(4, inflection=0.5).check(24)


def test_more_numbers_than_blocks() -> None:
    with pytest.raises(ValueError, match=r"3 blocks.*has 2"):
        RemovePerBlock((1, 2, 3)).check(2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r": (3, -1)}, ">= 0"),
        ({"r": 3, "inflection": 1.5}, r"\[-1, 1\]"),
        ({"r": 3, "inflection": math.nan}, r"\[-1, 1\]"),
        ({"r": (3, 4), "inflection": 0.5}, "one r"),
        ({"r": 3, "inflection": 0.5, "depth": 1}, "at least 2"),
    ],
)
def test_removals_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RemovePerBlock(**options)


def test_counts() -> None:
    schedule = Counts(((2, 49), (5, 16)))
    assert [schedule.kept(block, 144) for block in (1, 2, 5)] == [144, 49, 16]
    assert schedule.kept(2, 30) == 30


def test_count_of_nothing() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Counts(((2, 0),))


def test_late_reduces_later_and_leaves_one_token_in_the_last_block():
    late = Late(0.7)
    assert [block for block in range(12) if late.kept(block, 100) < 100] == [4, 6, 8, 11]
    assert (late.kept(4, 196), late.kept(11, 47)) == (137, 1)
    assert [block for block in range(24) if Late(0.5, depth=24).kept(block, 100) == 50] == [8, 12, 16]
    assert all(Late(1.0).kept(block, 100) == 100 for block in range(12))


def test_late_knows_its_depth():
    with pytest.raises(ValueError, match="for 12 blocks, the model has 24"):
        Late(0.7).check(24)
    with pytest.raises(ValueError, match="out of range"):
        Late(0.7, blocks=(12,))


def test_a_share_of_all_tokens_is_removed() -> None:
    schedule = RemoveShare(0.9125)
    assert [schedule.kept(block, 196) for block in (0, 11)] == [179, 179]
    assert RemoveShare(0.9, counted=1).kept(0, 196) == 196 - 19 and RemoveShare(0.9, counted=1).kept(0, 199) == 179
    assert RemoveShare(0.3).kept(0, 9) == 5  # never more than half
    assert RemoveShare(0.7, (3,)).kept(2, 10) == 10 and not RemoveShare(1.0).reduces(0)
    with pytest.raises(ValueError, match="out of range"):
        RemoveShare(0.7, (12,)).check(12)


@pytest.mark.parametrize(
    ("options", "message"), [({"ratio": 0.0}, "in .0, 1."), ({"ratio": 0.5, "counted": -1}, ">= 0")]
)
def test_wrong_shares(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RemoveShare(**options)
