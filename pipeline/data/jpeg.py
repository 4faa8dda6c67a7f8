"""The structure of JPEG files: their frame's size and kind from the first bytes, without decoding."""

from dataclasses import dataclass

SOI, EOI = b"\xff\xd8", b"\xff\xd9"
_START_OF_SCAN = 0xDA
_ALONE = {0x01, *range(0xD0, 0xD8)}  # markers without a length
# Source: ITU-T T.81, table B.1; C4, C8 and CC in this range are tables, not frames.
_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


@dataclass(frozen=True)
class Frame:
    """What a JPEG's frame header says: pixels as stored, colour components, and whether it is progressive."""

    width: int
    height: int
    components: int
    progressive: bool


def read_frame(head: bytes) -> Frame | int:
    """Return the frame header found in the first bytes of a JPEG, or how many first bytes are needed to find it.

    Source: ITU-T T.81, annex B.

    Raises:
        ValueError: if these are not the first bytes of a JPEG.
    """
    if not head.startswith(SOI):
        raise ValueError("not a JPEG")
    at, n = 2, len(head)
    while at + 4 <= n:
        marker = head[at + 1]
        if head[at] != 0xFF or marker == 0xD9:
            raise ValueError("broken JPEG header")
        if marker == 0xFF or marker in _ALONE:
            at += 1 if marker == 0xFF else 2
            continue
        if marker == _START_OF_SCAN:
            raise ValueError("JPEG without a frame header")
        if marker in _FRAMES:
            return _frame(head, at) if at + 10 <= n else at + 10
        at += 2 + int.from_bytes(head[at + 2 : at + 4], "big")
    return at + 10


def _frame(head: bytes, at: int) -> Frame:
    height, width = (int.from_bytes(head[at + place : at + place + 2], "big") for place in (5, 7))
    if not (height and width):
        raise ValueError("JPEG of no size")
    return Frame(width, height, head[at + 9], head[at + 1] in (0xC2, 0xC6, 0xCA, 0xCE))
