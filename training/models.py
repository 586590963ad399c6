"""Qwen-VL models of any size: loaded whole or with their adapter, or made tiny without a download.

A checkpoint is a folder with model (or adapter), processor and `manifest.json`, written last; see
`training.checkpoints`. A model of the Hub is a checkpoint without a manifest.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
import transformers
import trl
from peft import PeftModel
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoModelForImageTextToText, Qwen2Tokenizer, Qwen2VLImageProcessorPil
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from cot_builder.boxes import Frame
from cot_builder.errors import UserError
from training.checkpoints import base_of, read_checkpoint, write_checkpoint
from training.processors import IMAGE_ONLY, load_processor, save_processor

TINY: Final = "tiny-"
# The parts of a model, as the paper's Table 5 names them; `part_of` tells them by name.
PARTS: Final = ("vision", "projector", "language")

_SPECIAL: Final = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>",
    "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>",
    "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip


class Loaded(NamedTuple):
    """A model with its processor; `manifest` and `frame` are None for a model of no checkpoint."""

    model: Any
    processor: Any
    manifest: dict[str, Any] | None
    frame: Frame | None


def load_checkpoint(
    path: str | Path, *, dtype: str = "float32", attention: str = "sdpa", device: str = "cpu"
) -> Loaded:
    """Load a checkpoint for inference, an adapter on its base; a model of the Hub likewise.

    The processor has the pixel budget of training. Raises UserError when there is no model.
    """
    manifest = read_checkpoint(Path(path)) if Path(path).is_dir() else None
    processor = load_processor(path)
    if (Path(path) / "adapter_config.json").is_file():
        base = load_model(base_of(Path(path)), dtype=dtype, attention=attention)
        model = PeftModel.from_pretrained(base, path)
    else:
        model = load_model(path, dtype=dtype, attention=attention)
    frame = Frame.from_row(manifest["frame"]) if manifest and manifest.get("frame") else None
    return Loaded(model.to(device).eval(), processor, manifest, frame)


def load_model(
    path: str | Path,
    *,
    dtype: str = "float32",
    attention: str = "sdpa",
    revision: str | None = None,
) -> Any:
    """Load the weights of a Qwen-VL model, a folder or a name on the Hub; UserError without any."""
    try:
        return AutoModelForImageTextToText.from_pretrained(
            str(path), dtype=dtype, attn_implementation=attention, revision=revision or "main",
            trust_remote_code=False,  # or transformers asks whether to run it
        )  # fmt: skip
    except (OSError, ValueError, ImportError) as error:
        raise UserError(
            f"no model at {path}: expected a folder of train, or a Qwen-VL model's name on the "
            f"Hub ({str(error).splitlines()[0]:.200})"
        ) from None


def merge(adapter: Path, out: Path) -> None:
    """Add an adapter's weights to those of its base and save the sum as a plain checkpoint."""
    if not (adapter / "adapter_config.json").is_file():
        raise UserError(f"{adapter} is no adapter: expected the folder of the adapter stage")
    manifest = read_checkpoint(adapter)
    loaded = load_checkpoint(adapter)
    model = loaded.model.merge_and_unload()
    model.save_pretrained(out)
    save_processor(loaded.processor, out, model.config.model_type)
    if manifest:
        merged = manifest | {"stage": "merged", "base": str(adapter.resolve())}
        write_checkpoint(out, merged)


# -- parts


def part_of(name: str) -> str:
    """Return the part that a parameter or module belongs to, by its name.

    >>> part_of("model.visual.merger.mlp.0.weight"), part_of("model.language_model.norm.weight")
    ('projector', 'language')
    """
    if "visual." not in name:
        return "language"
    return "projector" if "merger" in name else "vision"


def set_trainable(model: torch.nn.Module, parts: Sequence[str]) -> None:
    """Leave these parts of a model trainable and freeze the others."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(part_of(name) in parts)


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Put a model into evaluation, without gradients or a mark on the random numbers."""
    training = model.training
    model.eval()
    with torch.no_grad(), torch.random.fork_rng():
        yield
    model.train(training)


# -- tiny models


def make_tiny(name: str, texts: Iterable[str], folder: Path, *, seed: int = 0) -> None:
    """Write a random Qwen-VL of some 200,000 parameters with its processor to a folder.

    `name` is `tiny-` and a kind of model: `tiny-qwen2_vl`. Its vocabulary is trained on `texts`, so
    that a line of reasoning has few tokens. The same texts and seed give the same bytes.
    """
    kind = name.removeprefix(TINY)
    if kind not in _TINY or not name.startswith(TINY):
        raise UserError(f"no tiny model {name!r}; there are {', '.join(TINY + k for k in _TINY)}")
    processor = _tiny_processor(kind, texts)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = _tiny_model(kind, processor.tokenizer)
    model.save_pretrained(folder)
    save_processor(processor, folder, kind)


def _tiny_tokenizer(texts: Iterable[str]) -> Any:
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), "isolated"), bytes_]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=2048, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([*texts, "system\nuser\nassistant\n"], trainer)
    trained = json.loads(tokenizer.to_str())["model"]
    make: Any = Qwen2Tokenizer  # annotated for files, it takes objects too
    return make(
        vocab=trained["vocab"],
        merges=[tuple(pair) for pair in trained["merges"]],
        extra_special_tokens=list(_SPECIAL[1:]),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token=None,
        model_max_length=4096,
        padding_side="left",
    )


def _tiny_processor(kind: str, texts: Iterable[str]) -> Any:
    patch = 16 if kind == "qwen3_vl" else 14
    images = Qwen2VLImageProcessorPil(
        patch_size=patch, min_pixels=4 * (2 * patch) ** 2, max_pixels=64 * (2 * patch) ** 2
    )
    # TRL's copies of the models' own chat templates.
    template = "qwen3_vl.jinja" if kind == "qwen3_vl" else "qwen2_5_vl.jinja"
    return IMAGE_ONLY[kind](
        image_processor=images,
        tokenizer=_tiny_tokenizer(texts),
        chat_template=(Path(trl.__file__).parent / "chat_templates" / template).read_text("utf-8"),
    )


def _tiny_model(kind: str, tokenizer: Any) -> Any:
    ids = tokenizer.convert_tokens_to_ids
    end, pad = ids("<|im_end|>"), ids("<|endoftext|>")
    shape = _TINY[kind]
    text = {
        "vocab_size": -(-len(tokenizer) // 64) * 64,
        "hidden_size": _HIDDEN,
        "intermediate_size": 2 * _HIDDEN,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "eos_token_id": end,
        "pad_token_id": pad,
        "initializer_range": _SPREAD,
        # The sections of the rotary embedding add up to half a head.
        "rope_parameters": {
            "rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e6,
            **shape.rope,
        },
        **shape.text,
    }  # fmt: skip
    config = getattr(transformers, f"{shape.name}Config")(
        text_config=text,
        vision_config={"depth": 2, "num_heads": 2, "initializer_range": _SPREAD, **shape.vision},
        tie_word_embeddings=True,
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
    )
    model = getattr(transformers, f"{shape.name}ForConditionalGeneration")(config)
    model.generation_config.eos_token_id = [end, pad]
    model.generation_config.pad_token_id = pad
    return model


class _Shape(NamedTuple):
    name: str
    vision: dict[str, Any]
    text: dict[str, Any] = {}  # noqa: RUF012
    rope: dict[str, Any] = {}  # noqa: RUF012


_HIDDEN: Final = 64
# Of random weights: 0.02, which suits widths of thousands, leaves so small a model all but blind.
_SPREAD: Final = 0.1
_TINY: Final = {
    "qwen2_vl": _Shape(
        "Qwen2VL",
        {"embed_dim": 32, "hidden_size": _HIDDEN, "mlp_ratio": 2, "patch_size": 14},
        {"bos_token_id": None},
    ),
    "qwen2_5_vl": _Shape(
        "Qwen2_5_VL",
        {
            "hidden_size": 32, "intermediate_size": 64, "patch_size": 14,
            "out_hidden_size": _HIDDEN, "fullatt_block_indexes": [1],
        },
        {"bos_token_id": None},
    ),
    "qwen3_vl": _Shape(
        "Qwen3VL",
        {
            "hidden_size": 32, "intermediate_size": 64, "patch_size": 16,
            "out_hidden_size": _HIDDEN, "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0],
        },
        {"head_dim": _HIDDEN // 4},
        {"mrope_interleaved": True},
    ),
}  # fmt: skip
