"""Whole, cut and false images."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from cot_builder.images import BadImageError, probe


def encoded(form: str, *, mode: str = "L", size: tuple[int, int] = (60, 40)) -> bytes:
    file = BytesIO()
    image = Image.effect_noise(size, 64).convert(mode)
    image.save(file, form)
    return file.getvalue()


def bomb() -> bytes:
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("full", [False, True])
def test_size(tmp_path: Path, form: str, mode: str, full: bool) -> None:
    path = tmp_path / "image"
    path.write_bytes(encoded(form, mode=mode))
    assert probe(path, full=full) == (60, 40)


def test_padding_and_a_missing_end_marker_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    path.write_bytes(encoded("JPEG") + b"\0" * 500)
    assert probe(path) == (60, 40)


def test_known_size_is_believed_of_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    path.write_bytes(encoded("JPEG"))
    assert probe(path, size=(2544, 3056)) == (2544, 3056)
    assert probe(path, size=(2544, 3056), full=True) == (60, 40)


BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "image_unreadable"),
    "text": (lambda: b"not an image", "image_unreadable"),
    "cut header": (lambda: encoded("PNG")[:20], "image_"),
    "cut JPEG": (lambda: encoded("JPEG")[:-200], "image_truncated"),
    "cut PNG": (lambda: encoded("PNG")[:-200], "image_truncated"),
    "another form": (lambda: encoded("GIF"), "image_unreadable"),
    "ends like a JPEG": (lambda: b"\xff\xd8 nothing \xff\xd9", "image_unreadable"),
    "bomb": (bomb, "image_unreadable"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("full", [False, True])
def test_bad_image(tmp_path: Path, case: str, full: bool) -> None:
    content, reason = BAD[case]
    path = tmp_path / "image.jpg"
    path.write_bytes(content())
    with pytest.raises(BadImageError) as caught:
        probe(path, full=full)
    assert caught.value.reason.startswith(reason)
    assert caught.value.detail
    assert str(tmp_path) not in caught.value.detail


def test_broken_middle_is_found_by_a_full_look_only(tmp_path: Path) -> None:
    content = bytearray(encoded("PNG"))
    content[100:200] = bytes(100)
    path = tmp_path / "image.png"
    path.write_bytes(content)
    assert probe(path) == (60, 40)
    with pytest.raises(BadImageError):
        probe(path, full=True)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.jpg", tmp_path):
        with pytest.raises(BadImageError) as caught:
            probe(path)
        assert caught.value.reason == "image_unreadable"
