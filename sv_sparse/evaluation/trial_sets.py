"""Trial lists that the command line names, with their recordings."""

import os
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from sv_sparse.config.schema import read_config, read_settings
from sv_sparse.data.audio import single_file
from sv_sparse.data.corpora.published import CN_PROTOCOLS
from sv_sparse.data.decoding import AUDIO_SUFFIXES
from sv_sparse.data.prepared import load_trial_sets
from sv_sparse.data.trial_set import TrialSet
from sv_sparse.data.trials import read_trials, split_fields
from sv_sparse.evaluation.corpus import load_corpus
from sv_sparse.io import nfc

USAGE = (
    "expected PREPARED:LIST[,LIST...] with lists of a prepared folder, LIST alone where RUN was trained on one, "
    "or folder:PATH"
)
_VOXCELEB1_PREFIX = "voxceleb1-"


def run_trial_sets(run_dir: Path) -> list[TrialSet]:
    """Load the trial lists of a run's own settings; a folder that is no run is a ValueError."""
    if not (run_dir / "manifest.parquet").is_file():
        advice = "name some by --trial-sets, or by --audio-root and --trials"
        raise ValueError(f"{run_dir} has no lists of its own; {advice}")
    return load_corpus(read_config(run_dir), run_dir).trial_sets


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


def trial_sets_from_files(audio_root: Path, paths: Sequence[Path], sexes: Mapping[str, str]) -> list[TrialSet]:
    """Load trial lists of recordings that are in no manifest.

    Args:
        audio_root: folder that the lists' paths are relative to.
        paths: files of the lists.
        sexes: sex by speaker, as far as it is known; the speaker is the first part of a path.

    Raises:
        ValueError: there is no such folder, a list cannot be read, or recordings are missing.
    """
    if not audio_root.is_dir():
        raise ValueError(f"{audio_root}: no such folder of recordings")
    trial_sets = []
    for path in paths:
        trials = read_trials(path)
        files = [_find_audio(audio_root / name) for name in trials.utterances]
        missing = [file for file in files if not os.path.lexists(file)]
        if missing:
            count = f"{len(missing)} of {len(files)}"
            raise ValueError(f"{path}: {count} recordings are not in {audio_root}; first {missing[0]}")
        audio = [single_file(file) for file in files]
        sex_of_utterance = [sexes.get(nfc(name.partition("/")[0]), "") for name in trials.utterances]
        # Speakers are unknown: a first folder need not be one.
        trial_sets.append(TrialSet(trials, audio, [], [], [], source=None, sexes=sex_of_utterance))
    return trial_sets


def _find_audio(path: Path) -> Path:
    """Return the path of a recording that a list names, or the list's own ``path`` if there is none."""
    if os.path.lexists(path):
        return path
    # The file system may have another Unicode form of the name, or another ending, as after a conversion to FLAC.
    for form in ("NFC", "NFD"):
        normalized = Path(unicodedata.normalize(form, str(path)))
        for candidate in (normalized, *map(normalized.with_suffix, AUDIO_SUFFIXES)):
            if os.path.lexists(candidate):
                return candidate
    return path
