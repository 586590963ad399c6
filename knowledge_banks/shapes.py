"""What each bank may hold; whatever else stands in one is an error, so that a slip is not lost.

To add a key or a table: one entry in SHAPES.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final, NamedTuple, TypeAlias

from cot_builder.vocabulary import ASSERTIONS, LABELS, REGIONS


class Leaf(NamedTuple):
    """What one key holds: text, a flag, or a list; `of` says what its names must be names of.

    Words and phrases are looked for in reports: a user's file adds to them and takes from them,
    and overrides everything else. Phrases have braces, which are written out.
    """

    kind: type[Any]
    of: str = ""
    words: bool = False
    phrases: bool = False


Shape: TypeAlias = "Leaf | dict[str, Shape] | list[dict[str, Shape]]"

TEXT: Final = Leaf(str)
FLAG: Final = Leaf(bool)
WORDS: Final = Leaf(list, words=True)
PHRASES: Final = Leaf(list, words=True, phrases=True)
LABEL: Final = Leaf(str, "label")
SITE: Final = Leaf(str, "site")
LABELLED: Final = Leaf(list, "label")
PLACES: Final = Leaf(list, "region")
LIST: Final[dict[str, Shape]] = {"words": PHRASES}
MENTION: Final[dict[str, Shape]] = {
    "labels?": LABELLED, "unmapped?": FLAG, "sign?": Leaf(str, "sign"),
    "basis?": Leaf(list, "basis"),
    "assertions?": Leaf(list, "assertion"), "finding?": PHRASES, "sentence?": PHRASES,
    "unless?": PHRASES,
}  # fmt: skip

# Bank → key → leaf, table, or array of tables. "?" marks an optional key, "*" stands for free keys.
SHAPES: Final[dict[str, dict[str, Shape]]] = {
    "diseases": {
        "version": TEXT,
        "disease": [{
            "name": LABEL, "definition": TEXT, "aliases?": WORDS,
            "group?": [{
                "id": TEXT, "site": SITE, "fixed?": FLAG, "fact?": FLAG, "also?": LABELLED,
                "phrases": PHRASES,
            }],
        }],
    },
    "devices": {
        "version": TEXT,
        "device": [{
            "id": TEXT, "site": SITE, "fixed?": FLAG, "places?": Leaf(list, "site"), "part?": FLAG,
            "says?": Leaf(str, "assertion"), "phrases": PHRASES,
        }],
    },
    "signs": {
        "version": TEXT,
        "sign": [{
            "id": TEXT, "disease": LABEL, "concepts?": Leaf(list), "stated?": FLAG, "site": SITE,
            "fixed?": FLAG, "fact?": FLAG, "phrases": PHRASES,
        }],
    },
    "unmapped": {
        "version": TEXT,
        "finding": [{"id": TEXT, "site": SITE, "fixed?": FLAG, "fact?": FLAG, "phrases": PHRASES}],
    },
    "structures": {
        "version": TEXT, "shapes": PHRASES, "generics": PHRASES,
        "structure": [{
            "id": TEXT, "site": SITE, "nouns": PHRASES, "adjectives?": PHRASES,
            "means": {"*": Leaf(str, "meaning")},
        }],
    },
    "states": {
        "version": TEXT, "state": {"*": PHRASES}, "rank": {"order": Leaf(list, "state")},
    },
    "regions": {
        "version": TEXT,
        "region": [{"name": Leaf(str, "region"), "within?": Leaf(str, "region")}],
        "site": [{
            "id": TEXT, "left?": PLACES, "right?": PLACES, "both?": PLACES, "unsided?": PLACES,
            "all?": PLACES, "phrases?": PHRASES, "weak_phrases?": PHRASES, "left_phrases?": PHRASES,
            "right_phrases?": PHRASES, "both_phrases?": PHRASES, "weak_both_phrases?": PHRASES,
        }],
        "side": [{"id": Leaf(str, "side"), "phrases": PHRASES}],
        "imagenome": {"*": Leaf(str, "region, or empty")},
    },
    "cues": {
        "version": TEXT,
        "cue": [{
            "id": TEXT, "means": Leaf(str, "meaning of a cue"), "reach": Leaf(str, "reach"),
            "nested?": FLAG, "phrases": PHRASES,
        }],
    },
    "attributes": {
        "version": TEXT, "severity": {"*": PHRASES}, "temporal": {"*": PHRASES}, "plain": LIST,
        "stop": LIST, "verbs": LIST, "prepositions": LIST, "positive_start": LIST,
        "companions": LIST, "lookalikes": {"words": WORDS}, "ignore": {"phrases": PHRASES},
        "silent": {"phrases": PHRASES}, "refers": {"words": WORDS, "within": WORDS},
        "joins": {"and": PHRASES, "or": PHRASES},
        "small_words": {
            "determiner": PHRASES, "adverb": PHRASES, "filler": PHRASES, "relative": PHRASES,
            "accompanies": PHRASES, "verdict": PHRASES, "evidence": PHRASES, "told_before": PHRASES,
            "past?": PHRASES, "stands?": PHRASES,
        },
        "body_parts": {"outside": WORDS, "chest": WORDS, "terms": PHRASES},
    },
    "contradictions": {
        "version": TEXT,
        "pair": [{
            "id": TEXT, "why": TEXT, "severity": Leaf(str, "severity of a problem"),
            "same?": Leaf(list, "thing to share"), "one": MENTION, "other": MENTION,
        }],
    },
    "releases": {"version": TEXT, "category": {"*": Leaf(str, "label, or empty")}},
    # That a wording is read back as it was written, cot_builder.conversations checks.
    "templates": {
        "version": TEXT,
        "question": [{"id": TEXT, "task": Leaf(str, "task"), "text": TEXT}],
        "coordinates": {"*": TEXT},
        "wording": [{
            "id": TEXT, "step": TEXT, "via": TEXT, "joint": TEXT,
            "positive": TEXT, "negative": TEXT, "uncertain": TEXT,
        }],
    },
    # What a heading may be, cot_builder.sections checks when it compiles them.
    "headings": {
        "version": TEXT,
        "section": [{
            "name": TEXT, "body?": FLAG, "phrases?": WORDS, "capitals?": WORDS, "openers?": WORDS,
        }],
        "titles": {"words": WORDS, "fillers": WORDS}, "furniture": {"lines": WORDS},
    },
}  # fmt: skip

# The names that never change; sites, states and signs are what the banks themselves define.
NAMES: Final[dict[str, Collection[str]]] = {
    "label": LABELS,
    "label, or empty": ("", *LABELS),
    "region": REGIONS,
    "region, or empty": ("", *REGIONS),
    "assertion": ASSERTIONS,
    "side": ("left", "right", "both"),
    "basis": ("stated", "implied"),
    "task": ("mcl", "svr", "report"),
    "severity of a problem": ("error", "warning"),
    "thing to share": ("label", "sentence", "region", "place"),
    "reach": ("forward", "backward"),
    "meaning of a cue": (
        "negative", "uncertain", "link", "none", "drop", "emphasis", "end", "mask",
    ),
}  # fmt: skip
