"""Where Accelerate puts the parts of a vision-language model that is too large for one device.

The tower stays whole on one device without Accelerate's hooks, which put a forward on every instance: compression works
in the classes of its layers. What comes behind it may be split over GPUs, memory and disk.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ttf.models.tower_tokens import TOWER

STRATEGIES = ("auto", "balanced", "balanced_low_0", "sequential")
DISK, MEMORY = "disk", "cpu"


def _check_device(name: str, device: Any) -> None:
    """Raise ``ValueError`` for a device that is not on this machine."""
    if device == DISK:
        return
    try:
        torch.empty(1, device=device)
    except Exception as error:  # torch raises its own kinds for each kind of device
        raise ValueError(f"device_map puts {name or 'all'} on {device!r}, which is not available here") from error


@dataclass(frozen=True)
class Placement:
    """What ``from_pretrained`` is told.

    Attributes:
        device_map: one of ``STRATEGIES``, a device, or parts of the model ("model.vision_tower",
            "model.multi_modal_projector", "model.language_model.layers.0", "lm_head") with their devices: the number of
            a GPU, "cpu" or "disk".
        offload: a folder for what goes to disk.
        dtype: of the weights.

    Raises:
        ValueError: an unknown word, a device that is not here, disk without a folder, or a tower that is not whole on a
            device.
    """

    device_map: str | Mapping[str, int | str]
    offload: str | None = None
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        if self.device_map in STRATEGIES:
            return
        places = {"": self.device_map} if isinstance(self.device_map, str) else dict(self.device_map)
        if not places:
            raise ValueError(f"device_map names no part of the model: give {', '.join(STRATEGIES)}, or parts")
        for name, device in places.items():
            _check_device(name, device)
        self._check_offload(places)
        self._check_tower(places)

    def _check_offload(self, places: Mapping[str, Any]) -> None:
        to_disk = DISK in places.values()
        if to_disk and self.offload is None:
            raise ValueError("device_map puts parts on disk: say where with offload=FOLDER")
        if self.offload is not None and not to_disk:
            raise ValueError("offload would have no effect: device_map puts nothing on disk")

    def _check_tower(self, places: Mapping[str, Any]) -> None:
        """What is not on the main device is loaded piece by piece as it runs: memory beside a GPU, and disk."""
        inside = [device for name, device in places.items() if name.startswith(f"{TOWER}.")]
        above = [name for name in places if name == TOWER or TOWER.startswith(f"{name}.") or not name]
        own = {*inside, *((places[max(above, key=len)],) if above else ())}
        accelerators = [device for device in places.values() if device not in (MEMORY, DISK)]
        if len(own) > 1 or DISK in own or (MEMORY in own and accelerators):
            raise ValueError(
                f"device_map must put {TOWER} as a whole on one device that computes, and it is on "
                f"{', '.join(map(str, sorted(own, key=str)))}: compressed layers cannot be loaded as they run"
            )

    def options(self) -> dict[str, Any]:
        """Arguments of ``from_pretrained``."""
        places = self.device_map if isinstance(self.device_map, str) else dict(self.device_map)
        return {"device_map": places, "dtype": self.dtype} | ({"offload_folder": self.offload} if self.offload else {})


def free_tower(model: nn.Module) -> None:
    """Take Accelerate's hooks off the tower of a placed model.

    Raises:
        ValueError: parts of it are not in memory.
    """
    from accelerate.hooks import remove_hook_from_module

    tower = model.get_submodule(TOWER)
    devices = {parameter.device for parameter in tower.parameters()}
    if len(devices) > 1 or torch.device("meta") in devices:
        raise ValueError(f"this device_map splits {TOWER}, or leaves it on disk: give parts with their devices instead")
    remove_hook_from_module(tower, recurse=True)


def is_hooked(module: nn.Module) -> bool:
    """Whether Accelerate moves what a module takes to the device where it runs."""
    return hasattr(module, "_hf_hook")
