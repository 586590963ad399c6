"""Read radiographs: their size, whether the file is whole, and copies reduced in size.

Width and height are always those of the upright image, as an EXIF orientation turns it; so are all
boxes. Files are JPEG or PNG, and DICOM where pydicom is installed.
"""

from __future__ import annotations

import os
import warnings
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

from PIL import Image, ImageOps

from cot_builder.boxes import Size, scaled
from cot_builder.errors import UserError
from cot_builder.paths import BLOCK, is_remote, opened, put

SUFFIXES: Final = (".jpg", ".jpeg", ".png")
# The largest radiographs have some 25 million pixels; a header that claims far more is a trap.
MOST_PIXELS: Final = 150_000_000
# As MIMIC-CXR-JPG's own. A PNG takes over twice the space and 14 times the time to write; see
# benchmarks/README.md for what the encoding does to the pixels.
QUALITY: Final = 95
IMAGES: Final = "images"

_FORMATS: Final = ("JPEG", "PNG")
_START_AND_END: Final = ((b"\xff\xd8", b"\xff\xd9"), (b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"))
_TAIL: Final = 64
_HEAD: Final = 1 << 16  # bytes of a remote image that hold its header
_DICOM: Final = (".dcm", ".dicom")
_ORIENTATION: Final = 0x0112
# Orientations that lay the image on its side.
_TURNED: Final = (5, 6, 7, 8)
# Modes of more than 8 bits a pixel.
_DEEP: Final = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")


class BadImageError(Exception):
    """A file that is no whole image.

    `reason` is `image_missing`, `image_unreadable`, `image_truncated` or `needs_pydicom`.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


def probe(
    path: Path, *, full: bool = False, size: tuple[int, int] | None = None
) -> tuple[int, int]:
    """Return width and height of the upright image in pixels, as the header says.

    A file that does not end as its format ends is decoded to see whether it is whole; `full`
    decodes every file. With a `size` known beforehand, a file whose start and end are right is
    taken as whole unopened. Raises BadImageError.
    """
    try:
        with opened(path, block=BLOCK if full else _HEAD) as file:
            whole = _starts_and_ends_well(file)
            if whole and size and not full:
                return size
            file.seek(0)
            with warnings.catch_warnings(), Image.open(file, formats=_FORMATS) as image:
                _check_size(*image.size)
                if full or not whole:
                    image.load()
                return _upright_size(image)
    except (BadImageError, UserError):
        raise
    except Exception as error:  # Pillow raises nearly anything on a broken file
        raise _bad(error) from None


# -- reduced copies


class Scaling(NamedTuple):
    """How a build reduces its images: by what, and which ones it inverts, by image id.

    Images whose bones are dark (MONOCHROME1) are inverted by themselves when they are DICOM files;
    JPEG and PNG files do not say, so that their ids have to be given.
    """

    scale: float
    inverted: frozenset[str] = frozenset()

    def described(self) -> dict[str, Any]:
        """Return what was done to the images, for the manifest."""
        return {
            "scale": self.scale,
            "folder": IMAGES,
            "format": f"JPEG, quality {QUALITY}, 8-bit grey, upright",
            "inverted": sorted(self.inverted),
        }


def scaling(scale: float, inverted: Path | None = None) -> Scaling:
    """Check a scale, and read the ids of images to invert from a text file, one a line."""
    if not 0 < scale <= 1:
        raise UserError(f"--image-scale {scale:g}: expected more than 0 and at most 1, as 0.25")
    if inverted is None:
        return Scaling(scale)
    try:
        ids = inverted.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--invert-images {inverted}: cannot be read: {error}") from None
    return Scaling(scale, frozenset(ids))


def derivative(path: str) -> str:
    """Return where the reduced copy of an image lies below the dataset's folder.

    >>> derivative("files/p10/p10000032/s50414267/a.jpg"), derivative("CXR1.png")
    ('images/files/p10/p10000032/s50414267/a.jpg', 'images/CXR1.png.jpg')
    """
    return f"{IMAGES}/{path}" if path.endswith(".jpg") else f"{IMAGES}/{path}.jpg"


def write_reduced(
    source: Path, target: Path, *, scratch: Path, scale: float, invert: bool = False
) -> None:
    """Write an image reduced by `scale` as an upright 8-bit grey JPEG; raises BadImageError.

    A whole file of the right size that is there already is kept. `scratch` is a folder on the same
    disk, where the bytes lie until all of them are written.
    """
    if not source.exists():
        raise BadImageError("image_missing", "there is no such file to reduce")
    if _is_done(source, target, scale):
        return
    buffer = BytesIO()
    reduced(source, scale=scale, invert=invert).save(buffer, "JPEG", quality=QUALITY)
    if is_remote(target):
        put(target, buffer.getvalue())
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = scratch / f"{os.getpid()}.jpg"
    try:
        temporary.write_bytes(buffer.getbuffer())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def reduced(source: Path, *, scale: float, invert: bool = False) -> Image.Image:
    """Return an image reduced by `scale`: upright, 8-bit grey; raises BadImageError.

    The size is `boxes.scaled` of the original's. More than 8 bits a pixel are stretched from the
    darkest to the brightest; transparency is left out.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if source.suffix.lower() in _DICOM:
                image, dark = _read_dicom(source)
                grey = _reduce(image, scale)
                return ImageOps.invert(grey) if invert != dark else grey
            with opened(source) as file, Image.open(file, formats=_FORMATS) as image:
                _check_size(*image.size)
                turned = _orientation(image) != 1
                grey = _reduce(image, scale)
            if turned:
                grey = ImageOps.exif_transpose(grey)
            return ImageOps.invert(grey) if invert else grey
    except (BadImageError, UserError):
        raise
    except Exception as error:  # Pillow and pydicom raise nearly anything on a broken file
        raise _bad(error) from None


def _reduce(image: Image.Image, scale: float) -> Image.Image:
    size = scaled(Size(*image.size), scale)
    target = int(size.width), int(size.height)
    # A JPEG decoder can leave out the finer waves, and the colours; `box` is then the picture
    # within the last pixels, which may be parts. Asked for rounded-up sides, it would do less.
    drafted = image.draft("L", (int(image.width * scale) or 1, int(image.height * scale) or 1))
    box = drafted[1] if drafted else (0, 0, *image.size)
    grey = _to_grey(image)
    if grey.size == target:
        return grey
    return grey.resize(target, Image.Resampling.BICUBIC, box=box, reducing_gap=2.0)


def _to_grey(image: Image.Image) -> Image.Image:
    if image.mode not in _DEEP:
        return image.convert("L")
    deep = image.convert("F")
    low, high = deep.getextrema()
    assert isinstance(low, float)
    assert isinstance(high, float)
    factor = 255 / (high - low) if high > low else 0.0
    return deep.point(lambda value: value * factor - low * factor + 0.5).convert("L")


def _is_done(source: Path, target: Path, scale: float) -> bool:
    if not target.exists() or source.suffix.lower() in _DICOM:
        return False
    size = scaled(Size(*probe(source)), scale)
    try:
        return probe(target) == size
    except BadImageError:
        return False


def _read_dicom(source: Path) -> tuple[Image.Image, bool]:
    """Return the image of a DICOM file, and whether its bones are dark."""
    try:
        from pydicom import dcmread
    except ModuleNotFoundError:
        raise BadImageError(
            "needs_pydicom", "a DICOM file: pip install 'cot-builder[dicom]', and build again"
        ) from None
    with opened(source) as stream:
        file = dcmread(stream)
    _check_size(file.Columns, file.Rows)
    return Image.fromarray(file.pixel_array), file.PhotometricInterpretation == "MONOCHROME1"


# -- files


def _check_size(width: int, height: int) -> None:
    if width * height > MOST_PIXELS:
        raise BadImageError("image_unreadable", f"claims {width} x {height} pixels")


def _upright_size(image: Image.Image) -> tuple[int, int]:
    width, height = image.size
    turned = _orientation(image) in _TURNED
    return (height, width) if turned else (width, height)


def _orientation(image: Image.Image) -> int:
    # Without this look, Pillow decodes a whole PNG to find out that it has no EXIF block behind.
    if image.format == "PNG" and "exif" not in image.info:
        return 1
    return int(image.getexif().get(_ORIENTATION, 1))


def _starts_and_ends_well(file: BinaryIO) -> bool:
    start = file.read(8)
    length = file.seek(0, os.SEEK_END)
    file.seek(max(0, length - _TAIL))
    # Some writers pad the file with zeros.
    tail = file.read().rstrip(b"\0\r\n ")
    if not start:
        raise BadImageError("image_unreadable", "the file is empty")
    return any(start.startswith(head) and tail.endswith(end) for head, end in _START_AND_END)


def _bad(error: Exception) -> BadImageError:
    reason = "image_truncated" if "truncated" in str(error) else "image_unreadable"
    return BadImageError(reason, _said(error))


def _said(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    # Pillow names the file, which the reject does already.
    return str(error).partition(" <_io.")[0] or type(error).__name__
