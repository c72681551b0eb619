"""What methods do with half-precision tokens on a GPU, tried on the CPU: the same answers without float32 copies."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from ttf.methods import LayerView, ToMe
from ttf.methods import tps as tps_module
from ttf.ops import bipartite, numerics, reduction
from ttf.ops.transform import leading

HALF = [torch.float16, torch.bfloat16]


@pytest.fixture
def tensor_cores(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """As on a GPU, where half-precision products are summed in float32."""
    seen: list[torch.Size] = []

    def products(a: Tensor, b: Tensor) -> Tensor:
        assert a.dtype == b.dtype and a.dtype in HALF
        seen.append(a.shape)
        return a.float() @ b.float().transpose(1, 2)

    for module in (bipartite, tps_module):
        monkeypatch.setattr(module, "products", products)
    for module in (bipartite, tps_module, reduction):
        monkeypatch.setattr(module, "on_tensor_cores", lambda x: x.dtype in HALF)
    return seen


@pytest.mark.parametrize("dtype", HALF)
def test_cosines_come_from_products_of_the_vectors_themselves(dtype: torch.dtype, tensor_cores: list[Any]) -> None:
    a, b = (torch.randn(2, n, 24).to(dtype) for n in (9, 7))
    a[0, 0] = 0.0
    torch.testing.assert_close(bipartite.cosines(a, b), bipartite.cosines(a.float(), b.float()), atol=1e-6, rtol=0)
    assert len(tensor_cores) == 1


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("normalise", [True, False])
def test_hosts_are_as_similar(dtype: torch.dtype, normalise: bool, tensor_cores: list[Any]) -> None:
    a, b = (torch.randn(2, n, 24).to(dtype) for n in (9, 7))
    expected = tps_module.host_similarity(a.float(), b.float(), normalise)
    torch.testing.assert_close(tps_module.host_similarity(a, b, normalise), expected, atol=1e-5, rtol=1e-5)
    assert len(tensor_cores) == 1
    tps_module.host_similarity(a.requires_grad_(), b, normalise).sum().backward()  # those of torch have gradients
    assert len(tensor_cores) == 1 and a.grad is not None


@pytest.mark.parametrize("dtype", HALF)
def test_groups_are_merged_by_one_product(dtype: torch.dtype, tensor_cores: list[Any]) -> None:
    x, keys, sizes = torch.randn(2, 17, 24), torch.randn(2, 17, 8), 1 + torch.rand(2, 17)
    expected = ToMe().reduce(LayerView(x, 1, keys=keys, sizes=sizes), 12)
    out = expected.down(x.to(dtype))
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), expected.down(x), atol=4 * torch.finfo(dtype).eps, rtol=0)
    pruned = reduction.AssignmentReduction(
        sizes=torch.ones(1, 2), index=torch.tensor([[1, -1, 0]]), weight=torch.tensor([[2.0, 5.0, 3.0]])
    )
    assert pruned.down(torch.ones(1, 3, 1, dtype=dtype)).flatten().tolist() == [3.0, 2.0]


def test_torch_has_them_on_a_gpu() -> None:
    """Shapes alone."""
    with FakeTensorMode():
        a, b = (torch.empty(2, n, 24, device="cuda", dtype=torch.bfloat16) for n in (9, 7))
        assert numerics.on_tensor_cores(a) and not numerics.on_tensor_cores(a.float())
        dots = numerics.products(a, b)
        assert dots.shape == (2, 9, 7) and dots.dtype == numerics.norms(a).dtype == torch.float32
        assert leading(dots[:, 0], 3).shape == (2, 3)


def test_the_highest_scores_lead() -> None:
    scores = torch.tensor([[0.1, 0.9, 0.5, 0.9, 0.2]])
    assert leading(scores, 3, stable=True).tolist() == [[1, 3, 2]]
    assert leading(scores, 5, stable=True).tolist() == [[1, 3, 2, 4, 0]]
