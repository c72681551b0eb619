"""Hosts: how one library's models are entered. A host's module is imported only when one of its models is met."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from torch import nn

from ttf.core.host import Host, check_module

Make = Callable[[nn.Module], Host]
# class of the model (module.Class, any base class counts) -> module with a function ``host(model)``, or that function
SUPPORTED: dict[str, str | Make] = {
    "timm.models.vision_transformer.VisionTransformer": "ttf.hosts.timm_vit",
    "transformers.modeling_utils.PreTrainedModel": "ttf.hosts.hf",
    "timm.models.eva.Eva": "ttf.hosts.timm_eva",
    "ttf.models.hf.HubClassifier": "ttf.hosts.hf",
    "ttf.models.llava.VisionLanguageModel": "ttf.hosts.hf",
    "ttf.models.lv_vit.LVViT": "ttf.hosts.own_models",
    "ttf.models.t2t_vit.T2TViT": "ttf.hosts.own_models",
    "ttf.models.ps_vit.PSViT": "ttf.hosts.own_models",
    "ttf.models.segmenter.Segmenter": "ttf.hosts.segmenter",
    "ttf.models.detector.ViTDet": "ttf.hosts.vitdet",
    "ttf.models.detector.SwinDet": "ttf.hosts.swin",
    "ttf.models.swin.SwinTransformer": "ttf.hosts.swin",
    "mmdet.models.backbones.swin.SwinTransformer": "ttf.hosts.mmdet_swin",
    "ttf.models.dino.MMDetector": "ttf.hosts.mmdet_swin",
    "mmdet.models.detectors.base.BaseDetector": "ttf.hosts.mmdet_swin",
    "ttf.models.dpt.DPT": "ttf.hosts.dpt",
}
WRAPPERS = {"_orig_mod": "torch.compile", "module": "DataParallel or DistributedDataParallel"}


def names() -> list[str]:
    """Classes of models that can be compressed."""
    return sorted(SUPPORTED)


def register(model: type[nn.Module], host: Make) -> None:
    """Name a class of models that can be compressed, subclasses included; it comes before what is known of its bases.

    Args:
        model: the class.
        host: gives the host of one of its models.
    """
    SUPPORTED[f"{model.__module__}.{model.__qualname__}"] = host


def refuse_wrapped(model: nn.Module) -> None:
    """Raise ``ValueError`` for a model inside torch.compile's or a parallel wrapper."""
    check_module(model)
    for attribute, wrapper in WRAPPERS.items():
        if isinstance(getattr(model, attribute, None), nn.Module):
            inner = f"model.{attribute}"
            raise ValueError(f"this model is wrapped by {wrapper}: apply ttf first, then wrap; or use {inner}")


def find(model: nn.Module) -> Host:
    """The host of ``model``.

    Raises:
        ValueError: there is none, and the message lists what is supported; or it is of a kind that cannot be entered.
    """
    for base in type(model).__mro__:
        make = SUPPORTED.get(f"{base.__module__}.{base.__qualname__}")
        if make is not None:
            host = (import_module(make).host if isinstance(make, str) else make)(model)
            host.check(model)
            return host
    refuse_wrapped(model)
    raise ValueError(f"{type(model).__name__} is not a supported host. Supported: {', '.join(names())} and subclasses")
