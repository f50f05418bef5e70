"""FSDP2: shard the frozen transformer blocks among torchrun's processes; each block is gathered while it computes."""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from road_interp.errors import InputError
from road_interp.models.loading import process_state
from road_interp.sites.module_tree import layer_stacks


def shard_blocks(base: nn.Module, device: torch.device) -> None:
    """Shard the weights of every frozen transformer block; rotations, embeddings and heads stay whole in every process.

    Call this after `find_sites`, because sharded weights cannot be copied.

    Raises:
        InputError: only one process, or a model without a stack of blocks.
    """
    process = process_state(device)
    if process.num_processes == 1:
        raise InputError("model.shard divides the model among processes: start them with torchrun --nproc-per-node N")
    stacks = layer_stacks(base)  # type: ignore[arg-type]
    if not stacks:
        raise InputError("model.shard found no stack of blocks in this model")
    # With this attribute transformers keeps all processes generating until the last one has finished.
    base._is_fsdp_managed_module = True  # type: ignore[assignment]
    mesh = init_device_mesh(process.device.type, (process.num_processes,))
    for blocks in stacks.values():
        for block in blocks:
            fully_shard(block, mesh=mesh, reshard_after_forward=True)


def leave_to_fsdp(model: nn.Module) -> None:
    """Make DistributedDataParallel ignore sharded weights; it averages the gradients of all others."""
    sharded = [name for name, parameter in model.named_parameters() if isinstance(parameter, DTensor)]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, sharded)
