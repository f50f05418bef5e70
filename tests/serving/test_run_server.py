"""`road-interp serve` in a process of its own."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import transformers

from helpers.cli import run
from helpers.models import random_adapter, tiny_model
from helpers.taught import word_tokenizer
from road_interp.errors import InputError
from road_interp.models.road_model import RoadModel
from road_interp.recipes.schema import ModelRecipe
from road_interp.serving import run_server
from road_interp.serving.run_server import RELEASES
from road_interp.sites.find import find_sites

if transformers.__version__ not in RELEASES:
    pytest.skip("the server needs transformers 5.24", allow_module_level=True)
pytest.importorskip("road_interp.serving.server", reason="the server needs the extra [serve]")

ROOT = Path(__file__).parents[2]


def ask(port, path, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def wait_for(attempt, seconds=90):
    ends = time.monotonic() + seconds
    while True:
        try:
            if (found := attempt()) is not None:
                return found
        except (urllib.error.URLError, ConnectionError):
            pass
        assert time.monotonic() < ends
        time.sleep(0.2)


@contextmanager
def served(folder, *arguments):
    """The port of `road-interp serve` with these arguments, run in the folder, and a list that gets what it has written."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "road_interp.cli", "serve", *arguments, "--port", str(port), "--device", "cpu"]
    process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True)
    written = []
    try:
        yield port, written
    finally:
        process.send_signal(signal.SIGINT)
        written.append(process.communicate(timeout=60)[1])


@pytest.mark.processes
def test_the_command_serves_a_folder_and_watches_it(tmp_path):
    tokenizer = word_tokenizer()
    base = tiny_model("Llama", "causal-lm", vocab_size=len(tokenizer))
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    adapters = [random_adapter(find_sites(base, "all-linear"), seed=seed) for seed in range(2)]
    adapters[0].save(tmp_path / "adapters" / "first")
    options = ["--watch", "--max-requests", "4", "--max-length", "64", "--max-new-tokens", "6"]
    with served(tmp_path, "base", "--adapters", "adapters", *options) as (port, written):
        names = [each["id"] for each in wait_for(lambda: ask(port, "/v1/models"))["data"]]
        assert names == ["road:__base__", "road:first"]
        adapters[1].save(tmp_path / "adapters" / "second")
        wait_for(lambda: len(ask(port, "/v1/models")["data"]) == 3 or None)
        prompt = "the king"
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        for name, adapter in zip(("first", "second"), adapters, strict=True):
            with torch.no_grad():
                _, found = RoadModel(base, adapter).generate({"input_ids": ids}, max_new_tokens=6, do_sample=False)
            answer = ask(port, "/v1/completions", {"model": f"road:{name}", "prompt": prompt})
            assert answer["choices"][0]["text"] == tokenizer.decode(found[0, ids.shape[1] :], skip_special_tokens=True)
    assert f"http://127.0.0.1:{port}/v1 serves road:__base__, road:first" in written[0]
    assert "Traceback" not in written[0]


@pytest.mark.docs
def test_the_commands_of_the_manual(tmp_path):
    page = (ROOT / "docs/how-to/serve.md").read_text()
    arguments = re.search(r"^road-interp serve (.*)$", page, re.MULTILINE)[1]
    url, body = re.search(r"^curl http://localhost:8000(\S+) .*\n  -d '(.*)'$", page, re.MULTILINE).groups()
    shutil.copytree(ROOT / "road_interp/example_runs/composition-smollm2", tmp_path / "runs" / "mine")
    with served(tmp_path, *shlex.split(arguments), "--max-new-tokens", "8") as (port, _):
        wait_for(lambda: ask(port, "/v1/models"))
        mine, base = json.loads(body), {**json.loads(body), "model": "road:__base__"}
        answers = [ask(port, url, each)["choices"][0]["message"]["content"] for each in (mine, base)]
    assert all(answers)
    assert answers[0] != answers[1]


def test_wrong_arguments_are_one_line(tmp_path, capsys, monkeypatch):
    tiny_model("Llama", "causal-lm").save_pretrained(tmp_path / "base")
    word_tokenizer().save_pretrained(tmp_path / "base")
    random_adapter(find_sites(tiny_model("Llama", "causal-lm"), "all-linear")).save(tmp_path / "adapters" / "a")
    for arguments, message in (
        (["missing/folder", "--adapters", tmp_path / "adapters"], "'missing/folder' cannot be loaded"),
        (["missing/folder", "--adapters", tmp_path / "none"], "does not exist"),  # before a model is read
    ):
        code, _, error = run(capsys, monkeypatch, "serve", *arguments)
        assert code == 2
        assert message in error
        assert len([line for line in error.splitlines() if line.startswith("road-interp:")]) == 1
    limits = ["--max-length", "8", "--max-new-tokens", "8"]
    code, _, error = run(capsys, monkeypatch, "serve", tmp_path / "base", "--adapters", tmp_path / "adapters", *limits)
    assert code == 2
    assert "max_length 8 leaves no room for a prompt beside 8 new tokens" in error


def test_a_model_that_the_engine_cannot_run_is_refused_before_it_is_served(tmp_path):
    """The engine fails in its first pass with the architecture; without that pass, every client would be told so."""
    tokenizer = word_tokenizer()
    base = tiny_model("GPTNeoX", "causal-lm", vocab_size=len(tokenizer))
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    random_adapter(find_sites(base, "all-linear")).save(tmp_path / "adapters" / "a")
    settings = run_server.ServerSettings("127.0.0.1", 0, False, 4, 64, 8)
    told = []
    with pytest.raises(InputError, match="the model cannot be served: .*generate does"):
        run_server.serve(ModelRecipe(str(tmp_path / "base")), tmp_path / "adapters", settings, "cpu", told.append)
    assert told == ["reading the model and its adapters"]


@pytest.mark.parametrize("release", ["5.23.1", "5.25.0"])
def test_another_release_of_transformers_is_refused(release, tmp_path, monkeypatch):
    monkeypatch.setattr(run_server.transformers, "__version__", release)
    with pytest.raises(InputError, match=f"the server needs transformers 5.24, and Python 3.11 for it; here is {release}"):
        run_server.serve(ModelRecipe("gpt2"), tmp_path, run_server.ServerSettings("127.0.0.1", 8000, False, 32, 1024, 256))
