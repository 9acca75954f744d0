"""Trial lists of recordings that are in no manifest."""

import os
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

from sv_sparse.data.audio import single_file
from sv_sparse.data.decoding import AUDIO_SUFFIXES
from sv_sparse.data.trial_set import TrialSet
from sv_sparse.data.trials import read_trials
from sv_sparse.io import nfc


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
