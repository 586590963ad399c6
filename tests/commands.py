"""Run the command line in this process, and see that it ends as expected."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner, Result

from cot_builder.cli import app


def run(*arguments: str | Path) -> Result:
    return CliRunner(env={"COLUMNS": "300"}).invoke(app, [str(argument) for argument in arguments])


def well(*arguments: str | Path) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output + str(result.exception)
    return str(result.output)


def refused(*arguments: str | Path) -> str:
    result = run(*arguments)
    assert result.exit_code == 1, result.output + str(result.exception)
    return str(result.output)
