"""``Tokens``: what a compressed block returns in place of a tensor. All state of a run is in it, none on a module.

Shapes: B batch, N tokens, C channels, P prefix tokens.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ttf.ops.reduction import Recovery, Reduction, recover

WHAT_TO_DO = (
    "take y.x (the tokens that are left) or y.dense() (all of them, where apply had recover=True), "
    "or call ttf.apply again if a part of the model was replaced since"
)


SHAPING = ("reshape", "permute", "transpose", "flatten", "unflatten")


class TokensError(TypeError, AttributeError):
    """Something took the tokens of a compressed model for a tensor."""


def _refuse(what: str) -> TokensError:
    return TokensError(f"{what} met the tokens of a compressed model, which are no tensor: {WHAT_TO_DO}")


class Tokens(NamedTuple):
    """Tokens on their way through compressed blocks.

    A named tuple, so that hooks, checkpoints, FSDP and ``torch.compile`` take it apart and put it together like any
    other. Heads read it as they read a tensor: ``y[:, 0]`` is a token, ``y[:, P:]`` drops the prefix, ``y.mean(1)``
    weighs by size, ``y.amax(1)`` leaves out padding. Where dense tokens are asked for (``recovery``), all of these and
    changes of shape read the dense ones. Anything else raises ``TokensError``.

    Attributes:
        x: (B, N, C) tokens.
        sizes: (B, N) float32, or None while all are 1; 0 is padding.
        places: (B, N - P) int64, place r * columns + c of the token that each one grew from on the first grid; None
            while each patch token is in its own place, or where nothing needs places.
        grid: (rows, columns) of the patch tokens, or None where they lie on no grid (any more).
        chain: the reductions so far, in order; empty where nothing asks for dense tokens.
        recovery: how dense tokens come back at the exit, or None to leave the sequence short.
    """

    x: Tensor
    sizes: Tensor | None = None
    places: Tensor | None = None
    grid: tuple[int, int] | None = None
    chain: tuple[Reduction, ...] = ()
    recovery: Recovery | None = None

    @property
    def shape(self) -> torch.Size:
        """Of ``x``."""
        return self.x.shape

    @property
    def dtype(self) -> torch.dtype:
        """Of ``x``."""
        return self.x.dtype

    @property
    def device(self) -> torch.device:
        """Of ``x``."""
        return self.x.device

    @property
    def ndim(self) -> int:
        """Of ``x``."""
        return self.x.ndim

    @property
    def requires_grad(self) -> bool:
        """Of ``x``."""
        return self.x.requires_grad

    def size(self, dim: int | None = None) -> Any:
        """``x.size``."""
        return self.x.shape if dim is None else self.x.shape[dim]

    def dim(self) -> int:
        """Number of dimensions of ``x``."""
        return self.x.ndim

    def detach(self) -> Tensor:
        """``x`` without its graph, as hooks want it."""
        return self.x.detach()

    def register_hook(self, hook: Any) -> Any:
        """A hook on the gradient of ``x``."""
        return self.x.register_hook(hook)

    def retain_grad(self) -> None:
        """Keep the gradient of ``x``."""
        self.x.retain_grad()

    def dense(self) -> Tensor:
        """The tokens on the grid that they started from, (B, N_first, C); ``x`` while nothing was reduced.

        Raises:
            ValueError: there was a reduction, and nobody asked for the way back.
        """
        if not self.chain and self.sizes is not None and self.recovery is None:
            raise ValueError("dense tokens come back where ttf.apply had recover=True, or at the taps of the model")
        return recover(self.chain, self.x)

    def behind(self, first: int) -> Tokens | Tensor:
        """The tokens from the ``first`` on, as ``y[:, first:]`` gives them."""
        if self.recovery is not None:
            return self.dense()[:, first:]
        return self._part(slice(first, None))

    def _part(self, part: slice) -> Tokens:
        return Tokens(self.x[:, part], None if self.sizes is None else self.sizes[:, part])

    def __getitem__(self, key: Any) -> Any:
        """Fields by number, as of any tuple; by (all images, tokens, ...) tokens. Dense ones where they are asked for.

        A slice of tokens stays ``Tokens`` while the sequence is short.
        """
        if not isinstance(key, tuple):
            first = isinstance(key, int) and key == 0  # what recorders of hidden states read of any tuple
            return self.dense() if first and self.recovery is not None else tuple.__getitem__(self, key)
        if self.recovery is not None:
            return self.dense()[key]
        whole = all(part == slice(None) for part in (key[0], *key[2:]))
        if not (whole and len(key) in (2, 3) and isinstance(key[1], slice)):
            return self.x[key]
        return self._part(key[1])

    def mean(self, dim: int = 1, keepdim: bool = False) -> Tensor:
        """Mean over the tokens (dim=1) weighted by size: that of the tokens that they stand for."""
        if self.recovery is not None:
            return self.dense().mean(dim, keepdim=keepdim)
        if dim not in (1, -2):
            raise _refuse(f"mean(dim={dim})")
        return (self.x * mean_weights(self.x, self.sizes)).mean(dim=1, keepdim=keepdim)

    def amax(self, dim: int = 1, keepdim: bool = False) -> Tensor:
        """Largest value over the tokens (dim=1) that are no padding."""
        if self.recovery is not None:
            return self.dense().amax(dim, keepdim=keepdim)
        if dim not in (1, -2):
            raise _refuse(f"amax(dim={dim})")
        x = self.x if self.sizes is None else self.x.masked_fill((self.sizes == 0).unsqueeze(-1), -torch.inf)
        return x.amax(dim=1, keepdim=keepdim)

    def __getattr__(self, name: str) -> Any:
        # only reached where there is no such attribute
        if hasattr(Tensor, name) and not name.startswith("__"):
            if self.recovery is not None and name in SHAPING:
                return getattr(self.dense(), name)
            raise _refuse(f".{name}")
        raise AttributeError(f"Tokens has no attribute {name!r}")


def _no_arithmetic(tokens: Tokens, other: Any) -> Any:
    raise _refuse("arithmetic")


for _name in ("add", "radd", "sub", "rsub", "mul", "rmul", "matmul", "rmatmul", "truediv", "rtruediv"):
    setattr(Tokens, f"__{_name}__", _no_arithmetic)  # of a tuple they would mean something else


def mean_weights(x: Tensor, sizes: Tensor | None) -> Tensor:
    """s_i / mean(s), (B, N, 1) in the dtype of x: the plain mean of weighted tokens is the size-weighted mean."""
    if sizes is None:
        return x.new_ones(())
    return (sizes / sizes.mean(dim=1, keepdim=True)).unsqueeze(-1).to(x.dtype)


def as_tokens(value: Any, who: str) -> Tokens:
    """A tensor or ``Tokens`` as ``Tokens``.

    Args:
        value: what a compressed module was called with.
        who: its name, for the error.

    Raises:
        ValueError: ``torch.fx`` is tracing, or it is something else, such as the plain tuple that reentrant gradient
            checkpointing makes of ``Tokens``.
    """
    if isinstance(value, Tokens):
        return value
    if isinstance(value, Tensor):
        return Tokens(value)
    if isinstance(value, torch.fx.Proxy):
        raise ValueError("torch.fx cannot trace a compressed model, whose steps depend on shapes: use torch.export")
    if isinstance(value, tuple):
        raise ValueError(
            f"{who} got a plain tuple: gradient checkpointing of a compressed model needs use_reentrant=False"
        )
    raise ValueError(f"{who} takes the tokens of the block before it, got {type(value).__name__}")
