"""A run that is killed again and again, anywhere, ends like one that nobody disturbed."""

import random
import time
from collections import Counter
from pathlib import Path

from helpers.attempts import Attempts, Ended
from helpers.same import assert_same_run, curves
from helpers.tiny import TINY

SEED = 0
DEMO = (
    *("data=demo", "data.val_fraction=0.25", "data.synthesize.train_speakers=8", "data.synthesize.test_speakers=4"),
    *("data.synthesize.sessions=2", "data.synthesize.utterances=3", "data.synthesize.trials=40"),
)
SETTINGS = (
    *TINY,
    "trainer.epochs=3",
    "trainer.keep_last=2",
    "trainer.checkpoint_interval_minutes=1e-6",
    "target_sparsity=0.8",
)

# Where a kill waits for its moment: in a function, entered for one of these times, at most so many calls and returns
# (Python's and C's) later. A context manager is entered twice.
BEFORE_TRAINING = (
    *[("run_dir.open_run_dir", (1,), 3_000), ("corpus.load_corpus", (1,), 10_000), ("setup.build_setup", (1,), 10_000)],
    *[("evaluate.evaluate_trial_sets", (1,), 10_000), ("checkpoint.save", (1,), 10_000)],
    ("io.atomic_write", (1, 2, 3, 4, 5, 6), 30),
)
IN_AN_EPOCH = (
    *[("trainer._train_step", (1, 2, 3), 5_000), ("logging.log", (1, 2, 3), 300)],
    *[("checkpoint.save", (1, 2), 10_000), ("io.atomic_write", (3, 4), 8)],
)
AFTER_AN_EPOCH = (
    *[("validation.validate", (1,), 10_000), ("checkpoints.keep_epoch", (1,), 60)],
    ("io.atomic_write", (4,), 1),  # last.pt, behind metrics.jsonl
)
AFTER_TRAINING = (
    *[
        ("finalize.finalize", (1,), 10_000),
        ("validation.fit_scoring_backend", (1,), 10_000),
        ("checkpoints.save_network", (1,), 3_000),
    ],
    *[("evaluate.evaluate_trial_sets", (1,), 10_000), ("embedding_cache.flush", (1,), 1_000)],
    *[("logging.finish", (1,), 3_000), ("html.write_report", (1,), 100_000)],
)
STRUCK = {  # what must have been hit, and what tells so
    "a step": "trainer._train_step",
    "a checkpoint being written": "checkpoint.save",
    "an epoch's checkpoint being kept": "checkpoints.keep_epoch",
    "a validation": "validation.validate",
    "finalizing": "finalize.finalize",
    "an evaluation": "evaluate.evaluate_trial_sets",
    "the report": "html.write_report",
}


def blows() -> list[dict]:
    """Keyword arguments of attempts: what strikes them, and when."""
    chance = random.Random(SEED)
    epoch = [place for _ in range(3) for place in (*chance.sample(IN_AN_EPOCH, 4), *AFTER_AN_EPOCH)]
    planned = []
    for places in (BEFORE_TRAINING, epoch, AFTER_TRAINING):
        for within, visits, calls in places:
            moment = int(calls ** chance.random())  # after few calls as often as after many
            planned.append({"within": within, "visit": chance.choice(visits), "calls": moment})
        planned += [{"delay": chance.uniform(0.1, 0.9)} for _ in range(2)]
    return planned


def begin_or_continue(attempts: Attempts, folder: Path, settings: list[str], **blow) -> Ended:
    begun = (folder / "checkpoints" / "last.pt").is_file()
    events = max((int(path.name.split(".")[3]) for path in folder.glob("tensorboard/*")), default=0)
    while int(time.time()) <= events:  # tensorboard orders its files by seconds
        time.sleep(0.05)
    return attempts(*([f"resume_from={folder}"] if begun else [*settings, f"run_dir={folder}"]), **blow)


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob(".*") if path.name != ".lock"]


def test_a_run_killed_again_and_again_ends_like_one_that_nobody_disturbed(attempts, tmp_path):
    settings = [*SETTINGS, *DEMO, f"data.cache_dir={tmp_path / 'demo'}"]
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    done = begin_or_continue(attempts, whole, settings)
    assert done.status == 0, done.err
    kills: Counter[str] = Counter()
    left: set[str] = set()
    for blow in blows():
        ended = begin_or_continue(attempts, folder, settings, **blow)
        assert ended.status in {0, -9}, f"{blow}: {ended.err}"
        kills.update(ended.within)
        kills["all"] += ended.status == -9
        left.update(leftovers(folder))
    last = begin_or_continue(attempts, folder, settings)
    assert last.status == 0, last.err
    assert kills["all"] >= 20
    assert not {what for what, place in STRUCK.items() if not kills[place]}, kills
    assert any(name.startswith(".last.pt") for name in left), left
    assert_same_run(folder, whole)
    assert len(curves(whole)["loss"]) == 27
    assert curves(folder) == curves(whole)
    assert not leftovers(folder)
