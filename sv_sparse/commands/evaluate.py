"""sv-sparse evaluate: score trial lists with a trained network."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from sv_sparse.commands.common import add_max_unreadable_argument, add_model_class_argument
from sv_sparse.data.decoding import SAMPLE_RATE
from sv_sparse.data.manifest import Manifest, match_utterances
from sv_sparse.data.prepared import read_split
from sv_sparse.data.speakers import read_sexes
from sv_sparse.data.trial_files import trial_sets_from_files
from sv_sparse.data.trial_set import TrialSet
from sv_sparse.data.unreadable import UnreadableLimit
from sv_sparse.distributed import exit_process, process_group, rank
from sv_sparse.evaluation.embedding_cache import EMBEDDINGS_DIR, EmbeddingCache
from sv_sparse.evaluation.evaluate import check_trial_checksums, evaluate_trial_sets, update_evaluations_file
from sv_sparse.evaluation.leakage import check_speaker_overlap, run_dir_of
from sv_sparse.evaluation.load import load_network
from sv_sparse.evaluation.result import TrialSetResult, side_speakers
from sv_sparse.evaluation.trial_sets import parse_trial_sets, run_trial_sets
from sv_sparse.evaluation.validation import fit_scoring_backend
from sv_sparse.io import nfc
from sv_sparse.models.features import MEL_BINS, build_features, network_features
from sv_sparse.report import refresh_report
from sv_sparse.scoring.config import ENROLLMENTS, SCORE_NORMS, ScoringConfig
from sv_sparse.training.device import resolve_device


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``sv-sparse evaluate``."""
    networks_help = "run folders; or one network file, such as RUN/checkpoints/best.pt, with --output-dir"
    parser.add_argument("networks", type=Path, nargs="+", metavar="RUN", help=networks_help)
    lists = parser.add_argument_group("trial lists")
    trial_sets_help = (
        "PREPARED:LIST,LIST of a prepared folder; LIST alone means the folder that RUN was trained on; "
        "voxceleb1-o,e,h and cnceleb name the usual lists; folder:PATH means the lists in PATH, of recordings in "
        "PATH/wav (default: the lists of RUN)"
    )
    lists.add_argument("--trial-sets", nargs="+", default=[], metavar="LISTS", help=trial_sets_help)
    trials_help = "trial lists in VoxCeleb's format, with --audio-root"
    lists.add_argument("--trials", type=Path, nargs="+", default=[], metavar="FILE", help=trials_help)
    root_help = "folder that the paths in --trials are relative to"
    lists.add_argument("--audio-root", type=Path, metavar="PATH", help=root_help)
    metadata_help = "table with columns speaker and sex, for the speakers of --trials and folder:PATH"
    lists.add_argument("--speaker-metadata", type=Path, metavar="FILE", help=metadata_help)
    add_max_unreadable_argument(lists, None)
    scoring = parser.add_argument_group("scoring")
    score_norm_help = "score normalization (default: that of RUN)"
    scoring.add_argument("--score-norm", choices=SCORE_NORMS, help=score_norm_help)
    top_n_help = "number of closest cohort speakers, for as_norm (default: that of RUN)"
    scoring.add_argument("--top-n", type=int, metavar="N", help=top_n_help)
    enrollment_help = "treatment of several enrollment utterances (default: that of RUN)"
    scoring.add_argument("--enrollment", choices=ENROLLMENTS, help=enrollment_help)
    add_model_class_argument(parser)
    device_help = "device of the network (default: auto, a GPU if there is one)"
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help=device_help)
    output_help = "folder for the scores (default: RUN/scores)"
    parser.add_argument("--output-dir", type=Path, metavar="FOLDER", help=output_help)


def main(args: argparse.Namespace) -> None:
    """Run ``sv-sparse evaluate``; several processes share the work if torchrun started them."""
    _check_arguments(args)
    with process_group():
        for path in args.networks:
            if len(args.networks) > 1 and rank() == 0:
                print(f"{path}:")
            _evaluate(path, args)
    exit_process()


def _check_arguments(args: argparse.Namespace) -> None:
    # Before the first of many networks is evaluated, which may take hours.
    files = [path for path in args.networks if not path.is_dir()]
    for path in files:
        if not path.exists():
            raise ValueError(f"{path}: no such run folder or network file")
    if files and args.output_dir is None:
        raise ValueError(f"{files[0]} is no run folder; --output-dir is needed for a network file")
    if args.output_dir is not None and len(args.networks) > 1:
        raise ValueError("--output-dir takes the scores of one network; those of several go to their run folders")
    if (args.audio_root is None) != (not args.trials):
        raise ValueError("--audio-root and --trials go together: the folder of the recordings, and lists of them")
    names_folder = any(arg.startswith("folder:") for arg in args.trial_sets)
    if args.speaker_metadata is not None and not args.trials and not names_folder:
        lists = "the lists of --trials and of --trial-sets folder:PATH"
        raise ValueError(f"--speaker-metadata is for {lists}; prepared folders have their own")


def _evaluate(path: Path, args: argparse.Namespace) -> None:
    """Evaluate a network, print the results, and write the scores and the report."""
    trusted = () if args.model_class is None else (args.model_class,)
    network, backend, config = load_network(path, trusted)
    scoring = _scoring_config(config.scoring, args)
    limit = UnreadableLimit(config.data.max_unreadable_fraction)
    if args.max_unreadable is not None:
        limit = UnreadableLimit(args.max_unreadable, "--max-unreadable ")
    run_dir = run_dir_of(path)
    trial_sets = _trial_sets(run_dir, args)
    check_speaker_overlap(run_dir, trial_sets)
    # Files of a run are named by the list, so another list of that name would replace them.
    if args.output_dir is None:
        check_trial_checksums(run_dir, trial_sets, scoring)
    if rank() == 0:
        _warn_of_same_names(run_dir, trial_sets)
    device = resolve_device(args.device, "--device ")
    network = network.to(device)
    filterbank = build_features(network_features(network), SAMPLE_RATE, MEL_BINS).to(device)
    # With --output-dir nothing is written into RUN, which may be somebody else's.
    cache = EmbeddingCache((args.output_dir or run_dir) / EMBEDDINGS_DIR, network, config.model_settings)
    # Another normalization gives scores of another scale, so the calibration is fitted anew too.
    if backend.top_n != (scoring.top_n if scoring.score_norm == "as_norm" else 0):
        manifest = run_dir / "manifest.parquet"
        if not manifest.is_file():
            raise ValueError(f"--score-norm {scoring.score_norm}: {path} does not say what it was trained on")
        backend = fit_scoring_backend(network, filterbank, Manifest(manifest), backend.mean, scoring, limit, cache)
    output_dir = args.output_dir or run_dir / "scores"
    results = evaluate_trial_sets(
        network, filterbank, trial_sets, backend, scoring, limit=limit, output_dir=output_dir, cache=cache
    )
    # The first process has the results.
    if rank() > 0:
        return
    for result in results:
        print("\n".join(_result_lines(result)))
    if args.output_dir is not None:
        print(f"scores in {output_dir}")
        return
    # Figures of many lists take a while, so an unchanged report stays.
    changed = update_evaluations_file(run_dir, results) or not (run_dir / "report.html").is_file()
    if changed and (run_dir / "results.json").is_file():
        refresh_report(run_dir)
    print(f"scores in {output_dir}, report in {run_dir}/report.html")


def _trial_sets(run_dir: Path, args: argparse.Namespace) -> list[TrialSet]:
    """Load the lists that the command line names, or the run's own."""
    sexes = read_sexes(args.speaker_metadata) if args.speaker_metadata is not None else {}
    trial_sets = trial_sets_from_files(args.audio_root, args.trials, sexes) if args.trials else []
    trial_sets += parse_trial_sets(args.trial_sets, run_dir, sexes)
    trial_sets = trial_sets or run_trial_sets(run_dir)
    # Score files are named by the list.
    names = [trial_set.trials.name for trial_set in trial_sets]
    if len(set(names)) < len(names):
        raise ValueError(f"expected lists of different names, got {', '.join(names)}")
    return trial_sets


def _scoring_config(scoring: ScoringConfig, args: argparse.Namespace) -> ScoringConfig:
    """Return a run's scoring settings, changed as the command line says."""
    # The arguments have the names of settings.
    changes = {name: getattr(args, name) for name in ("score_norm", "enrollment", "top_n")}
    if args.top_n is not None and (args.score_norm or scoring.score_norm) != "as_norm":
        raise ValueError(f"--top-n {args.top_n} is for --score-norm as_norm")
    return replace(scoring, **{name: value for name, value in changes.items() if value is not None})


def _warn_of_same_names(run_dir: Path, trial_sets: Sequence[TrialSet]) -> None:
    """Warn of lists of files that name utterances or speakers as the run's training speech does."""
    # Only names are known of such lists. Names may agree by chance, so that this is no error.
    manifest = run_dir / "manifest.parquet"
    from_files = [trial_set for trial_set in trial_sets if not trial_set.speakers]
    if not from_files or not manifest.is_file():
        return
    rows = read_split(manifest, "train", "validation")
    utterances = rows.column("utterance").combine_chunks()
    # Empty for recordings without labels.
    speakers = set(map(nfc, rows.column("speaker").unique().to_pylist())) - {""}
    for trial_set in from_files:
        num_utterances = int((match_utterances(trial_set.trials.utterances, utterances) >= 0).sum())
        num_speakers = len(speakers.intersection(map(nfc, side_speakers(trial_set))))
        if num_utterances or num_speakers:
            print(
                f"warning: list {trial_set.trials.name}: {num_utterances} utterances and {num_speakers} speakers have "
                f"names of the training data of {run_dir}; if they are the same, the error rates are too low",
                file=sys.stderr,
            )


def _result_lines(result: TrialSetResult) -> Iterator[str]:
    """Yield a result for the terminal, each number with its conditions."""
    eer_interval = "" if result.eer_interval is None else f" [{', '.join(map(_percent, result.eer_interval))}]"
    yield f"{result.name}: EER {_percent(result.eer)}{eer_interval} at threshold {result.eer_threshold:.4f}"
    speakers = f" of {result.speakers:,} speakers" if result.speakers is not None else ""
    yield f"  {result.trials:,} trials, {result.targets:,} targets{speakers}"
    if result.recordings_left_out:
        unusable = f"recordings that cannot be used: {result.recordings_left_out:,}"
        yield f"  left out: {result.trials_left_out:,} trials; {unusable}"
    yield f"  enrollment: {result.enrollment}; score normalization: {result.score_norm}"
    for cost in result.dcf:
        interval = cost["min_dcf_interval"]
        dcf_interval = "" if interval is None else f" [{interval[0]:.3f}, {interval[1]:.3f}]"
        line = f"minDCF {cost['min_dcf']:.3f}{dcf_interval} at {cost['min_dcf_threshold']:.4f}"
        if cost["act_dcf"] is not None:
            line += f", actDCF {cost['act_dcf']:.3f}"
        yield f"  p_target {cost['p_target']:g}: {line} (c_miss {cost['c_miss']:g}, c_fa {cost['c_fa']:g})"
    if result.cllr is None:
        yield f"  minCllr {result.min_cllr:.3f}; not calibrated"
    else:
        yield f"  Cllr {result.cllr:.3f}, minCllr {result.min_cllr:.3f}, by {result.calibration}"
    for threshold in result.thresholds:
        rates = f"{_percent(threshold['p_fa'])} false alarms, {_percent(threshold['p_miss'])} misses on this list"
        target_far = f"{100 * threshold['target_far']:g} % false alarms"
        yield f"  threshold for {target_far} (LLR {threshold['threshold']:.2f}): {rates}"
    for kind, groups in result.breakdown.items():
        for label, group in groups.items():
            trials = f"{group['trials']:,} trials, {group['targets']:,} targets"
            yield f"  {kind} {label}: EER {_percent(group['eer'])}, {trials}"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f} %"
