"""Baselines of planes: LoRA and LoReFT whose rows are owned by tasks and activated per batch row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal
from transformers import PreTrainedModel

from road_interp.adapters.joined_names import known_names
from road_interp.models.seeding import seeded
from road_interp.sites.module_tree import hidden_of, output_width, with_hidden
from road_interp.sites.site import Site


class TaskLora(nn.Module):
    """LoRA (Hu et al. 2022) at a linear layer: `h + B A x` over the rows of the active tasks; B starts at zero.

    Args:
        inputs, outputs: widths of the layer.
        size: sum of the ranks of all tasks.
    """

    def __init__(self, inputs: int, outputs: int, size: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(size, inputs) / inputs**0.5)
        self.up = nn.Parameter(torch.zeros(outputs, size))

    def forward(self, inputs: Tensor, outputs: Tensor, active: Tensor, trainable: Tensor) -> Tensor:
        """The adapted output of a layer; the masks `active` and `trainable` have shape `(rows, 1, size)`."""
        inner = _project(inputs.to(self.down.dtype), self.down, trainable) * active
        return outputs + _combine_rows(inner, self.up.T, trainable).to(outputs.dtype)


class TaskLoreft(nn.Module):
    """LoReFT (Wu et al. 2024): `h + R^T (W h + b - R h)` with orthonormal rows in R, each owned by one task.

    Args:
        width: of the state.
        size: number of rows of all tasks. All rows stay orthonormal, so that training one task also moves the rows of the
            others.
    """

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.rows: Any = orthogonal(nn.Linear(width, size, bias=False), orthogonal_map="cayley")
        self.source = nn.Linear(width, size)

    def forward(self, inputs: Tensor, outputs: Tensor, active: Tensor, trainable: Tensor) -> Tensor:
        """The states `outputs`, edited along the active rows; the masks have shape `(rows, 1, size)`."""
        rows, source = self.rows.weight, self.source
        bias = torch.where(trainable, source.bias, source.bias.detach())
        states = outputs.to(rows.dtype)
        edit = _project(states, source.weight, trainable) + bias - _project(states, rows, trainable)
        return outputs + _combine_rows(edit * active, rows, trainable).to(outputs.dtype)


def _project(states: Tensor, rows: Float[Tensor, "size width"], trainable: Tensor) -> Float[Tensor, "batch tokens size"]:
    """Coordinates of the states along the rows; only trainable rows get a gradient."""
    return torch.where(trainable, states @ rows.T, states @ rows.detach().T)


def _combine_rows(values: Tensor, rows: Float[Tensor, "size width"], trainable: Tensor) -> Float[Tensor, "batch tokens width"]:
    """Linear combination of the rows, weighted by the values; only trainable rows get a gradient."""
    return (values * trainable) @ rows + (values * ~trainable) @ rows.detach()


class LowRankModel(nn.Module):
    """A frozen model with LoRA or LoReFT at its sites, called as a RoadModel with task planes is.

    Args:
        model: a causal language model whose linear layers are `nn.Linear`.
        sites: linear layers for LoRA, block outputs for LoReFT.
        tasks: names; each owns `rank` of a site's rows.
        seed: of the initial weights, which are float32 in a model of any dtype.
    """

    positions = "all"

    def __init__(
        self,
        model: PreTrainedModel,
        sites: Sequence[Site],
        tasks: Sequence[str],
        rank: int,
        method: Literal["LoRA", "LoReFT"],
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.model, self.tasks, self.rank = model.requires_grad_(False), tuple(tasks), rank
        self._adapted_modules = [model.get_submodule(site.module) for site in sites]
        size = rank * len(tasks)
        with seeded(seed):
            if method == "LoRA":
                layers: Any = self._adapted_modules
                adapters = [TaskLora(layer.in_features, output_width(layer), size) for layer in layers]
            else:
                adapters = [TaskLoreft(site.width, size) for site in sites]
        self.adapters: nn.ModuleList = nn.ModuleList(adapters).to(model.device)

    def forward(
        self,
        base: Mapping[str, Any],
        tasks: Sequence[str],
        trainable_tasks: Sequence[str] | None = None,
        positions: None = None,
    ) -> tuple[None, Any]:
        """The model's output with the adapters of `tasks` active per row; only rows of `trainable_tasks` get a gradient."""
        with self._adapters_active(tasks, tasks if trainable_tasks is None else trainable_tasks):
            return None, self.model(**base)

    def generate(self, base: Mapping[str, Any], tasks: Sequence[str], **options: Any) -> tuple[None, Tensor]:
        """Generated token ids; beam search is not supported."""
        generate: Any = self.model.generate
        with self._adapters_active(tasks, tasks):
            return None, generate(**base, **options)

    @contextmanager
    def _adapters_active(self, tasks: Sequence[str], trainable_tasks: Sequence[str]) -> Iterator[None]:
        active, trainable = self._row_mask(tasks), self._row_mask(trainable_tasks)

        def hook_for(adapter: nn.Module) -> Callable[..., Any]:
            def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
                states = hidden_of(output)
                adapted = adapter(args[0] if args else None, states, active, trainable)
                return with_hidden(output, adapted)

            return hook

        with ExitStack() as stack:
            for module, adapter in zip(self._adapted_modules, self.adapters, strict=True):
                stack.callback(module.register_forward_hook(hook_for(adapter)).remove)
            yield

    def _row_mask(self, active: Sequence[str]) -> Tensor:
        """Boolean mask `(rows, 1, size)` of the tasks named for each batch row, such as "a+b"."""
        named = [known_names(text, self.tasks, "task") for text in active]
        mask = torch.tensor([[task in names for task in self.tasks] for names in named], device=self.model.device)
        return mask.repeat_interleave(self.rank, dim=1).unsqueeze(1)
