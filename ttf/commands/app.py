"""A page to look at: tokens that go, answers, numbers; extra app: ``ttf app port=7860``."""

from __future__ import annotations

import socket
from importlib.util import find_spec

import hydra
from omegaconf import DictConfig

from ttf import cli
from ttf.config_store import CONFIGS


def check_address(host: str, port: int) -> None:
    """Raise ``ValueError`` where nothing can listen there."""
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        advice = "choose another port, port=0 takes a free one; host=127.0.0.1 is this machine"
        raise ValueError(f"nothing can listen on host={host} port={port} ({error.strerror}): {advice}") from error


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="app")
@cli.job
def main(cfg: DictConfig) -> None:
    if find_spec("gradio") is None:
        raise ValueError("the page needs Gradio: pip install 'ttf[app]'")
    check_address(cfg.host, cfg.port)
    from ttf.app.page import serve  # torch comes after the settings are checked
    from ttf.app.shelf import Shelf

    serve(Shelf(cfg.paths, cfg.device, cfg.models and [str(name) for name in cfg.models]), cfg.host, cfg.port)
