"""Which engine computes each layer, as measured on one machine."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from sv_sparse.io import checksum, write_json
from sv_sparse.runtime.engine.bindings import WIDEST_TILE

DENSE = 0


@dataclass(frozen=True)
class Plan:
    """How each layer is computed.

    Attributes:
        layers: by name: the width of the sparse kernel's tile in vectors, or DENSE for torch's own product.
        machine: processor and threads that it was measured on, in words; empty for the plan that is not measured.
    """

    layers: Mapping[str, int]
    machine: str = ""

    def save(self, path: Path) -> None:
        """Write it as JSON, with a check sum.

        Raises:
            OSError: the file cannot be written.
        """
        write_json(path, asdict(self) | {"check_sum": self._check_sum()})

    @classmethod
    def load(cls, path: Path) -> "Plan":
        """Read what ``save`` wrote.

        Raises:
            ValueError: the file is missing, damaged, no plan, or that of an earlier version; names it.
        """
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} is not a readable plan: {error}") from error
        layers = found.get("layers") if isinstance(found, dict) else None
        tiles = list(layers.values()) if isinstance(layers, dict) else [None]
        fits = all(isinstance(tile, int) and 0 <= tile <= WIDEST_TILE for tile in tiles)
        if layers is not None and fits and set(found) == {"layers", "machine"}:
            raise ValueError(f"{path} was measured by an earlier version: run sv-sparse tune again")
        if layers is None or not fits or set(found) != {"layers", "machine", "check_sum"}:
            raise ValueError(
                f"{path} is not a plan: expected layers, each with a tile of 0 to {WIDEST_TILE}, machine, and check_sum"
            )
        plan = cls(layers, str(found["machine"]))
        if found["check_sum"] != plan._check_sum():
            raise ValueError(f"{path} is not a readable plan: it is damaged, and has changed since it was measured")
        return plan

    def _check_sum(self) -> str:
        return checksum(json.dumps(asdict(self), sort_keys=True).encode())
