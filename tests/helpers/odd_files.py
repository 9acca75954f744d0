"""Recordings as users bring them: every encoding, oddities of public bug reports, and what is no recording."""

import io
import os
import struct
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile

RATE = 16000
SECONDS = 0.6

ID3_BEFORE = b"ID3\x03\x00\x00\x00\x00\x01\x00" + b"TIT2" + bytes(124)  # 128 bytes behind its head of ten
ID3_BEHIND = b"TAG" + b"title".ljust(125, b"\0")
APE_BEHIND = b"APETAGEX" + struct.pack("<IIII8x", 2000, 32, 0, 0)
PAGE = b"<!DOCTYPE html><html><title>404</title>" + b"<p>not found</p>" * 500


def voice(speaker: int, seconds: float = SECONDS, rate: int = RATE) -> np.ndarray:
    """A buzz of a pitch of its own, float32 [S]."""
    generator = np.random.default_rng(speaker)
    time = np.arange(round(seconds * rate)) / rate
    harmonics = [np.sin(2 * np.pi * k * (90 + 17 * speaker) * time + generator.uniform(0, 6)) / k for k in range(1, 9)]
    return (0.1 * sum(harmonics) + 0.01 * generator.normal(size=len(time))).astype(np.float32)


def encoded(samples: np.ndarray, kind: str, subtype: str | None = None, rate: int = RATE) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype=subtype)
    return file.getvalue()


def wav_of_a_pipe(samples: np.ndarray, size: int) -> bytes:
    """A WAV file that says it has ``size`` bytes of samples."""
    pcm = (samples * 32767).astype("<i2").tobytes()
    form = struct.pack("<IHHIIHH", 16, 1, 1, RATE, 2 * RATE, 2, 16)
    whole = min(size + 36, 2**32 - 1)
    return b"RIFF" + struct.pack("<I", whole) + b"WAVEfmt " + form + b"data" + struct.pack("<I", size) + pcm


def without_count(flac: bytes) -> bytes:
    """A FLAC file that does not say how many samples it has, which 36 bits of its head are for."""
    return flac[:21] + bytes([flac[21] & 0xF0]) + bytes(4) + flac[26:]


def without_xing(mp3: bytes) -> bytes:
    """An MP3 file of varying bitrate without the frame that counts the others."""
    assert b"Xing" in mp3[:64]
    return mp3[mp3.index(mp3[:2], 4) :]


def good_files(speaker: int) -> dict[str, bytes]:
    """Recordings that everybody can use, by name."""
    sound = voice(speaker)
    wav, flac, ogg = (encoded(sound, kind) for kind in ("WAV", "FLAC", "OGG"))
    opus = encoded(sound, "OGG", "OPUS")
    mp3 = encoded(np.concatenate([sound, np.zeros(RATE, np.float32), sound]), "MP3")
    stereo = np.stack([sound, voice(speaker + 50)], axis=1)
    files = {f"{rate}.wav": encoded(voice(speaker, rate=rate), "WAV", rate=rate) for rate in RATES}
    files |= {f"{rate}.flac": encoded(voice(speaker, rate=rate), "FLAC", rate=rate) for rate in (8000, 44100, 96000)}
    files |= {f"48000.{end}": encoded(voice(speaker, rate=48000), kind, rate=48000) for end, kind in LOSSY.items()}
    files |= {f"{subtype}.wav": encoded(sound, "WAV", subtype) for subtype in WAV_SUBTYPES}
    telephone = voice(speaker, rate=8000)
    files |= {f"{subtype}.wav": encoded(telephone, "WAV", subtype, 8000) for subtype in ("GSM610", "G721_32")}
    files |= {name: encoded(sound, kind, subtype) for name, (kind, subtype) in CONTAINERS.items()}
    files |= {f"pipe_{size:x}.wav": wav_of_a_pipe(sound, size) for size in PIPE_SIZES}
    return files | {
        "vorbis.ogg": ogg,
        "opus.opus": opus,
        "chain.ogg": ogg + encoded(voice(speaker + 1), "OGG"),
        "chain.opus": opus + opus,
        "behind.ogg": ogg + bytes(3000),
        "before.opus": ID3_BEFORE + opus,
        "plain.mp3": mp3,
        "without_xing.mp3": without_xing(mp3),
        "joined.mp3": mp3 + mp3,
        "tags.mp3": ID3_BEFORE + mp3 + ID3_BEHIND,
        "behind.mp3": mp3 + bytes(5000),
        "24_bits.flac": encoded(sound, "FLAC", "PCM_24"),
        "before.flac": ID3_BEFORE + flac,
        "id3_behind.flac": flac + ID3_BEHIND,
        "padding_behind.flac": flac + bytes(4096),
        "without_count.flac": without_count(flac),
        "without_count_and_tags.flac": ID3_BEFORE + without_count(flac) + APE_BEHIND + ID3_BEHIND,
        "before.wav": ID3_BEFORE + wav,
        "behind.wav": wav + ID3_BEHIND,
        "list_behind.wav": wav + b"LIST" + struct.pack("<I", 4) + b"INFO",
        "stereo.wav": encoded(stereo, "WAV"),
        "left_only.wav": encoded(stereo * [1, 0], "WAV"),
        "eight_channels.wav": encoded(np.repeat(stereo, 4, axis=1), "WAV"),
        "clipped.wav": encoded(np.clip(30 * sound, -1, 1), "WAV"),
        "loud.wav": encoded(30 * sound, "WAV", "FLOAT"),
        "mostly_silent.wav": encoded(np.concatenate([np.zeros(2 * RATE, np.float32), sound]), "WAV"),
        "a_flac_called.wav": flac,
        "an_mp3_called.wav": mp3,
        "a_wav_called.flac": wav,
        "CAPITALS.WAV": wav,
        "no_ending": wav,
        "kept.flac.bak": flac,
        "an_mp3.old": mp3,
        "with spaces  in it.wav": wav,
        'quote\'s and "quotes".wav': wav,
        "comma,semicolon;equals=dollar$.wav": wav,
        unicodedata.normalize("NFC", "Zoë composed.wav"): wav,
        unicodedata.normalize("NFD", "Zoë decomposed.wav"): wav,
        "語り手.wav": wav,
    }


RATES = (4000, 8000, 11025, 16000, 22050, 32000, 44100, 48000, 96000, 192000)
LOSSY = {"ogg": "OGG", "mp3": "MP3"}
WAV_SUBTYPES = ("PCM_U8", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW", "IMA_ADPCM", "MS_ADPCM")
PIPE_SIZES = (0, 0x7FFFF000, 0x7FFFFFFF - 36, 0xFFFFFFFF - 44, 0xFFFFFF9B, 0xFFFFFFFE, 0xFFFFFFFF)
CONTAINERS = {
    "extensible.wav": ("WAVEX", "PCM_16"),
    "large.rf64": ("RF64", "PCM_16"),
    "large.w64": ("W64", "PCM_16"),
    "apple.aiff": ("AIFF", "PCM_16"),
    "apple.aifc": ("AIFF", "FLOAT"),
    "dwvw.aif": ("AIFF", "DWVW_16"),
    "plain.caf": ("CAF", "PCM_16"),
    "alac.caf": ("CAF", "ALAC_16"),
    "sun.au": ("AU", "PCM_16"),
    "sun.snd": ("AU", "ULAW"),
    "sphere.sph": ("NIST", "PCM_16"),
    "creative.voc": ("VOC", "PCM_16"),
}
UNREADABLE = "cannot be read as a recording"


def bad_files(speaker: int) -> dict[str, tuple[bytes, str]]:
    """What nobody can use, by name: content, and what the reason for it says."""
    sound = voice(speaker)
    silence = 0 * sound
    wav, flac = encoded(sound, "WAV"), encoded(sound, "FLAC")
    mp3, ogg, opus = encoded(sound, "MP3"), encoded(voice(speaker, 5.0), "OGG"), encoded(sound, "OGG", "OPUS")
    halves = {name: encoded(sound, kind, subtype) for name, (kind, subtype) in CONTAINERS.items()}
    cut = {f"cut_{name}": halves[name] for name in ("large.rf64", "large.w64", "apple.aiff", "sun.au")}
    files = {name: (content[: len(content) // 2], "is broken off") for name, content in cut.items()}
    return files | {
        "cut.wav": (wav[: len(wav) // 2], "is broken off"),
        "cut.flac": (flac[: len(flac) // 2], UNREADABLE),
        "cut_without_count.flac": (without_count(flac)[: len(flac) // 2], UNREADABLE),
        "cut.mp3": (mp3[: len(mp3) // 2], "is broken off"),
        "cut.opus": (opus[: len(opus) // 2], "is broken off: its last page is not whole"),
        "cut.ogg": (ogg[: len(ogg) // 2], "is broken off: its last page is not whole"),
        "cut.sph": (encoded(sound, "NIST")[:9000], "is broken off"),
        "cut.caf": (halves["plain.caf"][:5000], UNREADABLE),
        "empty.wav": (b"", "is empty"),
        "talk.m4a": (b"\0\0\0\x20ftypM4A " + bytes(5000), "is of a format that is not read here"),
        "only_a_header.wav": (wav[:44], "has no samples"),
        "no_samples.wav": (encoded(sound[:0], "WAV"), "has no samples"),
        "page.wav": (PAGE, UNREADABLE),
        "page.mp3": (PAGE, UNREADABLE),
        "page.flac": (PAGE, UNREADABLE),
        "zeros.wav": (bytes(5000), UNREADABLE),
        "noise.ogg": (np.random.default_rng(speaker).bytes(5000), UNREADABLE),
        "silent.wav": (encoded(silence, "WAV"), "holds nothing but silence"),
        "silent.flac": (encoded(silence, "FLAC"), "holds nothing but silence"),
        "constant.wav": (encoded(silence + 0.5, "WAV"), "holds nothing but silence"),
        "right_only.wav": (encoded(np.stack([silence, sound], axis=1), "WAV"), "holds nothing but silence"),
        "nan.wav": (encoded(np.append(sound, np.float32(np.nan)), "WAV", "FLOAT"), "not finite"),
        "infinite.wav": (encoded(np.append(sound, np.inf), "WAV", "DOUBLE"), "not finite"),
        "ten_milliseconds.wav": (encoded(sound[:160], "WAV"), "is too short: 0.01 seconds"),
        "short.flac": (encoded(sound[:3199], "FLAC"), "is too short: 0.19 seconds"),
        "slow.wav": (encoded(sound, "WAV", rate=3000), "has 3000 Hz, expected 4,000 to 384,000"),
        "too_many_channels.wav": (encoded(np.zeros((8000, 65)), "WAV"), "has 65 channels, at most 64"),
        "two_rates.ogg": (encoded(sound, "OGG") + encoded(sound, "OGG", rate=8000), "16000 and 8000 Hz"),
    }


def write_odd_files(folder: Path, speaker: int) -> dict[str, str | None]:
    """Write everything into a folder; by name, what the reason says for which a file cannot be used, None if it can."""
    folder.mkdir(parents=True, exist_ok=True)
    said: dict[str, str | None] = {}
    for name, content in good_files(speaker).items():
        (folder / name).write_bytes(content)
        said[name] = None
    for name, (content, reason) in bad_files(speaker).items():
        (folder / name).write_bytes(content)
        said[name] = reason
    said |= _write_no_files(folder)
    name = os.fsdecode(b"caf\xe9.wav")
    (folder / name).write_bytes(encoded(voice(speaker), "WAV"))
    return said | {name: "its name is not UTF-8"}


def _write_no_files(folder: Path) -> dict[str, str | None]:
    """Write what is in a tree beside files."""
    makers: dict[str, tuple[Callable[[Path], object], str]] = {
        "pipe.wav": (os.mkfifo, "is not a regular file"),
        "itself.wav": (lambda path: path.symlink_to(path), "symbolic links"),
        "nowhere.wav": (lambda path: path.symlink_to("is/not/there.wav"), "No such file"),
        "device.wav": (lambda path: path.symlink_to("/dev/zero"), "is not a regular file"),
    }
    for name, (make, _) in makers.items():
        make(folder / name)
    (folder / "folder.wav").mkdir()
    return {name: reason for name, (_, reason) in makers.items()}
