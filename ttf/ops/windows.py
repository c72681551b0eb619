"""Attention in windows for tokens that may lie anywhere: who meets whom, with which bias and mask.

A token has a place r * columns + c on a map. Windows of side w cut the map, filled up to multiples of w and rolled by
the shift. Places without a token that fill the map up are keys, too, as in Swin. Shapes: B batch, L tokens, F places
that fill up, nW windows of an image, S slots of a window (as many as the fullest one has), H heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ttf.ops.attention import SMALLEST_SIZE

Size = tuple[int, int]

APART = -100.0  # added to the logits of two tokens of a shifted window that are no neighbours in the map


@dataclass(frozen=True)
class Cut:
    """How a map is cut: its (rows, columns), filled up to multiples of the window, the window's side, the shift."""

    size: Size
    window: int
    shift: int = 0

    @property
    def across(self) -> int:
        """Windows beside each other."""
        return self.size[1] // self.window

    @property
    def count(self) -> int:
        """Windows of an image."""
        return self.across * (self.size[0] // self.window)

    def rolled(self, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Rows and columns after the shift."""
        return (rows - self.shift) % self.size[0], (columns - self.shift) % self.size[1]

    def number(self, rows: Tensor, columns: Tensor) -> Tensor:
        """The window of each place."""
        down, right = self.rolled(rows, columns)
        return down // self.window * self.across + right // self.window

    def part(self, rows: Tensor, columns: Tensor) -> Tensor:
        """The part of the map of each place: in a shifted window, tokens of different parts are no neighbours."""
        down, right = self.rolled(rows, columns)
        return 3 * self._side(down, self.size[0]) + self._side(right, self.size[1])

    def _side(self, places: Tensor, length: int) -> Tensor:
        return (places >= length - self.window).long() + (places >= length - self.shift).long()


@dataclass(frozen=True)
class Layout:
    """Tokens and places that fill up, L + F of them, sorted into windows.

    Attributes:
        index: (B, nW, S) int64, who is in a slot, L + F for nobody.
        slot: (B, L + F) int64, where each one is among the nW * S.
        real: (B, nW, S) bool, slots of tokens.
        used: (B, nW, S) bool, slots of somebody.
        rows, columns: (B, nW, S) places in the window. part: (B, nW, S), see ``Cut.part``.
        window: side of the windows.
    """

    index: Tensor
    slot: Tensor
    real: Tensor
    used: Tensor
    rows: Tensor
    columns: Tensor
    part: Tensor
    window: int

    def sorted(self, values: Tensor) -> Tensor:
        """Values (B, L + F, ...) by window, (B * nW, S, ...); zeros for nobody."""
        batch, windows, slots = self.index.shape
        extended = torch.cat((values, values.new_zeros(batch, 1, *values.shape[2:])), dim=1)
        chosen = extended[torch.arange(batch, device=values.device).unsqueeze(1), self.index.flatten(1)]
        return chosen.view(batch * windows, slots, *values.shape[2:])

    def back(self, values: Tensor, tokens: int) -> Tensor:
        """Values by window (B * nW, S, ...) of the tokens, (B, L, ...)."""
        batch = len(self.index)
        flat = values.reshape(batch, -1, *values.shape[2:])
        return flat[torch.arange(batch, device=values.device).unsqueeze(1), self.slot[:, :tokens]]

    def bias(self, table: Tensor) -> Tensor:
        """What is added to the logits, (B * nW, H, S, S): by offset from a table ((2 w - 1)^2, H), and across parts."""
        side = 2 * self.window - 1
        down = self.rows.unsqueeze(-1) - self.rows.unsqueeze(-2) + self.window - 1
        right = self.columns.unsqueeze(-1) - self.columns.unsqueeze(-2) + self.window - 1
        bias = table[down * side + right] + (self.part.unsqueeze(-1) != self.part.unsqueeze(-2)).unsqueeze(-1) * APART
        return bias.flatten(0, 1).permute(0, 3, 1, 2)

    def size_bias(self, sizes: Tensor | None, dtype: torch.dtype) -> Tensor:
        """log s of every key (Eq. 7), minus infinity for nobody, (B * nW, 1, 1, S).

        Args:
            sizes: (B, L + F), or None where all are 1.
        """
        nobody = ~self.used & self.used.any(-1, keepdim=True)  # a window of nobody has no answer that anyone reads
        logs = torch.zeros_like(nobody, dtype=torch.float32)
        if sizes is not None:
            logs = self.sorted(sizes).clamp_min(SMALLEST_SIZE).log().view_as(nobody)
        logs = logs.masked_fill(nobody, -torch.inf).masked_fill(~self.used & ~nobody, 0.0)
        return logs.flatten(0, 1).to(dtype)[:, None, None, :]


def layout(places: Tensor, filling: Tensor, columns: int, cut: Cut) -> Layout:
    """Sort tokens into windows.

    Args:
        places: (B, L) int64 of the tokens, row * columns + column.
        filling: (F,) int64, places that fill up, in the same numbers.
        columns: of the map.
        cut: the windows.
    """
    batch, count = places.shape
    every = torch.cat((places, filling.expand(batch, -1)), dim=1)
    rows, across = every // columns, every % columns
    number = cut.number(rows, across)
    order = number.argsort(dim=1, stable=True)
    members = torch.zeros(batch, cut.count, dtype=torch.int64, device=places.device)
    members = members.scatter_add(1, number, torch.ones_like(number))
    first = members.cumsum(1) - members
    one_by_one = torch.arange(every.shape[1], device=places.device).expand_as(order)
    rank = torch.empty_like(order).scatter(1, order, one_by_one)
    slots = _fullest(members, cut, every.shape[1], len(filling))
    slot = number * slots + rank - first.gather(1, number)
    nobody = every.shape[1]
    index = torch.full((batch, cut.count * slots), nobody, dtype=torch.int64, device=places.device)
    index = index.scatter(1, slot, one_by_one).view(batch, -1, slots)
    down, right = cut.rolled(rows, across)
    parts = torch.stack((down % cut.window, right % cut.window, cut.part(rows, across)), dim=-1)
    parts = F.pad(parts, (0, 0, 0, 1))[torch.arange(batch, device=places.device).unsqueeze(1), index.flatten(1)]
    rows, across, part = parts.view(*index.shape, 3).unbind(-1)
    return Layout(index, slot, index < count, index < nobody, rows, across, part, cut.window)


def _fullest(members: Tensor, cut: Cut, count: int, filling: int) -> int:
    """Slots of a window: as many as the fullest has; where only shapes are known, as many as it could have."""
    if torch.compiler.is_compiling() or members.is_meta or isinstance(members, torch._subclasses.FakeTensor):
        alike = cut.shift == 0 and filling == 0 and count % cut.count == 0
        return count // cut.count if alike else min(cut.window**2, count)
    return int(members.max())


def resized_table(table: Tensor, old: int, new: int) -> Tensor:
    """A bias table ((2 old - 1)^2, H) for windows of another side, bilinearly."""
    if old == new:
        return table
    maps = table.t().view(1, -1, 2 * old - 1, 2 * old - 1)
    return F.interpolate(maps, (2 * new - 1,) * 2, mode="bilinear", align_corners=False)[0].flatten(1).t()
