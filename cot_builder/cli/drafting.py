"""`cot-builder draft`, and what an endpoint's options make."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from cot_builder.cli.options import (
    BankFolder,
    LlmBaseUrl,
    LlmCache,
    LlmKeyVariable,
    LlmMaxTokens,
    LlmTemperature,
    LlmTimeout,
    extra,
)
from cot_builder.errors import UserError

if TYPE_CHECKING:
    from cot_builder.llm import Endpoint


def endpoint(
    model: str, base_url: str, *, temperature: float, max_tokens: int, **settings: Any
) -> Endpoint:
    """Return the endpoint that the options of a command describe."""
    from cot_builder.llm import Endpoint
    from cot_builder.replies import Model

    return Endpoint(model=Model(model, temperature, max_tokens), base_url=base_url, **settings)


def draft(
    sentence: Annotated[str, typer.Argument(help="Text of a report.", show_default=False)],
    llm_model: Annotated[
        str, typer.Option(metavar="NAME", help="The model to ask.", show_default=False)
    ],
    llm_base_url: LlmBaseUrl = "https://api.openai.com/v1",
    llm_key_variable: LlmKeyVariable = "OPENAI_API_KEY",
    llm_temperature: LlmTemperature = 0.0,
    llm_max_tokens: LlmMaxTokens = 1024,
    llm_timeout: LlmTimeout = 120.0,
    llm_cache: LlmCache = None,
    banks: BankFolder = None,
) -> None:
    """Ask a model about each sentence: the request, its answer, and the verdict of each check.

    Whatever you type is sent to the server: no text of MIMIC-CXR to one that is not your own.

    For example:

    - `cot-builder draft "Ground-glass haze at the right base." --llm-model qwen3-8b
      --llm-base-url http://127.0.0.1:8000/v1`
    """
    from cot_builder.decompose import Decomposer
    from cot_builder.drafting import Drafter, Drafting
    from cot_builder.llm import Client
    from cot_builder.proposals import verify
    from cot_builder.sentences import split_sections_of
    from cot_builder.show import draft_view
    from knowledge_banks import load_banks

    asked = endpoint(
        llm_model,
        llm_base_url,
        key_variable=llm_key_variable,
        temperature=llm_temperature,
        max_tokens=llm_max_tokens,
        timeout=llm_timeout,
    )
    with ExitStack() as stack, extra("scale", "draft"):
        folder = stack.enter_context(TemporaryDirectory())
        cache = llm_cache or Path(folder) / "replies.sqlite"
        drafter = Drafter(
            Drafting(kind="llm", endpoint=asked, cache=cache), Decomposer(load_banks(banks))
        )
        sentences = [one.text for one in split_sections_of(sentence)]
        if why := drafter.holds(sentences):
            raise UserError(f"not sent: the text seems to hold {why}")
        client = stack.enter_context(Client(asked, cache, credentialed=None))
        requests = [drafter.request(text) for text in sentences]
        for text, request, reply in zip(sentences, requests, client.ask(requests), strict=True):
            verdicts = verify(text, reply.parsed, drafter.by) if reply.status == "ok" else []
            Console().print(draft_view(request, reply, verdicts))
