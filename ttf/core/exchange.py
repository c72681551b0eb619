"""Exchanging the class of a module, so that it stays the same object: and back, in copies and in pickles, too."""

from __future__ import annotations

import types
from functools import cache
from typing import TYPE_CHECKING, Any

from torch import nn

Base: Any = nn.Module if TYPE_CHECKING else object  # at run time a module's own class follows


class Exchanged(Base):
    """Base of the classes that come before a module's own while the model is compressed."""

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        mixin, own = _parts(type(self))
        return _blank, (mixin, own), self.__getstate__()

    def _get_name(self) -> str:
        return f"Compressed{type(self).__name__}"

    def __prepare_scriptable__(self) -> Any:
        raise ValueError("torch.jit.script cannot take a compressed model: use torch.export or torch.jit.trace")


@cache
def _exchanged_class(mixin: type, own: type) -> Any:
    # under the own class's name: libraries compare names (FSDP wrapping, device maps, saved configs)
    space = {"__module__": own.__module__, "__qualname__": own.__qualname__, "__doc__": own.__doc__}
    return type(own.__name__, (mixin, own), {**space, "ttf_parts": (mixin, own)})


def _parts(cls: Any) -> tuple[type, type]:
    """The mixin and the own class of an exchanged class."""
    if "ttf_parts" not in vars(cls):
        raise ValueError(f"{cls.__name__} was made of a compressed module (by fully_shard?) and cannot be copied")
    return vars(cls)["ttf_parts"]


def _blank(mixin: type, own: type) -> nn.Module:
    return object.__new__(_exchanged_class(mixin, own))


def is_exchanged(module: nn.Module) -> bool:
    return isinstance(module, Exchanged)


def own_class(module: nn.Module) -> type:
    """The class of a module without what this project or FSDP2 puts before it."""
    for cls in type(module).__mro__:
        if not (issubclass(cls, Exchanged) or cls.__name__.startswith("FSDP")):
            return cls
    raise AssertionError("every module has a class of its own")


def check_forward(module: nn.Module, path: str) -> None:
    """Raise ``ValueError`` where the module's forward sits on the instance, so that no class has a say in it."""
    if "forward" in module.__dict__ and not _redundant(module):
        raise ValueError(
            f"{path or 'the model'} has a forward of its own on the instance (set by hand, by accelerate's offload or "
            "by torch.compile): call ttf.apply first, then that"
        )


def _redundant(module: nn.Module) -> bool:
    """Whether the forward on the instance is the class's own, as libraries leave it behind after wrapping it."""
    forward = module.__dict__["forward"]
    if not (isinstance(forward, types.MethodType) and forward.__self__ is module):
        return False
    return any(vars(cls).get("forward") is forward.__func__ for cls in type(module).__mro__)


def exchange(module: nn.Module, mixin: type) -> None:
    """Put ``mixin`` before the module's own class."""
    if "forward" in vars(mixin):
        check_forward(module, type(module).__name__)
        module.__dict__.pop("forward", None)
    own: Any = type(module)
    module.__class__ = _exchanged_class(mixin, own)


def _restored_class(cls: Any) -> Any:
    """A class without what this project put into it, be it at the top or below that of ``fully_shard``."""
    if "ttf_parts" in vars(cls):
        return vars(cls)["ttf_parts"][1]
    bases = tuple(_restored_class(base) if issubclass(base, Exchanged) else base for base in cls.__bases__)
    own = {name: value for name, value in vars(cls).items() if name not in ("__dict__", "__weakref__")}
    return type(cls.__name__, bases, own)


def restore(module: nn.Module) -> None:
    """Give the module its own class back."""
    if "forward" in module.__dict__ and _redundant(module):
        del module.__dict__["forward"]
    module.__class__ = _restored_class(type(module))
    for name in ("ttf_place", "ttf_exit"):
        module.__dict__.pop(name, None)
