"""The commands of `cot-builder`; each imports what it needs when it runs: --help is quick."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from typer.core import TyperCommand, TyperGroup

from cot_builder import __version__
from cot_builder.cli import (
    banks,
    building,
    checking,
    drafting,
    evaluating,
    looking,
    publishing,
    reproducing,
    review,
    training,
)
from cot_builder.errors import UserError
from cot_builder.paths import is_address


class _Command(TyperCommand):
    """Refuses an address where a path of this machine is wanted: it would make a folder `s3:`."""

    def invoke(self, ctx: Any) -> Any:
        for param in self.params:
            value = ctx.params.get(param.name)
            for path in value if isinstance(value, list) else [value]:
                text = str(path).replace(":/", "://", 1)
                if isinstance(path, Path) and is_address(text):
                    raise UserError(
                        f"{param.opts[0]} {text}: expected a path of this machine; an address may "
                        "stand for a dataset that is read, and for --root and --out of `build`"
                    )
        return super().invoke(ctx)


class _Commands(TyperGroup):
    """Turns a UserError into its one line and exit status 1."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            # All of torchrun's processes end so: one on each node speaks for its neighbours.
            if os.environ.get("LOCAL_RANK", "0") == "0":
                typer.echo(f"cot-builder: {error}", err=True)
            raise typer.Exit(1) from None


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cot-builder {__version__}")
        raise typer.Exit


def _main(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    pass


BUILD: Final = "Reports to chains"
LOOK: Final = "Look at a dataset, and check it"
MODEL: Final = "Train a model, and score it"
PUBLISH: Final = "Publish a dataset"
# To add one: a function in a module of this package, and a line here; --help keeps this order.
COMMANDS: Final = {
    BUILD: {
        "build": building.build,
        "merge": building.merge,
        "explain": looking.explain,
        "draft": drafting.draft,
    },
    LOOK: {
        "show": looking.show,
        "browse": looking.browse,
        "stats": looking.stats,
        "check": checking.check,
        "doctor": checking.doctor,
        "score-chains": checking.score_chains,
    },
    MODEL: {
        "predict": evaluating.predict,
        "score": evaluating.score,
        "conventions": evaluating.conventions,
        "compare": evaluating.compare,
        "cases": evaluating.cases,
        "reproduce": reproducing.reproduce,
    },
    PUBLISH: {
        "publish": publishing.publish,
        "versions": publishing.versions,
        "diff": publishing.diff,
        "rehydrate": publishing.rehydrate,
    },
}
# The same for commands of two words: a group's panel, help, and commands.
GROUPS: Final = {
    "banks": (
        BUILD,
        "Read, check and compare the knowledge banks.",
        {"lint": banks.lint, "show": banks.show, "diff": banks.diff},
    ),
    "review": (
        LOOK,
        "Radiologists correct chains in Label Studio: serve, push, pull, apply.",
        {
            "serve": review.serve,
            "push": review.push,
            "pull": review.pull,
            "diff": review.diff,
            "apply": review.apply,
            "agree": review.agree,
            "learn": review.learn,
        },
    ),
    "train": (
        MODEL,
        "Train the three stages on a dataset, all or one.",
        {
            "all": training.train_all,
            "mcl": training.mcl,
            "svr": training.svr,
            "adapter": training.adapter,
            "merge": training.merge,
        },
    ),
}


def _group(text: str, panels: Mapping[Any, dict[str, Any]], **settings: Any) -> typer.Typer:
    group = typer.Typer(help=text, no_args_is_help=True, **settings)
    for panel, commands in panels.items():
        for name, command in commands.items():
            group.command(name, cls=_Command, rich_help_panel=panel)(command)
    return group


app: Final = _group(
    "Chest X-ray reports to Findings → Disease → Anatomy chains, each tied to its words.\n\n"
    "`cot-builder COMMAND --help` has examples; docs/tutorial.md goes the whole way.",
    COMMANDS,
    cls=_Commands,
    callback=_main,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _name, (_panel, _text, _commands) in GROUPS.items():
    app.add_typer(_group(_text, {None: _commands}), name=_name, rich_help_panel=_panel)


def main() -> None:
    """Run the command line (the console script)."""
    app()
