"""What planes are compared with: LoRA and LoReFT whose low-rank parts are owned by tasks and chosen row by row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal
from transformers import PreTrainedModel

from road_interp.adapters.bank import BASE
from road_interp.errors import InputError
from road_interp.sites.module_tree import hidden_of, output_width, with_hidden
from road_interp.sites.site import Site


class TaskLora(nn.Module):
    """`h + B A x` beside a linear layer (Hu et al. 2022), the deltas of the active tasks added; starts at the identity.

    Args:
        inputs, outputs: widths of the layer.
        size: rank of all tasks together.
    """

    def __init__(self, inputs: int, outputs: int, size: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(size, inputs) / inputs**0.5)
        self.up = nn.Parameter(torch.zeros(outputs, size))

    def forward(self, taken: Tensor, given: Tensor, active: Tensor, trainable: Tensor) -> Tensor:
        """The layer's output for its input `taken`; masks have shape `(rows, 1, size)`."""
        inner = _measure(taken, self.down, trainable) * active
        return given + _write(inner, self.up.T, trainable)


class TaskLoreft(nn.Module):
    """`h + R^T (W h + b - R h)` with orthonormal rows (Wu et al. 2024), a share of the rows for each task.

    Args:
        width: of the state.
        size: rows of all tasks together. They stay orthonormal together: what one task learns turns the others' rows too, though
            less than its own.
    """

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.rows: Any = orthogonal(nn.Linear(width, size, bias=False), orthogonal_map="cayley")
        self.source = nn.Linear(width, size)

    def forward(self, taken: Tensor, given: Tensor, active: Tensor, trainable: Tensor) -> Tensor:
        """The state `given` with the active rows edited; masks have shape `(rows, 1, size)`."""
        rows, source = self.rows.weight, self.source
        bias = torch.where(trainable, source.bias, source.bias.detach())
        edit = _measure(given, source.weight, trainable) + bias - _measure(given, rows, trainable)
        return given + _write(edit * active, rows, trainable)


def _measure(states: Tensor, rows: Float[Tensor, "size width"], trainable: Tensor) -> Float[Tensor, "batch tokens size"]:
    """Coordinates along the rows, with a gradient to those that learn."""
    return torch.where(trainable, states @ rows.T, states @ rows.detach().T)


def _write(values: Tensor, rows: Float[Tensor, "size width"], trainable: Tensor) -> Float[Tensor, "batch tokens width"]:
    """The sum of the rows, each as often as its value says, with a gradient to those that learn."""
    return (values * trainable) @ rows + (values * ~trainable) @ rows.detach()


class LowRankModel(nn.Module):
    """A frozen model with LoRA or LoReFT at its sites, called like a RoadModel with planes.

    Args:
        model: a causal language model whose linear layers are `nn.Linear`.
        sites: linear layers for LoRA, block outputs for LoReFT.
        tasks: names; each owns `rank` of a site's rows.
        seed: of the start.
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
        self._modules_changed = [model.get_submodule(site.module) for site in sites]
        size = rank * len(tasks)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if method == "LoRA":
                layers: Any = self._modules_changed
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
        """The model's output with the tasks' adapters active, row by row; only those of `trainable_tasks` get a gradient."""
        with self._on(tasks, tasks if trainable_tasks is None else trainable_tasks):
            return None, self.model(**base)

    def generate(self, base: Mapping[str, Any], tasks: Sequence[str], **options: Any) -> tuple[None, Tensor]:
        """Generated ids; no beams."""
        generate: Any = self.model.generate
        with self._on(tasks, tasks):
            return None, generate(**base, **options)

    @contextmanager
    def _on(self, tasks: Sequence[str], trainable_tasks: Sequence[str]) -> Iterator[None]:
        active, trainable = self._rows(tasks), self._rows(trainable_tasks)

        def transform(adapter: nn.Module) -> Callable[..., Any]:
            def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
                states = hidden_of(output)
                changed = adapter(args[0] if args else None, states, active, trainable)
                return with_hidden(output, changed)

            return hook

        with ExitStack() as stack:
            for module, adapter in zip(self._modules_changed, self.adapters, strict=True):
                stack.callback(module.register_forward_hook(transform(adapter)).remove)
            yield

    def _rows(self, active: Sequence[str]) -> Tensor:
        """Mask `(rows, 1, size)` of the tasks named in every entry."""
        named = [() if text == BASE else text.split("+") for text in active]
        if unknown := {name for names in named for name in names} - set(self.tasks):
            raise InputError(f"unknown task '{min(unknown)}'; the tasks are {', '.join(self.tasks)}")
        mask = torch.tensor([[task in names for task in self.tasks] for names in named], device=self.model.device)
        return mask.repeat_interleave(self.rank, dim=1).unsqueeze(1)
