"""``sv-sparse prepare``: corpora and noise to what training reads, and checks of archives."""

import argparse
import logging
import sys
from pathlib import Path

from sv_sparse.data.corpora.archives import verify_md5
from sv_sparse.data.corpora.cnceleb import prepare_cnceleb
from sv_sparse.data.corpora.voxceleb import prepare_voxceleb


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``sv-sparse prepare``."""
    kinds = parser.add_subparsers(required=True, metavar="WHAT", dest="what")
    for name, title in (("voxceleb", "VoxCeleb1 and 2"), ("cnceleb", "CN-Celeb 1 and 2")):
        corpus = kinds.add_parser(name, help=f"{title}, in any layout, to a manifest and trial lists")
        corpus.add_argument("--root", type=Path, nargs="+", required=True, help="folders to search")
        corpus.add_argument("--out", type=Path, required=True, help="the prepared folder")
        corpus.add_argument("--to-flac", action="store_true", help="convert everything to FLAC below --out")
        corpus.add_argument("--allow-partial", action="store_true", help="accept a part of the corpus")
        if name == "voxceleb":
            corpus.add_argument("--lists", type=Path, nargs="+", default=[], help="trial lists, or folders of them")
    noise = kinds.add_parser("noise", help="MUSAN and RIRS_NOISES to a store that is mapped into memory")
    noise.add_argument("--root", type=Path, nargs="+", required=True, help="folders to search")
    noise.add_argument("--out", type=Path, required=True, help="the store, for augment.noise_dir")
    archives = kinds.add_parser("verify-archives", help="check the MD5 sums of downloaded archives")
    archives.add_argument("files", type=Path, nargs="+", metavar="FILE", help="archives, their parts, or folders")


def main(args: argparse.Namespace) -> None:
    """Run ``sv-sparse prepare``."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    if args.what == "verify-archives":
        _verify_archives(args.files)
    elif args.what == "noise":
        # Loads torch, which corpora do not need.
        from sv_sparse.data.noise import build_noise_store  # noqa: PLC0415

        counts = build_noise_store(args.root, args.out)
        print(", ".join(f"{count} {kind}" for kind, count in counts.items()))
    else:
        options = {"to_flac": args.to_flac, "allow_partial": args.allow_partial}
        if args.what == "voxceleb":
            prepare_voxceleb(args.root, args.out, lists=args.lists, **options)
        else:
            prepare_cnceleb(args.root, args.out, **options)


def _verify_archives(paths: list[Path]) -> None:
    results, unknown = verify_md5(paths)
    for path in unknown:
        print(f"{path}: unknown, neither an archive that was published nor a part of one")
    for name, is_same in results.items():
        print(f"{name}: {'as published' if is_same else 'DIFFERENT from what was published'}")
    if not all(results.values()):
        raise ValueError("an archive is not as published; download it again")
