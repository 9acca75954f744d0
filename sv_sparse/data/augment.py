"""What is done to a training crop besides cutting it: speed, a room or a noise, masks; drawn and gathered by workers.

A draw depends on (seed, epoch, utterance) and nothing else. What it means for the samples is in mixing.py, which runs
on the training device. Probability and levels are those of WeSpeaker's VoxCeleb recipes: at most one augmentation per
utterance, a fair coin between a room and noise. Unlike there, noise, music and babble are equally often, and babble is
several talkers.
"""

from collections.abc import Sequence
from math import ceil
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sv_sparse.data.audio import Waveform
from sv_sparse.data.noise import KINDS, ROOM, NoiseStore
from sv_sparse.data.rng import generator

SNR = {"noise": (0.0, 15.0), "music": (5.0, 15.0), "speech": (10.0, 30.0)}  # dB
TALKERS = (3, 7)  # in the babble that speech makes, both included
MASKED_FRAMES, MASKED_BINS = 10, 8  # SpecAugment's largest masks


class Plan(NamedTuple):
    """What is drawn for one utterance.

    Attributes:
        speed: Index into the speeds.
        kind: ``"room"``, one of noise, music and speech, or ``""``.
        chosen: Which recordings of that kind, and where in them, in [0, 1).
        snr: In dB.
        mask: Share of the frames before the mask, frames in it, share of the bins before it, bins in it.
    """

    speed: int
    kind: str
    chosen: tuple[tuple[int, float], ...]
    snr: float
    mask: tuple[float, int, float, int]


class Extras(NamedTuple):
    """What augmentation adds to a batch [B, S].

    Attributes:
        speed: int64 [B], index into the speeds; always on the CPU.
        room_rows: int64 [R], the rows that get a room.
        rooms: float32 [R, L], impulse responses, zeros at their ends.
        noise_rows: int64 [N], the rows that get noise.
        noises: float32 [N, S], as loud as they happen to be.
        snr: float32 [N], dB.
        mask: float32 [B, 4], as in ``Plan``.
    """

    speed: Tensor
    room_rows: Tensor
    rooms: Tensor
    noise_rows: Tensor
    noises: Tensor
    snr: Tensor
    mask: Tensor

    def to(self, device: torch.device | str) -> "Extras":
        """Return the same on a device, copied without waiting.

        ``speed`` stays where it is. Its values say what is to be done, and reading them from a GPU
        would wait for it.
        """
        moved = {name: value.to(device, non_blocking=True) for name, value in self._asdict().items() if name != "speed"}
        return self._replace(**moved)


def merged_extras(several: Sequence[Extras]) -> Extras:
    """What augmentation adds to one batch of the crops of several."""
    before = np.cumsum([0, *(len(extras.speed) for extras in several)]).tolist()
    longest = max(extras.rooms.shape[1] for extras in several)
    return Extras(
        speed=torch.cat([extras.speed for extras in several]),
        room_rows=torch.cat([extras.room_rows + first for extras, first in zip(several, before, strict=False)]),
        rooms=torch.cat([F.pad(extras.rooms, (0, longest - extras.rooms.shape[1])) for extras in several]),
        noise_rows=torch.cat([extras.noise_rows + first for extras, first in zip(several, before, strict=False)]),
        noises=torch.cat([extras.noises for extras in several]),
        snr=torch.cat([extras.snr for extras in several]),
        mask=torch.cat([extras.mask for extras in several]),
    )


class Augmentation:
    """Draws and gathers what is done to each crop.

    Args:
        store: A folder made by ``sv-sparse prepare noise``; None where nothing is drawn from it.
        probability: That an utterance gets a room or a noise, in [0, 1].
        speeds: An utterance is played at one of them; every speed but the first is a speaker of its own.
        mask_probability: That frames and bins of an utterance are masked (SpecAugment), in [0, 1].

    Raises:
        ValueError: A setting is out of its bounds, or the store lacks a kind of recording.
    """

    def __init__(
        self,
        *,
        store: str | None = None,
        probability: float = 0.0,
        speeds: Sequence[float] = (1.0,),
        mask_probability: float = 0.0,
    ) -> None:
        for name, share in (("probability", probability), ("mask_probability", mask_probability)):
            if not 0 <= share <= 1:
                raise ValueError(f"augment.{name} must be from 0 to 1, got {share}")
        in_range = all(0.5 <= speed <= 2 for speed in speeds)  # which NaN is not
        if not speeds or speeds[0] != 1 or len(set(speeds)) < len(speeds) or not in_range:
            raise ValueError(f"augment.speed_perturb must be different, from 0.5 to 2, the first 1.0, got {list(speeds)}")
        if probability and store is None:
            raise ValueError(f"augment.aug_prob={probability} needs augment.noise_dir, a folder of noise and rooms")
        self.probability, self.speeds, self.mask_probability = probability, tuple(speeds), mask_probability
        self.store = NoiseStore(store) if probability and store is not None else None
        if self.store is not None:
            counts = {kind: self.store.count(kind) for kind in (*KINDS, ROOM)}
            if not all(counts.values()):
                raise ValueError(
                    f"augment.noise_dir={store}: expected some of each kind, from MUSAN and RIRS_NOISES, found {counts}"
                )

    @property
    def active(self) -> bool:
        """Whether there is anything to draw."""
        return self.store is not None or len(self.speeds) > 1 or self.mask_probability > 0

    def plan(self, seed: int, epoch: int, utterance: str) -> Plan:
        """The draw of an utterance in an epoch."""
        draw = generator(seed, "augment", epoch, utterance)
        speed = int(draw.integers(len(self.speeds)))
        mask = (0.0, 0, 0.0, 0)
        if draw.random() < self.mask_probability:
            frames, bins = int(draw.integers(MASKED_FRAMES + 1)), int(draw.integers(MASKED_BINS + 1))
            mask = (float(draw.random()), frames, float(draw.random()), bins)
        if self.store is None or draw.random() >= self.probability:
            return Plan(speed, "", (), 0.0, mask)
        if draw.random() < 0.5:
            return Plan(speed, ROOM, ((int(draw.integers(self.store.count(ROOM))), 0.0),), 0.0, mask)
        kind = KINDS[draw.integers(len(KINDS))]
        several = int(draw.integers(TALKERS[0], TALKERS[1] + 1)) if kind == "speech" else 1
        chosen = tuple((int(draw.integers(self.store.count(kind))), float(draw.random())) for _ in range(several))
        return Plan(speed, kind, chosen, float(draw.uniform(*SNR[kind])), mask)

    def samples(self, plan: Plan, crop_samples: int) -> int:
        """How much of the recording a crop takes."""
        return ceil(crop_samples * self.speeds[plan.speed])

    def gather(self, plans: Sequence[Plan], crop_samples: int) -> Extras:
        """What the plans of a batch need, from the store."""
        room_rows, rooms = self._rooms(plans)
        noise_rows, noises = self._noises(plans, crop_samples)
        return Extras(
            speed=torch.tensor([plan.speed for plan in plans], dtype=torch.int64),
            room_rows=torch.tensor(room_rows, dtype=torch.int64),
            rooms=torch.from_numpy(rooms),
            noise_rows=torch.tensor(noise_rows, dtype=torch.int64),
            noises=torch.from_numpy(noises),
            snr=torch.tensor([plans[row].snr for row in noise_rows], dtype=torch.float32),
            mask=torch.tensor([plan.mask for plan in plans], dtype=torch.float32).reshape(-1, 4),
        )

    def _rooms(self, plans: Sequence[Plan]) -> tuple[list[int], Waveform]:
        rows, found = [], []
        for row, plan in enumerate(plans):
            if plan.kind == ROOM and self.store is not None:
                rows.append(row)
                found.append(self.store.room(plan.chosen[0][0]))
        rooms = np.zeros((len(rows), max(map(len, found), default=0)), np.float32)
        for out, room in zip(rooms, found, strict=True):
            out[: len(room)] = room
        return rows, rooms

    def _noises(self, plans: Sequence[Plan], samples: int) -> tuple[list[int], Waveform]:
        rows: list[int] = []
        noises = np.empty((sum(plan.kind in KINDS for plan in plans), samples), np.float32)
        for row, plan in enumerate(plans):
            if plan.kind in KINDS and self.store is not None:
                noise = noises[len(rows)]
                _fill(noise, plan, self.store)
                rows += [row] if noise.any() else []  # silence has no level to scale
        return rows, noises[: len(rows)]


def _fill(noise: Waveform, plan: Plan, store: NoiseStore) -> None:
    """One recording, or several talkers at one loudness."""
    if len(plan.chosen) == 1:
        noise[:] = store.sound(plan.kind, *plan.chosen[0], len(noise))
        return
    talkers = np.empty((len(plan.chosen), len(noise)), np.float32)
    for talker, chosen in zip(talkers, plan.chosen, strict=True):
        talker[:] = store.sound(plan.kind, *chosen, len(noise))
    loudness = np.sqrt(np.einsum("ts,ts->t", talkers, talkers))  # no BLAS, whose sums depend on its threads
    weight = np.divide(1, loudness, out=np.zeros_like(loudness), where=loudness > 0)
    np.einsum("t,ts->s", weight, talkers, out=noise)
