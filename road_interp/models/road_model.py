"""RoadModel: a pyvene IntervenableModel that rotates hidden states of any Hugging Face model, with an adapter per row."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from road_interp.adapters import peft_format
from road_interp.adapters.bank import RoadBank, difference_of
from road_interp.adapters.base_model import BaseModelSignature
from road_interp.adapters.road_adapter import RoadAdapter
from road_interp.adapters.task_planes import TaskPlanes
from road_interp.arguments import check_argument, check_count
from road_interp.errors import InputError, shown
from road_interp.models import pyvene_io
from road_interp.models.call_arguments import (
    check_given_once,
    check_known,
    check_new_cache,
    check_no_inputs,
    check_subspaces,
    checked_inputs,
    checked_positions,
)
from road_interp.models.coefficients import BankMaps, Rotations
from road_interp.models.compatibility import check_made_for, check_without_peft, warn_of_other_weights
from road_interp.models.continuous_batching import ContinuousBatching, Prompt, check_prompts, token_ids
from road_interp.models.forward_wrapper import CallScope, Wrappers
from road_interp.models.generate_arguments import (
    check_generation,
    check_locations,
    compiles_generation,
    complete_config,
    copied_subspaces,
)
from road_interp.models.gradient_checkpointing import RECOMPUTED, checkpoints_gradients
from road_interp.models.head_inputs import contiguous_head_inputs
from road_interp.models.intervention import RoadIntervention, pyvene
from road_interp.models.merge_state import MergeState
from road_interp.models.open_contexts import Kind, opened, shared_context
from road_interp.models.pyvene_model import PyveneConfig, PyveneModel
from road_interp.models.rotation_context import RotationContext
from road_interp.models.row_arguments import RowArguments, Strengths
from road_interp.models.row_selection import RowSelection
from road_interp.models.row_sites import check_media, site_outside_text, why_rows_are_refused
from road_interp.models.site_interventions import device_of, site_intervention
from road_interp.models.token_selection import check_prompt_and_cache, given_rows, prompt_mask
from road_interp.sites.module_tree import check_transformers_model, refuse_never_called, refuse_shared
from road_interp.sites.positions import Positions
from road_interp.sites.site import Site

if TYPE_CHECKING:
    from transformers.generation.continuous_batching.requests import GenerationOutput


class RoadModel(PyveneModel):
    """A model whose hidden states are rotated at the sites of an adapter, or for each row by an adapter of a bank.

    Calls are those of pyvene: `_, output = model(base=inputs)` and `_, ids = model.generate(inputs, ...)`. A call with sources,
    unit_locations or subspaces runs through pyvene's own loop. Every other call wraps the forward of each rotated module and
    rotates its output, in place where no other code holds a reference to it. Hooks of other code are never removed. Code that
    calls a transformers model, such as `transformers.pipeline`, gets the one of `with model.attached() as base`.

    Args:
        base_model: any Hugging Face model. Its weights are frozen; `requires_grad_` makes further modules trainable.
        adapter: a RoadAdapter, whose angles and scales become parameters, or a folder or a Run, as in `RoadAdapter.of`; or a
            RoadBank, from which `adapter_names` selects.
        positions: the tokens to rotate: "all", "first", "last", "prompt", "f3+l2", or one list per row; None for those of the
            adapter. In generation, "all" rotates the tokens of every step, all others those of the prompt only.
        planes: named tasks that own planes of the sites; `tasks` selects the active ones for each row.

    Raises:
        InputError: the adapter was made for another model, the planes for other sites, the positions are invalid, or the base
            model contains PEFT's RoAd layers.
    """

    def __init__(
        self,
        base_model: PreTrainedModel,
        adapter: RoadAdapter | RoadBank | str | os.PathLike[str] | Any,
        positions: Positions | None = None,
        planes: TaskPlanes | None = None,
    ) -> None:
        """Freeze the base model, and put an intervention at every site of the adapter."""
        if isinstance(base_model, RoadModel):
            raise InputError("RoadModel needs a transformers model, not a RoadModel: give its model, road_model.model")
        check_transformers_model("RoadModel", base_model, "a transformers model, such as that of load_model(id)")
        check_without_peft(base_model)
        self._bank = adapter if isinstance(adapter, RoadBank) else None
        family = adapter.template if isinstance(adapter, RoadBank) else RoadAdapter.of(adapter, base_model)
        warn_of_other_weights(base_model, getattr(adapter, "folder", adapter))
        check_made_for(base_model, family, "the adapter was made")
        self.sites: tuple[Site, ...] = family.sites
        self._check_planes(planes)
        self.variant, self.group_size = family.variant, family.group_size
        self._family = family.identity_like()
        self._positions = family.positions if positions is None else checked_positions(positions)
        self._merging = MergeState(base_model)
        interventions = [site_intervention(base_model, site, family) for site in self.sites]
        refuse_never_called(base_model, [site.module for site in self.sites])
        refuse_shared(base_model, [site.module for site in self.sites])
        representations = [
            {"component": f"{site.module}.output", "unit": "pos", "intervention": intervention}
            for site, intervention in zip(self.sites, interventions, strict=True)
        ]
        super().__init__(PyveneConfig(representations), base_model)
        for intervention, site in zip(interventions, self.sites, strict=True):
            intervention.to(device_of(base_model.get_submodule(site.module), base_model))
            intervention.requires_grad_(self.bank is None)
        self.planes = planes
        self._bank_maps = BankMaps()
        self._wrappers = Wrappers()

    @property
    def bank(self) -> RoadBank | None:
        """The adapters that rows name; None for a single adapter. Another bank must have adapters of the same family.

        Raises InputError for one whose sites, their order, variant, group_size, positions or base model differ, and while the
        rotations are attached, merged or an engine's, which would stay those of the bank before.
        """
        return self._bank

    @bank.setter
    def bank(self, bank: RoadBank | None) -> None:
        check_argument("RoadModel.bank", bank, (RoadBank, type(None)), "RoadBank({name: adapter})")
        self._check_not_applied("bank")
        if bank is not None:
            difference = difference_of(self._family, bank.template)
            if not difference and bank.template.sites != self.sites:
                difference = "its sites have another order"
            if difference:
                raise InputError(f"this bank does not fit the model: {difference}; make a RoadModel of it")
        self._bank = bank

    @property
    def positions(self) -> Positions:
        """Which tokens calls rotate, unless they say others.

        Raises InputError for invalid positions, and while the rotations are attached, merged or an engine's.
        """
        return self._positions

    @positions.setter
    def positions(self, positions: Positions) -> None:
        checked = checked_positions(positions)
        self._check_not_applied("positions")
        self._positions = checked

    @property
    def planes(self) -> TaskPlanes | None:
        """The planes of tasks; None for a model without tasks.

        Raises InputError for planes of other sites, and while the rotations are attached, merged or an engine's.
        """
        return self._planes

    @planes.setter
    def planes(self, planes: TaskPlanes | None) -> None:
        self._check_planes(planes)
        self._check_not_applied("planes")
        for site, intervention in self.by_site():
            intervention.set_subspaces(None if planes is None else planes.dimensions(site, self.group_size))
        self._planes = planes

    def __str__(self) -> str:
        """The base model's class, the adapter, the number of sites and of parameters, and the positions, in one line."""
        kind = f"{self.variant} adapter" if self.bank is None else f"bank of {len(self.bank)} {self.variant} adapters"
        return (
            f"RoadModel({type(self.model).__name__}, {kind} at {len(self.sites)} sites, "
            f"{self._family.num_parameters} parameters{'' if self.bank is None else ' each'}, positions {shown(self.positions)})"
        )

    __repr__ = __str__

    # ------------------------------------------------------------------ calls

    def forward(
        self,
        base: Mapping[str, Any] | None = None,
        sources: Any = None,
        unit_locations: Any = None,
        source_representations: Any = None,
        subspaces: Any = None,
        labels: Tensor | None = None,
        output_original_output: bool = False,
        return_dict: bool | None = None,
        use_cache: bool | None = None,
        intervention_additional_kwargs: dict[str, Any] | None = None,
        adapter_names: Sequence[str] | None = None,
        positions: Positions | None = None,
        tasks: Sequence[str] | None = None,
        trainable_tasks: Sequence[str] | None = None,
        strengths: Strengths | None = None,
        **unknown: Any,
    ) -> Any:
        """pyvene's `forward` with five more arguments. Returns `(original output or None, rotated output)`.

        Args:
            base: the model's inputs; its attention_mask marks padding.
            adapter_names: for a bank, one name per row, or several road_1 adapters joined by "+", whose rotations are
                multiplied; `"__base__"` leaves a row unrotated.
            positions: the tokens to rotate in this call, instead of those given to the constructor. They are of the prompt: one
                token behind a filled cache, which was generated, is rotated with "all" only.
            tasks: for a model with `planes`, the active tasks of every row: "german", "german+instruct", or `"__base__"`; None
                for all planes.
            trainable_tasks: the tasks of every row whose planes get a gradient; None for all active tasks.
            strengths: for road_1, the power of every row's rotations: 0.5 turns half as far, with the square root of the scales,
                0 leaves the row unrotated. Or one mapping per row, from tasks to the strengths of their planes (1 if left out);
                for a bank, from adapters to theirs.

        Raises:
            InputError: inputs that are not a mapping, an unknown argument, adapter or task, invalid positions or strengths, or
                another number of entries than rows.
        """
        base = checked_inputs(base, unknown)
        check_known(unknown)
        rows = RowArguments(adapter_names, tasks, trainable_tasks, strengths)
        extra = {key: value for key, value in (("labels", labels), ("use_cache", use_cache)) if value is not None}
        check_given_once(base, extra)
        if any(argument is not None for argument in (sources, unit_locations, source_representations, subspaces)):
            self._check_pyvenes_arguments(rows, positions, unit_locations, subspaces)
            if output_original_output:
                check_new_cache(base)
            with self._rows_in_interventions(rows, base):
                return super().forward(
                    base, sources, unit_locations, source_representations, subspaces, labels, output_original_output,
                    return_dict, use_cache, intervention_additional_kwargs,
                )  # fmt: skip
        original = self._unrotated(self.model, base) if output_original_output else None
        with self._rotating(rows, positions, base):
            rotated = self.model(**base, **extra)
        if return_dict:
            return pyvene.models.intervenable_base.IntervenableModelOutput(original_outputs=original, intervened_outputs=rotated)
        return original, rotated

    def generate(
        self,
        base: Mapping[str, Any] | None = None,
        sources: Any = None,
        unit_locations: Any = None,
        source_representations: Any = None,
        intervene_on_prompt: bool = False,
        subspaces: Any = None,
        output_original_output: bool = False,
        intervention_additional_kwargs: dict[str, Any] | None = None,
        adapter_names: Sequence[str] | None = None,
        positions: Positions | None = None,
        tasks: Sequence[str] | None = None,
        strengths: Strengths | None = None,
        **kwargs: Any,
    ) -> Any:
        """pyvene's `generate` with four more arguments. Returns `(original ids or None, ids)`.

        `adapter_names`, `positions`, `tasks` and `strengths` are those of `forward`; further keyword arguments are passed to
        transformers' `generate`. Greedy decoding, sampling and beam search are supported, with and without cache; a beam uses the
        adapter of its row.

        Raises InputError, besides the errors of `forward`, where pyvene's arguments leave open which tokens are rotated, or name
        others than `positions`.
        """
        base = checked_inputs(base, kwargs)
        check_no_inputs(kwargs)
        check_given_once(base, kwargs)
        inputs, rows = {**base, **kwargs}, RowArguments(adapter_names, tasks, strengths=strengths)
        rows.check(given_rows(inputs))
        if any(argument is not None for argument in (sources, unit_locations, source_representations, subspaces)):
            self._check_pyvenes_arguments(rows, positions, unit_locations, subspaces)
            if output_original_output:
                check_new_cache(inputs)
            with self._rows_in_interventions(rows, base):
                check_locations(self.model, inputs, unit_locations, intervene_on_prompt)
                if subspaces is not None:
                    subspaces = copied_subspaces(self.model, inputs, subspaces)
                return super().generate(
                    base, sources, unit_locations, source_representations, intervene_on_prompt, subspaces,
                    output_original_output, intervention_additional_kwargs, **kwargs,
                )  # fmt: skip
        positions = None if positions is None else checked_positions(positions)
        given = self.positions if positions is None else positions
        if intervene_on_prompt and given != "all":
            raise InputError(f"intervene_on_prompt=True asks for every token, positions {shown(given)} for these: leave it out")
        self._check_generation(rows, positions, inputs)
        original = self._unrotated(self.model.generate, inputs) if output_original_output else None
        prompt = prompt_mask(self.model, inputs)
        is_compiled = compiles_generation(self.model, inputs)
        head_inputs = nullcontext() if is_compiled else contiguous_head_inputs(self.model)
        with torch.no_grad(), head_inputs, self._rotating(rows, positions, base, prompt, is_compiled=is_compiled):
            rotated = self.model.generate(**base, **kwargs)
        return original, rotated

    @contextmanager
    def attached(
        self,
        adapter_names: Sequence[str] | None = None,
        positions: Positions | None = None,
        tasks: Sequence[str] | None = None,
        trainable_tasks: Sequence[str] | None = None,
        strengths: Strengths | None = None,
    ) -> Iterator[PreTrainedModel]:
        """The base model with the rotations attached inside the `with` statement, for the calls of every thread.

        The arguments are those of `forward`, for every call of the base model inside it.

        For training with gradient checkpointing, for torch.compile of the base model, and for loops and threads that call a
        transformers model. Calls of this RoadModel inside the `with` statement use its arguments; those of another RoadModel of
        the same base model apply both rotations. Parameters that change inside it take effect at the next call of the base model.

        Raises:
            InputError: something else runs on the same base model in any thread, such as a call or another `attached`; the
                message names both.
        """
        given = {"adapter_names": adapter_names, "positions": positions, "tasks": tasks, "strengths": strengths}
        options = ", ".join(f"{name}={shown(value)}" for name, value in given.items() if value is not None)
        what = f"attached({options}) of {self.variant} at {len(self.sites)} sites"
        with self._rotating(RowArguments(adapter_names, tasks, trainable_tasks, strengths), positions, {}, attached=what):
            yield self.model

    def generate_batch(
        self,
        prompts: Sequence[Prompt],
        adapter_names: Sequence[str] | None = None,
        tasks: Sequence[str] | None = None,
        strengths: Strengths | None = None,
        positions: Positions | None = None,
        max_new_tokens: int | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        generation_config: GenerationConfig | None = None,
        **settings: Any,
    ) -> list[GenerationOutput]:
        """Generate for prompts of any lengths with transformers' continuous batching, as `generate` does for each prompt alone.

        Args:
            prompts: texts, or lists of token ids; a text that begins with a BOS token of its own gets no second one.
            adapter_names, tasks, strengths: one per prompt, as in `forward`.
            positions: "all", or "prompt" for the tokens of the prompts only.
            max_new_tokens: largest number of generated tokens per prompt; that of the generation config by default.
            tokenizer: for prompts that are texts.
            generation_config: transformers' settings of the generation; those of the base model by default.
            settings: single ones of them, such as `do_sample=False`.

        Returns:
            One output per prompt, in their order; its `generated_tokens` are token ids.

        Raises:
            InputError: another number of entries than prompts, an unknown name or setting, or other positions.
        """
        check_prompts(prompts)
        if max_new_tokens is not None:
            check_count("generate_batch", "max_new_tokens", max_new_tokens)
        RowArguments(adapter_names, tasks, strengths=strengths).check(len(prompts), "prompt")
        if not prompts:
            return []
        filled = [[None] * len(prompts) if values is None else values for values in (adapter_names, tasks, strengths)]
        ids = [token_ids(prompt, tokenizer) for prompt in prompts]
        self._check_generates()
        config = complete_config(self.model, generation_config)
        if unknown := config.update(**settings):
            raise InputError(f"'{min(unknown)}' is neither an argument of generate_batch nor a setting of GenerationConfig")
        sizes = max(map(len, ids)), max_new_tokens or config.max_new_tokens or 0, len(ids)
        with self._engine(positions, config, None, sizes) as engine:
            rows = zip(ids, *filled, strict=True)
            requests = [engine.add(each, *adapter, max_new_tokens=max_new_tokens) for each, *adapter in rows]
            return [engine.result(request) for request in requests]

    def continuous_batching(
        self,
        positions: Positions | None = None,
        generation_config: GenerationConfig | None = None,
        engine_config: Any = None,
        sizes: tuple[int, int, int] | None = None,
    ) -> ContinuousBatching:
        """transformers' engine for requests that come and go, inside a `with` statement: see `ContinuousBatching`.

        `sizes`, the longest prompt, most new tokens and number of requests, make the engine's cache as large as they need;
        without them, transformers takes most of the free memory for it. `engine_config` is its `ContinuousBatchingConfig`.
        Settings that `generation_config` leaves out are those of the base model, as in `generate`. Adapters may be added to the
        bank while it runs; other calls of the model are errors until it ends. Raises InputError for positions other than "all"
        and "prompt", and while the rotations are attached or merged or a call of the model runs.
        """
        self._check_generates()
        return self._engine(positions, complete_config(self.model, generation_config), engine_config, sizes)

    def _engine(
        self, positions: Positions | None, config: GenerationConfig, engine_config: Any, sizes: tuple[int, int, int] | None
    ) -> ContinuousBatching:
        if (applied := self._applied()) is not None:
            raise InputError(f"the rotations are {applied}: continuous batching would apply them twice")
        self._check_weights()
        positions = self.positions if positions is None else positions
        return ContinuousBatching(self.model, lambda: self._selection, positions, config, engine_config, sizes)

    def set_trainable(self, what: Literal["both", "angles", "magnitudes"]) -> RoadModel:
        """Make the angles (`theta`), the magnitudes (`alpha`) or both trainable, and freeze the others. Returns the model.

        Raises InputError for anything but "both", "angles" and "magnitudes", and for a bank, whose adapters have the parameters.
        """
        if self.bank is not None:
            raise InputError("the parameters of a model with a bank are those of its adapters: use bank.trainable()")
        if what not in ("both", "angles", "magnitudes"):
            raise InputError(f"{what!r} cannot be made trainable: use both, angles or magnitudes")
        for _, intervention in self.by_site():
            intervention.theta.requires_grad_(what != "magnitudes")
            intervention.alpha.requires_grad_(what != "angles")
        return self

    def can_generate(self) -> bool:
        """For transformers' pipelines, which call a model otherwise: raises InputError that names `attached`."""
        return self._refuse_pipelines()

    @property
    def input_modalities(self) -> Any:
        """The same for pipelines that do not generate."""
        return self._refuse_pipelines()

    def _refuse_pipelines(self) -> NoReturn:
        raise InputError(
            "a pipeline calls a transformers model, which a RoadModel is not: use `with model.attached() as base:` and give it "
            "model=base, in that statement"
        )

    # ------------------------------------------------------------------ the adapter

    @property
    def is_merged(self) -> bool:
        """Whether `merge` has rotated the weights of the base model, and `unmerge` has not restored them."""
        return self._merging.is_merged

    @property
    def adapter(self) -> RoadAdapter:
        """The current angles and scales as a RoadAdapter. Raises InputError for a model with a bank, which has several.

        Positions that are lists are of one batch: the adapter has those of the one that the model was made of, with a warning.
        """
        if self.bank is not None:
            raise InputError("this model uses a bank: take an adapter from it by name, as in model.bank['a']")
        theta, alpha = {}, {}
        for site, intervention in self.by_site():
            theta[site.name] = intervention.theta.detach().cpu().clone()
            alpha[site.name] = intervention.alpha.detach().cpu().clone()
        positions = self.positions if isinstance(self.positions, str) else self._family.positions
        if positions is not self.positions:
            warnings.warn(
                f"positions that are lists are of one batch and not kept: the adapter rotates {positions!r} tokens", stacklevel=2
            )
        return replace(self._family, theta=theta, alpha=alpha, base=BaseModelSignature.of(self.model), positions=positions)

    def by_site(self) -> Iterator[tuple[Site, RoadIntervention]]:
        """Every site with its intervention."""
        return zip(self.sites, self.interventions.values(), strict=True)

    @classmethod
    def from_peft(cls, base_model: PreTrainedModel, source: str | os.PathLike[str] | nn.Module) -> RoadModel:
        """A model with the rotations of a PEFT RoAd folder, or of the active adapter of a PeftModel.

        Other weights that were trained with it, such as a head, are loaded into `base_model`.

        Raises:
            InputError: no RoAd adapter, or one for another model.
        """
        adapter = RoadAdapter(*peft_format.read_rotations(source, base=base_model))
        model = cls(base_model, adapter)
        peft_format.load_modules_to_save(base_model, source)
        return model

    def to_peft(self, folder: str | os.PathLike[str], modules_to_save: Sequence[str] = ()) -> None:
        """Write a folder that `PeftModel.from_pretrained(base_model, folder)` loads, with equal outputs.

        Args:
            modules_to_save: modules that were trained too, such as "classifier".

        Raises:
            InputError: PEFT cannot express positions other than "all", planes of tasks, several adapters, or one of the sites.
        """
        if self.planes is not None:
            raise InputError(
                "tasks on planes cannot be expressed in PEFT; restrict the adapter to the planes of one task and save that"
            )
        if self.bank is not None:
            raise InputError("a bank holds several adapters: save each with its own `to_peft`")
        if not isinstance(self.positions, str):
            raise InputError("positions given as lists cannot be expressed in PEFT: its RoAd rotates every token")
        self.adapter.to_peft(folder, self.model, modules_to_save)

    @classmethod
    def load(cls, folder: str | os.PathLike[str], model: PreTrainedModel, positions: Positions | None = None) -> RoadModel:
        """A model with the interventions of a pyvene folder, for a base model of any architecture.

        Args:
            folder: one that `save` or pyvene's `save` wrote.
            model: the base model, pyvene's name for it.
            positions: the tokens to rotate; by default those that `save` kept, or "all" in a folder of pyvene's own.

        Raises:
            InputError: the folder does not exist, contains interventions other than RoadIntervention, or names components that
                the base model does not have.
        """
        check_argument("RoadModel.load", folder, (str, os.PathLike), "load(folder, model)")
        check_argument("RoadModel.load", model, nn.Module, "a transformers model, such as that of load_model(id)")
        adapter, planes = pyvene_io.read_interventions(folder, model)
        return cls(model, adapter, positions, planes)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write a folder that plain `pyvene.IntervenableModel.load(folder, base_model)` loads, with equal outputs.

        pyvene loads a folder only for the architectures that it knows; `RoadModel.load` loads it for any. Positions are kept for
        it in a file of their own, because pyvene takes them with every call (`unit_locations`); planes of tasks are saved as
        subspaces.

        Raises:
            InputError: the model has a bank, which pyvene cannot express, its positions are lists, or the folder already
                contains interventions.
        """
        pyvene_io.write_interventions(self, folder)

    def merge(self, adapter_name: str | None = None) -> PreTrainedModel:
        """Merge the rotations into the weights, W <- R W and b <- R b (section 3.2), and return the base model.

        The original weights are kept, so that `unmerge` restores them bitwise.

        Args:
            adapter_name: the one of a bank to merge; a bank of one adapter needs none.

        Raises:
            InputError: a site that is not a plain linear layer, tied or quantised weights, positions other than "all",
                rotations that are merged already, an unknown adapter, or no name for a bank of several; rotations that are
                attached to the base model, or a call of it that runs; another RoadModel that has merged since this one was made.
        """
        if self.positions != "all":
            raise InputError(f"positions {self.positions!r} cannot be merged: merged weights rotate every token")
        with opened(self.model, "merge", "merge"):
            if self.is_merged:
                raise InputError("the rotations are already merged; call unmerge first")
            self._check_weights()
            adapter, of_bank = self._one_adapter(adapter_name), None
            if self.bank is not None:
                name = self._selection.only_name() if adapter_name is None else adapter_name
                of_bank = name, self.bank.revision(name)
            self._merging.merge(self.model, adapter, of_bank)
        return self.model

    def unmerge(self) -> None:
        """Restore the weights from before `merge`; does nothing if the rotations are not merged.

        Raises InputError where another RoadModel has merged since, and while rotations are attached to the base model or a call
        of it runs, also one that was entered with merged weights: it would go on without rotations.
        """
        if not self.is_merged:
            return
        with opened(self.model, "unmerge", "merge"):
            self._merging.unmerge()

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As that of PyveneModel; raises InputError also for merged rotations, which would stay as they are."""
        if self.is_merged:
            raise InputError("the rotations are merged, and other angles would not change the weights: call unmerge first")
        return super().load_state_dict(state_dict, strict, assign)

    # ------------------------------------------------------------------ private

    @property
    def _selection(self) -> RowSelection:
        """Built for each call: interventions, bank and planes may be replaced, and a replica has its own parameters."""
        rotations = Rotations(tuple(self.interventions.values()), self.sites, self.variant, self.group_size)
        return RowSelection(rotations, self.bank, self._bank_maps, self.planes)

    @contextmanager
    def _rotating(
        self,
        rows: RowArguments,
        positions: Positions | None,
        base: Mapping[str, Any],
        prompt: Tensor | None = None,
        attached: str | None = None,
        is_compiled: bool = False,
    ) -> Iterator[None]:
        """Rotate one call with the inputs `base`, or those inside `attached` under this name.

        Rotations that `attached` or `merge` have already applied stay as they are.
        """
        what = attached or ("a compiled generate" if is_compiled else "a call")
        applied = self._applied(attached is not None)
        kind: Kind = "call" if attached is None else "merged" if applied else "attached"
        with opened(self.model, what, kind, self, rotates=applied is None, compiles=is_compiled) as context:
            self._check_weights()
            if self._applied(attached is not None) != applied:  # the context is open, and keeps them as they are
                raise InputError(f"{context.name} began while the rotations were attached, merged or taken off in another thread")
            if applied:
                _check_unchanged(rows, positions, applied)
                with self._as_applied() if attached is None else nullcontext():
                    yield
                return
            positions = self.positions if positions is None else checked_positions(positions)
            if positions != "all" and self.model.config.is_encoder_decoder:
                raise InputError("an encoder-decoder model has two sequences: only positions='all' is supported there")
            coefficients = self._selection.coefficients(rows, base)
            self._check_bank()
            if not attached and torch.is_grad_enabled() and checkpoints_gradients(self.model):
                raise InputError(RECOMPUTED)
            with RotationContext(self.model, context, coefficients, rows.rows, positions, prompt, self._wrappers):
                yield

    @contextmanager
    def _as_applied(self) -> Iterator[None]:
        """A call that finds its rotations attached or merged. Raises InputError behind it if they were detached meanwhile."""
        shared = shared_context(self.model)
        with CallScope(), nullcontext() if shared is None or shared.owner is not self else shared.own_call():
            yield
        if shared is not None and shared_context(self.model) is not shared:
            caller = threading.current_thread().name
            raise InputError(f"a call in {caller} went on after the end of {shared.name}, which took off its rotations")

    def _applied(self, attaching: bool = False) -> str | None:
        """How the base model is rotated outside this model's own calls: "merged" or "attached"; None if it is not.

        Args:
            attaching: whether an `attached` statement asks, which is not inside itself.
        """
        if self.is_merged:
            return "merged"
        context = shared_context(self.model)
        return "attached" if not attaching and context is not None and context.owner is self else None

    @contextmanager
    def _rows_in_interventions(self, rows: RowArguments, base: Mapping[str, Any]) -> Iterator[None]:
        """For pyvene's own loop: set the maps of the rows in every intervention for the duration of the `with` statement.

        Its hooks act on the calls of every thread. Raises InputError if another context is open on the base model, and for merged
        rotations, which it would apply twice.
        """
        with opened(self.model, "a call through pyvene's loop", "alone"):
            if self.is_merged:
                raise InputError("the rotations are merged, and pyvene's loop would apply them again: call unmerge first")
            if torch.is_grad_enabled() and checkpoints_gradients(self.model):
                raise InputError(
                    "gradient checkpointing computes the forward pass again in backward, when pyvene's loop has removed its "
                    "hooks: call model.model.gradient_checkpointing_disable()"
                )
            self._check_weights()
            self.check_hooks()
            coefficients = self._selection.coefficients(rows, base)
            self._check_bank()
            by_row = self.bank is not None or rows.tasks is not None or rows.strengths is not None
            maps = coefficients.maps() if by_row else None
            try:
                for index, (_, intervention) in enumerate(self.by_site()):
                    intervention.row_maps = None if maps is None else maps[index]
                yield
            finally:
                for _, intervention in self.by_site():
                    intervention.row_maps = None

    def _check_weights(self) -> None:
        """Raise InputError if the weights are not as this model left them, the bank has got adapters of another model, or what is
        merged was replaced or has changed."""
        self._check_bank()
        own = self.by_site() if self.is_merged and self.bank is None else ()
        parameters = {site.name: (intervention.theta, intervention.alpha) for site, intervention in own}
        self._merging.check(self.model, self.bank, parameters)

    def _check_bank(self) -> None:
        """Raise InputError for adapters of another model, of which a bank may know only once it has read them."""
        if self.bank is not None:
            check_made_for(self.model, self.bank.template, "the adapters of the bank were made")

    def _unrotated(self, call: Callable[..., Any], inputs: Mapping[str, Any]) -> Any:
        """The output of the base model without rotations. Raises InputError if it is rotated, or would share a cache."""
        compiles = compiles_generation(self.model, inputs)
        with opened(self.model, "a call", "call", self, compiles=compiles):
            if self.is_merged or shared_context(self.model) is not None:
                raise InputError(f"the rotations are {self._applied() or 'attached'}: there is no original output without them")
            check_new_cache(inputs)
            with CallScope():
                return call(**inputs)

    def _check_pyvenes_arguments(
        self, rows: RowArguments, positions: Positions | None, unit_locations: Any, subspaces: Any
    ) -> None:
        """Raise InputError for subspaces of another form than pyvene's, for `positions`, which its loop does not know, and for
        what is given by row or token where the states have no such axes."""
        by_row = unit_locations is not None or subspaces is not None or rows.rows > 1
        what = "unit_locations, subspaces or an adapter, task or strength per row"
        if by_row and (refused := why_rows_are_refused(self.model, self.sites, what)) is not None:
            raise InputError(refused)
        if subspaces is not None:
            check_subspaces(subspaces, len(self.interventions))
        if positions is not None or (self.positions != "all" and unit_locations is None):
            given = self.positions if positions is None else positions
            raise InputError(
                f"positions {shown(given)} have no effect in a call with sources, unit_locations or subspaces: give the tokens "
                "as pyvene's unit_locations"
            )

    def _check_planes(self, planes: Any) -> None:
        """Raise InputError for something else than planes of the adapter's sites."""
        check_argument("RoadModel(planes=...)", planes, (TaskPlanes, type(None)), "TaskPlanes.split(tasks, adapter.sites)")
        if planes is not None and planes.sites != self.sites:
            raise InputError("the planes were split over other sites than those of the adapter")

    def _check_not_applied(self, what: str) -> None:
        """Raise InputError while rotations are attached, merged or those of an engine, which would stay as they are."""
        context = shared_context(self.model)
        of_engine = f"those of {context.name}" if context is not None and context.kind == "alone" else None
        if applied := self._applied() or of_engine:
            raise InputError(f"the rotations are {applied}, and would stay as they are: set the {what} before or after that")

    def _check_generates(self) -> None:
        """Raise InputError for a model that generates no text."""
        if not hasattr(self.model, "generate"):
            raise InputError(f"{type(self.model).__name__} generates no text: load the model with load_model(id, 'causal-lm')")

    def _check_generation(self, rows: RowArguments, positions: Positions | None, inputs: Mapping[str, Any]) -> None:
        """Raise InputError for a model that generates no text, and for inputs of `generate` whose rotations are not known."""
        self._check_generates()
        if self._applied() != "attached":  # else the attached model's `generate` checks
            by_row = any(given is not None and len(given) > 1 for given in rows)
            given = self.positions if positions is None else positions
            check_generation(self.model, inputs, by_row, given)
            check_prompt_and_cache(self.model, given, inputs)
            if by_row:  # generate may call the model of the images by itself
                check_media(self.model, site_outside_text(self.model, self.sites), inputs)

    def _one_adapter(self, name: str | None) -> RoadAdapter:
        if self.bank is None:
            if name is not None:
                raise InputError("adapter_name needs a model with a RoadBank; this one holds a single adapter")
            return self.adapter
        adapter = self.bank[name if name is not None else self._selection.only_name()]
        self._check_bank()
        return adapter


def _check_unchanged(rows: RowArguments, positions: Positions | None, applied: str) -> None:
    """Raise InputError for arguments of a call whose rotations are applied already."""
    if any(argument is not None for argument in (positions, *rows)):
        raise InputError(f"adapter_names, positions, tasks and strengths cannot change while the rotations are {applied}")
