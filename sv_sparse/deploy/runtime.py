"""A packaged network, run by the fastest engine that this machine has."""

import hashlib
import logging
import os
from pathlib import Path

import torch
from torch import Tensor

from sv_sparse.deploy.engine import SparseEngine
from sv_sparse.deploy.lower import LOWERED, lower
from sv_sparse.deploy.package import Package
from sv_sparse.deploy.plan import DENSE, Plan
from sv_sparse.deploy.torch_engine import TorchEngine

logger = logging.getLogger(__name__)

ENGINES = ("auto", "sparse", "torch")


class Runtime:
    """Filterbank [B, F, T] to embedding [B, E] by a packaged network.

    Args:
        engine: what computes it.
        words: what it is, for people.
    """

    def __init__(self, engine: SparseEngine | TorchEngine, words: str) -> None:
        self.engine, self.words = engine, words

    def __call__(self, filterbank: Tensor) -> Tensor:
        """Map filterbank [B, F, T] to embedding [B, E], float32.

        Raises:
            ValueError: it has another shape, or too few frames.
        """
        return self.engine(filterbank)

    @classmethod
    def of(
        cls, package: Package, *, threads: int | None = None, engine: str = "auto", plan: Plan | None = None
    ) -> "Runtime":
        """The runtime of a package.

        Args:
            package: as ``read_package`` returns it.
            threads: that the sparse kernels use; torch's own number if not given. Layers that torch computes use
                torch's.
            engine: ``sparse``, the kernels of this project; ``torch``, compressed rows where they gain; ``auto``:
                sparse, and torch where there is no program for the network or, with a warning, no compiler.
            plan: how the sparse engine computes each layer. If not given, the one that was measured for this package
                on this machine (``plan_path``), or one by the layers' densities.

        Raises:
            ValueError: the engine is none of these, or has no program for the network, or the plan is one of another
                network or cannot be read.
            OSError: the engine ``sparse`` cannot be compiled.
        """
        if engine not in ENGINES:
            raise ValueError(f"engine must be one of {', '.join(ENGINES)}, got {engine!r}")
        threads = torch.get_num_threads() if threads is None else threads
        if threads < 1:
            raise ValueError(f"threads must be at least 1, got {threads}")
        network = package.network()
        if engine == "torch" or (engine == "auto" and not isinstance(network, LOWERED)):
            return cls._by_torch(network)
        stored = plan_path(package, threads)
        if plan is None and stored.is_file():
            plan = Plan.load(stored)
        try:
            found = SparseEngine(lower(network), threads=threads, plan=plan)
        except OSError as error:
            if engine == "sparse":
                raise
            logger.warning("%s; computing by torch meanwhile", error)
            return cls._by_torch(network)
        dense = sum(tile == DENSE for tile in found.plan.layers.values())
        how = f"planned by measurement on {found.plan.machine}" if found.plan.machine else "planned by density"
        return cls(found, f"sparse kernels, {threads} threads, {dense} of {len(found.plan.layers)} layers dense, {how}")

    @classmethod
    def _by_torch(cls, network: torch.nn.Module) -> "Runtime":
        engine = TorchEngine(network)
        return cls(engine, f"torch, {len(engine.layers)} layers by compressed rows, the others dense")


def machine() -> str:
    """The processor, in words that tell it from others."""
    about = torch.cpu.get_capabilities()
    return str(about.get("cpu_name") or about.get("architecture") or "unknown")


def plan_path(package: Package, threads: int) -> Path:
    """Where the plan that was measured for a package with so many threads is kept on this machine."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sv-sparse" / "plans"
    about = f"{package.fingerprint} {machine()} {torch.__version__} {threads}"
    return cache / f"{hashlib.sha256(about.encode()).hexdigest()[:24]}.json"
