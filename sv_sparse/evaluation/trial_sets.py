"""Trial lists that the command line names, with their recordings."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from sv_sparse.config.schema import read_config, read_settings
from sv_sparse.data.corpora.published import CN_PROTOCOLS
from sv_sparse.data.prepared import load_trial_sets
from sv_sparse.data.trial_files import trial_sets_from_files
from sv_sparse.data.trial_set import TrialSet
from sv_sparse.data.trials import split_fields
from sv_sparse.evaluation.corpus import load_corpus

USAGE = (
    "expected PREPARED:LIST[,LIST...] with lists of a prepared folder, LIST alone where RUN was trained on one, "
    "or folder:PATH"
)
_VOXCELEB1_PREFIX = "voxceleb1-"


def run_trial_sets(run_dir: Path) -> list[TrialSet]:
    """Load the trial lists of a run's own settings; a folder without any, or that is no run, is a ValueError."""
    trial_sets = []
    if (run_dir / "manifest.parquet").is_file():
        trial_sets = load_corpus(read_config(run_dir), run_dir).trial_sets
    if not trial_sets:
        advice = "name some by --trial-sets, or by --audio-root and --trials"
        raise ValueError(f"{run_dir} has no lists of its own; {advice}")
    return trial_sets


def parse_trial_sets(args: Sequence[str], run_dir: Path, sexes: Mapping[str, str]) -> list[TrialSet]:
    """Load the trial lists that ``--trial-sets`` names.

    Args:
        args: as in USAGE; ``expand_aliases`` has other names of lists.
        run_dir: folder of the run.
        sexes: sex by speaker for ``folder:PATH``, as far as it is known.

    Raises:
        ValueError: there is no such list or folder.
    """
    trial_sets = []
    for arg in args:
        # A path may have a colon, too.
        prepared, colon, names = arg.rpartition(":")
        if colon and prepared == "folder":
            trial_sets += _trial_sets_in_folder(Path(names), sexes)
            continue
        if not colon:
            settings = read_settings(run_dir) if (run_dir / "config.yaml").is_file() else {"data": {}}
            if settings["data"].get("prepared_dir") is None:
                raise ValueError(f"--trial-sets {arg}: {USAGE}; {run_dir} was not trained on a prepared folder")
            prepared = settings["data"]["prepared_dir"]
        trial_sets += load_trial_sets(prepared, list(expand_aliases(names)))
    return trial_sets


def expand_aliases(names: str) -> Iterator[str]:
    """Yield the names of lists in a prepared folder, from names separated by commas.

    ``voxceleb1-o``, ``-e`` and ``-h`` are the cleaned lists of VoxCeleb1, ``voxceleb1-o,e,h`` all three, ``cnceleb``
    is CN-Celeb's with both ways to enroll.

    >>> list(expand_aliases("voxceleb1-o,e"))
    ['vox1_O_cleaned', 'vox1_E_cleaned']
    """
    # A bare letter continues the names before it.
    after_voxceleb1 = False
    for name in names.split(","):
        letter = name.removeprefix(_VOXCELEB1_PREFIX)
        has_prefix = letter != name
        after_voxceleb1 = (has_prefix or after_voxceleb1) and letter in {"o", "e", "h"}
        if after_voxceleb1:
            yield f"vox1_{letter.upper()}_cleaned"
        elif name == "cnceleb":
            for protocol in CN_PROTOCOLS:
                yield f"cnceleb_{protocol}"
        elif name:
            yield name
        else:
            raise ValueError(f"--trial-sets {names!r}: {USAGE}")


def _trial_sets_in_folder(folder: Path, sexes: Mapping[str, str]) -> list[TrialSet]:
    """Load the trial lists of a folder that is laid out like the demo corpus."""
    texts = sorted(folder.glob("*.txt")) + sorted((folder / "lists").glob("*.txt"))
    paths = [path for path in texts if _is_trial_list(path)]
    if not paths:
        lines = "lines 'label enrollment test'"
        raise ValueError(f"--trial-sets folder:{folder}: no trial list ({lines}) in it or in its lists/")
    return trial_sets_from_files(folder / "wav", paths, sexes)


def _is_trial_list(path: Path) -> bool:
    """Return True if the first line of a text is that of a trial list."""
    # Other texts, such as a README, may lie beside lists, and have any encoding.
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        for line in file:
            if line.strip():
                fields = split_fields(line, 3)
                return len(fields) == 3 and fields[0] in {"0", "1"}
    return False
