"""Trial lists to scores and error rates, for the run's own lists and for held-out training speakers."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import csv
from torch import nn

from sv_sparse.data.manifest import Manifest
from sv_sparse.data.prepared import Judged
from sv_sparse.data.trials import Trials
from sv_sparse.distributed import rank
from sv_sparse.embedding import Array, embed
from sv_sparse.scoring.cosine import cosine_scores
from sv_sparse.scoring.metrics import OperatingPoint, eer, min_dcf
from sv_sparse.storage import atomic_write, write_json

_VALIDATION_SPEAKERS = 40
_VALIDATION_UTTERANCES = 12  # per speaker


@dataclass(frozen=True)
class Evaluation:
    """Error rates on one trial list, and by genre where the corpus names genres; rates are fractions."""

    name: str
    trials: int
    targets: int
    eer: float
    eer_threshold: float
    min_dcf: float
    min_dcf_threshold: float
    p_target: float
    c_miss: float
    c_fa: float
    genres: dict[str, dict[str, float]]

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for results.json."""
        return asdict(self)


def judge(trials: Trials, scores: Array, point: OperatingPoint, genres: Sequence[str] = ()) -> Evaluation:
    """Error rates of a scored list; ``genres`` are those of its utterances, where they are known."""
    rate, rate_threshold = eer(scores, trials.is_target)
    cost, cost_threshold = min_dcf(scores, trials.is_target, point)
    return Evaluation(
        name=trials.name,
        trials=len(trials),
        targets=int(trials.is_target.sum()),
        eer=rate,
        eer_threshold=rate_threshold,
        min_dcf=cost,
        min_dcf_threshold=cost_threshold,
        genres=_by_genre(trials, scores, genres),
        **asdict(point),
    )


def _by_genre(trials: Trials, scores: Array, genres: Sequence[str]) -> dict[str, dict[str, float]]:
    """Trials, targets and EER by the genre of the test utterance; genres without a target or nontarget are left out."""
    if not any(genres):
        return {}
    found = {}
    names, genre = np.unique(np.array(genres), return_inverse=True)
    of_trial = genre[trials.test]
    for index, name in enumerate(names):
        own = of_trial == index
        targets = int(trials.is_target[own].sum())
        if name and 0 < targets < own.sum():
            rate, _ = eer(scores[own], trials.is_target[own])
            found[str(name)] = {"trials": int(own.sum()), "targets": targets, "eer": rate}
    return found


def evaluate_lists(
    network: nn.Module,
    filterbank: nn.Module,
    lists: Sequence[Judged],
    mean: Array,
    point: OperatingPoint,
    *,
    scores_to: Path,
) -> list[Evaluation]:
    """Embed every utterance of the lists once, score each list, judge it, and write its scores.

    Of several processes, each embeds some of the utterances; the first does the rest, the others get nothing.

    Args:
        network: see ``embed``.
        filterbank: see ``embed``.
        lists: trial lists and where their utterances are. An enrolment of several is the mean of its embeddings.
        mean: [E], subtracted from the embeddings.
        point: operating point of minDCF.
        scores_to: folder for ``<list>.txt`` with lines ``enrolment test score label``; made if absent.
    """
    utterances = dict.fromkeys(tuple(parts) for one in lists for parts in one.recordings)
    embeddings = embed(network, filterbank, list(utterances), title="embedding")
    index = {parts: position for position, parts in enumerate(utterances)}
    evaluations: list[Evaluation] = []
    if rank() > 0:
        return evaluations
    for one in lists:
        trials = one.trials
        own = embeddings[[index[tuple(parts)] for parts in one.recordings]]
        models = [own[list(several)].mean(axis=0, keepdims=True) for several in trials.models.values()]
        scores = cosine_scores(np.concatenate([own, *models]), mean, trials.enrolment, trials.test)
        evaluations.append(judge(trials, scores, point, one.genres))
        write_scores(scores_to / f"{trials.name}.txt", trials, scores)
    return evaluations


def keep_evaluations(run: Path, evaluations: Sequence[Evaluation]) -> None:
    """Write what a finished run was judged by since into its ``evaluations.json``, beside what is there."""
    path = run / "evaluations.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    write_json(path, known | {evaluation.name: evaluation.as_dict() for evaluation in evaluations})


def write_scores(path: Path, trials: Trials, scores: Array) -> None:
    """Write lines ``enrolment test score label``, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = trials.sides
    rows = zip(trials.enrolment, trials.test, scores, trials.is_target, strict=True)
    with atomic_write(path) as file:
        file.writelines(f"{names[a]} {names[b]} {value:.6f} {int(label)}\n".encode() for a, b, value, label in rows)


def read_scores(path: Path) -> tuple[Array, NDArray[np.bool_]]:
    """Scores and labels of a file that ``write_scores`` wrote."""
    columns = {"enrolment": pa.string(), "test": pa.string(), "score": pa.float32(), "label": pa.int8()}
    table = csv.read_csv(
        path,
        csv.ReadOptions(column_names=list(columns)),
        csv.ParseOptions(delimiter=" ", quote_char=False),
        csv.ConvertOptions(column_types=columns, include_columns=["score", "label"]),
    )
    return table.column("score").to_numpy(), table.column("label").to_numpy() == 1


def validation_trials(manifest: Manifest) -> tuple[NDArray[np.int64], Trials | None]:
    """Trials among the held-out training speakers: every pair of utterances, targets across sessions where possible.

    Returns:
        Rows of the manifest, and the trials over them; None where no speakers are held out.
    """
    rows = manifest.split("validation")
    if not len(rows):
        return rows, None
    labels = manifest.labels(rows)
    few = np.concatenate([_few(manifest, rows[labels == k]) for k in range(_VALIDATION_SPEAKERS)])
    labels = manifest.labels(few)
    utterances = [manifest.utterance(row) for row in few]
    sessions = np.array([manifest.session(row) for row in few])
    first, second = np.triu_indices(len(few), k=1)
    target = labels[first] == labels[second]
    crossing = sessions[first] != sessions[second]
    wanted = ~target | crossing if (target & crossing).any() else np.ones_like(target)
    return few, Trials("validation", target[wanted], first[wanted], second[wanted], utterances)


def _few(manifest: Manifest, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Some of a speaker's rows, from as many sessions as possible."""
    seen: Counter[str] = Counter()
    turn = []
    for row in rows:
        session = manifest.session(row)
        turn.append(seen[session])
        seen[session] += 1
    return np.sort(rows[np.argsort(turn, kind="stable")[:_VALIDATION_UTTERANCES]])


def validate(
    network: nn.Module, filterbank: nn.Module, manifest: Manifest, point: OperatingPoint
) -> tuple[Evaluation, Array] | None:
    """Judge a network on the held-out training speakers.

    Returns:
        The error rates, and the mean embedding [E] of those speakers, which was subtracted; None where no speakers
        are held out.
    """
    rows, trials = validation_trials(manifest)
    if trials is None:
        return None
    found = embed(network, filterbank, [manifest.parts(row) for row in rows], title="validation")
    mean = found.mean(axis=0)
    return judge(trials, cosine_scores(found, mean, trials.enrolment, trials.test), point), mean
