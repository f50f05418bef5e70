"""RotationContext: apply rotations to a model, for one call or for the duration of a `with` statement."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cached_property, partial, wraps
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from road_interp.errors import InputError
from road_interp.models.attached_guard import guarded
from road_interp.models.coefficients import Coefficients
from road_interp.models.compatibility import check_rotated_once
from road_interp.models.forward_wrapper import (
    CallScope,
    OutputTransform,
    Wrappers,
    is_backward,
    overwritable,
    wrap_forward,
)
from road_interp.models.generate_arguments import arguments_of_generate, check_generation, compiles_generation, runs_in_generate
from road_interp.models.gradient_checkpointing import RECOMPUTED, REENTRANT, checkpoints_gradients, is_recomputed, is_reentrant
from road_interp.models.head_inputs import contiguous_head_inputs
from road_interp.models.intervention import apply_to_slice
from road_interp.models.model_families import CHANGES_OUTPUTS, STREAMS_FIRST, has_choices, model_types
from road_interp.models.open_contexts import OpenContext
from road_interp.models.passes import InThread, Pass
from road_interp.models.read_weights import check_reads_no_weight, read_weights_watched
from road_interp.models.row_maps import RowMaps, check_rows, checked_batch
from road_interp.models.row_sites import (
    OF_OTHER_STATES,
    check_dense_head,
    check_media,
    check_own_tokens,
    has_tokens_first,
    projects_distances,
    site_outside_text,
    tokens_first,
    why_rows_are_refused,
)
from road_interp.models.site_modules import SiteModules
from road_interp.models.token_selection import (
    EVERY_TOKEN,
    STATES,
    CheckpointedSelections,
    Selection,
    check_prompt_and_cache,
    given_rows,
    named_inputs,
    prompt_mask,
    row_input,
    select_tokens,
)
from road_interp.rotation import plane_maps
from road_interp.rotation.inplace import COMPLEX, has_complex_form, rotate_in_place
from road_interp.rotation.plane_maps import Entries, PlaneMaps
from road_interp.sites.module_tree import hidden_of, with_hidden
from road_interp.sites.positions import Positions
from road_interp.sites.site import Site, on_slice


class RotationContext:
    """Wraps the forward of every rotated module, and computes the token mask of each forward pass in a hook on the model.

    Attached rotations are those of the calls of every thread. Those of a call are for the thread or asyncio task that entered it
    only, until a call inside it begins, which has its own; compiled code cannot tell threads apart.

    Args:
        model: the transformers model.
        context: as which the rotations are open on the model.
        coefficients: the source of the plane maps. They are read at the start of each pass and stay fixed during the pass.
        rows: the number of rows that have maps of their own; 1 if all have the same.
        positions: the tokens to rotate.
        prompt: attention mask `(batch, length)` of the prompt, for generation; without it, every pass that starts with an empty
            cache is treated as a prompt.
        wrappers: of the model's sites, reused from call to call.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        context: OpenContext,
        coefficients: Coefficients,
        rows: int,
        positions: Positions,
        prompt: Tensor | None,
        wrappers: Wrappers,
    ) -> None:
        self._model, self._context, self._coefficients, self._wrappers = model, context, coefficients, wrappers
        self._rows, self._positions, self._prompt = rows, positions, prompt
        self._undo = ExitStack()
        self._rotated_any = False
        self._is_attached = context.kind == "attached"
        self._scope = CallScope(shared=self._is_attached)
        self._modules: SiteModules | None = None  # while it is attached
        self._maps: RowMaps | None = None  # the maps of the last pass in any thread
        self._last = EVERY_TOKEN  # the selection of the last pass in any thread
        self._trained: RowMaps | None = None  # those of the last pass with gradients, which a backward pass may compute again
        self._open_passes = 0  # in any thread: compiled code cannot tell threads apart
        self._generating: set[object] = set()  # an entry for every call of `generate` that runs, in any thread
        self._thread = InThread()
        self._checkpointed = CheckpointedSelections(positions)
        types = model_types(model)
        self._keeps_outputs = CHANGES_OUTPUTS.isdisjoint(types)
        self._has_streams = not STREAMS_FIRST.isdisjoint(types)

    def __enter__(self) -> RotationContext:
        self._refused = why_rows_are_refused(self._model, self._coefficients.sites) if self._rows > 1 else None
        with ExitStack() as undo:  # undoes partial registration after an error
            undo.callback(self._model.register_forward_hook(self._end_pass, always_call=True).remove)
            undo.callback(self._model.register_forward_pre_hook(self._begin_pass, prepend=True).remove)
            self._hook = self._model.register_forward_pre_hook(self._before_model, with_kwargs=True)
            undo.callback(self._hook.remove)
            if self._is_attached:
                undo.enter_context(guarded(self._model, self._context.name))
                if hasattr(self._model, "generate"):
                    undo.callback(self._wrap_generate())
            if self._model.config.is_encoder_decoder:  # generation calls the encoder separately
                encoder = self._model.get_encoder()
                undo.callback(encoder.register_forward_pre_hook(self._before_encoder, with_kwargs=True).remove)
                undo.callback(encoder.register_forward_hook(self._after_encoder, always_call=True).remove)
            for index, site in enumerate(self._coefficients.sites):
                module = self._model.get_submodule(site.module)
                check_rotated_once(site.module, module)
                make = partial(self._wrappers.of, site.module)
                undo.callback(wrap_forward(module, self._transform(index, site, module), self._scope, make))
            modules = {site.module: self._model.get_submodule(site.module) for site in self._coefficients.sites}
            if self._is_attached:
                self._modules = undo.enter_context(SiteModules(self._model, modules, self._context.name))
            if self._is_attached or torch.is_grad_enabled() or any(module.training for module in modules.values()):
                undo.enter_context(read_weights_watched(self._model, self._coefficients.sites, lambda: self.is_active))
            undo.enter_context(self._scope)
            self._views = self._read_views()
            self._undo = undo.pop_all()
        if self._is_attached:
            self._context.maps, self._context.own_call = self._coefficients.maps, self._own_call
            self._context.by_row = self._rows > 1 or not isinstance(self._positions, str)
            self._context.is_ready = True
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        self._context.is_ready = not self._is_attached
        replaced = self._modules.replaced() if kind is None and self._modules is not None else None
        self._undo.close()
        if replaced is not None:
            warnings.warn(f"{replaced}; what was called since then was not rotated there", stacklevel=5)
        if kind is None and self._generating:
            raise InputError(_went_on("generate of another thread", self._context.name))
        is_known = self._is_attached or self._rotated_any or self._context.compiles
        if kind is None and not is_known and not _has_compiled_code(self._model):
            first = self._coefficients.sites[0].module
            warnings.warn(f"the model called no site, as '{first}', in this call: nothing was rotated", stacklevel=5)

    def __deepcopy__(self, memo: dict[int, Any]) -> RotationContext:
        """A copy of the model would hold the hooks of this context without an end: raises InputError."""
        raise InputError(f"a model cannot be copied during {self._context.name}: copy it after its end")

    def __reduce__(self) -> Any:
        """A file of the model would hold the hooks of this context: raises InputError."""
        raise InputError(f"a model cannot be pickled during {self._context.name}: save it after its end")

    @contextmanager
    def _own_call(self) -> Iterator[None]:
        """A call of the RoadModel inside `attached`, also inside another call: it has rows and a prompt of its own."""
        state = self._thread.__dict__
        outer = {**state}
        state.clear()
        try:
            yield
        finally:
            state.clear()
            state.update(outer)

    @property
    def is_active(self) -> bool:
        """Whether calls of the calling context are rotated."""
        return self._scope.is_active

    def _row_maps(self) -> RowMaps:
        """The maps of a pass that begins: fixed in a call, else the last ones if the coefficients have not made others."""
        if not self._is_attached and self._maps is not None:
            return self._maps
        maps, last = self._coefficients.maps(), self._maps
        if last is None or maps is not last.maps:
            last = self._maps = RowMaps(maps)
        return last

    def _read_views(self) -> tuple[int, list[tuple[Tensor, Tensor | None]]] | None:
        """The version of the maps, and the real numbers of each site's, from which compiled code reads them."""
        if self._coefficients.version is None:
            return None
        version, maps = self._coefficients.version(), self._coefficients.maps()
        return version, [(torch.view_as_real(a), None if b is None else torch.view_as_real(b)) for a, b in maps]

    def _entries(self, index: int) -> Entries:
        """The real entries of one site under torch.compile, which compiles again if the maps change inside this context."""
        if self._views is None or self._coefficients.version is None or self._views[0] != self._coefficients.version():
            return self._coefficients.entries(index)
        return plane_maps.entries_from_views(*self._views[1][index])

    def _before_encoder(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> None:
        if not torch.compiler.is_compiling() and self.is_active:
            self._read_inputs(self._thread.current.depth + 1, named_inputs(module, args, kwargs or {}))

    def _after_encoder(self, *inputs_and_output: Any) -> None:
        if not torch.compiler.is_compiling() and self.is_active:
            current = self._thread.current
            self._thread.current = current._replace(depth=current.depth - 1)

    def _begin_pass(self, *module_and_inputs: Any) -> None:
        """Before all other hooks, which may raise: a pass inside a pass has tokens of its own."""
        self._open_passes += 1
        if not torch.compiler.is_compiling() and self.is_active:
            self._thread.outer = (*self._thread.outer, self._thread.current)

    def _end_pass(self, *inputs_and_output: Any) -> None:
        self._open_passes = max(0, self._open_passes - 1)  # 0 if another thread attached during the pass
        if not torch.compiler.is_compiling() and self.is_active:
            *outer, self._thread.current = self._thread.outer or (Pass(),)  # none if another thread attached during the pass
            self._thread.outer = tuple(outer)

    def _before_model(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> None:
        """torch passes no keyword arguments to a hook that another thread removes while the call begins."""
        inputs = named_inputs(module, args, kwargs or {})
        if self._modules is not None:
            self._modules.check()
        if torch.compiler.is_compiling():
            self._check_sites_by_row(inputs)
            if self._is_attached and not self._thread.generates:
                check_rows(self._rows, given_rows(inputs))
        elif not self.is_active:
            return
        else:
            self._read_inputs(1, inputs)
        if self._positions != "all":
            if kwargs is None:
                raise InputError("the rotations were detached by another thread while a call of the model began")
            if has_tokens_first(self._model):
                raise InputError(tokens_first(self._model, f"positions {self._positions!r}"))
            if len(inputs) < len(args) + len(kwargs):
                kind = type(module).__name__
                raise InputError(f"positions {self._positions!r}: {kind} does not name its inputs: give them by name")
            prompt = self._thread.prompt if self._prompt is None else self._prompt
            self._check_part(inputs)
            selection = self._last = select_tokens(self._model, self._positions, prompt, inputs)
            self._thread.current = self._thread.current._replace(selection=selection)
            if torch.is_grad_enabled() and checkpoints_gradients(self._model):
                self._checkpointed.add(selection)

    def _check_part(self, inputs: Mapping[str, Any]) -> None:
        """Raise InputError for a part of a model in a `generate` without a cache: each pass would count as a prompt."""
        is_part = self._is_attached and not hasattr(self._model, "generate") and not torch.compiler.is_compiling()
        has_states = any(isinstance(value, Cache) or (name in STATES and value is not None) for name, value in inputs.items())
        if is_part and not has_states and runs_in_generate():
            raise InputError(
                f"positions {self._positions!r}: {type(self._model).__name__} is generated with and has no cache, so that its "
                "prompt is not known: generate with use_cache=True, or make the RoadModel of the model that generates"
            )

    def _check_place(self, site: Site, module: nn.Module) -> None:
        """Raise InputError for the module of a site that is called by itself and is now inside another one, as a LoRA's is."""
        if self._modules is not None and self._model.get_submodule(site.module) is not module:
            self._modules.check()

    def _check_differentiable(self, index: int) -> None:
        """Raise InputError where a pass that has gradients computes a site without one, as a reentrant checkpoint does."""
        maps = self._thread.current.maps
        trained = maps is not None and maps.maps[index].a.requires_grad
        if (trained or not self._is_attached) and is_reentrant():
            raise InputError(REENTRANT if trained else RECOMPUTED)

    def _read_inputs(self, depth: int, inputs: Mapping[str, Any]) -> None:
        check_reads_no_weight(self._model, self._coefficients.sites, inputs)
        if self._positions != "all":
            check_own_tokens(self._outside_text, inputs)
        maps = self._row_maps()
        self._thread.current = self._thread.current._replace(depth=depth, maps=maps, trains=torch.is_grad_enabled())
        self._trained = maps if torch.is_grad_enabled() else self._trained
        if maps.by_row:
            self._check_sites_by_row(inputs)
            check_dense_head(self._model, self._coefficients.sites, inputs)
            self._thread.current = self._thread.current._replace(shape=_rows_and_tokens(self._model, inputs))
            if self._is_attached and not self._thread.generates:  # whose passes may have several beams per row
                check_rows(maps.rows, given_rows(inputs))

    def _check_sites_by_row(self, inputs: Mapping[str, Any]) -> None:
        """Raise InputError for several rows and sites whose outputs do not have these on their first axis."""
        if self._refused is not None:
            raise InputError(self._refused)
        if self._rows > 1 and not torch.compiler.is_compiling():
            check_media(self._model, self._outside_text, inputs)

    @cached_property
    def _outside_text(self) -> str | None:
        return site_outside_text(self._model, self._coefficients.sites)

    def _wrap_generate(self) -> Callable[[], None]:
        """Keep the mask of the prompts during every `generate` of the attached model. Returns a function that undoes it."""
        model: Any = self._model
        replaced, original, ended = model.__dict__.get("generate"), model.generate, False

        @wraps(original)
        def generate(*args: Any, **kwargs: Any) -> Any:
            if ended:
                return original(*args, **kwargs)
            inputs = arguments_of_generate(original, model.main_input_name, args, kwargs)
            rows = self._row_maps().rows
            check_rows(rows, given_rows(inputs))
            by_row = rows > 1
            check_generation(model, inputs, by_row, self._positions)
            check_prompt_and_cache(model, self._positions, inputs)
            if by_row:  # generate may call the model of the images by itself
                check_media(model, self._outside_text, inputs)
            head_inputs = nullcontext() if compiles_generation(model, inputs) else contiguous_head_inputs(model)
            outer = self._thread.generates, self._thread.prompt  # of a generate that calls this one
            self._thread.generates, self._thread.prompt = True, None if self._positions == "all" else prompt_mask(model, inputs)
            self._generating.add(call := object())
            try:
                with head_inputs:
                    generated = original(*args, **kwargs)
            finally:
                self._generating.remove(call)
                self._thread.generates, self._thread.prompt = outer
            if ended:
                raise InputError(_went_on(f"generate in {threading.current_thread().name}", self._context.name))
            return generated

        def restore() -> None:
            nonlocal ended
            ended = True
            if model.__dict__.get("generate") is generate:
                model.__dict__.pop("generate")
                if replaced is not None:
                    model.generate = replaced

        model.generate = generate
        return restore

    def _is_outside(self) -> bool:
        """Whether a submodule was called directly, and not by the model or by a backward pass."""
        return self._thread.current.depth == 0 and not is_backward()

    def _tokens(self, site: Site, tracing: bool) -> Selection:
        """The tokens that the current pass rotates. The backward pass may run in a thread of its own, without a forward pass."""
        if self._open_passes == 0 if tracing else self._is_outside():
            raise InputError(self._why_outside(site))
        if tracing:
            return self._last
        recomputed = self._checkpointed.in_backward() if is_backward() else None
        selection = recomputed or self._thread.current.selection or self._last
        if torch.is_grad_enabled() and not is_backward() and is_recomputed(self._model):  # by a checkpoint of the caller's
            self._checkpointed.add(selection)
        return selection

    def _why_outside(self, site: Site) -> str:
        kind = type(self._model).__name__
        if self._hook.id not in self._model._forward_pre_hooks:
            return (
                f"positions {self._positions!r} are found by a hook of {self._context.name}, which was removed from {kind}: "
                "pyvene's IntervenableModel removes all hooks of its model. Only positions='all' works beside it; or put a "
                "RoadIntervention into its config"
            )
        found = f"positions {self._positions!r} are found in the inputs of {kind}"
        if self._is_attached:
            return f"site '{site.name}' is called by itself: {found}; call that"
        inside = "peft_model.get_base_model()" if kind.startswith("Peft") else "the part that is called"
        return (
            f"site '{site.name}': {found}, whose generate calls its parts by themselves: use positions='all', or make the "
            f"RoadModel of {inside}"
        )

    def _transform(self, index: int, site: Site, module: nn.Module) -> OutputTransform:
        owned = overwritable(module)
        group_size, whole = self._coefficients.group_size, site.output_slice is None
        always = self._positions == "all"

        def rotate(output: Any, tracing: bool) -> Any:
            if not self._is_attached:
                self._rotated_any = True
            if not tracing and not torch.is_grad_enabled() and self._thread.current.trains:
                self._check_differentiable(index)
            if not tracing and not self._is_attached and torch.is_grad_enabled() and is_recomputed(self._model):
                raise InputError(RECOMPUTED)
            if not tracing and self._is_attached and self._is_outside():
                self._check_place(site, module)
            selection = EVERY_TOKEN if always else self._tokens(site, tracing)
            if not selection.rotates:
                return output
            if owned and whole and selection.mask is None and not tracing and not torch.is_grad_enabled():
                _check_states(output, site)
                # Shortcut with the same result: at one token per row, the calls of the general path take longer than the product.
                maps = self._maps_for(output, site).for_batch(index, output, site)
                if COMPLEX.get(output.dtype) is maps.a.dtype and has_complex_form(maps, output, group_size):
                    output.view(maps.a.dtype).mul_(maps.a)
                    return output
            is_new = owned and not isinstance(output, tuple)
            return with_hidden(output, self._rotated(index, site, hidden_of(output), is_new, tracing, selection.mask))

        return rotate

    def _rotated(
        self, index: int, site: Site, hidden: Tensor, owned: bool, tracing: bool, selected: Bool[Tensor, "batch length"] | None
    ) -> Tensor:
        _check_states(hidden, site)
        group_size = self._coefficients.group_size
        if tracing:
            if self._rows > 1 and self._has_streams and hidden.ndim > 3:
                _check_first_axis(hidden, site, self._rows, 0)
            if self._rows > 1 and hidden.ndim > 2 and self._is_attached and self._open_passes == 0:
                check_rows(self._rows, hidden.shape[0])
            entries = self._entries(index)
            entries = entries if entries.d0.ndim == 1 else entries.repeat_rows(checked_batch(len(entries.d0), hidden, site))
            rotated = _apply_entries(entries, hidden, group_size, site)
        else:
            row_maps = self._maps_for(hidden, site)
            maps = row_maps.for_batch(index, hidden, site)
            # The form first: maps that vmap has batched have no single smallest scale.
            if self._has_inplace_form(maps, hidden, site) and (
                not torch.is_grad_enabled() or (row_maps.invertible and self._keeps_outputs)
            ):
                overwrite = owned and selected is None and not (torch.is_grad_enabled() and hidden._is_view())
                rotated = rotate_in_place(hidden, maps.a, overwrite)
            else:
                rotated = apply_to_slice(maps, hidden, group_size, site.output_slice)
        return rotated if selected is None else self._only_at(selected.to(hidden.device), rotated, hidden, site)

    def _only_at(self, mask: Bool[Tensor, "batch length"], rotated: Tensor, hidden: Tensor, site: Site) -> Tensor:
        """The rotated states at the tokens of a mask, the others as they were. Raises InputError for an output without tokens."""
        if projects_distances(self._model, site):
            raise InputError(
                f"site '{site.name}': its module computes embeddings of distances, too, which are no tokens; only "
                "positions='all' works there"
            )
        if OF_OTHER_STATES.search(site.module):
            raise InputError(
                f"site '{site.name}': its tokens are those of another sequence, which cross-attention reads; only "
                "positions='all' works there"
            )
        if hidden.ndim != 3 or hidden.shape[:2] != mask.shape:
            raise InputError(
                f"site '{site.name}': its output of shape {tuple(hidden.shape)} has no {mask.shape[1]} token "
                "positions to choose from; only positions='all' works there"
            )
        return torch.where(mask.unsqueeze(-1), rotated, hidden)

    def _has_inplace_form(self, maps: PlaneMaps, hidden: Tensor, site: Site) -> bool:
        return site.output_slice is None and has_complex_form(maps, hidden, self._coefficients.group_size)

    def _maps_for(self, hidden: Tensor, site: Site) -> RowMaps:
        """The maps as read at the start of the pass, or now if a submodule of the model is called directly.

        A backward pass, which may run in a thread of its own, has those of the last pass with gradients.
        """
        current = self._thread.current
        if current.depth and current.maps is not None:
            maps = current.maps
        else:
            last = self._trained or self._maps
            maps = last if is_backward() and last is not None else self._row_maps()
        if self._rows > 1 and self._is_outside():
            self._check_sites_by_row({})
            # With two axes, rows and tokens may be joined; generate may have several beams per row.
            if hidden.ndim > 2 and self._is_attached and not self._thread.generates:
                check_rows(maps.rows, hidden.shape[0])
        if maps.by_row and current.shape is not None:
            behind = self._has_streams and hidden.ndim > 3
            if behind or hidden.shape[0] != current.shape[0]:
                _check_first_axis(hidden, site, *current.shape)
        return maps


def _went_on(call: str, context: str) -> str:
    return f"{call} went on after the end of {context}, which took off its rotations: wait for it inside the `with` statement"


def _rows_and_tokens(model: nn.Module, inputs: Mapping[str, Any]) -> tuple[int, int] | None:
    """The numbers of rows, choices counted as rows, and of tokens in the inputs of a model; None if no known input is given.

    Models of speech have several codes per token, on the axis where others have the tokens of a choice.
    """
    given = row_input(inputs)
    if not isinstance(given, Tensor) or given.ndim < 2:
        return None
    if given.ndim == 3 and has_choices(model):
        return given.shape[0] * given.shape[1], given.shape[2]
    return given.shape[0], given.shape[1]


def _has_compiled_code(model: nn.Module) -> bool:
    """Whether the model, or a part of it, may run without the code of its modules."""
    return any(
        module._compiled_call_impl is not None or hasattr(module.forward, "_torchdynamo_orig_callable")
        for module in model.modules()
    )


def _check_states(hidden: Any, site: Site) -> None:
    """Raise InputError for a site's output that is no tensor, or of another width than the adapter was made for."""
    if not isinstance(hidden, Tensor):
        raise InputError(f"site '{site.name}': its module returns {type(hidden).__name__}, not states; select blocks or linears")
    if hidden.shape[-1] != site.module_width:
        raise InputError(
            f"the adapter was made for another model: site '{site.name}' has states of width {hidden.shape[-1]} here, not "
            f"{site.module_width}"
        )


def _check_first_axis(hidden: Tensor, site: Site, rows: int, tokens: int) -> None:
    """Raise InputError for a site's output whose rows are on the second axis; rows and tokens may be joined on the first."""
    is_joined = hidden.ndim == 2 and hidden.shape[0] == rows * tokens
    if not is_joined and (hidden.ndim == 2 or hidden.shape[1] == rows):
        raise InputError(
            f"site '{site.name}': its output of shape {tuple(hidden.shape)} does not begin with the {rows} rows of the batch; "
            "only one adapter for all rows works there"
        )


def _apply_entries(entries: Entries, hidden: Tensor, group_size: int, site: Site) -> Tensor:
    return on_slice(hidden, site.output_slice, lambda selected: plane_maps.apply_entries(entries, selected, group_size))
