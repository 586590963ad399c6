"""The releases that can be read: a dict of sources, each a `plan` and a `load`."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from cot_builder.errors import UserError
from cot_builder.sources import (
    boxes_table,
    chestx_det,
    coco,
    demo,
    imagenome,
    iu_xray,
    latte_cxr,
    mimic,
    ms_cxr,
    nih,
    reflacx,
    table,
    vindr,
)
from cot_builder.sources.contract import Loaded, Plan, Source, SourceOptions, Task

__all__ = [
    "SOURCES",
    "Loaded",
    "Plan",
    "Source",
    "SourceOptions",
    "Task",
    "get_source",
    "image_root",
]

# To add one: write a module here that defines SOURCE (a `Source`), and name it in this dict.
SOURCES: Final[dict[str, Source]] = {
    module.SOURCE.name: module.SOURCE
    for module in (
        demo, mimic, iu_xray, table,
        ms_cxr, latte_cxr, reflacx, imagenome, nih, chestx_det, vindr, coco, boxes_table,
    )
}  # fmt: skip


def get_source(name: str) -> Source:
    """Return a source by its name; an unknown one is a UserError that lists the known names."""
    if name not in SOURCES:
        raise UserError(f"unknown source {name!r}; the sources are {', '.join(SOURCES)}")
    return SOURCES[name]


def image_root(options: SourceOptions) -> Path:
    """Return the folder that the image paths of any source start from."""
    return mimic.image_root(options) if options.root else demo.CORPUS
