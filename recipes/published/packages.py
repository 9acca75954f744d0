"""Table of packages: size of the file, and time of an embedding on one thread.

python recipes/published/packages.py PACKAGE ... [--out FILE]
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from sv_sparse import Verifier
from sv_sparse.io import write_text
from sv_sparse.report.format import percent
from sv_sparse.report.tables import Table

SAMPLE_RATE = 16000
SECONDS = 3


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, and write it to a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", nargs="+", type=Path, metavar="PACKAGE", help="file that sv-sparse export wrote")
    parser.add_argument("--repeats", type=int, default=20, help="embeddings of each network (default: 20)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="file for the table, in Markdown")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    text = package_table(options.packages, options.repeats).markdown() + "\n"
    print(text, end="")
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_text(options.out, text)


def package_table(paths: Sequence[Path], repeats: int) -> Table:
    """Measure the packages, interleaved, since the speed of a computer changes with time."""
    noise = np.random.default_rng(0).normal(0, 0.1, SECONDS * SAMPLE_RATE).astype(np.float32)
    verifiers = [Verifier.from_pretrained(path, threads=1) for path in paths]
    times: list[list[float]] = [[] for _ in paths]
    for verifier in verifiers:
        # The first call prepares kernels.
        verifier.embed(noise, SAMPLE_RATE)
    for _ in range(repeats):
        for verifier, of_package in zip(verifiers, times, strict=True):
            start = time.perf_counter()
            verifier.embed(noise, SAMPLE_RATE)
            of_package.append(time.perf_counter() - start)
    rows = []
    medians = [statistics.median(of_package) for of_package in times]
    for path, verifier, median in zip(paths, verifiers, medians, strict=True):
        rows.append(
            [
                path.stem,
                percent(verifier.card["metrics"]["sparsity_network"], 4),
                f"{path.stat().st_size / 2**20:.2f}",
                f"{1000 * median:.1f}",
                f"{median / medians[0]:.2f}",
            ]
        )
    headers = ["package", "sparsity", "MiB", f"ms for {SECONDS} s, one thread", "of the first"]
    return Table("Packages", headers, rows)


if __name__ == "__main__":
    main()
