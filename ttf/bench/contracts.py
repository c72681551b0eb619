"""The numerical contract of the kernels on one device, case by case, in processes that compile side by side."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed

import torch

from ttf.ops.kernels import HAS_TRITON, INTERPRETED, contract
from ttf.ops.kernels.contract import Case, Outcome
from ttf.results.costs import Row

CASES = {"few": contract.few, "many": contract.many}


def check(device: torch.device, cases: str) -> None:
    """Raise ``ValueError`` where no kernel can run, or for an unknown set of cases."""
    if cases not in CASES:
        raise ValueError(f"cases must be one of {', '.join(CASES)}, got {cases!r}")
    if not HAS_TRITON or not (device.type == "cuda" or INTERPRETED):
        raise ValueError("the kernels need triton and a GPU, or triton's interpreter: TRITON_INTERPRET=1, device=cpu")


def chosen(cases: str, dtypes: Sequence[torch.dtype], largest: int | None) -> list[Case]:
    """The cases of all dtypes, up to a number of tokens."""
    found = [case for dtype in dtypes for case in CASES[cases](dtype)]
    return [case for case in found if largest is None or case.tokens <= largest]


def outcomes(device: torch.device, cases: Sequence[Case], jobs: int | None) -> Iterator[tuple[Case, list[Outcome]]]:
    """What comes of the cases, as it comes.

    Args:
        device: a GPU, or the CPU in triton's interpreter.
        cases: to look at.
        jobs: processes; None: this one alone.
    """
    if not jobs:
        for case in cases:
            yield case, _outcomes(str(device), case)
        return
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(_outcomes, str(device), case): case for case in cases}
        for future in as_completed(futures):
            yield futures[future], future.result()


def _outcomes(device: str, case: Case) -> list[Outcome]:
    try:
        return list(contract.outcomes(torch.device(device), [case]))
    except Exception as error:  # compilers and drivers raise many
        reason = str(error).strip().splitlines() or [""]
        return [Outcome(f"{type(error).__name__}: {reason[0][:200]} in {case}", float("inf"))]


def said(dtype: str, outcomes: list[Outcome]) -> str:
    """What came of one dtype, in a line."""
    broken = [outcome for outcome in outcomes if not outcome.kept]
    worst = max(outcomes, key=lambda outcome: outcome.share)
    verdict = f"{len(broken)} BROKEN, first {broken[0].share:.2g} x {broken[0].what}" if broken else "all kept"
    return f"{dtype}: {len(outcomes)} numbers, {verdict}; largest error {worst.share:.2f} of the allowed one"


def rows(found: list[tuple[Case, list[Outcome]]], place: Row) -> list[Row]:
    """A row a number."""
    numbers = [(str(case.dtype).removeprefix("torch."), outcome) for case, some in found for outcome in some]
    return [{"dtype": dtype, "what": o.what, "share": round(o.share, 4), **place} for dtype, o in numbers]
