"""The numerical contract of the Triton kernels on this card: ``ttf contract jobs=8``."""

from __future__ import annotations

from pathlib import Path

import hydra
from omegaconf import DictConfig

from ttf import cli
from ttf.config_store import CONFIGS


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="contract")
@cli.job
def main(cfg: DictConfig) -> None:
    from rich.progress import track

    from ttf.bench import contracts
    from ttf.measure.provenance import provenance
    from ttf.results import costs
    from ttf.tasks.options import pick_device, pick_dtype

    device, dtypes = pick_device(cfg.device), [pick_dtype(name) for name in cfg.dtypes]
    contracts.check(device, cfg.cases)
    cases = contracts.chosen(cfg.cases, dtypes, cfg.largest)
    found = list(track(contracts.outcomes(device, cases, cfg.jobs), "cases", total=len(cases)))
    known = provenance(device)
    place = {"device": known["device"], "torch": known["versions"]["torch"]}
    place |= {"git": known["git"]["sha"], "dirty": known["git"]["dirty"]}
    costs.write(contracts.rows(found, place), Path(cfg.csv))
    all_of = {dtype: [o for case, some in found if case.dtype == dtype for o in some] for dtype in dtypes}
    for dtype, outcomes in all_of.items():
        if outcomes:
            print(contracts.said(str(dtype).removeprefix("torch."), outcomes))
    print(cfg.csv)
    if not all(outcome.kept for outcomes in all_of.values() for outcome in outcomes):
        raise SystemExit(1)
