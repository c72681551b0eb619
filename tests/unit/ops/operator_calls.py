"""Arguments of the two operators of a reducing layer, well-formed and malformed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def heads(tokens: int = 17, batch: int = 2, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """As a host has them: views of one projection."""
    q, k, v = torch.randn(batch, tokens, 3, 3, 8).to(dtype).permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v


def layer(
    tokens: int = 17, batch: int = 2, dtype: torch.dtype = torch.float32, isolated: int = 1
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tokens, features, scores, mass."""
    x = (torch.randn(batch, 1, 6) + torch.randn(batch, tokens, 6)).to(dtype)
    return x, x[:, isolated:], torch.rand(batch, tokens), 1 + torch.rand(batch, tokens - isolated)


def _broken_attention() -> dict[str, tuple[Any, ...]]:
    q, k, v = heads()
    bias = torch.zeros(2, 1, 1, 17)
    return {
        "keys shorter than queries": (q, k[:, :, :-1], v[:, :, :-1], None, 0.3, 0),
        "values shorter than keys": (q, k, v[:, :, :-1], None, 0.3, 0),
        "fewer images": (q, k[:1], v[:1], None, 0.3, 0),
        "fewer heads": (q, k[:, :1], v, None, 0.3, 0),
        "narrower heads": (q, k[..., :-1], v, None, 0.3, 0),
        "narrower values": (q, k, v[..., :-1], None, 0.3, 0),
        "three dimensions": (q[0], k[0], v[0], None, 0.3, 0),
        "a shorter bias": (q, k, v, bias[..., :-1], 0.3, 0),
        "a bias of fewer images": (q, k, v, bias[:1], 0.3, 0),
        "a negative first row": (q, k, v, None, 0.3, -1),
        "a first row behind the last": (q, k, v, None, 0.3, 18),
    }


def _broken_transform() -> dict[str, tuple[Any, ...]]:
    x, features, scores, mass = layer()
    options = (0.5, 30.0, False, True)
    return {
        "more features than tokens": (x, torch.cat((x, x), 1), scores, None, 9, 1, *options),
        "features of fewer images": (x, features[:1], scores, None, 9, 1, *options),
        "fewer scores": (x, features, scores[:, :-1], None, 9, 1, *options),
        "scores of fewer images": (x, features, scores[:1], None, 9, 1, *options),
        "a shorter mass": (x, features, scores, mass[:, :-1], 9, 1, *options),
        "a mass of fewer images": (x, features, scores, mass[:1], 9, 1, *options),
        "two dimensions": (x[0], features, scores, None, 9, 1, *options),
        "more than there are": (x, features, scores, None, 18, 1, *options),
        "nothing but the prefix": (x, features, scores, None, 1, 1, *options),
        "a negative number": (x, features, scores, None, -3, 1, *options),
        "fewer prefix than isolated tokens": (x, features, scores, None, 9, 0, *options),
    }


BROKEN = {"summed_attention": _broken_attention, "transform": _broken_transform}
CALLS = [(name, case) for name, cases in BROKEN.items() for case in cases()]
