"""Batches of an epoch: order, parts, workers, what is unreadable."""

import os
import signal
from pathlib import Path

import pytest
import torch
from torch.utils.data import Dataset

from sv_sparse.data.dataset import Batch
from sv_sparse.data.loader import CropLoader, EpochBatchSampler
from sv_sparse.data.unreadable import UnreadableCounter, UnreadableLimit

# torch warns on machines with fewer processors than workers, which changes no batch.
few_processors = pytest.mark.filterwarnings("ignore:This DataLoader will create")


def test_an_epoch_is_a_permutation_without_its_incomplete_batch():
    batches = list(EpochBatchSampler(size=10, batch_size=3, seed=0))
    assert [len(batch) for batch in batches] == [3, 3, 3]
    assert len({position for batch in batches for _, position in batch}) == 9


def test_the_order_is_a_function_of_seed_and_epoch():
    def order(seed, epoch):
        batches = EpochBatchSampler(50, 10, seed)
        batches.epoch = epoch
        assert {drawn for batch in batches for drawn, _ in batch} == {epoch}
        return [position for batch in batches for _, position in batch]

    assert order(0, 3) == order(0, 3)
    assert order(0, 3) != order(0, 4)
    assert order(0, 3) != order(1, 3)


def test_more_per_batch_than_there_are_utterances_is_refused_with_both_numbers():
    with pytest.raises(ValueError, match=r"trainer.batch_size=64: expected from 1 to 10, "):
        EpochBatchSampler(size=10, batch_size=64, seed=0)


def assert_same(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert torch.equal(batch.waveforms, other.waveforms)
        assert torch.equal(batch.labels, other.labels)
        assert batch.unreadable == other.unreadable


@few_processors
def test_batches_are_the_same_with_and_without_workers_over_several_epochs(crops, files):
    whole = files[0].read_bytes()
    files[0].write_bytes(whole[: len(whole) * 3 // 10])
    batches = EpochBatchSampler(len(crops), 4, 7)
    loaders = [CropLoader(crops, batches, workers, "cpu") for workers in (0, 2)]
    for batches.epoch in (0, 1):
        alone, together = (list(loader) for loader in loaders)
        assert_same(alone, together)
        assert sum(len(batch.unreadable) for batch in alone) == 1
    interrupted = iter(loaders[1])
    first = next(interrupted)
    for worker in workers():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            os.kill(worker, number)
    assert_same([first, *interrupted], alone)


def workers():
    """Processes of loaders, by their server."""
    (server,) = [process for process in children(os.getpid()) if b"forkserver" in command_line(process)]
    return children(server)


def children(process):
    return [int(number) for number in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def command_line(process):
    return Path(f"/proc/{process}/cmdline").read_bytes()


@few_processors
def test_where_workers_are_killed_others_go_on_from_the_batch_that_they_owed(crops, caplog):
    batches = EpochBatchSampler(len(crops), 2, 7)
    batches.start = 1
    expected = list(CropLoader(crops, batches, 0, "cpu"))
    batches.start = 1
    found = []
    for batch in CropLoader(crops, batches, 1, "cpu"):
        found.append(batch)
        if len(found) == 2:
            for worker in workers():
                os.kill(worker, signal.SIGKILL)
    assert_same(found, expected)
    assert "a process that reads crops died (out of memory?)" in caplog.text


@few_processors
def test_workers_that_die_again_and_again_end_the_run(crops):
    batches = EpochBatchSampler(len(crops), 2, 7)
    with pytest.raises(OSError, match=r"with fewer of them \(trainer.num_workers\) each has more memory"):
        list(CropLoader(Deadly(crops), batches, 1, "cpu"))


class Deadly(Dataset):
    """Reads like crops, and kills the process that reads its third batch."""

    def __init__(self, crops):
        self.crops, self.read = crops, 0

    def __getitems__(self, indices):
        self.read += 1
        if self.read > 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.crops.__getitems__(indices)


def test_a_resumed_epoch_is_the_tail_of_the_whole_one(crops):
    batches = EpochBatchSampler(len(crops), 4, 7)
    batches.epoch = 5
    whole = list(CropLoader(crops, batches, 0, "cpu"))
    resumed = EpochBatchSampler(len(crops), 4, 7)
    resumed.epoch, resumed.start = 5, 3
    loader = CropLoader(crops, resumed, 0, "cpu")
    assert_same(list(loader), whole[3:])


def test_processes_share_each_step_and_parts_come_one_after_the_other():
    whole = list(EpochBatchSampler(50, 12, 3))
    parts = [list(EpochBatchSampler(50, 12, 3, grad_accum_steps=2, rank=rank, world_size=3)) for rank in range(3)]
    assert [len(found) for found in parts] == [8, 8, 8]
    for step, batch in enumerate(whole):
        together = [crop for part in (2 * step, 2 * step + 1) for found in parts for crop in found[part]]
        assert together == batch


@pytest.mark.parametrize(("size", "ranks", "accumulate"), [(12, 5, 1), (12, 1, 5), (4, 2, 2)])
def test_a_batch_that_cannot_be_shared_is_refused_with_what_could_be(size, ranks, accumulate):
    parts = ranks * accumulate
    message = f"trainer.batch_size={size} is divided among .* expected a multiple of {parts}, {2 * parts} or more"
    with pytest.raises(ValueError, match=message):
        EpochBatchSampler(50, size, 0, grad_accum_steps=accumulate, world_size=ranks)


def counted(readable, unreadable):
    waveforms, labels = torch.empty(readable, 800), torch.zeros(readable, dtype=torch.int64)
    return Batch(waveforms, labels, ["x.wav: gone"] * unreadable, None)


def update(meter, batch):
    meter.warn(batch.unreadable)
    meter.add(len(batch.labels) + len(batch.unreadable), len(batch.unreadable))


def test_a_run_names_what_it_leaves_out_and_stops_past_the_allowed_share(caplog):
    meter = UnreadableCounter(0.01)
    for _ in range(20):
        update(meter, counted(99, 1))
    assert (meter.num_drawn, meter.num_unreadable) == (2000, 20)
    assert caplog.messages == ["left out of a batch: x.wav: gone"] * 20
    with pytest.raises(ValueError, match=r"data.max_unreadable_fraction=0.01: 21 of 2001 utterances drawn \(1.0 %\)"):
        update(meter, counted(0, 1))


def test_a_run_is_patient_with_the_first_few_unreadable_draws():
    meter = UnreadableCounter(0.01)
    update(meter, counted(0, 10))
    with pytest.raises(ValueError, match="11 of 12 utterances"):
        update(meter, counted(1, 1))


def test_a_run_that_allows_no_unreadable_draw_stops_at_the_first():
    meter = UnreadableCounter(0.0)
    update(meter, counted(100, 0))
    with pytest.raises(ValueError, match=r"data.max_unreadable_fraction=0.0: 1 of 101 utterances"):
        update(meter, counted(0, 1))


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan"), "few"])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ValueError, match=f"data.max_unreadable_fraction={share}: expected a fraction from 0 to 1"):
        UnreadableLimit(share)
