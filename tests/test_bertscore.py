"""BERTScore with a tiny random model: its own package's values, empty predictions, mistakes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from cot_builder.errors import UserError
from eval.bertscore import measure_bertscore
from eval.records import Pair

bert_score = pytest.importorskip("bert_score")
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "no", "small", "left", "effusion", ".")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = str(tmp_path_factory.mktemp("bert"))
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=len(WORDS), num_hidden_layers=2, **shape)).save_pretrained(
        folder
    )
    BertTokenizer(vocab={w: i for i, w in enumerate(WORDS)}).save_pretrained(folder)
    return folder


PAIRS = [
    Pair("1", "No effusion.", "No effusion."),
    Pair("2", "No effusion.", "Small left effusion."),
    Pair("3", "No effusion.", " "),
]


def test_values_are_the_package_s_and_an_empty_prediction_is_zero(model: str) -> None:
    found = measure_bertscore(PAIRS, model, layer=2)
    scorer = bert_score.BERTScorer(model_type=model, num_layers=2)
    scorer._tokenizer.model_max_length = 512
    *_, expected = scorer.score(["Small left effusion."], ["No effusion."])
    assert found.per_study["BERTScore"] == pytest.approx([1, expected.item(), 0], abs=1e-5)
    (score,) = found.scores
    assert score.n == 3
    assert "layer=2" in score.signature


def test_what_is_missing_is_told(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="--bertscore-layer"):
        measure_bertscore(PAIRS, model)
    with pytest.raises(UserError, match=r"--bertscore \S+/gone: no such model"):
        measure_bertscore(PAIRS, f"{model}/gone", layer=2)
    monkeypatch.setitem(sys.modules, "bert_score", None)
    (score,) = measure_bertscore(PAIRS, model, layer=2).scores
    assert score.value is None
    assert "cot-builder[bertscore]" in score.note


def test_a_model_s_own_code_is_not_run(tmp_path: Path) -> None:
    asked = {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModel": "own.Own"}}
    (tmp_path / "config.json").write_text(json.dumps(asked))
    (tmp_path / "own.py").write_text("raise SystemExit('run')")
    with pytest.raises(UserError, match="custom code"):
        measure_bertscore(PAIRS, str(tmp_path), layer=2)
