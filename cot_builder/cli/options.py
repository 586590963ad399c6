"""What the commands share: options that stand in several, and what is read off them."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.console import Console

from cot_builder.errors import UserError
from cot_builder.paths import where

if TYPE_CHECKING:
    from cot_builder.boxes import Pixels

_INTERRUPTED: Final = 130
BOXES: Final = "Boxes and the model's processor"

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
LLM: Final = "A language model drafts (needs the scale extra)"
LlmModel = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", rich_help_panel=LLM, show_default=False,
        help="The model to ask, by its name on the server.",
    ),
]  # fmt: skip
LlmBaseUrl = Annotated[
    str,
    typer.Option(
        metavar="URL", rich_help_panel=LLM,
        help="Any OpenAI-compatible server, as http://127.0.0.1:8000/v1 (vLLM, llama.cpp, Ollama, "
        "Azure, OpenAI). Text of MIMIC-CXR and its like goes to your own network only.",
    ),
]  # fmt: skip
LlmKeyVariable = Annotated[
    str,
    typer.Option(
        metavar="NAME", rich_help_panel=LLM,
        help="The environment variable of the API key; a server of your own may need none.",
    ),
]  # fmt: skip
ZeroRetentionHost = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", rich_help_panel=LLM, show_default=False,
        help="Type the server's host to vouch that it keeps nothing, trains on nothing and lets "
        "nobody read along; written to the manifest.",
    ),
]  # fmt: skip
LlmTemperature = Annotated[
    float, typer.Option(metavar="X", min=0, rich_help_panel=LLM, help="Of the model.")
]
LlmMaxTokens = Annotated[
    int,
    typer.Option(
        metavar="N", min=1, rich_help_panel=LLM,
        help="The longest answer; one that is cut off is asked for once more with twice of it.",
    ),
]  # fmt: skip
LlmConcurrency = Annotated[
    int,
    typer.Option(
        metavar="N", min=1, rich_help_panel=LLM,
        help="Most requests at a time; fewer when the server pushes back.",
    ),
]  # fmt: skip
LlmTimeout = Annotated[
    float, typer.Option(metavar="S", min=0.1, rich_help_panel=LLM, help="Seconds to an answer.")
]
LlmPrice = Annotated[
    float | None,
    typer.Option(
        metavar="USD", min=0, rich_help_panel=LLM, show_default=False,
        help="Price of a million tokens, as your provider has it.",
    ),
]  # fmt: skip
LlmBudget = Annotated[
    float | None,
    typer.Option(
        metavar="USD", min=0, rich_help_panel=LLM, show_default=False,
        help="Never spend more, --resume included; needs both prices.",
    ),
]  # fmt: skip
LlmCache = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", rich_help_panel=LLM, show_default=False,
        help="Where answers are kept, so that none is paid for twice. It holds text derived from "
        "the reports.",
    ),
]  # fmt: skip
BankFolder = Annotated[
    Path | None,
    typer.Option(
        "--banks", help="A bank folder of your own instead of the shipped one.", metavar="DIR"
    ),
]
Dataset = Annotated[
    Path,
    typer.Argument(
        metavar="DATASET", help="A folder that `build` wrote, or its s3:// or hf:// address.",
        show_default=False, parser=where,
    ),
]  # fmt: skip


@contextmanager
def extra(name: str, wanted_by: str) -> Iterator[None]:
    """Tell the remedy when what runs inside imports a library of an extra that is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(
            f"{wanted_by} needs {error.name}: pip install 'cot-builder[{name}]' -c constraints.txt"
        ) from None


def pixel_budget(
    min_pixels: int | None,
    max_pixels: int | None,
    factor: int | None,
    *,
    unless_given: Pixels | None = None,
) -> Pixels:
    """Read the options of a processor's pixel budget; what is not given stays as it is."""
    from cot_builder.boxes import Pixels

    given = {"factor": factor, "min_pixels": min_pixels, "max_pixels": max_pixels}
    chosen = {name: number for name, number in given.items() if number is not None}
    pixels = (unless_given or Pixels())._replace(**chosen)
    if not pixels.min_pixels <= pixels.max_pixels:
        raise UserError(
            f"--min-pixels {pixels.min_pixels} is more than --max-pixels {pixels.max_pixels}"
        )
    return pixels


def cpus() -> int:
    """Return how many CPUs this process may use."""
    # A job scheduler or container may leave a process fewer CPUs than the machine has.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def spinner(what: str) -> Iterator[Callable[[int], None]]:
    """Show a spinner that tells how many are done."""
    with Console(stderr=True).status(what) as status:
        yield lambda done: status.update(f"{done:,} {what}") if done % 100 == 0 else None


def this_command() -> str:
    """Return the command line as a person would type it, for manifests and run folders."""
    return shlex.join(["cot-builder", *sys.argv[1:]])


@contextmanager
def interruptible(again: str = "the same command with --resume") -> Iterator[None]:
    """Turn Ctrl-C into a line that says how to go on, and the exit status of an interrupt."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(f"stopped; {again} goes on from here", err=True)
        raise typer.Exit(_INTERRUPTED) from None
