"""Cut a report into named sections of clean running text, by the headings bank.

Written for MIMIC-CXR's text files: hard-wrapped lines, headings in any case or none, addenda and
wet reads above a line of underscores, `___` for removed words. All text ends in some section.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from rapidfuzz import process
from rapidfuzz.distance import OSA

from cot_builder.errors import UserError
from cot_builder.records import Section
from cot_builder.sentences import SHOUTED, begins_anew

FINDINGS: Final = "findings"
EXAMINATION: Final = "examination"
# Written before or after the report proper, and set off from it by a line of underscores.
LATE: Final = ("addendum", "wet_read")

_NEEDED: Final = (FINDINGS, "impression", EXAMINATION, *LATE)
_SECTION_KEYS: Final[dict[str, type]] = {
    "name": str,
    "body": bool,
    "phrases": list,
    "capitals": list,
    "openers": list,
}
_WORD_LISTS: Final = {"titles": ("words", "fillers"), "furniture": ("lines",)}

_SHORTEST_MISSPELT: Final = 7
# Under an empty "COMPARISON:", a longer first line than this one is no note on the comparison.
_LONGEST_NOTE: Final = 60
_ENDS: Final = (".", "!", "?")

_LONGEST_HEADING: Final = 60
_RULE_STARTS: Final = ("__", "--", "==", "**")
_MARKS: Final = " \t*#>"
_COLON: Final = re.compile(
    r"([A-Za-z](?:[^:]|:(?=\d\d)){0,78}?)\s*:(?!\d\d)"
)  # not that of 9:30 AM
_CAPITALS: Final = re.compile(
    r"([A-Z][A-Z /&,()'-]{1,60}?)\s*(?:[;.](?!\S)|\s-{1,2}(?=\s)|\s{2}|$)"
)
_RULE: Final = re.compile(r"_{10,}|-{10,}|={10,}|\*{10,}")
_TITLE_WORDS: Final = re.compile(r"[a-z]+")
_PARENTHESIS: Final = re.compile(r"\s*\([^)]*\)$")

_ODD: Final = re.compile(r"[^\n\x20-\x7e]")
_SPELLED: Final = {
    **dict.fromkeys("\t\xa0\u1680\u202f\u205f\u3000", " "),
    **{chr(code): " " for code in range(0x2000, 0x200B)},
    **dict.fromkeys("\r\v\f\x1c\x1d\x1e\x85\u2028\u2029", "\n"),
    **dict.fromkeys("\u2018\u2019\u201a\u201b\u2032\u00b4", "'"),
    **dict.fromkeys("\u201c\u201d\u201e\u201f\u2033", '"'),
    **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212", "-"),
    "\u2026": "...",
}
_INVISIBLE: Final = dict.fromkeys(
    [*range(0x20), *range(0x7F, 0xA0), 0xAD, *range(0x200B, 0x2010), *range(0x202A, 0x202F),
     *range(0x2060, 0x2070), 0xFEFF]
)  # fmt: skip
_CLEANED: Final = {**_INVISIBLE, **{ord(odd): plain for odd, plain in _SPELLED.items()}, 10: "\n"}


class Headings(NamedTuple):
    """The headings bank, ready for use.

    `names` maps a heading in lower case to its section, `capitals` one that counts in CAPITALS
    only; `inline` finds headings inside a line of flattened text.
    """

    names: dict[str, str]
    capitals: dict[str, str]
    openers: dict[str, str]
    body: frozenset[str]
    title_words: frozenset[str]
    title_fillers: frozenset[str]
    furniture: frozenset[str]
    misspelt: tuple[str, ...]
    inline: re.Pattern[str]


class _Piece(NamedTuple):
    """A line, or the part of one that a heading begins; the heading itself is taken off."""

    line: str
    raw: str
    section: str | None = None  # by the heading that it began with
    gap: bool = False  # a blank line lies before it
    title: bool = False  # it names the examination and nothing else
    opens_findings: int = 0  # it names the examination in so many CAPITALS, then says what was seen


def compile_headings(table: Mapping[str, Any], *, file: str = "headings.toml") -> Headings:
    """Lint the parsed headings bank and make it ready for use.

    Raises UserError naming file, table and key for a missing or unknown key, a wrong type, a
    heading that two sections claim, or a section that the tool needs and the bank lacks.
    """
    sections = _lint(table, file)
    names: dict[str, str] = {}
    capitals: dict[str, str] = {}
    openers: dict[str, str] = {}
    for number, section in enumerate(sections, 1):
        for key, known in (("phrases", names), ("capitals", capitals), ("openers", openers)):
            for phrase in section.get(key, ()):
                heading = phrase.upper() if key == "openers" else _normal(phrase)
                owner = names.get(heading, capitals.get(heading)) if key != "openers" else None
                if owner is not None or not heading:
                    raise UserError(
                        f'{file}: [[section]] {number} {section["name"]!r}: key "{key}": '
                        f"{phrase!r} is "
                        + (f"a heading of {owner!r} already" if owner else "empty")
                    )
                known[heading] = section["name"]
    return Headings(
        names=names,
        capitals=capitals,
        openers=openers,
        body=frozenset(section["name"] for section in sections if section.get("body")),
        title_words=frozenset(table["titles"]["words"]),
        title_fillers=frozenset(table["titles"]["fillers"]),
        furniture=frozenset(_normal(line) for line in table["furniture"]["lines"]),
        misspelt=tuple(name for name in names if len(name) >= _SHORTEST_MISSPELT),
        inline=_inline_pattern(names),
    )


def split_sections(text: str, headings: Headings) -> tuple[Section, ...]:
    r"""Cut a report into sections, each name once, in the order of their first lines.

    Hard-wrapped lines are joined; a newline stands between paragraphs, list items and sub-headings.
    Text under no heading is findings, but for lines that only name the examination. Sections
    without text are left out.

    >>> from knowledge_banks import load_banks
    >>> headings = compile_headings(load_banks().headings)
    >>> report = "HISTORY: Cough.\n\nThe lungs are\nclear.\n\nIMPRESSON: Normal."
    >>> [(section.name, section.text) for section in split_sections(report, headings)][1:]
    [('findings', 'The lungs are clear.'), ('impression', 'Normal.')]
    """
    lines = _lines(text)
    width = max((len(line) for line in lines if not _is_rule(line)), default=0)
    found: dict[str, list[_Piece]] = {}
    for section, piece in _assigned(_blocks(lines, headings), headings):
        found.setdefault(section, []).append(piece)
    texts = ((name, _flow(pieces, width)) for name, pieces in found.items())
    return tuple(Section(name, flowing) for name, flowing in texts if flowing)


def clean_text(text: str) -> str:
    r"""Return one section's text with plain characters, single spaces, and a line a paragraph.

    >>> clean_text(" Lungs\u00a0are  clear.\r\n\r\n 1.  No \u201ceffusion\u201d. ")
    'Lungs are clear.\n1. No "effusion".'
    """
    lines = _lines(text)
    return _flow(list(_with_gaps(lines)), max(map(len, lines)))


# -- the bank


def _lint(table: Mapping[str, Any], file: str) -> Sequence[Mapping[str, Any]]:
    def check(value: Any, kind: type, where: str) -> None:
        if not isinstance(value, kind):
            expected = {
                str: "a string",
                bool: "true or false",
                list: "a list of strings",
                dict: "a table",
            }[kind]
            raise UserError(f"{file}: {where}: expected {expected}, got {value!r}")
        bad = [i for i in value if not isinstance(i, str)] if isinstance(value, list) else []
        if bad:
            raise UserError(f"{file}: {where}: expected a list of strings, got {bad[0]!r} in it")

    def check_keys(keys: Iterable[str], known: Iterable[str], where: str) -> None:
        for key in keys:
            if key not in known:
                raise UserError(
                    f'{file}: {where}unknown key "{key}"; expected one of {", ".join(known)}'
                )

    check_keys(table, ("version", "section", *_WORD_LISTS), "")
    for name, keys in _WORD_LISTS.items():
        check(table.get(name), dict, f"[{name}]")
        check_keys(table[name], keys, f"[{name}]: ")
        for key in keys:
            check(table[name].get(key), list, f'[{name}]: key "{key}"')
    sections: Any = table.get("section")
    if not isinstance(sections, list):
        raise UserError(f"{file}: expected [[section]] tables, got {sections!r}")
    section: Any
    for number, section in enumerate(sections, 1):
        where = f"[[section]] {number}"
        check(section, dict, where)
        where += f" {section.get('name', '')!r}"
        check_keys(section, _SECTION_KEYS, f"{where}: ")
        for key, kind in _SECTION_KEYS.items():
            if key in section or key in ("name", "phrases"):
                check(section.get(key), kind, f'{where}: key "{key}"')
        if not re.fullmatch(r"[a-z]+(?:_[a-z]+)*", section["name"]):
            raise UserError(f'{file}: {where}: key "name": expected lower-case words joined by _')
    names = [section["name"] for section in sections]
    for needed in _NEEDED:
        if names.count(needed) != 1:
            raise UserError(
                f"{file}: expected one [[section]] named {needed!r}, got {names.count(needed)}"
            )
    return sections


def _normal(heading: str) -> str:
    """Bring a heading to the form that the bank's are compared in."""
    plain = heading.lower().replace("&", " and ").strip(" \t*#>.,:;-_")
    return " ".join(plain.replace(" /", "/").replace("/ ", "/").split())


def _inline_pattern(names: Iterable[str]) -> re.Pattern[str]:
    def either(forms: Iterable[str]) -> str:
        return "|".join(re.escape(form) for form in sorted(set(forms), key=lambda f: (-len(f), f)))

    known = [name for name in names if len(name) > 3]
    shouted = either(name.upper() for name in known)
    written = either(form for name in known for form in (name.capitalize(), name.title()))
    return re.compile(rf"(?:(?<=\s)(?:{shouted})|(?<=[.!?]\s)(?:{written}))(?=\s?:)")


# -- lines


def _lines(text: str) -> list[str]:
    if _ODD.search(text):
        text = text.replace("\r\n", "\n").translate(_CLEANED)
    return [line.strip() for line in text.split("\n")]


def _is_rule(line: str) -> bool:
    return line[:2] in _RULE_STARTS and _RULE.fullmatch(line) is not None


def _is_furniture(line: str, headings: Headings) -> bool:
    return len(line) <= _LONGEST_HEADING and _normal(line) in headings.furniture


class _Block(NamedTuple):
    """The lines between two rules; `announced`: a line such as FINAL REPORT comes before them."""

    lines: list[str]
    announced: bool


def _blocks(lines: Iterable[str], headings: Headings) -> list[_Block]:
    blocks = [_Block([], announced=False)]
    for line in lines:
        if _is_rule(line):
            blocks.append(_Block([], announced=False))
        elif _is_furniture(line, headings):
            blocks.append(_Block([], announced=True))
        else:
            blocks[-1].lines.append(line)
    return [block for block in blocks if any(block.lines)]


def _with_gaps(lines: Iterable[str]) -> Iterator[_Piece]:
    gap = True
    for line in lines:
        if line:
            yield _Piece(line, line, gap=gap)
        gap = not line


def _pieces(block: _Block, headings: Headings) -> list[_Piece]:
    """Find the headings of each line: at its start and, in flattened text, inside it."""
    pieces = []
    for piece in _with_gaps(block.lines):
        starts = [0, *_inline_starts(piece.line, headings)]
        if len(starts) == 1:
            pieces.append(_read_heading(piece, headings))
            continue
        for start, end in zip(starts, [*starts[1:], None], strict=True):
            line = piece.line[start:end].strip()
            if start or not _is_furniture(line, headings):
                pieces.append(
                    _read_heading(_Piece(line, line, gap=piece.gap or start > 0), headings)
                )
    return pieces


def _inline_starts(line: str, headings: Headings) -> Iterator[int]:
    colon = line.find(":")
    if colon < 0:
        return
    for match in headings.inline.finditer(line, 0, line.rindex(":") + 1):
        # "REASON FOR EXAM:" holds "EXAM:", so the words up to a line's first colon are cut only
        # where a sentence or a FINAL REPORT ends.
        before = line[: match.start()].rstrip() if match.start() < colon else "."
        if before[-1:] in _ENDS or _is_furniture(before, headings):
            yield match.start()


def _read_heading(piece: _Piece, headings: Headings) -> _Piece:
    line = piece.line.lstrip(_MARKS)
    for opener, owner in headings.openers.items():
        if line.startswith(opener) and not line[len(opener) : len(opener) + 1].isalpha():
            return piece._replace(section=owner, line=line[len(opener) :].lstrip(" :;.-"))
    if ":" in line and (match := _COLON.match(line, 0, 82)):
        rest = line[match.end() :].lstrip(" :*")
        if name := _section_of(match[1], headings, paragraph=piece.gap):
            return piece._replace(section=name, line=rest)
        if rest and match[1].isupper() and _is_title(match[1], headings):
            return piece._replace(opens_findings=len(piece.line) - len(rest))
    if (match := _CAPITALS.match(line, 0, 82)) and (name := headings.names.get(_normal(match[1]))):
        return piece._replace(section=name, line=line[match.end() :].lstrip())
    alone = len(line) <= _LONGEST_HEADING and line[:1].isupper() and line[-1] != "."
    if alone and (name := headings.names.get(_normal(line))):
        return piece._replace(section=name, line="")
    return piece._replace(title=True) if _is_title(line, headings) else piece


def _section_of(heading: str, headings: Headings, *, paragraph: bool) -> str | None:
    """Name the section that a heading with a colon opens.

    One in small letters is believed where a paragraph begins.
    """
    normal = _normal(heading)
    if heading.isupper() and normal in headings.capitals:
        return headings.capitals[normal]
    if not (heading[0].isupper() or paragraph):
        return None
    name = headings.names.get(normal) or headings.names.get(_PARENTHESIS.sub("", normal))
    if name is None and len(normal) >= _SHORTEST_MISSPELT - 1 and heading[0].isupper():
        near = process.extractOne(normal, headings.misspelt, scorer=OSA.distance, score_cutoff=1)
        name = headings.names[near[0]] if near else None
    return name


def _is_title(line: str, headings: Headings) -> bool:
    if len(line) > 120:
        return False
    words = _TITLE_WORDS.findall(line.lower())
    known, fillers = headings.title_words, headings.title_fillers
    return all(word in known or word in fillers for word in words) and not known.isdisjoint(words)


# -- sections


def _assigned(blocks: list[_Block], headings: Headings) -> Iterator[tuple[str, _Piece]]:
    """Give every line of a report its section."""
    read = [_pieces(block, headings) for block in blocks]
    late = [
        _late_section(pieces, read[place + 1 : place + 2], announced=blocks[place + 1 : place + 2])
        for place, pieces in enumerate(read)
    ]
    proper = [
        piece for pieces, section in zip(read, late, strict=True) if not section for piece in pieces
    ]
    for pieces, section in zip(read, late, strict=True):
        if section:
            yield from _assigned_late(pieces, section)
    yield from _assigned_proper(proper, headings)


def _late_section(
    pieces: list[_Piece], following: list[list[_Piece]], *, announced: list[_Block]
) -> str | None:
    """Name the section of a whole block above a rule: an addendum or a wet read, or None.

    Other headings in such a block are a part of its text.
    """
    if not following or not pieces:
        return None
    if pieces[0].section in LATE:
        return pieces[0].section
    if any(piece.section or piece.opens_findings for piece in pieces) or all(
        p.title for p in pieces
    ):
        return None
    proper = announced[0].announced or any(piece.section for piece in following[0])
    return LATE[0] if proper else None


def _assigned_late(pieces: list[_Piece], section: str) -> Iterator[tuple[str, _Piece]]:
    for piece in pieces:
        if piece.section in LATE:
            section = piece.section
            piece = piece._replace(raw=piece.line, gap=True)
        yield section, piece._replace(line=piece.raw)


def _assigned_proper(pieces: list[_Piece], headings: Headings) -> Iterator[tuple[str, _Piece]]:
    last_findings = max(
        (n for n, piece in enumerate(pieces) if piece.section == FINDINGS or piece.opens_findings),
        default=-1,
    )
    current: str | None = None
    filled = False  # whether there is text under the current heading
    for number, piece in enumerate(pieces):
        in_body = current in headings.body
        if piece.section:
            current, filled = piece.section, bool(piece.line)
            piece = piece._replace(gap=True)
        elif in_body:
            pass
        elif piece.opens_findings:
            title, rest = piece.line[: piece.opens_findings], piece.line[piece.opens_findings :]
            yield EXAMINATION, piece._replace(line=title.rstrip(" :*"), gap=True)
            current, piece = FINDINGS, piece._replace(line=rest, gap=True)
        elif piece.title and (current is None or (piece.gap and filled)):
            yield EXAMINATION, piece._replace(gap=True)
            current = None
            continue
        elif _leaves(piece, current, filled=filled):
            # Running text with findings still ahead belongs to what was said before them.
            ahead = number < last_findings
            current = (current or EXAMINATION) if ahead else FINDINGS
        filled = filled or bool(piece.line)
        yield current or FINDINGS, piece


def _leaves(piece: _Piece, current: str | None, *, filled: bool) -> bool:
    """Tell whether a line under no heading leaves the short section before it."""
    if current is None or SHOUTED.match(piece.line):
        return True
    long_for_a_note = (
        current in ("comparison", "technique", EXAMINATION) and len(piece.line) > _LONGEST_NOTE
    )
    return piece.gap and (filled or long_for_a_note)


def _flow(pieces: list[_Piece], width: int) -> str:
    """Join hard-wrapped lines; start a new line at paragraphs, list items and sub-headings."""
    lines: list[list[str]] = []
    before = ""
    for piece in pieces:
        if not piece.line:
            continue
        if not lines or piece.gap or begins_anew(piece.line, before, width):
            lines.append([])
        lines[-1].append(piece.line)
        before = piece.line
    return "\n".join(" ".join(" ".join(line).split()) for line in lines)
