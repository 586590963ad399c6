"""Spatially verifiable reinforcement (section 3.2.2): boxes by their rewards, Eq. 2 to 11.

For each question the model writes a group of answers (Eq. 3). An answer's advantage is its reward,
less the group's mean, by the group's standard deviation (Eq. 4, 10): that of a sample, as in
Visual-RFT, and 1e-4 more, so that equal rewards give advantage 0. What is made larger is advantage
less beta times the divergence from the model that MCL left (Eq. 5, 11).
"""

from __future__ import annotations

from typing import Any

from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from training.models import set_trainable
from training.recipe import Recipe
from training.resume import StrictResume
from training.rewards import REWARDS
from training.stage import Job, arguments


class ReinforcedTrainer(StrictResume, GRPOTrainer):
    """TRL's GRPO, resumed as it was saved; the reference stays what the stage started from."""


def objective(recipe: Recipe) -> dict[str, Any]:
    """Return the settings of GRPO that make it the paper's objective.

    A batch of n prompts is n groups: each process takes n x generations answers a step, all of one
    policy. So nothing is ever off-policy, and the clipping of ratios never bites.
    """
    svr = recipe.svr
    return {
        "num_generations": svr.generations,  # N of Eq. 3
        "per_device_train_batch_size": svr.batch_size * svr.generations,
        "steps_per_generation": svr.accumulation,
        "num_iterations": 1,
        "temperature": svr.temperature,
        "top_p": 1.0,
        "top_k": 0,
        "max_completion_length": svr.completion,  # 512 in TRL
        "mask_truncated_completions": False,
        "beta": svr.beta,  # 0 in TRL, which would leave out the divergence
        "use_bias_correction_kl": svr.exact_kl,  # True in TRL: another gradient, the same value
        "loss_type": "grpo",  # mean over the tokens of each answer; "dapo" in TRL
        "importance_sampling_level": "token",
        "epsilon": 0.2,
        "scale_rewards": "group",  # Eq. 10
        "multi_objective_aggregation": "sum_then_normalize",  # Eq. 9
        "reward_weights": [1.0] * len(REWARDS[svr.reward]),  # Eq. 9 weighs nothing
        "entropy_coef": 0.0,
        "sync_ref_model": False,
        "disable_dropout": True,
        "use_vllm": svr.use_vllm,
        "vllm_mode": svr.vllm_mode,
        "vllm_gpu_memory_utilization": svr.vllm_memory,
    }


def trainer(job: Job) -> Any:
    """Return the trainer of the stage; its reference is loaded from the stage's base, frozen."""
    model = job.model()
    set_trainable(model, job.recipe.svr.trainable)
    config = GRPOConfig(
        **{**arguments(job), **objective(job.recipe)},
        # Every answer with its rewards, as Parquet in the stage's folder; images stay here.
        log_completions=True,
        num_completions_to_print=0,
        log_multimodal=False,
        shuffle_dataset=True,
    )
    return ReinforcedTrainer(
        model=model,
        args=config,
        reward_funcs=list(REWARDS[job.recipe.svr.reward]),
        train_dataset=job.rows,
        processing_class=job.processor,
        callbacks=list(job.callbacks),
    )
