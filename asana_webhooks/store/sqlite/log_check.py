"""Whether a write-ahead log holds less than was once committed to it. Decisions only.

When SQLite opens a log that nobody uses, it takes the frames up to the first that is not whole, and says nothing of
those behind. It must: the end of a log is torn whenever the power is cut. But a cut tears only the transaction that was
under way, for each one is on the disk before the next begins. Anything else was damaged, and this is how it shows:

* The header is not whole; it is on the disk before the first frame is written.
* A frame is not whole, and behind it a transaction ends that was followed by another.
* There are fewer whole frames than the index (the file ``-shm``) says were committed. It survives a killed process.

What does not show: a log that is missing or empty; and, without an index of this very log, damage to its end.

Source: https://www.sqlite.org/walformat.html
"""

import struct
import sys
from array import array
from collections.abc import Iterator
from typing import BinaryIO, Literal

from attrs import define, field, frozen

__all__ = ["INDEX_BYTES", "MOST", "find_damage"]

INDEX_BYTES = 96
"""How much of the index is looked at: its header, which stands there twice."""

MOST = 64 * 1024**2
"""How many bytes of a log are looked at, so that opening a store takes no longer than a second or so for it."""

_AT_ONCE = 128
"""Frames that are read, and summed up, together."""

_HEADER = struct.Struct(">4I8s2I")
"""Of the log: what kind it is, version, page size, how often it was emptied, salt, sums."""
_FRAME = struct.Struct(">8s8s2I")
"""Before each page: its number, and the size of the database if a transaction ends here; salt, sums."""
_INDEX = struct.Struct("=I8xB3xI12x8s2I")
"""Of the header of the index: version, whether it is made, frames, salt, sums."""

_Sums = tuple[int, int]
_Order = Literal["<", ">"]
_ORDERS: dict[int, _Order] = {0x377F0682: "<", 0x377F0683: ">"}
_NATIVE: _Order = "<" if sys.byteorder == "little" else ">"
_VERSION = 3007000
_PAGE_SIZES = {2**power for power in range(9, 17)}
_WORD = 0xFFFFFFFF


def find_damage(log: BinaryIO, index: bytes = b"") -> str | None:
    """Tell what is wrong with a log; nothing if it is just as a killed process or a power cut can leave it.

    Args:
        log: is read from its beginning, in pieces, up to `MOST` bytes.
        index: the first `INDEX_BYTES` of the file ``-shm``, from before SQLite opened the log; or nothing.

    Returns:
        What is wrong, in words; ``None`` if nothing shows.
    """
    start = log.read(_HEADER.size)
    if len(start) < _HEADER.size:
        return None
    header = _Header.read(start)
    if header is None:
        return "its header is damaged" if log.read(1) else None
    frames = _Frames(header, header.sums)
    left = MOST // header.step
    while piece := log.read(min(left, _AT_ONCE) * header.step):
        count = len(piece) // header.step
        if count:
            frames.add(piece[: count * header.step])
        left -= count
    if frames.has_more:
        return f"frame {frames.whole + 1} is damaged, and finished transactions stand behind it"
    committed = _committed(index, header.salt)
    if frames.whole < committed and left:
        return f"{committed} frames were committed, and only {frames.whole} are whole"
    return None


@frozen
class _Header:
    """What the header of a log says of its frames."""

    order: _Order
    """How bytes make a word, for the sums."""
    step: int
    """Bytes from one frame to the next."""
    salt: bytes
    """What all frames of this log carry; what is left from before it began anew carries another."""
    sums: _Sums

    @classmethod
    def read(cls, data: bytes) -> "_Header | None":
        """Read the first bytes of a log; nothing if they are damaged."""
        kind, _, page_size, _, salt, *sums = _HEADER.unpack(data)
        order = _ORDERS.get(kind)
        if order is None or page_size not in _PAGE_SIZES or (found := _sum(order, data[:24])) != tuple(sums):
            return None
        return cls(order, _FRAME.size + page_size, salt, found)


@define
class _Frames:
    """What is known of the frames so far."""

    header: _Header
    sums: _Sums
    """Those that the last frame carries, or at first the header of the log: the next frame continues them."""
    whole: int = 0
    """How many frames there are before the first that is not whole."""
    is_over: bool = False
    """Whether there was one that is not whole."""
    has_more: bool = False
    """Whether a transaction that was followed by another ends there or behind it."""
    _last: bytes = field(default=bytes(8), init=False)
    """The last page, with its number before it, and the size of the database if it ends a transaction."""

    def add(self, frames: bytes) -> None:
        """Look at the next frames."""
        step = self.header.step
        fields = [_FRAME.unpack_from(frames, at) for at in range(0, len(frames), step)]
        carried = [(one, two) for _, _, one, two in fields]
        expected = _sums_of_each(frames, self.header, [self.sums, *carried[:-1]])
        for number, ((head, salt, _, _), its_sums, right) in enumerate(zip(fields, carried, expected, strict=True)):
            page = head + frames[number * step + _FRAME.size : (number + 1) * step]
            is_sound = salt == self.header.salt and its_sums == right
            # SQLite may repeat the last frame of a transaction to fill a sector; that is no other transaction.
            is_next = self._last[4:8] != bytes(4) and page != self._last
            self.has_more |= self.is_over and is_sound and is_next
            self.is_over |= not is_sound
            self.whole += not self.is_over
            self._last = page
        self.sums = carried[-1]


def _committed(index: bytes, salt: bytes) -> int:
    """Return how many frames of the log with this salt were committed, as far as the index knows."""
    header, again = index[:48], index[48:INDEX_BYTES]
    if len(again) < 48 or header != again:  # it was being written
        return 0
    version, is_made, frames, its_salt, *sums = _INDEX.unpack(header)
    is_sound = version == _VERSION and is_made and tuple(sums) == _sum(_NATIVE, header[:40])
    return frames if is_sound and its_salt == salt else 0


# Sums: a and b, to which pairs of words x and y are added so: a += b + x, then b += a + y


def _sum(order: _Order, data: bytes) -> _Sums:
    a = b = 0
    for x, y in struct.iter_unpack(f"{order}2I", data):
        a = a + b + x & _WORD
        b = b + a + y & _WORD
    return a, b


def _sums_of_each(frames: bytes, header: _Header, before: list[_Sums]) -> Iterator[_Sums]:
    """Return the sums of each frame, as the ones before it go on.

    They are all added up at the same time, side by side in large numbers, which is ten times as fast: each frame has 64
    bits there, so that a word has room to grow for a while.
    """
    words, per = array("I", frames), header.step // 4
    if header.order == ">":
        words.byteswap()
    count = len(before)
    mask = int.from_bytes(_WORD.to_bytes(8, "little") * count, "little")
    a, b = (int.from_bytes(struct.pack(f"<{count}Q", *each), "little") for each in zip(*before, strict=True))
    for number, at in enumerate((0, *range(_FRAME.size // 4, per, 2))):  # without the salt, and the sums themselves
        a += b + _side_by_side(words[at::per])
        b += a + _side_by_side(words[at + 1 :: per])
        if number % 16 == 15:  # they have become 2**24 times as large at most
            a, b = a & mask, b & mask
    a_of_each, b_of_each = (struct.unpack(f"<{count}Q", (each & mask).to_bytes(8 * count, "little")) for each in (a, b))
    return zip(a_of_each, b_of_each, strict=True)


def _side_by_side(words: "array[int]") -> int:
    spaced = array("I", bytes(8 * len(words)))
    spaced[::2] = words
    return int.from_bytes(spaced.tobytes(), "little")
