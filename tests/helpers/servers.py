"""A server of a tiny model in a thread of the test."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import contextmanager

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GenerationConfig, PreTrainedTokenizerFast

from road_interp.serving.model_names import ModelNames

LONGEST = 200
CHAT = "{% for message in messages %}{% if message.role == 'wrong' %}{{ raise_exception('no such role') }}{% endif %}"
CHAT += "{{ message.content }} {% endfor %}w9"


def words_tokenizer():
    """A tokenizer of the words w0 to w59."""
    tokenizer = Tokenizer(models.WordLevel({**{f"w{number}": number for number in range(60)}, "[PAD]": 60}, "w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=CHAT, pad_token="[PAD]")


@contextmanager
def served(model, tokenizer):
    """The address of a server of the model, and its engine."""
    import uvicorn

    from road_interp.serving import server

    greedy = GenerationConfig(max_new_tokens=8, do_sample=False, eos_token_id=-1, pad_token_id=0)
    model.model.generation_config.eos_token_id = -1
    with model.continuous_batching(generation_config=greedy, sizes=(100, LONGEST, 8)) as engine:
        app = server.build_app(server.Served(model.model, tokenizer, engine, ModelNames(model.bank, model.planes), 8))
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            running = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
            thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
            thread.start()
            while not running.started:
                time.sleep(0.01)
            try:
                yield listener.getsockname()[1], engine
            finally:
                running.should_exit = True
                thread.join()
