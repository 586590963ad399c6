"""Reduced images: right size, upright, 8-bit grey; bad files are set aside, a kill costs none."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageChops, ImageStat
from typer.testing import CliRunner

from cot_builder import images
from cot_builder.boxes import Size, scaled
from cot_builder.cli import app
from cot_builder.dataset import read_manifest, read_rejects, read_studies
from cot_builder.errors import UserError
from cot_builder.images import BadImageError, derivative, probe, reduced, scaling, write_reduced

ORIENTATION = 0x0112
TURNED = {2: 0, 3: 0, 4: 0, 5: 1, 6: 1, 7: 1, 8: 1}


def a_picture(width: int = 320, height: int = 240) -> Image.Image:
    """Dark at the left and the top, bright at the right and the bottom; marks in two corners."""
    across = Image.linear_gradient("L").rotate(90).resize((width, height))
    down = Image.linear_gradient("L").resize((width, height))
    picture = ImageChops.add(across, down, scale=2)
    picture.paste(255, (0, 0, width // 4, height // 8))
    picture.paste(0, (width * 3 // 4, height * 7 // 8, width, height))
    return picture


def save(picture: Image.Image, path: Path, **how: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, **how)
    return path


def difference(a: Image.Image, b: Image.Image) -> float:
    return ImageStat.Stat(ImageChops.difference(a, b)).mean[0]


def plain(picture: Image.Image, scale: float) -> Image.Image:
    size = scaled(Size(*picture.size), scale)
    return picture.resize((int(size.width), int(size.height)), Image.Resampling.BICUBIC)


# -- one image


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("scale", [0.25, 0.3, 0.5, 1.0, 0.05])
@pytest.mark.parametrize("size", [(320, 240), (321, 243), (30, 91), (2541, 3059)])
def test_an_image_is_what_a_plain_resize_makes_of_it(
    tmp_path: Path, suffix: str, scale: float, size: tuple[int, int]
) -> None:
    picture = a_picture(*size)
    path = save(picture, tmp_path / f"a{suffix}", quality=95)
    found = reduced(path, scale=scale)
    assert (found.mode, found.size) == ("L", scaled(Size(*size), scale))
    # In a tiny image, the pixels at the edge of a mark are a good part of all.
    assert difference(found, plain(picture, scale)) < (2.5 if min(size) > 100 else 8)


def as_16_bit(picture: Image.Image) -> Image.Image:
    """12 bits in 16, as a DICOM file holds them, with the darkest at 100."""
    deep = picture.convert("F").point(lambda value: value * 12 + 100)
    return deep.convert("I").convert("I;16")


MODES: dict[str, Any] = {
    "RGB": lambda p: p.convert("RGB"),
    "RGBA": lambda p: p.convert("RGBA"),
    "LA": lambda p: p.convert("LA"),
    "palette": lambda p: p.convert("P"),
    "16 bit": as_16_bit,
}


@pytest.mark.parametrize("mode", MODES)
def test_every_kind_of_pixel_becomes_8_bit_grey(tmp_path: Path, mode: str) -> None:
    picture = a_picture()
    found = reduced(save(MODES[mode](picture), tmp_path / "a.png"), scale=0.25)
    assert found.mode == "L"
    assert difference(found, plain(picture, 0.25)) < 3


def test_a_blank_16_bit_image_is_black(tmp_path: Path) -> None:
    path = save(Image.new("I;16", (40, 40), 3000), tmp_path / "a.png")
    assert reduced(path, scale=0.5).getextrema() == (0, 0)


def test_dark_bones_are_inverted_where_their_ids_say_so(tmp_path: Path) -> None:
    path = save(a_picture(), tmp_path / "a.png")
    plainly, inverted = reduced(path, scale=0.25), reduced(path, scale=0.25, invert=True)
    assert ImageChops.add(plainly, inverted).getextrema() == (255, 255)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("orientation", TURNED)
def test_sizes_and_pixels_are_those_of_the_upright_image(
    tmp_path: Path, suffix: str, orientation: int
) -> None:
    """Turned as its EXIF says, the file is the picture: so are its size, its copy, its boxes."""
    upright = a_picture()
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]
    stored = upright.transpose(Image.Transpose(back))
    assert stored.size == ((240, 320) if TURNED[orientation] else (320, 240))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = save(stored, tmp_path / f"a{suffix}", exif=exif, quality=95)
    assert probe(path) == probe(path, full=True) == (320, 240)
    found = reduced(path, scale=0.25)
    assert found.size == (80, 60)
    assert difference(found, plain(upright, 0.25)) < 2.5
    target = tmp_path / "out" / "a.jpg"
    write_reduced(path, target, scratch=tmp_path, scale=0.25)
    with Image.open(target) as copy:
        assert (copy.size, copy.getexif().get(ORIENTATION)) == ((80, 60), None)


BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "image_unreadable"),
    "text": (b"no image at all", "image_unreadable"),
    "a JPEG's first bytes": (b"\xff\xd8\xff\xe0", "image_unreadable"),
}


@pytest.mark.parametrize("case", BAD)
def test_files_that_are_no_image(tmp_path: Path, case: str) -> None:
    content, reason = BAD[case]
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(BadImageError) as caught:
        write_reduced(tmp_path / "a.jpg", tmp_path / "b.jpg", scratch=tmp_path, scale=0.25)
    assert caught.value.reason == reason
    assert not (tmp_path / "b.jpg").exists()


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_a_truncated_file(tmp_path: Path, suffix: str) -> None:
    path = save(a_picture(), tmp_path / f"a{suffix}")
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(BadImageError) as caught:
        reduced(path, scale=0.25)
    assert caught.value.reason == "image_truncated"


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadImageError) as caught:
        write_reduced(tmp_path / "a.jpg", tmp_path / "b.jpg", scratch=tmp_path, scale=0.25)
    assert caught.value.reason == "image_missing"


def test_a_header_that_claims_too_many_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(a_picture(), tmp_path / "a.png")
    monkeypatch.setattr(images, "MOST_PIXELS", 1000)
    with pytest.raises(BadImageError, match="claims 320 x 240 pixels"):
        reduced(path, scale=0.25)


def test_a_copy_is_kept_when_it_is_whole_and_of_the_right_size(tmp_path: Path) -> None:
    path, target = save(a_picture(), tmp_path / "a.jpg"), tmp_path / "out" / "a.jpg"

    def write(scale: float = 0.25) -> int:
        write_reduced(path, target, scratch=tmp_path, scale=scale)
        return target.stat().st_ino

    first = write()
    assert write() == first
    assert write(0.5) != first
    whole = target.read_bytes()
    target.write_bytes(whole[:-50])
    write(0.5)
    assert target.read_bytes() == whole
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.jpg", "out"]


def test_two_originals_never_share_a_copy() -> None:
    paths = ["a.jpg", "a.png", "a.jpeg", "a.JPG", "a.dcm", "x/a.jpg"]
    assert len({derivative(path) for path in paths}) == len(paths)
    assert all(derivative(path).startswith("images/") for path in paths)


@pytest.mark.parametrize("scale", [0, -0.25, 1.01, 25, float("nan")])
def test_scales_that_are_none(scale: float) -> None:
    with pytest.raises(UserError, match="expected more than 0 and at most 1"):
        scaling(scale)


# -- DICOM


def test_without_pydicom_a_dicom_file_is_set_aside_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pydicom", None)
    (tmp_path / "a.dcm").write_bytes(b"\0" * 128 + b"DICM")
    with pytest.raises(BadImageError, match=r"pip install 'cot-builder\[dicom\]'") as caught:
        reduced(tmp_path / "a.dcm", scale=0.25)
    assert caught.value.reason == "needs_pydicom"


@pytest.mark.parametrize("interpretation", ["MONOCHROME1", "MONOCHROME2"])
def test_dicom_files_are_read_and_dark_bones_inverted(tmp_path: Path, interpretation: str) -> None:
    pydicom = pytest.importorskip("pydicom")
    numpy = pytest.importorskip("numpy")
    picture = a_picture()
    stored = numpy.asarray(picture).astype("uint16") * 16
    if interpretation == "MONOCHROME1":
        stored = 4095 - stored
    file = pydicom.Dataset()
    file.file_meta = pydicom.dataset.FileMetaDataset()
    file.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    file.file_meta.MediaStorageSOPClassUID = pydicom.uid.DigitalXRayImageStorageForPresentation
    file.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    file.Columns, file.Rows = picture.size
    file.SamplesPerPixel, file.PixelRepresentation = 1, 0
    file.BitsAllocated, file.BitsStored, file.HighBit = 16, 12, 11
    file.PhotometricInterpretation = interpretation
    file.PixelData = stored.tobytes()
    file.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    found = reduced(tmp_path / "a.dcm", scale=0.25)
    assert (found.mode, found.size) == ("L", (80, 60))
    assert difference(found, plain(picture, 0.25)) < 3
    (tmp_path / "b.dcm").write_bytes((tmp_path / "a.dcm").read_bytes()[:900])
    with pytest.raises(BadImageError):
        reduced(tmp_path / "b.dcm", scale=0.25)


# -- a build


def run(*args: str | Path) -> tuple[int, str]:
    answer = CliRunner().invoke(app, [str(arg) for arg in args], env={"COLUMNS": "300"})
    assert answer.exception is None or isinstance(answer.exception, SystemExit), answer.exception
    return answer.exit_code, answer.output


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """Six phrases with boxes on six images: one is spoilt inside, one is not there."""
    folder = tmp_path / "release"
    lines = ["image,phrase,width,height,x1,y1,x2,y2"]
    for name in ("a.jpg", "b.png", "c.jpg", "d.png", "deep/e.jpg", "f.png"):
        if name != "f.png":
            save(a_picture(400, 300), folder / name)
        lines.append(f"{name},small left effusion,400,300,210,40,390,200")
    spoilt = bytearray((folder / "d.png").read_bytes())
    spoilt[200:260] = bytes(60)
    (folder / "d.png").write_bytes(spoilt)
    (folder / "boxes.csv").write_text("\n".join(lines) + "\n")
    return folder / "boxes.csv"


def build(table: Path, out: Path, *more: str) -> tuple[int, str]:
    columns = ("--box-columns", "x1,y1,x2,y2", "--box-format", "xyxy", "--shard-size", "2")
    return run("build", "--source", "boxes", "--root", table, "--out", out, *columns, *more)


def pictures(out: Path) -> dict[str, bytes]:
    folder = out / "images"
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in files}


SCALE = ("--image-scale", "0.25", "--workers", "1")


def test_a_build_writes_copies_and_sets_bad_images_aside(release: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    status, said = build(release, out, *SCALE)
    assert status == 0, said
    rows = {row["study_id"]: row for row in read_studies(out)}
    kept = {image["path"] for row in rows.values() for image in row["images"]}
    assert set(pictures(out)) == {derivative(path) for path in kept}
    assert len(kept) == 4
    for row in rows.values():
        for image in row["images"]:
            assert probe(out / derivative(image["path"])) == (100, 75)
            assert (image["width"], image["height"]) == (400, 300)
        ids = {image["image_id"] for image in row["images"]}
        boxes = [box for chain in row["chains"] for box in chain["boxes"]]
        boxes += [box for phrase in row["grounded"] for box in phrase["boxes"]]
        assert {box["image_id"] for box in boxes} <= ids
        assert {(box["x1"], box["x2"]) for box in boxes} <= {(210, 390)}
    reasons = {
        line["file"]: line["reason"] for line in read_rejects(out) if line["reason"][:2] == "im"
    }
    assert reasons == {"d.png": "image_unreadable", "f.png": "image_missing"}
    details = {line["file"]: line["detail"] for line in read_rejects(out)}
    assert details["d.png"].endswith("left out with its boxes: 1")
    manifest = read_manifest(out)
    assert manifest["images"]["scale"] == manifest["frame"]["scale"] == 0.25
    assert run("check", out)[0] == 0


def test_a_copy_that_was_deleted_fails_the_check(release: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build(release, out, *SCALE)
    (out / "images" / "deep" / "e.jpg").unlink()
    status, said = run("check", out)
    assert status == 1
    assert f"image e: {out / 'images/deep/e.jpg'} is missing" in said


def test_workers_and_a_kill_change_no_byte(release: Path, tmp_path: Path) -> None:
    once, twice = tmp_path / "once", tmp_path / "twice"
    build(release, once, *SCALE)
    build(release, twice, "--image-scale", "0.25", "--workers", "2")
    assert pictures(once) == pictures(twice)
    # As a kill leaves it: some copies, one of them of another scale, no shard, no manifest.
    killed = tmp_path / "killed"
    (killed / ".unfinished").mkdir(parents=True)
    (killed / ".unfinished" / f"{os.getpid()}.jpg").write_bytes(b"half")
    for name in ("images/a.jpg", "images/c.jpg"):
        (killed / "images").mkdir(exist_ok=True)
        (killed / name).write_bytes(pictures(once)[name])
    write_reduced(release.parent / "c.jpg", killed / "images/c.jpg", scratch=killed, scale=0.5)
    before = (killed / "images/a.jpg").stat().st_ino
    assert build(release, killed, *SCALE, "--resume")[0] == 0
    assert pictures(killed) == pictures(once)
    assert (killed / "images/a.jpg").stat().st_ino == before
    assert not (killed / ".unfinished").exists()
    shards = [path.name for path in once.glob("*.parquet")]
    assert all((once / name).read_bytes() == (killed / name).read_bytes() for name in shards)


def test_another_scale_is_another_dataset(release: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build(release, out, *SCALE)
    status, said = build(release, out, "--image-scale", "0.5", "--resume")
    assert (status, "--overwrite replaces it" in said) == (1, True)
    assert build(release, out, "--overwrite")[0] == 0
    assert pictures(out) == {}
    assert read_manifest(out)["images"] is None


def test_ids_of_images_to_invert(release: Path, tmp_path: Path) -> None:
    ids = tmp_path / "inverted.txt"
    ids.write_text("a\n")
    build(release, tmp_path / "plain", *SCALE)
    build(release, tmp_path / "out", *SCALE, "--invert-images", str(ids))
    before, after = pictures(tmp_path / "plain"), pictures(tmp_path / "out")
    assert [name for name in before if before[name] != after[name]] == ["images/a.jpg"]
    assert read_manifest(tmp_path / "out")["images"]["inverted"] == ["a"]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--image-scale", "4"), "--image-scale 4: expected more than 0 and at most 1"),
        (("--image-scale", "0"), "--image-scale 0: expected"),
        (("--invert-images", "x"), "--invert-images needs --image-scale"),
        (("--image-scale", "0.5", "--invert-images", "no/file"), "cannot be read"),
    ],
)
def test_flags_that_make_no_sense(
    release: Path, tmp_path: Path, flags: tuple[str, ...], says: str
) -> None:
    status, said = build(release, tmp_path / "out", *flags)
    assert (status, says in said) == (1, True), said
    assert not (tmp_path / "out").exists()


def test_a_disk_that_takes_no_image_stops_the_build_and_not_the_study(
    release: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    (out / ".unfinished").mkdir(parents=True)
    (out / "images").write_text("a file where the folder should be")
    status, said = build(release, out, *SCALE, "--resume")
    assert status == 1
    assert "cannot write" in said
    assert "--resume" in said
    assert json.dumps(said).count("internal_error") == 0
