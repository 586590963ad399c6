"""The commands of `cot-builder`; each imports what it needs when it runs: --help is quick."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from cot_builder import __version__
from cot_builder.errors import UserError

if TYPE_CHECKING:
    from cot_builder.boxes import Pixels
    from cot_builder.pipeline import Manifest, Progress

INTERRUPTED = 130


class IuFormat(StrEnum):
    """The layouts in which the Indiana University reports are spread."""

    auto = "auto"
    openi = "openi"
    kaggle = "kaggle"


class BoxFormat(StrEnum):
    """How four numbers make a box: two corners, or a corner and a size."""

    xyxy = "xyxy"
    xywh = "xywh"


class _Commands(TyperGroup):
    """Turns a UserError into its one line and exit status 1."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            typer.echo(f"cot-builder: {error}", err=True)
            raise typer.Exit(1) from None


app = typer.Typer(
    cls=_Commands,
    help="Chest X-ray reports to Findings → Disease → Anatomy chains, each tied to its words.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
banks_app = typer.Typer(help="Look at the knowledge banks.", no_args_is_help=True)
app.add_typer(banks_app, name="banks")

MARKS = "For sources of boxes"
IU, TABLE, BOXES = "For --source iu_xray", "For --source table", "Boxes and the model's processor"
# Each option names itself; what they share stands here once.
Column = Annotated[
    str | None, typer.Option(metavar="NAME", show_default=False, rich_help_panel=TABLE)
]
MinPixels = Annotated[
    int | None,
    typer.Option(
        metavar="N", min=1, rich_help_panel=BOXES, show_default=False,
        help="The processor enlarges images below this area; 3136 unless given.",
    ),
]  # fmt: skip
MaxPixels = Annotated[
    int | None,
    typer.Option(
        metavar="N", min=1, rich_help_panel=BOXES, show_default=False,
        help="The processor reduces images above this area; 12845056 unless given.",
    ),
]  # fmt: skip
Factor = Annotated[
    int | None,
    typer.Option(
        metavar="N", min=1, rich_help_panel=BOXES, show_default=False,
        help="The processor makes sides multiples of this: 28 unless given; Qwen3-VL has 32.",
    ),
]  # fmt: skip
BankFolder = Annotated[
    Path | None,
    typer.Option(
        "--banks", help="A bank folder of your own instead of the shipped one.", metavar="DIR"
    ),
]
DatasetFolder = Annotated[
    Path, typer.Argument(metavar="DATASET", help="A folder that `build` wrote.", show_default=False)
]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cot-builder {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    pass


@app.command()
def build(
    source: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Reports: demo, mimic, iu_xray, table. Boxes: ms_cxr, latte_cxr, reflacx, "
            "imagenome, nih, chestx_det, vindr, coco, boxes.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="The dataset folder to write.", show_default=False)
    ],
    root: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH", help="Where the release lies (table: the file).", show_default=False
        ),
    ] = None,
    sections: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Sections to decompose, by their canonical names; the default is the source's own "
            "(reports: findings,impression; boxes: phrases).",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Only the first N studies.", show_default=False),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="Processes; the default is one a CPU.", show_default=False
        ),
    ] = None,
    shard_size: Annotated[int, typer.Option(metavar="N", min=1, help="Studies in a shard.")] = 4000,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue a build that was cut off.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the dataset in --out.")
    ] = False,
    banks: BankFolder = None,
    seed: Annotated[
        int,
        typer.Option(metavar="N", help="Kept in the manifest; the build draws nothing at random."),
    ] = 0,
    check_images: Annotated[
        bool, typer.Option("--check-images", help="Decode every image; broken ones go to rejects.")
    ] = False,
    image_scale: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="Also write each image reduced by this, as 0.25, into images/; boxes stay as they "
            "are, in original pixels.",
            show_default=False,
        ),
    ] = None,
    invert_images: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="With --image-scale: ids of JPEG or PNG images whose bones are dark, one a line.",
            show_default=False,
        ),
    ] = None,
    iu_format: Annotated[
        IuFormat, typer.Option(help="Open-i's XML files or Kaggle's tables.", rich_help_panel=IU)
    ] = IuFormat.auto,
    splits: Annotated[
        Path | None,
        typer.Option(
            help="JSON file of ids by split (R2Gen).",
            metavar="FILE",
            show_default=False,
            rich_help_panel=IU,
        ),
    ] = None,
    mimic_root: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Where MIMIC-CXR-JPG lies, for its splits and images; image paths start here.",
            show_default=False,
            rich_help_panel=MARKS,
        ),
    ] = None,
    columns: Annotated[
        str,
        typer.Option(
            metavar="OURS=THEIRS,...",
            help="What a release calls its columns, as in statement=text,xmin=x0.",
            show_default=False,
            rich_help_panel=MARKS,
        ),
    ] = "",
    box_columns: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="boxes: the four columns of a box, or one that holds a list of four.",
            show_default=False,
            rich_help_panel=MARKS,
        ),
    ] = "",
    box_format: Annotated[
        BoxFormat | None,
        typer.Option(
            help="boxes: two corners, or left upper corner, width and height.",
            show_default=False,
            rich_help_panel=MARKS,
        ),
    ] = None,
    frame: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="The frame in which a model will write boxes: norm1000, model_pixels, "
            "quarter_pixels or percent. Recorded; the dataset's own boxes stay in original pixels.",
            rich_help_panel=BOXES,
        ),
    ] = "norm1000",
    min_pixels: MinPixels = None,
    max_pixels: MaxPixels = None,
    factor: Factor = None,
    id_column: Column = None,
    text_column: Column = None,
    findings_column: Column = None,
    impression_column: Column = None,
    subject_column: Column = None,
    split_column: Column = None,
    image_column: Column = None,
) -> None:
    """Turn a release's report files into a dataset of chains.

    Writes Parquet shards, one row a study, then rejects.jsonl (every input that gave no row, with
    its reason) and manifest.json (versions, hashes, counts that add up). The same input gives the
    same bytes, however many workers there are.

    For example:

    - `cot-builder build --source demo --out out/demo`
    - `cot-builder build --source mimic --root /data/physionet --out out/mimic --workers 8`
    - `cot-builder build --source table --root reports.csv --text-column report --out out/mine`
    - `cot-builder build --source ms_cxr --root /data/physionet --out out/ms_cxr`
    - `cot-builder build --source boxes --root boxes.csv --columns image=file,phrase=text
      --box-columns x,y,w,h --box-format xywh --out out/boxes`
    """
    from cot_builder.boxes import Frame
    from cot_builder.images import scaling
    from cot_builder.pipeline import BuildOptions
    from cot_builder.pipeline import build as run_build
    from cot_builder.sources import SourceOptions
    from knowledge_banks import load_banks

    if invert_images and image_scale is None:
        raise UserError("--invert-images needs --image-scale: originals are never changed")
    options = BuildOptions(
        source=source,
        release=SourceOptions(
            banks=load_banks(banks),
            root=root,
            limit=limit,
            check_images=check_images,
            iu_format=iu_format.value,
            splits=splits,
            text_column=text_column,
            findings_column=findings_column,
            impression_column=impression_column,
            id_column=id_column,
            subject_column=subject_column,
            split_column=split_column,
            image_column=image_column,
            mimic_root=mimic_root,
            columns=_pairs(columns),
            box_columns=tuple(name.strip() for name in box_columns.split(",") if name.strip()),
            box_format=box_format.value if box_format else None,
        ),
        out=out,
        sections=_names(sections) if sections is not None else (),
        frame=Frame(frame, _pixels(min_pixels, max_pixels, factor), image_scale or 1.0),
        scaling=scaling(image_scale, invert_images) if image_scale is not None else None,
        shard_size=shard_size,
        workers=workers or _cpus(),
        resume=resume,
        overwrite=overwrite,
        seed=seed,
        command=shlex.join(["cot-builder", *sys.argv[1:]]),
    )
    started = time.monotonic()
    try:
        with _progress_bar() as progress:
            manifest = run_build(options, progress=progress)
    except KeyboardInterrupt:
        typer.echo("stopped; the same command with --resume goes on from here", err=True)
        raise typer.Exit(INTERRUPTED) from None
    _print_summary(manifest, out, time.monotonic() - started)


@app.command()
def show(
    dataset: Annotated[
        Path, typer.Option(metavar="DIR", help="A folder that `build` wrote.", show_default=False)
    ],
    study: Annotated[
        str | None,
        typer.Argument(help="A study id; without one, the first studies.", show_default=False),
    ] = None,
    first: Annotated[
        int, typer.Option(metavar="N", min=1, help="How many, without a study id.")
    ] = 3,
) -> None:
    """Show a study: its report with the mentions in colour, and its chains as a tree.

    For example:

    - `cot-builder show 50414267 --dataset out/mimic`
    - `cot-builder show --dataset out/demo --first 12`
    """
    from itertools import islice

    from cot_builder.dataset import read_studies
    from cot_builder.show import legend, study_view

    rows = list(islice(read_studies(dataset, study_id=study), None if study else first))
    if study and not rows:
        raise UserError(
            f"{dataset} has no study {study!r}; {dataset}/rejects.jsonl may tell why, and "
            f"`cot-builder show --dataset {dataset}` shows the first ones"
        )
    console = Console()
    for row in rows:
        console.print(study_view(row))
        console.rule(style="dim")
    console.print(legend())


@app.command()
def stats(
    dataset: DatasetFolder,
    plots: Annotated[
        Path | None,
        typer.Option(
            help="Also draw PNG plots into this folder.", metavar="DIR", show_default=False
        ),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(
            help="Compare the labels with chexpert.csv, negbio.csv or a test set (.gz too).",
            metavar="CSV",
            show_default=False,
        ),
    ] = None,
    disagreements: Annotated[
        Path | None,
        typer.Option(
            help="With --against: write every disagreement here.", metavar="CSV", show_default=False
        ),
    ] = None,
) -> None:
    """Count what a dataset holds, plot it, and compare its labels with the release's own.

    For example:

    - `cot-builder stats out/mimic --plots out/plots`
    - `cot-builder stats out/mimic --against chexpert.csv.gz --disagreements differ.csv`
    """
    if disagreements and not against:
        raise UserError("--disagreements needs --against, the table to compare with")
    console = Console()
    if against:
        from eval.label_agreement import (
            compare_labels,
            comparison_tables,
            write_disagreements,
        )

        comparison = compare_labels(dataset, against)
        console.print(comparison_tables(comparison, against.name))
        if disagreements:
            write_disagreements(disagreements, comparison)
            console.print(f"disagreements: {disagreements}", highlight=False)
        return
    from eval.dataset_statistics import dataset_statistics, statistics_tables

    statistics = dataset_statistics(dataset)
    console.print(statistics_tables(statistics))
    if plots:
        try:
            from eval.plots import write_plots
        except ModuleNotFoundError as error:
            raise UserError(
                f"--plots needs {error.name}: pip install 'cot-builder[eval]' -c constraints.txt"
            ) from None

        for path in write_plots(statistics, plots):
            console.print(f"plot: {path}", highlight=False)


@app.command()
def doctor(
    dataset: DatasetFolder,
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
        try:
            from training.processors import processor_reader
        except ModuleNotFoundError as error:
            raise UserError(
                f"--model needs {error.name}: pip install 'cot-builder[train]' -c constraints.txt"
            ) from None

        reader = processor_reader(model, min_pixels=min_pixels, max_pixels=max_pixels)
    else:
        recorded = recorded_frame(dataset).pixels
        reader = recipe_reader(_pixels(min_pixels, max_pixels, factor, unless_given=recorded))
    console = Console()
    with _spinner("examples") as progress:
        found = examine(dataset, reader, root=root, max_length=max_length, progress=progress)
    console.print(checkup_tables(found), highlight=False)
    if overlays and files:
        from eval.contact_sheet import write_overlays

        examples = (example for _, example in read_examples(dataset))
        *_, sheet = write_overlays(examples, files=files, folder=overlays, most=first)
        console.print(f"contact sheet: {sheet}", highlight=False)
    if found.problems:
        raise typer.Exit(1)


@app.command()
def check(
    datasets: Annotated[
        list[Path],
        typer.Argument(
            metavar="DATASET...", help="Folders that `build` wrote.", show_default=False
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


@app.command()
def explain(
    sentence: Annotated[str, typer.Argument(help="A sentence of a report.", show_default=False)],
    banks: BankFolder = None,
) -> None:
    """Print a sentence's mentions, cues, scopes and regions, and the reason for each decision.

    For example:

    - `cot-builder explain "No pneumothorax, but a small left effusion is possible."`
    """
    from cot_builder.decompose.explain import explain as explain_sentence
    from knowledge_banks import load_banks

    Console().print(explain_sentence(sentence, load_banks(banks)))


@app.command("score-chains")
def score_chains(
    gold: Annotated[
        Path, typer.Argument(help="Annotated reports as JSON Lines.", show_default=False)
    ],
    dataset: DatasetFolder,
) -> None:
    """Score a dataset's chains against annotated ones (triple F1, assertions, regions, offsets).

    For example:

    - `cot-builder score-chains gold/chains_dev.jsonl out/iu`
    """
    from eval.chains import score_chains as score

    Console().print(score(gold, dataset))


@banks_app.command("lint")
def lint_banks(banks: BankFolder = None) -> None:
    """Read and check every bank; an error names file, table and key.

    For example:

    - `cot-builder banks lint --banks my_banks`
    """
    from cot_builder.decompose import Decomposer
    from knowledge_banks import load_banks

    checked = load_banks(banks)
    Decomposer(checked)  # compiles every phrase
    typer.echo(f"{checked.folder}: banks {checked.version} are sound ({checked.sha256[:12]})")


@banks_app.command("show")
def show_banks(banks: BankFolder = None) -> None:
    """Print what the banks hold, in figures and names.

    For example:

    - `cot-builder banks show`
    """
    from cot_builder.bank_changes import banks_table
    from knowledge_banks import load_banks

    Console().print(banks_table(load_banks(banks)))


@banks_app.command("diff")
def diff_banks(
    dataset: DatasetFolder,
    banks: BankFolder = None,
    old: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Compare with this bank folder, not the shipped one.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="JSONL", help="Also write every changed chain here.", show_default=False
        ),
    ] = None,
) -> None:
    """Show which chains of a dataset change from one bank folder to another.

    For example:

    - `cot-builder banks diff out/mimic --banks my_banks`
    - `cot-builder banks diff out/mimic --old banks_1 --banks banks_2 --out changes.jsonl`
    """
    from cot_builder.bank_changes import changed_chains, changes_table, write_changes
    from cot_builder.dataset import read_manifest, read_studies
    from knowledge_banks import load_banks

    sections = read_manifest(dataset)["options"]["sections"]
    studies = read_studies(dataset, columns=["study_id", "sections"])
    found = changed_chains(studies, load_banks(old), load_banks(banks), sections=sections)
    changes = list(found)
    Console().print(changes_table(changes))
    if out:
        write_changes(out, changes)


def _names(listed: str) -> tuple[str, ...]:
    names = tuple(name.strip().lower() for name in listed.split(",") if name.strip())
    if not names:
        raise UserError(f"--sections {listed!r} names no section; for example findings,impression")
    return names


def _pairs(listed: str) -> tuple[tuple[str, str], ...]:
    pairs = [pair.partition("=") for pair in listed.split(",") if pair.strip()]
    for ours, equals, theirs in pairs:
        if not (ours.strip() and equals and theirs.strip()):
            raise UserError(
                f"--columns {listed!r}: expected OURS=THEIRS pairs such as phrase=text, got "
                f"{ours + equals + theirs!r}"
            )
    return tuple((ours.strip(), theirs.strip()) for ours, _, theirs in pairs)


def _pixels(
    min_pixels: int | None,
    max_pixels: int | None,
    factor: int | None,
    *,
    unless_given: Pixels | None = None,
) -> Pixels:
    from cot_builder.boxes import Pixels

    given = {"factor": factor, "min_pixels": min_pixels, "max_pixels": max_pixels}
    chosen = {name: number for name, number in given.items() if number is not None}
    pixels = (unless_given or Pixels())._replace(**chosen)
    if not pixels.min_pixels <= pixels.max_pixels:
        raise UserError(
            f"--min-pixels {pixels.min_pixels} is more than --max-pixels {pixels.max_pixels}"
        )
    return pixels


def _cpus() -> int:
    # A job scheduler or container may leave a process fewer CPUs than the machine has.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _progress_bar() -> Iterator[Callable[[Progress], None]]:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("reading the release", total=None, rate="")
        started: float | None = None

        def show(progress: Progress) -> None:
            nonlocal started
            now = time.monotonic()
            started = started or now
            rate = (progress.done - progress.kept) / (now - started) if now > started else 0
            bar.update(
                task,
                description="studies",
                completed=progress.done,
                total=progress.total,
                rate=f"{rate:,.0f}/s" if rate else "",
            )

        yield show


@contextmanager
def _spinner(what: str) -> Iterator[Callable[[int], None]]:
    with Console(stderr=True).status(what) as status:
        yield lambda done: status.update(f"{done:,} {what}") if done % 100 == 0 else None


def _print_summary(manifest: Manifest, out: Path, seconds: float) -> None:
    from cot_builder.show import build_summary

    console = Console()
    console.print(build_summary(manifest))
    counts, rejects = manifest["counts"], manifest["rejects"]
    console.print(
        f"{counts['planned']:,} studies planned = {counts['written']:,} written + "
        f"{counts['rejected']:,} rejected; {rejects['before_planning']:,} set aside before; "
        f"{rejects['lines']:,} lines in rejects.jsonl; "
        f"{seconds:.1f} s ({counts['planned'] / seconds:,.0f} studies/s) → {out}",
        highlight=False,
        soft_wrap=True,
    )
    if defects := rejects["by_reason"].get("internal_error", 0):
        typer.echo(
            f"cot-builder: {defects} studies met a defect of the tool itself (internal_error in "
            f"{out}/rejects.jsonl); please report them",
            err=True,
        )
        raise typer.Exit(1)
    if not counts["written"]:
        typer.echo(f"cot-builder: no study was written; see {out}/rejects.jsonl", err=True)
        raise typer.Exit(1)


def main() -> None:
    """Run the command line (the console script)."""
    app()
