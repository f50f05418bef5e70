"""Load a model with a folder of adapters, and serve it until the process ends."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from packaging.specifiers import SpecifierSet
from transformers import GenerationConfig

from road_interp.errors import InputError
from road_interp.models.batching_engine import turn_off_unfollowed
from road_interp.models.continuous_batching import ContinuousBatching
from road_interp.models.loading import find_device, load_model, load_tokenizer, on_device
from road_interp.models.road_model import RoadModel
from road_interp.progress import Progress, silent
from road_interp.recipes.schema import ModelRecipe
from road_interp.serving.model_names import ModelNames
from road_interp.serving.served_adapters import ServedAdapters, check_adapters

log = logging.getLogger(__name__)
WATCH_SECONDS = 2.0
RELEASES = SpecifierSet("~=5.24.0")  # of transformers; 5.25 has another interface of its server


@dataclass(frozen=True)
class ServerSettings:
    """Settings of a server.

    Attributes:
        host, port: its address; other machines reach it only at another host than the loopback.
        watch: read the folder of adapters again when it changes.
        max_requests: requests in one pass; more of them wait.
        max_length: tokens of one request, prompt and answer.
        max_new_tokens: tokens of an answer, for requests that do not say how many.
    """

    host: str
    port: int
    watch: bool
    max_requests: int
    max_length: int
    max_new_tokens: int


def serve(
    recipe: ModelRecipe, folder: Path, settings: ServerSettings, device: str | None = None, progress: Progress = silent
) -> None:
    """Serve a causal language model under the names of the adapters in a folder, until the process is interrupted.

    Raises:
        InputError: the extra `serve` is not installed, transformers is of another release than RELEASES, its engine cannot run
            the model, or the model or an adapter cannot be read.
    """
    if transformers.__version__ not in RELEASES:
        raise InputError(f"the server needs transformers 5.24, and Python 3.11 for it; here is {transformers.__version__}")
    try:
        import uvicorn

        from road_interp.serving.server import Served, build_app
    except ImportError as error:
        needed = "pip install -U '.[serve]' in a clone, or with the path of a wheel"
        raise InputError(f"{error}: the server needs its extra: {needed}") from None
    if settings.max_new_tokens >= settings.max_length:
        raise InputError(
            f"max_length {settings.max_length} leaves no room for a prompt beside {settings.max_new_tokens} new tokens"
        )
    check_adapters(folder)
    with _bound(settings) as listener:
        progress("reading the model and its adapters")
        base = on_device(load_model(recipe, "causal-lm")[0], find_device(device)).eval()
        tokenizer = load_tokenizer(recipe)
        adapters = ServedAdapters(folder, base, recipe.id)
        try:
            model = RoadModel(base, adapters.bank, planes=adapters.planes)
        except InputError as error:
            raise InputError(f"the adapters in '{folder}': {error}") from None
        sizes = settings.max_length - settings.max_new_tokens, settings.max_new_tokens, settings.max_requests
        turn_off_unfollowed(base.generation_config)
        greedy = GenerationConfig(max_new_tokens=settings.max_new_tokens, do_sample=False)
        with _engine(model, next(iter(adapters.bank)), greedy, sizes) as engine:
            names = ModelNames(adapters.bank, adapters.planes, adapters.with_tasks)
            app = build_app(Served(base, tokenizer, engine, names, settings.max_new_tokens))
            server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
            host = f"[{settings.host}]" if ":" in settings.host else settings.host
            progress(f"http://{host}:{settings.port}/v1 serves {', '.join(names.listed())}")
            asyncio.run(_run(server.serve(sockets=[listener]), _watch(adapters) if settings.watch else None))


@contextmanager
def _engine(
    model: RoadModel, adapter_name: str, config: GenerationConfig, sizes: tuple[int, int, int]
) -> Iterator[ContinuousBatching]:
    """A continuous batch that has read and generated tokens: transformers' engine does not run every architecture.

    Raises InputError if it cannot.
    """
    with ExitStack() as entered:
        try:
            engine = entered.enter_context(model.continuous_batching(generation_config=config, sizes=sizes))
            engine.result(engine.add([0], adapter_name, max_new_tokens=min(2, sizes[1])))
        except RuntimeError as error:
            raise InputError(f"the model cannot be served: {error}") from None
        yield engine


def _bound(settings: ServerSettings) -> socket.socket:
    """A socket at the address of the server, before a model is read. Raises InputError if the address cannot be used."""
    try:
        return socket.create_server(
            (settings.host, settings.port), family=socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        )
    except OSError as error:
        raise InputError(f"the server cannot listen at {settings.host}:{settings.port}: {error.strerror or error}") from None


async def _run(serving: Coroutine[Any, Any, None], watching: Coroutine[Any, Any, None] | None) -> None:
    """Run the server, and watch the folder meanwhile."""
    watcher = None if watching is None else asyncio.create_task(watching)
    try:
        await serving
    finally:
        if watcher is not None:
            watcher.cancel()


async def _watch(adapters: ServedAdapters) -> None:
    """Change the bank with the folder. Files are read in another thread, the bank is changed between two requests."""
    while True:
        await asyncio.sleep(WATCH_SECONDS)
        try:
            adapters.update(await asyncio.to_thread(adapters.changed))
        except Exception:
            log.exception("the folder of adapters could not be read; it is read again in %g seconds", WATCH_SECONDS)
