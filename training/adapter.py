"""The downstream adapter (section 3.3): LoRA on the language model learns findings text, Eq. 12.

The base is frozen, to the bit. Table 5's other rows train the vision tower or the projector, with
an adapter or without: `trainable` of the recipe. With an adapter, such a part is trained as a copy
that PEFT keeps beside the base's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from peft import LoraConfig

from training.mcl import SupervisedTrainer, supervised
from training.models import part_of, set_trainable
from training.stage import Job

# Attention and MLP of the language model's layers, whatever the vision tower calls its own.
TARGETS: Final = r".*\.language_model\.layers\.\d+\.(self_attn|mlp)\.(q|k|v|o|gate|up|down)_proj"


def lora(job: Job, model: torch.nn.Module) -> LoraConfig:
    """Return the adapter of a recipe for a model; alpha, dropout and targets are not the paper's.

    Copies of other trainable parts are made by their largest modules that PEFT can copy.
    """
    settings = job.recipe.adapter
    parts = [part for part in settings.trainable if part != "adapter"]
    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        bias="none",
        target_modules=TARGETS,
        task_type="CAUSAL_LM",
        modules_to_save=_modules(model, parts) or None,
    )


def trainer(job: Job) -> Any:
    """Return the trainer of the stage; without `adapter`, the trainable parts train as they are."""
    model = job.model()
    with_adapter = "adapter" in job.recipe.adapter.trainable
    if not with_adapter:
        set_trainable(model, job.recipe.adapter.trainable)
    made: Any = SupervisedTrainer(
        model=model,
        args=supervised(job),
        train_dataset=job.rows,
        processing_class=job.processor,
        callbacks=list(job.callbacks),
        peft_config=lora(job, model) if with_adapter else None,
    )
    check_parts(made.model, job.recipe.adapter.trainable)
    return made


def check_parts(model: torch.nn.Module, trainable: Sequence[str]) -> None:
    """Assert that LoRA sits on the language model only, and that only trainable parts learn."""
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            assert part_of(name) == "language", f"LoRA on {name}"
        elif parameter.requires_grad:
            assert part_of(name) in trainable, f"{name} would learn"


def _modules(model: torch.nn.Module, parts: Sequence[str]) -> list[str]:
    """Return the names of the modules that make up some parts, none inside another."""
    wanted: list[str] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{taken}.") for taken in wanted)
        parameters = [f"{name}.{key}" for key, _ in module.named_parameters()]
        kinds = {part_of(parameter) for parameter in parameters}
        listed = isinstance(module, torch.nn.ModuleList)
        if name and not inside and not listed and kinds and kinds <= set(parts):
            wanted.append(name)
    return wanted
