"""What changes while a run trains, and how that is saved, taken up again and chosen from."""

import logging
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from sv_sparse import checkpoint
from sv_sparse.data.loader import UnreadableMeter
from sv_sparse.distributed import from_first, gathered_objects, rank, ranks
from sv_sparse.optim import DualAverage, SupportDiagnostics
from sv_sparse.scoring.backend import Backend
from sv_sparse.training.setup import Experiment

logger = logging.getLogger(__name__)


@dataclass
class Progress:
    """Where a run stands.

    Attributes:
        epoch: Epochs ended.
        batch: Steps of the next one that are done.
        step: Steps done.
        seconds: All its time, interruptions left out.
        ranks: How many processes train together.
        seen: Utterances drawn.
        unreadable: How many of them could not be read.
        rows: Rows of metrics.jsonl.
        judged: Whether the epoch that ended last has been validated.
        stale: Epochs since the validation got better.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    seconds: float = 0.0
    ranks: int = 1
    seen: int = 0
    unreadable: int = 0
    rows: int = 0
    judged: bool = True
    stale: int = 0


class RunState:
    """The state of a run; begins with that of its last checkpoint, if there is one.

    Args:
        experiment: what is trained.
        started: ``time.monotonic()`` at which this process began to work on the run.

    Attributes:
        begun: whether there was a checkpoint.
        best: what is known of the best epoch.
        at_start: the untrained network's evaluations.
        scaler: of fp16.

    Raises:
        ValueError: the checkpoint cannot be read; names the one before it. Or nobody is held out, whom patience needs.
        OSError: the processes see different checkpoints.
    """

    def __init__(self, experiment: Experiment, started: float) -> None:
        self.experiment, self.started = experiment, started
        self.checkpoints = checkpoint.Checkpoints(
            experiment.folder / "checkpoints", experiment.settings["trainer"]["keep"]
        )
        self.progress = Progress()
        patience = experiment.settings["trainer"]["patience"]
        if patience is not None and not len(experiment.corpus.manifest.split("validation")):
            raise ValueError(
                f"trainer.patience={patience} needs speakers to validate on; choose data.validation_share above 0"
            )
        self.best: dict[str, Any] = {}
        self.at_start: list[dict[str, Any]] = []
        self.diagnostics = SupportDiagnostics(experiment.controller)
        self.scaler = experiment.compute.scaler()
        self.meter = UnreadableMeter(experiment.settings["data"]["max_unreadable"])
        self.begun = from_first(lambda: bool(self.checkpoints))
        if self.begun:
            self._restore(self.checkpoints.read_last())
            logger.info("continuing %s at step %d", experiment.folder, self.progress.step)
            self._assert_same()
            self._keep_judged()
            self._forget_lost_best()

    def seconds(self) -> float:
        """Time spent on the run so far, interruptions left out."""
        return self.progress.seconds + time.monotonic() - self.started

    def save(self, rows: int) -> None:
        """Write everything that continuing needs to last.pt; the first process does.

        Args:
            rows: of metrics.jsonl.
        """
        if rank() > 0:
            return
        experiment, progress = self.experiment, self.progress
        progress.seen, progress.unreadable, progress.rows = self.meter.seen, self.meter.unreadable, rows
        progress.ranks = ranks()
        state = {
            "config": experiment.settings,
            "model": experiment.network.state_dict(),
            "head": experiment.head.state_dict(),
            "optimizer": experiment.optimizer.state_dict(),
            "controller": experiment.controller.state_dict(),
            "scaler": self.scaler.state_dict(),
            "diagnostics": self.diagnostics.state_dict(),
            "progress": asdict(progress) | {"seconds": self.seconds()},
            "generators": {"cpu": torch.get_rng_state(), "cuda": _cuda_generator(experiment.compute.device)},
            "best": self.best,
            "at_start": self.at_start,
            "started_sparse": experiment.started_sparse,
        }
        self.checkpoints.save(state)

    def keep_epoch(self) -> None:
        """Keep what was saved as the checkpoint after an epoch."""
        if rank() == 0:
            patient = self.experiment.settings["trainer"]["patience"] is not None
            self.checkpoints.keep_epoch(self.progress.epoch, best=self.best.get("epoch") if patient else None)

    def _assert_same(self) -> None:
        """All processes have read the same checkpoint.

        Raises:
            OSError: they have not.
        """
        steps = gathered_objects((self.progress.epoch, self.progress.batch, self.progress.step))
        if len(set(steps)) > 1:
            raise OSError(
                f"{self.checkpoints.folder}: the processes read checkpoints of different steps (epoch, batch, step: "
                f"{steps}); all need the same folder"
            )

    def _keep_judged(self) -> None:
        """Keep the epoch that was judged last, where the run was killed after it was saved and before it was kept."""
        progress = self.progress
        at_end = progress.epoch and not progress.batch and progress.judged
        if at_end and not self.checkpoints.epoch(progress.epoch).is_file():
            self.keep_epoch()

    def _forget_lost_best(self) -> None:
        """Where the run returned to an epoch whose best one is not kept any more, the next one is the best."""
        if self.experiment.settings["trainer"]["patience"] is None or not self.best:
            return
        path = self.checkpoints.epoch(self.best["epoch"])
        if not from_first(path.is_file):
            self.best, self.progress.stale = {}, 0

    def save_network(self, name: str, backend: Backend, figures: dict[str, Any]) -> None:
        """Write a network file: what using the network needs; the first process does."""
        if rank() > 0:
            return
        state = {
            "config": self.experiment.settings,
            "model": self.experiment.network.state_dict(),
            "backend": backend.to_dict(),
            "figures": figures,
        }
        checkpoint.save(self.checkpoints.folder / name, state)

    def choose(self) -> bool:
        """Where the settings say so, go back to the best epoch, or average the last ones: what will be delivered.

        Returns:
            Whether that is another network than the last.
        """
        trainer, last = self.experiment.settings["trainer"], self.progress.epoch
        from_first(lambda: None)  # until it has kept the last epoch
        back = trainer["patience"] is not None and self.best.get("epoch", last) != last
        if back:
            logger.info("taking epoch %d of %d, the best", self.best["epoch"], last)
            self._take(self.checkpoints.epoch(self.best["epoch"]))
        count = min(trainer["average"], last)
        if count > 1:
            logger.info("taking the average of the last %d epochs", count)
            average = DualAverage()
            for number in range(last - count + 1, last + 1):
                self._take(self.checkpoints.epoch(number))
                average.add(self.experiment.optimizer)
            average.put_into(self.experiment.optimizer)
        return back or count > 1

    def _take(self, path: Path) -> None:
        self._restore_weights(checkpoint.load(path, checkpoint.TRAINING_KEYS))

    def _restore_weights(self, state: dict[str, Any]) -> None:
        """Network, head and optimizer, where lambda is."""
        self.experiment.network.load_state_dict(state["model"])
        self.experiment.head.load_state_dict(state["head"])
        self.experiment.optimizer.load_state_dict(state["optimizer"])

    def _restore(self, state: dict[str, Any]) -> None:
        self._restore_weights(state)
        self.experiment.controller.load_state_dict(state["controller"])
        self.experiment.started_sparse = state["started_sparse"]
        self.scaler.load_state_dict(state["scaler"])
        self.diagnostics.load_state_dict(state["diagnostics"])
        self.progress = Progress(**state["progress"])
        storage = self.experiment.settings["data"].get("storage", "files")
        if storage == "shards" and self.progress.ranks != ranks():
            raise ValueError(
                f"data.storage=shards: the order of crops depends on the number of processes; continue with "
                f"{self.progress.ranks}, not {ranks()}"
            )
        self.meter.seen, self.meter.unreadable = self.progress.seen, self.progress.unreadable
        torch.set_rng_state(state["generators"]["cpu"])
        if self.experiment.compute.device.type == "cuda" and state["generators"]["cuda"] is not None:
            torch.cuda.set_rng_state(state["generators"]["cuda"], self.experiment.compute.device)
        self.best, self.at_start = state["best"], state["at_start"]


def _cuda_generator(device: torch.device) -> torch.Tensor | None:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else None
