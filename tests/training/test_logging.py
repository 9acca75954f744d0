"""Laws of what is drawn while a run trains."""

import time

from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sv_sparse.training.logging import MetricLogger


def test_what_a_process_draws_comes_after_what_another_one_drew_in_the_same_second(tmp_path):
    folder = tmp_path / "tensorboard"
    folder.mkdir()
    time.sleep(1 - time.time() % 1)  # into the beginning of a second
    earlier = folder / f"events.out.tfevents.{int(time.time())}.zzz.1.0"
    earlier.touch()
    MetricLogger(tmp_path, 0, 0).close()
    first, second = sorted(folder.iterdir())
    assert first == earlier
    assert second != earlier


def test_the_end_of_a_run_is_drawn_with_its_figures_and_final_numbers(tmp_path):
    monitor = MetricLogger(tmp_path, 0, 0)
    figure = Figure(figsize=(1, 1))
    figure.subplots().plot([0, 1], [0, 1])
    monitor.finish({"optim": {"lr": 0.1}}, {"eer": 0.2, "cllr": 0.5}, {"loss": figure}, 3)
    monitor.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [image.step for image in events.Images("report/loss")] == [3]
    assert {"final/eer", "final/cllr"} <= set(events.Tags()["scalars"])
