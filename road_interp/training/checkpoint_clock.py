"""Checkpoints by the clock, beside the one of every epoch: an interruption costs 100 seconds of training and one step."""

from __future__ import annotations

import time
from typing import Any

from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import SaveStrategy

SECONDS = 100.0


class CheckpointClock(TrainerCallback):
    """Saves a checkpoint after the step in which the last one becomes too old; the clock is that of the main process.

    The last step of an epoch, and of the training, is left to the checkpoint that follows its evaluation: one before it would
    resume without the score of that epoch.
    """

    def __init__(self) -> None:
        self._saved = time.monotonic()

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Start the clock."""
        self._saved = time.monotonic()

    def on_save(self, *_: Any, **__: Any) -> None:
        """Start the clock again after a checkpoint."""
        self._saved = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Ask for a checkpoint if the last one is too old."""
        ends_epoch = state.global_step >= state.max_steps or float(state.epoch or 0).is_integer()
        if args.save_strategy == SaveStrategy.NO or ends_epoch:
            return
        (is_old,) = broadcast_object_list([time.monotonic() - self._saved >= SECONDS])
        control.should_save = control.should_save or is_old
