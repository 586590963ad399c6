"""Medical concept learning (section 3.2.1): the chains, word by word, from image and question.

Eq. 1 is the cross-entropy of the chain's tokens given the image and the tokens before; TRL's
supervised trainer takes its mean over the tokens of a batch, which scales it only.
"""

from __future__ import annotations

from typing import Any

from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from training.models import set_trainable
from training.resume import StrictResume
from training.stage import Job, arguments


class SupervisedTrainer(StrictResume, SFTTrainer):
    """TRL's supervised trainer, resumed as it was saved."""


def supervised(job: Job) -> SFTConfig:
    """Return the settings with which a completion is learnt from its prompt, here and in Eq. 12."""
    return SFTConfig(
        **arguments(job),
        completion_only_loss=True,  # c_t or y_m alone: the question costs nothing
        max_length=None,  # 1024 in TRL, which cuts through image tokens without a word
        packing=False,
        loss_type="nll",
    )


def trainer(job: Job) -> Any:
    """Return the trainer of the stage; the whole model learns, or the recipe's parts of it."""
    model = job.model()
    set_trainable(model, job.recipe.mcl.trainable)
    return SupervisedTrainer(
        model=model,
        args=supervised(job),
        train_dataset=job.rows,
        processing_class=job.processor,
        callbacks=list(job.callbacks),
    )
