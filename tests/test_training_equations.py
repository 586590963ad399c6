"""TRL as the stages set it up, against Eq. 1 to 12 of the paper written out in plain PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")

import torch
from datasets import Dataset
from PIL import Image

from training import adapter, mcl, svr
from training.models import load_model, make_tiny
from training.processors import load_processor
from training.recipe import load_recipe
from training.rewards import REWARDS
from training.stage import Job

QUESTIONS = ("Where is it?", "Where on this chest X-ray is the effusion?")
ANSWERS = (
    "<think>a → b</think><answer>[1, 2, 3, 4]</answer>",
    "<think>b</think><answer>[]</answer>",
)
CALM = (
    "svr.batch_size=1", "svr.temperature=1", "svr.warmup=0",
    "run.save_every=99", "run.log_every=1", "run.report_to=[]",
)  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    make_tiny("tiny-qwen2_vl", [*QUESTIONS, *ANSWERS], folder)
    return folder


def job(stage: str, base: Path, out: Path, *changes: str) -> Job:
    rows = Dataset.from_list(
        [
            {
                "images": [Image.new("RGB", (84, 56 + 28 * n), (90 * n, 60, 60))],
                "prompt": [{"role": "user", "content": question}],
                "completion": [{"role": "assistant", "content": answer}],
            }
            for n, (question, answer) in enumerate(zip(QUESTIONS, ANSWERS, strict=True))
        ]
    )
    rows = rows.remove_columns("completion") if stage == "svr" else rows
    recipe = load_recipe("smoke", [*CALM, *changes])
    return Job(stage, recipe, str(base), out, load_processor(base), rows)


def log_probabilities(model: Any, batch: dict[str, Any], tokens: int) -> torch.Tensor:
    """log p of each of the last tokens, given the image and all tokens before."""
    logits = model(**batch).logits[:, -tokens - 1 : -1].float()
    chosen = batch["input_ids"][:, -tokens:, None]
    return logits.log_softmax(-1).gather(-1, chosen).squeeze(-1)


@pytest.mark.parametrize("stage", ["mcl", "adapter"])
def test_supervised_loss_is_equation_1_and_12(stage: str, base: Path, tmp_path: Path) -> None:
    """The mean over the answer's tokens, its end among them, and nothing of the question."""
    given = job(stage, base, tmp_path)
    trainer = (mcl if stage == "mcl" else adapter).trainer(given)
    model = trainer.model.eval()
    batch = trainer.data_collator(list(trainer.train_dataset))
    ours = trainer.compute_loss(model, batch)
    total, count = torch.tensor(0.0), 0
    for row in given.rows:
        turns = [{"role": "user", "content": [{"type": "image"},
                  {"type": "text", "text": row["prompt"][0]["content"]}]}]  # fmt: skip
        asked = given.processor.apply_chat_template(
            turns, add_generation_prompt=True, tokenize=False
        )
        answer = row["completion"][0]["content"] + "<|im_end|>\n"
        one = given.processor(images=row["images"], text=[asked + answer], return_tensors="pt")
        tokens = len(given.processor.tokenizer(answer)["input_ids"])
        total = total - log_probabilities(model, dict(one), tokens).sum()
        count += tokens
    assert ours.item() == pytest.approx((total / count).item(), rel=1e-5)


def transcription(
    log_p: torch.Tensor, log_ref: torch.Tensor, mask: torch.Tensor, rewards: torch.Tensor,
    groups: torch.Tensor, beta: float, *, exact: bool,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Advantage (Eq. 9, 10) and the loss, which is Eq. 11 with its sign turned."""
    total = rewards.sum(1)
    advantage = torch.empty_like(total)
    for group in groups.unique():
        own = total[groups == group]
        advantage[groups == group] = (own - own.mean()) / (own.std() + 1e-4)
    ratio = (log_p - log_p.detach()).exp()
    divergence = (log_ref - log_p).exp() - (log_ref - log_p) - 1
    if exact:
        divergence = divergence * ratio
    each = ratio * advantage[:, None] - beta * divergence
    return advantage, -((each * mask).sum(1) / mask.sum(1)).mean()


@pytest.mark.slow
@pytest.mark.parametrize("exact", [False, True])
def test_svr_is_equations_9_to_11(
    exact: bool, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three steps of two groups: advantages, losses and gradients beside the transcription."""

    def lengths(completions: list[Any], **_: Any) -> list[float]:
        return [len(c[0]["content"]) % 7 / 7 for c in completions]

    def letters(completions: list[Any], **_: Any) -> list[float]:
        return [float("e" in c[0]["content"]) for c in completions]

    monkeypatch.setitem(REWARDS, "paper", (lengths, letters))
    beta = 0.5
    trainer = svr.trainer(
        job(
            "svr", base, tmp_path, "svr.max_steps=3", "svr.batch_size=2", "svr.generations=4",
            f"svr.beta={beta}", "svr.completion=12", "svr.learning_rate=1e-2",
            f"svr.exact_kl={str(exact).lower()}",
        )
    )  # fmt: skip
    reference = load_model(base).eval()
    theirs = trainer.compute_loss
    seen: list[float] = []

    def beside(model: Any, inputs: dict[str, Any], **more: Any) -> torch.Tensor:
        loss = theirs(model, inputs, **more)
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
        kinds = (ids == trainer.processing_class.image_token_id).to(ids.dtype)
        batch = {
            "input_ids": ids, "attention_mask": mask, "mm_token_type_ids": kinds,
            "pixel_values": inputs["pixel_values"], "image_grid_thw": inputs["image_grid_thw"],
        }  # fmt: skip
        tokens = inputs["completion_ids"].shape[1]
        log_p = log_probabilities(model, batch, tokens)
        with torch.no_grad():
            log_ref = log_probabilities(reference, batch, tokens)
        written = trainer.processing_class.tokenizer.batch_decode(
            inputs["completion_ids"], skip_special_tokens=True
        )
        said = [[{"content": text}] for text in written]
        rewards = torch.tensor([lengths(said), letters(said)]).T
        _, groups = inputs["prompt_ids"].unique(dim=0, return_inverse=True)
        advantage, plain = transcription(
            log_p, log_ref, inputs["completion_mask"], rewards, groups, beta, exact=exact
        )
        torch.testing.assert_close(inputs["advantages"], advantage)
        torch.testing.assert_close(loss, plain, rtol=1e-4, atol=1e-6)
        weights = [p for p in model.parameters() if p.requires_grad]
        for ours, wanted in zip(
            torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True),
            torch.autograd.grad(plain, weights, allow_unused=True), strict=True,
        ):  # fmt: skip
            if wanted is not None:
                torch.testing.assert_close(ours, wanted, rtol=1e-3, atol=1e-5)
        seen.append(float((log_ref - log_p).detach().abs().max()))
        return loss

    monkeypatch.setattr(trainer, "compute_loss", beside)
    trainer.train()
    assert len(seen) == 3
    assert seen[0] < 1e-4 < seen[2], "the policy has left its reference, so that the KL counts"


def test_equal_rewards_have_no_advantage(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(REWARDS, "paper", (lambda completions, **_: [0.3] * len(completions),))
    changes = ("svr.max_steps=1", "svr.generations=4", "svr.completion=4")
    trainer = svr.trainer(job("svr", base, tmp_path, *changes))
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    assert batch["advantages"].tolist() == [0.0] * 4
