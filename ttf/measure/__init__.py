"""Measuring: multiply-accumulates, parameters, throughput, provenance."""

from ttf.measure.gmacs import gmacs, norm_gops, params_m
from ttf.measure.throughput import Speed, interleaved

__all__ = ["Speed", "gmacs", "interleaved", "norm_gops", "params_m"]
