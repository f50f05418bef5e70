"""The server: every client gets what `generate` gives its own adapter, and wrong requests are errors of the client."""

from __future__ import annotations

import http.client
import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
import transformers
from tokenizers import processors
from transformers import ByT5Tokenizer, GenerationConfig

from helpers.models import random_adapter
from helpers.road_models import bank_model
from helpers.servers import LONGEST, served, words_tokenizer
from road_interp.adapters.joined_names import BASE
from road_interp.adapters.task_planes import TaskPlanes
from road_interp.models.road_model import RoadModel
from road_interp.serving.model_names import ModelNames
from road_interp.serving.run_server import RELEASES

if transformers.__version__ not in RELEASES:
    pytest.skip("the server needs transformers 5.24", allow_module_level=True)
openai = pytest.importorskip("openai", reason="the server needs the extra [serve]")
uvicorn = pytest.importorskip("uvicorn", reason="the server needs the extra [serve]")
server = pytest.importorskip("road_interp.serving.server", reason="the server needs the extra [serve]")
serving_utils = pytest.importorskip("transformers.cli.serving.utils", reason="the server needs the extra [serve]")


@pytest.fixture(scope="module")
def model():
    return bank_model()


@pytest.fixture(scope="module")
def expected(model):
    """Generated words of a prompt under an adapter."""

    @torch.no_grad()
    def generate(prompt, name, new_tokens=8, strengths=None):
        options = {"max_new_tokens": new_tokens, "do_sample": False, "eos_token_id": -1, "pad_token_id": 0}
        ids = torch.tensor([[int(word[1:]) for word in prompt.split()]])
        _, found = model.generate({"input_ids": ids}, adapter_names=[name], strengths=strengths, **options)
        return " ".join(f"w{token}" for token in found[0, ids.shape[1] :].tolist())

    wanted = {(number, name): generate(f"w5 w{number} w7", name) for number in range(10, 18) for name in ("a", "b", "c", BASE)}
    wanted["joined"] = generate("w5 w10 w7", "a+b", strengths=[{"a": 0.5}])
    wanted["chat"] = generate("w5 w6 w9", "b", 4)
    wanted["long"] = generate("w5", "c", LONGEST)
    assert len(set(wanted.values())) > 8
    return wanted


@pytest.fixture(scope="module")
def address(model, expected):
    with served(model, words_tokenizer()) as running:
        yield running


@pytest.fixture(scope="module")
def client(address):
    return openai.OpenAI(base_url=f"http://127.0.0.1:{address[0]}/v1", api_key="none", max_retries=0)


def complete(client, prompt, model, **options):
    return client.completions.create(model=model, prompt=prompt, **options).choices[0].text


def test_32_clients_at_once_get_their_own_adapters_answers(client, expected, address):
    def ask(number):
        key = (10 + number % 8, ("a", "b", "c", BASE)[number // 8])
        return complete(client, f"w5 w{key[0]} w7", f"road:{key[1]}") == expected[key]

    with ThreadPoolExecutor(32) as pool:
        assert list(pool.map(ask, range(32))) == [True] * 32
    assert address[1]._requests == {}


def test_chat_strengths_and_streaming(client, expected):
    messages = [{"role": "user", "content": "w5 w6"}]
    answer = client.chat.completions.create(model="road:b", messages=messages, max_tokens=4)
    assert answer.choices[0].message.content == expected["chat"]
    assert (answer.model, answer.usage.prompt_tokens, answer.usage.completion_tokens) == ("road:b", 3, 4)
    assert answer.choices[0].finish_reason == "length"
    parts = client.chat.completions.create(
        model="road:b", messages=messages, max_completion_tokens=4, stream=True, temperature=0.0
    )
    texts = [part.choices[0].delta.content for part in parts if part.choices and part.choices[0].delta.content]
    assert len(texts) > 1
    assert "".join(texts) == expected["chat"]
    assert complete(client, "w5 w10 w7", "road:a@0.5+b") == expected["joined"]
    streamed = client.completions.create(model="road:c", prompt="w5", max_tokens=LONGEST, stream=True)
    assert "".join(part.choices[0].text for part in streamed) == expected["long"]


def test_a_stream_has_an_end_that_clients_wait_for(address, expected):
    body = {"model": "road:a", "prompt": "w5 w10 w7", "stream": True}
    status, events = post(address[0], "/v1/completions", json.dumps(body))
    *parts, last, rest = events.split("\n\n")
    assert (status, last, rest) == (200, "data: [DONE]", "")
    assert "".join(json.loads(part.removeprefix("data: "))["choices"][0]["text"] for part in parts) == expected[10, "a"]


def test_an_error_is_an_error_of_its_client(address, client, expected, monkeypatch):
    """The text of the error has what JSON must escape."""
    message = 'no "place"\nfor \\ it'
    engine = address[1]
    deliver = engine._deliver

    def failing(name, output, on_output):
        deliver(name, replace(output, error=message) if output.is_finished() else output, on_output)

    monkeypatch.setattr(engine, "_deliver", failing)
    for create, body in (
        (client.completions.create, {"prompt": "w5"}),
        (client.chat.completions.create, {"messages": [{"role": "user", "content": "w5"}]}),
    ):
        with pytest.raises(openai.APIError, match=re.escape(message)):
            list(create(model="road:a", stream=True, **body))
        with pytest.raises(openai.InternalServerError) as raised:
            create(model="road:a", **body)
        assert message in raised.value.body["message"]
        assert raised.value.body["type"] == "server_error"
    monkeypatch.undo()
    assert complete(client, "w5 w10 w7", "road:a") == expected[10, "a"]


def test_an_engine_that_stops_as_a_request_comes_is_unavailable(address, client, monkeypatch):
    engine = address[1]

    def stopping(*_, **__):
        monkeypatch.setattr(type(engine), "fatal_error", property(lambda self: MemoryError("no place")))
        raise RuntimeError("the engine takes no more requests: it has stopped")

    monkeypatch.setattr(engine, "add", stopping)
    with pytest.raises(openai.InternalServerError, match="takes no more requests") as raised:
        client.completions.create(model="road:a", prompt="w5")
    assert raised.value.status_code == 503


def test_a_stream_that_cannot_be_decoded_frees_its_place(address, client, expected, monkeypatch):
    def failing(streamer, output):
        raise ValueError('expected "w1"\nfound "w2"')

    monkeypatch.setattr(serving_utils.CBStreamer, "put", failing)
    stream = client.completions.create(model="road:a", prompt="w5", max_tokens=LONGEST, stream=True)
    (request,) = address[1]._requests.values()
    with pytest.raises(openai.APIError, match='expected "w1"\nfound "w2"'):
        list(stream)
    wait_for(lambda: request.cancelled is not None)
    monkeypatch.undo()
    assert complete(client, "w5 w10 w7", "road:a") == expected[10, "a"]


def test_a_tokeniser_that_is_not_fast_cannot_stream():
    with served(bank_model(), ByT5Tokenizer()) as (port, engine):
        body = {"model": "road:a", "prompt": "\t\t", "max_tokens": 2}  # bytes of which the tiny model has tokens
        assert post(port, "/v1/completions", json.dumps(body))[0] == 200
        status, answer = post(port, "/v1/completions", json.dumps({**body, "stream": True}))
        assert (status, engine._requests) == (400, {})
        assert "ByT5Tokenizer is no fast tokeniser" in answer


def test_fields_that_ask_for_nothing_change_nothing(client, expected, address):
    asked = {"top_p": 1.0, "presence_penalty": 0, "frequency_penalty": 0.0, "seed": 3, "n": 1}
    assert complete(client, "w5 w10 w7", "road:a", **asked) == expected[10, "a"]
    messages = [{"role": "user", "content": "w5 w6"}]
    nothing = dict.fromkeys(("stop", "tools", "logprobs", "chat_template_kwargs", "seed"))
    body = {"model": "road:b", "messages": messages, "max_tokens": 4, **nothing}
    status, answer = post(address[0], "/v1/chat/completions", json.dumps(body))
    assert (status, json.loads(answer)["choices"][0]["message"]["content"]) == (200, expected["chat"])


def test_the_served_names_are_listed(client):
    assert [each.id for each in client.models.list()] == ["road:__base__", "road:a", "road:b", "road:c"]


@pytest.mark.parametrize(
    "name",
    [
        "road:d",
        "road:",
        "a",
        "road:a@x",
        "road:a+",
        "road:a@",
        "road:a@nan",
        "road:a@1e9",
        "road:a@1_0",
        "road:a/b",
        "road:a:b.gguf",
        "gpt-4",
    ],
)
def test_an_unknown_name_is_a_404_that_lists_the_known(client, name):
    with pytest.raises(openai.NotFoundError, match="road:__base__, road:a, road:b, road:c"):
        complete(client, "w5", name)


HALF = r"Value error, \\ud83d is half of a character"  # as in a JSON text
PART = [{"type": "text", "text": "w5 \ud83d"}]
BAD = [
    ("/v1/completions", {"prompt": "w5"}, "model: Field required"),
    ("/v1/completions", {"model": 3, "prompt": "w5"}, "model: Input should be a valid string"),
    ("/v1/completions", {"model": "road:a"}, "prompt: Field required"),
    ("/v1/completions", {"model": "road:a", "prompt": ""}, "prompt: String should have at least 1 character"),
    ("/v1/completions", {"model": "road:a", "prompt": " "}, "at least one token"),
    ("/v1/completions", {"model": "road:a", "prompt": "w5", "max_tokens": 0}, "max_tokens: Input should be greater"),
    ("/v1/completions", {"model": "road:a", "prompt": "w5", "max_tokens": "many"}, "max_tokens: Input should be a valid integer"),
    ("/v1/completions", {"model": "road:a", "prompt": "w5", "max_tokens": 10**6}, "positions of the model"),
    ("/v1/completions", {"model": "road:a", "prompt": "w5", "temperature": 0.7}, "temperature: Input should be 0"),
    ("/v1/completions", {"model": "road:a", "prompt": "w5", "top_p": 0.9}, "top_p: Input should be 1"),
    ("/v1/completions", {"model": None, "prompt": "w5"}, "model: Field required"),
    ("/v1/completions", {"model": "road:a", "prompt": "w5", "logprobs": 3}, "logprobs: Extra inputs are not permitted"),
    ("/v1/completions", {"model": "road:a", "prompt": ["w5"]}, "prompt: Input should be a valid string"),
    ("/v1/chat/completions", {"model": "road:a", "messages": []}, "messages: List should have at least 1 item"),
    ("/v1/chat/completions", {"model": "road:a", "messages": ["w5"]}, "messages.0: Input should be a valid dictionary"),
    ("/v1/chat/completions", {"model": "road:a", "messages": [{"role": "user"}]}, "messages.0.content: Field required"),
    (
        "/v1/chat/completions",
        {"model": "road:a", "messages": [{"role": "user", "content": []}]},
        "messages.0.content: Value error, a message has at least one part",
    ),
    ("/v1/chat/completions", {"model": "road:a", "messages": [{"role": "wrong", "content": "w5"}]}, "no such role"),
    (
        "/v1/chat/completions",
        {"model": "road:a", "messages": [{"role": "user", "content": "\ud83d"}]},
        f"messages.0.content: {HALF}",
    ),
    ("/v1/chat/completions", {"model": "road:a", "messages": [{"role": "\ud83d", "content": "w5"}]}, f"role: {HALF}"),
    ("/v1/chat/completions", {"model": "road:a", "messages": [{"role": "user", "content": PART}]}, f"text: {HALF}"),
    ("/v1/completions", {"model": "road:\ud83d", "prompt": "w5"}, f"model: {HALF}"),
    ("/v1/completions", {"model": "road:a", "prompt": "w5 \ud83d"}, "prompt: "),
    ("/v1/completions", {"model": "road:a", "prompt": "w5", "\ud83d": 1}, ""),
]


@pytest.mark.parametrize(("path", "body", "message"), BAD)
def test_a_bad_body_is_an_error_of_the_client(address, path, body, message):
    status, answer = post(address[0], path, json.dumps(body))
    assert 400 <= status < 500
    assert message in answer


@pytest.mark.parametrize("content", ["{", "[]", "null", '"text"', '{"model": "road:a", "prompt": "w5"', "\x00"])
def test_a_body_that_is_no_json_object(address, content):
    status, answer = post(address[0], "/v1/completions", content)
    assert 400 <= status < 500
    message = json.loads(answer)["error"]["message"]
    assert message.startswith("the body is not a JSON object: ")
    assert ".py" not in message


@pytest.mark.parametrize("path", ["/load_model", "/reset", "/v1/responses", "/v1/audio/transcriptions"])
def test_routes_that_would_load_or_drop_models_do_not_exist(address, path):
    assert post(address[0], path, json.dumps({"model": "road:a"}))[0] == 404


def post(port, path, content):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", path, content.encode(), {"Content-Type": "application/json"})
    response = connection.getresponse()
    return response.status, response.read().decode()


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_hangs_up_frees_its_place(address, client, expected, stream):
    port, engine = address
    body = {"model": "road:a", "prompt": "w5", "max_tokens": LONGEST, "stream": stream}
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    if stream:
        connection.getresponse().read(20)
    else:
        wait_for(lambda: engine._requests)
    (request,) = engine._requests.values()
    connection.close()
    if stream:
        connection.sock = None
    wait_for(lambda: request.cancelled is not None)
    assert complete(client, "w5 w10 w7", "road:a") == expected[10, "a"]
    assert complete(client, "w5 w11 w7", "road:b") == expected[11, "b"]
    assert engine._requests == {}


def wait_for(condition, seconds=30):
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.005)


def test_requests_with_the_same_id_are_two_requests(address, expected):
    def ask(name):
        connection = http.client.HTTPConnection("127.0.0.1", address[0], timeout=60)
        headers = {"Content-Type": "application/json", "x-request-id": "same"}
        connection.request("POST", "/v1/completions", json.dumps({"model": f"road:{name}", "prompt": "w5 w10 w7"}), headers)
        return json.loads(connection.getresponse().read())["choices"][0]["text"]

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(ask, "abc")) == [expected[10, name] for name in "abc"]


def test_adapters_that_come_and_go_while_it_runs(model, client):
    model.bank.add("new.gguf", random_adapter(model.sites, seed=9))
    try:
        assert complete(client, "w5", "road:new.gguf")
    finally:
        model.bank.remove("new.gguf")
    with pytest.raises(openai.NotFoundError):
        complete(client, "w5", "road:new.gguf")


def test_health(address):
    connection = http.client.HTTPConnection("127.0.0.1", address[0])
    connection.request("GET", "/health")
    assert connection.getresponse().status == 200


def test_tasks_of_an_adapter():
    base = bank_model("a")
    planes = TaskPlanes.split(["label", "closing"], base.sites, "alternating")
    model = RoadModel(base.model, base.bank, planes=planes)
    names = ModelNames(model.bank, planes)
    assert names.listed() == ["road:__base__", "road:a", "road:a/label", "road:a/closing"]
    assert names.parse("road:label@0.5+closing") == ("a", "label+closing", {"label": 0.5, "closing": 1.0})
    assert names.parse("road:a/closing") == ("a", "closing", None)
    assert ModelNames(model.bank, planes, with_tasks=()).listed() == ["road:__base__", "road:a"]
    with_at = ModelNames(bank_model(("v", "v@2", "b")).bank)
    assert with_at.parse("road:v@2+b") == ("v@2+b", None, None)
    assert with_at.parse("road:v@2@0.5+b") == ("v@2+b", None, {"v@2": 0.5, "b": 1.0})
    assert with_at.parse("road:v@3+b") == ("v+b", None, {"v": 3.0, "b": 1.0})
    strange = ModelNames(model.bank, TaskPlanes.split(["de/en", "x@home"], base.sites))
    assert [strange.parse(name) for name in strange.listed()[2:]] == [("a", "de/en", None), ("a", "x@home", None)]
    wanted = [
        model.generate(
            {"input_ids": torch.tensor([[5, 6]])},
            tasks=[tasks],
            strengths=[strength],
            max_new_tokens=6,
            do_sample=False,
            eos_token_id=-1,
            pad_token_id=0,
        )[1][0, 2:].tolist()
        for tasks, strength in (("label+closing", {"label": 0.5}), ("closing", 1))
    ]
    with served(model, words_tokenizer()) as (port, _):
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
        found = [complete(client, "w5 w6", name, max_tokens=6) for name in ("road:label@0.5+closing", "road:a/closing")]
    assert found == [" ".join(f"w{token}" for token in tokens) for tokens in wanted]


@pytest.mark.parametrize("ending", ["", " w2"])
def test_a_prompt_with_a_bos_token_of_its_own_gets_no_second_one(ending):
    tokenizer, model = words_tokenizer(), bank_model()
    tokenizer.bos_token = "w1"
    tokens = [("w1", 1), ("w2", 2)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(f"w1 $A{ending}", special_tokens=tokens)
    settings = GenerationConfig(max_new_tokens=6, do_sample=False, eos_token_id=-1, pad_token_id=0)
    ids, text = [[1, 5, 6]], "w1 w5 w6"
    _, whole = model.generate({"input_ids": torch.tensor(ids)}, adapter_names=["a"], generation_config=settings)
    expected = whole[0, 3:].tolist()
    (found,) = model.generate_batch([text], ["a"], generation_config=settings, tokenizer=tokenizer)
    assert found.generated_tokens == expected
    with served(model, tokenizer) as (port, _):
        body = {"model": "road:a", "prompt": text, "max_tokens": 6}
        status, answer = post(port, "/v1/completions", json.dumps(body))
    if ending:  # no text has the tokens w1 w5 w6 alone
        assert (status, "adds special tokens to a prompt that begins with w1: leave w1 out" in answer) == (400, True)
    else:
        assert json.loads(answer)["choices"][0]["text"] == " ".join(f"w{token}" for token in expected)


def test_a_model_without_a_chat_template():
    tokenizer = words_tokenizer()
    tokenizer.chat_template = None
    with served(bank_model(), tokenizer) as (port, _):
        status, answer = post(
            port, "/v1/chat/completions", json.dumps({"model": "road:a", "messages": [{"role": "user", "content": "w5"}]})
        )
    assert status == 400
    assert "no chat template: use /v1/completions" in answer
