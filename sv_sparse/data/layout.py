"""Layout of audio files: where the audio lies, and views of the bytes for what libsndfile reads only in part.

``find_layout`` looks at the first bytes and at the lengths in headers; nothing is decoded. libsndfile then
reads a ``View`` instead of the file: without tags, with a header that counts the frames, or stream by stream.
"""

import os
import re
import stat
import struct
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

# A pipe that has taken a file's place must not block. Only Windows has a text mode.
OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)

# Bytes that are searched at once.
_CHUNK_SIZE = 1 << 20
# Opening a stream takes as long as opening a file.
_MAX_STREAMS = 256
# A few MB per process.
_MAX_CACHED_LAYOUTS = 10_000

# Bytes, or first byte and end of a range of the file.
Piece = bytes | tuple[int, int]


class Layout(NamedTuple):
    """Position of the audio in a file."""

    # Pieces of each stream, in order. Several streams are one recording.
    streams: Sequence[Sequence[Any]]
    # True if libsndfile can read the file as it is.
    is_plain: bool
    # First byte of the samples in a WAV file, -1 for other files.
    pcm_offset: int = -1
    # Fraction of the announced audio that is not there, in [0, 1].
    missing_fraction: float = 0.0
    # True once the frames of an MP3 file have been counted.
    is_indexed: bool = False


class MemoryContent:
    """Content of a file that is in memory; ``size`` is its number of bytes."""

    # Without a name a layout cannot be cached.
    key: tuple[str, int, int] | None = None

    def __init__(self, content: bytes) -> None:
        self._bytes = content
        self.size = len(content)

    def read(self, start: int, count: int) -> bytes:
        """Return up to ``count`` bytes from ``start`` on."""
        return self._bytes[start : start + count]

    def for_soundfile(self) -> "View":
        """Return what soundfile opens."""
        # Not io.BytesIO, which raises errors where damaged headers ask for bytes before the start.
        return View(self, [self._bytes])

    def close(self) -> None:
        """Do nothing."""


class FileContent:
    """Content of a regular file; a ValueError says that it is none."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        # A pipe or device may never end, or never begin.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ValueError("is not a regular file")
        # soundfile gets the descriptor, not the path: it takes some suffixes for formats without a header.
        self._descriptor = os.open(path, OPEN_FLAGS)
        status = os.fstat(self._descriptor)
        # Another process may have replaced the file since the first look.
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise ValueError("is not a regular file")
        self.size = status.st_size
        self.key: tuple[str, int, int] | None = (os.fspath(path), status.st_size, status.st_mtime_ns)

    def read(self, start: int, count: int) -> bytes:
        """Return up to ``count`` bytes from ``start`` on."""
        return read_at(self._descriptor, count, start)

    def for_soundfile(self) -> int:
        """Return what soundfile opens."""
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        return self._descriptor

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


Content = MemoryContent | FileContent


def read_at(descriptor: int, count: int, start: int) -> bytes:
    """Return up to ``count`` bytes of an open file from ``start`` on."""
    if hasattr(os, "pread"):
        return os.pread(descriptor, count, start)
    # Windows has no pread.
    os.lseek(descriptor, start, os.SEEK_SET)
    return os.read(descriptor, count)


class View:
    """Concatenated pieces of a file, with the methods that soundfile needs."""

    def __init__(self, content: Content, pieces: Sequence[Piece]) -> None:
        self._content = content
        self._pieces = pieces
        lengths = []
        for piece in pieces:
            lengths.append(len(piece) if isinstance(piece, bytes) else piece[1] - piece[0])
        self._ends: list[int] = np.cumsum(lengths).tolist()
        self._position = 0
        # soundfile takes a read that fails for the end of the file, so the caller has to look here.
        self.error: OSError | None = None

    def tell(self) -> int:
        """Return the position of the next byte."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Move to a byte, and return its position; -1 if it is negative."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._ends[-1]}[whence]
        # Damaged headers ask for this.
        if base + offset < 0:
            return -1
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        """Fill a buffer as far as there are bytes, and return their number."""
        target = memoryview(buffer).cast("B")
        done = 0
        while done < len(target):
            index = bisect_right(self._ends, self._position)
            if index == len(self._ends):
                break
            piece = self._pieces[index]
            offset = self._position - (self._ends[index - 1] if index else 0)
            count = min(len(target) - done, self._ends[index] - self._position)
            if isinstance(piece, bytes):
                part = piece[offset : offset + count]
            else:
                try:
                    part = self._content.read(piece[0] + offset, count)
                except OSError as error:
                    self.error = error
                    break
            if not part:
                break
            target[done : done + len(part)] = part
            done += len(part)
            self._position += len(part)
        return done


def find_layout(content: Content) -> Layout:
    """Return the position of a file's audio.

    Raises:
        ValueError: the file's own headers say that a part is missing, or it has too many streams.
    """
    start = _skip_leading_tags(content)
    magic = content.read(start, 12)
    end = content.size
    if magic[:4] == b"fLaC":
        # The last 36 bits are the number of samples; 0 means unknown. libsndfile then decodes to the end, into tags.
        total = content.read(start + 21, 5)
        if len(total) == 5 and not (total[0] & 15 or any(total[1:])):
            end = _skip_trailing_tags(content, start)
    layout = Layout([[(start, end)]], is_plain=start == 0 and end == content.size)
    if magic[:4] == b"OggS":
        return _cached(content, layout, _ogg_layout)
    if _parse_frame(magic[:4]) is not None:
        return mp3_layout(content, layout)
    if magic[:4] == b".snd":
        data, length = struct.unpack(">II", magic[4:].ljust(8, b"\0"))
        return _with_announced_length(layout, length, content.size - start - data)
    if magic[:7] == b"NIST_1A":
        return _nist_layout(content, start, layout)
    for container in _CONTAINERS:
        if magic.startswith(container.magic):
            return _chunked_layout(content, start, container, layout)
    return layout


# First bytes of the formats that libsndfile reads, and of some that it does not.
_WAVE = (b"WAVE",)
_FORMS = {b"RIFF": _WAVE, b"RIFX": _WAVE, b"RF64": _WAVE, b"BW64": _WAVE, b"FORM": (b"AIFF", b"AIFC")}
_MAGIC = (b"fLaC", b"OggS", b"caff", b".snd", b"NIST_1A", b"riff\x2e\x91\xcf\x11", b"Creative Voice File")
# AMR, Matroska and WebM, Windows Media, AAC in ADTS (two), Monkey's Audio, WavPack.
_FOREIGN_MAGIC = (
    *(b"#!AMR", b"\x1a\x45\xdf\xa3", b"\x30\x26\xb2\x75\x8e\x66\xcf\x11"),
    *(b"\xff\xf1", b"\xff\xf9", b"MAC ", b"wvpk"),
)


def detect_kind(content: Content) -> str:
    """Return ``audio`` for a file that begins like a recording, ``foreign`` if libsndfile cannot read it, else ""."""
    start = _skip_leading_tags(content)
    magic = content.read(start, 20)
    is_form = magic[8:12] in _FORMS.get(magic[:4], ())
    if is_form or magic.startswith(_MAGIC) or _is_frame_sequence(_Window(content), start, content.size):
        return "audio"
    # MP4 and M4A have this mark behind a length.
    is_foreign = magic[4:8] == b"ftyp" or magic.startswith(_FOREIGN_MAGIC)
    return "foreign" if is_foreign else ""


_layouts: dict[tuple[str, int, int], Layout] = {}


def _cached(content: Content, layout: Layout, search: Callable[[Content, Layout], Layout]) -> Layout:
    """Return the refined layout of a file's present state."""
    # Crops open a file again and again, and a search reads all of it.
    key = content.key
    if key is None:
        return search(content, layout)
    if key not in _layouts:
        refined = search(content, layout)
        if len(_layouts) >= _MAX_CACHED_LAYOUTS:
            _layouts.clear()
        _layouts[key] = refined
    return _layouts[key]


class _Window:
    """Bytes of a file through a chunk in memory, for short reads that go forward."""

    def __init__(self, content: Content) -> None:
        self._content = content
        self._chunk = b""
        self._start = 0
        self.size = content.size

    def read(self, start: int, count: int) -> bytes:
        offset = start - self._start
        if not 0 <= offset <= offset + count <= len(self._chunk):
            self._start = start
            self._chunk = self._content.read(start, max(count, _CHUNK_SIZE))
            offset = 0
        return self._chunk[offset : offset + count]

    def find(self, pattern: re.Pattern[bytes], start: int, max_length: int) -> int:
        """Return the next match of a pattern of up to ``max_length`` bytes; the file's size if there is none."""
        while start < self.size:
            self.read(start, min(max_length, self.size - start))
            match = pattern.search(self._chunk, start - self._start)
            if match is not None:
                return self._start + match.start()
            end = self._start + len(self._chunk)
            # A match may lie across two chunks.
            start = end if end >= self.size else end - max_length + 1
        return self.size


# Tags: ID3 before the audio, ID3v1 and APE behind it


def _skip_leading_tags(content: Content) -> int:
    start = 0
    while length := _tag_length(content.read(start, 32)):
        start += length
    return min(start, content.size)


def _tag_length(head: bytes) -> int:
    """Return the length of the ID3 or APE tag with these first bytes; 0 for none."""
    if head[:3] == b"ID3" and len(head) >= 10 and max(head[6:10]) < 128:
        # Seven bits a byte: at most 256 MiB. Source: ID3v2.4, section 6.2.
        length = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
        has_footer = head[5] & 16
        return 10 + length + (10 if has_footer else 0)
    if head[:3] == b"TAG":
        return 128
    if head[:8] == b"APETAGEX" and len(head) == 32:
        return 32 + int.from_bytes(head[12:16], "little")
    return 0


def _skip_trailing_tags(content: Content, start: int) -> int:
    """Return the end of the audio before ID3v1 tags, APE tags and zeros."""
    end = content.size
    while end - start >= 32:
        footer = content.read(end - 32, 32)
        # The highest bit of an APE tag's flags says that it has a header too.
        length = int.from_bytes(footer[12:16], "little") + (32 if footer[23] >> 7 else 0)
        chunk = content.read(max(start, end - _CHUNK_SIZE), min(_CHUNK_SIZE, end - start))
        num_zeros = len(chunk) - len(chunk.rstrip(b"\0"))
        if end - start >= 128 and content.read(end - 128, 3) == b"TAG":
            end -= 128
        elif footer[:8] == b"APETAGEX" and 32 <= length <= end - start:
            end -= length
        elif num_zeros:
            end -= num_zeros
        else:
            break
    return end


# Containers of chunks: WAV, AIFF, CAF, W64


class _ChunkFormat(NamedTuple):
    """Format of a container's chunks, one of which, ``data_name``, holds the samples."""

    magic: bytes
    # First byte of the first chunk.
    first_chunk: int
    name_size: int
    # A format of ``struct``.
    length_format: str
    data_name: bytes
    # Chunks begin at multiples of it.
    alignment: int
    # Bytes between the length and the samples.
    data_header: int = 0
    # True if the length counts the name and itself.
    length_includes_header: bool = False


_CONTAINERS = (
    _ChunkFormat(b"RIFF", 12, 4, "<I", b"data", 2),
    _ChunkFormat(b"RIFX", 12, 4, ">I", b"data", 2),
    _ChunkFormat(b"RF64", 12, 4, "<I", b"data", 2),
    _ChunkFormat(b"BW64", 12, 4, "<I", b"data", 2),
    _ChunkFormat(b"FORM", 12, 4, ">I", b"SSND", 2, data_header=8),
    _ChunkFormat(b"caff", 8, 4, ">q", b"data", 1, data_header=4),
    _ChunkFormat(
        # W64 names its chunks by GUIDs.
        magic=b"riff\x2e\x91\xcf\x11",
        first_chunk=40,
        name_size=16,
        length_format="<Q",
        data_name=b"data\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a",
        alignment=8,
        length_includes_header=True,
    ),
)


def _chunked_layout(content: Content, start: int, chunks: _ChunkFormat, layout: Layout) -> Layout:
    """Return the layout of a container, with the fraction of its samples that is missing."""
    position = start + chunks.first_chunk
    header_size = chunks.name_size + struct.calcsize(chunks.length_format)
    rf64_length = 0
    while position < content.size:
        header = content.read(position, header_size)
        if len(header) < header_size:
            break
        name = header[: chunks.name_size]
        (length,) = struct.unpack(chunks.length_format, header[chunks.name_size :])
        if chunks.length_includes_header:
            length -= header_size
        # RF64 has the true length here, for which the chunk's own field is too small.
        if name == b"ds64":
            rf64_length = int.from_bytes(content.read(position + header_size + 8, 8), "little")
        if name == chunks.data_name:
            if rf64_length and length == 0xFFFFFFFF:
                length = rf64_length
            data = position + header_size + chunks.data_header
            return _with_data_chunk(content, data, length - chunks.data_header, chunks, layout)
        if length < 0:
            break
        position += header_size + length
        position = start + -(-(position - start) // chunks.alignment) * chunks.alignment
    return layout


def _with_data_chunk(content: Content, data: int, length: int, chunks: _ChunkFormat, layout: Layout) -> Layout:
    available = content.size - data
    if chunks.magic == b"RIFF":
        layout = layout._replace(pcm_offset=data)
    if chunks.magic in {b"RIFF", b"RIFX"} and length == 0 < available:
        # A recorder that was killed never wrote the length; libsndfile reads on if it is unknown. But the file is
        # empty if another chunk follows: a name of four printable characters and a length that fits.
        head = content.read(data, 8)
        is_name = len(head) == 8 and all(32 <= byte < 127 for byte in head[:4])
        if not is_name or int.from_bytes(head[4:], "little") > available - 8:
            ((start, end),) = layout.streams[0]
            pieces = [(start, data - 4), b"\xff\xff\xff\xff", (data, end)]
            return layout._replace(streams=[pieces], is_plain=False)
    return _with_announced_length(layout, length, available)


def _with_announced_length(layout: Layout, length: int, available: int) -> Layout:
    """Set the missing fraction of samples for which a header announces ``length`` bytes."""
    # Programs that do not know the length write the largest number of 31, 32, 63 or 64 bits or somewhat less:
    # sox 0x7ffff000, others the largest number without the header's bytes.
    is_unknown = any(top - (1 << 16) <= length <= top for top in (1 << 31, 1 << 32, 1 << 63, 1 << 64))
    if length <= available or length < 0 or is_unknown:
        return layout
    return layout._replace(missing_fraction=1 - max(0, available) / length)


def _nist_layout(content: Content, start: int, layout: Layout) -> Layout:
    """Return the layout of a NIST SPHERE file, whose header is text."""
    header = content.read(start, 1024)
    fields = dict(re.findall(rb"(sample_count|channel_count|sample_n_bytes) -i (\d+)", header))
    lines = header.split(b"\n")
    if len(lines) < 2 or not lines[1].strip().isdigit() or b"sample_count" not in fields:
        return layout
    length = int(fields[b"sample_count"])
    length *= int(fields.get(b"channel_count", b"1")) * int(fields.get(b"sample_n_bytes", b"1"))
    header_size = int(lines[1])
    return _with_announced_length(layout, length, content.size - start - header_size)


# Ogg

_OGG_PAGE = re.compile(rb"OggS\0")


def _ogg_layout(content: Content, layout: Layout) -> Layout:
    """Return the streams of a chain; tags and other bytes that are in no page are left out."""
    # Source: RFC 3533, on pages and chaining.
    ((start, size),) = layout.streams[0]
    window = _Window(content)
    starts: list[int] = []
    position = end = start
    in_header = False
    while position < size:
        header = window.read(position, 27)
        if header[:5] != b"OggS\0" or len(header) < 27:
            position = window.find(_OGG_PAGE, position + 1, max_length=5)
            continue
        # The segment table holds the lengths of what follows it.
        length = 27 + header[26] + sum(window.read(position + 27, header[26]))
        if position + length > size:
            raise ValueError("is broken off: its last page is not whole")
        is_first_page = bool(header[5] & 2)
        # Streams side by side have their first pages in a row; a first page later on begins the next link.
        if is_first_page and not in_header:
            starts.append(position)
        in_header = is_first_page
        position = end = position + length
    if not starts:
        return layout
    _check_num_streams(len(starts))
    ends = [*starts[1:], end]
    streams = [[stretch] for stretch in zip(starts, ends, strict=True)]
    return Layout(streams, is_plain=streams == [[(0, content.size)]])


def _check_num_streams(count: int) -> None:
    if count > _MAX_STREAMS:
        raise ValueError(f"is joined from {count:,} streams, at most {_MAX_STREAMS} are read")


# MPEG audio. Source: ISO 11172-3 and 13818-3, frame header.

# kbit/s by version (1; 2 and 2.5) and layer.
_BITRATES = {
    (1, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
# Hz by version bits.
_MPEG_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}
_FRAME_START = re.compile(rb"\xff[\xe2-\xe7\xf2-\xf7\xfa-\xff][\x10-\xef].", re.DOTALL)
# Bytes in which a Xing, Info or VBRI header lies.
_XING_SIZE = 64
# kbit/s of a frame with room for a Xing header.
_XING_BITRATE = 64
# Frames of one kind in a row, which other bytes do not look like.
_MIN_FRAMES = 3


class _Frame(NamedTuple):
    """MPEG frame header: its kind, which all frames of a file share, and its length in bytes."""

    kind: tuple[int, int, int]
    length: int


def _parse_frame(header: bytes) -> _Frame | None:
    """Parse the four bytes of an MPEG frame header; None for other bytes."""
    if len(header) < 4 or header[0] != 255 or header[1] & 224 != 224:
        return None
    version = header[1] >> 3 & 3
    layer = 4 - (header[1] >> 1 & 3)
    bitrate = header[2] >> 4
    rate = header[2] >> 2 & 3
    padding = header[2] >> 1 & 1
    # Reserved values, and bitrates that the header does not tell.
    if version == 1 or layer == 4 or bitrate in {0, 15} or rate == 3:
        return None
    kbits = _BITRATES[1 if version == 3 else 2, layer][bitrate - 1]
    hertz = _MPEG_RATES[version][rate]
    if layer == 1:
        length = (12_000 * kbits // hertz + padding) * 4
    elif layer == 3 and version != 3:
        length = 72_000 * kbits // hertz + padding
    else:
        length = 144_000 * kbits // hertz + padding
    return _Frame((version, layer, rate), length)


def mp3_layout(content: Content, layout: Layout) -> Layout:
    """Return the layout of an MP3 file with headers that count all frames, so that libsndfile reads them all."""
    # Without such a header libsndfile divides the file's size by the length of the first frame, and ends too
    # early if the bitrate varies. In concatenated files the header of the first counts its own frames alone.
    return _cached(content, layout, _index_mp3)


@dataclass
class _Mp3Part:
    """One of the files that an MP3 file was concatenated from."""

    kind: tuple[int, int, int]
    # The header that counts the frames: ``Xing``, ``Info`` or ``VBRI``; empty without one.
    xing: bytes
    # Number of frames in that header; 0 if it has none.
    announced: int
    frames: int = 0
    # First byte and end of the ranges with frames; tags and other bytes lie between.
    ranges: list[tuple[int, int]] = field(default_factory=list)


def _index_mp3(content: Content, layout: Layout) -> Layout:
    ((start, end),) = layout.streams[0]
    layout = layout._replace(is_indexed=True)
    parts = _find_mp3_parts(content, start, end)
    # Layers I and II have no Xing headers, and a bitrate that does not vary.
    if not parts or any(part.kind[1] != 3 for part in parts):
        return layout
    _check_num_streams(len(parts))
    streams: list[list[Any]] = []
    for part in parts:
        first, *others = part.ranges
        header = content.read(first[0], 4)
        frames = part.frames - 1 if part.xing else part.frames
        # Some encoders count the header's own frame too.
        if part.announced > frames + 1:
            raise ValueError(f"is broken off: {frames:,} of {part.announced:,} frames are there")
        if part.announced >= frames > 0:
            streams.append([*part.ranges])
        elif frames > 0:
            # The header's frame is replaced by one that counts correctly.
            frame = _parse_frame(header)
            replaced = frame.length if frame is not None and part.xing else 0
            streams.append([_make_xing_frame(header, frames), (first[0] + replaced, first[1]), *others])
    if not streams:
        return layout
    return layout._replace(streams=streams, is_plain=streams == [[(0, content.size)]])


def _find_mp3_parts(content: Content, start: int, end: int) -> list[_Mp3Part]:
    """Return the files that an MP3 file was concatenated from, one for most; other bytes are skipped."""
    window = _Window(content)
    parts: list[_Mp3Part] = []
    position = start
    follows_frame = False
    while position + 4 <= end:
        head = window.read(position, _XING_SIZE)
        frame = _parse_frame(head)
        xing, announced = _parse_xing(head) if frame is not None else (b"", 0)
        is_same_kind = bool(parts) and frame is not None and frame.kind == parts[-1].kind
        is_expected = follows_frame and (is_same_kind or xing)
        if frame is None or not (is_expected or _is_frame_sequence(window, position, end)):
            length = _tag_length(head[:32])
            position = position + length if length else window.find(_FRAME_START, position + 1, max_length=4)
            follows_frame = False
            continue
        if position + frame.length > end:
            break
        if not is_same_kind or xing:
            parts.append(_Mp3Part(frame.kind, xing, announced))
        part = parts[-1]
        part.frames += 1
        range_start = part.ranges.pop()[0] if follows_frame and part.ranges else position
        part.ranges.append((range_start, position + frame.length))
        position += frame.length
        follows_frame = True
    return parts


def _is_frame_sequence(window: _Window, position: int, end: int) -> bool:
    """Return True if several frames of one kind follow each other from here on, or all up to the end."""
    kind = None
    for _ in range(_MIN_FRAMES):
        frame = _parse_frame(window.read(position, 4))
        if frame is None or kind not in {None, frame.kind}:
            return kind is not None and _tag_length(window.read(position, 32)) > 0
        kind = frame.kind
        position += frame.length
        if position + 4 > end:
            return True
    return True


def _parse_xing(head: bytes) -> tuple[bytes, int]:
    """Return the name of a frame's Xing, Info or VBRI header, and the number of frames in it; empty and 0 without."""
    has_crc = not head[1] & 1
    body = head[6:] if has_crc else head[4:]
    # Such a frame has zeros, which are no sound, before the header.
    match = re.match(rb"\0{9,34}(Xing|Info|VBRI)", body)
    if match is None:
        return b"", 0
    flags, announced = struct.unpack(">II", body[match.end() : match.end() + 8].ljust(8, b"\0"))
    return match[1], announced if match[1] != b"VBRI" and flags & 1 else 0


def _make_xing_frame(header: bytes, count: int) -> bytes:
    """Return a silent frame of the kind of ``header`` whose Xing header says that ``count`` frames follow it."""
    is_mpeg1 = header[1] >> 3 & 3 == 3
    bitrates = _BITRATES[1 if is_mpeg1 else 2, 3]
    bitrate_bits = (bitrates.index(_XING_BITRATE) + 1) << 4
    header = bytes([header[0], header[1] | 1, bitrate_bits | header[2] & 12, header[3]])
    frame = _parse_frame(header)
    assert frame is not None, header
    is_mono = header[3] >> 6 == 3
    side_info = {(True, True): 17, (True, False): 32, (False, True): 9, (False, False): 17}[is_mpeg1, is_mono]
    return (header + bytes(side_info) + b"Xing" + struct.pack(">II", 1, count)).ljust(frame.length, b"\0")
