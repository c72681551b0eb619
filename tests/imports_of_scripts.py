"""What the scripts import, for processes that fork: see ``scripts_under_test``."""

from __future__ import annotations

import matplotlib
import torch

import ttf.bench.timing
import ttf.cli
import ttf.doctor
import ttf.report
import ttf.report.figures
import ttf.report.masks
import ttf.report.matrices
import ttf.report.wandb
import ttf.results.measured
import ttf.sweep
import ttf.tasks.run
import ttf.training.run  # noqa: F401

matplotlib.use("agg")
torch.set_num_threads(1)
