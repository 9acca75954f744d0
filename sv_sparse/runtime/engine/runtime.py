"""Runtime of a packaged network: the fastest engine that this machine has for it."""

import hashlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sv_sparse import __version__
from sv_sparse.runtime.engine.executor import SparseEngine
from sv_sparse.runtime.engine.numpy_engine import NumpyEngine
from sv_sparse.runtime.engine.plan import USE_DENSE, Plan
from sv_sparse.runtime.engine.program import Program
from sv_sparse.runtime.package import Package

logger = logging.getLogger(__name__)

ENGINES = ("auto", "sparse", "numpy")
MAX_THREADS = 1024
# Measured for ECAPA-TDNN, ResNet34 and CAM++ by scripts/benchmark/runtime.py.
_NUMPY_COST = "falling back to numpy, which takes four to seven times as long at 90 % sparsity"


@dataclass
class Runtime:
    """Filterbank [B, F, T] to embedding [B, E] by a packaged network, with a description of its engine in words."""

    engine: SparseEngine | NumpyEngine
    description: str
    mel_bins: int

    @property
    def needs_torch_threads(self) -> bool:
        """True if torch computes layers of the network, and not only the features, which are little work."""
        return isinstance(self.engine, SparseEngine) and USE_DENSE in self.engine.plan.layers.values()

    def __call__(self, filterbank: Tensor) -> Tensor:
        """Map filterbank [B, F, T] to embedding [B, E]; raise ValueError for another shape, or too few frames."""
        return torch.from_numpy(self.engine(filterbank.numpy()))

    @classmethod
    def load(
        cls, package: Package, *, threads: int | None = None, engine: str = "auto", plan: Plan | None = None
    ) -> "Runtime":
        """Return the runtime of a package.

        Args:
            package: Package as ``read_package`` returns it.
            threads: Threads of the sparse kernels, 1 to 1024. Default: one for utterances of up to ten seconds, torch's
                own number for longer ones. Layers that torch computes use torch's.
            engine: ``sparse``: the kernels of this project. ``numpy``: dense products by numpy. ``auto``: sparse, or
                numpy with a warning where there is no compiler.
            plan: Kernel of each layer. Default: the plan that was measured for this package on this machine, or one by
                the layers' densities.

        Raises:
            ValueError: The engine is none of these, or the plan is one of another network.
            OSError: The engine ``sparse`` cannot be compiled.
        """
        if engine not in ENGINES:
            raise ValueError(f"engine must be one of {', '.join(ENGINES)}, got {engine!r}")
        # On short utterances the second thread gains little, and loses much beside other programs.  DECISIONS 76
        short_threads = 1 if threads is None else threads
        threads = check_threads(torch.get_num_threads() if threads is None else threads)
        mel_bins = package.features["mel_bins"]
        program = package.program
        if engine != "numpy":
            try:
                plan = plan or load_plan(package, program, threads)
                sparse_engine = SparseEngine(program, threads=threads, short_threads=short_threads, plan=plan)
                return cls(sparse_engine, _describe(sparse_engine), mel_bins)
            except OSError as error:
                # Asked for by name, nothing else is taken.  DECISIONS 127
                if engine == "sparse":
                    raise
                logger.warning("%s; %s", error, _NUMPY_COST)
        return cls(NumpyEngine(program), "numpy, all products dense", mel_bins)


def _describe(engine: SparseEngine) -> str:
    num_dense = list(engine.plan.layers.values()).count(USE_DENSE)
    threads = f"{engine.threads} threads"
    if engine.short_threads < engine.threads:
        threads += f", {engine.short_threads} for up to 10 seconds"
    planning = f"by measurement on {engine.plan.machine}" if engine.plan.machine else "by density"
    return f"sparse kernels, {threads}, {num_dense} of {len(engine.plan.layers)} layers dense, planned {planning}"


def check_threads(threads: int) -> int:
    """Return the number of threads, or raise ValueError if it is not 1 to 1024."""
    if not 1 <= threads <= MAX_THREADS:
        raise ValueError(f"threads must be 1 to {MAX_THREADS}, got {threads}")
    return threads


def machine_name() -> str:
    """Return the name of the processor."""
    capabilities = torch.cpu.get_capabilities()
    return str(capabilities.get("cpu_name") or capabilities.get("architecture") or "unknown")


def plan_path(package: Package, threads: int) -> Path:
    """Return the path of a package's plan in the user's cache; raise OSError if the user has no home folder."""
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sv-sparse" / "plans"
    except RuntimeError as error:
        raise OSError(f"plans are stored in the user's cache: {error}") from error
    # A plan is right for all of these and for nothing else, so they are its name.  DECISIONS 56
    key = f"{package.fingerprint} {machine_name()} {torch.__version__} {__version__} {threads}"
    return cache / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"


def load_plan(package: Package, program: Program, threads: int) -> Plan | None:
    """Return the plan that was measured on this machine; None, with a warning, where it cannot be used."""
    try:
        path = plan_path(package, threads)
        if not path.is_file():
            return None
        plan = Plan.load(path)
    except (OSError, ValueError) as error:
        logger.warning("%s; planning by density, which costs up to 11 %% of the time", error)
        return None
    if set(plan.layers) != {layer.name for layer in program.layers}:
        logger.warning("%s is a plan of other layers; planning by density", path)
        return None
    return plan
