"""sv-sparse prepare: corpora and noise to what training reads, and archives checked. Nothing here needs torch."""

import argparse
import logging
import sys
from pathlib import Path

from sv_sparse.data.corpora.archives import verify
from sv_sparse.data.corpora.cnceleb import prepare_cnceleb
from sv_sparse.data.corpora.voxceleb import prepare_voxceleb


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``sv-sparse prepare``."""
    kinds = parser.add_subparsers(required=True, metavar="WHAT", dest="what")
    for name, words in (("voxceleb", "VoxCeleb1 and 2"), ("cnceleb", "CN-Celeb 1 and 2")):
        corpus = kinds.add_parser(name, help=f"{words}, in whatever layout, to a manifest and trial lists")
        corpus.add_argument("--root", type=Path, nargs="+", required=True, help="folders to look through")
        corpus.add_argument("--out", type=Path, required=True, help="the prepared folder")
        corpus.add_argument("--flac", action="store_true", help="convert everything to FLAC below --out")
        corpus.add_argument("--partial", action="store_true", help="accept a part of the corpus")
        if name == "voxceleb":
            corpus.add_argument("--lists", type=Path, nargs="+", default=[], help="trial lists, or folders of them")
    noise = kinds.add_parser("noise", help="MUSAN and RIRS_NOISES to a store that is mapped into memory")
    noise.add_argument("--root", type=Path, nargs="+", required=True, help="folders to look through")
    noise.add_argument("--out", type=Path, required=True, help="the store, for augment.noise_dir")
    archives = kinds.add_parser("archives", help="check the MD5 sums of downloaded archives")
    archives.add_argument("files", type=Path, nargs="+", metavar="FILE", help="archives, their parts, or folders")


def main(chosen: argparse.Namespace) -> None:
    """Run ``sv-sparse prepare``.

    Raises:
        ValueError: something is not as expected; names it.
        OSError: something cannot be read or written.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    if chosen.what == "archives":
        _archives(chosen.files)
    elif chosen.what == "noise":
        _noise(chosen.root, chosen.out)
    elif chosen.what == "voxceleb":
        prepare_voxceleb(chosen.root, chosen.out, lists=chosen.lists, flac=chosen.flac, partial=chosen.partial)
    else:
        prepare_cnceleb(chosen.root, chosen.out, flac=chosen.flac, partial=chosen.partial)


def _archives(files: list[Path]) -> None:
    results, unknown = verify(files)
    for path in unknown:
        print(f"{path}: unknown, neither an archive that was published nor a part of one")
    for name, same in results:
        print(f"{name}: {'as published' if same else 'DIFFERENT from what was published'}")
    if not all(same for _, same in results):
        raise ValueError("an archive is not as published; download it again")


def _noise(roots: list[Path], out: Path) -> None:
    from sv_sparse.data.noise import build_store  # noqa: PLC0415  # loads torch, which a corpus does without

    counts = build_store(roots, out)
    print(", ".join(f"{count} {kind}" for kind, count in counts.items()))
