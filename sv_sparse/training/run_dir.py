"""The run folder: one per run, holding everything that is known of it.

``config.yaml`` (resolved), ``environment.json``, ``manifest.parquet``, ``train.log``, ``metrics.jsonl``, tensorboard
events, ``checkpoints/``, ``scores/``, ``results.json``, ``report.html``, ``report.md`` and ``figures/``;
``evaluations.json`` where it was judged again.
"""

import json
import logging
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from importlib import metadata
from itertools import count
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from tqdm.contrib.logging import logging_redirect_tqdm

from sv_sparse import __version__
from sv_sparse.checkpoint import return_to
from sv_sparse.config.settings import Settings, check, flat, resolve
from sv_sparse.distributed import rank, ranks
from sv_sparse.io import ESCAPE, LEFTOVERS, only_process, printable, remove_leftovers, write_json, write_text
from sv_sparse.signals import stop_requests
from sv_sparse.training.device import choose_device, choose_precision
from sv_sparse.training.errors import PROBLEMS
from sv_sparse.training.init_from_config import describe_sources

logger = logging.getLogger(__name__)

_BUSY = "{}: another process is training this run"
_PACKAGES = ("torch", "torchaudio", "speechbrain", "hydra-core", "numpy", "soundfile", "scikit-learn")


def open_run(config: DictConfig) -> tuple[Settings, Path]:
    """Settings and folder of a new run, or of the one that ``resume`` names, or that torchrun or SLURM started again.

    Raises:
        ValueError: a setting is not allowed, or the run cannot be resumed.
        OSError: the folder cannot be made.
    """
    if config.resume is not None:
        return resumed(Path(config.resume), HydraConfig.get().overrides.task)
    settings = resolve(config)
    folder = Path(settings["folder"]) if settings["folder"] is not None else None
    if folder is None and _number("TORCHELASTIC_MAX_RESTARTS") > 0:
        raise ValueError("torchrun --max-restarts needs folder=PATH, where a restart finds its run")
    trainer = settings["trainer"]
    if folder is not None and _may_be_restart() and (folder / "checkpoints" / "last.pt").is_file():
        return _again(settings, folder), folder
    sources = describe_sources(settings)
    device = choose_device(trainer["device"], "trainer.device=")
    trainer["precision"], reason = choose_precision(trainer["precision"], device)
    return settings, new_folder(settings, sources | {"precision": reason})


def resumed(path: Path, arguments: list[str]) -> tuple[Settings, Path]:
    """The settings and the folder of the run to continue; on the command line nothing may stand beside ``resume=``.

    Args:
        path: its folder, or one of its training checkpoints, to which it returns.
        arguments: the settings of the command line.

    Raises:
        ValueError: it is no run, or other settings were given.
    """
    others = [word for word in arguments if not word.startswith("resume=")]
    if others:
        raise ValueError(f"resume={path} continues with the run's own settings; leave out {' '.join(others)}")
    of_checkpoint = path.suffix == ".pt" and path.parent.name == "checkpoints"
    folder = path.parent.parent if of_checkpoint else path
    config = folder / "config.yaml"
    if not config.is_file() or not (path if of_checkpoint else folder / "checkpoints" / "last.pt").is_file():
        raise ValueError(
            f"resume={path}: expected a run folder with config.yaml and checkpoints/last.pt, or one of its checkpoints"
        )
    if of_checkpoint and _number("TORCHELASTIC_MAX_RESTARTS") > 0:
        raise ValueError(
            f"resume={path}: with torchrun --max-restarts each restart would return there again; "
            f"return without it, or continue with resume={folder}"
        )
    if of_checkpoint and _number("SLURM_RESTART_COUNT") == 0:
        with only_process(folder, _BUSY.format(folder)):
            return_to(path)
    return _stored(config), folder


def _stored(config: Path) -> Settings:
    settings: Any = OmegaConf.to_container(OmegaConf.load(config))
    check(settings)
    for name in ("dense", "sparse"):  # runs of earlier versions named no modules
        settings["sparsity"].setdefault(name, [])
    return settings


def _may_be_restart() -> bool:
    """Whether SLURM runs the command again, after a requeue, or torchrun may.

    torchrun counts restarts on each machine for itself, and not at all those that follow another machine's.
    """
    return _number("TORCHELASTIC_MAX_RESTARTS") > 0 or _number("SLURM_RESTART_COUNT") > 0


def _number(variable: str) -> int:
    return int(os.environ.get(variable, "0"))


def _again(settings: Settings, folder: Path) -> Settings:
    """The settings of the run that the same command has begun.

    Raises:
        ValueError: it was begun with other settings.
    """
    stored = _stored(folder / "config.yaml")
    if settings["trainer"]["precision"] == "auto":
        settings["trainer"]["precision"] = stored["trainer"]["precision"]  # measured then
    asked, begun = flat(settings), flat(stored)
    differing = sorted(name for name in asked | begun if asked.get(name) != begun.get(name))
    if differing:
        raise ValueError(f"folder={folder} holds a run that was begun with other settings: {', '.join(differing)}")
    return stored


def new_folder(settings: Settings, about: dict[str, str]) -> Path:
    """Make ``folder``, or ``<runs>/<time>_<name>``, and write the settings and the environment into it.

    A run that was killed before its first checkpoint leaves a folder that is used again.

    Args:
        settings: of the run.
        about: what its log begins with, in words: its corpus, what it starts from, its precision.

    Raises:
        ValueError: ``folder`` is there already and holds something else, or another process works there, or its name is
            not UTF-8.
    """
    for name in ("folder", "runs", "name"):
        if settings[name] is not None and printable(settings[name]) != settings[name]:
            raise ValueError(f"{name}={printable(settings[name])}: expected a name in UTF-8, as tensorboard needs one")
    folder = Path(settings["folder"]) if settings["folder"] is not None else _claimed(settings)
    checkpoints = folder / "checkpoints"
    begun = checkpoints.is_dir() and not set(checkpoints.iterdir()) - set(checkpoints.glob(LEFTOVERS))
    if folder.exists() and any(folder.iterdir()) and not begun:
        raise ValueError(f"folder={folder} is there already; name another, or continue it with resume={folder}")
    checkpoints.mkdir(parents=True, exist_ok=True)
    with only_process(folder, f"folder={folder}: another process is training this run; name another"):
        (folder / "manifest.parquet").unlink(missing_ok=True)
        write_text(folder / "config.yaml", OmegaConf.to_yaml(settings))
        write_json(folder / "environment.json", environment() | about)
    return folder


def _claimed(settings: Settings) -> Path:
    """A folder that this process made, so that runs of one name and second have one each."""
    runs = Path(settings["runs"])
    runs.mkdir(parents=True, exist_ok=True)
    stem = f"{datetime.now():%Y-%m-%d_%H-%M-%S}_{settings['name']}"
    folder = runs / stem
    for number in count(2):
        with suppress(FileExistsError):
            folder.mkdir()
            break
        folder = runs / f"{stem}_{number}"
    return folder


def resume_command(folder: Path) -> str:
    """What continues a run, as a shell reads it."""
    plain = re.fullmatch(r"[\w./-]+", str(folder))
    word = f"resume={folder}" if plain else "resume='{}'".format(str(folder).replace("'", "\\'"))
    together = ["torchrun", f"--nproc-per-node={os.environ['LOCAL_WORLD_SIZE']}"] if ranks() > 1 else ["python"]
    return shlex.join([*together, "train.py", word])


@contextmanager
def logged(folder: Path) -> Iterator[None]:
    """Log to the terminal and ``train.log``; a folder that ends without a checkpoint is removed again.

    Raises:
        ValueError: Another process works on this run.
    """
    with _logged_warnings():
        if rank() > 0:
            with _warnings_alone():
                yield
            return
        with only_process(folder, _BUSY.format(folder)):
            remove_leftovers(folder)
            with _logged(folder):
                yield


@contextmanager
def _logged_warnings() -> Iterator[None]:
    """Inside, Python's warnings are lines of the log: their text alone, without a line of source."""

    def log(message: Warning | str, *_args: Any, **_kwargs: Any) -> None:
        logger.warning("%s", message)

    before = warnings.showwarning
    warnings.showwarning = log
    try:
        yield
    finally:
        warnings.showwarning = before


@contextmanager
def _warnings_alone() -> Iterator[None]:
    """Processes beside the first one write no file; what they warn of goes to stderr."""
    root = logging.getLogger()
    before = root.handlers[:]
    terminal = logging.StreamHandler(sys.stderr)
    terminal.setFormatter(logging.Formatter(f"[process {rank()}] %(levelname)s: %(message)s"))
    terminal.setLevel(logging.WARNING)
    root.handlers[:] = [terminal]
    try:
        yield
    finally:
        root.handlers[:] = before


@contextmanager
def _logged(folder: Path) -> Iterator[None]:
    root = logging.getLogger()
    own = logging.getLogger("sv_sparse")
    before = root.level, own.level, root.handlers[:]
    file = logging.FileHandler(folder / "train.log", encoding="utf-8", errors=ESCAPE)
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    terminal = logging.StreamHandler(sys.stdout)
    terminal.setFormatter(logging.Formatter("%(message)s"))
    terminal.setLevel(logging.INFO)
    root.setLevel(logging.INFO)
    own.setLevel(logging.DEBUG)
    root.handlers[:] = [file, terminal]
    try:
        with logging_redirect_tqdm():
            about = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
            for name in ("corpus", "init_from", "precision"):
                if name in about:
                    logger.info("%s: %s", name, about[name])
            yield
    except PROBLEMS:
        logger.debug("the whole story", exc_info=True)
        raise
    except (KeyboardInterrupt, RuntimeError):  # the second where another process stopped first, and this waited for it
        with stop_requests():  # a second signal, which torchrun sends after Ctrl-C
            if any((folder / "checkpoints").iterdir()):
                logger.info("continue with: %s", resume_command(folder))
        raise
    finally:
        file.close()
        root.setLevel(before[0])
        own.setLevel(before[1])
        root.handlers[:] = before[2]
        if not any((folder / "checkpoints").iterdir()):
            with suppress(OSError):  # a network disk keeps the lock until it is let go
                shutil.rmtree(folder)


def environment() -> dict[str, Any]:
    """What a figure depends on beside the settings: versions, commit, hardware, command."""
    return {
        "command": shlex.join(["python", *sys.argv]),
        "commit": _commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": torch.cpu.get_capabilities().get("cpu_name", platform.machine()),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": ranks(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "sv-sparse": __version__,
        "packages": {name: metadata.version(name) for name in _PACKAGES},
    }


def _commit() -> str | None:
    """The source's commit, marked where files differ from it; None where the source is in no checkout."""
    if shutil.which("git") is None or _git("ls-files", "--error-unmatch", __file__) is None:
        return None
    return _git("describe", "--always", "--dirty", "--abbrev=40")


def _git(*words: str) -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), *words]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return answer.stdout.strip() if answer.returncode == 0 else None
