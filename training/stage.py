"""What the three stages share: their job, and what TRL's trainers get from a recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset

from training.models import load_model
from training.recipe import Recipe


class Job(NamedTuple):
    """One stage to train: on what (`base`, a folder or a name on the Hub), with what, into where.

    `rows` are the stage's columns, `callbacks` watch the trainer.
    """

    stage: str
    recipe: Recipe
    base: str
    folder: Path
    processor: Any
    rows: Dataset
    callbacks: Sequence[Any] = ()

    def model(self) -> Any:
        """Load what the stage starts from."""
        model = self.recipe.model
        revision = model.revision if self.base == model.name else None
        return load_model(
            self.base, dtype=model.dtype, attention=model.attention, revision=revision
        )


def arguments(job: Job) -> Mapping[str, Any]:
    """Return the settings of a stage's trainer that do not depend on what it optimises.

    Each one that TRL or transformers would set otherwise is named here or by the stage.
    """
    settings, run, model = job.recipe.stage(job.stage), job.recipe.run, job.recipe.model
    cuda = torch.cuda.is_available()
    return {
        "output_dir": str(job.folder),
        "num_train_epochs": settings.epochs,
        "max_steps": settings.max_steps or -1,
        "per_device_train_batch_size": settings.batch_size,
        "gradient_accumulation_steps": settings.accumulation,
        "optim": "adamw_torch",  # AdamW as in the paper; the fused one differs in the last bits
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": settings.schedule,
        "warmup_steps": settings.warmup,  # below 1: a share of all steps
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        "bf16": model.autocast == "bf16",  # TRL's default is True
        "fp16": model.autocast == "fp16",
        "activation_checkpointing": run.recompute_activations,
        "seed": run.seed,
        "data_seed": run.seed,
        "logging_steps": run.log_every,
        "logging_first_step": True,
        "report_to": list(run.report_to) or "none",
        "save_strategy": "steps",
        "save_steps": run.save_every,
        "save_total_limit": run.keep,
        "use_cpu": not cuda,
        "dataloader_pin_memory": cuda,
        "dataloader_num_workers": run.loader_workers,
        "remove_unused_columns": False,
        "disable_tqdm": True,  # training.watching shows the progress
    }
