"""`cot-builder reproduce`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from cot_builder.cli.options import interruptible

if TYPE_CHECKING:
    from cot_builder.reproduce import Outcome

_STYLES = {"kept": "dim", "done": "green", "running": "bold cyan", "failed": "red", "waiting": ""}


def reproduce(
    plan: Annotated[
        Path, typer.Argument(metavar="PLAN", help="A plan in TOML.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The run's folder.", show_default=False)],
    redo: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STEP",
            show_default=False,
            help="Run this step again, and all that need it; may be given several times.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the commands; run nothing.")
    ] = False,
) -> None:
    """Carry out a plan: build, check, publish (dry), train, predict, score, compare.

    Ends with the paper's Tables 1-5 (2 where the plan has [external]) and Figure 5 for that plan in
    DIR/tables, and its Figure 6, a sheet of cases a model, in DIR/cases. Each step is a command
    that a person could type; logs/ has what it said. A run that was cut off goes on where it
    stopped with the same command.

    For example:

    - `cot-builder reproduce plans/smoke.toml --out out/smoke`
    - `cot-builder reproduce plans/paper.toml --out out/paper --dry-run`
    """  # fmt: skip
    from cot_builder.reproduce import read_plan, run, steps

    read = read_plan(plan)
    ordered = steps(read, out)
    console = Console()
    if dry_run:
        for step in ordered:
            typer.echo(shlex.join(["cot-builder", *step.command]))
        return
    with interruptible("the same command"), Live(console=console, refresh_per_second=2) as live:
        run(
            read.name,
            ordered,
            out,
            redo=redo or (),
            show=lambda outcomes: live.update(_overview(outcomes)),
        )
    console.print(f"tables and figures: {out / 'tables'}, {out / 'cases'}", highlight=False)


def _overview(outcomes: tuple[Outcome, ...]) -> Table:
    table = Table("step", "", "seconds")
    for step, state, seconds in outcomes:
        table.add_row(
            step.id, state, f"{seconds:,.1f}" if seconds is not None else "", style=_STYLES[state]
        )
    return table
