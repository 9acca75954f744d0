"""``sv-sparse shard``: write a prepared corpus into tar files."""

import argparse
from pathlib import Path

from sv_sparse.commands.common import add_max_unreadable_argument
from sv_sparse.data.shards import DEFAULT_LIMIT, UTTS_PER_SHARD, write_shards
from sv_sparse.data.unreadable import UnreadableLimit


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``sv-sparse shard``."""
    parser.add_argument("prepared", type=Path, metavar="PREPARED", help="folder that sv-sparse prepare wrote")
    out_help = "folder of the shards, itself a prepared folder"
    parser.add_argument("--out", type=Path, required=True, metavar="SHARDS", help=out_help)
    utts_help = f"utterances per shard (default: {UTTS_PER_SHARD})"
    parser.add_argument("--utts-per-shard", type=int, default=UTTS_PER_SHARD, metavar="N", help=utts_help)
    add_max_unreadable_argument(parser, DEFAULT_LIMIT.fraction)


def main(args: argparse.Namespace) -> None:
    """Run ``sv-sparse shard``."""
    # As a step of a range, 0 would be an error without the option's name.
    if args.utts_per_shard < 1:
        raise ValueError(f"--utts-per-shard must be 1 or more, got {args.utts_per_shard}")
    limit = UnreadableLimit(args.max_unreadable, DEFAULT_LIMIT.setting)
    write_shards(args.prepared, args.out, utts_per_shard=args.utts_per_shard, limit=limit)
    print(f"{args.out}: {len(list(args.out.glob('*.tar')))} shards, for data.prepared_dir and data.format=shards")
