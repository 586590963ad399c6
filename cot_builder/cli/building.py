"""`cot-builder build` and `merge`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console

from cot_builder.cli.drafting import endpoint
from cot_builder.cli.options import (
    BOXES,
    LLM,
    BankFolder,
    Factor,
    LlmBaseUrl,
    LlmBudget,
    LlmCache,
    LlmConcurrency,
    LlmKeyVariable,
    LlmMaxTokens,
    LlmModel,
    LlmPrice,
    LlmTemperature,
    LlmTimeout,
    MaxPixels,
    MinPixels,
    ZeroRetentionHost,
    cpus,
    extra,
    interruptible,
    pixel_budget,
    this_command,
)
from cot_builder.errors import UserError
from cot_builder.paths import beside, where

if TYPE_CHECKING:
    from cot_builder.llm import Endpoint, Estimate
    from cot_builder.pipeline import Manifest, Progress
    from cot_builder.shards import BuildOptions

MARKS: Final = "For sources of boxes"
IU: Final = "For --source iu_xray"
TABLE: Final = "For --source table"


def _column(holds: str) -> Any:
    return typer.Option(
        metavar="NAME", show_default=False, rich_help_panel=TABLE, help=f"The column of {holds}."
    )


class IuFormat(StrEnum):
    """The layouts in which the Indiana University reports are spread."""

    auto = "auto"
    openi = "openi"
    kaggle = "kaggle"


class Engine(StrEnum):
    """What runs a build's shards: processes of this machine, or an engine of other people's."""

    local = "local"
    datatrove = "datatrove"
    datatrove_slurm = "datatrove-slurm"
    ray = "ray"


class BoxFormat(StrEnum):
    """How four numbers make a box: two corners, or a corner and a size."""

    xyxy = "xyxy"
    xywh = "xywh"


class DecomposerKind(StrEnum):
    """Who turns sentences into chains."""

    rules = "rules"
    hybrid = "hybrid"
    llm = "llm"


class Phrasing(StrEnum):
    """Who puts the steps of reasoning in words."""

    template = "template"
    llm = "llm"


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
        Path,
        typer.Option(
            metavar="DIR",
            help="The dataset folder to write; s3://bucket/folder with the remote extra.",
            show_default=False,
            parser=where,
        ),
    ],
    root: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Where the release lies (table: the file); s3:// and hf:// addresses too, with "
            "the remote extra.",
            show_default=False,
            parser=where,
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
    engine: Annotated[
        Engine, typer.Option(help="What runs the shards; the bytes are the same.")
    ] = Engine.local,
    sbatch: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="datatrove-slurm: an option of sbatch, at least partition and time; may be given "
            "again. --workers is then the number of tasks.",
            show_default=False,
        ),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Build part I, from 0, of N into --out; `merge` puts the parts together.",
            show_default=False,
        ),
    ] = None,
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
    link: Annotated[
        Path | None,
        typer.Option(
            metavar="KB",
            help="Give each finding its concept ids from a knowledge base on disk: UMLS, RadLex or "
            "your own as JSONL in scispaCy's form, or its folder. Needs the extra sci.",
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
            parser=where,
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
    decomposer: Annotated[
        DecomposerKind | None,
        typer.Option(
            help="rules; hybrid: a model is asked what the rules leave open, the default with "
            "--llm-model; llm: a model is asked every finding.",
            show_default=False,
            rich_help_panel=LLM,
        ),
    ] = None,
    phrasing: Annotated[
        Phrasing,
        typer.Option(
            help="llm: a model also words each step of reasoning, for training; a line that does "
            "not read back as its step is left to the templates.",
            rich_help_panel=LLM,
        ),
    ] = Phrasing.template,
    llm_model: LlmModel = None,
    llm_base_url: LlmBaseUrl = "https://api.openai.com/v1",
    llm_key_variable: LlmKeyVariable = "OPENAI_API_KEY",
    zero_retention_host: ZeroRetentionHost = None,
    llm_budget: LlmBudget = None,
    llm_price_in: LlmPrice = None,
    llm_price_out: LlmPrice = None,
    llm_batch: Annotated[
        bool,
        typer.Option(
            "--llm-batch",
            help="Hand the requests in as files and wait for the answers (the Batch API).",
            rich_help_panel=LLM,
        ),
    ] = False,
    llm_cache: LlmCache = None,
    llm_concurrency: LlmConcurrency = 32,
    llm_timeout: LlmTimeout = 120.0,
    llm_temperature: LlmTemperature = 0.0,
    llm_max_tokens: LlmMaxTokens = 1024,
    id_column: Annotated[
        str | None, _column("study ids; without it a study is named by its line")
    ] = None,
    text_column: Annotated[str | None, _column("whole reports, to be cut into sections")] = None,
    findings_column: Annotated[
        str | None, _column("findings, where sections have columns of their own")
    ] = None,
    impression_column: Annotated[str | None, _column("impressions, likewise")] = None,
    subject_column: Annotated[
        str | None, _column("patient ids; none may stand in two splits")
    ] = None,
    split_column: Annotated[str | None, _column("train, validation or test")] = None,
    image_column: Annotated[str | None, _column("image paths, from the table's folder on")] = None,
) -> None:
    """Turn a release's report files into a dataset of chains.

    Writes Parquet shards, one row a study, then rejects.jsonl (every input that gave no row, with
    its reason) and manifest.json (versions, hashes, counts that add up). The same input gives the
    same bytes, however many workers there are.

    For example:

    - `cot-builder build --source demo --out out/demo`
    - `cot-builder build --source mimic --root /data/physionet --out out/mimic --workers 8`
    - `cot-builder build --source table --root reports.csv --text-column report --out out/mine`
    - `cot-builder build --source mimic --root /data/physionet --out parts/3 --shard 3/8`
    - `cot-builder build --source mimic --root /data/physionet --out out/mimic --workers 32
      --engine datatrove-slurm --sbatch partition=cpu --sbatch time=00:30:00`
    - `cot-builder build --source ms_cxr --root /data/physionet --out out/ms_cxr`
    - `cot-builder build --source boxes --root boxes.csv --columns image=file,phrase=text
      --box-columns x,y,w,h --box-format xywh --out out/boxes`
    - `cot-builder build --source demo --out out/demo --link radlex.jsonl`
    - `cot-builder build --source mimic --root /data/physionet --out out/mimic --llm-model qwen3-8b
      --llm-base-url http://127.0.0.1:8000/v1`
    """
    from cot_builder.boxes import Frame
    from cot_builder.dataset import without_folders
    from cot_builder.drafting import Drafting
    from cot_builder.engines import ENGINES, datatrove_slurm
    from cot_builder.images import scaling
    from cot_builder.parts import Portion, build_part
    from cot_builder.pipeline import build as run_build
    from cot_builder.shards import BuildOptions
    from cot_builder.sources import SourceOptions
    from knowledge_banks import load_banks

    if invert_images and image_scale is None:
        raise UserError("--invert-images needs --image-scale: originals are never changed")
    kind = decomposer or (DecomposerKind.hybrid if llm_model else DecomposerKind.rules)
    asks = phrasing is Phrasing.llm or kind is not DecomposerKind.rules
    if asks != (llm_model is not None):
        raise UserError(
            "--decomposer hybrid or llm and --phrasing llm go with --llm-model, and rules without"
        )
    asked = endpoint(
        llm_model or "",
        llm_base_url,
        key_variable=llm_key_variable,
        zero_retention_host=zero_retention_host,
        temperature=llm_temperature,
        max_tokens=llm_max_tokens,
        concurrency=llm_concurrency,
        timeout=llm_timeout,
        price_in=llm_price_in,
        price_out=llm_price_out,
        budget=llm_budget,
    )
    kept = llm_cache or beside(out, f"{out.name}.llm.sqlite")
    drafting = None
    if kind is not DecomposerKind.rules:
        drafting = Drafting(
            kind="llm" if kind is DecomposerKind.llm else "hybrid",
            endpoint=asked,
            cache=kept,
            batch=llm_batch,
        )
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
        frame=Frame(frame, pixel_budget(min_pixels, max_pixels, factor), image_scale or 1.0),
        scaling=scaling(image_scale, invert_images) if image_scale is not None else None,
        drafting=drafting,
        link=link,
        shard_size=shard_size,
        workers=workers or cpus(),
        resume=resume,
        overwrite=overwrite,
        seed=seed,
        command=without_folders(this_command()),
    )
    portion = Portion.parse(shard) if shard else None
    if portion and engine is not Engine.local:
        raise UserError("--shard is a part for one task of an array: leave out --engine")
    run_shards = ENGINES.get(engine)
    if engine is not Engine.local:
        library = engine.partition("-")[0]
        with extra(library, f"--engine {engine}"):
            import_module(library)
    if engine is Engine.datatrove_slurm:
        named = (option.partition("=") for option in sbatch or ())
        run_shards = partial(datatrove_slurm, sbatch={name: value for name, _, value in named})
    elif sbatch:
        raise UserError("--sbatch goes with --engine datatrove-slurm")
    if portion and phrasing is Phrasing.llm:
        raise UserError("--phrasing llm words the steps of a whole dataset: leave out --shard")
    started = time.monotonic()
    with interruptible(), _progress_bar() as progress, extra("scale", "--llm-model"):
        if portion:
            jobs = build_part(options, portion, progress=progress)
        else:
            manifest = run_build(
                options,
                progress=progress,
                estimated=_print_estimate,
                engine=run_shards,
            )
            if phrasing is Phrasing.llm:
                manifest = _phrase(options, asked, kept, manifest, batch=llm_batch, bar=progress)
    if portion:
        typer.echo(
            f"part {shard}: {len(jobs)} shards in {out}; `cot-builder merge` takes all parts"
        )
        return
    _print_summary(manifest, out, time.monotonic() - started)


def merge(
    out: Annotated[
        Path,
        typer.Argument(
            metavar="OUT", help="The dataset folder to write.", show_default=False, parser=where
        ),
    ],
    parts: Annotated[
        list[Path],
        typer.Argument(
            metavar="PART...",
            help="All folders of `build --shard`.",
            show_default=False,
            parser=where,
        ),
    ],
) -> None:
    """Put the parts of a build together: the dataset that a single build would have written.

    The release is not needed again. The parts are left as they are; files are linked, not copied,
    where the disk allows it.

    For example:

    - `cot-builder merge out/mimic parts/*`
    """
    from cot_builder.dataset import without_folders
    from cot_builder.parts import merge as merge_parts

    started = time.monotonic()
    command = without_folders(this_command())
    manifest = merge_parts(out, parts, command=command)
    _print_summary(manifest, out, time.monotonic() - started)


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


@contextmanager
def _progress_bar() -> Iterator[Callable[[Progress], None]]:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("reading the release", total=None, rate="", note="")
        started: float | None = None
        stage = ""

        def show(progress: Progress) -> None:
            nonlocal started, stage
            now = time.monotonic()
            if started is None or stage != progress.stage:
                started, stage = now, progress.stage
            rate = (progress.done - progress.kept) / (now - started) if now > started else 0
            bar.update(
                task,
                description=progress.stage,
                completed=progress.done,
                total=progress.total,
                rate=f"{rate:,.0f}/s" if rate else "",
                note=progress.note,
            )

        yield show


def _phrase(
    options: BuildOptions,
    asked: Endpoint,
    cache: Path,
    manifest: Manifest,
    *,
    batch: bool,
    bar: Callable[[Progress], None],
) -> Manifest:
    """Let a model word the steps of a dataset that was built, with what the budget has left."""
    from dataclasses import replace

    from cot_builder.llm import Client
    from cot_builder.phrasing import phrase
    from cot_builder.pipeline import Progress

    source = manifest["source"]
    if asked.budget is not None:
        spent = manifest.get("llm", {}).get("tokens", {}).get("usd") or 0.0
        asked = replace(asked, budget=max(0.0, asked.budget - spent))
    with Client(
        asked,
        cache,
        credentialed=source["name"] if source["credentialed"] else None,
        run=f"phrasing {options.out.resolve()}",
    ) as client:
        total = 0

        def estimated(estimate: Estimate) -> None:
            nonlocal total
            total = estimate.requests
            _print_estimate(estimate, "steps to word")

        table = phrase(
            options.out,
            options.release.banks,
            client,
            batch=batch,
            progress=lambda tally: bar(Progress(tally.done, total, 0, "steps", str(tally))),
            estimated=estimated,
        )
    return {**manifest, "phrasing": table}


def _print_estimate(estimate: Estimate, what: str = "sentences to ask") -> None:
    cost = "" if estimate.cost is None else f", {estimate.cost:,.2f} USD"
    how = "as measured so far" if estimate.measured else "a guess, as long as none is measured"
    typer.echo(
        f"{what}: {estimate.requests:,}, of which {estimate.kept:,} are answered; the "
        f"others take about {estimate.tokens_in:,} tokens in and {estimate.tokens_out:,} out{cost} "
        f"({how}; repairs not counted)",
        err=True,
    )


def _print_summary(manifest: Manifest, out: Path, seconds: float) -> None:
    from cot_builder.show import build_summary, llm_line

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
    if llm := manifest.get("llm"):
        console.print(llm_line(llm), highlight=False, soft_wrap=True)
    if worded := manifest.get("phrasing"):
        console.print(
            f"The model worded {worded['accepted']:,} of {worded['steps']:,} distinct steps; the "
            "others keep the templates",
            highlight=False,
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
