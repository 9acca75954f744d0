"""Decoding of audio files of every format that libsndfile reads, their metadata, and the resampler (DECISIONS 68).

Training, evaluation and use read recordings through this module, to the same samples. The format of a file is
what its first bytes say, whatever its suffix. libsndfile reads some files only in part though their audio is
complete: those with tags, without a length, MP3 without a count of its frames, chains of Ogg streams. It is
shown another layout of the same bytes then (``layout.py``).
"""

# Nothing here needs torch or pyarrow: the light installation and the preparation of a million files use it.
import os
import shlex
from collections.abc import Iterator
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np
import soundfile
import soxr
from numpy.typing import DTypeLike, NDArray

from sv_sparse.data.layout import FileContent, MemoryContent, View, detect_kind, find_layout, mp3_layout
from sv_sparse.io import printable

Waveform = NDArray[np.float32]
Source = str | os.PathLike[str] | bytes

# Hz, of everything that is trained on and evaluated.
SAMPLE_RATE = 16000
# A shorter recording is a cutting mistake, and says nothing about a speaker.
MIN_SECONDS = 0.2
MAX_SECONDS = 24 * 3600.0
MIN_SAMPLE_RATE, MAX_SAMPLE_RATE = 4_000, 384_000
MAX_CHANNELS = 64
# Samples should lie in [-1, 1]; energies of larger ones than this overflow.
MAX_ABS = np.float32(2**31)

# Files with these suffixes are taken for recordings in a search; others, if they begin like a recording.
AUDIO_SUFFIXES = (
    *(".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".aifc", ".au", ".snd", ".caf", ".w64"),
    *(".rf64", ".bwf", ".sph", ".nist", ".voc"),
)
# Samples of all channels together that are decoded at once.
BLOCK_SIZE = 1 << 18
SILENT = "holds nothing but silence"

# Most recordings that are not silent have two samples that differ among so many.
_SILENCE_BLOCK_SIZE = 1 << 12
_EMPTY = np.empty(0, np.float32)
# libsndfile's number of frames is this or more if the header has none.
_UNKNOWN_FRAMES = 1 << 62
# Samples: MP3 ends in whole frames, of which the encoder's padding is cut off.
_MP3_MAX_MISSING = 3 * 1152
# Up to here MP3 is decoded instead of sought in: it takes 0.1 s, and libmpg123 prints warnings when it seeks.
_MP3_MIN_SEEK_SECONDS = 120.0
# Samples that are decoded before the first one that is needed. An MP3 frame takes bits from those before it,
# and libsndfile is some samples off when it seeks into the last page of an Ogg file.
_PREROLL = {"MP3": 32 * 1152, "OGG": 1 << 17}


class _Decoder(soundfile.SoundFile):
    def seekable(self) -> bool:
        # soundfile seeks after each read of a seekable file, which makes FLAC decode a block again.
        return False


class AudioFile:
    """Recording that is open for reading its first channel: a path, or the content of a file.

    Attributes:
        sample_rate: rate in Hz.
        channels: number of channels.
        samples: length of a channel; None if only decoding can tell.
        format: libsndfile's name of the container, such as ``"WAV"``.
        subtype: libsndfile's name of the encoding, such as ``"PCM_16"``.
        size: bytes of the file.
        pcm_offset: first byte of the samples if they are mono, 16-bit and little-endian; otherwise -1.

    Raises:
        ValueError: it cannot be read as a recording, is broken off, or its rate or number of channels is not
            allowed. The message does not name the file.
        OSError: the file cannot be opened.
    """

    def __init__(self, source: Source) -> None:
        self._content = MemoryContent(source) if isinstance(source, bytes) else FileContent(source)
        self._sound: soundfile.SoundFile | None = None
        # soundfile reads it, or the file itself.
        self._view: View | None = None
        # The stream that is open and of which nothing has been read.
        self._unread_stream: int | None = None
        try:
            self._read_headers()
        except soundfile.LibsndfileError as error:
            kind = detect_kind(self._content)
            self.close()
            if kind == "foreign":
                remedy = _conversion_command(source)
                raise ValueError(f"is of a format that is not read here; convert it: {remedy}") from error
            raise ValueError(f"cannot be read as a recording ({_error_text(error)})") from error
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "AudioFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        if self._sound is not None:
            self._sound.close()
        self._content.close()

    def _read_headers(self) -> None:
        self.size = self._content.size
        if not self.size:
            raise ValueError("is empty")
        self._layout = find_layout(self._content)
        sound = self._open_stream(0)
        # Other bytes than a tag may come before an MP3 file's first frame.
        if sound.format == "MP3" and not self._layout.is_indexed:
            self._layout = mp3_layout(self._content, self._layout)
            sound = self._open_stream(0)
        self._unread_stream = 0
        self.sample_rate = sound.samplerate
        self.channels = sound.channels
        self.format = sound.format
        self.subtype = sound.subtype
        if self.channels > MAX_CHANNELS:
            raise ValueError(f"has {self.channels} channels, at most {MAX_CHANNELS} are read")
        check_sample_rate(self.sample_rate)
        self._lengths = [_num_frames(sound)]
        for stream in range(1, len(self._layout.streams)):
            sound = self._open_stream(stream)
            if sound.samplerate != self.sample_rate:
                raise ValueError(f"is joined from streams of {self.sample_rate} and {sound.samplerate} Hz")
            self._lengths.append(_num_frames(sound))
        self.samples = None if None in self._lengths else sum(length or 0 for length in self._lengths)
        missing = self._layout.missing_fraction
        if missing == 1:
            raise ValueError("has no samples")
        if missing and self.samples is not None:
            raise ValueError(_broken_off(self.samples, round(self.samples / (1 - missing))))
        is_pcm = self.subtype == "PCM_16" and self.channels == 1 and self._layout.is_plain
        self.pcm_offset = self._layout.pcm_offset if is_pcm else -1

    def blocks(
        self, *, start: int = 0, count: int | None = None, dtype: DTypeLike = np.float32, block_size: int = BLOCK_SIZE
    ) -> Iterator[Any]:
        """Yield the first channel in blocks [S], S > 0: ``count`` samples from ``start`` on, or all that follow.

        Samples are ``float32``, in [-1, 1] unless the recording is louder, or ``int16`` if ``subtype`` is
        ``PCM_16``. For a block, ``block_size`` samples of all channels are decoded.

        Raises:
            ValueError: the part is not there, the data is damaged, or samples are not finite or beyond
                2 ** 31. The message does not name the file.
            OSError: the file cannot be read.
        """
        stop = self.samples if count is None else start + count
        position = start
        try:
            for block in self._decode(start, stop, np.dtype(dtype).name, max(1, block_size // self.channels)):
                position += len(block)
                check_loudness(block)
                yield block
        except soundfile.LibsndfileError as error:
            self._check_reading()
            after = f" after {position:,} samples" if position > start else ""
            raise ValueError(f"cannot be read as a recording ({_error_text(error)}{after})") from error
        max_missing = _MP3_MAX_MISSING if self.format == "MP3" and count is None else 0
        if stop is not None and position < stop - max_missing:
            raise ValueError(_broken_off(position, stop))

    def read(self, *, start: int = 0, count: int | None = None, dtype: DTypeLike = np.float32) -> NDArray[Any]:
        """Return the first channel, or a part of it, [S]; arguments and errors as of :meth:`blocks`."""
        blocks = list(self.blocks(start=start, count=count, dtype=dtype))
        if len(blocks) == 1:
            return blocks[0]
        return np.concatenate(blocks) if blocks else np.empty(0, dtype)

    def _decode(self, start: int, stop: int | None, dtype: str, max_frames: int) -> Iterator[NDArray[Any]]:
        """Yield the first channel from ``start`` on, up to ``stop`` or the end."""
        position = 0
        for stream, length in enumerate(self._lengths):
            end = None if length is None else position + length
            if stop is not None and (end is None or stop < end):
                end = stop
            if end is not None and end <= start:
                position = end
                continue
            sound = self._open_stream(stream)
            is_near = self.format == "MP3" and start - position < _MP3_MIN_SEEK_SECONDS * self.sample_rate
            if start > position and length is not None and not is_near:
                preroll = min(start - position, _PREROLL.get(self.format, 0))
                try:
                    sound.seek(start - position - preroll)
                    position = start - preroll
                except soundfile.LibsndfileError:
                    # Some encodings cannot seek: decode what lies before.
                    sound = self._open_stream(stream)
            while end is None or position < end:
                frames = max_frames if end is None else min(max_frames, end - position)
                samples = sound.read(frames, dtype=dtype, always_2d=True)
                self._check_reading()
                if not len(samples):
                    break
                first_channel = samples[max(0, start - position) :, 0]
                position += len(samples)
                if len(first_channel):
                    yield np.ascontiguousarray(first_channel)
            if stop is not None and position >= stop:
                return

    def _open_stream(self, stream: int) -> soundfile.SoundFile:
        """Return a stream that is open at its beginning."""
        unread_stream = self._unread_stream
        self._unread_stream = None
        if self._sound is not None:
            if unread_stream == stream:
                return self._sound
            self._sound.close()
            self._sound = None
        source: Any
        if self._layout.is_plain:
            self._view = None
            source = self._content.for_soundfile()
        else:
            source = self._view = View(self._content, self._layout.streams[stream])
        try:
            self._sound = _Decoder(source, closefd=False)
        except soundfile.LibsndfileError:
            self._check_reading()
            raise
        return self._sound

    def _check_reading(self) -> None:
        # libsndfile takes an error of reading for the end of the file.
        if self._view is not None and self._view.error is not None:
            raise self._view.error


class AudioInfo(NamedTuple):
    """Metadata of a recording, as of ``AudioFile``; numbers are 0 where they cannot be read."""

    # 0 if the recording cannot be used.
    samples: int
    sample_rate: int
    channels: int
    size: int
    pcm_offset: int
    # Reason why it cannot be used, in words; empty if it can.
    problem: str


def inspect(source: Source) -> AudioInfo:
    """Return the metadata of a recording; an unreadable or missing file is no error but a ``problem``."""
    info = AudioInfo(0, 0, 0, 0, -1, "")
    try:
        with AudioFile(source) as file:
            info = AudioInfo(0, file.sample_rate, file.channels, file.size, file.pcm_offset, "")
            return info._replace(samples=_count_usable_samples(file))
    except ValueError as error:
        return info._replace(problem=str(error))
    except OSError as error:
        return info._replace(problem=error.strerror or str(error))


def _count_usable_samples(file: AudioFile) -> int:
    """Return the length of a recording, or raise a ValueError that says why it cannot be used (DECISIONS 69)."""
    decoded = 0
    # Floating-point files alone can hold NaN. The length of others may be unknown.
    decodes_all = file.samples is None or file.subtype in {"FLOAT", "DOUBLE"}
    # Samples are decoded until two differ.
    if decodes_all or is_constant(next(file.blocks(block_size=_SILENCE_BLOCK_SIZE), _EMPTY)):
        lowest, highest = np.inf, -np.inf
        for block in file.blocks():
            decoded += len(block)
            lowest = min(lowest, block.min())
            highest = max(highest, block.max())
            if decoded > MAX_SECONDS * file.sample_rate or (lowest < highest and not decodes_all):
                break
        if not decoded:
            raise ValueError("has no samples")
        if lowest == highest:
            raise ValueError(SILENT)
    samples = decoded if file.samples is None else file.samples
    # The last sample of FLAC and MP3 tells whether the file is complete.
    if file.format in {"FLAC", "MP3"} and not decodes_all:
        try:
            file.read(start=samples - 1, count=1)
        except ValueError:
            # Decoding FLAC raises an error that says how much is there; of MP3 it counts the samples.
            samples = sum(map(len, file.blocks()))
    if samples > MAX_SECONDS * file.sample_rate:
        raise ValueError(f"is longer than {MAX_SECONDS:g} seconds")
    return samples


def _conversion_command(source: Source) -> str:
    """Return the command line that converts a file to FLAC; content has no name."""
    if isinstance(source, bytes):
        return "ffmpeg -i FILE FILE.flac"
    path = printable(source)
    stem, suffix = os.path.splitext(path)
    # ffmpeg refuses to write the file that it reads.
    output = f"{stem}.converted.flac" if suffix.lower() == ".flac" else f"{stem}.flac"
    return f"ffmpeg -i {shlex.quote(path)} {shlex.quote(output)}"


def is_recording(path: str | os.PathLike[str]) -> bool:
    """Return True if a search takes a file: its suffix is one of ``AUDIO_SUFFIXES``, or it begins like a recording.

    Recordings of formats that are not read here are among them, so that they are reported.
    """
    if os.fspath(path).lower().endswith(AUDIO_SUFFIXES):
        return True
    try:
        with closing(FileContent(path)) as content:
            return bool(detect_kind(content))
    except (OSError, ValueError):
        return False


def iter_audio(source: Source, sample_rate: int, *, max_seconds: float = MAX_SECONDS) -> Iterator[Waveform]:
    """Yield a recording's first channel at a rate in Hz, in pieces float32 [S] that need little memory.

    Samples are in [-1, 1] unless the recording is louder. Recordings beyond ``max_seconds`` are refused,
    whatever their headers say.

    Raises:
        ValueError: see ``AudioFile`` and ``AudioFile.blocks``; or it has no samples, or is too long.
        OSError: the file cannot be opened.
    """
    with AudioFile(source) as file:
        resampler = Resampler(file.sample_rate, sample_rate)
        samples = 0
        for block in file.blocks():
            samples += len(block)
            if samples > max_seconds * file.sample_rate:
                raise ValueError(f"is longer than {max_seconds:g} seconds")
            yield resampler(block)
        if not samples:
            raise ValueError("has no samples")
        yield resampler.flush()


class Resampler:
    """Resampler of a stream from ``rate`` to ``sample_rate`` in Hz, whatever the lengths of its pieces.

    Raises:
        ValueError: ``rate`` is not from 4,000 to 384,000.

    >>> resampler = Resampler(8000, 16000)
    >>> len(resampler(np.zeros(800, np.float32))) + len(resampler.flush())
    1600
    """

    def __init__(self, rate: int, sample_rate: int) -> None:
        check_sample_rate(rate)
        self._stream = None if rate == sample_rate else soxr.ResampleStream(rate, sample_rate, 1, dtype="float32")

    def __call__(self, samples: Waveform) -> Waveform:
        """Return the output that is complete after these samples [S]; up to a quarter of a second stays behind."""
        return samples if self._stream is None else self._stream.resample_chunk(samples)

    def flush(self) -> Waveform:
        """Return the output that stayed behind; no input can follow."""
        return _EMPTY if self._stream is None else self._stream.resample_chunk(_EMPTY, last=True)


def resample(samples: Waveform, rate: int, sample_rate: int) -> Waveform:
    """Return a waveform [S] at another rate; arguments and errors as of ``Resampler``."""
    if rate == sample_rate:
        return samples
    resampler = Resampler(rate, sample_rate)
    return np.concatenate([resampler(samples), resampler.flush()])


def check_sample_rate(rate: int) -> None:
    """Raise a ValueError for a rate in Hz that is out of range."""
    if not MIN_SAMPLE_RATE <= rate <= MAX_SAMPLE_RATE:
        raise ValueError(f"has {rate} Hz, expected {MIN_SAMPLE_RATE:,} to {MAX_SAMPLE_RATE:,}")


def check_loudness(samples: NDArray[Any]) -> None:
    """Raise a ValueError for samples [S] that are not finite, or so large that their energy is not."""
    if samples.dtype != np.int16 and not (np.abs(samples) <= MAX_ABS).all():
        raise ValueError("holds samples that are not finite, or beyond 2 ** 31")


def check_length(samples: int, sample_rate: int) -> None:
    """Raise a ValueError for fewer samples than ``MIN_SECONDS`` hold."""
    if samples < MIN_SECONDS * sample_rate:
        raise ValueError(too_short(samples, sample_rate))


def too_short(samples: int, sample_rate: int) -> str:
    """Return the message for a recording that is too short."""
    return f"is too short: {100 * samples // sample_rate / 100:.2f} seconds, at least {MIN_SECONDS:g} are needed"


def check_silence(samples: NDArray[Any]) -> None:
    """Raise a ValueError for samples [S] that are all equal."""
    # All such recordings would seem to be of one speaker.
    if is_constant(samples):
        raise ValueError(SILENT)


def is_constant(samples: NDArray[Any]) -> bool:
    """Return True if samples [S] are all equal."""
    return not len(samples) or bool(samples.min() == samples.max())


def _num_frames(sound: soundfile.SoundFile) -> int | None:
    return int(sound.frames) if sound.frames < _UNKNOWN_FRAMES else None


def _error_text(error: soundfile.LibsndfileError) -> str:
    # libsndfile says "does not exist" of an open file whose content it does not recognize.
    return "Format not recognised." if "does not exist" in error.error_string else error.error_string


def _broken_off(available: int, announced: int) -> str:
    return f"is broken off: {available:,} of {max(announced, available + 1):,} samples are there"
