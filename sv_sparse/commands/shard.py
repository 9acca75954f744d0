"""``sv-sparse shard``: write a prepared corpus into tar files."""

import argparse
from pathlib import Path

from sv_sparse.data.shards import DEFAULT_LIMIT, UTTS_PER_SHARD, write_shards
from sv_sparse.data.unreadable import UnreadableLimit


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``sv-sparse shard``."""
    parser.add_argument("prepared", type=Path, help="a prepared folder")
    parser.add_argument("--out", type=Path, required=True, help="the folder of shards, itself a prepared folder")
    parser.add_argument("--utts-per-shard", type=int, default=UTTS_PER_SHARD, metavar="N", help="utterances per shard")
    max_unreadable_help = (
        "largest fraction of the recordings that may be left out because they cannot be used; 0 for none"
    )
    parser.add_argument(
        "--max-unreadable", type=float, default=DEFAULT_LIMIT.fraction, metavar="FRACTION", help=max_unreadable_help
    )


def main(args: argparse.Namespace) -> None:
    """Run ``sv-sparse shard``."""
    # As a step of a range, 0 would be an error without the option's name.
    if args.utts_per_shard < 1:
        raise ValueError(f"--utts-per-shard must be 1 or more, got {args.utts_per_shard}")
    limit = UnreadableLimit(args.max_unreadable, DEFAULT_LIMIT.setting)
    write_shards(args.prepared, args.out, utts_per_shard=args.utts_per_shard, limit=limit)
