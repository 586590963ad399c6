"""Checkpoints that are loaded as they were saved, and the newest one that is whole.

transformers 5.23 saves Qwen2-VL and Qwen2.5-VL under the Hub's names and resumes by the names in
memory, without being strict: no weight is loaded, and a warning is all that tells
(huggingface/transformers#43701). `StrictResume` loads through `from_pretrained`, strictly. And from
a checkpoint of the last step it takes one step more; `StrictResume` takes none.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


class StrictResume:
    """For a trainer, before its own class: resumed weights are those of the checkpoint, or fail.

    Adapters, FSDP and DeepSpeed have loaders of their own, which are not concerned.
    """

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        trainer: Any = self
        plain = trainer.accelerator.unwrap_model(model or trainer.model)
        if (
            hasattr(plain, "peft_config")
            or trainer.is_fsdp_enabled
            or trainer.is_deepspeed_enabled
            or not Path(resume_from_checkpoint, "config.json").is_file()
        ):
            parent: Any = super()
            parent._load_from_checkpoint(resume_from_checkpoint, model)
            return
        saved = type(plain).from_pretrained(resume_from_checkpoint, dtype=plain.dtype)
        plain.load_state_dict(saved.state_dict(), strict=True)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        trainer: Any = self
        if trainer.state.global_step >= trainer.state.max_steps:
            trainer.control.should_training_stop = True
            return
        parent: Any = super()
        parent._run_epoch(*args, **kwargs)


def newest_checkpoint(folder: Path, *, processes: int = 1) -> Path | None:
    """Return the newest `checkpoint-N` of a folder that was written whole, or None.

    The trainer's state is written last, a state of random numbers by each process.
    """

    def whole(path: Path) -> bool:
        try:
            json.loads((path / "trainer_state.json").read_text())
        except (OSError, ValueError):
            return False
        states = len(list(path.glob("rng_state*.pth")))
        return states == processes

    found = {
        int(m[1]): p for p in folder.glob("checkpoint-*") if (m := _CHECKPOINT.fullmatch(p.name))
    }
    return next((found[step] for step in sorted(found, reverse=True) if whole(found[step])), None)
