"""Random augmentation of training crops: speed, reverberation or noise, masks; drawn and collated by workers.

The samples themselves are changed on the training device (``augment_ops.py``).
"""

from collections.abc import Sequence
from math import ceil
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sv_sparse.data.audio import Waveform
from sv_sparse.data.noise import NOISE_KINDS, RIR, NoiseStore
from sv_sparse.data.rng import generator, randint

# Probabilities and levels are those of WeSpeaker's VoxCeleb recipes: at most one augmentation per utterance, with equal
# chances for reverberation and noise. Unlike there, noise, music and babble are equally frequent. In dB.
SNR_RANGE_DB = {"noise": (0.0, 15.0), "music": (5.0, 15.0), "speech": (10.0, 30.0)}
# Both included. Unlike in WeSpeaker, babble has several speakers.
NUM_BABBLE_SPEAKERS = (3, 7)
# SpecAugment's masks.
MAX_MASKED_FRAMES, MAX_MASKED_BINS = 10, 8


class AugmentParams(NamedTuple):
    """Random draws for one utterance."""

    # Index into the speeds.
    speed: int
    # ``"rir"``, a kind of noise, or ``""`` for neither.
    kind: str
    # Index of each recording of that kind, and position in it, in [0, 1).
    recordings: tuple[tuple[int, float], ...]
    # Signal-to-noise ratio in dB.
    snr: float
    # Fraction of the frames before the mask, number of masked frames, and the same for bins.
    mask: tuple[float, int, float, int]
    # Seed of the draws of a transform of the user's own.
    seed: int


class AugmentBatch(NamedTuple):
    """Inputs of the augmentation of a batch [B, S].

    Attributes:
        speed: int64 [B], index into the speeds; always on the CPU.
        seed: int64 [B], seeds for a transform of the user's own; always on the CPU.
        rir_rows: int64 [R], rows that are convolved with a room impulse response.
        rirs: float32 [R, L], room impulse responses, with zeros at their ends.
        noise_rows: int64 [N], rows to which noise is added.
        noises: float32 [N, S], at any level.
        snr: float32 [N], signal-to-noise ratio in dB.
        mask: float32 [B, 4], as in ``AugmentParams``.
    """

    speed: Tensor
    seed: Tensor
    rir_rows: Tensor
    rirs: Tensor
    noise_rows: Tensor
    noises: Tensor
    snr: Tensor
    mask: Tensor

    def to(self, device: torch.device | str) -> "AugmentBatch":
        """Return the tensors on a device, copied without waiting; ``speed`` and ``seed`` stay on the CPU."""
        # Speeds decide which operations run: reading them from a GPU would wait for it. DECISIONS 85
        tensors = [tensor.to(device, non_blocking=True) for tensor in self[2:]]
        return AugmentBatch(self.speed, self.seed, *tensors)

    @staticmethod
    def concat(batches: "Sequence[AugmentBatch]") -> "AugmentBatch":
        """Return the inputs of one batch that consists of several."""
        max_length = max(batch.rirs.shape[1] for batch in batches)
        first_row = 0
        shifted = []
        for batch in batches:
            rirs = F.pad(batch.rirs, (0, max_length - batch.rirs.shape[1]))
            rir_rows, noise_rows = batch.rir_rows + first_row, batch.noise_rows + first_row
            shifted.append(batch._replace(rir_rows=rir_rows, rirs=rirs, noise_rows=noise_rows))
            first_row += len(batch.speed)
        return AugmentBatch(*map(torch.cat, zip(*shifted, strict=True)))


class Augmentation:
    """Random augmentation of crops. The arguments are the settings of ``augment``, which checks them.

    Args:
        noise_dir: folder made by ``sv-sparse prepare noise``; only needed if ``aug_prob`` is above 0. Kinds of
            recordings that are not in it have probability 0.
        aug_prob: probability that an utterance gets reverberation or noise, in [0, 1].
        speed_perturb: speeds from 0.5 to 2, the first 1. Each other speed makes new speakers.
        spec_augment_prob: probability that frames and bins of an utterance are masked, in [0, 1].
        has_transform: True if a transform of the user's own changes the waveforms on the device.

    Attributes:
        counts: number of recordings in the folder by kind; empty without it.

    Raises:
        ValueError: the folder is missing, is no noise store, or has no recording.
    """

    def __init__(
        self,
        *,
        noise_dir: str | None = None,
        aug_prob: float = 0.0,
        speed_perturb: Sequence[float] = (1.0,),
        spec_augment_prob: float = 0.0,
        has_transform: bool = False,
    ) -> None:
        self.aug_prob = aug_prob
        self.speeds = tuple(speed_perturb)
        self.spec_augment_prob = spec_augment_prob
        self.has_transform = has_transform
        self.store: NoiseStore | None = None
        self.counts: dict[str, int] = {}
        if aug_prob > 0:
            if noise_dir is None:
                raise ValueError(f"augment.aug_prob={aug_prob} needs augment.noise_dir, a folder of noise and rooms")
            self.store = NoiseStore(noise_dir)
            self.counts = {kind: self.store.num(kind) for kind in (*NOISE_KINDS, RIR)}
            if not any(self.counts.values()):
                raise ValueError(f"augment.noise_dir={noise_dir}: expected noise, music, speech or rooms, found none")
        self._noise_kinds = [kind for kind in NOISE_KINDS if self.counts.get(kind)]
        # Half of the utterances get a room, unless the folder has only rooms, or none.
        self._rir_prob = 0.5
        if not self._noise_kinds or not self.counts[RIR]:
            self._rir_prob = float(not self._noise_kinds)

    @property
    def active(self) -> bool:
        """True if there is anything to draw."""
        return self.store is not None or len(self.speeds) > 1 or self.spec_augment_prob > 0 or self.has_transform

    def sample(self, seed: int, epoch: int, utterance: str) -> AugmentParams:
        """Draw the augmentation of an utterance by its key, a function of the arguments; epochs count from 0."""
        # The order of these draws is part of what a seed means.
        rng = generator(seed, "augment", epoch, utterance)
        # Of another stream, so that the draws below do not depend on it.
        transform_seed = randint(2**63, seed, "transform", epoch, utterance)
        speed = int(rng.integers(len(self.speeds)))
        mask = (0.0, 0, 0.0, 0)
        if rng.random() < self.spec_augment_prob:
            frames = int(rng.integers(MAX_MASKED_FRAMES + 1))
            bins = int(rng.integers(MAX_MASKED_BINS + 1))
            mask = (float(rng.random()), frames, float(rng.random()), bins)
        if self.store is None or rng.random() >= self.aug_prob:
            return AugmentParams(speed, "", (), 0.0, mask, transform_seed)
        if rng.random() < self._rir_prob:
            rir = int(rng.integers(self.store.num(RIR)))
            return AugmentParams(speed, RIR, ((rir, 0.0),), 0.0, mask, transform_seed)
        kind = self._noise_kinds[rng.integers(len(self._noise_kinds))]
        num_recordings = 1
        if kind == "speech":
            num_recordings = int(rng.integers(NUM_BABBLE_SPEAKERS[0], NUM_BABBLE_SPEAKERS[1] + 1))
        recordings = []
        for _ in range(num_recordings):
            recordings.append((int(rng.integers(self.store.num(kind))), float(rng.random())))
        snr = float(rng.uniform(*SNR_RANGE_DB[kind]))
        return AugmentParams(speed, kind, tuple(recordings), snr, mask, transform_seed)

    def num_input_samples(self, params: AugmentParams, crop_samples: int) -> int:
        """Return how many samples of the recording a crop needs: more than it has if it is played faster."""
        return ceil(crop_samples * self.speeds[params.speed])

    def collate(self, params: Sequence[AugmentParams], crop_samples: int) -> AugmentBatch:
        """Gather the recordings that a batch needs, by the draws for each utterance and the length of the crops."""
        rir_rows: list[int] = []
        rirs: list[Waveform] = []
        noise_rows: list[int] = []
        noises: list[Waveform] = []
        for row, param in enumerate(params):
            if self.store is None or not param.kind:
                continue
            if param.kind == RIR:
                rir_rows.append(row)
                rirs.append(self.store.rir(param.recordings[0][0]))
                continue
            noise = _mix_noise(self.store, param, crop_samples)
            # Silence has no level that could be scaled.
            if noise.any():
                noise_rows.append(row)
                noises.append(noise)
        padded_rirs = np.zeros((len(rirs), max(map(len, rirs), default=0)), np.float32)
        for out, rir in zip(padded_rirs, rirs, strict=True):
            out[: len(rir)] = rir
        return AugmentBatch(
            speed=torch.tensor([param.speed for param in params], dtype=torch.int64),
            seed=torch.tensor([param.seed for param in params], dtype=torch.int64),
            rir_rows=torch.tensor(rir_rows, dtype=torch.int64),
            rirs=torch.from_numpy(padded_rirs),
            noise_rows=torch.tensor(noise_rows, dtype=torch.int64),
            noises=torch.from_numpy(np.array(noises, np.float32).reshape(-1, crop_samples)),
            snr=torch.tensor([params[row].snr for row in noise_rows], dtype=torch.float32),
            mask=torch.tensor([param.mask for param in params], dtype=torch.float32).reshape(-1, 4),
        )


def _mix_noise(store: NoiseStore, param: AugmentParams, samples: int) -> Waveform:
    """Return one recording, or several speakers at the same level, float32 [samples]."""
    if len(param.recordings) == 1:
        index, position = param.recordings[0]
        return store.noise(param.kind, index, position, samples).astype(np.float32)
    speakers = np.empty((len(param.recordings), samples), np.float32)
    for speaker, (index, position) in zip(speakers, param.recordings, strict=True):
        speaker[:] = store.noise(param.kind, index, position, samples)
    # No BLAS, whose sums depend on its threads.
    level = np.sqrt(np.einsum("ts,ts->t", speakers, speakers))
    weight = np.divide(1, level, out=np.zeros_like(level), where=level > 0)
    return np.einsum("t,ts->s", weight, speakers)
