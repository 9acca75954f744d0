"""Table of a sweep's runs, which ``python train.py -m`` prints when its jobs have ended."""

import os
import shlex
import sys
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

# How a job ended; a job that was killed leaves the first.
_NOT_ENDED, _FAILED, _FINISHED = "not ended", "failed", "finished"


class SweepTable(Callback):
    """Hydra callback that notes how each job of a sweep began and ended.

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

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Write that the job began, so that one which is killed is missed."""
        self._write_note(config, list(config.hydra.overrides.task), _NOT_ENDED)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Write how the job ended."""
        overrides = list(job_return.overrides or ())
        if job_return.status == JobStatus.COMPLETED:
            self._write_note(config, overrides, _FINISHED, job_return.return_value)
        else:
            self._write_note(config, overrides, _FAILED)

    def _write_note(self, config: DictConfig, overrides: list[str], status: str, run_dir: str | None = None) -> None:
        # In a single run there is no folder; other processes of a run have nothing to add.
        if self.folder is None or int(os.environ.get("RANK", "0")) > 0:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        note = {"overrides": overrides, "status": status, "run_dir": run_dir}
        write_json(self.folder / f"job_{config.hydra.job.num}.json", note)


def print_sweep_table() -> None:
    """Print the table of the sweep that this process ran, and write it beside the notes of the jobs.

    What keeps it from that is a warning: the command has an ending of its own.
    """
    sweep = SweepTable.current
    if sweep is None or sweep.folder is None or int(os.environ.get("RANK", "0")) > 0:
        return
    try:
        _print_table(sweep, sweep.folder)
    except (OSError, ValueError) as error:
        print(f"warning: no table of the sweep: {error}", file=sys.stderr)


def _print_table(sweep: SweepTable, folder: Path) -> None:
    jobs = {int(path.stem.removeprefix("job_")): read_json(path) for path in folder.glob("job_*.json")}
    if not jobs:
        # A cluster without a shared disk, or that still computes.
        if sweep.is_complete:
            command = f"sv-sparse compare {shlex.quote(sweep.runs_dir)}/*"
            print(f"\nThe table of the runs, when they have ended: {command}")
        return
    statuses = [job["status"] for job in jobs.values()]
    failed = statuses.count(_FAILED)
    # Hydra does not call a sweep complete in which a job failed.
    if sweep.is_complete or (failed and _NOT_ENDED not in statuses):
        summary = f"Sweep: {_count_jobs(len(jobs))}, {failed} failed"
    else:
        summary = f"Sweep interrupted: {_count_jobs(len(jobs) - statuses.count(_NOT_ENDED))} ended, {failed} failed"
    text = f"{summary}\n\n{_table(dict(sorted(jobs.items()))).markdown()}\n"
    print(f"\n{text}")
    write_text(folder / "table.md", text)
    print(f"{folder}/table.md")


def _count_jobs(number: int) -> str:
    return "1 job" if number == 1 else f"{number} jobs"


def _table(jobs: dict[int, dict[str, Any]]) -> Table:
    common = set.intersection(*(set(job["overrides"]) for job in jobs.values()))
    rows = []
    for num, job in jobs.items():
        settings = " ".join(override for override in job["overrides"] if override not in common)
        results = read_json(Path(job["run_dir"]) / "results.json") if job["run_dir"] else {}
        if results:
            cells = [fmt.percent(results["target_sparsity"]), fmt.percent(results["sparsity"], 4)]
            cells += [fmt.percent(results["eer"]), fmt.number(results["min_dcf"]), job["run_dir"]]
        else:
            # Somebody may have removed the folder of a job that finished.
            ending = "no results" if job["status"] == _FINISHED else job["status"]
            cells = [*4 * [fmt.DASH], ending]
        rows.append([str(num), settings, *cells])
    return Table("Sweep", ("job", "settings", "target", "final sparsity", "EER", "minDCF", "run folder"), rows)
