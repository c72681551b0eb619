"""Which cards may run the kernels: those that keep the contract, found out once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ttf.measure.provenance import operators_used
from ttf.methods import TokenTransform
from ttf.ops import backend, backends, runner
from ttf.ops.kernels import available, contract, trust
from ttf.ops.kernels.contract import Outcome

GPU, HALF = torch.device("cuda"), torch.bfloat16
Card = Callable[..., list[int]]


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Card]:
    """A made-up card on which the contract has some outcomes; what is returned grows by one number a look."""
    pytest.importorskip("triton", reason="needs triton")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(trust, "_is_there", lambda: True)  # torch itself is not to look for one
    monkeypatch.setattr(backends, "_devices", lambda: ("cuda",))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "a card")
    trust._known.clear()

    def make(share: float = 0.5, error: Exception | None = None, capability: tuple[int, int] = (9, 0)) -> list[int]:
        looks: list[int] = []

        def outcomes(device: torch.device, cases: Any) -> list[Outcome]:
            looks.append(len(cases))
            if error is not None:
                raise error
            return [Outcome("sizes", 0.1), Outcome("tokens", share)]

        monkeypatch.setattr(contract, "outcomes", outcomes)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
        return looks

    yield make
    trust._known.clear()


def test_a_card_that_keeps_the_contract_runs_the_kernels(card: Card, tmp_path: Path) -> None:
    looks = card()
    assert runner(GPU, HALF) == runner(GPU, HALF, HALF) == "triton" and len(looks) == 1
    assert runner(GPU, torch.float32) == "triton" and len(looks) == 2  # every dtype has code of its own
    assert runner(GPU, torch.float64) == "plain"
    trust._known.clear()  # another process
    assert runner(GPU, HALF) == "triton" and len(looks) == 2
    kept = [json.loads(file.read_text()) for file in (tmp_path / "ttf").glob("kernels-*.json")]
    assert {one["dtype"] for one in kept} == {"torch.bfloat16", "torch.float32"}
    assert all(one["device"] == "a card" and one["broken"] == [] for one in kept)
    with backend("plain"):
        assert runner(GPU, HALF) == "plain"


@pytest.mark.parametrize("share", [1.5, float("nan")])
def test_a_card_that_breaks_it_runs_plain_operators_and_says_so(card: Card, share: float) -> None:
    looks = card(share)
    with pytest.warns(UserWarning, match=r"torch's own operators run on a card in torch.bfloat16.*of tokens"):
        assert runner(GPU, HALF) == "plain"
    trust._known.clear()
    assert runner(GPU, HALF) == "plain" and len(looks) == 1
    with backend("triton"):
        assert runner(GPU, HALF) == "triton"  # whoever asks for them gets them


def test_so_does_one_that_cannot_compile_them(card: Card) -> None:
    card(error=RuntimeError("out of resource: shared memory\nand a traceback"))
    with pytest.warns(UserWarning, match="RuntimeError: out of resource: shared memory$"):
        assert runner(GPU, HALF) == "plain"


def test_older_cards_are_not_asked(card: Card) -> None:
    looks = card(capability=(7, 5))
    assert runner(GPU, HALF) == "plain" and not looks


def test_a_spoilt_outcome_is_found_anew(card: Card, tmp_path: Path) -> None:
    looks = card()
    assert runner(GPU, HALF) == "triton"
    for file in (tmp_path / "ttf").glob("kernels-*.json"):
        file.write_text("{}")
    trust._known.clear()
    assert runner(GPU, HALF) == "triton" and len(looks) == 2


def test_without_a_cache_every_process_looks(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = card()
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    assert runner(GPU, HALF) == "triton" and len(looks) == 1


def test_a_graph_that_is_captured_is_no_place_to_look(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    card()
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="run the model once before"):
        runner(GPU, HALF)


def test_compiled_code_takes_the_answer_as_a_constant(card: Card) -> None:
    looks = card()

    def run(x: torch.Tensor) -> torch.Tensor:
        return x + (1 if runner(GPU, HALF) == "triton" else 2)

    torch.compiler.reset()
    assert torch.compile(run, fullgraph=True, backend="eager")(torch.zeros(1)).item() == 1
    torch.compiler.reset()
    assert len(looks) == 1


def test_rows_say_which_operators_ran(card: Card) -> None:
    card()
    assert operators_used(GPU, HALF, TokenTransform()) == operators_used(GPU, HALF) == "Triton operators"
    for reading in ({"selection": "pool"}, {"similarity": "euclidean"}, {"normalise": False}):
        assert operators_used(GPU, HALF, TokenTransform(**reading)) == "Triton operators, plain transform"
        assert operators_used(GPU, torch.float64, TokenTransform(**reading)) == "plain operators"


def test_the_environment_switches_them_off(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = card()
    monkeypatch.setattr("ttf.ops.kernels.SWITCHED_OFF", True)
    assert not available(GPU) and runner(GPU, HALF) == "plain" and not looks
    with pytest.raises(ValueError, match="without TTF_KERNELS=0"):
        backend("triton")
    assert backends._chosen == "auto"
