"""Audio files of any kind that libsndfile reads: what they hold, their samples, and the one resampler.

Training, evaluation and use read recordings through this module, so that a file which one of them reads is read by all,
to the same samples. A file is what its first bytes say, whatever its name ends in.

Some files are read by libsndfile only in part, or not at all, though their audio is whole. ``AudioFile`` shows it
another layout of the same bytes then:

- an ID3 tag lies before the first byte of the audio, or tags and padding behind the last one;
- a WAV file has no length, since it was written to a pipe or its recorder was killed;
- an MP3 file has no header that counts its frames, or one that counts too few (files that were joined);
- an Ogg file is a chain of several streams.

Nothing here needs torch or pyarrow: the light installation and the preparation of a million files use it.
"""

import io
import os
import re
import stat
import struct
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import soundfile
import soxr
from numpy.typing import DTypeLike, NDArray

Waveform = NDArray[np.float32]
Source = str | os.PathLike[str] | bytes

SAMPLE_RATE = 16000  # Hz, of everything that is trained on and evaluated
MIN_SECONDS = 0.2  # a shorter recording is a mistake of cutting, and says nothing of a speaker
MAX_SECONDS = 24 * 3600.0
MIN_SAMPLE_RATE, MAX_SAMPLE_RATE = 4_000, 384_000  # Hz
MAX_CHANNELS = 64
MAX_ABS = np.float32(2**31)  # of samples that should lie in [-1, 1]; energies of larger ones overflow

# Files with these endings are taken for recordings where a folder is searched; their content decides what they are.
AUDIO_ENDINGS = (
    *(".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".aifc", ".au", ".snd", ".caf", ".w64"),
    *(".rf64", ".bwf", ".sph", ".nist", ".voc"),
)
# Recordings too, of formats that libsndfile does not read.
OTHER_AUDIO_ENDINGS = (".m4a", ".aac", ".mp4", ".m4b", ".wma", ".amr", ".3gp", ".webm", ".mka", ".ape", ".wv")

# A pipe that has taken a file's place must not block; only Windows knows text files.
OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
BLOCK = 1 << 18  # samples of all channels together that are decoded at once
SILENT = "holds nothing but silence"

_FEW = 1 << 12  # samples, of which some differ in most recordings that are not silent
_NOTHING = np.empty(0, np.float32)
_UNKNOWN = 1 << 62  # libsndfile's number of frames, or more, where the header has none
_CHUNK = 1 << 20  # bytes that are searched at once


Piece = bytes | tuple[int, int]  # or the first byte and the end of a stretch of the file


class Layout(NamedTuple):
    """Where the audio of a file lies.

    Attributes:
        streams: Each stream as its pieces in order. Several streams are one recording.
        is_plain: Whether that is the file as it is.
        pcm: First byte of the samples in a WAV file, -1 for other files.
        missing: Share of the announced audio that is not there, in [0, 1].
        is_counted: Whether the frames of an MP3 file were counted.
    """

    streams: Sequence[Sequence[Any]]
    is_plain: bool
    pcm: int = -1
    missing: float = 0.0
    is_counted: bool = False


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
        self._content = _MemoryContent(source) if isinstance(source, bytes) else _FileContent(source)
        self._sound: soundfile.SoundFile | None = None
        self._fresh: int | None = None  # the stream that is open and of which nothing was read
        try:
            self._read_headers()
        except soundfile.LibsndfileError as error:
            self.close()
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
        self._layout = _layout_of(content)
        sound = self._begin(0)
        if sound.format == "MP3" and not self._layout.is_counted:  # other bytes come before its first frame
            self._layout = _mp3_layout(content, self._layout)
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
        """
        stop = self.samples if count is None else start + count
        place = start
        try:
            for block in self._decode(start, stop, np.dtype(dtype).name, max(1, at_once // self.channels)):
                place += len(block)
                check_loudness(block)
                yield block
        except soundfile.LibsndfileError as error:
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
            if start > place and length is not None:
                try:
                    # An MP3 frame takes bits of those before it, down to the shortest of which the decoder needs.
                    lead = min(start - place, _MP3_LEAD if self.format == "MP3" else 0)
                    sound.seek(start - place - lead)
                    place = start - lead
                except soundfile.LibsndfileError:  # some encodings cannot seek; what lies before is decoded
                    sound = self._begin(number)
            while end is None or place < end:
                samples = sound.read(at_once if end is None else min(at_once, end - place), dtype=dtype, always_2d=True)
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
        file = self._content.whole() if self._layout.is_plain else _View(self._content, pieces)
        self._sound = _Decoder(file, closefd=False)
        return self._sound


class AudioInfo(NamedTuple):
    """What is known of a recording without decoding all of it.

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
    of a FLAC file, since it tells whether the file is whole. A file of floating-point samples, which alone can hold
    NaN, or of unknown length is decoded whole.
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
    if file.format == "FLAC" and not is_whole:
        try:
            file.read(start=samples - 1, count=1)
        except ValueError:
            samples = sum(map(len, file.blocks()))  # raises an error that says how much is there
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
    return f"is broken off: {there:,} of {announced:,} samples are there"


# The bytes of a file, and other layouts of them.


class _Decoder(soundfile.SoundFile):
    """A stream that is read from its beginning: soundfile seeks after each read, for which FLAC decodes a block."""

    def seekable(self) -> bool:
        return False


class _Memory(io.BytesIO):
    """Bytes in which damaged headers may send the reader anywhere."""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        try:
            return super().seek(offset, whence)
        except (ValueError, OverflowError):  # before the beginning, or beyond all numbers
            return -1


class _MemoryContent:
    """The bytes of a file that is in memory."""

    def __init__(self, content: bytes) -> None:
        self._bytes, self.size = content, len(content)

    def at(self, start: int, count: int) -> bytes:
        """Return up to ``count`` bytes from ``start`` on."""
        return self._bytes[start : start + count]

    def whole(self) -> _Memory:
        """Return what soundfile opens."""
        return _Memory(self._bytes)

    def close(self) -> None:
        pass


class _FileContent:
    """The bytes of a regular file.

    Raises:
        ValueError: It is something else, which may never end, or never begin.
        OSError: It cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ValueError("is not a regular file")
        # soundfile gets the descriptor and not the path: it takes some endings for formats without a header.
        self._descriptor = os.open(path, OPEN_FLAGS)
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise ValueError("is not a regular file")
        self.size = status.st_size

    def at(self, start: int, count: int) -> bytes:
        """Return up to ``count`` bytes from ``start`` on."""
        return read_at(self._descriptor, count, start)

    def whole(self) -> int:
        """Return what soundfile opens."""
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        return self._descriptor

    def close(self) -> None:
        os.close(self._descriptor)


_Content = _MemoryContent | _FileContent


def read_at(descriptor: int, count: int, start: int) -> bytes:
    """Return up to ``count`` bytes of an open file from ``start`` on."""
    if hasattr(os, "pread"):
        return os.pread(descriptor, count, start)
    os.lseek(descriptor, start, os.SEEK_SET)  # Windows
    return os.read(descriptor, count)


class _View(io.RawIOBase):
    """A file that is put together from pieces of another one.

    Args:
        content: The other file.
        pieces: Bytes, or the first byte and the end of a stretch of the other file.
    """

    def __init__(self, content: _Content, pieces: Sequence[Piece]) -> None:
        self._content, self._pieces = content, pieces
        lengths = [len(piece) if isinstance(piece, bytes) else piece[1] - piece[0] for piece in pieces]
        self._ends = np.cumsum(lengths).tolist()
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        place = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._ends[-1]}[whence]
        if place < 0:  # damaged headers may send the reader anywhere
            return -1
        self._place = place
        return place

    def readinto(self, buffer: Any, /) -> int:
        target = memoryview(buffer).cast("B")
        done = 0
        while done < len(target):
            index = bisect_right(self._ends, self._place)
            if index == len(self._ends):
                break
            piece = self._pieces[index]
            offset = self._place - (self._ends[index - 1] if index else 0)
            count = min(len(target) - done, self._ends[index] - self._place)
            part = piece[offset : offset + count] if isinstance(piece, bytes) else self._stretch(piece, offset, count)
            if not part:
                break
            target[done : done + len(part)] = part
            done += len(part)
            self._place += len(part)
        return done

    def _stretch(self, piece: tuple[int, int], offset: int, count: int) -> bytes:
        return self._content.at(piece[0] + offset, count)


def _layout_of(content: _Content) -> Layout:
    """Return where the audio of a file lies, by its first bytes."""
    start = _after_tags(content)
    magic = content.at(start, 12)
    if magic[:4] == b"OggS":
        return _ogg_layout(content, start)
    end = content.size
    if magic[:4] == b"fLaC":
        total = content.at(start + 21, 5)
        if len(total) == 5 and not (total[0] & 15 or any(total[1:])):  # 36 bits; 0 means that it is not known
            end = _before_tags(content, start)
    layout = Layout([[(start, end)]], is_plain=start == 0 and end == content.size)
    if _frame(magic[:4]) is not None:
        return _mp3_layout(content, layout)
    if magic[:4] == b".snd":
        data, length = struct.unpack(">II", magic[4:].ljust(8, b"\0"))
        return _with_length(layout, length, content.size - start - data)
    container = next((chunks for chunks in _CONTAINERS if chunks.is_of(magic)), None)
    return layout if container is None else _chunked_layout(content, start, container, layout)


def _after_tags(content: _Content) -> int:
    """Return the first byte behind the ID3 tags that a file begins with."""
    start = 0
    while len(head := content.at(start, 10)) == 10 and head[:3] == b"ID3" and max(head[6:]) < 128:  # at most 256 MiB
        length = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
        start += 10 + length + (10 if head[5] & 16 else 0)  # the flag of a footer
    return min(start, content.size)


def _before_tags(content: _Content, start: int) -> int:
    """Return the end of the audio in front of ID3v1 and APE tags and zeros, none of which belongs to it."""
    end = content.size
    while end > start:
        if content.at(max(start, end - 128), 3) == b"TAG" and end - 128 >= start:
            end -= 128
            continue
        footer = content.at(max(start, end - 32), 32)
        if footer[:8] == b"APETAGEX" and len(footer) == 32:
            length, flags = int.from_bytes(footer[12:16], "little"), int.from_bytes(footer[20:24], "little")
            end -= length + (32 if flags >> 31 else 0)  # a header of the tag itself
            continue
        block = content.at(max(start, end - _CHUNK), min(_CHUNK, end - start))
        audio = len(block.rstrip(b"\0"))
        end -= len(block) - audio
        if audio == len(block):
            break
    return max(start, end)


class _Chunks(NamedTuple):
    """How a container tells where its samples are.

    Attributes:
        magic: Its first bytes.
        first: First byte of the first chunk.
        name: Bytes of a chunk's name.
        length: ``struct`` format of a chunk's length.
        data: Name of the chunk with the samples.
        padding: Chunks begin at multiples of this.
        before: Bytes of the chunk with the samples that come before them.
        counts_head: Whether the length counts the name and itself.
    """

    magic: bytes
    first: int
    name: int
    length: str
    data: bytes
    padding: int
    before: int = 0
    counts_head: bool = False

    def is_of(self, magic: bytes) -> bool:
        return magic.startswith(self.magic)


_CONTAINERS = (
    _Chunks(b"RIFF", 12, 4, "<I", b"data", 2),
    _Chunks(b"RIFX", 12, 4, ">I", b"data", 2),
    _Chunks(b"RF64", 12, 4, "<I", b"data", 2),
    _Chunks(b"BW64", 12, 4, "<I", b"data", 2),
    _Chunks(b"FORM", 12, 4, ">I", b"SSND", 2, before=8),
    _Chunks(b"caff", 8, 4, ">q", b"data", 1, before=4),
    _Chunks(
        b"riff\x2e\x91\xcf\x11",
        40,
        16,
        "<Q",
        b"data\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a",
        8,
        counts_head=True,
    ),
)
_NEXT_CHUNKS = {b"LIST", b"fact", b"id3 ", b"ID3 ", b"bext", b"cue ", b"JUNK", b"PEAK", b"smpl", b"inst", b"acid"}


def _chunked_layout(content: _Content, start: int, chunks: _Chunks, layout: Layout) -> Layout:
    """Return the layout of a container, with what it says of its samples' length and whether they are there."""
    place, head = start + chunks.first, chunks.name + struct.calcsize(chunks.length)
    true_length = None  # of the samples in RF64, whose own field is too small
    while place < content.size and len(chunk := content.at(place, head)) == head:
        name = chunk[: chunks.name]
        (length,) = struct.unpack(chunks.length, chunk[chunks.name :])
        length -= head if chunks.counts_head else 0
        if name == b"ds64":
            true_length = int.from_bytes(content.at(place + head + 8, 8), "little")
        if name == chunks.data:
            length = true_length if true_length and length == 0xFFFFFFFF else length
            return _with_data(content, place, head, length, chunks, layout)
        if length < 0:
            break
        place += head + length
        place = start + -(-(place - start) // chunks.padding) * chunks.padding
    return layout


def _with_data(content: _Content, place: int, head: int, length: int, chunks: _Chunks, layout: Layout) -> Layout:
    """As ``_chunked_layout``, for the chunk of samples at ``place``, which says that it has ``length`` bytes."""
    data = place + head + chunks.before
    length -= chunks.before
    there = content.size - data
    if chunks.magic in {b"RIFF", b"RIFX"}:
        layout = layout._replace(pcm=data if chunks.magic == b"RIFF" else -1)
        if length == 0 and there > 0 and content.at(data, 4) not in _NEXT_CHUNKS:
            # A recorder that was killed never came back to write the length; libsndfile reads on where it is unknown.
            (pieces,) = layout.streams
            ((first, end),) = pieces
            patched = [(first, data - 4), b"\xff\xff\xff\xff", (data, end)]
            return layout._replace(streams=[patched], is_plain=False)
    return _with_length(layout, length, there)


def _with_length(layout: Layout, length: int, there: int) -> Layout:
    """Return the layout with the share of the samples that is missing where ``length`` bytes are announced."""
    if length <= there or length < 0 or _is_endless(length):
        return layout
    return layout._replace(missing=1 - max(0, there) / length)


def _is_endless(length: int) -> bool:
    """Return whether a length is what programs write that do not know it: the largest number, or somewhat less.

    sox writes 0x7ffff000, others the largest number without the header's bytes, of 31, 32, 63 or 64 bits.
    """
    return any(top - (1 << 16) <= length <= top for top in (1 << 31, 1 << 32, 1 << 63, 1 << 64))


def _ogg_layout(content: _Content, start: int) -> Layout:
    """Return the streams of a chain; tags and other bytes that are in no page are left out.

    Source: RFC 3533, of pages and of chaining.
    """
    begins: list[int] = []  # of each stream
    place = end = start
    in_head = False
    while len(head := content.at(place, 27)) == 27:
        if head[:4] != b"OggS":
            place = _find(content, b"OggS", place)
            if place < 0:
                break
            continue
        table = content.at(place + 27, head[26])
        length = 27 + head[26] + sum(table)
        if place + length > content.size:
            break
        is_begin = bool(head[5] & 2)
        if is_begin and not in_head:
            begins.append(place)
        in_head = is_begin
        place = end = place + length
    if not begins:
        return Layout([[(start, content.size)]], is_plain=start == 0)
    ends = [*begins[1:], end]
    is_plain = len(begins) == 1 and begins[0] == 0 and end == content.size
    return Layout([[stretch] for stretch in zip(begins, ends, strict=True)], is_plain)


def _find(content: _Content, what: bytes, start: int) -> int:
    """Return where some bytes occur next from ``start`` on, -1 for nowhere."""
    while block := content.at(start, _CHUNK):
        place = block.find(what)
        if place >= 0:
            return start + place
        if start + len(block) >= content.size:
            break
        start += len(block) - len(what) + 1
    return -1


# MPEG audio: kbit/s by version (1; 2 and 2.5) and layer, Hz by version. Source: ISO 11172-3 and 13818-3, frame header.
_BITRATES = {
    (1, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_MPEG_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}
_MP3_SLACK = 3 * 1152  # samples
_MP3_LEAD = 32 * 1152  # samples that are decoded before the first one that is wanted
_HEADER = 64  # bytes in which a frame says how many others there are
_MP3_BITRATE = 64  # kbit/s of a frame that has room for a count


class _Frame(NamedTuple):
    """An MPEG frame header: ``kind`` is the same for all frames of a file."""

    kind: tuple[int, int, int]
    length: int


def _frame(head: bytes) -> _Frame | None:
    """Return what four bytes say if they are the header of an MPEG frame; None for other bytes."""
    if len(head) < 4 or head[0] != 255 or head[1] & 224 != 224:
        return None
    version, layer = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3)
    bitrate, rate, padding = head[2] >> 4, head[2] >> 2 & 3, head[2] >> 1 & 1
    if version == 1 or layer == 4 or bitrate in {0, 15} or rate == 3:
        return None
    kbits = _BITRATES[1 if version == 3 else 2, layer][bitrate - 1]
    hertz = _MPEG_RATES[version][rate]
    if layer == 1:
        return _Frame((version, layer, rate), (12_000 * kbits // hertz + padding) * 4)
    factor = 72_000 if layer == 3 and version != 3 else 144_000
    return _Frame((version, layer, rate), factor * kbits // hertz + padding)


class _Mpeg(NamedTuple):
    """Frames of an MP3 file from a header that counts them, or from the first one, up to the next such header.

    Attributes:
        first: First byte of the first frame.
        last: The byte after the last whole frame.
        frames: How many there are, the header among them.
        tag: What the header is: ``Xing``, ``Info`` or ``VBRI``; empty for none.
        announced: How many frames the header says there are, 0 where it does not.
    """

    first: int
    last: int
    frames: int
    tag: bytes
    announced: int


def _mp3_layout(content: _Content, layout: Layout) -> Layout:
    """Return a layout with headers that count all frames, so that libsndfile reads them all.

    Without a header libsndfile divides the bytes by the length of the first frame, and ends too early where the
    bitrate varies. Where files were joined, the header of the first one counts its own frames alone.
    """
    ((start, end),) = layout.streams[0]
    layout = layout._replace(is_counted=True)
    streams: list[list[Any]] = []
    for part in _mpeg_parts(content, start, end):
        head = content.at(part.first, 4)
        frame = _frame(head)
        if frame is None or frame.kind[1] != 3:
            return layout
        frames = part.frames - 1 if part.tag else part.frames  # the header is a frame of its own
        if part.announced > frames + 1:  # some encoders count the header too
            raise ValueError(f"is broken off: {frames:,} of {part.announced:,} frames are there")
        if part.announced >= frames > 0:
            streams.append([(part.first, part.last)])
        elif frames > 0:
            behind_header = part.first + (frame.length if part.tag else 0)
            streams.append([_count_header(head, frames), (behind_header, part.last)])
    if not streams:
        return layout
    return layout._replace(streams=streams, is_plain=streams == [[(0, content.size)]])


def _mpeg_parts(content: _Content, start: int, end: int) -> list[_Mpeg]:
    """Return the files that an MP3 file was joined from, one for most; bytes between frames are passed over."""
    parts: list[_Mpeg] = []
    kind: tuple[int, int, int] | None = None
    place, block, origin = start, b"", start
    while place + 4 <= end:
        if not origin <= place or place + _HEADER > origin + len(block) < end:
            origin, block = place, content.at(place, min(_CHUNK, end - place))
        frame = _frame(block[place - origin : place - origin + 4])
        tag, announced = _frame_count(block[place - origin : place - origin + _HEADER]) if frame else (b"", 0)
        if frame is not None and kind is None:
            following = _frame(content.at(place + frame.length, 4))
            if following is not None and following.kind != frame.kind:
                frame = None  # bytes that look like a frame by chance
        if frame is None or (frame.kind != kind and kind is not None and not tag):
            skip = block.find(b"\xff", place - origin + 1)
            place = origin + skip if skip >= 0 else max(origin + len(block) - 3, place + 1)
            continue
        if place + frame.length > end:
            break
        if kind is None or tag:
            kind = frame.kind
            parts.append(_Mpeg(place, place, 0, tag, announced))
        place += frame.length
        parts[-1] = parts[-1]._replace(last=place, frames=parts[-1].frames + 1)
    return parts


def _frame_count(begin: bytes) -> tuple[bytes, int]:
    """Return the tag of a frame that counts the others, and their number; empty and 0 for another frame.

    Such a frame has zeros, no sound, before its tag.
    """
    if any(begin[4:13]):
        return b"", 0
    tag = re.match(rb".{4}\0{9,34}(Xing|Info|VBRI)", begin, re.DOTALL)
    if tag is None:
        return b"", 0
    flags, announced = struct.unpack(">II", begin[tag.end() : tag.end() + 8].ljust(8, b"\0"))
    return tag[1], announced if tag[1] != b"VBRI" and flags & 1 else 0


def _count_header(head: bytes, count: int) -> bytes:
    """Return a frame like one of which ``head`` is the header, without sound, that says how many frames follow it."""
    versions = _BITRATES[1 if head[1] >> 3 & 3 == 3 else 2, 3]
    head = bytes([head[0], head[1] | 1, (versions.index(_MP3_BITRATE) + 1) << 4 | head[2] & 12, head[3]])
    frame = _frame(head)
    assert frame is not None, head
    is_mono = head[3] >> 6 == 3
    side = {(True, True): 17, (True, False): 32, (False, True): 9, (False, False): 17}[head[1] >> 3 & 3 == 3, is_mono]
    return (head + bytes(side) + b"Xing" + struct.pack(">II", 1, count)).ljust(frame.length, b"\0")
