"""A packaged network, run by the fastest engine that this machine has."""

import hashlib
import logging
import os
from pathlib import Path

import torch
from torch import Tensor

from sv_sparse import __version__
from sv_sparse.runtime.engine.csr import TorchEngine
from sv_sparse.runtime.engine.executor import SparseEngine
from sv_sparse.runtime.engine.lowering import LOWERED, lower
from sv_sparse.runtime.engine.plan import DENSE, Plan
from sv_sparse.runtime.engine.program import NoProgramError, Program
from sv_sparse.runtime.package import Package

logger = logging.getLogger(__name__)

ENGINES = ("auto", "sparse", "torch")
MOST_THREADS = 1024


class Runtime:
    """Filterbank [B, F, T] to embedding [B, E] by a packaged network.

    Args:
        engine: what computes it.
        words: what it is, for people.
        mel_bins: F.
    """

    def __init__(self, engine: SparseEngine | TorchEngine, words: str, mel_bins: int) -> None:
        self.engine, self.words, self.mel_bins = engine, words, mel_bins

    @property
    def needs_torch_threads(self) -> bool:
        """Whether torch computes layers of the network; else it computes nothing but features, which are little."""
        return isinstance(self.engine, TorchEngine) or DENSE in self.engine.plan.layers.values()

    def __call__(self, filterbank: Tensor) -> Tensor:
        """Map filterbank [B, F, T] to embedding [B, E], float32.

        Raises:
            ValueError: it has another shape, or too few frames.
        """
        if filterbank.ndim != 3 or filterbank.shape[1] != self.mel_bins:
            raise ValueError(f"expected a filterbank [B, {self.mel_bins}, T], got {list(filterbank.shape)}")
        return self.engine(filterbank)

    @classmethod
    def of(
        cls, package: Package, *, threads: int | None = None, engine: str = "auto", plan: Plan | None = None
    ) -> "Runtime":
        """The runtime of a package.

        Args:
            package: as ``read_package`` returns it.
            threads: that the sparse kernels use. If not given, one for utterances of up to ten seconds, where a second
                one gains little and loses much beside programs that have the cores, and torch's own number for longer
                ones. Layers that torch computes use torch's.
            engine: ``sparse``, the kernels of this project; ``torch``, compressed rows where they gain; ``auto``:
                sparse, and torch where there is no program for the kind of network or, with a warning, no compiler or
                a network too wide for the kernels.
            plan: how the sparse engine computes each layer. If not given, the one that was measured for this package
                on this machine (``plan_path``), or one by the layers' densities.

        Raises:
            ValueError: the engine is none of these, or has no program for the network, or the plan is one of another
                network.
            OSError: the engine ``sparse`` cannot be compiled.
        """
        if engine not in ENGINES:
            raise ValueError(f"engine must be one of {', '.join(ENGINES)}, got {engine!r}")
        short_threads = 1 if threads is None else threads
        threads = check_threads(torch.get_num_threads() if threads is None else threads)
        bins = package.features["mel_bins"]
        network = package.network()
        if engine == "torch" or (engine == "auto" and not isinstance(network, LOWERED)):
            return cls(*_by_torch(network), bins)
        try:
            program = lower(network)
            plan = stored_plan(package, program, threads) if plan is None else plan
            found = SparseEngine(program, threads=threads, short_threads=short_threads, plan=plan)
        except (OSError, NoProgramError) as error:
            if engine == "sparse":
                raise
            logger.warning("%s; computing by torch meanwhile", error)
            return cls(*_by_torch(network), bins)
        dense = sum(tile == DENSE for tile in found.plan.layers.values())
        how = f"planned by measurement on {found.plan.machine}" if found.plan.machine else "planned by density"
        by = f"{threads} threads" + (f", {short_threads} for up to 10 seconds" if short_threads < threads else "")
        words = f"sparse kernels, {by}, {dense} of {len(found.plan.layers)} layers dense, {how}"
        return cls(found, words, bins)


def _by_torch(network: torch.nn.Module) -> tuple[TorchEngine, str]:
    engine = TorchEngine(network)
    return engine, f"torch, {len(engine.layers)} layers by compressed rows, the others dense"


def check_threads(threads: int) -> int:
    """The number of threads.

    Raises:
        ValueError: it is none that a machine has.
    """
    if not 1 <= threads <= MOST_THREADS:
        raise ValueError(f"threads must be 1 to {MOST_THREADS}, got {threads}")
    return threads


def machine() -> str:
    """The processor, in words that tell it from others."""
    about = torch.cpu.get_capabilities()
    return str(about.get("cpu_name") or about.get("architecture") or "unknown")


def plan_path(package: Package, threads: int) -> Path:
    """Where the plan that was measured for a package with so many threads is kept on this machine.

    Raises:
        OSError: there is no home for it.
    """
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sv-sparse" / "plans"
    except RuntimeError as error:
        raise OSError(f"plans are kept in the user's cache: {error}") from error
    about = f"{package.fingerprint} {machine()} {torch.__version__} {__version__} {threads}"
    return cache / f"{hashlib.sha256(about.encode()).hexdigest()[:24]}.json"


def stored_plan(package: Package, program: Program, threads: int) -> Plan | None:
    """The plan that was measured on this machine; one that is of no use is warned of, and left."""
    try:
        path = plan_path(package, threads)
        if not path.is_file():
            return None
        plan = Plan.load(path)
    except (OSError, ValueError) as error:
        logger.warning("%s; planning by density", error)
        return None
    if set(plan.layers) != {layer.name for layer in program.layers}:
        logger.warning("%s is a plan of other layers; planning by density", path)
        return None
    return plan
