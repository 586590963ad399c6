"""Read the size of a radiograph, and find broken files without decoding the good ones."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Final

from PIL import Image

SUFFIXES: Final = (".jpg", ".jpeg", ".png")
# The largest radiographs have some 25 million pixels; a header that claims far more is a trap.
MOST_PIXELS: Final = 150_000_000

_FORMATS: Final = ("JPEG", "PNG")
_START_AND_END: Final = ((b"\xff\xd8", b"\xff\xd9"), (b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"))
_TAIL: Final = 64


class BadImageError(Exception):
    """A file that is no whole image; `reason` is `image_unreadable` or `image_truncated`."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


def probe(
    path: Path, *, full: bool = False, size: tuple[int, int] | None = None
) -> tuple[int, int]:
    """Return width and height in pixels, as the header says; raises BadImageError.

    A file that does not end as its format ends is decoded to see whether it is whole; `full`
    decodes every file. With a `size` known beforehand, a file whose start and end are right is
    taken as whole unopened.
    """
    try:
        whole = _starts_and_ends_well(path)
        if whole and size and not full:
            return size
        with warnings.catch_warnings(), Image.open(path, formats=_FORMATS) as image:
            width, height = image.size
            if width * height > MOST_PIXELS:
                raise BadImageError("image_unreadable", f"claims {width} x {height} pixels")
            if full or not whole:
                image.load()
    except BadImageError:
        raise
    except Exception as error:  # Pillow raises nearly anything on a broken file
        reason = "image_truncated" if "truncated" in str(error) else "image_unreadable"
        raise BadImageError(reason, _said(error)) from None
    return width, height


def _starts_and_ends_well(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(8)
        length = file.seek(0, os.SEEK_END)
        file.seek(max(0, length - _TAIL))
        # Some writers pad the file with zeros.
        tail = file.read().rstrip(b"\0\r\n ")
    if not start:
        raise BadImageError("image_unreadable", "the file is empty")
    return any(start.startswith(head) and tail.endswith(end) for head, end in _START_AND_END)


def _said(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    # Pillow names the path, which the reject does already.
    return str(error).split(" '/")[0] or type(error).__name__
