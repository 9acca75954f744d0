"""sv-sparse evaluate: score trial lists with a trained network."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from sv_sparse.config.settings import Settings
from sv_sparse.data.decoding import SAMPLE_RATE
from sv_sparse.data.manifest import Manifest, match
from sv_sparse.data.prepared import Judged, rows_of
from sv_sparse.data.speakers import read_sexes
from sv_sparse.data.unreadable import UnreadableLimit
from sv_sparse.distributed import end, processes, rank
from sv_sparse.evaluation.corpus import refuse_known_to, run_of
from sv_sparse.evaluation.embedding_cache import EMBEDDINGS, EmbeddingCache
from sv_sparse.evaluation.evaluate import evaluate_lists, keep_evaluations, refuse_other_lists
from sv_sparse.evaluation.load import load_network
from sv_sparse.evaluation.result import Evaluation, Sides
from sv_sparse.evaluation.trial_sets import lists_named, lists_of_files, lists_of_run
from sv_sparse.evaluation.validation import make_backend
from sv_sparse.io import composed
from sv_sparse.models.features import MEL_BINS, Filterbank
from sv_sparse.report import refresh_report
from sv_sparse.scoring.backend import Backend
from sv_sparse.scoring.config import ENROLMENTS, NORMALIZATIONS, Scoring
from sv_sparse.training.device import choose_device


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``sv-sparse evaluate``."""
    parser.add_argument(
        "networks",
        type=Path,
        nargs="+",
        metavar="RUN",
        help="run folders, judged by their own lists or by those named here; or one network file, such as "
        "RUN/checkpoints/best.pt, with --scores",
    )
    parser.add_argument(
        "--on",
        nargs="+",
        default=[],
        metavar="LISTS",
        help="PREPARED:LIST,LIST of prepared folders; LIST alone where RUN was trained on one; voxceleb1-o,e,h and "
        "cnceleb name the usual ones; folder:PATH takes the lists in PATH, of recordings in PATH/wav",
    )
    parser.add_argument("--root", type=Path, help="folder that the paths in --trials are relative to")
    parser.add_argument("--trials", type=Path, nargs="+", default=[], help="VoxCeleb-format trial lists")
    parser.add_argument("--speakers", type=Path, help="table with columns speaker and sex, for those in --trials")
    parser.add_argument("--normalization", choices=NORMALIZATIONS, help="of scores; as RUN was set if not given")
    parser.add_argument("--top-n", type=int, help="closest training speakers that as_norm looks at")
    parser.add_argument("--enrolment", choices=ENROLMENTS, help="what becomes of several enrolment utterances")
    parser.add_argument(
        "--max-unreadable",
        type=float,
        metavar="SHARE",
        help="largest share of the recordings that may be left out because they cannot be used; 0 for none; as RUN was "
        "set if not given",
    )
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--scores", type=Path, help="folder that the scores are written to; RUN/scores if not given")


def main(chosen: argparse.Namespace) -> None:
    """Run ``sv-sparse evaluate``, by several processes together where torchrun started them.

    Raises:
        ValueError: something is not as expected; names it.
        OSError: something cannot be read or written.
    """
    _refuse_unclear(chosen)
    with processes():
        for path in chosen.networks:
            if len(chosen.networks) > 1 and rank() == 0:
                print(f"{path}:")
            _evaluate(path, chosen)
    end()


def _refuse_unclear(chosen: argparse.Namespace) -> None:
    files = [path for path in chosen.networks if not path.is_dir()]
    absent = [path for path in files if not path.exists()]
    if absent:
        raise ValueError(f"{absent[0]}: no such run folder or network file")
    if chosen.scores is None and files:
        raise ValueError(f"{files[0]} is no run folder; --scores is needed where a network file is given")
    if chosen.scores is not None and len(chosen.networks) > 1:
        raise ValueError("--scores takes the scores of one network; those of several go to their run folders")
    if (chosen.root is None) != (not chosen.trials):
        raise ValueError("--root and --trials go together: the folder of the recordings, and lists of them")
    if chosen.speakers is not None and not chosen.trials and not any(w.startswith("folder:") for w in chosen.on):
        raise ValueError(
            "--speakers is for the lists of --trials and of --on folder:PATH; prepared folders have their own"
        )


def _evaluate(path: Path, chosen: argparse.Namespace) -> None:
    """Judge one network; what it trained on decides what it may be judged by."""
    network, given, settings = load_network(path / "checkpoints" / "model.pt" if path.is_dir() else path)
    scoring = _asked(Scoring(**settings["scoring"]), chosen)
    limit = _limit(settings, chosen)
    folder = run_of(path)
    lists = _lists(folder, chosen)
    refuse_known_to(folder, lists)
    if chosen.scores is None:
        refuse_other_lists(folder, lists, scoring)
    if rank() == 0:
        _warn_of_known(folder, lists)
    device = choose_device(chosen.device, "--device ")
    network, filterbank = network.to(device), Filterbank(SAMPLE_RATE, MEL_BINS).to(device)
    cache = EmbeddingCache((chosen.scores or folder) / EMBEDDINGS, network, settings["model"])
    backend = given
    if _other_normalization(given, scoring):
        manifest = folder / "manifest.parquet"
        if not manifest.is_file():
            raise ValueError(f"--normalization {scoring.normalization}: {path} does not say what it was trained on")
        backend = make_backend(network, filterbank, Manifest(manifest), given.mean, scoring, limit, cache)
    scores_to = chosen.scores or folder / "scores"
    evaluations = evaluate_lists(
        network, filterbank, lists, backend, scoring, limit=limit, scores_to=scores_to, cache=cache
    )
    for evaluation in evaluations:
        print("\n".join(_lines(evaluation)))
    if chosen.scores is None and rank() == 0:
        changed = keep_evaluations(folder, evaluations) or not (folder / "report.html").is_file()
        if changed and (folder / "results.json").is_file():
            refresh_report(folder)
    if rank() == 0:
        print(f"scores in {scores_to}" + (f", report in {folder}/report.html" if chosen.scores is None else ""))


def _lists(folder: Path, chosen: argparse.Namespace) -> list[Judged]:
    """What the command line names, or the run's own."""
    sexes = read_sexes(chosen.speakers) if chosen.speakers is not None else {}
    lists = lists_of_files(chosen.root, chosen.trials, sexes) if chosen.trials else []
    lists += lists_named(chosen.on, folder, sexes)
    lists = lists or lists_of_run(folder)
    names = [one.trials.name for one in lists]
    if len(set(names)) < len(names):
        raise ValueError(f"expected lists of different names, got {', '.join(names)}")
    return lists


def _other_normalization(given: Backend, scoring: Scoring) -> bool:
    """Whether a network's back-end, its calibration included, was made for another normalization."""
    wanted = scoring.top_n if scoring.normalization == "as_norm" else 0
    return given.top_n != wanted


def _limit(settings: Settings, chosen: argparse.Namespace) -> UnreadableLimit:
    """Return the limit on recordings that are left out: that of the command line, or of the run's settings."""
    if chosen.max_unreadable is not None:
        return UnreadableLimit(chosen.max_unreadable, "--max-unreadable ")
    return UnreadableLimit(settings["data"]["max_unreadable"])


def _asked(scoring: Scoring, chosen: argparse.Namespace) -> Scoring:
    """A run's own way to score, changed as the command line says."""
    asked = {"normalization": chosen.normalization, "top_n": chosen.top_n, "enrolment": chosen.enrolment}
    found = replace(scoring, **{name: value for name, value in asked.items() if value is not None})
    if chosen.top_n is not None and found.normalization != "as_norm":
        raise ValueError(f"--top-n {chosen.top_n} is for --normalization as_norm")
    return found


def _warn_of_known(run: Path, lists: Sequence[Judged]) -> None:
    """Say how many utterances and speakers of lists without a manifest have names that a run trained on or held out."""
    manifest = run / "manifest.parquet"
    unknown = [one for one in lists if not one.speakers]
    if not unknown or not manifest.is_file():
        return
    heard = rows_of(manifest, "train", "validation")
    utterances = heard.column("utterance").combine_chunks()
    speakers = set(map(composed, heard.column("speaker").unique().to_pylist()))
    for one in unknown:
        count = int((match(one.trials.utterances, utterances) >= 0).sum())
        shared = len(speakers.intersection(map(composed, Sides.of(one).speakers)))
        if count or shared:
            print(
                f"warning: list {one.trials.name} has {count} utterances and {shared} speakers of names that {run} was "
                f"trained or tuned on; if they are the same, its error rates say little",
                file=sys.stderr,
            )


def _lines(evaluation: Evaluation) -> Iterator[str]:
    """An evaluation for the terminal, every number with its conditions."""
    rate, threshold = f"{evaluation.eer:.2%}", f"{evaluation.eer_threshold:.4f}"
    yield f"{evaluation.name}: EER {rate}{_range(evaluation.eer_interval, '.2%')} at {threshold}"
    speakers = f" of {evaluation.speakers:,} speakers" if evaluation.speakers is not None else ""
    yield f"  {evaluation.trials:,} trials, {evaluation.targets:,} targets{speakers}"
    if evaluation.recordings_left_out:
        yield (
            f"  left out: {evaluation.trials_left_out:,} trials; recordings that cannot be used: "
            f"{evaluation.recordings_left_out:,}"
        )
    yield f"  enrolment: {evaluation.enrolment}; normalization: {evaluation.normalization}"
    for cost in evaluation.costs:
        name, point = f"p_target {cost['p_target']:g}", f"c_miss {cost['c_miss']:g}, c_fa {cost['c_fa']:g}"
        least = f"{cost['min_dcf']:.3f}{_range(cost['min_dcf_interval'], '.3f')} at {cost['min_dcf_threshold']:.4f}"
        actual = f", actDCF {cost['act_dcf']:.3f}" if cost["act_dcf"] is not None else ""
        yield f"  {name}: minDCF {least}{actual} ({point})"
    if evaluation.cllr is None:
        yield f"  minCllr {evaluation.min_cllr:.3f}; not calibrated"
    else:
        yield f"  Cllr {evaluation.cllr:.3f}, minCllr {evaluation.min_cllr:.3f}, by {evaluation.calibration}"
    for one in evaluation.decisions:
        found = f"{one['p_fa']:.2%} false alarms and {one['p_miss']:.2%} misses here"
        yield f"  log-likelihood ratio {one['threshold']:.2f} for {100 * one['false_alarms']:g}% false alarms: {found}"
    for kind, groups in evaluation.groups.items():
        for name, group in groups.items():
            yield f"  {kind} {name}: EER {group['eer']:.2%}, {group['trials']:,} trials, {group['targets']:,} targets"


def _range(interval: tuple[float, float] | None, form: str) -> str:
    return f" [{interval[0]:{form}}, {interval[1]:{form}}]" if interval is not None else ""
