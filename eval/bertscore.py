"""BERTScore (Zhang et al., 2020) by its authors' package, with a model that the user names."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from cot_builder.errors import UserError
from eval.records import Measured, Pair, Score

_LONGEST: Final = 512  # tokens; some tokenizers do not say
_REMEDY: Final = "pip install 'cot-builder[bertscore]' -c constraints.txt"


def measure_bertscore(pairs: Sequence[Pair], model: str, *, layer: int | None = None) -> Measured:
    """Measure the mean F1 of BERTScore, without idf and rescaling, on the texts as they are.

    `model` is a folder or a name on the Hub, `layer` the one to compare; for the models of the
    package's own list it may be left out. An empty prediction is 0. UserError for an unknown model,
    and for one that brings code of its own.
    """
    try:
        from bert_score import BERTScorer
        from bert_score.utils import model2layers
        from transformers import AutoConfig, AutoTokenizer
    except ModuleNotFoundError:
        return Measured((Score("BERTScore", None, 0, f"model={model}", _REMEDY),))
    chosen = layer or model2layers.get(model)
    if chosen is None:
        raise UserError(f"--bertscore {model}: say which layer to compare, with --bertscore-layer")
    try:
        for part in (AutoConfig, AutoTokenizer):  # told not to, it does not ask for a model's code
            part.from_pretrained(model, trust_remote_code=False)
        scorer = BERTScorer(model_type=model, num_layers=chosen)
    except (OSError, ValueError) as error:
        raise UserError(f"--bertscore {model}: no such model ({error!s:.200})") from None
    tokenizer: Any = scorer._tokenizer
    tokenizer.model_max_length = min(tokenizer.model_max_length, _LONGEST)
    values = [0.0] * len(pairs)
    full = [i for i, pair in enumerate(pairs) if pair.prediction.strip()]  # it fails on empty texts
    if full:
        *_, f1 = scorer.score(
            [pairs[i].prediction for i in full], [pairs[i].reference for i in full]
        )
        for place, value in zip(full, f1.tolist(), strict=True):
            values[place] = value
    recipe = (
        f"model={Path(model).name},layer={chosen},mean F1,no idf,no rescaling,"
        f"bert-score {version('bert-score')}"
    )
    mean = sum(values) / len(values) if values else None
    return Measured((Score("BERTScore", mean, len(values), recipe),), {"BERTScore": values})
