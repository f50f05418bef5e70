"""transformers' OpenAI-compatible server, with an adapter, tasks and strengths per request.

`transformers.cli.serving` has the routes, the handlers and the streaming. Here its model manager knows one model under the names
of its adapters, and its generation state gives every request a manager that adds it to the continuous batch with its rotations.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from jinja2 import TemplateError
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from starlette.exceptions import HTTPException as HttpError
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cli.serving import ModelManager, build_server
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.completion import CompletionHandler
from transformers.cli.serving.utils import CBGenerateManager, CBWorkerDeadError, GenerationState

from road_interp.arguments import lone_surrogate
from road_interp.errors import InputError
from road_interp.models.continuous_batching import ContinuousBatching, token_ids
from road_interp.models.request_adapter import RequestAdapter
from road_interp.serving.model_names import ModelNames

ERROR = re.compile(r'(?s)(\A|\n\n)data: \{"error": "(.*)"\}\n\n\Z')  # as transformers writes it: the text as it is, in quotes
ROUTES = ("/v1/chat/completions", "/v1/completions", "/v1/models", "/health")


@dataclass(frozen=True)
class Served:
    """What a server serves.

    Attributes:
        model: the base model.
        tokenizer: of the base model.
        engine: its continuous batch, which is running.
        names: the adapters and tasks.
        max_new_tokens: for requests that do not say how many.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    engine: ContinuousBatching
    names: ModelNames
    max_new_tokens: int


def build_app(served: Served) -> FastAPI:
    """The application with the routes `ROUTES`. An unknown model is a 404, a body that cannot be used is a 400 or 422."""
    manager, state = OneModelManager(served), RequestState(served)
    chat, completion = ChatHandler(manager, state), TextHandler(manager, state)
    app = build_server(manager, chat, completion, None, None, None, state)  # type: ignore[arg-type]
    app.router.routes[:] = [route for route in app.router.routes if getattr(route, "path", None) in ROUTES]
    app.add_middleware(CancelOnDisconnect)
    for kind in (HttpError, RequestValidationError, CBWorkerDeadError):
        app.add_exception_handler(kind, _error)
    return app


def _error(request: Request, error: Any) -> JSONResponse:
    """An error in OpenAI's format, so that its clients show the message."""
    if isinstance(error, CBWorkerDeadError):
        return JSONResponse({"error": {"message": str(error), "type": "server_error"}}, 503)
    if isinstance(error, RequestValidationError):
        status, reasons = 422, "; ".join(each["msg"] for each in error.errors())
        message = f"the body is not a JSON object: {reasons}"
    else:
        status, message = error.status_code, error.detail
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return JSONResponse({"error": {"message": message, "type": kind}}, status)


class OneModelManager(ModelManager):
    """transformers' model manager for one model that is loaded already."""

    def __init__(self, served: Served) -> None:
        super().__init__(model_timeout=-1)
        self._served = served

    def load_model_and_processor(self, model_id_and_revision: str, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """The model and its tokenizer. Raises HTTPException 404 for a name that is not served."""
        try:
            self._served.names.parse(model_id_and_revision)
        except InputError as error:
            raise HTTPException(404, str(error)) from None
        return self._served.model, self._served.tokenizer

    def list_models(self, cache_dir: str | None = None) -> list[dict]:
        """The served names, as in OpenAI's list."""
        return [{"id": name, "object": "model", "created": 0, "owned_by": "road-interp"} for name in self._served.names.listed()]

    def shutdown(self) -> None:
        """Nothing: whoever started the server ends the engine."""


class RequestState(GenerationState):
    """transformers' generation state, which gives every request a manager of its own."""

    def __init__(self, served: Served) -> None:
        super().__init__(continuous_batching=True)
        self._served = served

    def get_manager(self, model_id: str, use_cb: bool = False) -> RequestManager:
        """A manager for one request to a served name."""
        return RequestManager(self._served.engine, self._served.names.parse(model_id))

    def is_cb_alive(self) -> bool:
        """Whether the engine takes requests."""
        return self._served.engine.fatal_error is None


class RequestManager(CBGenerateManager):
    """transformers' manager for continuous batching, for one request."""

    def __init__(self, engine: ContinuousBatching, adapter: RequestAdapter) -> None:
        super().__init__()
        self._cb: Any = OneRequest(engine, adapter)

    async def generate_non_streaming(self, *args: Any, **kwargs: Any) -> tuple[str, int, list[int]]:
        """The text, the length of the prompt and the generated tokens; a client that hangs up gives up its place."""
        try:
            return await super().generate_non_streaming(*args, **kwargs)
        except asyncio.CancelledError:
            self.cancel()
            raise

    def cancel(self) -> None:
        """Give up the request, unless it is finished."""
        self._cb.cancel_request()


class OneRequest:
    """What transformers' handlers call on the engine, for a request with its own rotations.

    The engine names the request: names that clients send may be equal.
    """

    def __init__(self, engine: ContinuousBatching, adapter: RequestAdapter) -> None:
        self._engine, self._adapter = engine, adapter
        self._name: str | None = None
        self._on_output: Callable[[Any], None] = lambda output: None

    @property
    def background_thread_status(self) -> Any:
        """With the error that stopped the engine."""
        return SimpleNamespace(fatal_error=self._engine.fatal_error)

    def register_result_handler(self, request_id: str, callback: Callable[[Any], None]) -> None:
        """Call `callback` with every output. It may be registered before the request is added, or after it."""
        self._on_output = callback

    def add_request(self, input_ids: list[int], max_new_tokens: int, streaming: bool, **others: Any) -> str:
        """Add the request to the engine."""
        self._name = self._engine.add(
            input_ids,
            *self._adapter,
            max_new_tokens=max_new_tokens,
            stream=streaming,
            on_output=lambda output: self._on_output(output),
        )
        return self._name

    def cancel_request(self, request_id: str | None = None) -> None:
        """Give up the request, unless it is finished."""
        if self._name is not None and self._engine.is_open(self._name):
            self._engine.cancel(self._name)


class Known(BaseModel):
    """An object without other fields than these, whose texts are whole characters."""

    model_config = ConfigDict(extra="forbid")

    @field_validator("*")
    @classmethod
    def _check_characters(cls, value: Any) -> Any:
        if isinstance(value, str) and (lone := lone_surrogate(value)):
            raise ValueError(f"{lone} is half of a character")
        return value


class TextPart(Known):
    """A part of a message: text, and no other kind."""

    type: Literal["text"]
    text: str


class Message(Known):
    """A message of a chat."""

    role: str
    content: str | list[TextPart]

    @field_validator("content")
    @classmethod
    def _check_parts(cls, value: str | list[TextPart]) -> str | list[TextPart]:
        if value == []:
            raise ValueError("a message has at least one part")
        return value


class Body(Known):
    """The fields of a request that this server supports; others are errors, because they would change the answer.

    Decoding is greedy: a temperature other than 0 is an error. Some clients send all fields, also those that ask for nothing.
    """

    model_config = ConfigDict(strict=True)
    model: str
    max_tokens: int | None = Field(None, ge=1)
    stream: bool | None = None
    stream_options: dict | None = None
    temperature: Literal[0] | None = None
    top_p: Literal[1] | None = None
    presence_penalty: Literal[0] | None = None
    frequency_penalty: Literal[0] | None = None
    seed: int | None = None
    n: Literal[1] | None = None
    user: str | None = None


class ChatBody(Body):
    """The fields of /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    metadata: dict | None = None


class TextBody(Body):
    """The fields of /v1/completions."""

    prompt: str = Field(min_length=1)


class _Handler:
    """Checks a request before transformers' handler gets it, and fills in its settings."""

    fields: type[Body]
    model_manager: OneModelManager

    def _validate_request(self, body: dict) -> None:
        try:
            self.fields.model_validate(body)
        except ValidationError as error:
            innermost = max(error.errors(), key=lambda each: len(each["loc"]))  # a list of parts is also told that it is no text
            raise HTTPException(422, f"{'.'.join(map(str, innermost['loc']))}: {innermost['msg']}") from None

    def _resolve_model(self, body: dict) -> tuple[str, Any, Any]:
        """The name as it is: transformers would take the part behind a colon that ends in .gguf for a file of weights."""
        return body["model"], *self.model_manager.load_model_and_processor(body["model"])

    def _build_generation_config(self, body: dict, config: GenerationConfig, use_cb: bool = False) -> GenerationConfig:
        limit = body.get("max_completion_tokens") or body.get("max_tokens") or self.model_manager._served.max_new_tokens
        return GenerationConfig(max_new_tokens=limit)  # the engine has the other settings

    async def handle_request(self, body: dict, request_id: str) -> Any:
        given = {key: value for key, value in body.items() if value is not None}
        try:
            return await super().handle_request(given, request_id)
        except (InputError, TemplateError) as error:
            raise HTTPException(400, str(error)) from None
        except CBWorkerDeadError:
            raise
        except RuntimeError as error:
            is_of_this_request = self.model_manager._served.engine.fatal_error is None
            raise HTTPException(500 if is_of_this_request else 503, str(error)) from None

    def _streaming(
        self,
        request_id: str,
        model: Any,
        processor: Any,
        model_id: str,
        inputs: dict,
        gen_config: GenerationConfig,
        gen_manager: RequestManager,
        *others: Any,
        **named: Any,
    ) -> StreamingResponse:
        if not hasattr(processor, "_tokenizer"):
            raise InputError(f"{type(processor).__name__} is no fast tokeniser, and cannot decode a stream: ask without `stream`")
        response = super()._streaming(request_id, model, processor, model_id, inputs, gen_config, gen_manager, *others, **named)
        response.body_iterator = _as_openai(response.body_iterator, gen_manager)
        return response


async def _as_openai(parts: AsyncIterable[Any], manager: RequestManager) -> AsyncIterator[str]:
    """The events of a stream as OpenAI's clients expect them: an error is an object with its message, and there is an end.

    A request whose stream ends before it has finished is cancelled.
    """

    def in_json(found: re.Match[str]) -> str:
        content = {"error": {"message": found[2], "type": "server_error"}}
        return f"{found[1]}data: {json.dumps(content)}\n\n"

    try:
        async for part in parts:
            yield ERROR.sub(in_json, part)
        yield "data: [DONE]\n\n"
    finally:
        manager.cancel()


class ChatHandler(_Handler, ChatCompletionHandler):
    """/v1/chat/completions"""

    fields = ChatBody

    def _validate_request(self, body: dict) -> None:
        super()._validate_request(body)
        if self.model_manager._served.tokenizer.chat_template is None:
            raise HTTPException(400, "the model has no chat template: use /v1/completions")


class TextHandler(_Handler, CompletionHandler):
    """/v1/completions"""

    fields = TextBody

    def _validate_request(self, body: dict) -> None:
        super()._validate_request(body)
        body["prompt"] = with_one_bos(self.model_manager._served.tokenizer, body["prompt"])  # transformers reads it next


def with_one_bos(tokenizer: Any, prompt: str) -> str:
    """The text whose tokens, with those that the tokeniser adds, are those of a prompt with a BOS token of its own.

    Raises InputError where there is none.
    """
    expected, bos = list(token_ids(prompt, tokenizer)), tokenizer.bos_token
    for text in (prompt, prompt.removeprefix(bos or "")):
        if tokenizer(text)["input_ids"] == expected:
            return text
    raise InputError(f"the tokeniser adds special tokens to a prompt that begins with {bos}: leave {bos} out of the prompt")


Receive = Callable[[], Awaitable[dict]]


class CancelOnDisconnect:
    """ASGI middleware that cancels the work for a client that hangs up before its answer is complete."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: dict, receive: Receive, send: Callable[[dict], Awaitable[None]]) -> None:
        """Run the application for one request, and watch for the end of the connection once the body is read."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        body_read, gone = asyncio.Event(), asyncio.Event()

        async def receive_body() -> dict:
            if body_read.is_set():
                await gone.wait()
                return {"type": "http.disconnect"}
            message = await receive()
            if not message.get("more_body"):
                body_read.set()
            return message

        async def watch() -> None:
            await body_read.wait()
            while (await receive())["type"] != "http.disconnect":
                pass
            gone.set()

        work, watcher = asyncio.ensure_future(self._app(scope, receive_body, send)), asyncio.ensure_future(watch())
        try:
            await asyncio.wait((work, watcher), return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
        finally:
            for task in (work, watcher):
                task.cancel()
            await asyncio.gather(work, watcher, return_exceptions=True)
