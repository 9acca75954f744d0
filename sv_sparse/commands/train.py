"""sv-sparse train, which python train.py is too: train a network to a target sparsity and report on it."""

import logging
import multiprocessing
import sys
import time
from pathlib import Path

import hydra
from omegaconf import DictConfig

from sv_sparse.config.help import format_help
from sv_sparse.config.overrides import check_command_line, complete_command_line
from sv_sparse.config.schema import conf_dir
from sv_sparse.distributed import broadcast_from_rank0, exit_process, process_group, rank, rank0_first
from sv_sparse.evaluation.corpus import load_corpus
from sv_sparse.io import harden_output
from sv_sparse.report import build_results, write_report, write_results
from sv_sparse.report.results import Results
from sv_sparse.report.sweep import print_sweep_table
from sv_sparse.training.device import disable_malloc_trim
from sv_sparse.training.errors import report_errors
from sv_sparse.training.finalize import compare_with_teacher, evaluate, finalize, fit_backend
from sv_sparse.training.init_from_config import register_init_sources
from sv_sparse.training.run_dir import logging_to, open_run_dir
from sv_sparse.training.setup import build_setup, check_buildable
from sv_sparse.training.trainer import Trainer

logger = logging.getLogger(__name__)


def main(arguments: list[str]) -> None:
    """Run ``sv-sparse train`` with settings and choices, and options of Hydra."""
    harden_output()
    with report_errors():
        if "--help" in arguments or "-h" in arguments:
            print(format_help(arguments))
            return
        arguments = complete_command_line(arguments)
        register_init_sources(arguments)
        check_command_line(arguments)
    # Hydra reads its arguments here.
    sys.argv[1:] = arguments
    try:
        run()
    finally:
        # Hydra ends the process where a job failed.
        print_sweep_table()
    exit_process()


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
def run(composed: DictConfig) -> str | None:
    """Train, finalize, evaluate and report one run, or one job of a sweep, with the settings that Hydra composed.

    Returns:
        The run folder, for the table of a sweep; None in processes other than the first.
    """
    start_time = time.monotonic()
    disable_malloc_trim()
    # Not joblib's own, with which a job's processes cannot start.
    multiprocessing.set_start_method(None, force=True)
    with report_errors(), process_group():
        # One process opens the folder and reads the corpus; the others wait for what it did.
        opened = broadcast_from_rank0(lambda: open_run_dir(composed))
        config, folder = opened.config, opened.folder
        with logging_to(folder):
            # Before hours of reading data (DECISIONS 88).
            check_buildable(config, opened.trusted_classes)
            corpus = rank0_first(lambda: load_corpus(config, folder))
            setup = build_setup(config, folder, corpus, opened.trusted_classes)
            trainer = Trainer(setup, start_time)
            trainer.train()
            metrics = finalize(setup, trainer.last_validation)
            backend = fit_backend(setup)
            trainer.state.save_network("model.pt", backend, metrics)
            evaluations = evaluate(setup, backend)
            metrics |= compare_with_teacher(setup)
            # The first process reports.
            if rank() > 0:
                return None
            results = build_results(
                setup, metrics, evaluations, trainer.state.untrained_metrics, trainer.state.elapsed_seconds()
            )
            table = write_results(folder, results)
            figures = write_report(folder, results)
            _log_results(folder, results)
            trainer.finish(results, {figure.name: figure.figure for figure in figures})
        print(f"\n{table}")
        return str(folder)


def _log_results(folder: Path, results: Results) -> None:
    """Log the result of the run, so that train.log ends with it."""
    for result_id, evaluation in results["evaluations"].items():
        logger.info("%s: EER %.2f %%, %d trials", result_id, 100 * evaluation["eer"], evaluation["trials"])
    tracked, final = 100 * results["sparsity_tracked"], 100 * results["sparsity"]
    logger.info("sparsity: %.4f %% (tracked %.2f %%)", final, tracked)
    logger.info("report: %s/report.html", folder)
