"""Pictures to look at: images with their boxes and phrases, and a sheet of them all."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from itertools import chain, cycle
from pathlib import Path
from typing import Final, TypeAlias

from PIL import Image, ImageDraw, ImageFont, ImageOps

from cot_builder.doctor import Example, Files
from cot_builder.errors import UserError
from cot_builder.images import BadImageError, probe, reduced

# Okabe and Ito's palette: told apart by colour-blind readers.
_COLOURS: Final = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
_SIDE: Final = 640  # of an overlay's image, the longer one
_LINE: Final = 18  # of the words below it
_CELL: Final = 320
Font: TypeAlias = ImageFont.ImageFont | ImageFont.FreeTypeFont
_UNSAFE: Final = re.compile(r"[^\w.-]+")


def write_overlays(
    examples: Iterable[Example], *, files: Files, folder: Path, most: int = 48
) -> tuple[Path, ...]:
    """Draw the first `most` images with their boxes into a folder, and a contact sheet of them.

    Each phrase has a colour and a number, which stand below the image and at its boxes. Raises
    UserError for a file that cannot be read.
    """
    by_image: dict[tuple[str, str], list[Example]] = {}
    for example in examples:
        image = (example.study_id, example.boxes[0].image_id)
        if image in by_image or len(by_image) < most:
            by_image.setdefault(image, []).append(example)
    folder.mkdir(parents=True, exist_ok=True)
    drawn: list[tuple[Path, Image.Image]] = []
    for number, (image, of_image) in enumerate(by_image.items(), start=1):
        name = _UNSAFE.sub("_", f"{number:03}_{'_'.join(dict.fromkeys(image))}")
        path = folder / f"{name[:100]}.png"
        overlay = draw_overlay(of_image, files(of_image[0].path))
        overlay.save(path)
        drawn.append((path, overlay))
    sheet = folder / "contact_sheet.png"
    _sheet([overlay for _, overlay in drawn]).save(sheet)
    return (*(path for path, _ in drawn), sheet)


def draw_overlay(examples: list[Example], file: Path) -> Image.Image:
    """Draw the phrases of one image: boxes on it, words below it."""
    size = examples[0].boxes[0].size
    picture = _opened(file).convert("RGB")
    x, y = picture.width / size.width, picture.height / size.height
    font = ImageFont.load_default(size=_LINE - 5)
    said = [f"{examples[0].study_id}: {size.width:.0f} x {size.height:.0f}"]
    said += [
        f"{number} {example.phrase} ({', '.join(dict.fromkeys(b.kind for b in example.boxes))})"
        for number, example in enumerate(examples, start=1)
    ]
    lines = [
        (line, colour)
        for text, colour in zip(said, chain(["white"], cycle(_COLOURS)), strict=False)
        for line in _wrapped(text, font, picture.width - 8)
    ]
    page = Image.new("RGB", (picture.width, picture.height + _LINE * len(lines) + 6), "black")
    page.paste(picture)
    pen = ImageDraw.Draw(page)
    for number, (example, colour) in enumerate(zip(examples, cycle(_COLOURS)), start=1):
        for box in example.boxes:
            left, top = box.x1 * x, box.y1 * y
            pen.rectangle((left, top, box.x2 * x, box.y2 * y), outline=colour, width=2)
            pen.text((left + 4, top + 2), str(number), fill=colour, font=font)
    for place, (line, colour) in enumerate(lines):
        pen.text((4, picture.height + 3 + place * _LINE), line, fill=colour, font=font)
    return page


def _wrapped(text: str, font: Font, width: float) -> Iterator[str]:
    """Yield the lines in which a text is no wider than this, cut between words."""
    line = ""
    for word in text.split():
        if line and font.getlength(f"{line} {word}") > width:
            yield line
            line = word
        else:
            line = f"{line} {word}".lstrip()
    yield line


def _opened(file: Path) -> Image.Image:
    try:
        return reduced(file, scale=min(1, _SIDE / max(probe(file))))
    except BadImageError as error:
        raise UserError(
            f"cannot draw {file} ({error.detail}); --root is the folder at which the dataset's "
            "image paths start"
        ) from None


def _sheet(overlays: list[Image.Image]) -> Image.Image:
    columns = max(1, math.ceil(math.sqrt(len(overlays))))
    rows = max(1, math.ceil(len(overlays) / columns))
    sheet = Image.new("RGB", (columns * _CELL, rows * _CELL), "black")
    for place, overlay in enumerate(overlays):
        small = ImageOps.contain(overlay, (_CELL - 6, _CELL - 6))
        row, column = divmod(place, columns)
        sheet.paste(small, (column * _CELL + 3, row * _CELL + 3))
    return sheet
