"""One table over finished runs, a sweep's for instance: what was asked, what came out, what it cost.

python train.py -m model=ecapa_512 optim=adabreg,linbreg target_sparsity=0.75,0.9
python scripts/compare.py runs/*ecapa_512* --out table.md

"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from sv_sparse.storage import write_text

COLUMNS = (
    "run", "model", "optimizer", "lr", "controller", "lambda", "target", "before landing", "after landing", "kept",
    "EER", "minDCF", "EER at start", "minutes", "seed",
)  # fmt: skip


def main() -> None:
    """Print the table, and write it where ``--out`` says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "runs", nargs="+", type=Path, help="run folders; those that are not finished are named and left out"
    )
    parser.add_argument("--list", help="the trial list to compare on; the first of each run if not given")
    parser.add_argument("--out", type=Path, help="a Markdown file to write the table to")
    chosen = parser.parse_args()
    rows = []
    for run in chosen.runs:
        if (run / "results.json").is_file():
            rows.append(row_of(run, chosen.list))
        else:
            print(f"{run}: not finished, left out", file=sys.stderr)
    if not rows:
        parser.error("none of these runs is finished")
    text = table(rows)
    print(text)
    if chosen.out is not None:
        write_text(chosen.out, text + "\n")


def row_of(run: Path, name: str | None) -> list[str]:
    """A run's cells.

    Raises:
        SystemExit: the run was not judged on the list of this name.
    """
    results: dict[str, Any] = json.loads((run / "results.json").read_text())
    settings: Any = OmegaConf.to_container(OmegaConf.load(run / "config.yaml"))
    if name is not None and name not in results["evaluations"]:
        raise SystemExit(f"{run}: no trial list {name!r}; it has {', '.join(results['evaluations'])}")
    judged = results["evaluations"][name or next(iter(results["evaluations"]))]
    optimizer, controller = (
        node["_target_"].rsplit(".", 1)[1] for node in (settings["optim"], settings["sparsity"]["controller"])
    )
    return [
        run.name,
        results["training"]["model"],
        optimizer,
        f"{results['training']['lr']:g}",
        controller if results["target_sparsity"] else "dense",
        f"{results['lambda']:.3g}" if results["target_sparsity"] else "-",
        f"{results['target_sparsity']:.2%}",
        f"{results['sparsity_before_landing']:.3%}",
        f"{results['sparsity']:.4%}",
        f"{results['kept_parameters'] / results['parameters']:.2%}",
        f"{judged['eer']:.2%}",
        f"{judged['min_dcf']:.3f}",
        f"{judged['start_eer']:.2%}",
        f"{results['seconds'] / 60:.1f}",
        str(results["seed"]),
    ]


def table(rows: list[list[str]]) -> str:
    """Rows under COLUMNS, in Markdown."""
    lines = [COLUMNS, ["---"] * len(COLUMNS), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    main()
