"""ContinuousBatching: requests that come and go in transformers' engine, each with its own adapter, tasks and strength.

The engine runs the model in a thread of its own, on the tokens of all requests joined into one row. Every token's factors are
gathered from one table, which holds each distinct combination of adapter, tasks and strength once.
"""

from __future__ import annotations

import copy
import math
import threading
from collections import defaultdict, deque
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from road_interp.adapters.bank import BASE
from road_interp.errors import InputError
from road_interp.models.forward_wrapper import CallScope, OutputTransform, wrap_forward
from road_interp.models.intervention import apply_to_slice
from road_interp.models.rotation_context import opened, overwritable
from road_interp.models.row_selection import RowSelection
from road_interp.rotation.inplace import COMPLEX, rotate_in_place
from road_interp.rotation.plane_maps import PlaneMaps
from road_interp.sites.module_tree import hidden_of, with_hidden
from road_interp.sites.site import Site

if TYPE_CHECKING:
    from transformers.generation.continuous_batching.requests import GenerationOutput

OLDEST = "5.8"  # the first release of transformers whose engine takes the expected sizes of the requests
POSITIONS = ("all", "prompt")
# Blocks of the cache are shared by prompts with equal beginnings, whose states differ between adapters; and what is captured in a
# CUDA graph, or prepared while the last pass still runs, does not look up the requests of its pass.
ENGINE = {"allow_block_sharing": False, "use_cuda_graph": False, "use_async_batching": False}
MOST_BLOCKS = 1024  # of a cache that is made for the sizes of its requests
MOST_TOKENS = 2048  # per pass of such an engine
Prompt = str | Sequence[int]


class Wanted(NamedTuple):
    """What a request asks for.

    Attributes:
        adapter_name: name in the bank, or None for a model with a single adapter.
        tasks: active tasks, such as "label+closing"; None for all planes.
        strength: one number, or numbers by task; None for the adapter as it is.
    """

    adapter_name: str | None = None
    tasks: str | None = None
    strength: float | Mapping[str, float] | None = None


class FactorTable:
    """The plane maps of every distinct request, one row each: row 0 is the identity.

    Its tensors, one or two per site, stay the same until they are full.

    Args:
        selection: the model's adapters.
        capacity: rows of the first tensors; it is doubled when they are full.
    """

    def __init__(self, selection: RowSelection, capacity: int = 64) -> None:
        self._selection = selection
        self._rows: dict[Hashable, int] = {}
        self._used = 1
        self._maps = [self._empty(site_maps, capacity) for site_maps in selection.rotations.coefficients().maps()]

    def row(self, wanted: Wanted) -> int:
        """The row of a request's maps, computed at the first request of its kind. Raises InputError for an unknown name."""
        if wanted.adapter_name == BASE:
            return 0
        kind = self._kind(wanted)
        if kind not in self._rows or (self._may_change and self._has_changed(self._rows[kind], wanted)):
            self._write(self._used, wanted)
            self._rows[kind] = self._used
            self._used += 1
        return self._rows[kind]

    def of(self, site: int, rows: Tensor, axes: int) -> PlaneMaps:
        """The maps of one site for states with that many axes, the last but one of which has one entry of `rows` per token."""
        a, b = (None if values is None else values[rows].view(*[1] * (axes - 2), len(rows), -1) for values in self._maps[site])
        assert a is not None
        return PlaneMaps(a, b)

    def _kind(self, wanted: Wanted) -> Hashable:
        strength = wanted.strength
        revision = None if self._selection.bank is None else self._selection.bank.revision(self._name(wanted))
        return (*wanted[:2], revision, tuple(sorted(strength.items())) if isinstance(strength, Mapping) else strength)

    def _name(self, wanted: Wanted) -> str:
        return self._selection.only_name() if wanted.adapter_name is None else wanted.adapter_name

    @property
    def _may_change(self) -> bool:
        """Whether an optimizer may have changed the parameters since their row was written."""
        return self._selection.bank is None or self._selection.bank.is_trainable

    @torch.no_grad()
    def _computed(self, wanted: Wanted) -> list[PlaneMaps]:
        """The maps of a request, one row per site."""
        name = None if wanted.adapter_name is None else [wanted.adapter_name]
        tasks = None if wanted.tasks is None else [wanted.tasks]
        strength = None if wanted.strength is None else [wanted.strength]
        maps = self._selection.coefficients(name, tasks, None, strength).maps()
        return [each if each.a.ndim == 1 else PlaneMaps(each.a[0], None if each.b is None else each.b[0]) for each in maps]

    def _has_changed(self, row: int, wanted: Wanted) -> bool:
        pairs = zip(self._maps, self._computed(wanted), strict=True)
        return any(
            not torch.equal(stored.a[row], computed.a)
            or (stored.b is not None and computed.b is not None and not torch.equal(stored.b[row], computed.b))
            for stored, computed in pairs
        )

    def _write(self, row: int, wanted: Wanted) -> None:
        computed = self._computed(wanted)
        if row == len(self._maps[0].a):
            self._maps = [self._grown(site_maps) for site_maps in self._maps]
        for stored, new in zip(self._maps, computed, strict=True):
            stored.a[row] = new.a
            if stored.b is not None and new.b is not None:
                stored.b[row] = new.b

    def _empty(self, maps: PlaneMaps, capacity: int) -> PlaneMaps:
        shape = (capacity, maps.a.shape[-1])
        return PlaneMaps(maps.a.new_ones(shape), None if maps.b is None else maps.b.new_zeros(shape))

    def _grown(self, maps: PlaneMaps) -> PlaneMaps:
        longer = self._empty(maps, 2 * len(maps.a))
        longer.a[: len(maps.a)] = maps.a
        if longer.b is not None and maps.b is not None:
            longer.b[: len(maps.b)] = maps.b
        return longer


class ContinuousBatching:
    """transformers' engine for continuous batching, with the rotations of every request. Made by RoadModel.continuous_batching.

    Its methods may be called from several threads; calls of the model itself are errors while it runs. A request keeps the
    rotations that its adapter had when it was added.

    Args:
        model: the base model.
        selection: the model's adapters.
        positions: "all", or "prompt" for the tokens of the prompts only.
        generation_config: transformers' settings of the generation.
        engine_config: transformers' ContinuousBatchingConfig; some of its settings are fixed (`ENGINE`).
        tokenizer: for prompts that are texts.
        sizes: longest prompt, most new tokens and number of requests, where they are known; the engine's cache is made for them.

    Raises:
        InputError: transformers is too old, or positions and settings that the engine cannot have.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        selection: RowSelection,
        positions: Any = "all",
        generation_config: GenerationConfig | None = None,
        engine_config: Any = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        sizes: tuple[int, int, int] | None = None,
    ) -> None:
        if positions not in POSITIONS:
            known = " or ".join(POSITIONS)
            raise InputError(f"continuous batching joins rows: its positions can be {known}, not {positions!r}")
        if generation_config is not None and (generation_config.num_return_sequences or 1) > 1:
            raise InputError("continuous batching returns one sequence per request: add a request several times instead")
        self._model, self._selection, self._positions, self._tokenizer = model, selection, positions, tokenizer
        self._generation_config, self._engine_config, self._sizes = generation_config, engine_config, sizes
        self._table = FactorTable(selection)
        self._requests: dict[str, tuple[int, int]] = {}  # row of the table and length of the prompt, by request
        self._rows: dict[torch.device, Tensor] = {}  # the row of every token of the current pass
        self._outputs: dict[str, deque[GenerationOutput]] = defaultdict(deque)
        self._lock = threading.Lock()
        self._reading = threading.Lock()
        self._cancelled: set[str] = set()
        self._count = 0

    def __enter__(self) -> ContinuousBatching:
        with ExitStack() as undo:
            self._name = f"continuous batching in {threading.current_thread().name}"
            undo.enter_context(opened(self._model, self._name, shared=True))
            self._manager = _make_manager(self._model, self._generation_config, self._engine_config, self._sizes)
            undo.callback(self._manager.destroy)
            scope = CallScope(of=lambda: self._manager._generation_thread)
            undo.enter_context(scope)
            undo.callback(self._model.register_forward_pre_hook(self._before_model, with_kwargs=True).remove)
            for index, site in enumerate(self._selection.rotations.sites):
                module = self._model.get_submodule(site.module)
                undo.callback(wrap_forward(module, self._transform(index, site, module), scope))
            self._manager.start()
            undo.callback(self._manager.stop, block=True, hard_stop=True)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._undo.close()

    def add(self, prompt: Prompt, wanted: Wanted = Wanted(), max_new_tokens: int | None = None, stream: bool = False) -> str:  # noqa: B008
        """Add a request and return its identifier.

        Args:
            prompt: text, or token ids.
            wanted: its adapter, tasks and strength.
            max_new_tokens: largest number of generated tokens; that of the generation config by default.
            stream: whether `stream` returns the output after every token.

        Raises:
            InputError: an unknown adapter, task or strength, an empty prompt, or a text without a tokenizer.
        """
        ids = self._ids(prompt)
        with self._lock:
            request = f"request-{self._count}"
            self._count += 1
            self._requests[request] = self._table.row(wanted), len(ids)
        added = self._manager.add_request(ids, request, max_new_tokens=max_new_tokens, streaming=stream)
        if added is None:
            raise RuntimeError("the engine takes no more requests: it has stopped")
        return request

    def cancel(self, request: str) -> None:
        """Give up a request: its place in the cache is free for others, and `result` raises RuntimeError for it."""
        self._check_known(request)
        self._manager.cancel_request(request)
        with self._lock:
            self._cancelled.add(request)

    def stream(self, request: str) -> Iterator[GenerationOutput]:
        """The outputs of a request as they come, the finished one last.

        Raises:
            InputError: an unknown request, or one whose finished output was returned before.
            RuntimeError: the request failed or was cancelled.
        """
        self._check_known(request)
        while True:
            output = self._next(request)
            if output.error is not None:
                raise RuntimeError(f"{request} failed: {output.error}")
            yield output
            if output.is_finished():
                with self._lock:
                    del self._requests[request]
                return

    def result(self, request: str) -> GenerationOutput:
        """The finished output of a request, with its `generated_tokens`. Raises the errors of `stream`."""
        *_, last = self.stream(request)
        return last

    def _next(self, request: str) -> GenerationOutput:
        while True:
            with self._reading:
                if self._outputs[request]:
                    return self._outputs[request].popleft()
                if request in self._cancelled:
                    raise RuntimeError(f"{request} was cancelled")
                output = self._manager.get_result(timeout=0.05)
                if output is not None:
                    self._outputs[output.request_id].append(output)
                    continue
            if not self._manager.is_running():
                raise RuntimeError(f"the engine stopped before {request} was finished")

    def _check_known(self, request: str) -> None:
        if request not in self._requests:
            raise InputError(f"'{request}' is not a request of this engine, or its output was returned before")

    def _ids(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            if self._tokenizer is None:
                raise InputError("a prompt that is a text needs a tokenizer; give token ids, or tokenizer=")
            prompt = self._tokenizer(prompt)["input_ids"]
        ids = [int(token) for token in prompt]
        if not ids:
            raise InputError("a prompt needs at least one token")
        return ids

    def _before_model(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Look up the row of every token in the pass.

        A call of another thread is an error: during its passes, the engine sets `config.is_causal` of the model to False, so that
        the attention of a call beside it is not causal, and the setting may stay after it.
        """
        if threading.current_thread() is not self._manager._generation_thread:
            raise InputError(
                f"a call in {threading.current_thread().name} overlaps with {self._name}, which has the model to itself: add a "
                "request to it, or end it first"
            )
        positions: list[int] = kwargs["position_ids"].flatten().tolist()
        rows: list[int] = []
        for each in self._manager.batch_processor.inputs_and_outputs.requests_in_batch:
            row, length = self._requests[each.state.request_id]
            of_request = positions[len(rows) : len(rows) + each.query_length]
            rows += [row if self._positions == "all" or position < length else 0 for position in of_request]
        rows += [0] * (len(positions) - len(rows))  # padding
        index = torch.tensor(rows)
        self._rows = {device: index.to(device) for device in set(self._selection.rotations.devices)}

    def _transform(self, index: int, site: Site, module: nn.Module) -> OutputTransform:
        fresh, group_size = overwritable(module), self._selection.rotations.group_size
        device = self._selection.rotations.devices[index]

        def rotate(output: Any, tracing: bool) -> Any:
            hidden, rows = hidden_of(output), self._rows[device]
            if hidden.shape[-2] != len(rows):
                raise InputError(f"site '{site.name}': its output of shape {tuple(hidden.shape)} is not one state per token")
            maps = self._table.of(index, rows, hidden.ndim)
            complex_form = maps.b is None and group_size == 2 and site.output_slice is None
            if complex_form and COMPLEX.get(hidden.dtype) is maps.a.dtype and hidden.is_contiguous():
                rotated = rotate_in_place(hidden, maps.a, fresh and not isinstance(output, tuple))
            else:
                rotated = apply_to_slice(maps, hidden, group_size, site.output_slice)
            return with_hidden(output, rotated)

        return rotate


def _make_manager(
    model: PreTrainedModel, generation_config: GenerationConfig | None, engine_config: Any, sizes: tuple[int, int, int] | None
) -> Any:
    """transformers' manager of continuous batching, not yet started."""
    try:
        from transformers import ContinuousBatchingConfig
        from transformers.generation.continuous_batching.utils import WorkloadHints
    except ImportError:
        raise InputError(f"continuous batching needs transformers {OLDEST} or later: pip install -U transformers") from None
    settings = ContinuousBatchingConfig() if engine_config is None else copy.copy(engine_config)
    for name, value in ENGINE.items():
        setattr(settings, name, value)
    config = copy.deepcopy(model.generation_config if generation_config is None else generation_config)
    if config.eos_token_id is None:  # as in `generate`
        config.eos_token_id = model.generation_config.eos_token_id
    hints = None
    if sizes is not None:
        longest, new_tokens, count = sizes
        hints = WorkloadHints(*sizes)
        if engine_config is None:  # by default the cache fills the memory, and a mask of that length is cleared in every pass
            blocks = count * (math.ceil((longest + new_tokens) / settings.page_size) + 1)
            settings.num_blocks = blocks if blocks <= MOST_BLOCKS else None
            settings.max_batch_tokens = max(count, min(MOST_TOKENS, count * longest))
    return model.init_continuous_batching(config, settings, hints)  # type: ignore[operator]
