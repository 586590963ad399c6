"""BLEU, ROUGE-L and METEOR as the literature on report generation computes them.

That is pycocoevalcap 1.2 on R2Gen-cleaned, lower-cased text: BLEU and ROUGE-L are written here and
equal to it, METEOR 1.5 is its own jar, run on files. A value means something with its tokens only:
the same reports score a BLEU-4 of .04 on raw and of .08 on cleaned text.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from eval.records import Measured, Pair, Score, UnavailableError

ORDERS: Final = 4
BETA: Final = 1.2
# pycocoevalcap's: without them a short report of one word would divide by zero.
_TINY, _SMALL = 1e-15, 1e-9
_REMEDY: Final = (
    "METEOR 1.5 is a Java program: install Java (apt-get install default-jre-headless) and "
    "pip install 'cot-builder[meteor]' -c constraints.txt"
)
# R2Gen's pattern has the range ":-[" in it: of lower-cased text it takes :;<=>?@[ and no hyphen.
_DROPPED: Final = str.maketrans("", "", "\"/\\'.,?*!%^&_+():;<=>@[]{}")
_NUMBERS: Final = ("2", "3", "4", "5")
_PTB_DROPPED: Final = frozenset("'' ' `` ` -LRB- -RRB- -LCB- -RCB- . ? ! , : - -- ... ;".split(" "))
_TIMEOUT: Final = 3600


# -- tokens


def r2gen(text: str) -> str:
    """Clean a report as R2Gen does for MIMIC-CXR; its oddities are kept, for values depend on them.

    List numbers go (and a decimal's point with them), sentences end in " .", hyphens stay.

    >>> r2gen("1. Heart size normal. 2. No effusion (1.5 cm).")
    'heart size normal . no effusion 15 cm .'
    """
    text = text.replace("\n", " ")
    for twice, once, times in (("__", "_", 7), ("  ", " ", 6), ("..", ".", 7)):
        for _ in range(times):
            text = text.replace(twice, once)
    return _sentences(text)


def r2gen_iu(text: str) -> str:
    """Clean a report as R2Gen does for IU X-Ray: the same, but for white space and underscores."""
    for _ in range(3):
        text = text.replace("..", ".")
    return _sentences(text)


def _sentences(text: str) -> str:
    text = text.replace("1. ", "")
    for before in (". ", " "):
        for number in _NUMBERS:
            text = text.replace(f"{before}{number}. ", ". ")
    sentences = text.strip().lower().split(". ")
    return " . ".join(sentence.strip().translate(_DROPPED) for sentence in sentences) + " ."


def ptb(texts: Sequence[str]) -> list[str]:
    """Tokenize by Stanford's PTBTokenizer and drop punctuation, as COCO captions are scored.

    Raises UnavailableError without Java or the jar.
    """
    jar = _jar("tokenizer/stanford-corenlp-3.4.1.jar")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "texts"
        file.write_text("".join(f"{_one_line(text)}\n" for text in texts), encoding="utf-8")
        options = ("edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase")
        out = _java("-cp", str(jar), *options, str(file))
    lines = out.split("\n")[: len(texts)]
    return [" ".join(w for w in line.split() if w not in _PTB_DROPPED) for line in lines]


def _each(clean: Callable[[str], str]) -> Callable[[Sequence[str]], list[str]]:
    return lambda texts: list(map(clean, texts))


# To add one: name it here with what it makes of texts; the name stands in every signature.
TOKENS: Final[dict[str, Callable[[Sequence[str]], list[str]]]] = {
    "r2gen": _each(r2gen),
    "r2gen_iu": _each(r2gen_iu),
    "raw": _each(lambda text: " ".join(text.split())),
    "lower": _each(lambda text: " ".join(text.lower().split())),
    "ptb": ptb,
}


# -- BLEU


def bleu_counts(reference: Sequence[str], prediction: Sequence[str]) -> tuple[int, ...]:
    """Count what BLEU is made of: both lengths, then for orders 1 to 4 n-grams and right ones.

    >>> bleu_counts("no pleural effusion".split(), "pleural effusion".split())
    (3, 2, 2, 1, 0, 0, 2, 1, 0, 0)
    """
    size = len(prediction)
    right = [
        _shared(zip(*(reference[n:] for n in range(order)), strict=False),
                zip(*(prediction[n:] for n in range(order)), strict=False))
        for order in range(1, ORDERS + 1)
    ]  # fmt: skip
    return len(reference), size, *(max(0, size - n) for n in range(ORDERS)), *right


def _shared(one: Any, other: Any) -> int:
    known = Counter(one)
    if not known:
        return 0
    found = Counter(other)
    return sum(min(found[key], known[key]) for key in found.keys() & known.keys())


def bleu(counts: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return BLEU-1 to -4 of counts (..., 10) or of their sums: (..., 4).

    Papineni et al., 2002, with the closest reference length and pycocoevalcap's constants.
    """
    counts = np.asarray(counts, dtype=float)
    guesses, right = counts[..., 2 : 2 + ORDERS], counts[..., 2 + ORDERS :]
    powers = 1 / np.arange(1, ORDERS + 1)
    values = np.cumprod((right + _TINY) / (guesses + _SMALL), axis=-1) ** powers
    ratio = (counts[..., 1] + _TINY) / (counts[..., 0] + _SMALL)
    penalty = np.exp(np.minimum(0, 1 - 1 / ratio))
    return np.asarray(values * penalty[..., None])


# -- ROUGE-L


def rouge_l(reference: Sequence[str], prediction: Sequence[str]) -> float:
    """Return the F of the longest common subsequence (Lin, 2004) with beta 1.2.

    >>> round(rouge_l("no pleural effusion .".split(), "pleural effusion .".split()), 6)
    0.835616
    """
    longest = _longest_common(reference, prediction)
    if not longest:
        return 0.0
    precision, recall = longest / len(prediction), longest / len(reference)
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def _longest_common(one: Sequence[str], other: Sequence[str]) -> int:
    """Count by bits (Hyyrö, 2004): one addition a word, not one comparison a pair of words."""
    places: dict[str, int] = {}
    for place, word in enumerate(one):
        places[word] = places.get(word, 0) | 1 << place
    full = (1 << len(one)) - 1
    row = full
    for word in other:
        meets = row & places.get(word, 0)
        row = ((row + meets) | (row - meets)) & full
    return len(one) - row.bit_count()


# -- METEOR


class Meteor(NamedTuple):
    """METEOR 1.5: of the corpus (from summed statistics, no mean) and of each segment."""

    corpus: float
    segments: list[float]


def meteor(references: Sequence[str], predictions: Sequence[str]) -> Meteor:
    """Return METEOR 1.5 (Denkowski and Lavie, 2014) from pycocoevalcap's jar, run on two files.

    Its own wrapper hangs on a line break and reads "|||" as a second reference. Raises
    UnavailableError without Java or the jar.
    """
    jar = _jar("meteor/meteor-1.5.jar")
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for name, texts in (("predictions", predictions), ("references", references)):
            file = Path(folder) / name
            file.write_text("".join(f"{_one_line(t)}\n" for t in texts), encoding="utf-8")
            files.append(str(file))
        out = _java("-Xmx2G", "-jar", str(jar), *files, "-l", "en", "-norm")
    segments = re.findall(r"^Segment \d+ score:\s+(\S+)", out, flags=re.MULTILINE)
    final = re.search(r"^Final score:\s+(\S+)", out, flags=re.MULTILINE)
    if final is None or len(segments) != len(references):
        raise UnavailableError(
            f"METEOR's jar gave {len(segments)} of {len(references)} scores: {out[-200:]!r}"
        )
    return Meteor(float(final[1]), list(map(float, segments)))


def _jar(path: str) -> Path:
    found = find_spec("pycocoevalcap")
    if not found or not found.submodule_search_locations or not shutil.which("java"):
        raise UnavailableError(_REMEDY)
    return Path(next(iter(found.submodule_search_locations))) / path


def _java(*options: str) -> str:
    # A decimal comma of another locale would not be read as a number.
    locale = ("-Duser.language=en", "-Duser.country=US", "-Dfile.encoding=UTF-8")
    try:
        run = subprocess.run(
            ["java", *locale, *options], capture_output=True, timeout=_TIMEOUT, check=True
        )
    except subprocess.CalledProcessError as error:
        raise UnavailableError(f"java failed: {error.stderr.decode()[-300:]}") from None
    except subprocess.TimeoutExpired:
        raise UnavailableError(f"java did not end within {_TIMEOUT} s") from None
    return run.stdout.decode()


def _one_line(text: str) -> str:
    return " ".join(text.replace("|||", " ").split())


# -- all of them


def measure_text(
    pairs: Sequence[Pair], *, tokens: str = "r2gen", max_seq_length: int | None = None
) -> Measured:
    """Measure BLEU-1 to -4, ROUGE-L and METEOR on texts prepared as `tokens` says.

    `max_seq_length` cuts as R2Gen does (60 for IU X-Ray, 100 for MIMIC-CXR): a reference to one
    word less, since its start token counts.
    """
    prepare = TOKENS[tokens]
    cut = max_seq_length
    try:
        references = [_cut(t, cut and cut - 1) for t in prepare([p.reference for p in pairs])]
        predictions = [_cut(t, cut) for t in prepare([p.prediction for p in pairs])]
    except UnavailableError as error:
        names = (*(f"BLEU-{n}" for n in range(1, 5)), "ROUGE-L", "METEOR")
        return Measured(tuple(Score(n, None, 0, f"tokens={tokens}", str(error)) for n in names))
    recipe = f"tokens={tokens}" + (f",max_seq_length={cut}" if cut else "")
    counts = [
        bleu_counts(r.split(), p.split()) for r, p in zip(references, predictions, strict=True)
    ]
    rouge = [
        rouge_l(r.split(" "), p.split(" ")) for r, p in zip(references, predictions, strict=True)
    ]
    n = len(pairs)
    corpus = bleu(np.sum(counts, axis=0))
    per_study: dict[str, Sequence[float | None]] = {
        f"BLEU-{order}": values.tolist() for order, values in enumerate(bleu(np.array(counts)).T, 1)
    }
    scores = [
        Score(f"BLEU-{order}", float(value), n, f"{recipe},corpus,pycocoevalcap")
        for order, value in enumerate(corpus, 1)
    ]
    scores.append(
        Score("ROUGE-L", float(np.mean(rouge)), n, f"{recipe},beta={BETA},mean,pycocoevalcap")
    )
    per_study["ROUGE-L"] = rouge
    recipe_meteor = f"{recipe},1.5,en,-norm,corpus,jar of pycocoevalcap"
    try:
        found = meteor(references, predictions)
        per_study["METEOR"] = found.segments
        scores.append(Score("METEOR", found.corpus, n, recipe_meteor))
    except UnavailableError as error:
        scores.append(Score("METEOR", None, 0, recipe_meteor, str(error)))
    return Measured(tuple(scores), per_study, {"bleu": counts})


def _cut(text: str, most: int | None) -> str:
    return text if most is None else " ".join(text.split()[:most])
