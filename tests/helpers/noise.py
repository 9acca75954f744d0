"""A small store of noises and rooms."""

from pathlib import Path

import numpy as np
import soundfile
from helpers.tiny import RATE

from sv_sparse.data.noise import NOISE_KINDS, build_noise_store


def small_noise_store(root: Path) -> Path:
    """Write one recording of each kind of noise, and one room, and build their store."""
    draw = np.random.default_rng(0)
    for kind in (*NOISE_KINDS, "simulated_rirs"):
        (root / kind).mkdir()
        soundfile.write(root / kind / "1.wav", 0.1 * draw.normal(size=4000), RATE)
    build_noise_store([root], root / "store")
    return root / "store"
