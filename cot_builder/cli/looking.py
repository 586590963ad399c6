"""`cot-builder show`, `browse`, `stats` and `explain`."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cot_builder.cli.options import BankFolder, Dataset, extra
from cot_builder.errors import UserError
from cot_builder.paths import is_remote, where


def show(
    dataset: Annotated[
        Path,
        typer.Option(
            metavar="DIR",
            help="A folder that `build` wrote, or its s3:// or hf:// address.",
            show_default=False,
            parser=where,
        ),
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


def browse(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DATASET|RUN",
            help="A folder that `build`, `train` or `reproduce` wrote; a dataset's s3:// or hf:// "
            "address too.",
            show_default=False,
            parser=where,
        ),
    ],
    root: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Where the release with the images lies.", show_default=False
        ),
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="A folder of predictions to show beside.", show_default=False
        ),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="CSV",
            help="Find studies whose labels differ from chexpert.csv, negbio.csv or a test set.",
            show_default=False,
        ),
    ] = None,
    banks: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Show what these banks would change.", show_default=False),
    ] = None,
    old: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="The banks that made the dataset, unless the shipped ones did.",
            show_default=False,
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, max=65535, help="The default is any free one.", show_default=False
        ),
    ] = None,
) -> None:
    """Serve a page on this machine to search a dataset, or to look at a training run.

    A dataset shows its studies with chains, reasons and boxes. A run of `train` shows its stages'
    settings, metrics, curves and sample answers, one of `reproduce` its steps, tables, figures and
    training runs; one that still goes on is read again with each page.

    The address that it prints holds a key; Ctrl-C ends it. Nothing is fetched from elsewhere, and
    nobody but this machine can open it.

    For example:

    - `cot-builder browse out/demo`
    - `cot-builder browse out/mimic --root /data/physionet --against chexpert.csv.gz`
    - `cot-builder browse out/mimic --predictions out/svr_predictions --port 8000`
    - `cot-builder browse out/mimic --banks my_banks`
    - `cot-builder browse out/run`
    """
    with extra("browse", "browse"):
        from eval.workbench.app import application, open_workbench, run_application, serve
        from eval.workbench.run import is_run, read_run

    console = Console()
    beside = {
        "root": root, "predictions": predictions, "against": against, "banks": banks, "old": old
    }  # fmt: skip
    if not is_remote(folder) and is_run(folder):
        if told := [name for name, value in beside.items() if value]:
            raise UserError(f"--{told[0]} is for a dataset, and {folder} is a run")
        pages, holds = partial(run_application, folder), read_run(folder).kind
    else:
        with console.status("reading the dataset"):
            bench = open_workbench(folder, **beside)
        for note in bench.notes:
            console.print(note, highlight=False, markup=False)
        pages, holds = partial(application, bench), f"{len(bench.index):,} studies"

    def ready(address: str) -> None:
        console.print(f"{holds}: {address}", highlight=False, soft_wrap=True)

    with suppress(KeyboardInterrupt):
        serve(pages, port=port or 0, ready=ready)


def stats(
    dataset: Dataset,
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
        with extra("eval", "--plots"):
            from eval.plots import write_plots

        for path in write_plots(statistics, plots):
            console.print(f"plot: {path}", highlight=False)


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
