"""Cells to finished runs, several at once, each with its share of the cores; what is finished is not done again."""

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from recipe import STOP_SIGNALS
from stages import HOME, Command, quoted, training

from evidence.plan import Cell


class Shared(NamedTuple):
    """Settings of all cells.

    Attributes:
        corpus: What is listened to; a cell's own take their place.
        given: Those of the command line; of ``trainer``, they take the place of a cell's own.
    """

    corpus: Sequence[str]
    given: Sequence[str]


class Workers:
    """Trains cells in processes of their own.

    Args:
        out: Where ``runs`` and ``logs`` go.
        settings: Of train.py, that every cell has.
        places: What ``{...}`` in settings stands for, beside what another cell ended with.
        jobs: Cells at once.
    """

    def __init__(self, out: Path, settings: Shared, places: Mapping[str, str], jobs: int) -> None:
        self.out, self.settings, self.places, self.jobs = out, settings, dict(places), jobs
        self.stopped: list[int] = []
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._told: dict[str, Future[int]] = {}
        self._done = 0

    def folder(self, name: str) -> Path:
        """Of a cell's run."""
        return self.out / "runs" / name

    def command(self, cell: Cell, *, pretend: bool = False) -> Command:
        """What trains a cell, or the rest of it; nothing where it is finished.

        Raises:
            ValueError: It was begun with other settings.
        """
        places = self.places | self._ended(cell.after, pretend=pretend)
        own = [word.format(**places) if "{" in word else word for word in cell.settings]
        how = [word for word in self.settings.given if word.startswith("trainer.")]
        ordered = (*self.settings.corpus, *self.settings.given, *own, *how)  # what a cell's name says of it stays
        chosen = {word.partition("=")[0]: word for word in ordered}
        words = training(self.folder(cell.name), list(chosen.values()), pretend=pretend)
        return ["python", str(HOME / "train.py"), *words] if words else []

    def _ended(self, name: str, *, pretend: bool) -> dict[str, str]:
        """What a cell that another comes after ended with."""
        if not name:
            return {}
        folder = self.folder(name)
        if pretend:
            return {"lambda": "LAMBDA", "folder": quoted(folder)}
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        return {"lambda": f"{results['lambda']:.4g}", "folder": quoted(folder)}

    def train(self, cells: Sequence[Cell]) -> int:
        """Train every cell; one that fails does not keep the others, but those after it, from being trained.

        Returns:
            0, or the exit status of a cell that failed, or 128 + the signal that asked to stop.
        """
        (self.out / "logs").mkdir(parents=True, exist_ok=True)
        before = {each: signal.signal(each, self._stop) for each in STOP_SIGNALS}
        try:
            with ThreadPoolExecutor(self.jobs) as pool:
                for cell in cells:
                    self._told[cell.name] = pool.submit(self._one, cell, len(cells))
                statuses = [told.result() for told in self._told.values()]
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)
        return 128 + self.stopped[-1] if self.stopped else max(statuses, default=0)

    def _one(self, cell: Cell, total: int) -> int:
        """Train a cell once the one that it comes after is there; those were told earlier, so they are under way."""
        before = self._told[cell.after].result() if cell.after else 0
        if self.stopped:
            return 1
        if before:
            return self._say(cell, total, "left out, since what it comes after is missing", 1)
        try:
            command = self.command(cell)
        except ValueError as error:
            return self._say(cell, total, f"error: {error}", 2)
        if not command:
            return self._say(cell, total, "finished before", 0)
        print(shlex.join(command), flush=True)
        status = self._run(cell, command)
        ended = "finished" if not status else f"ended with status {status}, see {self._log(cell)}"
        return self._say(cell, total, ended, status)

    def _run(self, cell: Cell, command: Command) -> int:
        cores = max(1, (os.cpu_count() or 1) // self.jobs)
        share = {"OMP_NUM_THREADS": str(cores), "LOKY_MAX_CPU_COUNT": str(cores)}  # for torch, for readers of crops
        with self._log(cell).open("ab") as log:
            words = [sys.executable, *command[1:]]
            with self._lock:
                if self.stopped:
                    return 1
                process = subprocess.Popen(words, stdout=log, stderr=log, env=os.environ | share)
                self._running.add(process)
                if self.stopped and self.stopped[-1] != signal.SIGINT:  # it came while this one was started
                    process.send_signal(self.stopped[-1])
            status = process.wait()
            with self._lock:
                self._running.discard(process)
        return abs(status)

    def _log(self, cell: Cell) -> Path:
        return self.out / "logs" / f"{cell.name}.log"

    def _say(self, cell: Cell, total: int, words: str, status: int) -> int:
        with self._lock:
            self._done += 1
            print(f"[{self._done}/{total}] {cell.name}: {words}", flush=True)
        return status

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        """Ask every run to stop with a checkpoint, and begin no other."""
        self.stopped.append(number)
        for process in list(self._running):
            if number != signal.SIGINT:  # Ctrl-C reaches them by itself
                process.send_signal(number)
