"""Simulated recording channels: what one session does to every utterance recorded in it."""

from dataclasses import dataclass

import numpy as np
from scipy.signal import fftconvolve, firwin2

from sv_sparse.data.decoding import SAMPLE_RATE

# Taps of the equalizers: 16 ms.
_TAPS = 255


@dataclass(frozen=True)
class SimulatedChannel:
    """Microphone in a noisy room."""

    # [S], impulse response of room and microphone together.
    response: np.ndarray
    # [S], impulse response that colors white noise.
    noise_filter: np.ndarray
    # Depth of slow changes in the noise's level, in [0, 1].
    modulation: float
    # Fundamental frequency of mains hum in Hz, and its amplitude relative to the noise.
    hum: tuple[float, float]
    # Signal-to-noise ratio in dB.
    snr: float
    # Peak of the recording, relative to full scale.
    level: float
    # Saturation of the recorder, 0 for none.
    drive: float


def sample_channel(rng: np.random.Generator) -> SimulatedChannel:
    """Draw the channel of a session."""
    # The order of the draws is a part of what a seed means.
    microphone = _equalizer(rng, spread_db=8.0, band=(rng.uniform(50, 350), rng.uniform(3200, 7600)))
    return SimulatedChannel(
        response=fftconvolve(_room(rng), microphone),
        noise_filter=_equalizer(rng, spread_db=12.0, band=(rng.uniform(30, 600), rng.uniform(1500, 7800))),
        modulation=rng.uniform(0.0, 0.9),
        hum=(float(rng.choice((50.0, 60.0, 120.0))), rng.uniform(0.0, 0.4)),
        snr=rng.uniform(3.0, 20.0),
        level=10 ** rng.uniform(-1.2, -0.05),
        drive=rng.uniform(0.1, 3.0) if rng.random() < 0.3 else 0.0,
    )


def apply_channel(speech: np.ndarray, channel: SimulatedChannel, rng: np.random.Generator) -> np.ndarray:
    """Pass speech [S] at any level through a channel with noise; return [S] in [-1, 1]."""
    wet = fftconvolve(speech, channel.response)[: len(speech)]
    noise = _noise(len(speech), channel, rng)
    wet = wet / np.std(wet) + noise / np.std(noise) * 10 ** (-channel.snr / 20)
    wet /= np.max(np.abs(wet))
    if channel.drive > 0:
        wet = np.tanh(channel.drive * wet) / np.tanh(channel.drive)
    return channel.level * wet


def _equalizer(rng: np.random.Generator, *, spread_db: float, band: tuple[float, float]) -> np.ndarray:
    """Return the taps of a random smooth filter that falls off outside of ``band`` (Hz)."""
    frequency = np.geomspace(30.0, SAMPLE_RATE / 2, 12)
    # dB per octave.
    tilt = rng.normal(0.0, 2.0) * np.log2(frequency / 1000.0)
    low, high = band
    octaves_outside = np.log2(np.maximum(low / frequency, 1)) + 2 * np.log2(np.maximum(frequency / high, 1))
    gain_db = rng.uniform(-spread_db, spread_db, len(frequency)) + tilt - 18.0 * octaves_outside
    gain = 10 ** (np.clip(gain_db, -60, 24) / 20)
    return firwin2(_TAPS, np.r_[0.0, frequency], np.r_[gain[0], gain], fs=SAMPLE_RATE)


def _room(rng: np.random.Generator) -> np.ndarray:
    """Return the impulse response of a room: the direct path, then exponentially decaying noise."""
    # Time in which reverberation falls by 60 dB.
    decay_seconds = rng.uniform(0.1, 0.7)
    reverberant_db = rng.uniform(-20.0, -1.0)
    time = np.arange(round(0.7 * decay_seconds * SAMPLE_RATE)) / SAMPLE_RATE
    tail = rng.standard_normal(len(time)) * 10 ** (-3.0 * time / decay_seconds)
    # The first reflection comes 2 ms after the direct sound.
    tail[: round(0.002 * SAMPLE_RATE)] = 0.0
    tail *= 10 ** (reverberant_db / 20) / np.sqrt(np.sum(tail**2))
    tail[0] = 1.0
    return tail


def _noise(samples: int, channel: SimulatedChannel, rng: np.random.Generator) -> np.ndarray:
    noise = fftconvolve(rng.standard_normal(samples), channel.noise_filter, mode="same")
    noise /= np.std(noise)
    # The level changes every 0.25 s.
    knots = rng.uniform(-1.0, 1.0, 3 + samples // (SAMPLE_RATE // 4))
    time = np.arange(samples)
    noise *= 1.0 + channel.modulation * np.interp(time, np.linspace(0, samples, len(knots)), knots)
    fundamental, amplitude = channel.hum
    phase = 2 * np.pi * fundamental / SAMPLE_RATE * time
    hum = sum(np.sin(k * phase + rng.uniform(0, 2 * np.pi)) / k for k in range(1, 8))
    return noise + amplitude * hum
