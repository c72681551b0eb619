"""Depth errors against the official script's, image by image and as means over images."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.golden.dense import Cases, Files
from ttf import metrics
from ttf.data.depth_protocol import EIGEN, ERRORS, Protocol

RELATIVE = 2e-7
# the last digit of a logarithm between 1 and 2 (machines differ in it); silog is a difference of nearly equal means
ABSOLUTE = {"rmse_log": 1.2e-7, "log10": 1.2e-7, "silog": 1e-2}


def _metres(millimetres: list[list[int]], cell: int) -> Tensor:
    values = torch.tensor(millimetres, dtype=torch.float32) / 1000
    return values.repeat_interleave(cell, 0).repeat_interleave(cell, 1)


def _predicted(case: dict[str, Any], truth: Tensor) -> Tensor:
    if "pred_mm" in case:
        return _metres(case["pred_mm"], case["cell"])
    assert case["pred_rule"].startswith("pred = gt inside rows 45..470 and columns 41..600, 500 mm outside")
    predicted = torch.full_like(truth, 0.5)
    predicted[EIGEN] = truth[EIGEN]
    return predicted


def _protocol(group: dict[str, Any]) -> Protocol:
    return Protocol("eigen" if group["eigen_crop"] else None, group["min_depth"], group["max_depth"])


def _errors(group: dict[str, Any], case: dict[str, Any], truncate: bool = False) -> Tensor:
    truth = _metres(case["gt_mm"], case["cell"])
    protocol = _protocol(group)
    assert int(protocol.valid(truth).sum()) == case["valid_pixels"]
    found = protocol.errors(_predicted(case, truth), truth)
    assert found is not None
    return found


def _image(group: dict[str, Any], case: dict[str, Any]) -> None:
    for name, value in zip(ERRORS, _errors(group, case).tolist(), strict=True):
        expected = case["metrics"][name]
        varies = name == "silog" and expected > 0.1
        absolute = 0 if varies else ABSOLUTE.get(name, 0)
        assert value == pytest.approx(expected, rel=RELATIVE, abs=absolute), name


def _mean(group: dict[str, Any]) -> None:
    every = torch.stack([_errors(group, case) for case in group["cases"]])
    outcomes = {name: every[:, place] for place, name in enumerate(ERRORS)}
    for name, mean in group["mean_over_images"].items():
        assert metrics.named("depth", name).estimate(outcomes).value == pytest.approx(mean, rel=1e-6), name


def cases(files: Files) -> Cases:
    """Every image, and the mean over the images of every group."""
    content = files.json()
    assert tuple(content["order_of_table_3"]) == ERRORS
    for group in content["groups"]:
        for case in group["cases"]:
            yield f"{group['group']}-{case['name']}", partial(_image, group, case)
        yield f"{group['group']}-mean", partial(_mean, group)
