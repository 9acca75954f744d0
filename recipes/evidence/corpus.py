"""What the runs listen to: recordings that are given, or the demo corpus."""

from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import OmegaConf
from stages import HOME, quoted

from sv_sparse.data.speakers import read_sexes
from sv_sparse.storage import write_text


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
        lines = self.train_list.read_text(encoding="utf-8").splitlines() if self.train_list else []
        return [self.root / line.split(maxsplit=1)[1] for line in lines if line.strip()]


def chosen_corpus(chosen: Namespace) -> Corpus:
    """The corpus of the command line; the demo corpus, made if absent, where it names none.

    Raises:
        ValueError: The demo cannot be made.
        OSError: Something cannot be written.
    """
    if chosen.root is not None:
        return Corpus(chosen.root, tuple(chosen.trials), chosen.train_list, chosen.foreign_list)
    demo = OmegaConf.load(HOME / "conf" / "data" / "demo.yaml")
    if not chosen.dry_run:
        instantiate(demo.make)
    cache = Path(demo.cache).expanduser()
    train_list = cache / "train_list.txt"
    foreign = chosen.out / "men.txt"  # the demo has one source: those who trained on men only stand for another
    if not chosen.dry_run:
        men = [speaker for speaker, sex in read_sexes(cache / "speakers.csv").items() if sex == "m"]
        lines = train_list.read_text(encoding="utf-8").splitlines()
        write_text(foreign, "".join(f"{line}\n" for line in lines if line.split(maxsplit=1)[0] in set(men)))
    return Corpus(cache / "wav", (cache / "veri_test.txt",), train_list, foreign)
