"""`cot-builder banks lint`, `show` and `diff`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cot_builder.cli.options import BankFolder, Dataset


def lint(banks: BankFolder = None) -> None:
    """Read and check every bank; an error names file, table and key.

    For example:

    - `cot-builder banks lint --banks my_banks`
    """
    from cot_builder.decompose import Decomposer
    from knowledge_banks import load_banks

    checked = load_banks(banks)
    Decomposer(checked)  # compiles every phrase
    typer.echo(f"{checked.folder}: banks {checked.version} are sound ({checked.sha256[:12]})")


def show(banks: BankFolder = None) -> None:
    """Print what the banks hold, in figures and names.

    For example:

    - `cot-builder banks show`
    """
    from cot_builder.bank_changes import banks_table
    from knowledge_banks import load_banks

    Console().print(banks_table(load_banks(banks)))


def diff(
    dataset: Dataset,
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
