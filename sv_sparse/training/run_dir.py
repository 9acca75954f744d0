"""The run folder: one per run, with everything that is known of it.

``config.yaml`` (all settings), ``environment.json``, ``manifest.parquet``, ``train.log``, ``metrics.jsonl``,
tensorboard events, ``checkpoints/``, ``scores/``, ``results.json``, ``report.html``, ``report.md`` and ``figures/``;
``evaluations.json`` where it was evaluated again.
"""

import json
import logging
import os
import re
import shlex
import shutil
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from tqdm.contrib.logging import logging_redirect_tqdm

from sv_sparse.config.overrides import CUSTOM_GROUPS, OWN_CLASSES, read_overrides
from sv_sparse.config.schema import Config, flatten, load_config, read_config
from sv_sparse.distributed import rank, world_size
from sv_sparse.io import ESCAPE, TEMP_PATTERN, file_lock, printable, remove_temp_files, write_json, write_text
from sv_sparse.signals import capture_stop_signals
from sv_sparse.training.checkpoints import roll_back_to
from sv_sparse.training.device import resolve_device, resolve_precision
from sv_sparse.training.environment import environment
from sv_sparse.training.errors import USER_ERRORS
from sv_sparse.training.init_from_config import CHOICE, describe_sources
from sv_sparse.training.param_groups import resolve_penalty, starts_sparse
from sv_sparse.training.teacher import TEACHER_FILE

logger = logging.getLogger(__name__)

_LOCKED = "{}: another process is training this run"
# They do not change the result, and an upgrade may change their default between two starts of a command.
_NOT_COMPARED = {"optim.backend", "trainer.cpu_kernels"}


@dataclass(frozen=True)
class Run:
    """A run that is about to train."""

    # Its settings.
    config: Config
    # Its folder.
    folder: Path
    # Import paths of classes that the user named: on the command line, or in a file of configuration that it
    # names.
    trusted_classes: tuple[str, ...]


def open_run_dir(composed: DictConfig) -> Run:
    """Open the folder of a new run, of one that ``resume_from`` names, or that torchrun or SLURM started again.

    Args:
        composed: what Hydra composed.

    Raises:
        ValueError: a setting is not allowed, or the run cannot be resumed.
        OSError: the folder cannot be made.
    """
    arguments = list(HydraConfig.get().overrides.task)
    if composed.resume_from is not None:
        return open_resumed(Path(composed.resume_from), arguments)
    config = load_config(composed)
    choices = HydraConfig.get().runtime.choices
    trusted = _classes_named_in(arguments)
    for setting, path in config.classes.items():
        # Its path is in a file that the command line chose, not in the settings of another run.
        if not str(choices[OWN_CLASSES[setting]]).startswith(CHOICE):
            trusted = (*trusted, path)
    folder = Path(config.run_dir) if config.run_dir is not None else None
    if folder is None and _env_int("TORCHELASTIC_MAX_RESTARTS") > 0:
        raise ValueError("torchrun --max-restarts needs run_dir=PATH, where a restart finds its run")
    if folder is not None and _is_restart() and (folder / "checkpoints" / "last.pt").is_file():
        return Run(_match_restart(config, folder), folder, trusted)
    sources = describe_sources(config)
    device = resolve_device(config.trainer.device, "trainer.device=")
    precision, reason = resolve_precision(config.trainer.precision, device)
    config = replace(config, trainer=replace(config.trainer, precision=precision))
    # Now, since a resumed run does not read again what it started from.
    config = resolve_penalty(config, sparse_init=starts_sparse(config))
    if config.run_name is None:
        config = replace(config, run_name=_default_name(config, choices))
    return Run(config, create_run_dir(config, {**sources, "precision": reason}), trusted)


def open_resumed(path: Path, arguments: Sequence[str]) -> Run:
    """Open the run to resume.

    Args:
        path: its folder, or one of its training checkpoints, to which it returns.
        arguments: the settings of the command line; beside ``resume_from=`` only the run's own classes may stand.

    Raises:
        ValueError: it is no run, or other settings are on the command line.
    """
    allowed = ("resume_from=", *(f"{setting}._target_=" for setting in OWN_CLASSES))
    choices = [f"{group}=custom" for group in CUSTOM_GROUPS]
    others = [word for word in arguments if word not in choices and not word.startswith(allowed)]
    if others:
        raise ValueError(f"resume_from={path} continues with the run's own settings; leave out {' '.join(others)}")
    is_checkpoint = path.suffix == ".pt" and path.parent.name == "checkpoints"
    folder = path.parent.parent if is_checkpoint else path
    last = path if is_checkpoint else folder / "checkpoints" / "last.pt"
    if not (folder / "config.yaml").is_file() or not last.is_file():
        raise ValueError(
            f"resume_from={path}: expected a run folder with config.yaml and checkpoints/last.pt, or one of its "
            f"checkpoints"
        )
    if is_checkpoint and _env_int("TORCHELASTIC_MAX_RESTARTS") > 0:
        raise ValueError(
            f"resume_from={path}: with torchrun --max-restarts each restart would return there again; "
            f"return without it, or continue with resume_from={folder}"
        )
    if is_checkpoint and _env_int("SLURM_RESTART_COUNT") == 0:
        with file_lock(folder, _LOCKED.format(folder)):
            roll_back_to(path)
    return Run(read_config(folder), folder, _classes_named_in(arguments))


def create_run_dir(config: Config, sources: dict[str, str]) -> Path:
    """Make ``run_dir``, or ``<runs_dir>/<time>_<run_name>``, and write the settings and the environment into it.

    The folder of a run that was killed before its first checkpoint is used again.

    Args:
        config: of the run.
        sources: what its log begins with, in words: its corpus, what it starts from, its precision.

    Raises:
        ValueError: ``run_dir`` exists and holds something else, or another process works there, or its name is not
            UTF-8.
    """
    for name in ("run_dir", "runs_dir", "run_name"):
        value = getattr(config, name)
        if value is not None and printable(value) != value:
            raise ValueError(f"{name}={printable(value)}: expected a name in UTF-8, as tensorboard needs one")
    folder = Path(config.run_dir) if config.run_dir is not None else _unique_run_dir(config)
    checkpoints = folder / "checkpoints"
    is_unused_run = checkpoints.is_dir() and not _has_checkpoint(folder)
    if folder.exists() and any(folder.iterdir()) and not is_unused_run:
        raise ValueError(f"run_dir={folder} exists; name another, or continue it with resume_from={folder}")
    checkpoints.mkdir(parents=True, exist_ok=True)
    with file_lock(folder, f"run_dir={folder}: another process is training this run; name another"):
        (folder / "manifest.parquet").unlink(missing_ok=True)
        (checkpoints / TEACHER_FILE).unlink(missing_ok=True)
        write_text(folder / "config.yaml", OmegaConf.to_yaml(config.to_dict()))
        write_json(folder / "environment.json", environment() | sources)
    return folder


def resume_command(folder: Path) -> str:
    """Return the command that resumes a run, as a shell reads it."""
    is_plain = re.fullmatch(r"[\w./-]+", str(folder))
    escaped = str(folder).replace("'", "\\'")
    words = [f"resume_from={folder}" if is_plain else f"resume_from='{escaped}'"]
    # Code is imported only if the user names it, again.
    words += [f"{setting}._target_={path}" for setting, path in read_config(folder).classes.items()]
    program = ["python"]
    if world_size() > 1:
        program = ["torchrun", f"--nproc-per-node={os.environ['LOCAL_WORLD_SIZE']}"]
    return shlex.join([*program, "train.py", *words])


@contextmanager
def logging_to(folder: Path) -> Iterator[None]:
    """Log to the terminal and ``train.log``; a folder that ends without a checkpoint is removed again.

    Raises:
        ValueError: another process works on this run.
    """
    with _warnings_logged():
        if rank() > 0:
            with _warnings_to_stderr():
                yield
            return
        with file_lock(folder, _LOCKED.format(folder)):
            remove_temp_files(folder)
            with _log_handlers(folder):
                yield


def _classes_named_in(arguments: Sequence[str]) -> tuple[str, ...]:
    """Return the import paths of the user's own classes that the command line names."""
    classes = []
    for override in read_overrides(arguments):
        if override.key_or_group.removesuffix("._target_") in OWN_CLASSES:
            classes.append(str(override.value()))
    return tuple(classes)


def _is_restart() -> bool:
    """Return whether SLURM runs the command again, after a requeue, or torchrun may.

    torchrun counts restarts on each machine for itself, and not at all those that follow another machine's.
    """
    return _env_int("TORCHELASTIC_MAX_RESTARTS") > 0 or _env_int("SLURM_RESTART_COUNT") > 0


def _env_int(variable: str) -> int:
    return int(os.environ.get(variable, "0"))


def _match_restart(config: Config, folder: Path) -> Config:
    """Return the settings of the run that the same command started before.

    Raises:
        ValueError: it was started with other settings.
    """
    stored = read_config(folder)
    # Measured at the first start.
    if config.trainer.precision == "auto":
        config = replace(config, trainer=replace(config.trainer, precision=stored.trainer.precision))
    if config.sparsity.penalty == "auto":
        config = replace(config, sparsity=replace(config.sparsity, penalty=stored.sparsity.penalty))
    if config.run_name is None:
        config = replace(config, run_name=stored.run_name)
    values, stored_values = flatten(config.to_dict()), flatten(stored.to_dict())
    names = (values.keys() | stored_values.keys()) - _NOT_COMPARED
    differing = [name for name in sorted(names) if values.get(name) != stored_values.get(name)]
    if differing:
        raise ValueError(f"run_dir={folder} holds a run with other settings: {', '.join(differing)}")
    return stored


def _has_checkpoint(folder: Path) -> bool:
    """Return whether a run's folder has more than what is written before the first checkpoint."""
    checkpoints = folder / "checkpoints"
    return bool({*checkpoints.iterdir()} - {*checkpoints.glob(TEMP_PATTERN), checkpoints / TEACHER_FILE})


def _default_name(config: Config, choices: Any) -> str:
    """Return the name of a run after its model, its sparsity and its target."""
    model, sparsity = str(choices["model"]), str(choices["sparsity"])
    if model.startswith(CHOICE):
        model = config.model_name
    if sparsity.startswith(CHOICE):
        sparsity = config.sparsity.controller_name
    return f"{model}_{sparsity}_{config.target_sparsity}"


def _unique_run_dir(config: Config) -> Path:
    """Make a folder below ``runs_dir``; runs of the same name and second have one each."""
    runs_dir = Path(config.runs_dir)
    runs_dir.mkdir(parents=True, exist_ok=True)
    stem = f"{datetime.now():%Y-%m-%d_%H-%M-%S}_{config.run_name}"
    folder = runs_dir / stem
    for number in count(2):
        with suppress(FileExistsError):
            folder.mkdir()
            break
        folder = runs_dir / f"{stem}_{number}"
    return folder


@contextmanager
def _warnings_logged() -> Iterator[None]:
    """Inside, Python's warnings are lines of the log: their text alone, without a line of source."""

    def log(message: Warning | str, *_args: Any, **_kwargs: Any) -> None:
        logger.warning("%s", message)

    previous = warnings.showwarning
    warnings.showwarning = log
    try:
        yield
    finally:
        warnings.showwarning = previous


@contextmanager
def _warnings_to_stderr() -> Iterator[None]:
    """Inside, a process other than the first writes no file; its warnings go to stderr."""
    root = logging.getLogger()
    previous = root.handlers[:]
    terminal = logging.StreamHandler(sys.stderr)
    terminal.setFormatter(logging.Formatter(f"[process {rank()}] %(levelname)s: %(message)s"))
    terminal.setLevel(logging.WARNING)
    root.handlers[:] = [terminal]
    try:
        yield
    finally:
        root.handlers[:] = previous


@contextmanager
def _log_handlers(folder: Path) -> Iterator[None]:
    root = logging.getLogger()
    package = logging.getLogger("sv_sparse")
    previous_handlers = root.handlers[:]
    previous_levels = root.level, package.level
    file = logging.FileHandler(folder / "train.log", encoding="utf-8", errors=ESCAPE)
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    terminal = logging.StreamHandler(sys.stdout)
    terminal.setFormatter(logging.Formatter("%(message)s"))
    terminal.setLevel(logging.INFO)
    root.setLevel(logging.INFO)
    package.setLevel(logging.DEBUG)
    root.handlers[:] = [file, terminal]
    try:
        with logging_redirect_tqdm():
            # tqdm puts a handler of its own in place of the terminal's, without its level.
            for handler in root.handlers:
                if handler is not file:
                    handler.setLevel(logging.INFO)
            stored = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
            for name in ("corpus", "init_from", "precision"):
                if name in stored:
                    logger.info("%s: %s", name, stored[name])
            yield
    except USER_ERRORS:
        # The log file has it, the terminal one sentence.
        logger.debug("traceback", exc_info=True)
        raise
    except (KeyboardInterrupt, RuntimeError):
        # The second where another process stopped first, and this waited for it.
        # A second signal, which torchrun sends after Ctrl-C.
        with capture_stop_signals():
            if _has_checkpoint(folder):
                logger.info("continue with: %s", resume_command(folder))
        raise
    finally:
        file.close()
        root.setLevel(previous_levels[0])
        package.setLevel(previous_levels[1])
        root.handlers[:] = previous_handlers
        if not _has_checkpoint(folder):
            # A network disk keeps the lock until it is let go.
            with suppress(OSError):
                shutil.rmtree(folder)
