"""Read, extend and lint the banks; every error names file, table and key."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import tomllib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

from cot_builder.errors import UserError
from cot_builder.vocabulary import ASSERTIONS, LABELS, REGIONS
from knowledge_banks.shapes import FLAG, NAMES, PHRASES, SHAPES, Leaf, Shape

FOLDER: Final = Path(__file__).parent

Table: TypeAlias = dict[str, Any]


class Banks(NamedTuple):
    """The parsed banks of one folder.

    `version` is the highest version of a bank; behind it stand `+` and the first eight letters of
    `sha256` when the content is not the shipped one. `sha256` covers all that the banks hold.
    """

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
    contradictions: Table
    releases: Table
    templates: Table


# Entries that the code asks for by name.
_NEEDED: Final[tuple[tuple[str, str, Collection[str]], ...]] = (
    ("diseases", "disease", LABELS),
    ("regions", "region", REGIONS),
    ("regions", "side", NAMES["side"]),
    ("regions", "site", ("heart_and_lungs",)),
)
_KINDS: Final = {str: "a string", bool: "true or false", list: "a list of strings"}
_VERSION: Final = re.compile(r"\d+(?:\.\d+)*")
_MANY: Final = 30


def read_bank(path: Path) -> Table:
    """Parse one TOML bank; a missing or malformed file is a UserError that names it."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"bank file {path} is missing; a bank folder needs it") from None
    except OSError as error:
        raise UserError(f"bank file {path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"bank file {path} is not valid TOML: {error}") from None


def load_banks(folder: Path | None = None) -> Banks:
    """Load and lint the shipped banks, or a user's folder on top of them.

    A user's folder holds only the files that differ. A file replaces the shipped one of its name;
    with `extends = true` at its top it adds to it instead: an entry whose id (or name) is known
    gains its words and phrases and takes over its other keys, `remove = [...]` in a table takes
    phrases away as they are written out ("nodules", where the bank has "nodule(s)"), and other
    entries are new. Raises UserError with file, table and key for everything that does not fit.
    """
    own = {} if folder is None else _own_files(folder)
    shipped = {name: read_bank(FOLDER / f"{name}.toml") for name in SHAPES}
    files = {name: own.get(name, FOLDER / f"{name}.toml") for name in SHAPES}
    tables = dict(shipped)
    for name, path in own.items():
        tables[name] = _laid_over(shipped[name], read_bank(path), SHAPES[name], path)
    _lint(tables, files)
    sha256 = _sha256(tables)
    version = max((t["version"] for t in tables.values()), key=_version_key)
    if own and sha256 != _sha256(shipped):
        version = f"{version}+{sha256[:8]}"
    return Banks(version=version, sha256=sha256, folder=folder or FOLDER, **tables)


@cache
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
    """Read alternatives up to a closing brace; return them written out, and what is left."""
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


def _sha256(tables: Mapping[str, Table]) -> str:
    # Not sorted: the order of states and of severities decides which one a word is taken for.
    return hashlib.sha256(json.dumps(tables).encode()).hexdigest()


def _version_key(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


# -- a user's folder


def _own_files(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise UserError(
            f"--banks {folder}: no such folder; expected one with files such as diseases.toml"
        )
    paths = {path.stem: path for path in sorted(folder.glob("*.toml"))}
    expected = f"the banks are {', '.join(f'{name}.toml' for name in sorted(SHAPES))}"
    for name, path in paths.items():
        if name not in SHAPES:
            raise UserError(f"{path}: unknown bank; {expected}")
    if not paths:
        raise UserError(f"--banks {folder}: no bank in this folder; {expected}")
    return paths


def _laid_over(shipped: Table, own: Table, shape: Shape, file: Path) -> Table:
    """Return the bank of a user's file, laid over the shipped one if it extends that."""
    if not _checked(own.pop("extends", False), FLAG, f'{file}: key "extends"'):
        return own
    for where, value, leaf in _leaves(own, shape, f"{file}", part=True):
        _check_phrases(value, leaf, where)
    merged: Table = _extended(shipped, own, shape, f"{file}")
    return merged


def _extended(base: Any, own: Any, shape: Shape, where: str, path: str = "") -> Any:
    """Lay a user's value, whose shape is sound, over the shipped one."""
    if isinstance(shape, Leaf):
        return [*base, *(word for word in own if word not in base)] if shape.words else own
    if isinstance(shape, list):
        news = {_name(entry): entry for entry in own}
        laid = []
        for entry in base:
            new = news.pop(_name(entry), {})
            laid.append(_extended(entry, new, shape[0], f"{where} {_name(entry)!r}", path))
        return [*laid, *news.values()]
    merged = _without(base, own.get("remove", []), shape, where)
    for key, value in own.items():
        if key == "remove":
            continue
        place, inner, sub = _at(key, shape, where, path)
        merged[key] = _extended(merged[key], value, sub, place, inner) if key in merged else value
    return merged


def _without(table: Table, remove: list[str], shape: dict[str, Shape], where: str) -> Table:
    """Return a table whose own lists of words lack what `remove` names, each phrase written out."""
    left, unknown = dict(table), set(remove)
    for key in table:
        leaf = _at(key, shape, where)[2]
        if not isinstance(leaf, Leaf) or not leaf.words:
            continue
        gone = {form: phrase for phrase in remove for form in _forms(phrase, leaf)}
        left[key] = []
        for phrase in table[key]:
            forms = _forms(phrase, leaf)
            kept = [form for form in forms if form not in gone]
            left[key] += [phrase] if len(kept) == len(forms) else kept
            unknown.difference_update(gone[form] for form in forms if form in gone)
    if unknown:
        raise UserError(
            f'{where}: key "remove": the shipped bank has no {min(unknown)!r} there to remove'
        )
    return left


def _forms(phrase: str, leaf: Leaf) -> tuple[str, ...]:
    return expand(phrase) if leaf.phrases else (phrase,)


# -- lint


def _lint(tables: Mapping[str, Table], files: Mapping[str, Path]) -> None:
    """Check the shape of every bank, then the names that one bank uses and another defines."""
    leaves: list[tuple[str, Any, Leaf]] = []
    for bank, table in tables.items():
        leaves += _leaves(table, SHAPES[bank], f"{files[bank]}")
        if not _VERSION.fullmatch(table["version"]):
            raise UserError(
                f'{files[bank]}: key "version": expected numbers and dots as in "1.0.0", '
                f"got {table['version']!r}"
            )
    for bank, entries, needed in _NEEDED:
        names = {_name(entry) for entry in tables[bank][entries]}
        for name in needed:
            if name not in names:
                raise UserError(f"{files[bank]}: [[{entries}]] {name!r} is missing")
    known = _known(tables)
    for where, value, leaf in leaves:
        _check_phrases(value, leaf, where)
        if leaf.of:
            _check_names([value] if leaf.kind is str else value, leaf.of, known[leaf.of], where)
    for structure in tables["structures"]["structure"]:
        where = f"{files['structures']}: [[structure]] {structure['id']!r}: [structure.means]"
        _check_names(structure["means"], "state", known["state"], where)
    for state in tables["states"]["state"]:
        if state not in tables["states"]["rank"]["order"]:
            raise UserError(f'{files["states"]}: [rank]: key "order": state {state!r} is missing')
    for site in tables["regions"]["site"]:
        if "all" not in site and not {"left", "right", "both", "unsided"} <= site.keys():
            raise UserError(
                f"{files['regions']}: [[site]] {site['id']!r}: "
                'expected key "all", or "left", "right", "both" and "unsided"'
            )


def _known(tables: Mapping[str, Table]) -> dict[str, Collection[str]]:
    """Return the names that a key may hold, by what they are names of."""
    signs = [_name(sign) for sign in tables["signs"]["sign"]]
    said = [f"{head} {assertion}" for head in ("unmapped", *LABELS[1:]) for assertion in ASSERTIONS]
    return {
        **NAMES,
        "site": [_name(site) for site in tables["regions"]["site"]],
        "sign": signs,
        "state": list(tables["states"]["state"]),
        "meaning": ["", LABELS[0], *(f"sign {sign}" for sign in signs), *said],
    }


def _leaves(
    value: Any, shape: Shape, where: str, path: str = "", *, part: bool = False
) -> Iterator[tuple[str, Any, Leaf]]:
    """Check keys and types, and yield each leaf with its place; a `part` may lack keys."""
    if isinstance(shape, Leaf):
        yield where, _checked(value, shape, where), shape
    elif isinstance(shape, list):
        if not isinstance(value, list):
            raise UserError(f"{where}: expected an array of tables, got {value!r}")
        names = Counter(map(_name, value))
        for number, item in enumerate(value, 1):
            name = _name(item)
            if name and names[name] > 1:
                raise UserError(f"{where} {name!r} stands here {names[name]} times; expected once")
            yield from _leaves(item, shape[0], f"{where} {name or number!r}", path, part=part)
    else:
        if not isinstance(value, dict):
            raise UserError(f"{where}: expected a table, got {value!r}")
        for key, item in value.items():
            if part and key == "remove":
                yield from _leaves(item, PHRASES, f'{where}: key "remove"')
                continue
            place, inner, sub = _at(key, shape, where, path)
            yield from _leaves(item, sub, place, inner, part=part)
        for key in shape:
            needed = key in ("id", "name") if part else key[-1] not in "?*"
            if needed and key not in value:
                raise UserError(f'{where}: key "{key}" is missing')


def _at(key: str, shape: dict[str, Shape], where: str, path: str = "") -> tuple[str, str, Shape]:
    """Return the place of a key as messages name it, its path, and its shape."""
    sub = next((shape[k] for k in (key, f"{key}?", "*") if k in shape), None)
    if sub is None:
        expected = ", ".join(sorted(k.rstrip("?") for k in shape))
        raise UserError(f'{where}: unknown key "{key}"; expected one of {expected}')
    if isinstance(sub, Leaf):
        return f'{where}: key "{key}"', path, sub
    path = f"{path}.{key}" if path else key
    return f"{where}: [[{path}]]" if isinstance(sub, list) else f"{where}: [{path}]", path, sub


def _name(entry: Any) -> str:
    return str(entry.get("id", entry.get("name", ""))) if isinstance(entry, dict) else ""


def _checked(value: Any, leaf: Leaf, where: str) -> Any:
    if not isinstance(value, leaf.kind):
        raise UserError(f"{where}: expected {_KINDS[leaf.kind]}, got {value!r}")
    if leaf.kind is list and (odd := [item for item in value if not isinstance(item, str)]):
        raise UserError(f"{where}: expected {_KINDS[list]}, got {odd[0]!r} in it")
    return value


def _check_phrases(value: Any, leaf: Leaf, where: str) -> None:
    if not leaf.words:
        return
    for phrase in value:
        try:
            sound = any(_forms(phrase.strip(), leaf))
        except ValueError:
            sound = False
        if not sound:
            raise UserError(f"{where}: phrase {phrase!r} is empty or its braces do not pair")


def _check_names(names: Iterable[str], of: str, known: Collection[str], where: str) -> None:
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=5, cutoff=0)
            expected = (
                f"one of {', '.join(known)}" if len(known) < _MANY else f"such as {', '.join(near)}"
            )
            raise UserError(f"{where}: unknown {of} {name!r}; expected {expected}")
