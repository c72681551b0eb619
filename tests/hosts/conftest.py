"""Fixtures of the hosts' tests."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import nn

from tests.hosts import hf_models


@pytest.fixture
def build(stir: Callable[[nn.Module], nn.Module]) -> hf_models.Build:
    return hf_models.builder(stir)
