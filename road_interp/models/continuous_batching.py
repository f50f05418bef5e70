"""ContinuousBatching: requests that come and go in transformers' engine, each with its own adapter, tasks and strength.

The engine runs the model in a thread of its own, on the tokens of all requests joined into one row. Every token's factors are
gathered from one table, which holds each distinct combination of adapter, tasks and strength once.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from road_interp.arguments import check_count, is_whole
from road_interp.errors import InputError
from road_interp.models.batching_engine import check_settings, make_engine
from road_interp.models.compatibility import check_made_for, check_rotated_once
from road_interp.models.factor_table import IDENTITY, FactorTable
from road_interp.models.forward_wrapper import CallScope, OutputTransform, overwritable, wrap_forward
from road_interp.models.intervention import apply_to_slice
from road_interp.models.merging import merged_rotations
from road_interp.models.open_contexts import opened
from road_interp.models.request_adapter import RequestAdapter
from road_interp.models.row_selection import RowSelection
from road_interp.models.row_sites import IN_EXPERTS, site_in_experts
from road_interp.models.vocabulary import vocabulary_of
from road_interp.rotation.inplace import has_complex_form, rotate_in_place
from road_interp.sites.module_tree import hidden_of, with_hidden
from road_interp.sites.site import Site

if TYPE_CHECKING:
    from transformers.generation.continuous_batching.requests import GenerationOutput

POSITIONS = ("all", "prompt")
Prompt = str | Sequence[int]


def check_prompts(prompts: Sequence[Prompt]) -> None:
    """Raise InputError unless there is a list of texts or of lists of token ids; a text is not a list of prompts."""
    if isinstance(prompts, str) or not isinstance(prompts, Sequence):
        raise InputError(
            f"prompts must be a list of texts or of lists of token ids, one per prompt, not {type(prompts).__name__}"
        )
    for prompt in prompts:
        if not isinstance(prompt, str | Sequence | Tensor) or (isinstance(prompt, Tensor) and prompt.ndim != 1):
            kind = f"a tensor of shape {tuple(prompt.shape)}" if isinstance(prompt, Tensor) else type(prompt).__name__
            raise InputError(f"a prompt is a text or a list of token ids, not {kind}")


def token_ids(prompt: Prompt, tokenizer: PreTrainedTokenizerBase | None) -> Sequence[int]:
    """The token ids of a prompt: those of a text with special tokens, unless it begins with a BOS token of its own.

    Raises InputError for a text without a tokenizer.
    """
    if not isinstance(prompt, str):
        return prompt
    if tokenizer is None:
        raise InputError("prompts that are texts need tokenizer=; or give token ids")
    has_bos = bool(tokenizer.bos_token) and prompt.startswith(str(tokenizer.bos_token))
    ids: list[int] = tokenizer(prompt, add_special_tokens=not has_bos)["input_ids"]
    return ids


@dataclass
class _Request:
    """A request that was added and whose finished output has not been returned.

    Attributes:
        row: of its maps in the table.
        length: of its prompt, in tokens.
        outputs: those that have come and not been read.
        cancelled: the number of passes up to its cancellation; None for a request that was not.
    """

    row: int
    length: int
    outputs: deque[GenerationOutput] = field(default_factory=deque)
    cancelled: int | None = None


class _AtOnce:
    """What transformers takes for the asyncio loop of every handler: it would have one loop call the handlers of all requests of
    a pass, and none of them after one that fails."""

    @staticmethod
    def call_soon_threadsafe(handle: Callable[..., None], *outputs: Any) -> None:
        """Call a handler in the engine's thread."""
        handle(*outputs)


class ContinuousBatching:
    """transformers' engine for continuous batching, with the rotations of every request. Made by RoadModel.continuous_batching.

    Its methods may be called from several threads; calls of the model itself are errors while it runs. A request keeps the
    rotations that its adapter had when it was added.

    Args:
        model: the base model.
        current: gives the model's adapters as they are when it is called.
        positions: "all", or "prompt" for the tokens of the prompts only.
        generation_config: transformers' settings of the generation, complete.
        engine_config: transformers' ContinuousBatchingConfig; some of its settings are fixed (`batching_engine.ENGINE`).
        sizes: longest prompt, most new tokens and number of requests, where they are known; the engine's cache is made for
            them, and fills the memory without them.

    Raises:
        InputError: positions and settings that the engine cannot have.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        current: Callable[[], RowSelection],
        positions: Any,
        generation_config: GenerationConfig,
        engine_config: Any = None,
        sizes: tuple[int, int, int] | None = None,
    ) -> None:
        if positions not in POSITIONS:
            known = " or ".join(POSITIONS)
            raise InputError(f"continuous batching joins rows: its positions can be {known}, not {positions!r}")
        if sizes is not None and not (isinstance(sizes, tuple) and len(sizes) == 3 and all(is_whole(each) for each in sizes)):
            raise InputError(f"sizes are three whole numbers, (longest prompt, most new tokens, requests), not {sizes!r}")
        if model.config.is_encoder_decoder:
            raise InputError(f"continuous batching runs decoders only, and {type(model).__name__} has an encoder: use generate")
        check_settings(generation_config)
        selection = current()
        if (inside := site_in_experts(model, selection.rotations.sites)) is not None:
            raise InputError(IN_EXPERTS.format(inside))
        head = model.get_output_embeddings()
        for site in selection.rotations.sites:
            if head is not None and model.get_submodule(site.module) is head:
                raise InputError(
                    f"site '{site.name}': continuous batching computes logits of last tokens only, and cannot rotate them"
                )
        self._model, self._current, self._selection, self._positions = model, current, selection, positions
        self._generation_config, self._engine_config, self._sizes = generation_config, engine_config, sizes
        self._table, self._weights = FactorTable(selection), merged_rotations(model)
        self._requests: dict[str, _Request] = {}
        self._rows: dict[torch.device, Tensor] = {}  # the row of every token of the current pass
        self._lock = threading.Lock()  # of table and requests
        self._reading = threading.Lock()
        self._added = self._passes = 0
        self._manager: Any = None  # transformers', inside the `with` statement

    def __enter__(self) -> ContinuousBatching:
        with ExitStack() as undo:
            self._context = undo.enter_context(opened(self._model, "continuous batching", "alone"))
            if merged_rotations(self._model) != self._weights:
                raise InputError("rotations were merged or unmerged since the engine was made: make it again")
            now, then = self._current(), self._selection
            if now.bank is not then.bank or now.planes is not then.planes or now.rotations.devices != then.rotations.devices:
                raise InputError("bank, planes or device of the model have changed since the engine was made: make it again")
            for request in [*self._requests]:  # of an earlier `with` statement, whose engine did not finish them
                self._forget(request)
            self._manager = make_engine(self._model, self._generation_config, self._engine_config, self._sizes)
            undo.callback(self._manager.destroy)
            scope = CallScope(of=lambda: self._manager._generation_thread)
            undo.enter_context(scope)
            undo.callback(self._model.register_forward_pre_hook(self._before_model, with_kwargs=True).remove)
            rotations = self._selection.rotations
            for index, (site, device) in enumerate(zip(rotations.sites, rotations.devices, strict=True)):
                module = self._model.get_submodule(site.module)
                check_rotated_once(site.module, module)
                undo.callback(wrap_forward(module, self._transform(index, site, module, device), scope))
            self._manager.start()
            undo.callback(self._manager.stop, block=True, hard_stop=True)
            self._wait_for_cache()
            self._undo = undo.pop_all()
        return self

    def _wait_for_cache(self) -> None:
        """Wait until the engine's thread has made the cache. Raises RuntimeError if it cannot."""
        while self._manager.batch_processor is None and self._manager.is_running():
            time.sleep(0.001)
        if self._manager.batch_processor is None or self.fatal_error is not None:
            raise RuntimeError(f"the engine could not start: {self.fatal_error}") from self.fatal_error

    def __exit__(self, *exception: object) -> None:
        self._undo.close()

    def add(
        self,
        prompt: Sequence[int],
        adapter_name: str | None = None,
        tasks: str | None = None,
        strength: float | Mapping[str, float] | None = None,
        *,
        max_new_tokens: int | None = None,
        stream: bool = False,
        on_output: Callable[[GenerationOutput], None] | None = None,
    ) -> str:
        """Add a request and return its identifier.

        Args:
            prompt: token ids.
            adapter_name: name in the bank, or several joined by "+"; None for a model with a single adapter.
            tasks: active tasks, such as "label+closing"; None for all planes.
            strength: one number, or numbers by task, or by adapter in a bank; None for 1.
            max_new_tokens: largest number of generated tokens; that of the generation config by default.
            stream: whether there is an output after every token, and not only a finished one.
            on_output: called in the running asyncio loop with every output, instead of `stream` and `result`.

        Raises:
            InputError: an engine outside its `with` statement, an unknown adapter, task or strength, an empty prompt, a text, a
                token that the model does not have, or more tokens than the model has positions or the engine has places.
            RuntimeError: the engine has stopped.
        """
        if self._manager is None:
            raise InputError("the engine is not started: add requests inside `with model.continuous_batching() as engine:`")
        ids = _token_ids(prompt)
        self._check_fits(ids, max_new_tokens)
        with self._lock:
            name = f"request-{self._added}"
            self._added += 1
            self._requests[name] = _Request(self._table.acquire(RequestAdapter(adapter_name, tasks, strength)), len(ids))
        try:
            if (bank := self._selection.bank) is not None:  # which may have read the adapter for this request
                check_made_for(self._model, bank.template, "the adapters of the bank were made")
            if on_output is not None:
                self._manager.output_router.result_handlers[name] = self._handler(name, on_output), _AtOnce
            added = self._manager.add_request(ids, name, max_new_tokens=max_new_tokens, streaming=stream)
            if added is None or not self._manager.is_running():
                raise RuntimeError("the engine takes no more requests: it has stopped") from self.fatal_error
        except BaseException:
            self._forget(name)
            raise
        return name

    def cancel(self, request: str) -> None:
        """Give up a request: its place in the cache is free for others, and `result` raises RuntimeError for it."""
        known = self._known(request)
        self._manager.cancel_request(request)
        known.cancelled = self._passes  # read after the engine was told: its next pass but one is without the request

    def stream(self, request: str) -> Iterator[GenerationOutput]:
        """The outputs of a request as they come, the finished one last.

        A stream that is left after its first output and before its end cancels its request; `cancel` is for one that never began.

        Raises:
            InputError: an unknown request, or one whose finished output was returned before.
            RuntimeError: the request failed or was cancelled.
        """
        return self._outputs(request, self._known(request))

    def _outputs(self, request: str, known: _Request) -> Iterator[GenerationOutput]:
        try:
            while True:
                output = self._next(request, known)
                if output.error is not None or output.is_finished():
                    self._forget(request)
                if output.error is not None:
                    raise RuntimeError(
                        f"{request} failed in transformers' continuous batching of {type(self._model).__name__}: {output.error}. "
                        "It does not run every architecture; generate does"
                    )
                yield output
                if output.is_finished():
                    return
        except GeneratorExit:
            known.cancelled = self._passes  # the engine is told in a pass: garbage collection may close a stream at any time
            raise

    def result(self, request: str) -> GenerationOutput:
        """The finished output of a request, with its `generated_tokens`. Raises the errors of `stream`."""
        *_, last = self.stream(request)
        return last

    def is_open(self, request: str) -> bool:
        """Whether a request was added and its finished output has not been returned."""
        return request in self._requests

    @property
    def fatal_error(self) -> Exception | None:
        """The error that stopped the engine, if one did."""
        return None if self._manager is None else self._manager.background_thread_status.fatal_error

    def _next(self, name: str, request: _Request) -> GenerationOutput:
        """The next output of a request. One of those who wait reads the outputs of all requests."""
        while True:
            if request.outputs:
                return request.outputs.popleft()
            if request.cancelled is not None:
                raise RuntimeError(f"{name} was cancelled")
            if self._requests.get(name) is not request:
                raise RuntimeError(f"the finished output of {name} was returned to another caller")
            running = self._manager.is_running()
            if self._reading.acquire(timeout=0.05):
                try:
                    while not request.outputs and (output := self._manager.get_result(timeout=0.05)) is not None:
                        if (other := self._requests.get(output.request_id)) is not None:
                            other.outputs.append(output)
                finally:
                    self._reading.release()
            if not running and not request.outputs:
                raise RuntimeError(f"the engine stopped before {name} was finished: {self.fatal_error}") from self.fatal_error

    def _handler(self, name: str, on_output: Callable[[GenerationOutput], None]) -> Callable[[GenerationOutput], None]:
        """A function for the engine's thread, which has the running asyncio loop call `on_output`."""
        loop, request = asyncio.get_running_loop(), self._requests[name]

        def handle(output: GenerationOutput) -> None:
            try:
                loop.call_soon_threadsafe(self._deliver, name, output, on_output)
            except RuntimeError:  # the loop has ended
                request.cancelled = 0  # the engine is told in its next pass

        return handle

    def _deliver(self, name: str, output: GenerationOutput, on_output: Callable[[GenerationOutput], None]) -> None:
        if output.error is not None or output.is_finished():
            self._forget(name)
        on_output(output)

    def _forget(self, name: str) -> None:
        """End a request that the engine has finished with."""
        self._manager.output_router.result_handlers.pop(name, None)
        with self._lock:
            if (request := self._requests.pop(name, None)) is not None:
                self._table.release(request.row)

    def _known(self, name: str) -> _Request:
        request = self._requests.get(name) if isinstance(name, str) else None
        if request is None:
            raise InputError(f"'{name}' is not a request of this engine, or it was cancelled, or its output returned before")
        return request

    def _check_fits(self, ids: Sequence[int], max_new_tokens: int | None) -> None:
        """Raise InputError for a request that the model or the cache can never hold: it would stop the engine for all others."""
        vocabulary = vocabulary_of(self._model)
        if vocabulary is not None and (unknown := [token for token in ids if not 0 <= token < vocabulary]):
            raise InputError(f"{unknown[0]} is not a token of the model, which has {vocabulary}")
        new_tokens = self._manager.generation_config.max_new_tokens if max_new_tokens is None else max_new_tokens
        if new_tokens is None:
            raise InputError("neither the request nor the generation config says how many tokens: max_new_tokens")
        check_count("a request", "max_new_tokens", new_tokens)
        settings, text_config = self._manager.continuous_batching_config, self._model.config.get_text_config()
        limits = {
            "positions of the model": getattr(text_config, "max_position_embeddings", None),
            "places of the engine's cache": settings.num_blocks and settings.num_blocks * settings.page_size,
            "tokens for which the engine was made": self._sizes and self._sizes[0] + self._sizes[1],
        }
        for what, most in limits.items():
            if most is not None and len(ids) + new_tokens > most:
                raise InputError(f"{len(ids)} tokens and {new_tokens} new ones are more than the {most} {what}")

    def _before_model(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Look up the row of every token in the pass.

        A call of another thread is an error: during its passes, the engine sets `config.is_causal` of the model to False, so that
        the attention of a call beside it is not causal, and the setting may stay after it.
        """
        if threading.current_thread() is not self._manager._generation_thread:
            raise InputError(
                f"a call in {threading.current_thread().name} overlaps with {self._context.name}, which has the model to itself: "
                "add a request to it, or end it first"
            )
        self._forget_cancelled()
        positions: list[int] = [] if self._positions == "all" else kwargs["position_ids"].flatten().tolist()
        rows: list[int] = []
        for each in self._manager.batch_processor.inputs_and_outputs.requests_in_batch:
            request = self._requests[each.state.request_id]
            of_request = positions[len(rows) : len(rows) + each.query_length]
            if self._positions == "all":
                rows += [request.row] * each.query_length
            else:
                rows += [request.row if position < request.length else IDENTITY for position in of_request]
        rows += [IDENTITY] * (kwargs["position_ids"].numel() - len(rows))  # padding
        index = torch.tensor(rows)
        self._rows = {device: index.to(device) for device in set(self._selection.rotations.devices)}

    def _forget_cancelled(self) -> None:
        """End the requests that the engine has dropped since they were cancelled.

        It drops them before the next pass but one, and may miss a cancellation that comes at once after its request.
        """
        self._passes += 1
        scheduler = self._manager.batch_processor.scheduler
        for name, request in list(self._requests.items()):
            if request.cancelled is not None and self._passes > request.cancelled + 1:
                if name in scheduler.active_requests or name in scheduler.waiting_requests:
                    self._manager.cancel_request(name)
                    continue
                self._forget(name)

    def _transform(self, index: int, site: Site, module: nn.Module, device: torch.device) -> OutputTransform:
        fresh, group_size = overwritable(module), self._selection.rotations.group_size

        def rotate(output: Any, tracing: bool) -> Any:
            hidden, rows = hidden_of(output), self._rows[device]
            if hidden.shape[-2] != len(rows):
                raise InputError(f"site '{site.name}': its output of shape {tuple(hidden.shape)} is not one state per token")
            maps = self._table.of(index, rows, hidden.ndim)
            if site.output_slice is None and has_complex_form(maps, hidden, group_size):
                rotated = rotate_in_place(hidden, maps.a, fresh and not isinstance(output, tuple))
            else:
                rotated = apply_to_slice(maps, hidden, group_size, site.output_slice)
            return with_hidden(output, rotated)

        return rotate


def _token_ids(prompt: Sequence[int]) -> list[int]:
    if isinstance(prompt, str):
        raise InputError("a prompt of the engine holds token ids, not a text: give tokenizer(text)['input_ids']")
    check_prompts([prompt])
    ids = prompt.tolist() if isinstance(prompt, Tensor) else [*prompt]
    if not ids:
        raise InputError("a prompt needs at least one token")
    if wrong := [token for token in ids if not is_whole(token)]:
        raise InputError(f"a prompt of the engine holds token ids, not {wrong[0]!r}: give tokenizer(text)['input_ids']")
    return [int(token) for token in ids]
