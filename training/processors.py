"""Qwen-VL's processors, also on a machine without torchvision."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from PIL import Image
from transformers import AutoConfig, AutoProcessor
from transformers.models.qwen2_vl.processing_qwen2_vl import Qwen2VLProcessor
from transformers.utils.import_utils import is_torchvision_available

from cot_builder.boxes import Pixels, Size
from cot_builder.doctor import Reader
from cot_builder.errors import UserError
from cot_builder.images import reduced


def _image_only(name: str) -> type[Any]:
    """Return a processor that does without videos, under the name that transformers saves.

    The constructors upstream name `video_processor`, and so ask for torchvision; AutoProcessor
    would refuse a class of another name in what is saved.
    """

    def construct(
        self: Any, image_processor: Any, tokenizer: Any, chat_template: Any = None, **_: Any
    ) -> None:
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        super(Qwen2VLProcessor, self).__init__(
            image_processor, tokenizer, chat_template=chat_template
        )

    return type(name, (Qwen2VLProcessor,), {"__init__": construct})


IMAGE_ONLY: Final = {
    "qwen2_vl": _image_only("Qwen2VLProcessor"),
    "qwen2_5_vl": _image_only("Qwen2_5_VLProcessor"),
    "qwen3_vl": _image_only("Qwen3VLProcessor"),
}


# What transformers saves beside an image processor, by kind of model.
_VIDEO: Final = {
    "qwen2_vl": "Qwen2VLVideoProcessor",
    "qwen2_5_vl": "Qwen2VLVideoProcessor",
    "qwen3_vl": "Qwen3VLVideoProcessor",
}


def load_processor(
    model: str | Path,
    *,
    revision: str | None = None,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
) -> Any:
    """Load the processor of a model, a folder or a name on the Hub, with a pixel budget if given.

    It pads on the left, as generation needs. Raises UserError when there is none.
    """
    try:
        kind = model_kind(model, revision)
        auto = is_torchvision_available() or kind not in IMAGE_ONLY
        processor = (AutoProcessor if auto else IMAGE_ONLY[kind]).from_pretrained(
            model, revision=revision or "main"
        )
    except (OSError, ValueError) as error:
        raise UserError(
            f"no processor at {model}: expected the folder of a Qwen-VL model, or its name on the "
            f"Hub ({str(error).splitlines()[0]})"
        ) from None
    processor.tokenizer.padding_side = "left"
    images = processor.image_processor
    # Told to from_pretrained, they would reach the tokenizer too, and from there every call.
    images.size = type(images.size)(
        shortest_edge=min_pixels or images.size["shortest_edge"],
        longest_edge=max_pixels or images.size["longest_edge"],
    )
    return processor


def model_kind(model: str | Path, revision: str | None = None) -> str:
    """Return the kind of a model (`qwen2_vl`), also of an adapter's folder by its base."""
    adapter = Path(model) / "adapter_config.json"
    if adapter.is_file() and not (Path(model) / "config.json").is_file():
        model = json.loads(adapter.read_text())["base_model_name_or_path"]
    # Told not to, transformers does not ask whether it shall run a model's own code.
    config = AutoConfig.from_pretrained(model, revision=revision or "main", trust_remote_code=False)
    return str(config.model_type)


def save_processor(processor: Any, folder: Path, kind: str) -> None:
    """Save a processor so that AutoProcessor reads it where torchvision is.

    How its last call padded or cut is not saved with it.
    """
    words = processor.tokenizer.backend_tokenizer
    words.no_padding()
    words.no_truncation()
    processor.save_pretrained(folder)
    if kind not in _VIDEO:
        return
    images = processor.image_processor
    video = {"video_processor_type": _VIDEO[kind]} | {
        key: getattr(images, key)
        for key in ("patch_size", "temporal_patch_size", "merge_size", "image_mean", "image_std")
    }
    (folder / "video_preprocessor_config.json").write_text(json.dumps(video, indent=2) + "\n")


def processor_pixels(processor: Any) -> Pixels:
    """Return the pixel budget of a live processor."""
    images = processor.image_processor
    size = images.size
    return Pixels(
        images.patch_size * images.merge_size, size["shortest_edge"], size["longest_edge"]
    )


def processor_reader(
    model: str | Path, *, min_pixels: int | None = None, max_pixels: int | None = None
) -> Reader:
    """Return a model's real processor as the doctor uses it."""
    processor = load_processor(model, min_pixels=min_pixels, max_pixels=max_pixels)
    patch = processor.image_processor.patch_size

    def see(image: Path | Size) -> Size:
        if isinstance(image, Size):
            picture = Image.new("RGB", (round(image.width), round(image.height)))
        else:
            picture = reduced(image, scale=1).convert("RGB")
        batch = processor.image_processor(images=[picture], return_tensors="np")
        _, rows, columns = batch["image_grid_thw"][0].tolist()
        return Size(columns * patch, rows * patch)

    def length(text: str) -> int:
        return len(processor.tokenizer(text)["input_ids"])

    return Reader(f"the processor of {model}", processor_pixels(processor), see, length)
