"""What the runs listen to: recordings that are given, or the demo corpus."""

from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import OmegaConf
from stages import HOME, quoted

from sv_sparse.data.rng import generator
from sv_sparse.data.speakers import read_sexes
from sv_sparse.io import write_text


@dataclass(frozen=True)
class Corpus:
    """Recordings and lists.

    Attributes:
        root: Folder that the lists' paths are relative to.
        trials: Trial lists.
        train_list: Lines of ``speaker path``; None for all speakers that no trial names.
        foreign_list: The same, of other sources than the trials are of; None where there is none.
    """

    root: Path
    trials: tuple[Path, ...]
    train_list: Path | None
    foreign_list: Path | None

    def settings(self) -> list[str]:
        """For train.py."""
        lists = ",".join(map(quoted, self.trials))
        found = ["data=folder", f"data.root={quoted(self.root)}", f"data.trials=[{lists}]"]
        return found + ([f"data.train_list={quoted(self.train_list)}"] if self.train_list else [])

    def speech(self) -> list[Path]:
        """Recordings of training speakers, for babble; none where no list names them."""
        return [self.root / line.split(maxsplit=1)[1] for line in (_lines(self.train_list) if self.train_list else [])]


def chosen_corpus(chosen: Namespace) -> Corpus:
    """The corpus of the command line; the demo corpus, made if absent, where it names none.

    Raises:
        ValueError: The demo cannot be made, or a list cannot be read.
        OSError: Something cannot be written.
    """
    if chosen.root is not None:
        return Corpus(chosen.root, tuple(chosen.trials), chosen.train_list, chosen.foreign_list)
    demo = OmegaConf.load(HOME / "conf" / "data" / "demo.yaml")
    cache = Path(demo.cache).expanduser()
    train_list, men = cache / "train_list.txt", chosen.out / "men.txt"
    if not chosen.dry_run:
        instantiate(demo.make)
        sexes = read_sexes(cache / "speakers.csv")
        _write(men, [line for line in _lines(train_list) if sexes[_speaker(line)] == "m"])
    return Corpus(cache / "wav", (cache / "veri_test.txt",), train_list, men)  # one source: men stand for another


def write_subset(corpus: Corpus, path: Path) -> None:
    """Write a training list of as many utterances as the foreign list has, of speakers drawn from the training list."""
    assert corpus.train_list is not None
    assert corpus.foreign_list is not None
    lines, wanted = _lines(corpus.train_list), len(_lines(corpus.foreign_list))
    speakers = sorted({_speaker(line) for line in lines})
    order = generator(0, "evidence subset", 0, "").permutation(len(speakers))
    place = {speakers[number]: rank for rank, number in enumerate(order)}
    _write(path, sorted(lines, key=lambda line: place[_speaker(line)])[:wanted])


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _speaker(line: str) -> str:
    return line.split(maxsplit=1)[0]


def _write(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(f"{line}\n" for line in lines))
