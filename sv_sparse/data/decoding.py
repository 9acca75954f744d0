"""Audio files of any kind that libsndfile reads: what they hold, their samples, and the one resampler.

Training, evaluation and use read recordings through this module, so that a file which one of them reads is read by all,
to the same samples. A file is what its first bytes say, whatever its name ends in.

Some files are read by libsndfile only in part, or not at all, though their audio is whole. It is shown another layout
of the same bytes then (``layout.py``):

- an ID3 tag lies before the first byte of the audio, or tags and padding behind the last one;
- a WAV file has no length, since it was written to a pipe or its recorder was killed;
- an MP3 file has no frame that counts the others, or one that counts too few (files that were joined);
- an Ogg file is a chain of several streams.

Nothing here needs torch or pyarrow: the light installation and the preparation of a million files use it.
"""

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import soundfile
import soxr
from numpy.typing import DTypeLike, NDArray

from sv_sparse.data.layout import FileContent, MemoryContent, View, content_kind, layout_of, mp3_layout

Waveform = NDArray[np.float32]
Source = str | os.PathLike[str] | bytes

SAMPLE_RATE = 16000  # Hz, of everything that is trained on and evaluated
MIN_SECONDS = 0.2  # a shorter recording is a mistake of cutting, and says nothing of a speaker
MAX_SECONDS = 24 * 3600.0
MIN_SAMPLE_RATE, MAX_SAMPLE_RATE = 4_000, 384_000  # Hz
MAX_CHANNELS = 64
MAX_ABS = np.float32(2**31)  # of samples that should lie in [-1, 1]; energies of larger ones overflow

# Files with these endings are taken for recordings where a folder is searched, and so is what has another ending but
# begins like one; the content decides what they are.
AUDIO_ENDINGS = (
    *(".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".aifc", ".au", ".snd", ".caf", ".w64"),
    *(".rf64", ".bwf", ".sph", ".nist", ".voc"),
)
BLOCK = 1 << 18  # samples of all channels together that are decoded at once
SILENT = "holds nothing but silence"
FOREIGN = "is of a format that is not read here; convert it, for instance by ffmpeg"

_FEW = 1 << 12  # samples, of which some differ in most recordings that are not silent
_NOTHING = np.empty(0, np.float32)
_UNKNOWN = 1 << 62  # libsndfile's number of frames, or more, where the header has none
_MP3_SLACK = 3 * 1152  # samples that may be missing at the end
_NEAR_SECONDS = 120.0  # of MP3 that are decoded, not passed over: in 0.1 s, and a seek makes libmpg123 complain aloud
# Samples that are decoded before the first one that is wanted. An MP3 frame takes bits of those before it, and
# libsndfile is some samples off where it seeks into the last page of an Ogg file.
_LEAD = {"MP3": 32 * 1152, "OGG": 1 << 17}


class _Decoder(soundfile.SoundFile):
    """A stream that is read from its beginning: soundfile seeks after each read, for which FLAC decodes a block."""

    def seekable(self) -> bool:
        return False


class AudioFile:
    """A recording that is open for reading its first channel; a context manager.

    Args:
        source: A path, or the content of a file.

    Attributes:
        sample_rate: In Hz.
        channels: Of which the first is read.
        samples: Length of a channel; None where only decoding tells.
        format: As libsndfile calls the container, e.g. ``"WAV"``.
        subtype: As libsndfile calls the encoding, e.g. ``"PCM_16"``.
        size: Bytes of the file.
        pcm: First byte of the samples where they are mono, 16-bit and little-endian; -1 elsewhere.

    Raises:
        ValueError: It is not a regular file, cannot be read as a recording, is broken off, or has a rate or a number
            of channels that is not allowed. The message does not name the file.
        OSError: The file cannot be opened.
    """

    def __init__(self, source: Source) -> None:
        self._content = MemoryContent(source) if isinstance(source, bytes) else FileContent(source)
        self._sound: soundfile.SoundFile | None = None
        self._view: View | None = None  # what soundfile reads, where that is not the file itself
        self._fresh: int | None = None  # the stream that is open and of which nothing was read
        try:
            self._read_headers()
        except soundfile.LibsndfileError as error:
            is_foreign = content_kind(self._content) == "foreign"
            self.close()
            if is_foreign:
                raise ValueError(FOREIGN) from error
            raise ValueError(f"cannot be read as a recording ({_words(error)})") from error
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
        content = self._content
        self.size = content.size
        if not self.size:
            raise ValueError("is empty")
        self._layout = layout_of(content)
        sound = self._begin(0)
        if sound.format == "MP3" and not self._layout.is_searched:  # other bytes come before its first frame
            self._layout = mp3_layout(content, self._layout)
            sound = self._begin(0)
        self._fresh = 0
        self.sample_rate, self.channels = sound.samplerate, sound.channels
        self.format, self.subtype = sound.format, sound.subtype
        if self.channels > MAX_CHANNELS:
            raise ValueError(f"has {self.channels} channels, at most {MAX_CHANNELS} are read")
        if not MIN_SAMPLE_RATE <= self.sample_rate <= MAX_SAMPLE_RATE:
            raise ValueError(f"has {self.sample_rate} Hz, expected {MIN_SAMPLE_RATE:,} to {MAX_SAMPLE_RATE:,}")
        self._lengths = [_frames(sound)]
        for number in range(1, len(self._layout.streams)):
            sound = self._begin(number)
            if sound.samplerate != self.sample_rate:
                raise ValueError(f"is joined from streams of {self.sample_rate} and {sound.samplerate} Hz")
            self._lengths.append(_frames(sound))
        self.samples = None if None in self._lengths else sum(length or 0 for length in self._lengths)
        if self._layout.missing == 1:
            raise ValueError("has no samples")
        if self._layout.missing and self.samples is not None:
            raise ValueError(_broken_off(self.samples, round(self.samples / (1 - self._layout.missing))))
        is_plain_pcm = self.subtype == "PCM_16" and self.channels == 1 and self._layout.is_plain
        self.pcm = self._layout.pcm if is_plain_pcm else -1

    def blocks(
        self, *, start: int = 0, count: int | None = None, dtype: DTypeLike = np.float32, at_once: int = BLOCK
    ) -> Iterator[Any]:
        """Decode the first channel, or a part of it, in blocks that need little memory.

        Args:
            start: First sample of the part.
            count: Samples of the part; None for all that follow.
            dtype: ``float32``, for samples in [-1, 1] but for recordings that are louder; or ``int16`` where
                ``subtype`` is ``PCM_16``.
            at_once: Samples of all channels that are decoded for a block.

        Yields:
            [S], S > 0.

        Raises:
            ValueError: The part is not there, the data is damaged, or samples are not finite or beyond 2 ** 31. The
                message does not name the file.
            OSError: The file cannot be read.
        """
        stop = self.samples if count is None else start + count
        place = start
        try:
            for block in self._decode(start, stop, np.dtype(dtype).name, max(1, at_once // self.channels)):
                place += len(block)
                check_loudness(block)
                yield block
        except soundfile.LibsndfileError as error:
            self._check_reading()
            where = f" after {place:,} samples" if place > start else ""
            raise ValueError(f"cannot be read as a recording ({_words(error)}{where})") from error
        # An MP3 file ends in whole frames, of which the padding of the encoder is cut off.
        slack = _MP3_SLACK if self.format == "MP3" and count is None else 0
        if stop is not None and place < stop - slack:
            raise ValueError(_broken_off(place, stop))

    def read(self, *, start: int = 0, count: int | None = None, dtype: DTypeLike = np.float32) -> NDArray[Any]:
        """Return the first channel, or a part of it, [S]; see ``blocks``."""
        blocks = list(self.blocks(start=start, count=count, dtype=dtype))
        if len(blocks) == 1:
            return blocks[0]
        return np.concatenate(blocks) if blocks else np.empty(0, dtype)

    def _decode(self, start: int, stop: int | None, dtype: str, at_once: int) -> Iterator[NDArray[Any]]:
        """Yield the first channel from ``start`` on, up to ``stop`` or the end."""
        place = 0  # of the next sample
        for number, length in enumerate(self._lengths):
            end = _earliest(stop, None if length is None else place + length)
            if end is not None and end <= start:
                place = end
                continue
            sound = self._begin(number)
            is_near = self.format == "MP3" and start - place < _NEAR_SECONDS * self.sample_rate
            if start > place and length is not None and not is_near:
                try:
                    lead = min(start - place, _LEAD.get(self.format, 0))
                    sound.seek(start - place - lead)
                    place = start - lead
                except soundfile.LibsndfileError:  # some encodings cannot seek; what lies before is decoded
                    sound = self._begin(number)
            while end is None or place < end:
                samples = sound.read(at_once if end is None else min(at_once, end - place), dtype=dtype, always_2d=True)
                self._check_reading()
                if not len(samples):
                    break
                first = samples[max(0, start - place) :, 0]
                place += len(samples)
                if len(first):
                    yield np.ascontiguousarray(first)
            if stop is not None and place >= stop:
                return

    def _begin(self, number: int) -> soundfile.SoundFile:
        """Return a stream that is open at its beginning."""
        fresh, self._fresh = self._fresh, None
        if self._sound is not None:
            if fresh == number:
                return self._sound
            self._sound.close()
            self._sound = None
        pieces = self._layout.streams[number]
        self._view = None if self._layout.is_plain else View(self._content, pieces)
        try:
            self._sound = _Decoder(self._content.whole() if self._view is None else self._view, closefd=False)
        except soundfile.LibsndfileError:
            self._check_reading()
            raise
        return self._sound

    def _check_reading(self) -> None:
        """Raise the error that reading the file failed with, which libsndfile takes for its end."""
        if self._view is not None and self._view.error is not None:
            raise self._view.error


class AudioInfo(NamedTuple):
    """Facts about a recording that are known without decoding all of it.

    Attributes:
        samples: Length of a channel; 0 where the recording cannot be used.
        sample_rate: In Hz; 0 where it cannot be read.
        channels: 0 where it cannot be read.
        size: Bytes of the file; 0 where it cannot be opened.
        pcm: As of ``AudioFile``.
        problem: Why it cannot be used, in words; empty where it can.
    """

    samples: int
    sample_rate: int
    channels: int
    size: int
    pcm: int
    problem: str


def inspect(source: Source) -> AudioInfo:
    """Return what is known of a recording; never raises for what a file holds, or for its absence.

    Decoded are the samples up to the first two that differ, since a silent recording cannot be used, and the last one
    of a FLAC or MP3 file, since it tells whether the file is whole. A file of floating-point samples, which alone can
    hold NaN, or of unknown length is decoded whole.
    """
    info = AudioInfo(0, 0, 0, 0, -1, "")
    try:
        with AudioFile(source) as file:
            info = AudioInfo(0, file.sample_rate, file.channels, file.size, file.pcm, "")
            return info._replace(samples=_usable_samples(file))
    except ValueError as error:
        return info._replace(problem=str(error))
    except OSError as error:
        return info._replace(problem=error.strerror or str(error))


def _usable_samples(file: AudioFile) -> int:
    """Return the length of a recording that can be used, however short it is.

    Raises:
        ValueError: It has no samples, is silent, damaged as far as it was decoded, or too long.
    """
    decoded = 0
    is_whole = file.samples is None or file.subtype in {"FLOAT", "DOUBLE"}
    if is_whole or is_constant(next(file.blocks(at_once=_FEW), _NOTHING)):
        decoded = _decode_until_sound(file, is_whole=is_whole)
    samples = decoded if file.samples is None else file.samples
    if file.format in {"FLAC", "MP3"} and not is_whole:
        try:
            file.read(start=samples - 1, count=1)
        except ValueError:
            samples = sum(map(len, file.blocks()))  # of a FLAC file an error says how much is there
    if samples > MAX_SECONDS * file.sample_rate:
        raise ValueError(f"is longer than {MAX_SECONDS:g} seconds")
    return samples


def _decode_until_sound(file: AudioFile, *, is_whole: bool) -> int:
    """Return how many samples were decoded until two of them differed, or of the whole recording.

    Raises:
        ValueError: There are none, none differ, the data is damaged, or the recording is too long.
    """
    samples, lowest, highest = 0, np.inf, -np.inf
    for block in file.blocks():
        samples += len(block)
        lowest, highest = min(lowest, block.min()), max(highest, block.max())
        if samples > MAX_SECONDS * file.sample_rate or (lowest < highest and not is_whole):
            break
    if not samples:
        raise ValueError("has no samples")
    if lowest == highest:
        raise ValueError(SILENT)
    return samples


def looks_like_audio(path: str | os.PathLike[str]) -> bool:
    """Return whether a file begins as a recording does, of a format that is read here or of another one."""
    try:
        content = FileContent(path)
    except (OSError, ValueError):
        return False
    try:
        return bool(content_kind(content))
    except OSError:
        return False
    finally:
        content.close()


def iter_audio(source: Source, sample_rate: int, *, max_seconds: float = MAX_SECONDS) -> Iterator[Waveform]:
    """Decode a recording's first channel and resample it, in pieces that need little memory.

    The joined pieces do not depend on how long they are; of a file that has the rate already they are the file's own
    samples.

    Args:
        source: A file's path, or what a file holds.
        sample_rate: Of the pieces, in Hz.
        max_seconds: Longer recordings are refused, whatever their headers say.

    Yields:
        float32 [S], in [-1, 1] but for recordings that are louder.

    Raises:
        ValueError: See ``AudioFile`` and ``AudioFile.blocks``; or it has no samples, or is too long.
        OSError: The file cannot be opened.
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
        yield resampler.rest()


class Resampler:
    """Pieces of a waveform to pieces at another rate; the same samples whatever the pieces are.

    Args:
        rate: Of what comes, in Hz.
        sample_rate: Of what goes, in Hz.

    Raises:
        ValueError: ``rate`` is below 4 or above 384 kHz.
    """

    def __init__(self, rate: int, sample_rate: int) -> None:
        if not MIN_SAMPLE_RATE <= rate <= MAX_SAMPLE_RATE:
            raise ValueError(f"has {rate} Hz, expected {MIN_SAMPLE_RATE:,} to {MAX_SAMPLE_RATE:,}")
        self._stream = None if rate == sample_rate else soxr.ResampleStream(rate, sample_rate, 1, dtype="float32")

    def __call__(self, samples: Waveform) -> Waveform:
        """Return what is certain after these samples [S]; up to a quarter of a second stays behind."""
        return samples if self._stream is None else self._stream.resample_chunk(samples)

    def rest(self) -> Waveform:
        """Return what stayed behind; nothing can follow."""
        return _NOTHING if self._stream is None else self._stream.resample_chunk(_NOTHING, last=True)


def resample(samples: Waveform, rate: int, sample_rate: int) -> Waveform:
    """Return a waveform [S] at another rate, as ``Resampler`` does.

    >>> resample(np.zeros(800, np.float32), 8000, 16000).shape
    (1600,)
    """
    if rate == sample_rate:
        return samples
    resampler = Resampler(rate, sample_rate)
    return np.concatenate([resampler(samples), resampler.rest()])


def check_loudness(samples: NDArray[Any]) -> None:
    """Raise a ValueError for samples [S] that are not finite, or so large that their energy is not."""
    if samples.dtype != np.int16 and not (np.abs(samples) <= MAX_ABS).all():
        raise ValueError("holds samples that are not finite, or beyond 2 ** 31")


def check_length(samples: int, sample_rate: int) -> None:
    """Raise a ValueError for so few samples that nothing can be said of a speaker."""
    if samples < MIN_SECONDS * sample_rate:
        raise ValueError(too_short(samples, sample_rate))


def too_short(samples: int, sample_rate: int) -> str:
    """Return the words for a recording that is too short."""
    return f"is too short: {100 * samples // sample_rate / 100:.2f} seconds, at least {MIN_SECONDS:g} are needed"


def check_silence(samples: NDArray[Any]) -> None:
    """Raise a ValueError for samples [S] that are all the same: all such recordings would seem to be of one speaker."""
    if is_constant(samples):
        raise ValueError(SILENT)


def is_constant(samples: NDArray[Any]) -> bool:
    """Return whether samples [S] are all the same."""
    return not len(samples) or bool(samples.min() == samples.max())


def _frames(sound: soundfile.SoundFile) -> int | None:
    """Return the samples of a stream; None where only decoding tells."""
    return int(sound.frames) if sound.frames < _UNKNOWN else None


def _words(error: soundfile.LibsndfileError) -> str:
    """Return what libsndfile says, but for what it says of an open file whose content means nothing to it."""
    return "Format not recognised." if "does not exist" in error.error_string else error.error_string


def _earliest(*places: int | None) -> int | None:
    return min((place for place in places if place is not None), default=None)


def _broken_off(there: int, announced: int) -> str:
    return f"is broken off: {there:,} of {max(announced, there + 1):,} samples are there"
