"""The Hugging Face Trainer, once: how a RoadModel is called, sampled, checked and configured in it."""

from __future__ import annotations

import json
import shutil
import timeit
from functools import cache
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import SequentialSampler
from transformers import PrinterCallback, Trainer, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler

from road_interp.adapter import RoadAdapter
from road_interp.errors import InputError
from road_interp.files import write_atomically
from road_interp.recipe import AnyRecipe, TrainingRecipe, load_recipe
from road_interp.run import ADAPTER, CHECKPOINTS, ENVIRONMENT, LOG, METRICS, RECIPE, Run, describe_environment, next_free


class RoadTrainer(Trainer):
    """The Trainer, calling the model as pyvene does."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
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
            step = self.state.global_step + 1
            raise FloatingPointError(f"the loss is {loss.item()} at step {step}: lower training.learning_rate")
        return loss

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> LengthGroupedSampler:
        """Batches of texts of similar length, in an order that depends on seed and epoch alone, so that resuming keeps it."""
        data: Any = self.train_dataset if train_dataset is None else train_dataset
        batch = self.args.train_batch_size * self.args.gradient_accumulation_steps
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


def prepare_folder(recipe: AnyRecipe, out: str | Path | None, resume: bool) -> Path:
    """The run folder, which must be new or, to resume, hold an unfinished run of the same recipe."""
    folder = next_free(Path("runs") / "run") if out is None else Path(out)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"'{folder}' is a file, not a folder for a run")
    if resume:
        if not (folder / RECIPE).is_file():
            raise InputError(f"'{folder}' holds no run to resume")
        if (folder / METRICS).is_file():
            raise InputError(f"the run in '{folder}' has finished; there is nothing to resume")
        if not list((folder / CHECKPOINTS).glob("checkpoint-*")):
            raise InputError(f"'{folder}' holds no checkpoint to resume from; start again with another --out")
        if load_recipe(folder / RECIPE) != recipe:
            raise InputError(f"the recipe differs from the one that '{folder}' was started with ({RECIPE} there)")
    elif folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"'{folder}' is not empty; choose another --out, or go on with --resume")
    return folder


def training_arguments(
    settings: TrainingRecipe, seed: int, folder: Path, where: torch.device, progress: bool, **options: Any
) -> TrainingArguments:
    """The Trainer's arguments for a recipe's training; `options` are further ones of the Trainer's own."""
    precision = forward_precision(settings, where)
    return TrainingArguments(
        output_dir=str(folder / CHECKPOINTS),
        num_train_epochs=settings.epochs,
        max_steps=settings.max_steps or -1,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        warmup_steps=settings.warmup_ratio,
        lr_scheduler_type=settings.scheduler,
        max_grad_norm=settings.max_grad_norm,
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        use_cpu=where.type == "cpu",
        remove_unused_columns=False,
        label_names=["labels"],
        save_total_limit=2,
        logging_steps=20,
        report_to="none",
        disable_tqdm=not progress,
        dataloader_pin_memory=where.type == "cuda",
        seed=seed,
        **{"save_strategy": "epoch", **options},
    )


def finish_run(
    trainer: Trainer, recipe: AnyRecipe, adapter: RoadAdapter, metrics: dict[str, Any], folder: Path, where: torch.device
) -> Run:
    """Write what every run folder holds; the metrics come last, since a folder that has them is a finished run."""
    adapter.save(folder / ADAPTER)
    write_atomically(folder / LOG, "".join(json.dumps(entry) + "\n" for entry in trainer.state.log_history))
    precision = forward_precision(recipe.training, where)
    write_atomically(folder / ENVIRONMENT, describe_environment(recipe.seed, where.type, precision))
    write_atomically(folder / METRICS, json.dumps(metrics, indent=2) + "\n")
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    return Run.load(folder)


def forward_precision(settings: TrainingRecipe, device: torch.device) -> str:
    """The forward pass's precision: "auto" is bf16 where the card computes in it, or the processor is faster in it."""
    if settings.precision != "auto":
        return settings.precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    return "bf16" if _processor_prefers_bf16() else "fp32"


@cache
def _processor_prefers_bf16() -> bool:
    """Whether this processor multiplies clearly faster in bf16. Measured, since some that have it take twice as long with it."""
    if not torch.backends.mkldnn.is_available() or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False

    def seconds(dtype: torch.dtype) -> float:
        factors = torch.ones(512, 512, dtype=dtype)
        return min(timeit.repeat(lambda: factors @ factors, number=1, repeat=9))

    return seconds(torch.bfloat16) < 0.7 * seconds(torch.float32)


def find_device(device: str | None) -> torch.device:
    """The device of that name, or what torch finds."""
    if device not in (None, "cpu", "cuda"):
        raise InputError(f"device '{device}' is not known; use cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("device 'cuda' was asked for, but torch finds no CUDA device")
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
