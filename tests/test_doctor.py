"""The doctor on boxes in the right frame and in wrong ones, with and without a model."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from cot_builder.boxes import Box, Frame, Pixels, Size
from cot_builder.cli import app
from cot_builder.doctor import Checkup, Example, examine, read_examples, recipe_reader
from cot_builder.errors import UserError
from cot_builder.images import scaling
from cot_builder.pipeline import build
from cot_builder.shards import BuildOptions
from cot_builder.sources import SourceOptions
from eval.contact_sheet import draw_overlay
from knowledge_banks import load_banks

# Invented: image, phrase, x1, y1, x2, y2 in images of 800 x 1200 pixels.
ROWS: Final = (
    ("a.png", "Patchy opacity in the right lung base", 80, 700, 360, 1000),
    ("a.png", "Small left pleural effusion", 460, 900, 720, 1040),
    ("b.png", "Moderate pulmonary edema", 60, 300, 380, 1000),
    ("b.png", "Moderate pulmonary edema", 420, 300, 740, 1000),
    ("b.png", "Cardiomegaly", 300, 600, 640, 960),
    ("c.png", "Tiny nodule in the left apex", 500.4, 200.6, 512.8, 214.2),
)
SIZE: Final = (800, 1200)


def made(
    folder: Path,
    rows: Any = ROWS,
    *,
    form: str = "xyxy",
    frame: Frame = Frame(),  # noqa: B008
    image_scale: float | None = None,
) -> Path:
    """Write images and a table of boxes, and build them."""
    for name in {row[0] for row in rows}:
        Image.new("L", SIZE, 90).save(folder / name)
    with (folder / "boxes.csv").open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["image", "phrase", "a", "b", "c", "d"])
        table.writerows(rows)
    options = SourceOptions(
        banks=load_banks(),
        root=folder / "boxes.csv",
        box_columns=("a", "b", "c", "d"),
        box_format=form,  # type: ignore[arg-type]
    )
    build(
        BuildOptions(
            source="boxes",
            release=options,
            out=folder / "out",
            frame=frame,
            scaling=scaling(image_scale) if image_scale else None,
        )
    )
    return folder / "out"


def checked(dataset: Path, pixels: Pixels = Pixels(), **options: Any) -> Checkup:  # noqa: B008
    return examine(dataset, recipe_reader(pixels), **options)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a sound dataset and its images, for tests that only read them."""
    folder = tmp_path_factory.mktemp("sound")
    made(folder)
    return folder


# -- a sound dataset


def test_a_sound_dataset_has_no_problem(sound: Path) -> None:
    dataset = sound / "out"
    for root in (None, sound):
        found = checked(dataset, root=root)
        assert found.problems == []
        assert (found.examples, found.round_trip.n, found.images) == (5, 6, 3)
        assert found.round_trip.mean is not None
        assert found.round_trip.mean > 0.95
        assert "Tiny nodule" in found.round_trip.least_at
        assert (found.under_one_patch.n, found.cut.n, found.quarter_cut.n) == (1, 0, 0)
        assert found.tokens.mean == found.most_tokens == 29 * 43


def test_a_phrase_with_two_boxes_is_one_example(sound: Path) -> None:
    examples = [example for _, example in read_examples(sound / "out")]
    assert [(e.phrase, len(e.boxes)) for e in examples if "edema" in e.phrase] == [
        ("Moderate pulmonary edema", 2)
    ]


@pytest.mark.parametrize(
    ("mistake", "least", "most"),
    [
        ("none, answers in 0-1000", 0.95, 1),
        ("none, answers in quarter pixels", 0.85, 1),
        ("truth in quarter pixels, answers in 0-1000", 0, 0.05),
        ("x, y, width, height read as two corners", 0, 0.4),
        ("x and y swapped", 0, 0.4),
        ("image mirrored, boxes not", 0, 0.4),
    ],
)
def test_each_mistake_has_its_price(sound: Path, mistake: str, least: float, most: float) -> None:
    tally = checked(sound / "out").mistakes[mistake]
    assert tally.n == 6
    assert tally.mean is not None
    assert least <= tally.mean <= most


def test_lengths_are_counted_against_the_limit(sound: Path) -> None:
    dataset = sound / "out"
    assert checked(dataset, max_length=29 * 43).too_long.n == 0
    found = checked(dataset, max_length=29 * 43 - 1)
    assert found.too_long.n == 5
    assert "Patchy opacity" in found.too_long.first


# -- wrong frames


def test_another_budget_is_a_problem_that_says_which(sound: Path) -> None:
    (problem,) = checked(sound / "out", Pixels(max_pixels=40_000)).problems
    assert "max_pixels: the dataset says 12845056, the processor 40000" in problem


def test_a_budget_that_resizes_the_quarter_again_is_told(tmp_path: Path) -> None:
    tight = Pixels(max_pixels=40_000)
    found = checked(made(tmp_path, frame=Frame(pixels=tight)), tight)
    assert (found.cut.n, found.cut_again.n, found.quarter_cut.n) == (3, 0, 3)
    assert found.problems == []


def test_a_build_in_quarter_pixels_is_refused_when_they_would_be_resized(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"study .*200 x 300 .* max_pixels 40000 .*--max-pixels"):
        made(tmp_path, frame=Frame("quarter_pixels", Pixels(max_pixels=40_000)))


def test_images_of_another_shape_than_their_boxes_name_the_row(tmp_path: Path) -> None:
    dataset = made(tmp_path)
    Image.new("L", (600, 600)).save(tmp_path / "a.png")
    (problem,) = checked(dataset, root=tmp_path).problems
    assert "study a" in problem
    assert "800 x 1200" in problem
    assert "600 x 600" in problem


def test_reduced_images_keep_their_boxes(tmp_path: Path) -> None:
    dataset = made(tmp_path)
    for name in ("a.png", "b.png", "c.png"):
        Image.new("L", (200, 300)).save(tmp_path / name)
    found = checked(dataset, root=tmp_path)
    assert found.problems == []
    assert found.most_tokens == 7 * 11


def test_the_datasets_own_reduced_images_are_read(tmp_path: Path) -> None:
    dataset = made(tmp_path, frame=Frame(scale=0.25), image_scale=0.25)
    for root in (None, tmp_path):
        found = checked(dataset, root=root)
        assert found.problems == []
        assert found.files is not None
        assert found.most_tokens == 7 * 11
    tight = Pixels(max_pixels=40_000)
    assert checked(dataset, tight).cut_again.n == 3


def test_a_lost_image_names_the_row(tmp_path: Path) -> None:
    dataset = made(tmp_path)
    (tmp_path / "c.png").unlink()
    (problem,) = checked(dataset, root=tmp_path).problems
    assert "Tiny nodule in the left apex" in problem


@pytest.mark.parametrize(
    ("name", "width", "height"),
    [("quarter pixels", 200, 300), ("percent", 100, 100), ("fractions of the image", 1, 1)],
)
def test_boxes_in_a_smaller_frame_are_suspected(
    tmp_path: Path, name: str, width: int, height: int
) -> None:
    rows = [
        (row[0], row[1], row[2] * width / 800, row[3] * height / 1200, row[4] * width / 800,
         row[5] * height / 1200)
        for row in ROWS
    ]  # fmt: skip
    (problem,) = checked(made(tmp_path, rows)).problems
    assert f"as if in {name}" in problem
    assert "Patchy opacity in the right lung base" in problem


def test_widths_read_as_corners_are_suspected(tmp_path: Path) -> None:
    rows = [
        (f"{number}.png", phrase, x1, y1, x2 - x1, y2 - y1)
        for number in range(3)
        for _, phrase, x1, y1, x2, y2 in ROWS
    ]
    problems = checked(made(tmp_path, rows)).problems
    assert any("x, y, width, height read as two corners" in line for line in problems)
    assert any("boxes.csv:" in line for line in problems)


def test_corners_read_as_widths_are_suspected(tmp_path: Path) -> None:
    problems = checked(made(tmp_path, ROWS, form="xywh")).problems
    assert any("two corners read as x, y, width, height" in line for line in problems)


def test_a_dataset_without_boxes_is_refused(tmp_path: Path) -> None:
    options = SourceOptions(banks=load_banks(), limit=1)  # the demo's first study has none
    build(BuildOptions(source="demo", release=options, out=tmp_path / "out"))
    with pytest.raises(UserError, match="holds no box"):
        checked(tmp_path / "out")


# -- the command


def test_a_long_phrase_is_broken_over_lines_below_its_image(tmp_path: Path) -> None:
    Image.new("L", (200, 100)).save(tmp_path / "a.png")
    box = Box(10, 20, 60, 70, image_id="a", width=200, height=100, source="r", kind="manual")
    heights = []
    for phrase in ("effusion", "moderate left pleural effusion with adjacent atelectasis"):
        overlay = draw_overlay([Example("1", "a.png", phrase, (box,))], tmp_path / "a.png")
        heights.append(overlay.height)
        words = np.asarray(overlay)[overlay.height - 18 :]
        assert overlay.width == 200
        assert words.any()  # the last line stands on the picture
        assert not words[:, -3:].any()  # and ends before its edge
    assert heights[1] >= heights[0] + 2 * 18


def test_the_command_prints_draws_and_fails(sound: Path, tmp_path: Path) -> None:
    dataset = sound / "out"
    look = tmp_path / "look"
    options = ["doctor", str(dataset), "--root", str(sound), "--overlays", str(look)]
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 0, result.output
    assert "no problem found" in result.output
    assert sorted(path.name for path in look.iterdir()) == [
        "001_a.png",
        "002_b.png",
        "003_c.png",
        "contact_sheet.png",
    ]
    with Image.open(look / "002_b.png") as overlay:
        # The first box of the edema, 60 to 380 of 800, where 1200 became 640.
        scale = 640 / 1200
        assert overlay.getpixel((round(60 * scale), round(640 * scale))) == (0xE6, 0x9F, 0)
        assert overlay.getpixel((round(220 * scale), round(450 * scale))) == (90, 90, 90)
    other = CliRunner().invoke(app, ["doctor", str(dataset), "--factor", "32"])
    assert other.exit_code == 1
    assert "factor: the dataset says 28, the processor 32" in " ".join(other.output.split())
    assert CliRunner().invoke(app, ["doctor", str(dataset), "--overlays", str(look)]).exit_code == 1


def test_without_a_model_the_budget_is_the_datasets_own(tmp_path: Path) -> None:
    dataset = made(tmp_path, frame=Frame(pixels=Pixels(32, 4096, 200_000)))
    result = CliRunner().invoke(app, ["doctor", str(dataset)])
    assert result.exit_code == 0, result.output
    assert "factor 32, 4096 to 200000 pixels" in " ".join(result.output.split())


# -- a real processor


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2-VL processor with a tokenizer of letters, as `save_pretrained` writes it."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    from training.processors import IMAGE_ONLY

    letters = {
        letter: number
        for number, letter in enumerate(sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()))
    }
    special = ["<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer = transformers.Qwen2Tokenizer(
        vocab=letters, merges=[], extra_special_tokens=special, unk_token=None,
        eos_token="<|im_end|>", pad_token="<|endoftext|>",
    )  # fmt: skip
    images = transformers.Qwen2VLImageProcessorPil(min_pixels=56 * 56, max_pixels=200_000)
    folder = tmp_path_factory.mktemp("qwen2_vl")
    transformers.Qwen2VLConfig().save_pretrained(folder)
    IMAGE_ONLY["qwen2_vl"](image_processor=images, tokenizer=tokenizer).save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["norm1000", "model_pixels"])
def test_every_box_passes_the_real_processor(tmp_path: Path, model: Path, name: str) -> None:
    from training.processors import processor_reader

    reader = processor_reader(model)
    assert reader.pixels == Pixels(28, 3136, 200_000)
    for size in (Size(*SIZE), Size(2544, 3056), Size(30, 31)):
        assert reader.see(size) == reader.pixels.seen(size)
    dataset = made(tmp_path, frame=Frame(name, reader.pixels))
    found = examine(dataset, reader, root=tmp_path, max_length=300)
    assert found.problems == []
    assert found.most_tokens == reader.pixels.tokens(Size(*SIZE)) <= 200_000 // 28**2
    assert found.round_trip.mean is not None
    assert found.round_trip.mean > 0.9
    assert found.cut.n == 3
    # Of letters alone: the report and the answer are longer than what is left beside the image.
    assert found.too_long.n > 0


@pytest.mark.slow
def test_a_budget_of_ones_own_reaches_the_real_processor(tmp_path: Path, model: Path) -> None:
    from training.processors import processor_reader

    reader = processor_reader(model, max_pixels=100_000)
    assert reader.pixels.max_pixels == 100_000
    assert reader.see(Size(*SIZE)) == reader.pixels.seen(Size(*SIZE))
    with pytest.raises(UserError, match="no processor at"):
        processor_reader(tmp_path)
