"""Gives accelerate's FSDP and DeepSpeed to CPUs, too; it keeps them for accelerators.

The process group is gloo's and the device the CPU; all else is accelerate, TRL and transformers as
they are on GPUs.
"""

from __future__ import annotations

import os
from typing import Any

from accelerate.state import PartialState
from accelerate.utils import DistributedType

os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"


def as_on_gpus() -> None:
    """Let accelerate take its ways of several GPUs."""
    made = PartialState.__init__

    def make(self: PartialState, cpu: bool = False, **given: Any) -> None:
        made(self, cpu=False, **given)

    PartialState.__init__ = make
    PartialState._prepare_backend = lambda *_: ("gloo", DistributedType.MULTI_GPU)
