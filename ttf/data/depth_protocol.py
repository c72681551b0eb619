"""Which pixels of a depth map count, and the nine errors of one image: the published evaluation of NYUv2 and KITTI.

Shapes: H, W of the image. Depths are in metres.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

Size = tuple[int, int]

EIGEN_SIZE = (480, 640)
EIGEN = (slice(45, 471), slice(41, 601))
GARG = ((0.40810811, 0.99189189), (0.03594771, 0.96405229))  # shares of the height and of the width
CROPS = ("eigen", "garg")
MILLIMETRES = 1000.0
LARGEST_PNG = 65535  # of 16 bits
ERRORS = ("d1", "d2", "d3", "abs_rel", "sq_rel", "rmse", "rmse_log", "silog", "log10")  # order of Table 3


@dataclass(frozen=True)
class Protocol:
    """How predictions are scored. The defaults are NYUv2's; KITTI has crop="garg", max_depth=80.

    Attributes:
        crop: "eigen" (rows 45 to 470 and columns 41 to 600 of 480x640 pixels), "garg" (shares of the sides) or None.
        min_depth, max_depth: true depths between the two count, both ends left out; predictions are clamped to them.
        truncate: predictions are cut to whole millimetres first, as where they are scored from 16-bit PNGs.

    Raises:
        ValueError: another crop, or bounds that hold nothing.
    """

    crop: str | None = "eigen"
    min_depth: float = 1e-3
    max_depth: float = 10.0
    truncate: bool = False

    def __post_init__(self) -> None:
        if self.crop is not None and self.crop not in CROPS:
            raise ValueError(f"crop must be one of {', '.join(CROPS)}, or null for none, got {self.crop!r}")
        if not 0 < self.min_depth < self.max_depth:
            raise ValueError(f"need 0 < min_depth < max_depth, got {self.min_depth} and {self.max_depth}")

    def window(self, size: Size) -> tuple[slice, slice]:
        """Rows and columns that count, of images of ``size`` (height, width).

        Raises:
            ValueError: Eigen's crop for images of another size than its own.
        """
        if self.crop is None:
            return slice(0, size[0]), slice(0, size[1])
        if self.crop == "garg":
            rows, columns = (
                slice(int(low * side), int(high * side)) for (low, high), side in zip(GARG, size, strict=True)
            )
            return rows, columns
        if tuple(size) != EIGEN_SIZE:
            raise ValueError(
                f"the Eigen crop is for images of 480x640 pixels, and this one has {size[0]}x{size[1]}: set crop=null"
            )
        return EIGEN

    def valid(self, truth: Tensor) -> Tensor:
        """Which pixels of a true depth map (H, W) count, bool. What was not measured is 0, infinite or NaN there."""
        inside = torch.zeros_like(truth, dtype=torch.bool)
        inside[self.window((truth.shape[0], truth.shape[1]))] = True
        return inside & (truth > self.min_depth) & (truth < self.max_depth)

    def scored(self, predicted: Tensor) -> Tensor:
        """Predictions as they are compared: truncated where that is asked for, then clamped.

        Raises:
            ValueError: NaN among them.
        """
        if bool(predicted.isnan().any()):
            raise ValueError("the model gives depths that are NaN: check weights and dtype")
        if self.truncate:
            predicted = whole_millimetres(predicted).float() / MILLIMETRES
        return predicted.clamp(self.min_depth, self.max_depth)

    def errors(self, predicted: Tensor, truth: Tensor) -> Tensor | None:
        """The errors of one image, see ``errors``; None where not a single pixel counts.

        Args:
            predicted, truth: (H, W) metres.

        Raises:
            ValueError: the two differ in size, NaN among the predictions, or see ``window``.
        """
        if predicted.shape != truth.shape:
            sizes = " and ".join("x".join(map(str, depth.shape)) for depth in (predicted, truth))
            raise ValueError(f"predicted and true depth differ in size: {sizes}")
        counted = self.valid(truth)
        scored = self.scored(predicted.float())
        return errors(scored[counted], truth[counted].float()) if bool(counted.any()) else None


def whole_millimetres(depth: Tensor) -> Tensor:
    """Depths in metres as 16-bit PNGs hold them: whole millimetres, truncated; int32."""
    return (depth.float() * MILLIMETRES).clamp(0, LARGEST_PNG).int()


def errors(predicted: Tensor, truth: Tensor) -> Tensor:
    """The nine errors of one image over its n valid pixels, (9,) float32 in the order of ``ERRORS``.

    With p predicted, g true and e = ln p - ln g: d_k is the share of max(g / p, p / g) < 1.25^k; abs_rel is
    mean |g - p| / g, sq_rel mean (g - p)^2 / g, rmse sqrt(mean (g - p)^2), rmse_log sqrt(mean e^2), silog
    100 sqrt(mean e^2 - (mean e)^2), log10 mean |log10 p - log10 g|.

    Args:
        predicted, truth: (n,) float32 metres above 0, n at least 1.
    """
    # by NumPy in float32, as the official scripts: pixels that lie on a threshold, and the last digit of sums, follow
    p, g = predicted.cpu().numpy(), truth.cpu().numpy()
    ratio, difference, e = np.maximum(g / p, p / g), g - p, np.log(p) - np.log(g)
    found = [(ratio < 1.25**k).mean() for k in (1, 2, 3)]
    found += [(np.abs(difference) / g).mean(), (difference**2 / g).mean()]
    found += [np.sqrt((difference**2).mean()), np.sqrt((e**2).mean())]
    found += [100 * np.sqrt(max((e**2).mean() - e.mean() ** 2, np.float32(0)))]  # of equal errors it rounds below 0
    found += [np.abs(_log10(p) - _log10(g)).mean()]
    return torch.tensor(np.array(found, np.float32))


def _log10(values: Any) -> Any:
    """Rounded correctly to float32, which NumPy's own is not everywhere."""
    return np.log10(values.astype(np.float64)).astype(np.float32)
