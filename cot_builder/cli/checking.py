"""`cot-builder check`, `doctor` and `score-chains`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cot_builder.cli.options import (
    BankFolder,
    Dataset,
    Factor,
    MaxPixels,
    MinPixels,
    extra,
    pixel_budget,
    spinner,
)
from cot_builder.errors import UserError
from cot_builder.paths import where


def check(
    datasets: Annotated[
        list[Path],
        typer.Argument(
            metavar="DATASET...",
            help="Folders that `build` wrote, or their s3:// or hf:// addresses.",
            show_default=False,
            parser=where,
        ),
    ],
    mimic_root: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Where MIMIC-CXR-JPG lies, whose split table then decides.",
            show_default=False,
        ),
    ] = None,
    first: Annotated[
        int, typer.Option(metavar="N", min=0, help="How many problems to print.")
    ] = 20,
    out: Annotated[
        Path | None,
        typer.Option(metavar="JSONL", help="Write every problem here.", show_default=False),
    ] = None,
    banks: BankFolder = None,
) -> None:
    """Check datasets: leaks between splits, boxes on the wrong side, contradictions, records.

    No subject, study or image of a test or validation split may stand in another split of any of
    the datasets. An error ends with status 1; a warning is for a reader to look at.

    For example:

    - `cot-builder check out/mimic out/ms_cxr --mimic-root /data/physionet`
    - `cot-builder check out/iu --out problems.jsonl`
    """
    from cot_builder.checks import Dataset, check_datasets, official_splits
    from cot_builder.dataset import json_lines, read_manifest, read_studies
    from cot_builder.show import checked_view
    from knowledge_banks import load_banks

    opened = (Dataset(path, read_manifest(path), read_studies(path)) for path in datasets)
    official = official_splits(mimic_root) if mimic_root else None
    checked = check_datasets(opened, load_banks(banks), official=official)
    Console().print(checked_view(checked, first=first))
    if out:
        try:
            out.write_bytes(json_lines(problem._asdict() for problem in checked.problems))
        except OSError as error:
            raise UserError(f"--out {out}: cannot be written: {error.strerror}") from None
    if any(problem.severity == "error" for problem in checked.problems):
        raise typer.Exit(1)


def doctor(
    dataset: Dataset,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="A model's folder or its name on the Hub: use its real processor. Without it, "
            "Qwen-VL's rule of resizing with the dataset's pixel budget.",
            show_default=False,
        ),
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="The folder at which image paths start, to read the files. Without it: the "
            "dataset's own reduced images, or blank ones of the recorded sizes.",
            show_default=False,
        ),
    ] = None,
    min_pixels: MinPixels = None,
    max_pixels: MaxPixels = None,
    factor: Factor = None,
    max_length: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Count examples of more tokens.", show_default=False),
    ] = None,
    overlays: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Draw images with boxes and phrases, and a contact sheet, into this folder.",
            show_default=False,
        ),
    ] = None,
    first: Annotated[
        int, typer.Option(metavar="N", min=1, help="With --overlays: how many images.")
    ] = 48,
) -> None:
    """Send every box through a processor and back, and tell what a wrong frame would cost.

    Prints the IoU of the round trip, visual tokens, boxes too thin, images resized twice, examples
    too long, and the scores of each mistake of frame. Exits with status 1 when something is wrong.

    For example:

    - `cot-builder doctor out/ms_cxr`
    - `cot-builder doctor out/ms_cxr --model Qwen/Qwen2-VL-2B-Instruct --root /data --overlays look`
    """
    from cot_builder.doctor import (
        checkup_tables,
        examine,
        image_files,
        read_examples,
        recipe_reader,
        recorded_frame,
    )

    files = image_files(dataset, root)
    if overlays and not files:
        raise UserError("--overlays needs --root, the folder at which the image paths start")
    if model and factor:
        raise UserError("--factor is for a doctor without --model: a processor has its own")
    if model:
        with extra("train", "--model"):
            from training.processors import processor_reader

        reader = processor_reader(model, min_pixels=min_pixels, max_pixels=max_pixels)
    else:
        recorded = recorded_frame(dataset).pixels
        reader = recipe_reader(pixel_budget(min_pixels, max_pixels, factor, unless_given=recorded))
    console = Console()
    with spinner("examples") as progress:
        found = examine(dataset, reader, root=root, max_length=max_length, progress=progress)
    console.print(checkup_tables(found), highlight=False)
    if overlays and files:
        from eval.contact_sheet import write_overlays

        examples = (example for _, example in read_examples(dataset))
        *_, sheet = write_overlays(examples, files=files, folder=overlays, most=first)
        console.print(f"contact sheet: {sheet}", highlight=False)
    if found.problems:
        raise typer.Exit(1)


def score_chains(
    gold: Annotated[
        Path, typer.Argument(help="Annotated reports as JSON Lines.", show_default=False)
    ],
    dataset: Dataset,
) -> None:
    """Score a dataset's chains against annotated ones (triple F1, assertions, regions, offsets).

    For example:

    - `cot-builder score-chains gold/chains_dev.jsonl out/iu`
    """
    from eval.chains import score_chains as score

    Console().print(score(gold, dataset))
