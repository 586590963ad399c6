"""The paper's recipe at its real size, without weights: Qwen2-VL-2B's shape on the meta device."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")

import yaml
from accelerate import FullyShardedDataParallelPlugin, init_empty_weights
from peft import get_peft_model
from transformers import AutoModelForImageTextToText, Qwen2VLConfig
from trl.trainer.grpo_config import GRPOConfig

from knowledge_banks import load_banks
from training import adapter, preflight
from training.preflight import Look, ProblemError
from training.recipe import FOLDER, load_recipe
from training.run import RunOptions
from training.stage import Job
from training.svr import objective

HIDDEN, LAYERS, KEYS, INNER, WORDS = 1536, 28, 256, 8960, 151936  # Qwen2-1.5B, as in its report
WIDE, DEEP, MLP, PATCH = 1280, 32, 5120, 3 * 2 * 14 * 14  # the vision tower

TEXT = (
    WORDS * HIDDEN  # the embedding, which is the head too
    + LAYERS
    * (
        2 * HIDDEN * HIDDEN + HIDDEN  # queries with bias, output without
        + 2 * (HIDDEN * KEYS + KEYS)
        + 3 * HIDDEN * INNER + 2 * HIDDEN
    )
    + HIDDEN
)  # fmt: skip
VISION = PATCH * WIDE + DEEP * (
    3 * WIDE * WIDE + 3 * WIDE + WIDE * WIDE + WIDE + 2 * WIDE * MLP + MLP + WIDE + 4 * WIDE
)
PROJECTOR = 2 * WIDE + MLP * MLP + MLP + MLP * HIDDEN + HIDDEN
LORA = LAYERS * 8 * (4 * HIDDEN + 2 * (HIDDEN + KEYS) + 3 * (HIDDEN + INNER))  # of rank 8


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nothing but the model's shape."""
    folder = tmp_path_factory.mktemp("qwen2_vl_2b")
    Qwen2VLConfig(
        text_config={
            "vocab_size": WORDS, "hidden_size": HIDDEN, "intermediate_size": INNER,
            "num_hidden_layers": LAYERS, "num_attention_heads": 12, "num_key_value_heads": 2,
            "max_position_embeddings": 32768,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]
            },
        },
        vision_config={"depth": DEEP, "embed_dim": WIDE, "hidden_size": HIDDEN, "num_heads": 16},
        tie_word_embeddings=True,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def model(base: Path) -> Any:
    with init_empty_weights():
        made = AutoModelForImageTextToText.from_config(Qwen2VLConfig.from_pretrained(base))
    made.tie_weights()
    return made


def look(base: Path, stage: str, *changes: str) -> Look:
    recipe = load_recipe("paper", changes)
    banks = load_banks()
    options = RunOptions(stages=(stage,), recipe=recipe, datasets=(), out=base, banks=banks)
    return Look(options, stage, str(base), None, None, None, base)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("stage", "learning", "bytes_each"),
    [
        # float32: four bytes of weight, and of gradient and AdamW's two moments where it learns;
        # four of the reference
        ("mcl", TEXT + VISION + PROJECTOR, 16),
        ("svr", TEXT + VISION + PROJECTOR, 20),
    ],
)
def test_the_memory_that_preflight_tells_is_that_of_the_whole_model(
    base: Path, stage: str, learning: int, bytes_each: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sum(p.numel() for p in model(base).parameters()) == TEXT + VISION + PROJECTOR
    need = (TEXT + VISION + PROJECTOR) * bytes_each
    monkeypatch.setattr(preflight, "_memory", lambda: (80 * 2**30, "the GPU"))
    said = preflight.memory(look(base, stage))
    assert said.startswith(f"about {need / 2**30:.1f} of 80.0 GiB (the GPU)")
    assert f"{TEXT + VISION + PROJECTOR:,} parameters, {learning:,} learning" in said


def test_the_adapter_learns_a_hundredth(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "_memory", lambda: (80 * 2**30, "the GPU"))
    assert f", {LORA:,} learning" in preflight.memory(look(base, "adapter"))
    job = Job("adapter", load_recipe("paper"), str(base), base, None, None)  # type: ignore[arg-type]
    shape = model(base)
    with_adapter = get_peft_model(shape, adapter.lora(job, shape))
    assert sum(p.numel() for p in with_adapter.parameters() if p.requires_grad) == LORA


def test_shared_out_weights_fit_where_whole_ones_do_not(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "_memory", lambda: (24 * 2**30, "the GPU"))
    monkeypatch.setenv("WORLD_SIZE", "8")
    with pytest.raises(ProblemError, match=r"fsdp\.yaml"):
        preflight.memory(look(base, "svr"))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert "a 8th of each" in preflight.memory(look(base, "svr"))


# -- what shares the weights out


def test_fsdp_wraps_the_layers_of_the_model(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """accelerate reads the file into these variables, and skips names that are no class there."""
    settings = yaml.safe_load((FOLDER / "fsdp.yaml").read_text())["fsdp_config"]
    for key, value in settings.items():
        name = key.upper().replace("TRANSFORMER_LAYER_CLS", "TRANSFORMER_CLS")
        monkeypatch.setenv(name, str(value).lower() if isinstance(value, bool) else str(value))
    plugin = FullyShardedDataParallelPlugin()
    shape = model(base)
    plugin.set_auto_wrap_policy(shape)
    wrapped = [name for name, module in shape.named_modules()
               if type(module).__name__ in plugin.transformer_cls_names_to_wrap]  # fmt: skip
    assert len(wrapped) == LAYERS + DEEP
    assert (plugin.fsdp_version, plugin.reshard_after_forward) == (2, True)
    assert "FULL_STATE_DICT" in str(plugin.state_dict_type)
    assert not plugin.activation_checkpointing, "the recipe's recompute_activations does it"


# -- vLLM


def test_the_recipe_s_keys_of_vllm_reach_the_trainer(tmp_path: Path) -> None:
    changes = ("svr.use_vllm=true", "svr.vllm_mode=server", "svr.vllm_memory=0.4")
    config = GRPOConfig(
        output_dir=str(tmp_path),
        use_cpu=True,
        bf16=False,
        **objective(load_recipe("paper", changes)),
    )
    given = (config.use_vllm, config.vllm_mode, config.vllm_gpu_memory_utilization)
    assert given == (True, "server", 0.4)


def installed(version: str | None) -> Any:
    return lambda *_, **__: (version is not None, version)


def test_preflight_tells_that_vllm_is_missing_or_too_new(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert preflight.vllm(look(base, "svr")) is None
    wanted = look(base, "svr", "svr.use_vllm=true")
    trl = sys.modules["trl.import_utils"]
    for version, said in (
        (None, r"it is not installed; TRL takes vllm<=[\d.]+,>=[\d.]+: install one"),
        ("9.9.9", r"You have version 9\.9\.9 installed.*use_vllm=false"),
    ):
        monkeypatch.setattr(trl, "_is_package_available", installed(version))
        with pytest.raises(ProblemError, match=said):
            preflight.vllm(wanted)
    monkeypatch.setattr(trl, "_is_package_available", installed("0.30.0"))
    assert preflight.vllm(wanted) == "colocate"
