"""The releases that can be read, and the sentence that says how to add one."""

from __future__ import annotations

from typing import Final

from cot_builder.errors import UserError
from cot_builder.sources.contract import Loaded, Plan, Source, SourceOptions, Task

__all__ = ["SOURCES", "Loaded", "Plan", "Source", "SourceOptions", "Task", "get_source"]

# To add one: write a module here that defines SOURCE (a `Source`), and name it in this dict.
SOURCES: Final[dict[str, Source]] = {}


def get_source(name: str) -> Source:
    """Return a source by its name; an unknown one is a UserError that lists the known names."""
    if name not in SOURCES:
        raise UserError(f"unknown source {name!r}; the sources are {', '.join(sorted(SOURCES))}")
    return SOURCES[name]
