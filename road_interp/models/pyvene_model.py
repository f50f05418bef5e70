"""pyvene's IntervenableModel with torch's meaning of `train`, `named_parameters` and `state_dict`, and its own hooks only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from road_interp.errors import InputError, one_line
from road_interp.models.call_arguments import check_base_locations, check_unit_locations, token_lists
from road_interp.models.intervention import RoadIntervention, pyvene
from road_interp.sites.module_tree import hidden_of


class PyveneConfig(pyvene.IntervenableConfig):
    """pyvene's config, which is JSON also while it holds the interventions: the Trainer's trackers log it."""

    def __init__(self, *args: Any, **options: Any) -> None:  # without it, transformers would write one from the fields
        super().__init__(*args, **options)

    def to_dict(self) -> dict[str, Any]:
        """The config with the names of the types, without the modules."""
        content: dict[str, Any] = super().to_dict()
        content["representations"] = [
            each._replace(intervention=None, intervention_type=None) if hasattr(each, "_replace") else each
            for each in content["representations"]
        ]
        content["intervention_types"] = [each if isinstance(each, str) else str(each) for each in content["intervention_types"]]
        return content


class PyveneModel(pyvene.IntervenableModel):
    """A pyvene model that is an ordinary `nn.Module`, and that leaves hooks of other code in place.

    Args:
        config: pyvene's IntervenableConfig.
        base_model: any Hugging Face model. pyvene freezes its weights.
    """

    config: Any  # pyvene's

    def __init__(self, config: Any, base_model: PreTrainedModel) -> None:
        self._own_handles: list[Any] = []
        modes = [(module, module.training) for module in base_model.modules()]
        super().__init__(config, base_model)  # which sets the base model to evaluation mode, and not itself
        self.train(modes[0][1])
        for module, mode in modes:
            module.training = mode

    @property
    def hf_device_map(self) -> dict[str, Any]:
        """The devices on which accelerate has placed the modules of the base model; the Trainer does not move such a model."""
        device_map: dict[str, Any] = self.model.hf_device_map
        return device_map

    @property
    def device(self) -> torch.device:
        """The device of the base model's inputs."""
        device: torch.device = self.model.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the base model's weights."""
        dtype: torch.dtype = self.model.dtype
        return dtype

    def train(self, mode: bool = True) -> Any:
        """Set training mode for base model and interventions (pyvene's method sets it for the base model only)."""
        return nn.Module.train(self, mode)

    def eval(self) -> Any:
        """Set evaluation mode for base model and interventions."""
        return self.train(False)

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """All parameters, as in torch (pyvene's method lists the trainable ones, without `prefix`)."""
        return nn.Module.named_parameters(self, prefix, recurse, remove_duplicate)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear all gradients."""
        nn.Module.zero_grad(self, set_to_none)

    def get_trainable_parameters(self) -> list[nn.Parameter]:
        """The parameters that are trained, of interventions and base model (pyvene's method lists frozen interventions, too).

        Raises InputError for a model with a bank, whose adapters have the parameters.
        """
        if getattr(self, "bank", None) is not None:
            raise InputError("the parameters of a model with a bank are those of its adapters: use bank.trainable()")
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def disable_intervention_gradients(self) -> None:
        """Freeze the interventions (pyvene's method does nothing)."""
        for intervention in self.interventions.values():
            intervention.requires_grad_(False)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The trainable parameters, and angles, scales and form of every RoadIntervention; others are left out.

        Raises InputError for a model with a bank, whose adapters are no parameters of the model.
        """
        self._check_no_bank()
        prefix = kwargs.get("prefix", args[1] if len(args) > 1 else "")
        parameters = self.named_parameters(remove_duplicate=False)  # a state dict has tied weights under each name
        rotations = {
            f"{name}.{each}"
            for name, module in self.named_modules()
            if isinstance(module, RoadIntervention)
            for each in ("theta", "alpha")
        }
        frozen = {f"{prefix}{name}" for name, parameter in parameters if not parameter.requires_grad and name not in rotations}
        buffers = {f"{prefix}{name}" for name, _ in self.named_buffers() if not name.endswith(".form")}
        state = nn.Module.state_dict(self, *args, **kwargs)
        for name in frozen | buffers:
            state.pop(name, None)
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load a state dict of `state_dict`. Raises InputError if keys are missing or unknown, and for a model with a bank."""
        self._check_no_bank()
        return load_trained(self, state_dict, strict, assign)

    def _check_no_bank(self) -> None:
        if getattr(self, "bank", None) is not None:
            raise InputError(
                "the adapters of a bank are not in a state dict: save each with bank[name].save(folder), and put it back with "
                "bank.replace(name, folder)"
            )

    def save_intervention(self, *args: Any, **kwargs: Any) -> None:
        """pyvene's files without their config, which its `load_intervention` reads on a CUDA device only: raises InputError."""
        raise InputError("save_intervention writes files that only a CUDA device can load: use save(folder) and load")

    def load_intervention(self, *args: Any, **kwargs: Any) -> None:
        """As `save_intervention`: raises InputError."""
        raise InputError("load_intervention needs a CUDA device: load the folder of save(folder) with load")

    def _broadcast_unit_locations(self, batch_size: int, unit_locations: Any) -> Any:
        """The tokens of every row at every site. pyvene takes two tokens of the base for one of a source and one of the base.

        It also keeps `use_fast`, by which the tokens of the first row are those of all rows, for the calls after this one.
        """
        if unit_locations is not None:
            check_base_locations(unit_locations)
            ((key, tokens),) = unit_locations.items()
            is_pair = key != "base" and isinstance(tokens, tuple)  # of a source's tokens and the base's
            tokens = tuple(map(token_lists, tokens)) if is_pair else token_lists(tokens)
            if key == "base" and isinstance(tokens, list) and tokens and all(isinstance(token, int) for token in tokens):
                tokens = [[tokens] * batch_size] * len(self.interventions)
            unit_locations = {key: tokens}
        broadcast = super()._broadcast_unit_locations(batch_size, unit_locations)
        self.use_fast = False
        check_unit_locations(broadcast["sources->base"][1], len(self.interventions), batch_size)
        return broadcast

    def _gather_intervention_output(self, output: Any, key: str, unit_locations: Any) -> Any:
        return super()._gather_intervention_output(output, key, _of_beams(unit_locations, output))

    def _scatter_intervention_output(self, output: Any, rotated: Any, key: str, unit_locations: Any) -> Any:
        """As pyvene's. Raises InputError where locations of a generated token are looked up among several tokens."""
        if unit_locations is not None and self._is_generation and not self._intervene_on_prompt:
            count = hidden_of(output).shape[1]
            if count != 1:
                raise InputError(
                    f"unit_locations are those of one generated token, but generate computed {count} in one pass: use positions"
                )
        return super()._scatter_intervention_output(output, rotated, key, _of_beams(unit_locations, output))

    def _intervention_getter(self, *args: Any, **kwargs: Any) -> Any:
        handlers = super()._intervention_getter(*args, **kwargs)
        self._own_handles += handlers.handlers
        return handlers

    def _intervention_setter(self, *args: Any, **kwargs: Any) -> Any:
        handlers = super()._intervention_setter(*args, **kwargs)
        self._own_handles += handlers.handlers
        return handlers

    def check_hooks(self) -> None:
        """Raise InputError if a module was replaced since: pyvene would put its hooks on the module that is no longer called."""
        for key, register_hook in self.intervention_hooks.items():
            name = self.representations[key].component.rpartition(".")[0]
            if register_hook.__self__ is not self.model.get_submodule(name):
                raise InputError(
                    f"'{name}' was replaced by another module since the RoadModel was made, for example by a LoRA, and pyvene's "
                    "loop would not rotate it: make the RoadModel again"
                )

    def _remove_forward_hooks(self) -> None:
        while self._own_handles:
            self._own_handles.pop().remove()


def _of_beams(unit_locations: Sequence[Any] | None, output: Any) -> Sequence[Any] | None:
    """The tokens of every row of a module's output: generation repeats the rows of the batch, once per beam or sequence."""
    if unit_locations is None:
        return None
    states = next(iter(output.values())) if isinstance(output, Mapping) else hidden_of(output)
    copies, rest = divmod(len(states), len(unit_locations))
    if rest or not copies:
        raise InputError(f"unit_locations are of {len(unit_locations)} rows, but a rotated module has an output of {len(states)}")
    if other := [token for tokens in unit_locations for token in tokens if not 0 <= token < states.shape[1]]:
        raise InputError(
            f"unit_locations name token {other[0]}, but the rotated module has {states.shape[1]}, counted from 0 and with "
            "padding; positions counts without padding, and -1 from the end"
        )
    return unit_locations if copies == 1 else [tokens for tokens in unit_locations for _ in range(copies)]


def load_trained(module: nn.Module, state: Mapping[str, Any], strict: bool, assign: bool) -> Any:
    """`nn.Module.load_state_dict` for a module whose `state_dict` leaves out frozen parameters, older ones also of rotations.

    Raises InputError, without having changed the module, for a state that does not fit it.
    """
    before = {name: value.detach().clone() for name, value in nn.Module.state_dict(module).items() if name in state}
    try:
        missing, unexpected = nn.Module.load_state_dict(module, state, strict=False, assign=assign)
        trained = {name for name, parameter in nn.Module.named_parameters(module) if parameter.requires_grad}
        missing = [name for name in missing if name in module.state_dict() and (name in trained or name.endswith(".form"))]
        if strict and (missing or unexpected):
            raise InputError(f"the state does not fit this model: missing {missing[:3]}, unknown {unexpected[:3]}")
    except (InputError, RuntimeError) as error:
        nn.Module.load_state_dict(module, before, strict=False, assign=assign)
        if isinstance(error, InputError):
            raise
        raise InputError(f"the state does not fit this model: {one_line(error)}") from None
    return nn.modules.module._IncompatibleKeys(missing, unexpected)
