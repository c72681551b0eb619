"""Errors that callers tell apart."""

from __future__ import annotations


class MissingError(ValueError):
    """Weights or data that are not on this machine; the message says how to get them."""
