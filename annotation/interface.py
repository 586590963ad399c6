"""The labelling interface, from the banks' names, `interface.toml` (keys) and `interface.xml`."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree

from cot_builder.vocabulary import ASSERTIONS
from knowledge_banks import Banks

HERE: Final = Path(__file__).parent
INSTRUCTIONS: Final = (HERE / "instructions.html").read_text(encoding="utf-8")


@cache
def keys() -> dict[str, dict[str, dict[str, str]]]:
    """Return the key and colour of each name by control: disease, region, assertion and so on."""
    return tomllib.loads((HERE / "interface.toml").read_text(encoding="utf-8"))


def interface(banks: Banks) -> str:
    """Return the labelling configuration for Label Studio, as XML.

    Label Studio lets a person mark what the controls hold: `disease` on phrases of the report,
    `assertion` and `anatomy` on each phrase, `box` on the image, `verdict`, `reason` and `comment`
    on the study. A disease's definition is its hint.
    """
    definitions = {disease["name"]: disease["definition"] for disease in banks.diseases["disease"]}
    regions = {region["name"] for region in banks.regions["region"]}
    root = ElementTree.parse(HERE / "interface.xml").getroot()
    _fill(root, "disease", "Label", _known("disease", definitions), hints=definitions)
    _fill(root, "box", "Label", _known("region", regions))
    _fill(root, "anatomy", "Choice", _known("region", regions), shift=True)
    _fill(root, "assertion", "Choice", _known("assertion", ASSERTIONS))
    for control in ("verdict", "reason"):
        _fill(root, control, "Choice", keys()[control])
    return ElementTree.tostring(root, encoding="unicode")


def _known(control: str, names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return the keys of a control, which must be those of the banks' names."""
    told = keys()[control]
    if differing := sorted(told.keys() ^ set(names)):
        raise ValueError(f"interface.toml, [{control}]: banks and keys differ in {differing}")
    return told


def _fill(
    root: ElementTree.Element,
    control: str,
    tag: str,
    names: dict[str, dict[str, str]],
    *,
    hints: dict[str, Any] | None = None,
    shift: bool = False,
) -> None:
    parent = root.find(f".//*[@name='{control}']")
    assert parent is not None, f"interface.xml has no {control}"
    for name, told in names.items():
        entry = ElementTree.SubElement(parent, tag, value=name)
        entry.set("hotkey", f"shift+{told['key']}" if shift else told["key"])
        if "colour" in told and tag == "Label":
            entry.set("background", told["colour"])
        if hints:
            entry.set("hint", hints[name])
