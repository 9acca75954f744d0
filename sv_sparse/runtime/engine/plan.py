"""Plan of an engine: the kernel for each layer, as measured on one machine."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from sv_sparse.io import checksum, write_json
from sv_sparse.runtime.engine.bindings import MAX_TILE

USE_DENSE = 0


@dataclass(frozen=True)
class Plan:
    """Kernel of each layer.

    >>> Plan({"mfa.weight": 8, "embedding.weight": USE_DENSE}).layers["mfa.weight"]
    8
    """

    # By name: width of the sparse kernel's tile in vectors, 1 to MAX_TILE, or USE_DENSE for torch's product.
    layers: Mapping[str, int]
    # Processor and threads that it was measured on, in words; empty for a plan that was not measured.
    machine: str = ""

    def save(self, path: Path) -> None:
        """Write the plan as JSON with a checksum."""
        write_json(path, asdict(self) | {"checksum": self._checksum()})

    @classmethod
    def load(cls, path: Path) -> "Plan":
        """Return the plan that ``save`` wrote; raise ValueError, which names the file, where there is none."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            plan = cls(dict(content["layers"]), str(content["machine"]))
            checksum = content["checksum"]
        except (OSError, ValueError, TypeError, LookupError) as error:
            raise ValueError(f"{path} is not a readable plan: {error}; run sv-sparse autotune again") from error
        for tile in plan.layers.values():
            if not isinstance(tile, int) or not 0 <= tile <= MAX_TILE:
                raise ValueError(f"{path} is not a plan: expected a tile of 0 to {MAX_TILE} for each layer, got {tile}")
        if checksum != plan._checksum():
            raise ValueError(f"{path} is not a readable plan: it is damaged; run sv-sparse autotune again")
        return plan

    def _checksum(self) -> str:
        return checksum(json.dumps(asdict(self), sort_keys=True).encode())
