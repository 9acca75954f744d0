"""Table of a sweep's runs, which ``python train.py -m`` prints when its jobs have ended."""

import os
from datetime import datetime
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from sv_sparse.evaluation.evaluate import read_json
from sv_sparse.io import write_json, write_text
from sv_sparse.report import format as fmt
from sv_sparse.report.tables import Table


class SweepTable(Callback):
    """Hydra callback that notes how each job of a sweep ended.

    A job may run in another process or on another machine of a shared disk: each writes a file into
    ``<hydra.sweep.dir>/<time>/``. Hydra has no hook for the end of a sweep in which a job failed, so that the command
    calls ``print_sweep_table``.
    """

    current: "SweepTable | None" = None

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.runs_dir = ""
        self.is_complete = False

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Make the name of the folder that jobs write into."""
        self.folder = Path(config.hydra.sweep.dir).absolute() / f"{datetime.now():%Y-%m-%d_%H-%M-%S}_{os.getpid()}"
        self.runs_dir = str(config.runs_dir)
        SweepTable.current = self

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Note that all jobs ended, or were handed to a cluster."""
        self.is_complete = True

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Write how the job ended."""
        # In a single run there is no folder; other processes of a run have nothing to add.
        if self.folder is None or int(os.environ.get("RANK", "0")) > 0:
            return
        succeeded = job_return.status == JobStatus.COMPLETED
        job = {
            "overrides": list(job_return.overrides or ()),
            "run_dir": job_return.return_value if succeeded else None,
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / f"job_{config.hydra.job.num}.json", job)


def print_sweep_table() -> None:
    """Print the table of the sweep that this process ran, and write it beside the notes of the jobs."""
    sweep = SweepTable.current
    if sweep is None or sweep.folder is None or int(os.environ.get("RANK", "0")) > 0:
        return
    jobs = {int(path.stem.removeprefix("job_")): read_json(path) for path in sweep.folder.glob("job_*.json")}
    if not jobs:
        # A cluster without a shared disk, or that still computes.
        if sweep.is_complete:
            print(f"\nThe table of the runs, when they have ended: sv-sparse compare {sweep.runs_dir}/*")
        return
    failed = sum(job["run_dir"] is None for job in jobs.values())
    text = f"Sweep: {len(jobs)} jobs, {failed} failed\n\n{_table(dict(sorted(jobs.items()))).markdown()}\n"
    write_text(sweep.folder / "table.md", text)
    print(f"\n{text}\n{sweep.folder}/table.md")


def _table(jobs: dict[int, dict[str, Any]]) -> Table:
    common = set.intersection(*(set(job["overrides"]) for job in jobs.values()))
    rows = []
    for num, job in jobs.items():
        settings = " ".join(override for override in job["overrides"] if override not in common)
        if job["run_dir"] is None:
            rows.append([str(num), settings, *4 * [fmt.DASH], "failed"])
            continue
        results = read_json(Path(job["run_dir"]) / "results.json")
        cells = [fmt.percent(results["target_sparsity"]), fmt.percent(results["sparsity"], 4)]
        cells += [fmt.percent(results["eer"]), fmt.number(results["min_dcf"])]
        rows.append([str(num), settings, *cells, job["run_dir"]])
    return Table("Sweep", ("job", "settings", "target", "final sparsity", "EER", "minDCF", "run folder"), rows)
