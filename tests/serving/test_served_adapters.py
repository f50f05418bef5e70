"""Adapters in a folder: three kinds of folders, and what happens when they come, change, break and go."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from helpers.models import random_adapter, tiny_model
from road_interp.adapters.bank import RoadBank
from road_interp.adapters.base_model import BaseModelSignature
from road_interp.adapters.road_adapter import RoadAdapter
from road_interp.errors import InputError
from road_interp.models.road_model import RoadModel
from road_interp.serving import served_adapters
from road_interp.serving.served_adapters import ServedAdapters
from road_interp.sites.find import find_sites
from road_interp.sources import resolve


@pytest.fixture(scope="module")
def base():
    return tiny_model("Llama", "causal-lm")


@pytest.fixture
def adapters(base):
    sites = find_sites(base, "all-linear")
    return [random_adapter(sites, seed=seed) for seed in range(3)]


@pytest.fixture
def logged(monkeypatch):
    """Messages that are logged from here on."""
    messages = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    monkeypatch.setattr(served_adapters.log, "handlers", [handler])
    return messages


def test_adapter_folders_and_peft_folders(tmp_path, base, adapters):
    pytest.importorskip("peft", reason="needs the extra [peft]")
    adapters[0].save(tmp_path / "own")
    adapters[1].to_peft(tmp_path / "from-peft", base)
    adapters[1].to_peft(tmp_path / "both", base)
    with pytest.warns(UserWarning, match="has an adapter in PEFT's format, too"):
        adapters[0].save(tmp_path / "both")
    (tmp_path / "notes").mkdir()
    (tmp_path / ".hidden").mkdir()
    folder = ServedAdapters(tmp_path, base, "base")
    bank = folder.bank
    assert list(bank) == ["both", "from-peft", "own"]
    assert folder.planes is None
    name = adapters[0].sites[0].name
    assert torch.equal(bank["own"].theta[name], adapters[0].theta[name])
    assert torch.equal(bank["from-peft"].theta[name], adapters[1].theta[name])
    assert torch.equal(bank["both"].theta[name], adapters[0].theta[name])  # our format is complete


def test_adapters_that_were_trained_beside_other_weights_are_refused(tmp_path, base):
    """All requests go through the weights of the served model."""
    pytest.importorskip("peft", reason="needs the extra [peft]")
    trained = tiny_model("Llama", "causal-lm", seed=1)
    random_adapter(find_sites(trained, "mlp")).to_peft(tmp_path / "a", trained, ["lm_head"])
    with pytest.raises(InputError, match=r"^LlamaForCausalLM has other weights .* \(lm_head.weight\)"):
        ServedAdapters(tmp_path, base, "base")
    assert list(ServedAdapters(tmp_path, trained, "base").bank) == ["a"]
    with pytest.warns(UserWarning, match=r"^LlamaForCausalLM has other weights .* \(lm_head.weight\)"):
        RoadModel(base, RoadBank.from_peft({"a": tmp_path / "a"}, base))


def test_a_run_that_was_trained_on_another_model_is_served_with_a_warning(tmp_path, base, adapters, monkeypatch, logged):
    """Equal ids are one model, and so are different paths to equal files."""
    for name, value in (("model", "a"), ("copy", "a"), ("other", "b")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(value)
    trained_on = {"same": "model", "equal": "copy", "different": "other", "gone": "removed"}
    packaged = "package://road_interp/py.typed"
    for name in trained_on:
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / served_adapters.METRICS).write_text("{}")

    def load(path):
        model = SimpleNamespace(id=str(tmp_path / trained_on[path.name]))
        return SimpleNamespace(adapter=adapters[0], planes=None, recipe=SimpleNamespace(model=model))

    monkeypatch.setattr(served_adapters.Run, "load", load)
    folder = ServedAdapters(tmp_path / "runs", base, str(tmp_path / "model"))
    assert list(folder.bank) == sorted(trained_on)
    assert [message.split("'")[1] for message in logged] == ["different", "gone"]
    assert logged[0] == f"run 'different' was trained on '{tmp_path}/other' and is served on other files, '{tmp_path}/model'"
    assert served_adapters._is_same_model(packaged, resolve(packaged))
    assert not served_adapters._is_same_model(packaged, "package://no_package/py.typed")


def test_changes_of_the_folder(tmp_path, base, adapters, logged):
    adapters[0].save(tmp_path / "a")
    adapters[1].save(tmp_path / "b")
    folder = ServedAdapters(tmp_path, base, "base")
    bank = folder.bank
    assert folder.changed() == {}
    adapters[2].save(tmp_path / "c")
    shutil.rmtree(tmp_path / "b")
    shutil.rmtree(tmp_path / "a")
    adapters[2].save(tmp_path / "a")
    folder.update(folder.changed())
    assert list(bank) == ["a", "c"]
    name = adapters[0].sites[0].name
    assert torch.equal(bank["a"].theta[name], adapters[2].theta[name])
    (tmp_path / "c" / "adapter.json").write_text("{")
    assert folder.changed() == {}
    assert "adapter 'c' is not served as it is now" in logged[-1]
    assert folder.changed() == {}
    assert "c" in bank
    (tmp_path / "a").rename(tmp_path / "renamed")
    shutil.rmtree(tmp_path / "c")
    folder.update(folder.changed())
    assert list(bank) == ["renamed"]
    random_adapter(find_sites(base, "mlp")).save(tmp_path / "of-other-sites")
    folder.update(folder.changed())
    assert list(bank) == ["renamed"]
    refusal = "'of-other-sites' is not served as it is now: adapter 'of-other-sites' does not fit this bank: its sites differ"
    assert refusal in logged[-1]
    shutil.rmtree(tmp_path / "renamed")
    for _ in range(2):
        folder.update(folder.changed())
    assert list(bank) == ["renamed"]  # a bank is never empty
    assert ["stays served without its folder" in line for line in logged[-2:]] == [False, True]


def test_an_unexpected_error_of_one_adapter_leaves_the_others(tmp_path, base, adapters, monkeypatch, logged):
    adapters[0].save(tmp_path / "a")
    folder, load, failures = ServedAdapters(tmp_path, base, "base"), RoadAdapter.load, [RuntimeError("no memory")]

    def fail_once(path, base=None):
        if failures and Path(path).name == "c":
            raise failures.pop()
        return load(path, base)

    monkeypatch.setattr(RoadAdapter, "load", fail_once)
    for name, adapter in zip("bc", adapters[1:], strict=True):
        adapter.save(tmp_path / name)
    assert list(folder.changed()) == ["b"]
    assert "adapter 'c' is not served as it is now, and is read again" in logged[-1]
    assert list(folder.changed()) == ["c"]
    assert folder.changed() == {}


@pytest.mark.parametrize("looks", [0, 1, 2])
def test_an_adapter_stays_while_it_is_saved_again(tmp_path, base, adapters, monkeypatch, looks):
    """`save` removes the file of the old angles after the folder was listed, and after the file was looked at a few times."""
    adapters[0].save(tmp_path / "a")
    adapters[1].save(tmp_path / "b")
    folder, stat, seen = ServedAdapters(tmp_path, base, "base"), Path.stat, []
    (old,) = (tmp_path / "a").glob("*.safetensors")

    def save_behind(path, **options):
        if path == old:
            seen.append(path)
            if len(seen) == looks + 1:
                adapters[2].save(tmp_path / "a")
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", save_behind)
    for _ in range(3):
        folder.update(folder.changed())
        assert list(folder.bank) == ["a", "b"]
    assert not old.exists()
    name = adapters[0].sites[0].name
    assert torch.equal(folder.bank["a"].theta[name], adapters[2].theta[name])


def test_folders_that_cannot_be_served(tmp_path, base, adapters):
    for folder, message in ((tmp_path / "missing", "does not exist"), (tmp_path, "contains no adapter folders, run folders or")):
        with pytest.raises(InputError, match=message):
            ServedAdapters(folder, base, "base")
    other = tiny_model("Llama", "causal-lm", num_hidden_layers=1)
    replace(random_adapter(find_sites(other, "all-linear")), base=BaseModelSignature.of(other)).save(tmp_path / "other")
    with pytest.raises(
        InputError, match="adapter 'other' was made for another model, an unnamed llama, not for .*: num_hidden_layers is 2"
    ):
        ServedAdapters(tmp_path, base, "base")
    shutil.rmtree(tmp_path / "other")
    adapters[0].save(tmp_path / "broken")
    (tmp_path / "broken" / "adapter.json").write_text("{")
    with pytest.raises(InputError, match=r"adapter\.json is not valid JSON"):
        ServedAdapters(tmp_path, base, "base")
