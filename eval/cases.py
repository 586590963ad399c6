"""The paper's Fig. 6 as one HTML file: image with boxes, both reports, reasoning per sentence.

The file needs nothing beside itself: images are within it, there is no script, and every text of
reports and models is escaped.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Sequence
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Final, NamedTuple

from cot_builder.boxes import XYXY
from cot_builder.decompose import Decomposer
from cot_builder.images import BadImageError, probe, reduced
from cot_builder.predictions import Located
from cot_builder.records import Row, Section
from cot_builder.sentences import split_sentences
from eval.records import Pair
from eval.text import r2gen, rouge_l

Files = Callable[[str], Path]
TRUE, PREDICTED = "#1a9641", "#d7191c"
# Told apart beside one another, and light enough for black text.
COLOURS: Final = (
    "#ffe08a", "#a6d8f7", "#f7b7c5", "#b7e4b0", "#d9c2f0", "#ffc999", "#a8e6df", "#dcdcae",
)  # fmt: skip
ALIKE: Final = 0.6  # ROUGE-L from which two sentences without chains in common match
_SIDE: Final = 720
_STYLE: Final = """
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:1500px;padding:0 1rem;color:#222}
section{display:grid;grid-template-columns:minmax(18rem,26rem) 1fr 1fr;gap:1.5rem;
border-top:1px solid #bbb;padding:1.2rem 0 2rem;align-items:start}
h2{grid-column:1/-1;font-size:1.05rem;margin:0}h3{font-size:.8rem;text-transform:uppercase;
letter-spacing:.06em;color:#666;margin:.2rem 0 .4rem}p{margin:0 0 1rem}
svg{width:100%;height:auto;background:#000;display:block}
mark{padding:.05em .2em;border-radius:.2em;color:inherit}
article{border-left:3px solid #ddd;padding:0 0 .3rem .8rem;margin:0 0 .9rem}
pre{font:13px/1.45 ui-monospace,monospace;white-space:pre-wrap;margin:.3rem 0;color:#333}
small{color:#666}.bad{color:#b00}.key b{font-weight:600}
@media(max-width:60rem){section{grid-template-columns:1fr}}
"""


class Sentence(NamedTuple):
    """A sentence of one side, what it says as (label, assertion), and the colour of its match."""

    text: str
    says: frozenset[tuple[str, str]]
    colour: str | None = None


def case_sheet(pairs: Iterable[Pair], decomposer: Decomposer, files: Files, *, title: str) -> str:
    """Return the sheet of some studies as one HTML document."""
    body = "\n".join(_case(pair, decomposer, files) for pair in pairs)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style></head><body>\n"
        f"<h1>{escape(title)}</h1>\n"
        f'<p class="key"><b style="color:{TRUE}">green</b>: true boxes; '
        f'<b style="color:{PREDICTED}">red</b>: predicted boxes, numbered as their sentences. '
        "Sentences of one colour say the same.</p>\n"
        f"{body}\n</body></html>\n"
    )


def _case(pair: Pair, decomposer: Decomposer, files: Files) -> str:
    predicted = pair.predicted.sentences if pair.predicted else ()
    texts = (
        [s["text"] for s in pair.row["sections"] if s["name"] == pair.section] if pair.row else []
    )
    true, found = match_sentences(
        _sentences("\n".join(texts) or pair.reference, decomposer),
        [_said(s.text, decomposer) for s in predicted] or _sentences(pair.prediction, decomposer),
    )
    reasons = "".join(
        _reasoning(number, located, sentence)
        for number, (located, sentence) in enumerate(zip(predicted, found, strict=False), 1)
    )
    return (
        f"<section><h2>Study {escape(pair.study_id)}</h2>\n<div>{_picture(pair, files)}</div>\n"
        f"<div><h3>Ground truth</h3>{_marked(true)}<h3>Generated</h3>{_marked(found)}</div>\n"
        f"<div><h3>Reasoning and boxes</h3>{reasons or '<p>none predicted</p>'}</div></section>"
    )


# -- sentences that say the same


def match_sentences(
    true: Sequence[Sentence], found: Sequence[Sentence]
) -> tuple[list[Sentence], list[Sentence]]:
    """Colour the sentences of both sides that match, each with at most one of the other side.

    Two match best by the labels and assertions they share, else by their words.
    """
    pairs = sorted(
        (
            (-_likeness(one, other), i, j)
            for i, one in enumerate(true)
            for j, other in enumerate(found)
            if _likeness(one, other) > 0
        )
    )
    left, right = list(true), list(found)
    number = 0
    for _, i, j in pairs:
        if left[i].colour is None and right[j].colour is None:
            colour = COLOURS[number % len(COLOURS)]
            left[i], right[j] = (s._replace(colour=colour) for s in (left[i], right[j]))
            number += 1
    return left, right


def _likeness(one: Sentence, other: Sentence) -> float:
    words = rouge_l(r2gen(one.text).split(), r2gen(other.text).split())
    if shared := one.says & other.says:
        return 1 + len(shared) / len(one.says | other.says) + words / 10
    return words if words >= ALIKE and not (one.says or other.says) else 0.0


def _sentences(text: str, decomposer: Decomposer) -> list[Sentence]:
    return [_said(s.text, decomposer) for s in split_sentences(Section("findings", text))]


def _said(text: str, decomposer: Decomposer) -> Sentence:
    chains = decomposer.decompose([Section("findings", text)]).chains
    return Sentence(text, frozenset((c.disease, c.assertion) for c in chains))


def _marked(sentences: Sequence[Sentence]) -> str:
    spans = [
        f'<mark style="background:{s.colour}">{escape(s.text)}</mark>'
        if s.colour
        else escape(s.text)
        for s in sentences
    ]
    return f"<p>{' '.join(spans) or '<small>empty</small>'}</p>"


def _reasoning(number: int, located: Located, sentence: Sentence) -> str:
    colour = sentence.colour or "#ddd"
    boxes = "; ".join(", ".join(f"{x:.0f}" for x in box) for box in located.boxes or ())
    where = f"boxes {boxes}" if boxes else "no box" if located.boxes == () else "no answer was read"
    fault = f'<pre class="bad">{escape(located.problem)}</pre>' if located.problem else ""
    think = f"<pre>{escape(located.think)}</pre>" if located.think else ""
    return (
        f'<article style="border-color:{colour}"><b>{number}.</b> {escape(located.text)}{think}'
        f"{fault}<small>{escape(where)}</small></article>"
    )


# -- the image


def _picture(pair: Pair, files: Files) -> str:
    path, image_id, size = _image(pair)
    if path is None:
        return "<small>no image</small>"
    try:
        file = files(path)
        width, height = size or probe(file)
        picture = _embedded(file, max(probe(file)))
    except BadImageError as error:
        return f'<p class="bad">{escape(path)}: {escape(error.detail)}</p>'
    line = max(width, height) / 250
    true = [(box, "") for box in _true_boxes(pair.row, image_id)]
    drawn = [
        (box, str(number))
        for number, sentence in enumerate(pair.predicted.sentences if pair.predicted else (), 1)
        for box in sentence.boxes or ()
    ]
    shapes = [_shape(box, label, TRUE, line) for box, label in true]
    shapes += [_shape(box, label, PREDICTED, line) for box, label in drawn]
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="radiograph with boxes">'
        f'<image href="data:image/jpeg;base64,{picture}" width="{width}" height="{height}" '
        f'preserveAspectRatio="none"/>{"".join(shapes)}</svg>'
        f"<small>{escape(path)}, {width} × {height}</small>"
    )


def _image(pair: Pair) -> tuple[str | None, str | None, tuple[int, int] | None]:
    """Return path, id and size of the image that was predicted from, else the study's first."""
    found = pair.predicted
    if found and found.image_path and found.width and found.height:
        return found.image_path, found.image_id, (found.width, found.height)
    for image in pair.row["images"] if pair.row else ():
        size = (image["width"], image["height"]) if image["width"] and image["height"] else None
        return image["path"], image["image_id"], size
    return None, None, None


def _true_boxes(row: Row | None, image_id: str | None) -> list[XYXY]:
    if row is None:
        return []
    places = (*row["grounded"], *row["chains"])
    boxes = (box for place in places for box in place["boxes"] if box["kind"] != "prior")
    found = [(b["x1"], b["y1"], b["x2"], b["y2"]) for b in boxes if b["image_id"] == image_id]
    return list(dict.fromkeys(found))


def _embedded(file: Path, side: int) -> str:
    buffer = BytesIO()
    reduced(file, scale=min(1.0, _SIDE / side)).save(buffer, "JPEG", quality=85)
    return base64.b64encode(buffer.getvalue()).decode()


def _shape(box: XYXY, label: str, colour: str, line: float) -> str:
    x1, y1, x2, y2 = box
    text = (
        f'<text x="{x1 + line:.1f}" y="{y1 + 6 * line:.1f}" fill="{colour}" '
        f'font-size="{6 * line:.1f}" font-weight="bold">{escape(label)}</text>'
        if label
        else ""
    )
    return (
        f'<rect x="{x1:.1f}" y="{y1:.1f}" width="{x2 - x1:.1f}" height="{y2 - y1:.1f}" '
        f'fill="none" stroke="{colour}" stroke-width="{line:.1f}"/>{text}'
    )
