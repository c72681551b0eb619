"""Every training-free method with what its documentation promises; one line a method."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ttf.calibration import calibrate
from ttf.methods import LayerView, Method, build
from ttf.methods.algm import ALGM
from ttf.methods.atc import ATC
from ttf.methods.ats import ATS
from ttf.methods.diffrate import DiffRate
from ttf.methods.divprune import DivPrune
from ttf.methods.dpc_knn import DpcKnn
from ttf.methods.evit import EViT
from ttf.methods.hourglass import Hourglass
from ttf.methods.k_medoids import KMedoids
from ttf.methods.mctf import MCTF
from ttf.methods.pitome import PiToMe
from ttf.methods.ppt import PPT
from ttf.methods.prumerge import PruMerge
from ttf.methods.prune_and_merge import PruneAndMerge, matrices
from ttf.methods.random_pruning import RandomPruning
from ttf.methods.tofu import ToFu
from ttf.methods.token_transform import TokenTransform
from ttf.methods.tome import ToMe
from ttf.methods.top_k import TopK
from ttf.methods.tps import TPS
from ttf.methods.uniform import UniformPool, UniformStride
from ttf.methods.visionzip import VisionZip

Rows = Literal["one", "at most one", "any"]


class MethodCase(NamedTuple):
    """One method.

    Attributes:
        name: of the test.
        method: None stands for Prune and Merge, which is calibrated for a model.
        rows: what the rows of W sum to.
        exclusive: every old token goes into one new token at most.
        equivariant: shuffled patch tokens give the same new tokens, perhaps in another order.
        extra: new tokens beyond ``keep``; None: not exactly ``keep``.
        alone: every image is reduced as if it were alone in its batch.
    """

    name: str
    method: Method | None
    rows: Rows
    exclusive: bool
    equivariant: bool
    extra: int | None
    alone: bool = True

    def for_view(self, view: LayerView) -> Method:
        """The method for a layer, Prune and Merge with some importance or other."""
        if self.method is not None:
            return self.method
        assert view.grid is not None
        rank = torch.rand(view.grid[0] * view.grid[1], generator=torch.Generator().manual_seed(view.x.shape[1]))
        return PruneAndMerge(matrices({view.block: rank + 0.01}, view.grid[1], view.prefix, 0.5, 0.2))

    def for_model(self, model: nn.Module, images: Tensor, blocks: tuple[int, ...]) -> Method:
        """The method for a model, Prune and Merge calibrated on the images."""
        return calibrate(model, [(images, None)], blocks=blocks) if self.method is None else self.method


PAPER: Any = build("token_transform", preset="paper")
BY_CLASS = TokenTransform(score_rows="class", selection="informative")

# name, method, rows sum to, exclusive, equivariant, tokens beyond keep
CASES = [
    MethodCase("token_transform", TokenTransform(), "one", False, True, 0),
    MethodCase("token_transform, paper", PAPER, "one", False, True, 0),
    MethodCase("token_transform, class attention", BY_CLASS, "one", False, True, 0),
    MethodCase("tome", ToMe(), "one", True, False, None),  # at most half of the patches can go; pairs by position
    MethodCase("evit", EViT(), "at most one", True, True, 1),
    MethodCase("evit, not fused", EViT(fuse=False), "one", True, True, 0),
    MethodCase("tps", TPS(), "one", True, True, 0),
    MethodCase("ats", ATS(), "at most one", True, True, None),  # padded with rows of zeros
    MethodCase("ppt", PPT(), "one", True, False, None),  # at most half of the patches can go; pairs by position
    MethodCase("ppt, some images pooled", PPT(threshold=2e-3), "one", True, False, None),
    MethodCase("ppt, all images pooled", PPT(mode="pool"), "one", True, False, None),
    MethodCase("diffrate", DiffRate(), "one", True, True, 0),
    # pairs by position, as tome
    MethodCase("mctf", MCTF(), "one", True, False, None),
    MethodCase("mctf, one way", MCTF(0.0, 5.0, 10.0, False, "sizes"), "one", True, False, None),
    MethodCase("pitome", PiToMe(), "one", True, True, None),  # at most half of the patches can go
    MethodCase("pitome, protected", PiToMe(unprotected="none", proportional=True), "one", True, True, None),
    MethodCase("tofu", ToFu("longest"), "any", True, False, None),
    MethodCase("tofu, prune", ToFu(), "one", True, False, None),
    MethodCase("atc", ATC(), "one", True, True, 0),
    MethodCase("atc, complete", ATC("complete"), "one", True, True, 0),
    MethodCase("algm", ALGM(-1.0), "one", True, False, None, alone=False),  # counts are those of the batch
    MethodCase("algm, by keep", ALGM(None), "one", True, False, None),
    MethodCase("hourglass", Hourglass(), "one", False, False, None),
    MethodCase("hourglass, sharp and local", Hourglass(temperature=1.0, window=3), "one", False, False, None),
    MethodCase("prumerge", PruMerge(), "any", False, True, 0),
    MethodCase("prumerge, plus", PruMerge(plus=True), "any", False, False, None),
    # outliers are counted over the whole batch, by definition
    MethodCase("prumerge, outliers", PruMerge(outliers=True), "any", False, True, None, alone=False),
    MethodCase("prumerge, plus, outliers", PruMerge(True, True), "any", False, False, None, alone=False),
    MethodCase("visionzip", VisionZip(2), "any", True, False, 0),  # targets by position
    MethodCase("divprune", DivPrune(), "one", True, False, 0),  # mutual nearest ones tie
    MethodCase("prune_and_merge", None, "any", True, False, None),
    MethodCase("dpc_knn", DpcKnn(), "at most one", True, True, 0),
    MethodCase("dpc_knn, class attention", DpcKnn(weights="class"), "at most one", True, True, 0),
    MethodCase("k_medoids", KMedoids(), "one", True, True, 0),
    MethodCase("k_medoids, equal weights", KMedoids(weights="equal"), "one", True, False, 0),
    MethodCase("uniform_pool", UniformPool(), "one", False, False, None),
    MethodCase("uniform_stride", UniformStride(), "one", True, False, 0),
    MethodCase("random_pruning", RandomPruning(), "one", True, False, 0, alone=False),  # others for every image
    MethodCase("top_k", TopK(), "one", True, True, 0),
    MethodCase("top_k, class attention", TopK("class"), "one", True, True, 0),
]
