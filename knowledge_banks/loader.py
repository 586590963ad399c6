"""Read, extend and lint the banks; every error names file, table and key."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from cot_builder.errors import UserError
from cot_builder.vocabulary import ASSERTIONS, LABELS, REGIONS

FOLDER: Final = Path(__file__).parent
MEANS: Final = ("negative", "uncertain", "link", "none", "drop", "emphasis", "end", "mask")

Table = dict[str, Any]


class Banks(NamedTuple):
    """The parsed banks of one folder; `version` is the highest bank version, `sha256` covers every file used."""

    version: str
    sha256: str
    folder: Path
    headings: Table
    diseases: Table
    devices: Table
    signs: Table
    unmapped: Table
    structures: Table
    states: Table
    regions: Table
    cues: Table
    attributes: Table


# The shape of each bank: table -> key -> type. "?" marks an optional key, "*" a table of free keys,
# "[]" an array of tables. An unknown table or key is an error, so that a slip of the pen is not lost.
_WORDS = list
SHAPES: Final[dict[str, dict[str, Any]]] = {
    "diseases": {
        "disease[]": {"name": str, "definition": str, "aliases?": list, "group[]": {
            "id": str, "site": str, "fixed?": bool, "fact?": bool, "also?": list, "phrases": list}},
    },
    "devices": {"device[]": {"id": str, "site": str, "fixed?": bool, "places?": list, "part?": bool, "says?": str, "phrases": list}},
    "signs": {
        "sign[]": {"id": str, "disease": str, "concepts?": list, "stated?": bool, "site": str,
                   "fixed?": bool, "fact?": bool, "phrases": list},
    },
    "unmapped": {"finding[]": {"id": str, "site": str, "fixed?": bool, "fact?": bool, "phrases": list}},
    "structures": {
        "shapes": list, "generics": list,
        "structure[]": {"id": str, "site": str, "nouns": list, "adjectives?": list, "means": {"*": str}},
    },
    "states": {"state": {"*": list}, "rank": {"order": list}},
    "regions": {
        "region[]": {"name": str, "within?": str},
        "site[]": {"id": str, "left?": list, "right?": list, "both?": list, "unsided?": list, "all?": list,
                   "phrases?": list, "weak_phrases?": list, "left_phrases?": list,
                   "right_phrases?": list, "both_phrases?": list},
        "side[]": {"id": str, "phrases": list},
        "imagenome": {"*": str},
    },
    "cues": {"cue[]": {"id": str, "means": str, "reach": str, "nested?": bool, "phrases": list}},
    "attributes": {
        "severity": {"*": list}, "temporal": {"*": list}, "plain": {"words": list}, "stop": {"words": list},
        "verbs": {"words": list}, "prepositions": {"words": list}, "positive_start": {"words": list},
        "companions": {"words": list}, "lookalikes": {"words": list}, "ignore": {"phrases": list}, "silent": {"phrases": list},
        "body_parts": {"outside": list, "chest": list, "terms": list},
    },
}  # fmt: skip


def read_bank(path: Path) -> Table:
    """Parse one TOML bank; a missing or malformed file is a UserError that names it."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"bank file {path} is missing; a bank folder needs it") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"bank file {path} is not valid TOML: {error}") from None


def load_banks(folder: Path | None = None) -> Banks:
    """Load and lint the shipped banks, or a user's folder on top of them.

    A user's folder holds only the files that differ. A file replaces the shipped one of its name; with
    `extends = true` at its top it adds to it instead: an entry whose id (or name) is known gains its phrases
    and takes over its other keys, `remove = [...]` in an entry takes phrases away, and other entries are new.
    Raises UserError with file, table and key for everything that does not fit.
    """
    if folder is not None and not folder.is_dir():
        raise UserError(
            f"--banks {folder}: no such folder; expected one with files such as {FOLDER}/diseases.toml"
        )
    if folder is not None:
        known = {*SHAPES, "headings"}
        for path in sorted(folder.glob("*.toml")):
            if path.stem not in known:
                raise UserError(f"{path}: unknown bank; the banks are {', '.join(sorted(known))}")
    tables: dict[str, Table] = {}
    digest = hashlib.sha256()
    for name in (*SHAPES, "headings"):
        base = read_bank(FOLDER / f"{name}.toml")
        own = None if folder is None else folder / f"{name}.toml"
        if own is not None and own.exists():
            table = read_bank(own)
            base = _extend(base, table, own) if table.pop("extends", False) else table
            where = own
        else:
            where = FOLDER / f"{name}.toml"
        if not isinstance(base.get("version"), str):
            raise UserError(f'{where}: key "version": expected a string such as "1.0.0"')
        digest.update(json.dumps([name, base], sort_keys=True).encode())
        tables[name] = base
        if name in SHAPES:
            _lint_shape(base, SHAPES[name] | {"version": str}, f"{where}")
    _lint_references(tables, folder or FOLDER)
    version = max((t["version"] for t in tables.values()), key=_version_key)
    return Banks(version=version, sha256=digest.hexdigest(), folder=folder or FOLDER, **tables)


def expand(phrase: str) -> tuple[str, ...]:
    """Write out the alternatives of a bank phrase, lower-cased, a hyphen read as a space.

    >>> expand("opacit{y|ies}")
    ('opacity', 'opacities')
    >>> expand("air-space nodule(s)")
    ('air space nodule', 'air space nodules')
    """
    words, rest = _alternatives(phrase.lower().replace("-", " "))
    if rest:
        raise ValueError(f"braces of {phrase!r} do not pair")
    return tuple(dict.fromkeys(filter(None, (" ".join(word.split()) for word in words))))


def _alternatives(text: str) -> tuple[list[str], str]:
    """Read alternatives up to a closing brace; return them written out, and what is left from the brace on."""
    done: list[str] = []
    current = [""]
    while text and text[0] not in "})":
        letter, text = text[0], text[1:]
        if letter == "|":
            done, current = done + current, [""]
        elif letter in "{(":
            inner, text = _alternatives(text)
            if not text or text[0] != {"{": "}", "(": ")"}[letter]:
                raise ValueError("braces do not pair")
            text = text[1:]
            inner = ["", *inner] if letter == "(" else inner
            current = [head + tail for head in current for tail in inner]
        else:
            current = [head + letter for head in current]
    return done + current, text


def _version_key(version: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdigit() else 0 for part in version.split("."))


def _entry_key(entry: Mapping[str, Any]) -> str:
    return str(entry.get("id", entry.get("name", "")))


def _extend(base: Any, own: Any, where: Path) -> Any:
    """Lay a user's table over the shipped one."""
    if isinstance(base, dict) and isinstance(own, dict):
        merged = dict(base)
        for key, value in own.items():
            merged[key] = _extend(base[key], value, where) if key in base else value
        gone = merged.pop("remove", [])
        if "phrases" in merged:
            lost = [phrase for phrase in gone if phrase not in merged["phrases"]]
            if lost:
                raise UserError(
                    f'{where}: key "remove" of {_entry_key(own)!r}: no such phrase {lost[0]!r}'
                )
            merged["phrases"] = [p for p in merged["phrases"] if p not in gone]
        return merged
    if isinstance(base, list) and isinstance(own, list):
        if not all(isinstance(item, dict) for item in [*base, *own]):
            return [*base, *(item for item in own if item not in base)]
        ours = {_entry_key(item): item for item in own}
        kept = [_extend(item, ours.pop(_entry_key(item), {}), where) for item in base]
        return [*kept, *ours.values()]
    return own


def _lint_shape(value: Any, shape: Any, where: str) -> None:
    if isinstance(shape, type):
        if not isinstance(value, shape):
            raise UserError(f"{where}: expected {_NAMES[shape]}, got {value!r}")
        if shape is list and (bad := [item for item in value if not isinstance(item, str)]):
            raise UserError(f"{where}: expected a list of strings, got {bad[0]!r} in it")
        return
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected a table, got {value!r}")
    if "*" in shape:
        for key, item in value.items():
            _lint_shape(item, shape["*"], f'{where}: key "{key}"')
        return
    names = {key.rstrip("[]?"): key for key in shape}
    for key in value:
        if key not in names:
            raise UserError(
                f'{where}: unknown key "{key}"; expected one of {", ".join(sorted(names))}'
            )
    for name, key in names.items():
        if key.endswith("[]"):
            items = value.get(name, [])
            if not isinstance(items, list):
                raise UserError(f"{where}: expected [[{name}]] tables, got {items!r}")
            for number, item in enumerate(items, 1):
                label = _entry_key(item) if isinstance(item, dict) else ""
                _lint_shape(item, shape[key], f"{where}: [[{name}]] {number} {label!r}")
        elif name in value:
            _lint_shape(value[name], shape[key], f'{where}: key "{name}"')
        elif not key.endswith("?"):
            raise UserError(f'{where}: key "{name}" is missing')


_NAMES: Final = {str: "a string", list: "a list of strings", bool: "true or false"}


def _lint_references(tables: Mapping[str, Table], folder: Path) -> None:
    """Check the names that one bank uses and another defines."""

    def check(name: str, known: Any, file: str, where: str) -> None:
        if name not in known:
            raise UserError(
                f"{folder}/{file}.toml: {where}: unknown {name!r}; expected one of {', '.join(known)}"
            )

    sites = [site["id"] for site in tables["regions"]["site"]]
    signs = [sign["id"] for sign in tables["signs"]["sign"]]
    states = list(tables["states"]["state"])
    if (names := [d["name"] for d in tables["diseases"]["disease"]]) != list(LABELS):
        raise UserError(
            f"{folder}/diseases.toml: expected the 14 labels in CheXpert order, got {names}"
        )
    if (names := [r["name"] for r in tables["regions"]["region"]]) != list(REGIONS):
        raise UserError(
            f"{folder}/regions.toml: expected the 12 regions in bank order, got {names}"
        )
    for disease in tables["diseases"]["disease"]:
        for group in disease.get("group", []):
            check(
                group["site"], sites, "diseases", f'[[disease.group]] {group["id"]!r}: key "site"'
            )
            for other in group.get("also", []):
                check(other, LABELS, "diseases", f'[[disease.group]] {group["id"]!r}: key "also"')
    for file, table in (
        ("devices", "device"),
        ("signs", "sign"),
        ("unmapped", "finding"),
        ("structures", "structure"),
    ):
        for entry in tables[file][table]:
            check(entry["site"], sites, file, f'[[{table}]] {entry["id"]!r}: key "site"')
            for place in entry.get("places", []):
                check(place, sites, file, f'[[{table}]] {entry["id"]!r}: key "places"')
    for sign in tables["signs"]["sign"]:
        check(sign["disease"], LABELS, "signs", f'[[sign]] {sign["id"]!r}: key "disease"')
    for structure in tables["structures"]["structure"]:
        for state, meaning in structure["means"].items():
            where = f"[[structure]] {structure['id']!r}: means.{state}"
            check(state, states, "structures", where)
            if meaning in ("", "No Finding"):
                continue
            head, _, tail = meaning.rpartition(" ")
            if head == "sign":
                check(tail, signs, "structures", where)
            else:
                check(head, ["unmapped", *LABELS], "structures", where)
                check(tail, ASSERTIONS, "structures", where)
    for state in tables["states"]["rank"]["order"]:
        check(state, states, "states", "rank.order")
    for site in tables["regions"]["site"]:
        if not ("all" in site or {"left", "right", "both", "unsided"} <= site.keys()):
            raise UserError(
                f'{folder}/regions.toml: [[site]] {site["id"]!r}: expected "all", or "left", "right", "both" and "unsided"'
            )
        for key in ("left", "right", "both", "unsided", "all"):
            for region in site.get(key, []):
                check(region, REGIONS, "regions", f'[[site]] {site["id"]!r}: key "{key}"')
    for name, region in tables["regions"]["imagenome"].items():
        check(region, ["", *REGIONS], "regions", f'[imagenome] "{name}"')
    for cue in tables["cues"]["cue"]:
        check(cue["means"], MEANS, "cues", f'[[cue]] {cue["id"]!r}: key "means"')
        check(cue["reach"], ("forward", "backward"), "cues", f'[[cue]] {cue["id"]!r}: key "reach"')
    for file, where, phrase in _phrases(tables):
        try:
            words = expand(phrase)
        except ValueError:
            words = ()
        if not words:
            raise UserError(
                f"{folder}/{file}.toml: {where}: phrase {phrase!r} is empty or its braces do not pair"
            )


def _phrases(tables: Mapping[str, Table]) -> Iterator[tuple[str, str, str]]:
    for disease in tables["diseases"]["disease"]:
        for group in disease.get("group", []):
            yield from (
                ("diseases", f"[[disease.group]] {group['id']!r}", p) for p in group["phrases"]
            )
    for file, table in (
        ("devices", "device"),
        ("signs", "sign"),
        ("unmapped", "finding"),
        ("cues", "cue"),
    ):
        for entry in tables[file][table]:
            yield from ((file, f"[[{table}]] {entry['id']!r}", p) for p in entry["phrases"])
    for structure in tables["structures"]["structure"]:
        for phrase in [*structure["nouns"], *structure.get("adjectives", [])]:
            yield "structures", f"[[structure]] {structure['id']!r}", phrase
