"""Synthetic speech for the demo corpus: eSpeak NG, random voices and random sentences (DECISIONS 4)."""

import ctypes
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

import numpy as np

from sv_sparse.io import install_command

# eSpeak NG's own rate in Hz.
SAMPLE_RATE = 22_050

_LANGUAGES = ("en-US", "en-US", "en", "en-GB-x-rp", "en-GB-scotland", "en-GB-x-gbclan", "en-GB-x-gbcwmd", "en-029")
_DATA_FILES = ("phondata", "phonindex", "phontab", "intonations", "en_dict")
# Constants of espeak-ng/speak_lib.h.
_RATE, _SYNCHRONOUS, _DO_NOT_EXIT, _UTF8 = 1, 2, 0x8000, 1
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)


@dataclass(frozen=True)
class Voice:
    """Voice of a speaker, in the parameters of eSpeak NG."""

    female: bool
    # Accent, a name under ``lang/gmw`` in eSpeak NG's data.
    language: str
    # Lowest and highest fundamental frequency in Hz.
    pitch: tuple[float, float]
    # Eight rows of (frequency, strength, width), each in percent of eSpeak NG's default voice.
    formants: tuple[tuple[float, float, float], ...]
    # Level of breath noise at each formant, 0 for none.
    breath: tuple[int, ...]
    # Level of the voiced source in percent.
    voicing: float
    # Slow irregularity of the pitch, 0 for none.
    flutter: int
    # Fast irregularity of the pitch, 0 to 7.
    roughness: int
    # Level of unvoiced and voiced consonants in percent.
    consonants: tuple[float, float]
    words_per_minute: float

    def with_session_drift(self, rng: np.random.Generator) -> "Voice":
        """Return the voice on another day, with slightly different pitch, rate and formants."""
        pitch, rate, tract = np.exp(rng.normal(0.0, (0.04, 0.05, 0.006)))
        low, high = self.pitch
        formants = tuple((f * tract, strength, width) for f, strength, width in self.formants)
        return replace(
            self, pitch=(low * pitch, high * pitch), words_per_minute=self.words_per_minute * rate, formants=formants
        )

    def to_variant_file(self) -> str:
        """Return the text of a voice-variant file of eSpeak NG."""
        lines = ["language variant", "name demo", f"gender {'female' if self.female else 'male'}"]
        lines += ["pitch {:.0f} {:.0f}".format(*self.pitch), f"voicing {self.voicing:.0f}"]
        lines += [f"flutter {self.flutter}", f"roughness {self.roughness}"]
        lines += ["consonants {:.0f} {:.0f}".format(*self.consonants), "breath " + " ".join(map(str, self.breath))]
        for number, formant in enumerate(self.formants, start=1):
            lines.append("formant {} {:.0f} {:.0f} {:.0f}".format(number, *formant))
        return "\n".join(lines) + "\n"


def draw_voice(rng: np.random.Generator, *, female: bool) -> Voice:
    """Draw a speaker's voice: vocal tract, pitch, accent and manner."""
    # The order of the draws is a part of what a seed means.
    tract = rng.uniform(106, 126) if female else rng.uniform(88, 108)
    low = rng.uniform(145, 220) if female else rng.uniform(70, 125)
    frequency = tract * np.exp(rng.normal(0.0, 0.05, 8))
    strength = 100 * np.exp(rng.normal(0.0, 0.25, 8))
    width = 100 * np.exp(rng.normal(0.0, 0.20, 8))
    breath = rng.integers(0, 9, 8) * (rng.random() < 0.5)
    return Voice(
        female=female,
        language=str(rng.choice(_LANGUAGES)),
        pitch=(low, low * rng.uniform(1.15, 1.7)),
        formants=tuple(zip(frequency.tolist(), strength.tolist(), width.tolist(), strict=True)),
        breath=tuple(breath.tolist()),
        voicing=rng.uniform(60, 130),
        flutter=int(rng.integers(0, 12)),
        roughness=int(rng.integers(0, 5)),
        consonants=(rng.uniform(60, 130), rng.uniform(60, 130)),
        words_per_minute=rng.uniform(150, 190),
    )


# Each change of these words changes the corpus of every seed, spelling included: "neighbour" stays.
_OPENINGS = "yesterday|this morning|after the storm|last winter|at the station|in the old town|before dinner|most days"
_PEOPLE = (
    "my brother|the young teacher|a tired farmer|our neighbour|the captain|her cousin|a quiet student|the doctor|"
    "the baker's son|an old friend|the painter|every visitor"
)
_VERBS = "found|carried|borrowed|described|forgot|painted|ordered|dropped|noticed|repaired|measured|hid|chose|followed"
_THINGS = (
    "a heavy box|the yellow map|three silver coins|a broken clock|the long letter|fresh bread|a wooden boat|"
    "the garden gate|two glass jars|a pair of shoes|the missing page|a cheap violin|warm soup|the blue jacket"
)
_PLACES = (
    "near the river|behind the church|on the hill|under the bridge|by the window|in the kitchen|across the road|"
    "at the market|beside the harbour|in the forest|outside the library|over there"
)
_REASONS = (
    "because it was late|while nobody looked|and went home|without a word|for half the price|with great care|"
    "as they had promised|just before eight|and laughed about it|to please his aunt"
)
_WORDS = tuple(tuple(words.split("|")) for words in (_OPENINGS, _PEOPLE, _VERBS, _THINGS, _PLACES, _REASONS))


def sentence(rng: np.random.Generator) -> str:
    """Draw an English sentence of about ten to fifteen words."""
    opening, person, verb, thing, place, reason = (str(rng.choice(words)) for words in _WORDS)
    kind = rng.integers(3)
    if kind == 0:
        return f"{opening}, {person} {verb} {thing} {place}."
    if kind == 1:
        return f"{person} {verb} {thing} {place} {reason}."
    return f"{opening} {person} {verb} {thing} {reason}."


@contextmanager
def espeak_data() -> Iterator[Path]:
    """Yield a temporary copy of the data that English needs, in which voices can be put."""
    source = Path(_package().get_data_path())
    with TemporaryDirectory(prefix="espeak-") as folder:
        data = Path(folder)
        for name in _DATA_FILES:
            shutil.copyfile(source / name, data / name)
        shutil.copytree(source / "lang" / "gmw", data / "lang" / "gmw")
        (data / "voices" / "!v").mkdir(parents=True)
        yield data


def speak(text: str, voice: Voice, *, seed: int, data: Path) -> np.ndarray:
    """Synthesize an English text, int16 [S] at ``SAMPLE_RATE``, whatever was spoken before.

    ``seed`` is that of the noise in breath and consonants, ``data`` the folder of ``espeak_data``.

    Raises:
        RuntimeError: eSpeak NG refuses an argument, or it is already loaded in this process.
    """
    name = f"v{os.getpid()}"
    (data / "voices" / "!v" / name).write_text(voice.to_variant_file(), encoding="ascii")
    blocks: list[bytes] = []

    @_CALLBACK
    def receive(block: int | None, samples: int, _events: int | None) -> int:
        if block and samples:
            blocks.append(ctypes.string_at(block, 2 * samples))
        return 0

    utf8 = text.encode() + b"\0"
    with _fresh_library(data) as library:
        library.espeak_SetSynthCallback(receive)
        library.espeak_ng_SetRandSeed(ctypes.c_long(seed))
        _check(library.espeak_SetVoiceByName(f"gmw/{voice.language}+{name}".encode()), "the voice")
        _check(library.espeak_SetParameter(_RATE, round(voice.words_per_minute), 0), "the rate")
        _check(library.espeak_Synth(utf8, ctypes.c_size_t(len(utf8)), 0, 1, 0, _UTF8, None, None), "the text")
    return np.frombuffer(b"".join(blocks), dtype=np.int16)


@contextmanager
def _fresh_library(data: Path) -> Iterator[ctypes.CDLL]:
    # The library keeps state between utterances (oscillator phases, pitch irregularities, noise) that nothing in
    # its interface resets. Loading it anew for each one takes about a millisecond.
    path = _package().get_library_path()
    if _is_loaded(path):
        raise RuntimeError(f"{path} is in use in this process, or this system never unloads a library")
    library = ctypes.CDLL(path)
    try:
        rate = library.espeak_Initialize(_SYNCHRONOUS, 0, str(data).encode(), _DO_NOT_EXIT)
        if rate != SAMPLE_RATE:
            raise RuntimeError(f"eSpeak NG did not start from {data} (espeak_Initialize returned {rate})")
        yield library
        library.espeak_Terminate()
    finally:
        ctypes.CDLL(None).dlclose(ctypes.c_void_p(library._handle))


def _is_loaded(path: str) -> bool:
    if not hasattr(os, "RTLD_NOLOAD"):
        raise OSError("the demo corpus needs Linux or macOS: eSpeak NG is unloaded after each utterance")
    try:
        library = ctypes.CDLL(path, mode=os.RTLD_NOLOAD | os.RTLD_NOW)
    except OSError:
        return False
    ctypes.CDLL(None).dlclose(ctypes.c_void_p(library._handle))
    return True


def _package() -> ModuleType:
    try:
        return import_module("espeakng_loader")
    except ModuleNotFoundError as error:
        raise ValueError(f"data=demo needs the package espeakng-loader: {install_command('demo')}") from error


def _check(status: int, argument: str) -> None:
    if status != 0:
        raise RuntimeError(f"eSpeak NG refused {argument} (status {status})")
