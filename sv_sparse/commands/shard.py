"""sv-sparse shard: a prepared corpus to tar files."""

import argparse
from pathlib import Path

from sv_sparse.data.shards import LIMIT, UTTERANCES, write_shards
from sv_sparse.data.unreadable import UnreadableLimit


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``sv-sparse shard``."""
    parser.add_argument("prepared", type=Path, help="a prepared folder")
    parser.add_argument("--out", type=Path, required=True, help="the folder of shards, itself a prepared folder")
    parser.add_argument("--utterances", type=int, default=UTTERANCES, help="how many go into a shard")
    parser.add_argument(
        "--max-unreadable",
        type=float,
        default=LIMIT.share,
        metavar="SHARE",
        help="largest share of the recordings that may be left out because they cannot be used; 0 for none",
    )


def main(chosen: argparse.Namespace) -> None:
    """Run ``sv-sparse shard``.

    Raises:
        ValueError: something is not as expected; names it.
        OSError: something cannot be read or written.
    """
    if chosen.utterances < 1:
        raise ValueError(f"--utterances must be 1 or more, got {chosen.utterances}")
    limit = UnreadableLimit(chosen.max_unreadable, LIMIT.setting)
    write_shards(chosen.prepared, chosen.out, utterances=chosen.utterances, limit=limit)
