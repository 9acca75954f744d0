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
    "run", "list", "trials", "model", "optimizer", "lr", "controller", "lambda",
    "target", "before landing", "after landing", "kept", "EER", "minDCF", "EER at start", "minutes", "seed",
)  # fmt: skip


def main() -> None:
    """Print the table, and write it where ``--out`` says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "runs", nargs="+", type=Path, help="run folders; those that are not finished are named and left out"
    )
    parser.add_argument("--list", help="the trial list to compare on; all of each run's if not given")
    parser.add_argument("--out", type=Path, help="a Markdown file to write the table to")
    chosen = parser.parse_args()
    rows = []
    for run in chosen.runs:
        if (run / "results.json").is_file():
            rows += rows_of(run, chosen.list)
        else:
            print(f"{run}: not finished, left out", file=sys.stderr)
    if not rows:
        parser.error("none of these runs is finished")
    text = table(rows)
    print(text)
    if chosen.out is not None:
        write_text(chosen.out, text + "\n")


def rows_of(run: Path, name: str | None) -> list[list[str]]:
    """A run's cells, a row for each list that it was judged by, or the one of this name.

    Raises:
        SystemExit: the run was not judged on the list of this name.
    """
    results: dict[str, Any] = json.loads((run / "results.json").read_text())
    settings: Any = OmegaConf.to_container(OmegaConf.load(run / "config.yaml"))
    later = run / "evaluations.json"
    lists = (json.loads(later.read_text()) if later.is_file() else {}) | results["evaluations"]
    if name is not None and name not in lists:
        raise SystemExit(f"{run}: no trial list {name!r}; it has {', '.join(lists)}")
    chosen = lists if name is None else {name: lists[name]}
    return [cells(run, results, settings, judged) for judged in chosen.values()]


def cells(run: Path, results: dict[str, Any], settings: Any, judged: dict[str, Any]) -> list[str]:
    """A run on one list."""
    optimizer, controller = (
        node["_target_"].rsplit(".", 1)[1] for node in (settings["optim"], settings["sparsity"]["controller"])
    )
    return [
        run.name,
        judged["name"],
        f"{judged['trials']:,}",
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
        f"{judged['costs'][0]['min_dcf']:.3f}",
        f"{judged['start_eer']:.2%}" if "start_eer" in judged else "-",
        f"{results['seconds'] / 60:.1f}",
        str(results["seed"]),
    ]


def table(rows: list[list[str]]) -> str:
    """Rows under COLUMNS, in Markdown."""
    lines = [COLUMNS, ["---"] * len(COLUMNS), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    main()
