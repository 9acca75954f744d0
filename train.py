"""Train a speaker-verification network to a target sparsity: python train.py model=ecapa target_sparsity=0.9."""

import multiprocessing
import sys
import time

import hydra
from omegaconf import DictConfig

from sv_sparse.config.overrides import check_names
from sv_sparse.config.settings import configuration
from sv_sparse.distributed import end, first_before_others, from_first, processes, rank
from sv_sparse.evaluation.corpus import load_corpus
from sv_sparse.io import harden_output
from sv_sparse.report import collect, draw_run, write_report, write_results
from sv_sparse.training.device import keep_freed_memory
from sv_sparse.training.errors import clear_errors
from sv_sparse.training.finalize import evaluate, finish_backend, land
from sv_sparse.training.init_from_config import offer_origins
from sv_sparse.training.run_dir import logged, open_run
from sv_sparse.training.setup import build, check_buildable
from sv_sparse.training.trainer import Trainer


@hydra.main(version_base="1.3", config_path=str(configuration()), config_name="config")
def main(config: DictConfig) -> None:
    """Compose, check, build, train, land, evaluate, report."""
    started = time.monotonic()
    keep_freed_memory()
    multiprocessing.set_start_method(None, force=True)  # not joblib's own, with which a job's processes cannot start
    with clear_errors(), processes():
        settings, folder = from_first(lambda: open_run(config))
        with logged(folder):
            check_buildable(settings)
            corpus = first_before_others(lambda: load_corpus(settings, folder))
            experiment = build(settings, folder, corpus)
            trainer = Trainer(experiment, started)
            trainer.fit()
            landing = land(experiment, trainer.judged)
            backend = finish_backend(experiment)
            trainer.state.save_network("model.pt", backend, landing)
            evaluations = evaluate(experiment, backend)
            if rank() > 0:
                return
            results = collect(experiment, landing, evaluations, trainer.state.at_start, trainer.state.seconds())
            table = write_results(folder, results)
            figures = draw_run(folder, results)
            trainer.finish(results, {figure.name: figure.figure for figure in figures})
            write_report(folder, results, figures)
        print(f"\n{folder}/report.html\n\n{table}")


if __name__ == "__main__":
    harden_output()
    with clear_errors():
        offer_origins(sys.argv[1:], configuration())
        check_names(sys.argv[1:], configuration())
    main()
    end()
