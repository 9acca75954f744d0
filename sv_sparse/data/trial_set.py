"""Trial lists with the audio of their utterances, and the check that no training speaker is among them."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sv_sparse.data.manifest import AudioSegment, Manifest, match_utterances
from sv_sparse.data.trials import Trials
from sv_sparse.io import nfc

# Seconds; conversions to another format may change a length by a few samples.
_DURATION_TOLERANCE = 0.01


@dataclass(frozen=True)
class LeftOut:
    """Trials that a list lost because recordings cannot be used."""

    recordings: list[str]
    # Number of trials that need the recordings.
    trials: int
    # Checksum of the complete list.
    list_checksum: str


# The lists with an entry for each utterance, and the entry of a concatenation.
_CONCAT: dict[str, Callable[[Sequence[Any]], Any]] = {
    "audio": lambda files: list(chain.from_iterable(files)),
    "genres": itemgetter(0),
    "speakers": itemgetter(0),
    # 0 seconds mean unusable, and so is a concatenation with an unusable part.
    "seconds": lambda seconds: float(sum(seconds)) if all(seconds) else 0.0,
    "sexes": itemgetter(0),
}


@dataclass(frozen=True)
class TrialSet:
    """Trial list with the audio of its utterances.

    Lists have an entry for each of ``trials.utterances``, empty if it is unknown, or none at all.
    """

    trials: Trials
    # Files of each utterance.
    audio: list[list[AudioSegment]]
    genres: list[str]
    speakers: list[str]
    # 0 for an utterance that could not be used when its manifest was written: it is left out whatever lies there now.
    seconds: list[float]
    # Manifest of the utterances; None without one.
    source: Path | None
    # ``f`` or ``m``.
    sexes: list[str] = field(default_factory=list)
    # Trials that the list lost; None if it is complete.
    left_out: LeftOut | None = None

    @classmethod
    def from_manifest(cls, trials: Trials, manifest: Manifest, sexes: Mapping[str, str]) -> "TrialSet":
        """Return a trial list with the audio of a manifest, and ``f`` or ``m`` by speaker in Unicode's composed form.

        A ValueError names the first utterance that is not in the manifest.
        """
        rows = manifest.rows(trials.utterances)
        speakers = [manifest.speaker(row) for row in rows]
        return cls(
            trials=trials,
            audio=[manifest.segments(row) for row in rows],
            genres=[manifest.genre(row) for row in rows],
            speakers=speakers,
            seconds=(manifest.samples[rows] / manifest.sample_rate[rows]).tolist(),
            source=manifest.source,
            sexes=[sexes.get(nfc(speaker), "") for speaker in speakers],
        )

    def concat_enrollments(self) -> "TrialSet":
        """Return the list with each enrollment of several utterances as their concatenation, one utterance."""
        models = self.trials.models.values()
        if not models:
            return self
        columns: dict[str, Any] = {}
        for name, concat in _CONCAT.items():
            column = getattr(self, name)
            columns[name] = [*column, *[concat([column[member] for member in members]) for members in models if column]]
        return replace(self, trials=replace(self.trials, utterances=self.trials.sides, models={}), **columns)

    def without(self, unusable: Collection[int]) -> "TrialSet":
        """Return the list without the trials that need unusable utterances, at least one, by their positions."""
        trials, rows = self.trials.without(unusable)
        columns: dict[str, Any] = {}
        for name in _CONCAT:
            column = getattr(self, name)
            columns[name] = [column[row] for row in rows if column]
        left_out = LeftOut(
            recordings=[self.trials.utterances[position] for position in unusable],
            trials=len(self.trials) - len(trials),
            list_checksum=self.trials.checksum,
        )
        return replace(self, trials=trials, left_out=left_out, **columns)


def check_not_trained_on(trial_set: TrialSet, trained: pa.Table, corpus: Path, setting: str) -> None:
    """Raise a ValueError that says how many speakers of a trial list are trained on (DECISIONS 30).

    The rows ``trained`` were taken from the manifest ``corpus`` by a ``setting``, which the message names.
    """
    if not len(trained):
        return
    if trial_set.source == corpus:
        overlap = set(trained.column("speaker").unique().to_pylist()).intersection(trial_set.speakers)
    else:
        # Names of speakers mean something within a corpus only. Across corpora an utterance is recognized
        # by its name and duration; one that was concatenated from short ones, by the name of its first.
        names = pc.replace_substring_regex(trained.column("utterance").combine_chunks(), r"\+\d+$", "")
        row = match_utterances(trial_set.trials.utterances, names)
        seconds = trained.column("samples").to_numpy() / trained.column("sample_rate").to_numpy()
        is_concatenated = pc.greater(pc.list_value_length(trained.column("segments")), 1).to_numpy()
        has_same_duration = np.abs(seconds[row] - trial_set.seconds) < _DURATION_TOLERANCE
        is_same = (row >= 0) & (is_concatenated[row] | has_same_duration)
        overlap = {trial_set.speakers[position] for position in np.flatnonzero(is_same)}
    if not overlap:
        return
    advice = ""
    if trial_set.trials.name.startswith(("vox1_E", "vox1_H")):
        advice = (
            "; E and H use the speakers of all of VoxCeleb1, so train on data.train_subsets=[vox2_dev], "
            "or evaluate on vox1_O_cleaned"
        )
    raise ValueError(
        f"list {trial_set.trials.name}: {len(overlap):,} of its speakers are trained on with {setting}{advice}"
    )
