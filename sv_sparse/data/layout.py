"""The place of the audio in a file, and other layouts of its bytes, for files that libsndfile reads only in part.

``layout_of`` looks at the first bytes and at what the format says of lengths; nothing is decoded. A ``View`` is what
soundfile reads then.
"""

import io
import os
import re
import stat
import struct
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

# A pipe that has taken a file's place must not block; only Windows knows text files.
OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)

_CHUNK = 1 << 20  # bytes that are searched at once
_MAX_STREAMS = 256  # of one file; each takes as long to open as a file
_MAX_LAYOUTS = 10_000  # that a process remembers


Piece = bytes | tuple[int, int]  # or the first byte and the end of a stretch of the file


class Layout(NamedTuple):
    """The place of the audio in a file.

    Attributes:
        streams: Each stream as its pieces in order. Several streams are one recording.
        is_plain: Whether that is the file as it is.
        pcm: First byte of the samples in a WAV file, -1 for other files.
        missing: Share of the announced audio that is not there, in [0, 1].
        is_searched: Whether the frames of an MP3 file were searched for.
    """

    streams: Sequence[Sequence[Any]]
    is_plain: bool
    pcm: int = -1
    missing: float = 0.0
    is_searched: bool = False


class _Memory(io.BytesIO):
    """Bytes in which damaged headers may send the reader anywhere."""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        try:
            return super().seek(offset, whence)
        except (ValueError, OverflowError):  # before the beginning, or beyond all numbers
            return -1


class MemoryContent:
    """The bytes of a file that is in memory.

    Attributes:
        size: How many there are.
        key: None: what is in memory has no name.
    """

    key: tuple[str, int, int] | None = None

    def __init__(self, content: bytes) -> None:
        self._bytes, self.size = content, len(content)

    def at(self, start: int, count: int) -> bytes:
        """Return up to ``count`` bytes from ``start`` on."""
        return self._bytes[start : start + count]

    def whole(self) -> io.BytesIO:
        """Return what soundfile opens."""
        return _Memory(self._bytes)

    def close(self) -> None:
        """Do nothing; a file would be closed."""


class FileContent:
    """The bytes of a regular file.

    Attributes:
        size: How many there are.
        key: The file's path, size and time of change, by which its state is known.

    Raises:
        ValueError: It is something else, which may never end, or never begin.
        OSError: It cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ValueError("is not a regular file")
        # soundfile gets the descriptor and not the path: it takes some endings for formats without a header.
        self._descriptor = os.open(path, OPEN_FLAGS)
        try:
            status = os.fstat(self._descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ValueError("is not a regular file")
        except BaseException:
            self.close()
            raise
        self.size = status.st_size
        self.key: tuple[str, int, int] | None = (os.fspath(path), status.st_size, status.st_mtime_ns)

    def at(self, start: int, count: int) -> bytes:
        """Return up to ``count`` bytes from ``start`` on."""
        return read_at(self._descriptor, count, start)

    def whole(self) -> int:
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
    os.lseek(descriptor, start, os.SEEK_SET)  # Windows
    return os.read(descriptor, count)


class View(io.RawIOBase):
    """A file that is put together from pieces of another one.

    Args:
        content: The other file.
        pieces: Bytes, or the first byte and the end of a stretch of the other file.

    Attributes:
        error: What reading the other file failed with. soundfile takes a read that fails for the end of a file, so
            whoever reads has to look here.
    """

    def __init__(self, content: Content, pieces: Sequence[Piece]) -> None:
        self._content, self._pieces = content, pieces
        lengths = [len(piece) if isinstance(piece, bytes) else piece[1] - piece[0] for piece in pieces]
        self._ends = np.cumsum(lengths).tolist()
        self._place = 0
        self.error: OSError | None = None

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the place of the next byte."""
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Move to a byte; -1 where there can be none."""
        place = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._ends[-1]}[whence]
        if place < 0:  # damaged headers may send the reader anywhere
            return -1
        self._place = place
        return place

    def readinto(self, buffer: Any, /) -> int:
        """Fill a buffer as far as there are bytes."""
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
        try:
            return self._content.at(piece[0] + offset, count)
        except OSError as error:
            self.error = error
            return b""


def layout_of(content: Content) -> Layout:
    """Return where the audio of a file lies.

    Raises:
        ValueError: The file says of itself that a part is missing, or has too many streams.
    """
    start = _after_tags(content)
    magic = content.at(start, 12)
    end = content.size
    if magic[:4] == b"fLaC":
        total = content.at(start + 21, 5)
        if len(total) == 5 and not (total[0] & 15 or any(total[1:])):  # 36 bits; 0 means that it is not known
            end = _before_tags(content, start)
    layout = Layout([[(start, end)]], is_plain=start == 0 and end == content.size)
    if magic[:4] == b"OggS":
        return _remembered(content, lambda: _ogg_layout(content, layout))
    if _frame(magic[:4]) is not None:
        return mp3_layout(content, layout)
    if magic[:4] == b".snd":
        data, length = struct.unpack(">II", magic[4:].ljust(8, b"\0"))
        return _with_length(layout, length, content.size - start - data)
    if magic[:7] == b"NIST_1A":
        return _nist_layout(content, start, layout)
    container = next((chunks for chunks in _CONTAINERS if chunks.is_of(magic)), None)
    return layout if container is None else _chunked_layout(content, start, container, layout)


def content_kind(content: Content) -> str:
    """Return what a file is by its first bytes: ``audio``; ``foreign`` where libsndfile cannot read it; or empty."""
    start = _after_tags(content)
    magic = content.at(start, 20)
    is_form = magic[:4] in _FORMS and magic[8:12] in _FORMS[magic[:4]]
    if is_form or magic.startswith(_MAGIC) or _is_run(_Window(content), start, content.size):
        return "audio"
    return "foreign" if magic[4:8] == b"ftyp" or magic.startswith(_FOREIGN) else ""


_WAVE = (b"WAVE",)
_FORMS = {b"RIFF": _WAVE, b"RIFX": _WAVE, b"RF64": _WAVE, b"BW64": _WAVE, b"FORM": (b"AIFF", b"AIFC")}
_MAGIC = (b"fLaC", b"OggS", b"caff", b".snd", b"NIST_1A", b"riff\x2e\x91\xcf\x11", b"Creative Voice File")
_FOREIGN = (  # AMR; Matroska and WebM; Windows Media; AAC in ADTS; Monkey's Audio; WavPack
    *(b"#!AMR", b"\x1a\x45\xdf\xa3", b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", b"\xff\xf1", b"\xff\xf9", b"MAC ", b"wvpk"),
)


def mp3_layout(content: Content, layout: Layout) -> Layout:
    """Return a layout of an MP3 file with headers that count all frames, so that libsndfile reads them all.

    Without a header libsndfile divides the bytes by the length of the first frame, and ends too early where the
    bitrate varies. Where files were joined, the header of the first one counts its own frames alone.

    Raises:
        ValueError: A header counts more frames than there are, or too many files were joined.
    """
    return _remembered(content, lambda: _counted_layout(content, layout))


_layouts: dict[tuple[str, int, int], Layout] = {}


def _remembered(content: Content, make: Callable[[], Layout]) -> Layout:
    """Return the layout that was made of the same state of the same file, since crops open a file again and again."""
    if content.key is None:
        return make()
    layout = _layouts.get(content.key)
    if layout is None:
        layout = make()
        if len(_layouts) >= _MAX_LAYOUTS:
            _layouts.clear()
        _layouts[content.key] = layout
    return layout


class _Window:
    """The bytes of a file by way of a block in memory, for steps that are short and go forward."""

    def __init__(self, content: Content) -> None:
        self._content, self._block, self._first = content, b"", 0
        self.size = content.size

    def at(self, start: int, count: int) -> bytes:
        """Return up to ``count`` bytes from ``start`` on."""
        offset = start - self._first
        if not 0 <= offset <= offset + count <= len(self._block):
            self._first, self._block, offset = start, self._content.at(start, max(count, _CHUNK)), 0
        return self._block[offset : offset + count]

    def find(self, pattern: re.Pattern[bytes], start: int, overlap: int) -> int:
        """Return where a pattern of up to ``overlap`` bytes occurs next from ``start`` on; the size if nowhere."""
        while start < self.size:
            self.at(start, min(overlap, self.size - start))
            match = pattern.search(self._block, start - self._first)
            if match is not None:
                return self._first + match.start()
            end = self._first + len(self._block)
            start = end if end >= self.size else end - overlap + 1
        return self.size


def _after_tags(content: Content) -> int:
    """Return the first byte behind the ID3 tags that a file begins with."""
    start = 0
    while length := _tag_length(content.at(start, 32)):
        start += length
    return min(start, content.size)


def _tag_length(begin: bytes) -> int:
    """Return the bytes of the tag that begins here, ID3 or APE; 0 for none."""
    if begin[:3] == b"ID3" and len(begin) >= 10 and max(begin[6:10]) < 128:  # so at most 256 MiB
        length = begin[6] << 21 | begin[7] << 14 | begin[8] << 7 | begin[9]
        return 10 + length + (10 if begin[5] & 16 else 0)  # the flag of a footer
    if begin[:3] == b"TAG":
        return 128
    if begin[:8] == b"APETAGEX" and len(begin) == 32:
        return 32 + int.from_bytes(begin[12:16], "little")
    return 0


def _before_tags(content: Content, start: int) -> int:
    """Return the end of the audio in front of ID3v1 and APE tags and zeros, none of which belongs to it."""
    end = content.size
    while end - start >= 32:
        footer = content.at(end - 32, 32)
        length = int.from_bytes(footer[12:16], "little") + (32 if footer[23] >> 7 else 0)  # with a header of its own
        block = content.at(max(start, end - _CHUNK), min(_CHUNK, end - start))
        zeros = len(block) - len(block.rstrip(b"\0"))
        if end - start >= 128 and content.at(end - 128, 3) == b"TAG":
            end -= 128
        elif footer[:8] == b"APETAGEX" and 32 <= length <= end - start:
            end -= length
        elif zeros:
            end -= zeros
        else:
            break
    return end


class _Chunks(NamedTuple):
    """Format of the chunks of a container, one of which holds the samples.

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


def _chunked_layout(content: Content, start: int, chunks: _Chunks, layout: Layout) -> Layout:
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


def _with_data(content: Content, place: int, head: int, length: int, chunks: _Chunks, layout: Layout) -> Layout:
    """As ``_chunked_layout``, for the chunk of samples at ``place``, which says that it has ``length`` bytes."""
    data = place + head + chunks.before
    length -= chunks.before
    there = content.size - data
    if chunks.magic in {b"RIFF", b"RIFX"}:
        layout = layout._replace(pcm=data if chunks.magic == b"RIFF" else -1)
        if length == 0 and there > 0 and not _is_chunk(content.at(data, 8), there):
            # A recorder that was killed never came back to write the length; libsndfile reads on where it is unknown.
            (pieces,) = layout.streams
            ((first, end),) = pieces
            patched = [(first, data - 4), b"\xff\xff\xff\xff", (data, end)]
            return layout._replace(streams=[patched], is_plain=False)
    return _with_length(layout, length, there)


def _is_chunk(begin: bytes, there: int) -> bool:
    """Return whether a chunk of a WAV file begins here: a name of four printable characters, a length that fits."""
    is_name = len(begin) == 8 and all(32 <= byte < 127 for byte in begin[:4])
    return is_name and int.from_bytes(begin[4:], "little") <= there - 8


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


def _nist_layout(content: Content, start: int, layout: Layout) -> Layout:
    """Return the layout of a NIST SPHERE file, whose head is text."""
    head = content.at(start, 1024)
    fields = dict(re.findall(rb"(sample_count|channel_count|sample_n_bytes|header_bytes) -i (\d+)", head))
    lines = head.split(b"\n")
    if len(lines) < 2 or not lines[1].strip().isdigit() or b"sample_count" not in fields:
        return layout
    count, channels, width = (
        int(fields.get(name, b"1")) for name in (b"sample_count", b"channel_count", b"sample_n_bytes")
    )
    return _with_length(layout, count * channels * width, content.size - start - int(lines[1]))


_PAGE = re.compile(rb"OggS\0")


def _ogg_layout(content: Content, layout: Layout) -> Layout:
    """Return the streams of a chain; tags and other bytes that are in no page are left out.

    Source: RFC 3533, of pages and of chaining.

    Raises:
        ValueError: The last page is not whole, or there are too many streams.
    """
    ((start, size),) = layout.streams[0]
    window = _Window(content)
    begins: list[int] = []  # of each stream
    place = end = start
    in_head = False
    while place < size:
        head = window.at(place, 27)
        if head[:5] != b"OggS\0" or len(head) < 27:
            place = window.find(_PAGE, place + 1, overlap=5)
            continue
        length = 27 + head[26] + sum(window.at(place + 27, head[26]))
        if place + length > size:
            raise ValueError("is broken off: its last page is not whole")
        is_begin = bool(head[5] & 2)
        if is_begin and not in_head:
            begins.append(place)
        in_head = is_begin
        place = end = place + length
    if not begins:
        return layout
    _check_streams(len(begins))
    ends = [*begins[1:], end]
    is_plain = len(begins) == 1 and begins[0] == 0 and end == content.size
    return Layout([[stretch] for stretch in zip(begins, ends, strict=True)], is_plain)


def _check_streams(count: int) -> None:
    if count > _MAX_STREAMS:
        raise ValueError(f"is joined from {count:,} streams, at most {_MAX_STREAMS} are read")


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
_FRAME = re.compile(rb"\xff[\xe2-\xe7\xf2-\xf7\xfa-\xff][\x10-\xef].", re.DOTALL)  # how a frame may begin
_COUNTING = 64  # bytes in which a frame says how many others there are
_COUNTING_BITRATE = 64  # kbit/s of a frame that has room for it
_RUN = 3  # frames of one kind in a row, which no other bytes look like


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
    """Frames of an MP3 file from one that counts the others, or the first one, up to the next of that sort.

    Attributes:
        kind: Of the frames.
        frames: How many there are.
        stretches: First byte and end of the stretches that the frames lie in; between them are tags and other bytes.
        tag: What the counting frame is, ``Xing``, ``Info`` or ``VBRI``; empty where none counts.
        announced: How many others the counting frame says there are, 0 where it does not.
    """

    kind: tuple[int, int, int]
    frames: int
    stretches: list[tuple[int, int]]
    tag: bytes
    announced: int


def _counted_layout(content: Content, layout: Layout) -> Layout:
    """See ``mp3_layout``."""
    ((start, end),) = layout.streams[0]
    layout = layout._replace(is_searched=True)
    parts = _mpeg_parts(content, start, end)
    if not parts or any(part.kind[1] != 3 for part in parts):
        return layout  # layers I and II have no counting frames, and bitrates that do not vary
    _check_streams(len(parts))
    streams: list[list[Any]] = []
    for part in parts:
        first, *others = part.stretches
        head = content.at(first[0], 4)
        frames = part.frames - 1 if part.tag else part.frames
        if part.announced > frames + 1:  # some encoders count the counting frame too
            raise ValueError(f"is broken off: {frames:,} of {part.announced:,} frames are there")
        if part.announced >= frames > 0:
            streams.append([*part.stretches])
        elif frames > 0:
            frame = _frame(head)
            counting = frame.length if frame is not None and part.tag else 0
            streams.append([_counting_frame(head, frames), (first[0] + counting, first[1]), *others])
    if not streams:
        return layout
    return layout._replace(streams=streams, is_plain=streams == [[(0, content.size)]])


def _mpeg_parts(content: Content, start: int, end: int) -> list[_Mpeg]:
    """Return the files that an MP3 file was joined from, one for most; bytes between frames are passed over."""
    window = _Window(content)
    parts: list[_Mpeg] = []
    place = start
    follows = False  # whether the byte before this one is the last of a frame
    while place + 4 <= end:
        begin = window.at(place, _COUNTING)
        frame = _frame(begin)
        tag, announced = _counted(begin) if frame is not None else (b"", 0)
        is_same = bool(parts) and frame is not None and frame.kind == parts[-1].kind
        if frame is None or not ((follows and (is_same or tag)) or _is_run(window, place, end)):
            place = _next_frame(window, place, begin)
            follows = False
            continue
        if place + frame.length > end:
            break
        if not is_same or tag:
            parts.append(_Mpeg(frame.kind, 0, [], tag, announced))
        part, stretch = parts[-1], (place, place + frame.length)
        if follows and part.stretches:
            stretch = (part.stretches.pop()[0], stretch[1])
        part.stretches.append(stretch)
        parts[-1] = part._replace(frames=part.frames + 1)
        place += frame.length
        follows = True
    return parts


def _next_frame(window: _Window, place: int, begin: bytes) -> int:
    """Return where the next frame may begin: behind the tag that begins here, or where bytes look like one."""
    length = _tag_length(begin[:32])
    return place + length if length else window.find(_FRAME, place + 1, overlap=4)


def _is_run(window: _Window, place: int, end: int) -> bool:
    """Return whether several frames of one kind follow each other from here on, or all up to the end."""
    kind = None
    for _ in range(_RUN):
        frame = _frame(window.at(place, 4))
        if frame is None or kind not in {None, frame.kind}:
            return kind is not None and _tag_length(window.at(place, 32)) > 0
        kind, place = frame.kind, place + frame.length
        if place + 4 > end:
            return True
    return True


def _counted(begin: bytes) -> tuple[bytes, int]:
    """Return the tag of a frame that counts the others, and their number; empty and 0 for another frame.

    Such a frame has zeros, no sound, before its tag.
    """
    behind_head = begin[4:] if begin[1] & 1 else begin[6:]  # a check sum comes first
    if any(behind_head[:9]):
        return b"", 0
    tag = re.match(rb"\0{9,34}(Xing|Info|VBRI)", behind_head)
    if tag is None:
        return b"", 0
    flags, announced = struct.unpack(">II", behind_head[tag.end() : tag.end() + 8].ljust(8, b"\0"))
    return tag[1], announced if tag[1] != b"VBRI" and flags & 1 else 0


def _counting_frame(head: bytes, count: int) -> bytes:
    """Return a frame like one of which ``head`` is the header, without sound, that says how many frames follow it."""
    versions = _BITRATES[1 if head[1] >> 3 & 3 == 3 else 2, 3]
    head = bytes([head[0], head[1] | 1, (versions.index(_COUNTING_BITRATE) + 1) << 4 | head[2] & 12, head[3]])
    frame = _frame(head)
    assert frame is not None, head
    is_mono = head[3] >> 6 == 3
    side = {(True, True): 17, (True, False): 32, (False, True): 9, (False, False): 17}[head[1] >> 3 & 3 == 3, is_mono]
    return (head + bytes(side) + b"Xing" + struct.pack(">II", 1, count)).ljust(frame.length, b"\0")
