"""The mathematics of a reducing layer, and who runs it. Imports torch alone."""

from ttf.ops import library
from ttf.ops.backends import backend, runner

__all__ = ["backend", "library", "runner"]
