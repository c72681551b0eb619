"""What a run is: the settings that can change its numbers, and the identity that they have with data and weights.

``settings`` are known from a config alone, so that a table knows its rows without data or weights. A row's ``key`` is
their signature, its ``id`` that of the settings with the digests of the data and of the weights.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

from omegaconf import DictConfig, OmegaConf

from ttf.arguments import AUTO, HOST_OPTIONS, check_options
from ttf.results.store import SCHEMA, Row, signature
from ttf.tasks.options import reduction

OF_SCHEDULE = {"ratio", "budget", "blocks", "rounding", "schedule"}
COMMON = {"method", "preset", *OF_SCHEDULE, "recover", "recover_at", *HOST_OPTIONS}
OF_FILES = {"_target_", "root", "complete", "transform"}  # of a data set: the digest says what they lead to
OF_COMPRESSION = ("method", "schedule", "recover", "recover_at", "order", *HOST_OPTIONS)
KNOWN_LATER = ("data", "weights", "matrices")  # digests


def _plain(value: Any) -> Any:
    """Tuples as lists, dataclasses by class and fields: what JSON gives back.

    A field that was added later is left out at its default, so that rows from before keep their identity.
    """
    if is_dataclass(value) and not isinstance(value, type):
        types = get_type_hints(type(value))
        named = [f for f in fields(value) if not ("added" in f.metadata and getattr(value, f.name) == f.default)]
        own = {f.name: _plain(getattr(value, f.name)) for f in named}
        return {"class": type(value).__name__} | {n: float(v) if types[n] is float else v for n, v in own.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _schedule(options: dict[str, Any]) -> Row:
    """Class and fields; a schedule of ratio and blocks is a ``KeepRatio``, whose places may be the model's own."""
    given = options.get("schedule")
    placed = options.get("blocks") is not None or options.get("rounding") is not None
    if given == AUTO or (given is None and options.get("budget") is not None and not placed):
        return {"class": "Auto", "budget": float(options["budget"])}
    if given is not None:
        plain: Row = _plain(given)
        return plain
    places = options.get("blocks")
    rounding, name = options.get("rounding", "floor"), "ratio" if options.get("budget") is None else "budget"
    return {"class": "KeepRatio", name: float(options[name]), "blocks": places and list(places), "rounding": rounding}


def compression_settings(options: dict[str, Any] | None) -> Row:
    """Method, schedule and recovery from the arguments of ``ttf.apply``; None: the uncompressed model.

    Raises:
        ValueError: options that the method does not have, or out of their range.
    """
    if options is None:
        return {"method": None, "schedule": None, "recover": None}
    back = {"recover": _recovery(options), **({"recover_at": at} if (at := options.get("recover_at")) else {})}
    back |= {name: value for name, own in HOST_OPTIONS.items() if (value := options.get(name) or own) != own}
    if "calibrate" in options:  # its matrices say where it reduces
        return {"method": {"class": "PruneAndMerge", **options["calibrate"]}, "schedule": None, **back}
    own = {name: value for name, value in options.items() if name not in COMMON}
    method = check_options(options["method"], options.get("preset"), own)
    return {"method": _plain(method), "schedule": _schedule(options), **back}


def _recovery(options: dict[str, Any]) -> Any:
    recover = options.get("recover", False)
    return "nearest" if recover is True else recover or None


def data_settings(cfg: DictConfig) -> Row:
    """The data set by its name and options, without its place on this machine."""
    data = cfg.task.data[cfg.task.dataset]
    own = OmegaConf.masked_copy(data, [name for name in data if name not in OF_FILES])
    options: Any = OmegaConf.to_container(own, resolve=True)
    return {"name": cfg.task.dataset, **options}


def model_settings(cfg: DictConfig) -> Row:
    """Name, architecture, and which weights: the model's own, or those that fine-tuning left."""
    network: Any = OmegaConf.to_container(cfg.model.network, resolve=True)
    found = {"name": cfg.model.name, "network": network}
    if cfg.model.get("inference"):
        found["inference"] = OmegaConf.to_container(cfg.model.inference, resolve=True)
    return found | ({"fine_tuned": cfg.name} if cfg.finetuned and not cfg.checkpoint else {})


def order_settings(cfg: DictConfig) -> Row:
    """The order of short sequences, where a task reads one and it is not that of the image.

    Raises:
        ValueError: an order without a short sequence.
    """
    order = cfg.task.get("order", "raster")
    if order == "raster":
        return {}
    if reduction(cfg) is None or cfg.recover:
        raise ValueError(f"task.order={order} is the order of fewer tokens, and here are all of them: leave it out")
    return {"order": order}


def settings(cfg: DictConfig) -> Row:
    """What can change the numbers of a run, as far as a composed config says it.

    Args:
        cfg: the composed config of ``scripts/eval.py``.

    Raises:
        ValueError: options of the method or schedule that do not exist or are out of their range.
    """
    return {
        "schema": SCHEMA,
        "task": cfg.task.name,
        "data_set": data_settings(cfg),
        "model": model_settings(cfg),
        **compression_settings(reduction(cfg)),
        **order_settings(cfg),
        "dtype": cfg.dtype,
        "limit": cfg.limit,
        **({"skip": cfg.skip} if cfg.get("skip") else {}),
        "seed": cfg.seed,
        "on_bad_image": cfg.on_bad_image,
    }


def key_of(config: Row) -> str:
    """The signature of a row's settings, without the digests."""
    return signature({name: value for name, value in config.items() if name not in KNOWN_LATER})


def baseline_of(config: Row) -> Row:
    """What predictions of the uncompressed model depend on, of a row's config: the key of their cache."""
    return {name: value for name, value in config.items() if name not in OF_COMPRESSION}
