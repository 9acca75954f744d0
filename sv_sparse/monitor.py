"""What a run shows while it trains: progress bar, metrics.jsonl, tensorboard."""

import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from sv_sparse.optim.diagnostics import HISTOGRAM_END
from sv_sparse.storage import write_text

Row = dict[str, Any]
Item = TypeVar("Item")


class Monitor:
    """Shows the progress of a run and keeps its figures.

    Rows beyond ``step`` that an interrupted run left behind are dropped: they will come again.

    Args:
        folder: the run folder.
        step: steps done before.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self.path = folder / "metrics.jsonl"
        rows = read_rows(self.path)
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in rows if row["step"] <= step))
        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)

    @contextmanager
    def progress(self, step: int, total_steps: int) -> Iterator[None]:
        """Show a progress bar from ``step`` to ``total_steps`` while inside."""
        interval = 0.5 if sys.stderr.isatty() else 30
        with tqdm(total=total_steps, initial=step, unit="step", mininterval=interval, desc="training") as self.bar:
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
        """Append a row, which has a ``step``, to metrics.jsonl and to tensorboard."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
        for name, value in row.items():
            if name not in {"step", "epoch"}:
                self.writer.add_scalar(name, value, row["step"])

    def layers(self, sparsity: dict[str, float], step: int) -> None:
        """Each layer's sparsity to tensorboard."""
        for name, value in sparsity.items():
            self.writer.add_scalar(f"sparsity_per_layer/{name}", value, step)

    def duals(self, histogram: Tensor | None, step: int) -> None:
        """How many duals lie where around lambda, as ``SupportDiagnostics.histogram`` counts them, to tensorboard."""
        if histogram is None:
            return
        counts = histogram.double().cpu()
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

    def finish(self, settings: dict[str, Any], figures: dict[str, float]) -> None:
        """The hyperparameters with the final figures, for tensorboard's HParams page."""
        plain = {name: value for name, value in _flat(settings).items() if isinstance(value, (int, float, str, bool))}
        self.writer.add_hparams(plain, {f"final/{name}": value for name, value in figures.items()}, run_name=".")

    def close(self) -> None:
        """Make what was written durable."""
        self.writer.close()
        with open(self.path, "a", encoding="utf-8") as file:
            os.fsync(file.fileno())


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


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
