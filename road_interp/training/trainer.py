"""The Hugging Face Trainer, once: how a RoadModel is called, sampled, checked and configured in it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.data import SequentialSampler
from transformers import PrinterCallback, Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_pt_utils import LengthGroupedSampler

from road_interp.errors import InputError
from road_interp.files import read_json_object
from road_interp.models.road_model import RoadModel
from road_interp.rotation import plane_maps
from road_interp.runs.run_files import CHECKPOINTS
from road_interp.training.distributed import leave_to_fsdp


class RoadTrainer(Trainer):
    """The Trainer, calling the model as pyvene does."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        leave_to_fsdp(self._model)
        self.remove_callback(PrinterCallback)  # the log is in the run folder; standard output belongs to the results

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """Loss of one batch; the model computes it from the labels."""
        output = self.call(model, inputs)
        return (output.loss, output) if return_outputs else output.loss

    def call(self, model: nn.Module, inputs: dict[str, Any]) -> Any:
        """The rotated model's output for one batch."""
        return model(base=inputs)[1]

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """One step; raises FloatingPointError when the loss is no longer a number."""
        loss = super().training_step(*args, **kwargs)
        if not loss.isfinite():
            site = find_invalid_parameter(self._model)
            self._stop(f"the loss is {loss.item()}{site and ', '}{site}", self.state.global_step + 1)
        return loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """The Trainer's log, and a look at the rotations; raises FloatingPointError where one cannot be undone any more."""
        self._check_rotations()
        super().log(logs, *args, **kwargs)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """A checkpoint of sound rotations, whole or not at all; raises OSError where it cannot be written."""
        self._check_rotations()
        try:
            super()._save_checkpoint(*args, **kwargs)
        except (
            OSError,
            RuntimeError,
            SafetensorError,
        ) as error:  # torch and safetensors have errors of their own for a full disk
            folder = Path(str(self.args.output_dir))
            shutil.rmtree(folder / f"checkpoint-{self.state.global_step}", ignore_errors=True)
            reason = " ".join(str(error).split())[:200]
            raise OSError(f"no checkpoint could be written to {folder} ({reason}); {checkpoint_hint(folder)}") from error

    def _save_rng_state(self, *args: Any, **kwargs: Any) -> None:
        """Every process's random state is there before the checkpoint counts as whole."""
        super()._save_rng_state(*args, **kwargs)
        self.accelerator.wait_for_everyone()

    def _load_from_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with checkpoint_errors(args[0]):
            super()._load_from_checkpoint(*args, **kwargs)

    def _load_optimizer_and_scheduler(self, *args: Any, **kwargs: Any) -> None:
        with checkpoint_errors(args[0]):
            super()._load_optimizer_and_scheduler(*args, **kwargs)

    def _load_rng_state(self, *args: Any, **kwargs: Any) -> None:
        with checkpoint_errors(args[0]):
            super()._load_rng_state(*args, **kwargs)

    def _check_rotations(self) -> None:
        if site := find_invalid_parameter(self._model):
            self._stop(site, self.state.global_step)

    def _stop(self, what: str, step: int) -> None:
        hint = checkpoint_hint(Path(str(self.args.output_dir)))
        raise FloatingPointError(f"{what} at step {step}: begin again with a lower training.learning_rate; {hint}")

    @property
    def _model(self) -> nn.Module:
        assert isinstance(self.model, nn.Module)
        return self.model

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> LengthGroupedSampler:
        """Batches of texts of similar length, in an order that depends on seed and epoch alone, so that resuming keeps it."""
        data: Any = self.train_dataset if train_dataset is None else train_dataset
        batch = self.args.train_batch_size * self.args.world_size * self.args.gradient_accumulation_steps
        return _EpochSampler(batch, lengths=[len(ids) for ids in data["input_ids"]], seed=self.args.seed)

    def _get_eval_sampler(self, eval_dataset: Dataset) -> SequentialSampler:
        """Evaluation reads its examples in order (the Trainer would group them by length at random)."""
        return SequentialSampler(eval_dataset)


class _EpochSampler(LengthGroupedSampler):
    def __init__(self, batch_size: int, lengths: list[int], seed: int) -> None:
        super().__init__(batch_size, lengths=lengths, generator=torch.Generator())
        self._seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Called by the data loader at the start of every epoch."""
        self.generator.manual_seed(1_000_003 * self._seed + epoch)


@torch.no_grad()
def find_invalid_parameter(model: nn.Module) -> str:
    """What is wrong with the first rotation that holds no number or cannot be undone, or with what is trained beside them."""
    for road in (module for module in model.modules() if isinstance(module, RoadModel)):
        for site, intervention in road.by_site():
            if not (intervention.theta.isfinite().all() and intervention.alpha.isfinite().all()):
                return f"site '{site.name}' holds a value that is not finite"
            maps = plane_maps.maps_from_parameters(
                intervention.theta, intervention.alpha, intervention.variant, intervention.group_size
            )
            if (lost := plane_maps.singular(maps)).any():
                return f"site '{site.name}', plane {int(lost.nonzero()[0])}, is singular"
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not parameter.isfinite().all():
            return f"'{name}' holds a value that is not finite"
    return ""


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint in a folder that was written to its end; the Trainer writes its own state last."""
    steps = [path.name.removeprefix("checkpoint-") for path in folder.glob("checkpoint-*")]
    for step in sorted((int(step) for step in steps if step.isdecimal()), reverse=True):
        checkpoint = folder / f"checkpoint-{step}"
        with suppress(InputError):
            if read_json_object(checkpoint / TRAINER_STATE_NAME).get("global_step") == step:
                return checkpoint
    return None


@contextmanager
def checkpoint_errors(checkpoint: str) -> Iterator[None]:
    """Whatever a damaged file of a checkpoint raises (there is no common kind) becomes InputError."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{checkpoint} cannot be read ({reason}); delete it to go on from an earlier one") from None


def checkpoint_hint(folder: Path) -> str:
    checkpoint = last_checkpoint(folder)
    return "there is no checkpoint yet" if checkpoint is None else f"the last good checkpoint is {checkpoint}"


def run_trainer(trainer: Trainer, folder: Path, resume: bool) -> None:
    """Train, or go on from the last whole checkpoint; a run that was stopped before its first one begins again."""
    checkpoint = last_checkpoint(folder / CHECKPOINTS) if resume else None
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
