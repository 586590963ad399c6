"""`cot-builder train`: the three stages, all or one, their check, and merging an adapter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cot_builder.cli.options import BankFolder, extra, interruptible, this_command
from cot_builder.errors import UserError

if TYPE_CHECKING:
    from training.preflight import Finding

Datasets = Annotated[
    list[str],
    typer.Option(
        "--dataset", metavar="DATASET", show_default=False,
        help="A folder that `build` wrote, its s3:// or hf:// address, or OWNER/NAME@REVISION of "
        "the Hub; several are joined.",
    ),
]  # fmt: skip
Reports = Annotated[
    list[str] | None,
    typer.Option(
        "--reports", metavar="DATASET", show_default=False,
        help="The adapter's datasets, where they are others than --dataset.",
    ),
]  # fmt: skip
Out = Annotated[Path, typer.Option(metavar="DIR", help="The run's folder.", show_default=False)]
RecipeName = Annotated[
    str,
    typer.Option("--recipe", metavar="NAME", help="smoke, paper, set, visual_rft, or a TOML file."),
]
Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="TABLE.KEY=VALUE", show_default=False,
        help="Change a recipe, as in svr.generations=4; may be given several times.",
    ),
]  # fmt: skip
ImageRoot = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", show_default=False,
        help="Where the release's images lie, for datasets without reduced ones of their own.",
    ),
]  # fmt: skip
Base = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL", show_default=False,
        help="Start from this checkpoint or model, instead of the stage before or the recipe's.",
    ),
]  # fmt: skip
Resume = Annotated[bool, typer.Option("--resume", help="Go on with a run that was cut off.")]
Check = Annotated[
    bool, typer.Option("--check", help="Only check everything, on one batch, and train nothing.")
]
EVERY: Final = ("mcl", "svr", "adapter")


def train_all(
    dataset: Datasets,
    out: Out,
    recipe: RecipeName = "paper",
    changes: Changes = None,
    reports: Reports = None,
    image_root: ImageRoot = None,
    base: Base = None,
    banks: BankFolder = None,
    resume: Resume = False,
    check: Check = False,
) -> None:
    """Train all three stages, each from the checkpoint of the one before.

    MCL learns the chains, SVR their boxes by reinforcement, the adapter findings text. A run that
    was cut off goes on with --resume, to the same weights as if it had not been.

    For example:

    - `cot-builder train all --recipe smoke --dataset out/demo --out out/run`
    - `cot-builder train all --recipe paper --dataset out/ms_cxr --dataset out/latte
      --reports out/mimic --out out/boxmed --check`
    - `torchrun --nproc-per-node 8 --no-python cot-builder train all --recipe paper
      --dataset out/ms_cxr --reports out/mimic --out out/boxmed`
    """
    _run(EVERY, dataset, out, recipe, changes, reports, image_root, base, banks, resume, check)


def _alone(stage: str, text: str) -> Callable[..., None]:
    """Return the command of one stage, told by its help."""

    def command(
        dataset: Datasets,
        out: Out,
        recipe: RecipeName = "paper",
        changes: Changes = None,
        image_root: ImageRoot = None,
        base: Base = None,
        banks: BankFolder = None,
        resume: Resume = False,
        check: Check = False,
    ) -> None:
        _run((stage,), dataset, out, recipe, changes, None, image_root, base, banks, resume, check)

    command.__doc__ = text
    return command


mcl: Final = _alone(
    "mcl",
    """Train medical concept learning alone: the chains, by supervised learning (Eq. 1).

    For example:

    - `cot-builder train mcl --recipe smoke --dataset out/demo --out out/run`
    """,
)
svr: Final = _alone(
    "svr",
    """Train spatially verifiable reinforcement alone: boxes, by their rewards (Eq. 2 to 11).

    Starts from the run's MCL checkpoint, or from --base.

    For example:

    - `cot-builder train svr --recipe smoke --dataset out/demo --out out/run`
    - `cot-builder train svr --recipe set --dataset out/ms_cxr --base out/boxmed/mcl --out out/set`
    """,
)
adapter: Final = _alone(
    "adapter",
    """Train the downstream adapter alone: findings text, with the base frozen (Eq. 12).

    Starts from the run's SVR or MCL checkpoint, or from --base. Table 5's other rows are
    --set adapter.trainable, with vision, projector and adapter.

    For example:

    - `cot-builder train adapter --recipe smoke --dataset out/demo --out out/run`
    - `cot-builder train adapter --dataset out/mimic --base out/boxmed/svr --out out/table5
      --set 'adapter.trainable=["vision", "adapter"]'`
    """,
)


def merge(
    adapter: Annotated[
        Path, typer.Argument(metavar="ADAPTER", help="The adapter's folder.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where to.", show_default=False)],
) -> None:
    """Add an adapter to its base and save the sum as a plain checkpoint.

    For example:

    - `cot-builder train merge out/run/adapter --out out/merged`
    """
    with extra("train", "train"):
        from training.models import merge as run_merge

    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty; choose another --out")
    run_merge(adapter, out)
    typer.echo(f"{adapter} and its base → {out}")


def _run(
    stages: tuple[str, ...],
    datasets: list[str],
    out: Path,
    recipe: str,
    changes: list[str] | None,
    reports: list[str] | None,
    image_root: Path | None,
    base: str | None,
    banks: Path | None,
    resume: bool,
    check: bool,
) -> None:
    with extra("train", "train"):
        from training.preflight import first_look, preflight
        from training.recipe import load_recipe
        from training.run import RunOptions, is_first, train
    from knowledge_banks import load_banks

    options = RunOptions(
        stages=stages,
        recipe=load_recipe(recipe, changes or ()),
        datasets=tuple(datasets),
        reports=tuple(reports or ()),
        out=out,
        banks=load_banks(banks),
        image_root=image_root,
        base=base,
        resume=resume,
        command=this_command(),
    )
    with interruptible():
        findings = preflight(options) if check else first_look(options)
        if is_first():
            _report(findings, whole=check)
        if wrong := sum(not finding.well for finding in findings):
            raise UserError(f"{wrong} of {len(findings)} checks failed; nothing was trained")
        if not check:
            last = train(options)
            if is_first():
                typer.echo(f"trained {', '.join(stages)} → {last}")


def _report(findings: Sequence[Finding], *, whole: bool) -> None:
    """Show all findings, or those alone that are not well."""
    table = Table("stage", "check", "", "found", box=None)
    for finding in findings:
        mark = "ok" if finding.well else "[bold red]no[/]"
        if whole or not finding.well:
            table.add_row(finding.stage, finding.name, mark, escape(finding.said))
    if table.rows:
        Console().print(table)
    elif findings:
        typer.echo(f"{len(findings)} checks of data and recipe: all well", err=True)
