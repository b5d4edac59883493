"""What a container file says about itself: how long it should be, and which part of the picture counts.

Two questions FFmpeg does not answer through its Python bindings, answered by walking the outer boxes of a file:

- `declared_bytes`: the length the file claims, so that a cut-off download is told from a short clip;
- the **clean aperture** (`clap`, ISO/IEC 14496-12 section 12.1.4) of an MP4. H.264 in 4:2:0 stores even sides only, and
  its own cropping moves in steps of two pixels, so a 65x47 clip is stored as 66x48 with its last row and column
  repeated, and the aperture says that 65x47 of it is the picture.
"""

import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_PARENTS = (b"moov", b"trak", b"mdia", b"minf", b"stbl")
_VIDEO_ENTRY = 8 + 78  # a VisualSampleEntry's own fields come before its child boxes


def declared_bytes(file: BinaryIO) -> int | None:
    """Bytes the file says it should have (MP4/MOV, Matroska/WebM, AVI), or None where the format does not say."""
    file.seek(0)
    head = file.read(12)
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return _matroska_bytes(file)
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return 8 + size if (size := struct.unpack("<I", head[4:8])[0]) else None
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        return max((end for _, _, _, end in _walk(file, 0, _length(file))), default=None)
    return None


def clean_aperture(file: BinaryIO) -> tuple[int, int, float, float] | None:
    """(width, height, x, y): the picture's size in pixels and its centre's offset from the stored centre; or None."""
    for kind, start, end in _leaves(file, 0, _length(file)):
        if kind == b"clap" and end - start >= 32:
            file.seek(start)
            wn, wd, hn, hd, xn, xd, yn, yd = struct.unpack(">IIIIiIiI", file.read(32))
            if all((wd, hd, xd, yd)) and wn % wd == 0 and hn % hd == 0:
                return wn // wd, hn // hd, xn / xd, yn / yd
    return None


def add_clean_aperture(path: Path, width: int, height: int, stored_width: int, stored_height: int) -> None:
    """Makes the top left width x height of the one-track MP4 at `path` count (its `moov` stands before its `mdat`)."""
    x, y = width - stored_width, height - stored_height  # of the centre, in half pixels
    box = struct.pack(">I4sIIIIiIiI", 40, b"clap", width, 1, height, 1, x, 2, y, 2)
    with open(path, "rb") as file:
        tops = {kind: (at, end) for kind, at, _, end in _walk(file, 0, _length(file))}
        at, end = tops[b"moov"]
        file.seek(0)
        before, moov = file.read(at), bytearray(file.read(end - at))
        _grow(moov, 0, len(moov), box, width, height)
        part = path.with_name(path.name + ".clap")
        with open(part, "wb") as out:
            out.write(before + moov)
            file.seek(end)
            shutil.copyfileobj(file, out)
    part.replace(path)


def _grow(moov: bytearray, start: int, end: int, box: bytes, width: int, height: int) -> int:
    """Puts `box` into the sample entry found under [start, end), moving what has to move; returns bytes added."""
    added, at = 0, start
    while at < end + added:
        size, kind = struct.unpack_from(">I4s", moov, at)
        grown = 0
        if kind in _PARENTS:
            grown = _grow(moov, at + 8, at + size, box, width, height)
        elif kind == b"stsd":
            (entry,) = struct.unpack_from(">I", moov, at + 16)
            moov[at + 16 + entry : at + 16 + entry] = box
            struct.pack_into(">I", moov, at + 16, entry + len(box))
            grown = len(box)
        elif kind == b"tkhd":
            struct.pack_into(">II", moov, at + size - 8, width << 16, height << 16)  # 16.16 fixed point
        elif kind in (b"stco", b"co64"):  # the media itself moves back by the box's length
            cell = ">%dI" if kind == b"stco" else ">%dQ"
            (count,) = struct.unpack_from(">I", moov, at + 12)
            offsets = struct.unpack_from(cell % count, moov, at + 16)
            struct.pack_into(cell % count, moov, at + 16, *(offset + len(box) for offset in offsets))
        struct.pack_into(">I", moov, at, size + grown)
        at, added = at + size + grown, added + grown
    return added


def _length(file: BinaryIO) -> int:
    return file.seek(0, 2)


def _walk(file: BinaryIO, start: int, end: int) -> Iterator[tuple[bytes, int, int, int]]:
    """(kind, start of the box, start of its payload, end of the box) of each box in [start, end), in order."""
    at = start
    while at + 8 <= end:
        file.seek(at)
        size, kind = struct.unpack(">I4s", file.read(8))
        payload = at + 8
        if size == 1:
            size, payload = int.from_bytes(file.read(8), "big"), at + 16
        elif size == 0:
            size = end - at  # runs to the end of the file
        if size < payload - at or not kind.isascii():
            return  # padding or junk after the last box
        yield kind, at, payload, at + size
        at += size


def _leaves(file: BinaryIO, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """(kind, payload start, end) of the boxes inside the first video sample entries."""
    for kind, _, payload, stop in _walk(file, start, end):
        stop = min(stop, end)
        if kind in _PARENTS:
            yield from _leaves(file, payload, stop)
        elif kind == b"stsd":
            for _, entry, _, entry_end in _walk(file, payload + 8, stop):
                for inner, _, inside, inner_end in _walk(file, entry + _VIDEO_ENTRY, min(entry_end, stop)):
                    yield inner, inside, min(inner_end, stop)


def _matroska_bytes(file: BinaryIO) -> int | None:
    """End of the Matroska segment (RFC 8794 variable-length sizes), or None for a live recording of unknown size."""
    file.seek(4)
    header = _varint(file)
    if header is None:
        return None
    file.seek(header, 1)
    if file.read(4) != b"\x18\x53\x80\x67":
        return None
    size = _varint(file)
    return None if size is None else file.tell() + size


def _varint(file: BinaryIO) -> int | None:
    first = file.read(1)
    if not first or first[0] == 0:
        return None
    width = 9 - first[0].bit_length()
    raw = bytes([first[0] & (0xFF >> width)]) + file.read(width - 1)
    value = int.from_bytes(raw, "big")
    return None if value == (1 << (7 * width)) - 1 else value
