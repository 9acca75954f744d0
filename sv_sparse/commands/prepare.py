"""``sv-sparse prepare``: corpora and noise to what training reads, and checks of archives."""

import argparse
import logging
import sys
from pathlib import Path

from sv_sparse.commands.help_format import HelpFormatter, format_epilog
from sv_sparse.data.corpora.archives import verify_md5
from sv_sparse.data.corpora.cnceleb import prepare_cnceleb
from sv_sparse.data.corpora.voxceleb import prepare_voxceleb


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``sv-sparse prepare``."""
    kinds = parser.add_subparsers(
        prog=parser.prog, required=True, metavar="SUBCOMMAND", dest="what", title="subcommands"
    )

    def add_subcommand(name: str, usage: str, summary: str, *examples: str) -> argparse.ArgumentParser:
        return kinds.add_parser(
            name,
            help=summary,
            usage=f"{parser.prog} {name} {usage}",
            description=f"{summary}.",
            epilog=format_epilog(None, [f"{parser.prog} {name} {example}" for example in examples]),
            formatter_class=HelpFormatter,
        )

    voxceleb = add_subcommand(
        "voxceleb",
        "--root PATH [PATH ...] --out PREPARED [options]",
        "Write the manifest and trial lists of VoxCeleb1 and 2, in any folder layout",
        "--root PATH --lists PATH --out PREPARED",
        "--root PATH PATH --lists PATH --out PREPARED --to-flac",
    )
    cnceleb = add_subcommand(
        "cnceleb",
        "--root PATH [PATH ...] --out PREPARED [options]",
        "Write the manifest and trial lists of CN-Celeb 1 and 2, in any folder layout",
        "--root PATH --out PREPARED",
        "--root PATH --out PREPARED --allow-partial",
    )
    noise = add_subcommand(
        "noise",
        "--root PATH [PATH ...] --out STORE",
        "Write MUSAN and RIRS_NOISES to a memory-mapped store for augmentation",
        "--root MUSAN RIRS_NOISES --out STORE",
    )
    archives = add_subcommand(
        "verify-archives",
        "FILE [FILE ...]",
        "Check the MD5 sums of downloaded archives",
        "DOWNLOADS",
        "vox1_dev_wav_partaa vox1_dev_wav_partab",
    )
    for corpus in (voxceleb, cnceleb, noise):
        corpus.add_argument(
            "--root", type=Path, nargs="+", required=True, metavar="PATH", help="folders to search for recordings"
        )
    lists_help = "trial lists, or folders of them (default: none)"
    voxceleb.add_argument("--lists", type=Path, nargs="+", default=[], metavar="PATH", help=lists_help)
    for corpus in (voxceleb, cnceleb):
        corpus.add_argument("--out", type=Path, required=True, metavar="PREPARED", help="prepared folder to write")
        flac_help = "convert all recordings to FLAC below PREPARED (default: only m4a)"
        corpus.add_argument("--to-flac", action="store_true", help=flac_help)
        partial_help = "accept a part of the corpus (default: stop if utterances are missing)"
        corpus.add_argument("--allow-partial", action="store_true", help=partial_help)
    noise.add_argument(
        "--out", type=Path, required=True, metavar="STORE", help="store to write, for the setting augment.noise_dir"
    )
    archives.add_argument("files", type=Path, nargs="+", metavar="FILE", help="archives, parts of them, or folders")


def main(args: argparse.Namespace) -> None:
    """Run ``sv-sparse prepare``."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    if args.what == "verify-archives":
        _verify_archives(args.files)
    elif args.what == "noise":
        # Loads torch, which corpora do not need.
        from sv_sparse.data.noise import build_noise_store  # noqa: PLC0415

        counts = build_noise_store(args.root, args.out)
        amounts = ", ".join(f"{count} {kind}" for kind, count in counts.items())
        print(f"{args.out}: {amounts}, for augment.noise_dir")
    else:
        options = {"to_flac": args.to_flac, "allow_partial": args.allow_partial}
        if args.what == "voxceleb":
            prepare_voxceleb(args.root, args.out, lists=args.lists, **options)
        else:
            prepare_cnceleb(args.root, args.out, **options)
        print(f"{args.out}: prepared, for data.prepared_dir")


def _verify_archives(paths: list[Path]) -> None:
    results, unknown = verify_md5(paths)
    for path in unknown:
        print(f"{path}: unknown, neither an archive that was published nor a part of one")
    for name, is_same in results.items():
        print(f"{name}: {'as published' if is_same else 'DIFFERENT from what was published'}")
    if not all(results.values()):
        raise ValueError("an archive is not as published; download it again")
