"""sv-sparse shard: a prepared corpus to tar files."""

import argparse
from pathlib import Path

from sv_sparse.data.shards import UTTERANCES, write_shards


def add(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``sv-sparse shard``."""
    parser.add_argument("prepared", type=Path, help="a prepared folder")
    parser.add_argument("--out", type=Path, required=True, help="the folder of shards, itself a prepared folder")
    parser.add_argument("--utterances", type=int, default=UTTERANCES, help="how many go into a shard")


def run(chosen: argparse.Namespace) -> None:
    """Run ``sv-sparse shard``.

    Raises:
        ValueError: something is not as expected; names it.
        OSError: something cannot be read or written.
    """
    if chosen.utterances < 1:
        raise ValueError(f"--utterances must be 1 or more, got {chosen.utterances}")
    write_shards(chosen.prepared, chosen.out, utterances=chosen.utterances)
