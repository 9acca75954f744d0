"""What a run shows while it trains: progress bar, metrics.jsonl, tensorboard."""

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

from sv_sparse.config.settings import flat
from sv_sparse.distributed import rank
from sv_sparse.io import naming, write_text
from sv_sparse.optim.diagnostics import HISTOGRAM_END

logger = logging.getLogger(__name__)

Row = dict[str, Any]
Item = TypeVar("Item")


class Monitor:
    """Shows the progress of a run and keeps its figures; a process that is not the first keeps and shows nothing.

    Rows that an interrupted run left behind are dropped, here and in tensorboard: they will come again.

    Args:
        folder: the run folder.
        step: steps done before.
        rows: rows kept before.
    """

    def __init__(self, folder: Path, step: int, rows: int) -> None:
        self.path = folder / "metrics.jsonl"
        self.silent = rank() > 0
        self.rows = rows
        if self.silent:
            return
        kept = read_rows(self.path)[:rows]
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        _await_own_second(folder / "tensorboard")
        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step)
        for row in kept:
            if row["step"] == step:  # the purge takes them too
                self._draw(row)

    @contextmanager
    def progress(self, step: int, total_steps: int) -> Iterator[None]:
        """Show a progress bar from ``step`` to ``total_steps`` while inside."""
        interval = 0.5 if sys.stderr.isatty() else 30
        shape: dict[str, Any] = {"unit": "step", "mininterval": interval, "desc": "training"}
        silence = {"disable": True} if self.silent else {}  # otherwise TQDM_DISABLE says
        with tqdm(total=total_steps, initial=step, **shape, **silence) as self.bar:
            yield

    def advance(self) -> None:
        """One step is done."""
        self.bar.update()

    def show(self, row: Row) -> None:
        """Show a step's figures on the progress bar."""
        self.bar.set_postfix_str(
            f"loss {row['loss']:.2f}, acc {row['accuracy']:.1%}, sparsity {row['sparsity/trained']:.2%} "
            f"of {row['target_sparsity']:.2%}, lambda {row['lambda']:.3g}, "
            f"{row['utterances_per_second']:.0f} utt/s, data wait {row['data_wait']:.0%}",
            refresh=False,
        )

    def keep(self, row: Row) -> None:
        """Append a row, which has a ``step``, to metrics.jsonl and to tensorboard.

        Its values are numbers; ``layers``, which are numbers by layer; and ``duals``, which are counts as
        ``SupportDiagnostics.histogram`` returns them.
        """
        self.rows += 1
        if self.silent:
            return
        with naming(self.path), open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self._draw(row)

    def _draw(self, row: Row) -> None:
        for name, value in row.items():
            if name == "layers":
                for layer, share in value.items():
                    self.writer.add_scalar(f"sparsity_per_layer/{layer}", share, row["step"])
            elif name == "duals":
                self._draw_duals(torch.tensor(value, dtype=torch.float64), row["step"])
            elif name not in {"step", "epoch"}:
                self.writer.add_scalar(name, value, row["step"])

    def _draw_duals(self, counts: Tensor, step: int) -> None:
        """How many duals lie where around lambda."""
        edges = torch.linspace(0, HISTOGRAM_END, len(counts) + 1, dtype=torch.float64)
        middles = (edges[1:] + edges[:-1]) / 2
        self.writer.add_histogram_raw(
            "dual_over_lambda",
            min=0.0,
            max=HISTOGRAM_END,
            num=int(counts.sum()),
            sum=float((counts * middles).sum()),
            sum_squares=float((counts * middles**2).sum()),
            bucket_limits=edges[1:].tolist(),
            bucket_counts=counts.tolist(),
            global_step=step,
        )

    def finish(
        self, settings: dict[str, Any], final: Mapping[str, float], figures: Mapping[str, Figure], step: int
    ) -> None:
        """Give tensorboard's HParams page the hyperparameters with the final numbers, and draw figures by name."""
        plain = {name: value for name, value in flat(settings).items() if isinstance(value, (int, float, str, bool))}
        named = {f"final/{name}": value for name, value in final.items()}
        self.writer.add_hparams(plain, named, run_name=".", global_step=step)
        for name, figure in figures.items():
            self.writer.add_figure(f"report/{name}", figure, global_step=step)

    def sync(self) -> None:
        """Make what was kept durable."""
        if self.silent:
            return
        self.writer.flush()
        with open(self.path, "a", encoding="utf-8") as file:
            os.fsync(file.fileno())

    def close(self) -> None:
        """Make what was kept durable, and keep nothing more."""
        self.sync()
        if not self.silent:
            self.writer.close()


def _await_own_second(folder: Path) -> None:
    """Wait out a second in which another process began a file there: tensorboard would order the two by their names."""
    while any(folder.glob(f"events.out.tfevents.{int(time.time())}.*")):
        time.sleep(0.05)


class Timer:
    """Throughput and the share of time spent waiting for data, since last read."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Begin to measure anew, after something that is not training."""
        self.began, self.waited, self.utterances = time.perf_counter(), 0.0, 0

    def waits(self, items: Iterable[Item]) -> Iterator[Item]:
        """Pass ``items`` on, timing how long each is waited for."""
        source = iter(items)
        while True:
            before = time.perf_counter()
            try:
                item = next(source)
            except StopIteration:
                return
            self.waited += time.perf_counter() - before
            yield item

    def count(self, utterances: int) -> None:
        """``utterances`` were trained on."""
        self.utterances += utterances

    def read(self) -> dict[str, float]:
        """``utterances_per_second`` and ``data_wait`` (a share) since last read, and begin anew."""
        spent = time.perf_counter() - self.began
        figures = {"utterances_per_second": self.utterances / spent, "data_wait": self.waited / spent}
        self.restart()
        return figures


@contextmanager
def profiled(folder: Path, *, wanted: bool) -> Iterator[Callable[[], None]]:
    """Where wanted, profile some steps, and leave a trace for tensorboard or ui.perfetto.dev and a table in the log.

    Yields:
        What to call after each step.
    """
    if not wanted:
        yield lambda: None
        return
    activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * torch.cuda.is_available()]

    def keep(found: profile) -> None:
        tensorboard_trace_handler(str(folder / "tensorboard"), worker_name=f"rank{rank()}")(found)
        order = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        logger.info("%s", found.key_averages().table(sort_by=order, row_limit=25, max_name_column_width=40))

    # later steps than the first, whose memory and kernels are still being made
    plan = schedule(skip_first=3, wait=0, warmup=1, active=4, repeat=1)
    with profile(activities=activities, schedule=plan, on_trace_ready=keep, profile_memory=True) as profiler:
        yield profiler.step


def as_words(figures: dict[str, Any]) -> str:
    """Figures on one line; rates and sparsities in %."""
    shares = ("sparsity", "eer")
    texts = []
    for name, value in figures.items():
        percent = isinstance(value, float) and any(share in name for share in shares)
        texts.append(f"{name} {value:.2%}" if percent else f"{name} {value:.4g}")
    return ", ".join(texts)


def read_rows(path: Path) -> list[Row]:
    """The rows of a metrics.jsonl; a last line that an interruption broke off is left out, no file is no rows."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]
