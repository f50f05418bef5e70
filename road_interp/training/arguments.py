"""The Hugging Face Trainer's arguments for a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations

from road_interp.errors import InputError, did_you_mean
from road_interp.models.loading import process_state
from road_interp.recipes.schema import TrainableRecipe, TrainingRecipe
from road_interp.runs.run_files import CHECKPOINTS


class Arguments(TrainingArguments):
    """`TrainingArguments` whose warm-up leaves at least one step: the rate of its first step is 0, as is that of a single one."""

    def get_warmup_steps(self, num_training_steps: int) -> int:
        """The number of steps with a smaller rate."""
        return min(super().get_warmup_steps(num_training_steps), num_training_steps - 1)


def training_arguments(
    recipe: TrainableRecipe, folder: Path, device: torch.device, progress: bool, **options: Any
) -> TrainingArguments:
    """`TrainingArguments` from the training section and the seed of a recipe.

    The recipe's batch size is the sum over all processes, so that the number of processes does not change the result.

    Args:
        folder: the run folder.
        options: further arguments of `TrainingArguments`, such as save_strategy.

    Raises:
        InputError: a batch size that is not divisible by the number of processes, fp16 on a CPU, or a tracker that is not
            installed.
    """
    settings, processes = recipe.training, process_state(device).num_processes
    precision = forward_precision(settings, device)
    if settings.batch_size % processes:
        raise InputError(f"training.batch_size {settings.batch_size} cannot be divided among {processes} processes")
    options = {"save_strategy": "epoch", "report_to": settings.report_to, **options}
    _check_trackers(options["report_to"])
    arguments = Arguments(
        output_dir=str(folder / CHECKPOINTS),
        num_train_epochs=settings.epochs,
        max_steps=settings.max_steps or -1,
        per_device_train_batch_size=settings.batch_size // processes,
        per_device_eval_batch_size=settings.batch_size // processes,
        gradient_accumulation_steps=settings.gradient_accumulation,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        warmup_steps=settings.warmup_ratio,
        lr_scheduler_type=settings.scheduler,
        max_grad_norm=settings.max_grad_norm,
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        use_cpu=device.type == "cpu",
        remove_unused_columns=False,
        label_names=["labels"],
        save_total_limit=2,
        logging_steps=20,
        disable_tqdm=not progress,
        dataloader_pin_memory=device.type == "cuda",
        seed=recipe.seed,
        **options,
    )
    arguments.mixed_precision = "no" if precision == "fp32" else precision  # and not what `accelerate launch` is told
    arguments._n_gpu = min(arguments.n_gpu, 1)  # several GPUs need torchrun: DataParallel would run replicas in threads
    return arguments


def _check_trackers(names: Sequence[str]) -> None:
    """Raise InputError for a tracker that transformers does not know or that is not installed."""
    if not names:
        return
    available = get_available_reporting_integrations()
    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            raise InputError(f"training.report_to: '{name}' is not known; {did_you_mean(name, INTEGRATION_TO_CALLBACK)}")
        if name not in available:
            package = {"azure_ml": "azureml-core", "comet_ml": "comet-ml"}.get(name, name)
            raise InputError(f"training.report_to: '{name}' is not installed; try: pip install {package}")


def forward_precision(settings: TrainingRecipe, device: torch.device) -> str:
    """Precision of the forward pass; "auto" is bf16 on a GPU with bf16 (else fp16), and on a CPU with AMX (else fp32).

    Raises InputError for fp16 on a CPU, where the Trainer would compute in fp32.
    """
    if settings.precision == "fp16" and device.type == "cpu":
        raise InputError("training.precision: fp16 needs a GPU; use bf16 or fp32")
    if settings.precision != "auto":
        return settings.precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    return "bf16" if _processor_has_amx() else "fp32"


def _processor_has_amx() -> bool:
    """Whether this CPU has AMX. With AVX-512's products in bf16 alone, a Xeon took twice as long as in fp32."""
    return getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
