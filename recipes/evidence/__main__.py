"""What adaptive lambda does, asked of many small runs: trains those missing, measures, writes tables and figures.

The same command goes on where it was stopped. Without --root it listens to the demo corpus, which is made up.
"""

import argparse
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from recipe import execute
from stages import HOME, quoted

from evidence.corpus import chosen_corpus, write_subset
from evidence.measured import measure, read_measured
from evidence.noisy import CONDITIONS, MADE_UP, make_noisy, open_store
from evidence.plan import FULL, QUESTIONS, QUICK, Cell, plan, quality
from evidence.results import Finished, Run
from evidence.tables import NOISY
from evidence.workers import Shared, Workers
from evidence.write import write_evidence
from sv_sparse.config.overrides import check_names

OWN = (
    r"(seed|folder|resume|init_from|name|experiment|model|optim(\.lr.*|\.lambda_)?|sparsity|scoring|target_sparsity|"
    r"data(\..*)?)="
)
PATHS = ("root", "trials", "train_list", "foreign_list", "noise")
FOLDERS = ("root", "noise")
STAGES = ("train", "noise", "measure", "tables")


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The command line, complete.

    Raises:
        SystemExit: Something is missing or not allowed; said on stderr.
    """
    parser = argparse.ArgumentParser(
        prog="recipes/evidence/run.sh",
        description=__doc__.split("\n", maxsplit=1)[0],
        epilog="SETTING=VALUE goes to every run unless it is about that, trainer.* in any case: trainer.precision=bf16",
    )
    parser.add_argument("--quick", action="store_true", help="fewer and shorter runs: does everything work?")
    parser.add_argument("--root", type=Path, help="recordings, <speaker>/<session>/<utterance>; the demo if not given")
    parser.add_argument("--trials", type=Path, nargs="+", help="trial lists, label enrolment test")
    parser.add_argument("--train-list", type=Path, help="lines of: speaker path; all that no trial names if not given")
    parser.add_argument(
        "--foreign-list", type=Path, help="the same, of other sources than the trials are of; needs --train-list"
    )
    parser.add_argument("--noise", type=Path, nargs="+", help="MUSAN and RIRS_NOISES, or folders shaped like them")
    parser.add_argument("--out", type=Path, help="default: runs/evidence, runs/evidence-quick")
    parser.add_argument("--tables", type=Path, help="folder of tables and figures; default: OUT/tables")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES), help="default: all")
    parser.add_argument("--questions", nargs="+", choices=list(QUESTIONS), default=list(QUESTIONS), help="default: all")
    parser.add_argument("--seeds", type=int, nargs="+", help="those of the plan if not given")
    jobs = 1 if torch.cuda.is_available() else 2
    parser.add_argument("--jobs", type=int, default=jobs, help=f"runs at once; default: {jobs}")
    parser.add_argument("--dry-run", action="store_true", help="print every command of training, run none")
    settings = [word for word in words if re.match(r"[a-z_][\w./]*=", word)]
    chosen = parser.parse_args([word for word in words if word not in settings])
    chosen.settings = settings
    return _complete(parser, chosen)


def _complete(parser: argparse.ArgumentParser, chosen: argparse.Namespace) -> argparse.Namespace:
    """Paths made absolute; what is not there is refused."""
    _refuse_unclear(parser, chosen)
    for option in PATHS:
        given, paths = getattr(chosen, option), _paths(chosen, option)
        for path in paths:
            if not (path.is_dir() if option in FOLDERS else path.is_file()):
                parser.error(
                    f"--{option.replace('_', '-')} {path}: no such {'folder' if option in FOLDERS else 'file'}"
                )
        found = [path.absolute() for path in paths]
        setattr(chosen, option, found if isinstance(given, list) else found[0] if found else None)
    chosen.out = (chosen.out or Path("runs", "evidence-quick" if chosen.quick else "evidence")).absolute()
    chosen.tables = (chosen.tables or chosen.out / "tables").absolute()
    return chosen


def _paths(chosen: argparse.Namespace, option: str) -> list[Path]:
    """What was given for one of ``PATHS``, one or several or nothing."""
    given = getattr(chosen, option)
    return given if isinstance(given, list) else [given] if given else []


def _refuse_unclear(parser: argparse.ArgumentParser, chosen: argparse.Namespace) -> None:
    if (chosen.root is None) != (chosen.trials is None):
        parser.error("--root and --trials go together: the folder of the recordings, and lists of them")
    if chosen.root is None and (chosen.train_list or chosen.foreign_list):
        parser.error("--train-list and --foreign-list are for --root; the demo corpus has lists of its own")
    if chosen.foreign_list and not chosen.train_list:
        parser.error("--foreign-list needs --train-list, of which as many utterances are the comparison")
    for word in chosen.settings:
        if re.match(OWN, word):
            parser.error(f"{word}: that is what the plan decides")
    seeds = (QUICK if chosen.quick else FULL).seeds
    if not {*(chosen.seeds or seeds)} <= {*seeds}:
        parser.error(f"--seeds: expected some of {', '.join(map(str, seeds))}, got {', '.join(map(str, chosen.seeds))}")
    if chosen.dry_run and "train" not in chosen.stages:
        parser.error("--dry-run prints the commands of the stage train, which is not among --stages")
    if chosen.questions == ["foreign"] and chosen.root is not None and not chosen.foreign_list:
        parser.error("--questions foreign needs --foreign-list")
    if chosen.jobs < 1:
        parser.error(f"--jobs: expected 1 or more, got {chosen.jobs}")


class Evidence:
    """The stages.

    Args:
        chosen: The command line.
    """

    def __init__(self, chosen: argparse.Namespace) -> None:
        self.chosen = chosen
        self.corpus = chosen_corpus(chosen)
        self.scale = QUICK if chosen.quick else FULL
        self.runs = chosen.out / "runs"
        foreign, subset = self.corpus.foreign_list, chosen.out / "subset.txt"
        places = {}
        if foreign is not None:
            places = {"foreign": quoted(foreign), "subset": quoted(subset)}
            if not chosen.dry_run:
                write_subset(self.corpus, subset)
        questions = [question for question in chosen.questions if question != "foreign" or foreign]
        if questions != chosen.questions:
            print("foreign: left out, since no --foreign-list is given", file=sys.stderr)
        self.cells = plan(questions, self.scale, chosen.seeds or self.scale.seeds)
        self.workers = Workers(chosen.out, Shared(self.corpus.settings(), chosen.settings), places, chosen.jobs)

    def run(self) -> int:
        """All chosen stages in their order; the exit status of the first that fails."""
        check_names([*self.corpus.settings(), *self.chosen.settings], HOME / "conf")  # once, not in every run
        if self.chosen.dry_run:
            for cell in self.cells:
                print(shlex.join(self.workers.command(cell, pretend=True)))
            return 0
        status = 0
        for stage in [stage for stage in STAGES if stage in self.chosen.stages]:
            status = getattr(self, stage)() or status  # what one cell lacks does not keep the others from the tables
            if status > 128:
                break
        return status

    def train(self) -> int:
        """Every cell of the plan."""
        return self.workers.train(self.cells)

    def noise(self) -> int:
        """Judge the networks of the noise table in noise and rooms, where they have not been."""
        speech = self.corpus.speech()
        if self.chosen.noise is None and not speech:
            print("noise: left out, since neither --noise nor --train-list is given", file=sys.stderr)
            return 0
        out = self.chosen.out / "noise"
        folders = make_noisy(self.corpus.root, self.corpus.trials, open_store(self.chosen.noise, speech, out), out)
        runs = [run.folder for run in Finished(self.runs, self._noisy()).runs() if not self._heard_noise(run)]
        if not runs:
            return 0
        return execute(["sv-sparse", "evaluate", *map(str, runs), "--trial-sets", *(f"folder:{folder}" for folder in folders)])

    def _noisy(self) -> list[Cell]:
        """Cells whose networks the noise table has."""
        return [cell for cell in quality(self.scale) if cell.group in NOISY]

    def _heard_noise(self, run: Run) -> bool:
        """Whether a network was judged by every list in every condition."""
        names = {f"{path.stem}_{condition.name}" for path in self.corpus.trials for condition in CONDITIONS}
        return names <= set(run.lists)

    def measure(self) -> int:
        """Time the networks of the structure table."""
        groups = Finished(self.runs, QUESTIONS["structure"](self.scale)).values()
        measure([group.runs[0].folder for group in groups], self.chosen.out)
        return 0

    def tables(self) -> int:
        """Write what there is of the chosen questions, whatever this call was to train."""
        source = self.chosen.out / "noise" / "source.txt"
        noise = source.read_text(encoding="utf-8") if source.is_file() else MADE_UP
        names = "; ".join(Path(word).name for word in noise.split("; ")) if self.chosen.noise else noise
        compared = [cell.name for cell in quality(self.scale)]
        questions: dict[str, Finished] = {}
        for name in self.chosen.questions:
            own = Finished(self.runs, QUESTIONS[name](self.scale))
            if name == "quality":
                questions |= {name: own, "noise": Finished(self.runs, self._noisy(), self._heard_noise)}
            elif any(run.folder.name not in compared for run in own.runs()):
                questions[name] = own
        measured = read_measured(self.chosen.out)
        write_evidence(self.chosen.tables, questions, measured, self._made_by(), names)
        print(f"tables and figures in {self.chosen.tables}")
        return 0

    def _made_by(self) -> str:
        """The command line that all of it comes from, of paths only their names."""
        chosen = self.chosen
        words = ["recipes/evidence/run.sh", *(["--quick"] if chosen.quick else [])]
        for option in PATHS:
            paths = _paths(chosen, option)
            words += [f"--{option.replace('_', '-')}", *(path.name for path in paths)] if paths else []
        return shlex.join([*words, *chosen.settings])


def main(words: Sequence[str]) -> int:
    """Do every chosen stage; the exit status of the first that fails."""
    chosen = parse(words)
    try:
        return Evidence(chosen).run()
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
