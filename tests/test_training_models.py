"""Tiny models of each kind, and checkpoints as stages leave them."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import pytest

pytest.importorskip("trl")

from PIL import Image

from cot_builder.errors import UserError
from training.checkpoints import read_checkpoint
from training.models import PARTS, evaluating, load_checkpoint, load_model, make_tiny, part_of

TEXTS = ["The heart size is normal.", "<think>a → b</think><answer>[1, 2, 3, 4]</answer>"]


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_a_tiny_model_sees_and_writes(kind: str, tmp_path: Path) -> None:
    make_tiny(f"tiny-{kind}", TEXTS, tmp_path)
    loaded = load_checkpoint(tmp_path)
    parts = {part_of(name) for name, _ in loaded.model.named_parameters()}
    assert parts == set(PARTS)
    turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Where?"}]}]
    text = loaded.processor.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
    batch = loaded.processor(
        images=[Image.new("RGB", (60, 90))], text=[text], return_tensors="pt", padding=True
    )
    assert (
        batch["mm_token_type_ids"] == (batch["input_ids"] == loaded.processor.image_token_id)
    ).all()
    with evaluating(loaded.model):
        written = loaded.model.generate(**batch, max_new_tokens=3, do_sample=False)
    assert written.shape[1] > batch["input_ids"].shape[1]


def test_the_same_seed_makes_the_same_model(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        make_tiny("tiny-qwen2_vl", TEXTS, tmp_path / name, seed=seed)
    digests = [
        hashlib.sha256((tmp_path / name / "model.safetensors").read_bytes()).hexdigest()
        for name in "abc"
    ]
    assert digests[0] == digests[1] != digests[2]


def test_no_such_tiny_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="tiny-qwen2_vl, tiny-qwen2_5_vl, tiny-qwen3_vl"):
        make_tiny("tiny-llama", TEXTS, tmp_path)


def test_a_models_own_code_is_never_run_even_if_the_user_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}
    (tmp_path / "config.json").write_text(json.dumps(own))
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: pass\n")
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))  # what transformers would ask
    for load in (load_checkpoint, load_model):
        with pytest.raises(UserError, match="custom code"):
            load(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_no_model_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Qwen-VL model"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", json.dumps({"stage": "mcl"})])
def test_a_manifest_of_something_else(content: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(UserError, match="no manifest of a checkpoint"):
        read_checkpoint(tmp_path)
