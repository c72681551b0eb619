"""A page to look at: tokens that go, answers, numbers; extra app: ``ttf app port=7860``."""

from __future__ import annotations

from importlib.util import find_spec

import hydra
from omegaconf import DictConfig

from ttf import cli
from ttf.config_store import CONFIGS


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="app")
@cli.job
def main(cfg: DictConfig) -> None:
    if find_spec("gradio") is None:
        raise ValueError("the page needs Gradio: pip install 'ttf[app]'")
    from ttf.app.page import serve  # torch comes after the settings are checked
    from ttf.app.shelf import Shelf

    serve(Shelf(cfg.paths, cfg.device, cfg.models and [str(name) for name in cfg.models]), cfg.host, cfg.port)
