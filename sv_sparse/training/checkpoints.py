"""State of a run: what changes while it trains, and its checkpoints."""

import logging
import os
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from sv_sparse import checkpoint
from sv_sparse.config.schema import SELF_TEACHER
from sv_sparse.data.unreadable import UnreadableCounter
from sv_sparse.distributed import all_gather_objects, broadcast_from_rank0, rank, world_size
from sv_sparse.optim import DualAverage, SupportDiagnostics
from sv_sparse.scoring.backend import Backend
from sv_sparse.training.setup import TrainingSetup
from sv_sparse.training.teacher import TEACHER_FILE

logger = logging.getLogger(__name__)


@dataclass
class Progress:
    """Progress of a run."""

    # Finished epochs.
    epoch: int = 0
    # Steps of the current epoch that are done.
    step_in_epoch: int = 0
    # Steps of the whole run that are done.
    step: int = 0
    # Training time, without interruptions.
    elapsed_seconds: float = 0.0
    # Processes that train together.
    world_size: int = 1
    # Utterances drawn.
    utterances_seen: int = 0
    # Utterances of these that could not be read.
    unreadable: int = 0
    # Rows of metrics.jsonl that belong to this checkpoint.
    rows: int = 0
    # False between the end of an epoch and its validation.
    validated: bool = True
    # Epochs since the validation EER was lowest.
    epochs_since_best: int = 0


class TrainState:
    """The state of a run; it starts with that of the last checkpoint, if there is one.

    Args:
        setup: what is trained.
        start_time: ``time.monotonic()`` at which this process began to work on the run.

    Attributes:
        has_checkpoint: whether there was a checkpoint.
        best: EER, epoch and sparsity of the best epoch so far.
        untrained_metrics: evaluation of the untrained network, where a setting asked for it.
        scaler: loss scaling in fp16.
        unreadable: counter of recordings that cannot be used.

    Raises:
        ValueError: the checkpoint cannot be read, where the one before it is named; or no speaker is held out, and
            early stopping needs some.
        OSError: the processes see different checkpoints.
    """

    def __init__(self, setup: TrainingSetup, start_time: float) -> None:
        self.setup = setup
        self.start_time = start_time
        config = setup.config.trainer
        self.checkpoints = Checkpoints(setup.run_dir / "checkpoints", config.keep_last)
        self.progress = Progress()
        patience = config.early_stop_patience
        if patience is not None and not len(setup.corpus.manifest.split("validation")):
            raise ValueError(
                f"trainer.early_stop_patience={patience} needs speakers to validate on; "
                f"choose data.val_fraction above 0"
            )
        self.best: dict[str, Any] = {}
        self.untrained_metrics: list[dict[str, Any]] = []
        self.diagnostics = SupportDiagnostics(setup.controller)
        self.scaler = setup.device.scaler()
        self.unreadable = UnreadableCounter(setup.config.data.max_unreadable_fraction)
        self.has_checkpoint = broadcast_from_rank0(lambda: bool(self.checkpoints))
        if self.has_checkpoint:
            self._restore(self.checkpoints.read_last())
            logger.info("resuming %s from step %d", setup.run_dir, self.progress.step)
            self._check_ranks_agree()
            self._recover_epoch_checkpoint()
            self._reset_missing_best()

    def elapsed_seconds(self) -> float:
        """Return the time spent on the run so far, without interruptions."""
        return self.progress.elapsed_seconds + time.monotonic() - self.start_time

    def save(self, rows: int) -> None:
        """Write everything that resuming needs to last.pt; the first process does.

        Args:
            rows: rows of metrics.jsonl.
        """
        if rank() > 0:
            return
        setup, progress = self.setup, self.progress
        progress.utterances_seen = self.unreadable.num_drawn
        progress.unreadable = self.unreadable.num_unreadable
        progress.rows = rows
        progress.world_size = world_size()
        self.checkpoints.save(
            {
                "config": setup.config.to_dict(),
                "model": setup.network.state_dict(),
                "head": setup.head.state_dict(),
                "optimizer": setup.optimizer.state_dict(),
                "controller": setup.controller.state_dict(),
                "scaler": self.scaler.state_dict(),
                "diagnostics": self.diagnostics.state_dict(),
                "progress": asdict(progress) | {"elapsed_seconds": self.elapsed_seconds()},
                "rng_states": {"cpu": torch.get_rng_state(), "cuda": _cuda_rng_state(setup.device.device)},
                "best": self.best,
                "untrained_metrics": self.untrained_metrics,
                "sparse_init": setup.sparse_init,
                "teacher": None if setup.teacher is None else setup.teacher.digest,
            }
        )

    def save_teacher(self) -> None:
        """Write the network at the start of the run to teacher.pt, where it is the teacher; the first process does."""
        setup = self.setup
        if rank() == 0 and setup.teacher is not None and setup.config.teacher == SELF_TEACHER:
            state = {"config": setup.config.to_dict(), "model": setup.teacher.network.state_dict()}
            checkpoint.save(self.checkpoints.folder / TEACHER_FILE, state)

    def save_epoch_checkpoint(self) -> None:
        """Keep last.pt as the checkpoint of the finished epoch too."""
        if rank() == 0:
            stops_early = self.setup.config.trainer.early_stop_patience is not None
            best_epoch = self.best.get("epoch") if stops_early else None
            self.checkpoints.keep_epoch(self.progress.epoch, best=best_epoch)

    def save_network(self, name: str, backend: Backend, metrics: dict[str, Any]) -> None:
        """Write a network file: what using the network needs; the first process does.

        Args:
            name: of the file in checkpoints/.
            backend: what scores its embeddings.
            metrics: numbers about the network.
        """
        if rank() > 0:
            return
        state = {
            "config": self.setup.config.to_dict(),
            "model": self.setup.network.state_dict(),
            "backend": backend.to_dict(),
            "metrics": metrics,
        }
        checkpoint.save(self.checkpoints.folder / name, state)

    def select_final_weights(self) -> bool:
        """Load the best epoch, or the average of the last ones, where the settings ask for it.

        Returns:
            Whether these are other weights than the last.
        """
        config, last_epoch = self.setup.config.trainer, self.progress.epoch
        # Waits until the first process has written the last epoch's checkpoint.
        broadcast_from_rank0(lambda: None)
        best_epoch = self.best.get("epoch", last_epoch)
        restores_best = config.early_stop_patience is not None and best_epoch != last_epoch
        if restores_best:
            logger.info("restoring best epoch %d of %d", best_epoch, last_epoch)
            self._load_weights_from(self.checkpoints.epoch(best_epoch))
        num_avg = min(config.num_avg, last_epoch)
        if num_avg > 1:
            logger.info("averaging the last %d epochs", num_avg)
            average = DualAverage()
            for epoch in range(last_epoch - num_avg + 1, last_epoch + 1):
                self._load_weights_from(self.checkpoints.epoch(epoch))
                average.add(self.setup.optimizer)
            average.copy_to(self.setup.optimizer)
        return restores_best or num_avg > 1

    def _load_weights_from(self, path: Path) -> None:
        self._restore_weights(checkpoint.load(path, checkpoint.TRAINING_KEYS))

    def _restore_weights(self, state: dict[str, Any]) -> None:
        self.setup.network.load_state_dict(state["model"])
        self.setup.head.load_state_dict(state["head"])
        # The optimizer's state holds lambda.
        self.setup.optimizer.load_state_dict(state["optimizer"])

    def _restore(self, state: dict[str, Any]) -> None:
        self._check_same_teacher(state["teacher"])
        self._restore_weights(state)
        self.setup.controller.load_state_dict(state["controller"])
        self.setup.sparse_init = state["sparse_init"]
        self.scaler.load_state_dict(state["scaler"])
        self.diagnostics.load_state_dict(state["diagnostics"])
        self.progress = Progress(**state["progress"])
        self._check_world_size()
        self.unreadable.num_drawn = self.progress.utterances_seen
        self.unreadable.num_unreadable = self.progress.unreadable
        torch.set_rng_state(state["rng_states"]["cpu"])
        device = self.setup.device.device
        if device.type == "cuda" and state["rng_states"]["cuda"] is not None:
            torch.cuda.set_rng_state(state["rng_states"]["cuda"], device)
        self.best = state["best"]
        self.untrained_metrics = state["untrained_metrics"]

    def _check_same_teacher(self, digest: str | None) -> None:
        """Raise a ValueError if the weights of the teacher are not those that the run began with."""
        teacher = self.setup.teacher
        if teacher is not None and teacher.digest != digest:
            name = self.setup.config.teacher
            path = self.checkpoints.folder / TEACHER_FILE if name == SELF_TEACHER else name
            raise ValueError(
                f"teacher={name}: {path} has other weights than when the run began (checksum {teacher.digest}, "
                f"expected {digest}); put the file back, or begin a new run"
            )

    def _check_world_size(self) -> None:
        """Raise a ValueError where another number of processes would change the order of crops."""
        if self.setup.config.data.reads_shards and self.progress.world_size != world_size():
            raise ValueError(
                f"data.format=shards: the order of crops depends on the number of processes; continue with "
                f"{self.progress.world_size}, not {world_size()}"
            )

    def _check_ranks_agree(self) -> None:
        """Raise an OSError if the processes have read different checkpoints."""
        progress = self.progress
        by_rank = all_gather_objects((progress.epoch, progress.step_in_epoch, progress.step))
        if len(set(by_rank)) > 1:
            raise OSError(
                f"{self.checkpoints.folder}: the processes read checkpoints of different steps (epoch, step in epoch, "
                f"step: {by_rank}); all need the same folder"
            )

    def _recover_epoch_checkpoint(self) -> None:
        """Write the checkpoint of the last epoch where the run was killed between saving it and keeping it."""
        progress = self.progress
        at_epoch_end = progress.epoch > 0 and progress.step_in_epoch == 0 and progress.validated
        if at_epoch_end and not self.checkpoints.epoch(progress.epoch).is_file():
            self.save_epoch_checkpoint()

    def _reset_missing_best(self) -> None:
        """Forget the best epoch where its checkpoint is gone, after a return to an earlier epoch."""
        if self.setup.config.trainer.early_stop_patience is None or not self.best:
            return
        path = self.checkpoints.epoch(self.best["epoch"])
        if not broadcast_from_rank0(path.is_file):
            self.best = {}
            self.progress.epochs_since_best = 0


class Checkpoints:
    """The training checkpoints of a run: ``last.pt``, and those of the last few epochs.

    Args:
        folder: where they are.
        keep_last: how many epochs' to keep.

    Attributes:
        last: path of the newest.
    """

    def __init__(self, folder: Path, keep_last: int) -> None:
        self.folder = folder
        self.keep_last = keep_last
        self.last = folder / "last.pt"

    def __bool__(self) -> bool:
        return self.last.is_file()

    def epoch(self, epoch: int) -> Path:
        """Return the path of an epoch's checkpoint."""
        return self.folder / f"epoch_{epoch:04d}.pt"

    def save(self, state: dict[str, Any]) -> None:
        """Replace ``last.pt``.

        Raises:
            OSError: it cannot be written; the old one stands.
        """
        checkpoint.save(self.last, state)

    def keep_epoch(self, epoch: int, *, best: int | None) -> None:
        """Keep ``last.pt`` as an epoch's checkpoint too, and remove old ones.

        Args:
            epoch: the finished epoch; checkpoints beyond it are of a future that was given up.
            best: an epoch whose checkpoint stays.
        """
        epochs_to_keep = {*range(epoch - self.keep_last + 1, epoch + 1), best}
        for path in self._epochs():
            if int(path.stem.removeprefix("epoch_")) not in epochs_to_keep:
                path.unlink()
        if self.keep_last:
            _link_or_copy(self.last, self.epoch(epoch))

    def read_last(self) -> dict[str, Any]:
        """Return the content of ``last.pt``.

        Raises:
            ValueError: it is not readable; names the one before it, if there is one.
        """
        try:
            return checkpoint.load(self.last, checkpoint.TRAINING_KEYS)
        except ValueError as error:
            previous = max(self._epochs(), default=None)
            if previous is None:
                raise
            hint = f"the one before it is {previous}, continue from there with resume_from={previous}"
            raise ValueError(f"{error}; {hint}") from error

    def _epochs(self) -> list[Path]:
        return list(self.folder.glob("epoch_*.pt"))


def roll_back_to(path: Path) -> None:
    """Make an earlier training checkpoint the last one of its run; that one stays as ``last_before_rollback.pt``.

    Raises:
        ValueError: it is not readable.
    """
    checkpoint.load(path, checkpoint.TRAINING_KEYS)
    last = path.with_name("last.pt")
    if path == last:
        return
    new_last = last.with_name(".new_last.tmp")
    # First, since it may be last_before_rollback.pt itself.
    _link_or_copy(path, new_last)
    if last.is_file():
        _link_or_copy(last, last.with_name("last_before_rollback.pt"))
    _link_or_copy(new_last, last)
    new_last.unlink()


def _link_or_copy(path: Path, other: Path) -> None:
    """Make a file available under another name too, replacing what has that name."""
    temporary = other.with_name(f".{other.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
    except OSError:
        # A file system without links.
        shutil.copyfile(path, temporary)
    os.replace(temporary, other)
    # A rename to a name that the same file has already does nothing.
    temporary.unlink(missing_ok=True)


def _cuda_rng_state(device: torch.device) -> torch.Tensor | None:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else None
