"""Prune and Merge's matrices as trained parameters (arXiv 2503.23455)."""

from __future__ import annotations

from torch import nn

from ttf.calibration import PARTS
from ttf.methods.prune_and_merge import LayerMatrices, PruneAndMerge


class TrainableMatrices(nn.Module):
    """The matrices of all blocks as parameters, every entry of merge and recover; which tokens are pruned stays fixed.

    Args:
        method: as calibrated, or as trained before.
    """

    def __init__(self, method: PruneAndMerge) -> None:
        super().__init__()
        for block, layer in method.layers.items():
            self.register_parameter(f"merge_{block}", nn.Parameter(layer.merge.detach().clone()))
            self.register_parameter(f"recover_{block}", nn.Parameter(layer.recover.detach().clone()))
            self.register_buffer(f"mask_{block}", layer.mask.clone())
        self.blocks = method.blocks

    def method(self) -> PruneAndMerge:
        """The method that computes with these very parameters: for ``ttf.apply``, after the move to the device."""
        layers = {b: LayerMatrices(*(getattr(self, f"{part}_{b}") for part in PARTS)) for b in self.blocks}
        return PruneAndMerge(layers)
