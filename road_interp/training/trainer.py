"""The Hugging Face Trainer for rotated models: pyvene's calling convention, samplers, checks of rotations, and checkpoints."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.data import SequentialSampler
from transformers import PreTrainedModel, PrinterCallback, Trainer
from transformers.integrations.integration_utils import TensorBoardCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_pt_utils import LengthGroupedSampler, nested_gather
from transformers.utils import SAFE_WEIGHTS_NAME

from road_interp.errors import InputError, one_line
from road_interp.files import read_json_object, write_atomically
from road_interp.models.intervention import RoadIntervention
from road_interp.models.road_model import RoadModel
from road_interp.models.vocabulary import vocabulary_of
from road_interp.rotation import plane_maps
from road_interp.runs.run_files import CHECKPOINTS
from road_interp.training.checkpoint_clock import CheckpointClock
from road_interp.training.distributed import leave_to_fsdp

RUNNING_LOSS = "running_loss"  # of a checkpoint: the losses since the last entry of the log, which the Trainer does not keep


class RoadTrainer(Trainer):
    """A Trainer that calls the model as pyvene does, and that never saves a rotation that is not finite or not invertible."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        _check_tokens(self._model, (self.train_dataset, self.eval_dataset))
        # RoadModel.forward has **kwargs, from which the Trainer concludes that its losses are divided by the accumulated steps.
        self.model_accepts_loss_kwargs = False
        leave_to_fsdp(self._model)
        self.remove_callback(PrinterCallback)  # it prints to standard output, which is for results
        self.add_callback(CheckpointClock)
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
                # its default is the folder of the checkpoints, which are deleted in the end
                callback.logging_dir = str(Path(str(self.args.output_dir)).parent / "tensorboard")

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """The loss of one batch, which `call` computes from the labels; as outputs the logits, without states and caches."""
        output = self.call(model, inputs)
        return (output.loss, {"logits": output.logits}) if return_outputs else output.loss

    def call(self, model: nn.Module, inputs: dict[str, Any]) -> Any:
        """The rotated model's output for one batch."""
        return model(base=inputs)[1]

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """The parameters under weight decay, with all rotations: the Trainer leaves out what is named after a normalisation."""
        roads = [name for name, module in model.named_modules() if isinstance(module, RoadIntervention)]
        rotations = [f"{name}.{each}" for name in roads for each in ("theta", "alpha")]
        return [*{*super().get_decay_parameter_names(model), *rotations}]

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """One training step. Raises FloatingPointError if the loss is not finite."""
        loss = super().training_step(*args, **kwargs)
        if not loss.isfinite():
            site = find_invalid_parameter(self._model)
            self._stop(f"the loss is {loss.item()}{site and ', '}{site}", self.state.global_step + 1)
        return loss

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Train an epoch. One whose last step is in the checkpoint that is resumed is left out: the Trainer would add a step."""
        # accelerate does not reach the sampler of several processes below the batches that a resumed epoch skips.
        self._sampler.set_epoch(kwargs["epoch"])
        if running := self._callback_states.pop(RUNNING_LOSS, None):
            self._tr_loss += running["sum"]
            self._globalstep_last_logged = running["logged_step"]
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Check the rotations, then log. Raises FloatingPointError for a rotation that is not finite or not invertible."""
        self._check_rotations()
        super().log(logs, *args, **kwargs)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Check the rotations, then save a checkpoint with the running loss. A partly written checkpoint is deleted.

        Raises:
            FloatingPointError: a rotation that is not finite or not invertible.
            OSError: a checkpoint that cannot be written.
        """
        self._check_rotations()
        total = nested_gather(self._tr_loss, self.args.parallel_mode).mean().item()
        self._callback_states[RUNNING_LOSS] = {"sum": total, "logged_step": self._globalstep_last_logged}
        try:
            super()._save_checkpoint(*args, **kwargs)
        except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors raise their own errors on a full disk
            folder = Path(str(self.args.output_dir))
            shutil.rmtree(folder / f"checkpoint-{self.state.global_step}", ignore_errors=True)
            hint = checkpoint_hint(folder)
            raise OSError(f"no checkpoint could be written to {folder} ({one_line(error)}); {hint}") from error
        finally:
            del self._callback_states[RUNNING_LOSS]

    def _save_rng_state(self, *args: Any, **kwargs: Any) -> None:
        """Save the random state of every process before the checkpoint is marked as complete."""
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

    def _load_best_model(self) -> None:
        """Load the weights of the best epoch. Raises InputError if they are missing: the Trainer would keep the last ones."""
        best = Path(str(self.state.best_model_checkpoint))
        if not (best / SAFE_WEIGHTS_NAME).is_file():
            raise InputError(f"{best}, the best checkpoint, is missing: train again in another folder")
        with checkpoint_errors(str(best)):
            super()._load_best_model()

    def _check_rotations(self) -> None:
        if site := find_invalid_parameter(self._model):
            self._stop(site, self.state.global_step)

    def _stop(self, what: str, step: int) -> None:
        hint = checkpoint_hint(Path(str(self.args.output_dir)))
        raise FloatingPointError(f"{what} at step {step}: restart with a lower training.learning_rate; {hint}")

    @property
    def _callback_states(self) -> dict[str, Any]:
        """What a checkpoint keeps by name, beside the Trainer's own state."""
        states: Any = self.state.stateful_callbacks
        return states

    @property
    def _model(self) -> nn.Module:
        assert isinstance(self.model, nn.Module)
        return self.model

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> LengthGroupedSampler:
        """Batches of texts of similar length, in an order that depends only on seed and epoch, as resuming requires."""
        data: Any = self.train_dataset if train_dataset is None else train_dataset
        batch = self.args.train_batch_size * self.args.world_size * self.args.gradient_accumulation_steps
        self._sampler = _EpochSampler(batch, lengths=[len(ids) for ids in data["input_ids"]], seed=self.args.seed)
        return self._sampler

    def _get_eval_sampler(self, eval_dataset: Dataset) -> SequentialSampler:
        """Evaluation reads examples in order; the Trainer's own sampler would group them by length at random."""
        return SequentialSampler(eval_dataset)


class _EpochSampler(LengthGroupedSampler):
    def __init__(self, batch_size: int, lengths: list[int], seed: int) -> None:
        super().__init__(batch_size, lengths=lengths, generator=torch.Generator())
        self._seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Set the order of an epoch; accelerate's data loader calls this at its start."""
        self.generator.manual_seed(1_000_003 * self._seed + epoch)


@torch.no_grad()
def _check_tokens(model: Any, datasets: Iterable[Any]) -> None:
    """Raise InputError for a token that the model has no embedding of, as after `add_tokens` of its tokeniser alone."""
    backbone = next((each for each in model.modules() if isinstance(each, PreTrainedModel)), None)
    known = None if backbone is None else vocabulary_of(backbone)
    tokens = [each["input_ids"] for each in datasets if isinstance(each, Dataset) and "input_ids" in each.column_names]
    largest = max((token for rows in tokens for ids in rows for token in ids), default=0)
    if known is not None and largest >= known:
        raise InputError(
            f"the texts have token {largest}, and the model has {known} embeddings: call its resize_token_embeddings, and save "
            "it with this tokeniser"
        )


def find_invalid_parameter(model: nn.Module) -> str:
    """A description of the first rotation or trainable parameter that is not finite or not invertible; empty if all are valid."""
    for road in (module for module in model.modules() if isinstance(module, RoadModel)):
        for site, intervention in road.by_site():
            if not (intervention.theta.isfinite().all() and intervention.alpha.isfinite().all()):
                return f"site '{site.name}' holds a value that is not finite"
            maps = plane_maps.maps_from_parameters(
                intervention.theta, intervention.alpha, intervention.variant, intervention.group_size
            )
            if (singular := plane_maps.singular(maps)).any():
                return f"site '{site.name}', plane {int(singular.nonzero()[0])}, is singular"
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not parameter.isfinite().all():
            return f"'{name}' holds a value that is not finite"
    return ""


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint in a folder: one with a trainer state, which the Trainer writes last."""
    steps = [path.name.removeprefix("checkpoint-") for path in folder.glob("checkpoint-*")]
    for step in sorted((int(step) for step in steps if step.isdecimal()), reverse=True):
        checkpoint = folder / f"checkpoint-{step}"
        with suppress(InputError):
            if read_json_object(checkpoint / TRAINER_STATE_NAME).get("global_step") == step:
                return checkpoint
    return None


def find_best_again(checkpoint: Path) -> None:
    """Name the best checkpoint in the state of a newer one by its present path: the Trainer forgets one that it does not find.

    Raises InputError if the best checkpoint is not beside the newer one.
    """
    state = read_json_object(checkpoint / TRAINER_STATE_NAME)
    if (named := state.get("best_model_checkpoint")) is None:
        return
    best = checkpoint.parent / Path(named).name
    if not best.is_dir():
        raise InputError(f"{best}, the best checkpoint up to {checkpoint}, is missing: train again in another folder")
    if str(best) != named:
        write_atomically(checkpoint / TRAINER_STATE_NAME, json.dumps({**state, "best_model_checkpoint": str(best)}, indent=2))


@contextmanager
def checkpoint_errors(checkpoint: str) -> Iterator[None]:
    """Turn any error about a damaged checkpoint into InputError; the errors have no common class. Missing memory is none."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise InputError(f"{checkpoint} cannot be read ({one_line(error)}); delete it to resume from an earlier one") from None


def checkpoint_hint(folder: Path) -> str:
    """The last complete checkpoint in a folder, for error messages."""
    checkpoint = last_checkpoint(folder)
    return "there is no checkpoint yet" if checkpoint is None else f"the last good checkpoint is {checkpoint}"


def run_trainer(trainer: Trainer, folder: Path, resume: bool) -> None:
    """Train, or resume from the last complete checkpoint; a run without a checkpoint starts over."""
    checkpoint = last_checkpoint(folder / CHECKPOINTS) if resume else None
    if checkpoint is not None:
        if trainer.is_world_process_zero():
            find_best_again(checkpoint)
        trainer.accelerator.wait_for_everyone()
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
