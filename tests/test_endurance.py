"""Generation and the server under load, while adapters come and go: every answer is right, and nothing piles up.

`make test-soak` holds each for 30 minutes (MINUTES=30). Memory is that of the process, which may not grow by more than 2% after
the first tenth of the time.
"""

from __future__ import annotations

import gc
import os
import random
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
import torch
import transformers
from transformers import GenerationConfig
from transformers.utils import logging

from helpers.models import random_adapter
from helpers.road_models import bank_model
from road_interp.serving.run_server import RELEASES

if transformers.__version__ not in RELEASES:
    pytest.skip("the server needs transformers 5.24", allow_module_level=True)
pytest.importorskip("openai", reason="the server needs the extra [serve]")
pytestmark = pytest.mark.soak
MINUTES = float(os.environ.get("MINUTES", "0.5"))
NEW = 6  # tokens of an answer
SETTINGS = GenerationConfig(max_new_tokens=NEW, do_sample=False, eos_token_id=-1, pad_token_id=0)


@pytest.fixture(autouse=True)
def quiet():
    logging.set_verbosity_error()


def hold(work):
    """Call `work` for MINUTES, and check memory and open files; returns the number of calls."""
    process, begun, calls = psutil.Process(), time.monotonic(), 0
    start = None

    def held():
        gc.collect()
        time.sleep(1)  # until the server has closed its ends of connections
        return process.memory_info().rss, process.num_fds(), process.num_threads()

    while (passed := time.monotonic() - begun) < 60 * MINUTES or calls < 20:
        work(calls)
        calls += 1
        if start is None and passed > 6 * MINUTES and calls >= 10:
            start = held()
    memory, files, threads = held()
    print(f"{calls} calls in {MINUTES:g} minutes, memory {start[0] / 2**20:.0f} to {memory / 2**20:.0f} MiB, {files} files")
    assert memory < 1.02 * start[0]
    assert (files, threads) == start[1:]


@torch.no_grad()
def alone(model, prompt, name):
    """The tokens that `generate` gives one prompt."""
    _, ids = model.generate({"input_ids": torch.tensor([prompt])}, adapter_names=[name], generation_config=SETTINGS)
    return ids[0, len(prompt) :].tolist()


def prompts_of(draw):
    return [[draw.randrange(5, 60) for _ in range(draw.randrange(1, 12))] for _ in range(8)]


def test_generate_batch():
    model = bank_model()

    def work(number):
        draw, name = random.Random(number), f"new {number}"
        model.bank.add(name, random_adapter(model.sites, seed=number))
        prompts, names = prompts_of(draw), [draw.choice(["a", "b", "c", name]) for _ in range(8)]
        outputs = model.generate_batch(prompts, adapter_names=names, generation_config=SETTINGS)
        expected = [alone(model, *each) for each in zip(prompts, names, strict=True)]
        assert [each.generated_tokens for each in outputs] == expected
        model.bank.remove(name)

    hold(work)


def test_server():
    import openai

    from helpers.servers import served, words_tokenizer

    model, reference = bank_model(), bank_model()  # a model takes no other calls while it serves
    with served(model, words_tokenizer()) as (port, _), ThreadPoolExecutor(8) as pool:
        close = {"Connection": "close"}  # kept connections end when a busy machine leaves them idle, and their files with them
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", default_headers=close)

        def ask(prompt, name):
            words = " ".join(f"w{token}" for token in prompt)
            answer = client.completions.create(model=f"road:{name}", prompt=words, max_tokens=NEW).choices[0].text
            return [int(word[1:]) for word in answer.split()]

        def work(number):
            draw, name = random.Random(number), f"new{number}"
            adapter = random_adapter(model.sites, seed=number)
            model.bank.add(name, adapter)
            reference.bank.add(name, adapter)
            prompts, names = prompts_of(draw), [draw.choice(["a", "b", "c", name]) for _ in range(8)]
            answers = list(pool.map(ask, prompts, names))
            assert answers == [alone(reference, *each) for each in zip(prompts, names, strict=True)]
            model.bank.remove(name)
            reference.bank.remove(name)

        hold(work)
