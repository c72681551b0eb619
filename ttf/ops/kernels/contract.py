"""The numerical contract of the kernels as numbers: largest errors over those allowed, against float64.

Random and adversarial inputs (all tokens equal, copies, ties, padding, zero tokens), on the device that is to be
looked at. Imports torch alone. Shapes: B batch, H heads, N tokens, D head dimension, n tokens that take part.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ttf.ops.kernels import INTERPRETED, dispatch
from ttf.ops.plain import Reading, with_isolated
from ttf.ops.reduction import DenseReduction, gather_tokens
from ttf.ops.transform import Gate, assign, mark_own, novelty, similarity

# of weights and answer, once each; the interpreter cuts bfloat16 off where a card rounds, which is twice as far
ROUNDED = {torch.float16: 1e-3, torch.bfloat16: 16e-3 if INTERPRETED else 8e-3}
COSINE = 3e-7
SMALLEST = 1e-30
EXACT = 64  # features; beyond, tensor cores add to the error of a cosine
Kind = Literal["random", "equal", "copies", "padded"]


@dataclass(frozen=True)
class Outcome:
    """One number of the contract.

    Attributes:
        what: in words.
        share: the largest error over the allowed one; NaN where the answer is none.
    """

    what: str
    share: float

    @property
    def kept(self) -> bool:
        return self.share <= 1.0


def _largest(error: Tensor, allowed: Tensor | float) -> float:
    shares = (error / (allowed + SMALLEST)).flatten()  # of nothing but zeros no error is allowed, and there is none
    return float(shares.max()) if len(shares) else 0.0


@dataclass(frozen=True)
class Attention:
    """Queries, keys and values as timm's projection gives them, sizes from 0 to 4 as a bias.

    Attributes:
        tokens, dim, dtype: of the heads.
        biased: with log s; then the last half of the last image's tokens are padding, but for one.
        first: the first query that counts.
        gain: of queries and keys; logits grow with its square.
        batch, heads: how many.
    """

    tokens: int
    dim: int
    dtype: torch.dtype
    biased: bool
    first: int = 0
    gain: float = 1.0
    batch: int = 2
    heads: int = 2

    def outcomes(self, device: torch.device, generator: torch.Generator) -> Iterator[Outcome]:
        """Errors of both operators."""
        shape = (self.batch, self.tokens, 3, self.heads, self.dim)
        q, k, v = (torch.randn(shape, generator=generator) * self.gain).to(device, self.dtype).permute(2, 0, 3, 1, 4)
        bias = self._bias(generator, device) if self.biased else None
        scale = self.dim**-0.5
        logits = (q.double() * scale) @ k.double().transpose(-2, -1)
        logits = logits if bias is None else logits + bias.double()
        finite = float(logits[logits > -torch.inf].abs().max()) if logits.numel() else 0.0
        attention = logits.softmax(-1)
        out, sums = dispatch.summed_attention(q, k, v, bias, scale, self.first)
        expected = attention[:, :, self.first :].sum(dim=(1, 2)) / self.heads
        yield Outcome(f"column sums {self}", self._sums(sums, expected, 3e-7 * (1 + finite)))
        allowed = ROUNDED.get(self.dtype, 1e-6 * (1 + finite)) * (float(v.abs().max()) if v.numel() else 1.0)
        tokens = attention @ v.double()
        yield Outcome(f"tokens beside column sums {self}", _largest((out.double() - tokens).abs(), allowed))
        if bias is not None:
            alone = dispatch.attention(q, k, v, bias, scale)
            yield Outcome(f"tokens {self}", _largest((alone.double() - tokens).abs(), allowed))

    def _bias(self, generator: torch.Generator, device: torch.device) -> Tensor:
        bias = (4 * torch.rand(self.batch, 1, 1, self.tokens, generator=generator) + 0.01).log()
        bias[-1, ..., self.tokens // 2 + 1 :] = -torch.inf
        return bias.to(device, self.dtype)

    @staticmethod
    def _sums(sums: Tensor, expected: Tensor, relative: float) -> float:
        """Padding has the sum 0 exactly."""
        error = (sums.double() - expected).abs()
        return _largest(error, relative * expected)


@dataclass(frozen=True)
class Transform:
    """Tokens with a common mean, as in a network.

    Attributes:
        tokens, channels, dtype: of x.
        keep: new tokens.
        isolated, prefix: tokens in front that pass through, and those that are kept in any case.
        tau, gate, redundancy: of the reading; kappa is put where no cosine is near.
        massive: old tokens have masses.
        kind: "equal": all tokens are; "copies": some are, with equal scores; "padded": zero tokens of mass 0.
        batch: images.
    """

    tokens: int
    channels: int
    dtype: torch.dtype
    keep: int
    isolated: int = 1
    prefix: int = 1
    tau: float = 150.0
    gate: Gate = "zero"
    redundancy: bool = True
    massive: bool = True
    kind: Kind = "random"
    batch: int = 2
    kappa: float = 0.5

    @property
    def cosine_error(self) -> float:
        """c of the contract."""
        return COSINE * max(1.0, self.channels / EXACT)

    @property
    def share_error(self) -> float:
        """e of the contract."""
        return self.cosine_error * (4 + self.tau)

    def outcomes(self, device: torch.device, generator: torch.Generator) -> Iterator[Outcome]:
        """Errors of selection, sizes and tokens; the latter two for the tokens that were selected."""
        x, scores, mass = (None if part is None else part.to(device) for part in self._layer(generator))
        assert x is not None and scores is not None
        features = x[:, self.isolated :]
        units = _units(features)
        cosines = similarity(units, units)
        reading = Reading(_free_of(cosines, self.kappa), self.tau, self.gate, self.redundancy)
        y, sizes, index = dispatch.transform(x, features, scores, mass, self.keep, self.prefix, reading)
        yield Outcome(f"selection {self}", self._selection(index, cosines, scores))
        chosen = mark_own(gather_tokens(cosines, index).transpose(1, 2).contiguous(), index)
        shares = assign(chosen, *reading.assignment)
        heavy = None if mass is None else mass.double()
        summed = (shares if heavy is None else shares * heavy.unsqueeze(-1)).sum(1)
        expected = with_isolated(summed, self.isolated)
        unit = self.share_error
        yield Outcome(f"sizes {self}", _largest((sizes.double() - expected).abs(), unit * expected + 1e-3 * unit))
        dense = DenseReduction(sizes=expected, assignment=shares, mass=heavy, prefix=self.isolated)
        allowed = max(ROUNDED.get(self.dtype, 0.0), unit) * float(x.double().abs().max())
        yield Outcome(f"tokens {self}", _largest((y.double() - dense.down(x.double())).abs(), allowed))

    def _layer(self, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor | None]:
        def random(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator)

        x = torch.randn(self.batch, self.tokens, self.channels, generator=generator) + 0.7
        scores, mass = random(self.batch, self.tokens), 4 * random(self.batch, self.tokens - self.isolated)
        half = self.tokens // 2
        if self.kind == "equal":
            x[:] = x[:, :1]
        if self.kind == "copies":
            x[:, half : half + 3], scores[:, half : half + 3] = x[:, -1:], scores[:, -1:]
        if self.kind == "padded":
            x[:, half + 1 :], scores[:, half + 1 :] = 0.0, 0.0
            mass[:, half + 1 - self.isolated :] = 0.0
        return x.to(self.dtype), scores, mass if self.massive else None

    def _selection(self, index: Tensor, cosines: Tensor, scores: Tensor) -> float:
        """0 where the tokens in front and the highest others are there in raster order, else how far off the worst is.

        Two scores may be as close as the error of a cosine: then either may be taken.
        """
        behind = self.prefix - self.isolated
        ranks = scores[:, self.prefix :].double()
        if self.redundancy:
            ranks = novelty(ranks, cosines[:, behind:, behind:].contiguous())
        front = torch.arange(behind, device=index.device).expand(len(index), behind)
        chosen = index[:, behind:] - behind
        ordered = bool((index[:, 1:] > index[:, :-1]).all()) and torch.equal(index[:, :behind], front)
        if not ordered or bool((chosen < 0).any()) or bool((chosen >= ranks.shape[1]).any()):
            return float("nan")
        taken = torch.zeros_like(ranks, dtype=torch.bool).scatter(1, chosen, True)
        lowest = ranks.masked_fill(~taken, torch.inf).amin(1)
        highest = ranks.masked_fill(taken, -torch.inf).amax(1)
        return _largest((highest - lowest).clamp_min(0.0), self.cosine_error * (1 + scores.max().item()))


def _units(features: Tensor) -> Tensor:
    """Unit vectors in float64, zero tokens at 0."""
    wide = features.double()
    return wide / wide.norm(dim=-1, keepdim=True).clamp_min(1e-12)


def _free_of(cosines: Tensor, kappa: float) -> float:
    """The middle of the widest gap between cosines around ``kappa``, so that none is near."""
    near = cosines[(cosines - kappa).abs() < 0.05].unique()
    ends = near.new_tensor([kappa - 0.05, kappa + 0.05])
    sorted_ = torch.cat((ends[:1], near, ends[1:]))
    at = int((sorted_[1:] - sorted_[:-1]).argmax())
    return float((sorted_[at] + sorted_[at + 1]) / 2)


Case = Attention | Transform


# tokens, channels, keep, isolated, prefix, tau, gate, redundancy, kind
LAYERS: tuple[tuple[int, int, int, int, int, float, Gate, bool, Kind], ...] = (
    (1, 8, 1, 0, 0, 150.0, "zero", True, "random"),
    (2, 20, 2, 0, 1, 5.0, "mask", True, "random"),
    (9, 20, 3, 1, 1, 150.0, "zero", True, "equal"),
    (17, 40, 9, 2, 2, 5.0, "zero", False, "copies"),
    (34, 40, 20, 0, 5, 150.0, "mask", True, "copies"),
    (66, 24, 66, 5, 5, 30.0, "zero", True, "random"),
    (65, 48, 6, 3, 5, 150.0, "zero", True, "padded"),
    (130, 320, 91, 1, 1, 0.5, "mask", False, "random"),
    (64, 16, 33, 0, 0, 500.0, "zero", True, "equal"),
    (18, 40, 12, 1, 1, 150.0, "mask", True, "padded"),
)


def few(dtype: torch.dtype) -> list[Case]:
    """One case for every kernel, and for each of the ways it is compiled in by default."""
    return [
        Attention(197, 64, dtype, True),
        Attention(197, 64, dtype, False, first=1),
        Attention(333, 64, dtype, True, batch=1),
        Attention(577, 64, dtype, False, batch=1),
        Attention(99, 80, dtype, True),
        Attention(257, 80, dtype, False, batch=1),
        Transform(197, 384, dtype, 138),
        Transform(138, 384, dtype, 97, isolated=0, redundancy=False, massive=False, kind="copies"),
        Transform(99, 64, dtype, 70, gate="mask", kind="padded"),
        Transform(601, 64, dtype, 421, batch=1),
    ]


def many(dtype: torch.dtype) -> list[Case]:
    """``few``, odd sizes, all kinds of tokens, prefixes of 0 to 5, both gates, high and low temperatures."""
    attention: list[Case] = [
        Attention(tokens, dim, dtype, biased, first=min(first, tokens), gain=gain)
        for tokens, dim, biased, first, gain in (
            (1, 64, True, 0, 1.0),
            (2, 64, False, 0, 2.0),
            (17, 24, True, 1, 1.0),
            (65, 72, False, 2, 2.0),
            (128, 128, True, 0, 1.0),
            (129, 96, True, 5, 1.0),
            (256, 64, False, 1, 2.0),
            (257, 64, True, 0, 2.0),
            (261, 128, False, 1, 1.0),
        )
    ]
    transform: list[Case] = [
        Transform(
            tokens, channels, dtype, keep, isolated, prefix, tau, gate, redundancy, massive=tokens % 2 == 0, kind=kind
        )
        for tokens, channels, keep, isolated, prefix, tau, gate, redundancy, kind in LAYERS
    ]
    return [*few(dtype), *attention, *transform]


@torch.no_grad()
def outcomes(device: torch.device, cases: list[Case], seed: int = 0) -> Iterator[Outcome]:
    """What comes of the cases on a device, one number after the other."""
    generator = torch.Generator().manual_seed(seed)
    with torch.autocast(device.type, enabled=False):
        for case in cases:
            yield from case.outcomes(device, generator)
