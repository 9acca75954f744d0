"""Metrics of a run: progress bar, metrics.jsonl, tensorboard."""

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, schedule, tensorboard_trace_handler
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from sv_sparse.config.schema import flatten
from sv_sparse.distributed import rank
from sv_sparse.io import name_file_in_errors, write_text
from sv_sparse.optim.diagnostics import HISTOGRAM_MAX

logger = logging.getLogger(__name__)

Row = dict[str, Any]
Item = TypeVar("Item")


class MetricLogger:
    """Writes the metrics of a run to metrics.jsonl and tensorboard, and shows them on the progress bar.

    Rows that an interrupted run left behind are dropped, here and in tensorboard: they will come again. Processes
    other than the first write and show nothing.

    Args:
        folder: the run folder.
        step: steps done before.
        rows: rows written before.
    """

    def __init__(self, folder: Path, step: int, rows: int) -> None:
        self.path = folder / "metrics.jsonl"
        self.rows = rows
        self._is_silent = rank() > 0
        if self._is_silent:
            return
        previous = read_rows(self.path)[:rows]
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in previous))
        _wait_for_unique_event_file(folder / "tensorboard")
        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step)
        for row in previous:
            # The purge takes them too.
            if row["step"] == step:
                self._write_to_tensorboard(row)

    @contextmanager
    def progress(self, step: int, total_steps: int) -> Iterator[None]:
        """Show a progress bar from ``step`` to ``total_steps`` while inside."""
        # A log file would fill with lines.
        interval = 0.5 if sys.stderr.isatty() else 30
        options: dict[str, Any] = {"unit": "step", "mininterval": interval, "desc": "training"}
        # Otherwise the environment variable TQDM_DISABLE says.
        if self._is_silent:
            options["disable"] = True
        with tqdm(total=total_steps, initial=step, **options) as self.bar:
            yield

    def step(self) -> None:
        """Move the progress bar by one step."""
        self.bar.update()

    def show(self, row: Row) -> None:
        """Show a step's metrics on the progress bar."""
        words = [f"loss {row['loss']:.2f}"]
        if "accuracy" in row:
            words.append(f"acc {100 * row['accuracy']:.1f} %")
        if "teacher_cosine" in row:
            words.append(f"cosine {row['teacher_cosine']:.3f}")
        self.bar.set_postfix_str(
            f"{', '.join(words)}, "
            f"sparsity {100 * row['sparsity/regularized']:.2f} % of {100 * row['target_sparsity']:.2f} %, "
            f"lambda {row['lambda']:.3g}, "
            f"{row['utterances_per_second']:.0f} utt/s, data wait {100 * row['data_wait_fraction']:.0f} %",
            refresh=False,
        )

    def log(self, row: Row) -> None:
        """Append a row to metrics.jsonl and to tensorboard.

        Args:
            row: ``step`` and numbers by name; ``layers``, numbers by layer; ``dual_histogram``, counts as
                ``SupportDiagnostics.histogram`` returns them.
        """
        self.rows += 1
        if self._is_silent:
            return
        with name_file_in_errors(self.path), open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self._write_to_tensorboard(row)

    def finish(
        self, settings: dict[str, Any], final: Mapping[str, float], figures: Mapping[str, Figure], step: int
    ) -> None:
        """Write the settings with the final metrics to tensorboard's HParams page, and the report's figures.

        Args:
            settings: of the run, as plain data.
            final: metrics by name.
            figures: by name.
            step: last step of the run.
        """
        hparams = {}
        for name, value in flatten(settings).items():
            if isinstance(value, (int, float, str, bool)):
                hparams[name] = value
        metrics = {f"final/{name}": value for name, value in final.items()}
        self.writer.add_hparams(hparams, metrics, run_name=".", global_step=step)
        for name, figure in figures.items():
            self.writer.add_figure(f"report/{name}", figure, global_step=step)

    def sync(self) -> None:
        """Make what was written durable."""
        if self._is_silent:
            return
        self.writer.flush()
        with open(self.path, "a", encoding="utf-8") as file:
            os.fsync(file.fileno())

    def close(self) -> None:
        """Make what was written durable, and write nothing more."""
        self.sync()
        if not self._is_silent:
            self.writer.close()

    def _write_to_tensorboard(self, row: Row) -> None:
        for name, value in row.items():
            if name == "layers":
                for layer, layer_sparsity in value.items():
                    self.writer.add_scalar(f"sparsity_per_layer/{layer}", layer_sparsity, row["step"])
            elif name == "dual_histogram":
                self._write_dual_histogram(torch.tensor(value, dtype=torch.float64), row["step"])
            elif name not in {"step", "epoch"}:
                self.writer.add_scalar(name, value, row["step"])

    def _write_dual_histogram(self, counts: Tensor, step: int) -> None:
        """Write how many dual variables lie where relative to lambda."""
        edges = torch.linspace(0, HISTOGRAM_MAX, len(counts) + 1, dtype=torch.float64)
        centers = (edges[1:] + edges[:-1]) / 2
        self.writer.add_histogram_raw(
            "dual_over_lambda",
            min=0.0,
            max=HISTOGRAM_MAX,
            num=int(counts.sum()),
            sum=float((counts * centers).sum()),
            sum_squares=float((counts * centers**2).sum()),
            bucket_limits=edges[1:].tolist(),
            bucket_counts=counts.tolist(),
            global_step=step,
        )


def _wait_for_unique_event_file(folder: Path) -> None:
    """Wait out a second in which another process made a file there: tensorboard orders files by second and name."""
    while any(folder.glob(f"events.out.tfevents.{int(time.time())}.*")):
        time.sleep(0.05)


class Timer:
    """Throughput, and the fraction of time spent waiting for data, since last read."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Start to measure anew, after something that is not training."""
        self.start_time = time.perf_counter()
        self.wait_seconds = 0.0
        self.utterances = 0

    def timed(self, items: Iterable[Item]) -> Iterator[Item]:
        """Pass ``items`` on, timing how long each is waited for."""
        source = iter(items)
        while True:
            start_time = time.perf_counter()
            try:
                item = next(source)
            except StopIteration:
                return
            self.wait_seconds += time.perf_counter() - start_time
            yield item

    def count(self, utterances: int) -> None:
        """Add utterances that were trained on."""
        self.utterances += utterances

    def read(self) -> dict[str, float]:
        """Return ``utterances_per_second`` and ``data_wait_fraction`` since last read, and start anew."""
        seconds = time.perf_counter() - self.start_time
        metrics = {
            "utterances_per_second": self.utterances / seconds,
            "data_wait_fraction": self.wait_seconds / seconds,
        }
        self.restart()
        return metrics


@contextmanager
def profiler(folder: Path, *, enabled: bool) -> Iterator[Callable[[], None]]:
    """Profile some steps, and leave a trace for tensorboard or ui.perfetto.dev and a table in the log.

    Args:
        folder: the run folder.
        enabled: otherwise nothing is profiled.

    Yields:
        A function to call after each step.
    """
    if not enabled:
        yield lambda: None
        return
    has_cuda = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU]
    if has_cuda:
        activities.append(ProfilerActivity.CUDA)

    def write_trace(trace: profile) -> None:
        tensorboard_trace_handler(str(folder / "tensorboard"), worker_name=f"rank{rank()}")(trace)
        order = "self_cuda_time_total" if has_cuda else "self_cpu_time_total"
        logger.info("%s", trace.key_averages().table(sort_by=order, row_limit=25, max_name_column_width=40))

    # Later steps than the first, which still allocate memory and compile kernels.
    plan = schedule(skip_first=3, wait=0, warmup=1, active=4, repeat=1)
    with profile(activities=activities, schedule=plan, on_trace_ready=write_trace, profile_memory=True) as trace:
        yield trace.step


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a metrics.jsonl; a last line that an interruption broke off is left out.

    Args:
        path: of the file; if it does not exist there are no rows.
    """
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]
