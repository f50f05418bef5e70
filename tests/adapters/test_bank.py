"""RoadBank: named adapters, read at their first use, stacked into rows."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from helpers.models import random_adapter, tiny_model, token_batch
from road_interp.adapters.bank import RoadBank
from road_interp.adapters.base_model import BaseModelSignature
from road_interp.adapters.joined_names import BASE
from road_interp.adapters.road_adapter import RoadAdapter
from road_interp.adapters.task_planes import TaskPlanes
from road_interp.errors import InputError
from road_interp.models.road_model import RoadModel
from road_interp.sites.find import find_sites
from road_interp.sites.site import Site

SITES = (Site("a", 8, 0, "a"), Site("b", 16, 0, "b"))


def test_rows_are_the_concatenated_sites_of_the_named_adapters():
    adapters = {name: random_adapter(SITES, seed=seed) for seed, name in enumerate("xyz")}
    bank = RoadBank(adapters)
    theta, alpha = bank.rows(["z", BASE, "x", "z"])
    assert theta.shape == alpha.shape == (4, 12)
    assert torch.equal(theta[0], torch.cat([adapters["z"].theta["a"], adapters["z"].theta["b"]]))
    assert torch.equal(theta[1], torch.zeros(12))
    assert torch.equal(alpha[1], torch.ones(12))
    assert torch.equal(alpha[0], alpha[3])


def test_stored_adapters_are_bitwise_equal():
    adapter = random_adapter(SITES, "road_2")
    again = RoadBank({"x": adapter})["x"]
    assert all(torch.equal(again.theta[site.name], adapter.theta[site.name]) for site in SITES)
    assert all(torch.equal(again.alpha[site.name], adapter.alpha[site.name]) for site in SITES)


def test_a_bank_is_shown_in_one_line_without_reading_folders(tmp_path):
    adapter = random_adapter(SITES)
    adapter.save(tmp_path)
    bank = RoadBank({"x": tmp_path})
    assert repr(bank) == "RoadBank(1 adapters, not read yet)"
    bank.add("y", adapter)
    assert repr(bank) == "RoadBank(2 adapters, road_1 at 2 sites, 24 parameters each, positions all)"


def test_a_bank_is_a_mapping_that_is_equal_to_itself(tmp_path):
    random_adapter(SITES).save(tmp_path / "folder")
    bank, again = (RoadBank({"x": tmp_path / "folder"}) for _ in range(2))
    assert (bank.get("y"), bank.get("y", 3)) == (None, 3)
    assert {bank, again, bank} == {bank, again}
    assert bank != again
    assert bank.get("x").distance(random_adapter(SITES)) == 0


def test_add_replace_remove():
    bank = RoadBank({"x": random_adapter(SITES, seed=1)})
    version = bank.version
    bank.add("y", random_adapter(SITES, seed=2))
    bank.replace("x", random_adapter(SITES, seed=3))
    assert list(bank) == ["x", "y"]
    assert "y" in bank
    assert "z" not in bank
    assert torch.equal(bank["x"].theta["a"], random_adapter(SITES, seed=3).theta["a"])
    bank.remove("x")
    assert list(bank) == ["y"]
    assert bank.version == version + 3
    with pytest.raises(InputError, match="already has an adapter 'y'"):
        bank.add("y", random_adapter(SITES))
    with pytest.raises(InputError, match="only adapter"):
        bank.remove("y")
    with pytest.raises(InputError, match="__base__ means none"):
        bank.add(BASE, random_adapter(SITES))


def test_the_error_for_unknown_names_lists_the_known_ones():
    bank = RoadBank({"german": random_adapter(SITES), "french": random_adapter(SITES)})
    with pytest.raises(InputError, match="unknown adapter 'dutch', 'italian'; the bank holds german, french and __base__"):
        bank.rows(["german", "italian", "dutch"])


def test_adapters_of_another_family_are_refused():
    bank = RoadBank({"x": random_adapter(SITES)})
    for other, difference in (
        (random_adapter(SITES[:1]), "sites differ"),
        (random_adapter(SITES, "road_2"), "variant is road_2, not road_1"),
        (random_adapter(SITES, group_size=4), "group_size is 4, not 2"),
    ):
        with pytest.raises(InputError, match=f"^adapter 'y' does not fit this bank: its {difference}$"):
            bank.add("y", other)
    assert list(bank) == ["x"]


def test_a_folder_of_adapters_is_read_at_first_use(tmp_path):
    for seed in range(5):
        random_adapter(SITES, seed=seed).save(tmp_path / f"adapter{seed}")
    bank = RoadBank.from_folder(tmp_path)
    assert len(bank) == 5
    assert bank.num_bytes == 0
    bank.rows(["adapter3"])
    assert bank.num_bytes == 2 * 12 * 4
    assert torch.equal(bank["adapter3"].theta["a"], random_adapter(SITES, seed=3).theta["a"])
    with pytest.raises(InputError, match="is the folder of one adapter: give that around it"):
        RoadBank.from_folder(tmp_path / "adapter1")
    with pytest.raises(InputError, match="^a bank needs at least one adapter$"):
        RoadBank({})


def test_run_folders_and_peft_folders_are_folders_of_adapters(tmp_path):
    """As for the command line: of a run the folder inside, of PEFT's format the rotations."""
    base = tiny_model("Bert")
    adapters = [random_adapter(find_sites(base, "mlp"), seed=seed) for seed in range(3)]
    adapters[0].save(tmp_path / "own")
    adapters[1].save(tmp_path / "run" / "adapter")
    adapters[2].to_peft(tmp_path / "peft", base)
    (tmp_path / "figures").mkdir()
    names, run = ["own", "run", "peft"], SimpleNamespace(adapter=adapters[1])
    banks = RoadBank.from_folder(tmp_path), RoadBank({name: str(tmp_path / name) for name in names})
    for bank in (*banks, RoadBank({"own": adapters[0], "run": run, "peft": tmp_path / "peft"})):
        assert set(bank) == set(names)
        assert [bank[name].distance(each) for name, each in zip(names, adapters, strict=True)] == [0, 0, 0]
    with pytest.raises(InputError, match="its folder, a Run or a RoadModel; several together are a RoadBank$"):
        RoadBank({"a": 3})
    with pytest.raises(InputError, match=r"^give the adapters of a bank by name, as in RoadBank\({'a': first, 'b': second}\)$"):
        RoadBank(adapters)


def test_a_bank_holds_adapters_whose_sites_are_in_another_order(tmp_path):
    """As of a PEFT folder, whose file knows no order of modules."""
    base, batch = tiny_model("Bert"), token_batch()
    sites = find_sites(base, "all-linear")
    first, second = (random_adapter(sites, seed=seed) for seed in range(2))
    second.to_peft(tmp_path, base)
    assert RoadAdapter.load(tmp_path).sites != sites
    model = RoadModel(base, RoadBank({"first": first, "second": tmp_path}))
    rotated = model(base=batch, adapter_names=["second"] * 3)[1].last_hidden_state
    torch.testing.assert_close(rotated, RoadModel(base, second)(base=batch)[1].last_hidden_state)
    assert model.bank["second"].sites == sites


def test_a_bank_or_planes_that_do_not_fit_the_model_are_refused_in_place_of_others(tmp_path):
    base = tiny_model("Llama", "causal-lm")
    sites = find_sites(base, "all-linear")
    first = random_adapter(sites)
    first.to_peft(tmp_path / "peft", base)  # whose sites are in alphabetical order
    model = RoadModel(base, RoadBank({"a": first}), planes=TaskPlanes.split(["x", "y"], sites))
    expected = model(token_batch())[1].logits
    for bank, message in (
        (RoadBank({"a": tmp_path / "peft"}), "its sites have another order; make a RoadModel of it"),
        (RoadBank({"a": random_adapter(sites[:-1])}), "its sites differ"),
        (RoadBank({"a": random_adapter(sites, "road_2")}), "its variant is road_2, not road_1"),
        (RoadBank({"a": replace(first, positions="last")}), "its positions is last, not all"),
        (RoadBank({"a": RoadAdapter.identity(sites, group_size=8)}), "its group_size is 8, not 2"),
    ):
        with pytest.raises(InputError, match=f"this bank does not fit the model: {message}"):
            model.bank = bank
    with pytest.raises(InputError, match="RoadModel.bank needs RoadBank or NoneType, not dict"):
        model.bank = {"a": first}
    with pytest.raises(InputError, match="the planes were split over other sites"):
        model.planes = TaskPlanes.split(["x", "y"], sites[::-1])
    assert torch.equal(model(token_batch())[1].logits, expected)
    model.planes = None
    assert model.planes is None


def test_an_adapter_of_another_model_is_refused_at_the_call_that_reads_it(tmp_path):
    base = tiny_model("Llama", "causal-lm")
    sites = find_sites(base, "attention-qk")
    replace(random_adapter(sites), base=BaseModelSignature("other", "llama", 32, 5)).save(tmp_path / "b")

    def model():
        return RoadModel(base, RoadBank({"a": random_adapter(sites), "b": tmp_path / "b"}))

    def attached():
        with model().attached(["b"]):
            pass

    for call in (
        lambda: model()(token_batch(), adapter_names=["b"] * 3),
        lambda: model().generate(token_batch(), adapter_names=["b"] * 3, max_new_tokens=1),
        lambda: model().generate_batch([[5, 6]], ["b"], max_new_tokens=1),
        lambda: model().merge("b"),
        attached,
    ):
        with pytest.raises(InputError, match="the adapters of the bank were made for another model, 'other'"):
            call()


def test_memory_is_what_the_parameters_need():
    bank = RoadBank({str(seed): random_adapter(SITES, seed=seed) for seed in range(200)})
    assert bank.num_bytes == 200 * bank["0"].num_parameters * 4


def test_an_adapter_that_does_not_fit_is_named_when_it_is_read(tmp_path):
    random_adapter(SITES[:1]).save(tmp_path)
    bank = RoadBank({"x": random_adapter(SITES), "folder": tmp_path})
    with pytest.raises(InputError, match="^adapter 'folder' does not fit this bank: its sites differ$"):
        bank.rows(["folder"])


def test_the_template_takes_the_first_recorded_base():
    base = BaseModelSignature("somewhere/bert", "bert", 32, 2)
    bank = RoadBank({"x": random_adapter(SITES), "y": replace(random_adapter(SITES), base=base), "z": random_adapter(SITES)})
    assert bank.template.base == base
    with pytest.raises(InputError, match="^adapter 'w' does not fit this bank: it was made for another model, .*hidden_size"):
        bank.add("w", replace(random_adapter(SITES), base=replace(base, hidden_size=64)))


def test_adapters_of_different_heads_cannot_share_a_bank(tmp_path):
    """Every row runs through the base model's one head."""
    sites = find_sites(tiny_model("Bert"), "mlp")
    first, second = (replace(random_adapter(sites, seed=seed), modules_to_save=f"head {seed}") for seed in (0, 1))
    first.save(tmp_path)
    assert RoadAdapter.load(tmp_path).modules_to_save == "head 0"
    for other in (second, random_adapter(sites)):
        with pytest.raises(InputError, match="does not fit this bank: its modules_to_save differ, such as its head"):
            RoadBank({"a": first, "b": other})
    assert len(RoadBank({"a": first, "b": first**0.5})) == 2


def test_runs_of_older_releases_with_other_heads_cannot_share_a_bank():
    """The file of their adapter does not name the head, which is beside it."""
    runs = "package://road_interp/example_runs/sentiment-minilm/seed-"
    assert re.fullmatch("[0-9a-f]{64}", RoadAdapter.load(f"{runs}0").modules_to_save)
    bank = RoadBank({"a": f"{runs}0", "b": f"{runs}1"})
    with pytest.raises(InputError, match="'b' does not fit this bank: its modules_to_save differ"):
        bank.rows(["a", "b"])


def test_positions_of_a_run_of_an_older_release_are_those_of_its_recipe(tmp_path):
    folder = tmp_path / "run" / "adapter"
    random_adapter(find_sites(tiny_model("Bert"), "all-linear")).save(folder)
    description = json.loads((folder / "adapter.json").read_text())
    del description["positions"]
    (folder / "adapter.json").write_text(json.dumps(description))
    assert RoadAdapter.load(tmp_path / "run").positions == "all"
    for without in ("{}", "{positions: null}"):
        (tmp_path / "run" / "recipe.yaml").write_text(f"adapter: {without}\n")
        assert RoadAdapter.load(folder).positions == "all"
    (tmp_path / "run" / "recipe.yaml").write_text("adapter: {positions: last}\n")
    assert RoadAdapter.load(tmp_path / "run").positions == RoadAdapter.load(folder).positions == "last"
    for unclear in ("adapter: [", "adapter: {positions: last, positions: first}"):
        (tmp_path / "run" / "recipe.yaml").write_text(unclear)
        with pytest.raises(InputError, match=r"recipe.yaml cannot be read, so that the adapter's positions are unknown"):
            RoadAdapter.load(folder)


def test_folders_inside_packages_are_read(tmp_path, monkeypatch):
    package = tmp_path / "road_test_adapters"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    base = tiny_model("Llama", "causal-lm")
    adapter = random_adapter(find_sites(base, "all-linear"))
    adapter.save(package / "saved")
    adapter.to_peft(package / "peft")
    for bank in (
        RoadBank({"saved": "package://road_test_adapters/saved", "peft": "package://road_test_adapters/peft"}),
        RoadBank.from_folder("package://road_test_adapters"),
    ):
        assert sorted(bank) == ["peft", "saved"]
        assert all(adapter.distance(bank[name]) == 0 for name in bank)
    assert adapter.distance(RoadAdapter.from_peft("package://road_test_adapters/peft")) == 0
    assert adapter.distance(RoadModel.from_peft(base, "package://road_test_adapters/peft").adapter) == 0


def test_what_holds_no_adapters_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "gone"):
        with pytest.raises(InputError, match=f"^{folder} contains no adapter folders, run folders or PEFT folders$"):
            RoadBank.from_folder(folder)
    with pytest.raises(InputError, match="^the model has no PEFT adapters: give a PeftModel, or folders by name$"):
        RoadBank.from_peft(torch.nn.Linear(2, 2))
    with pytest.raises(InputError, match="^the model has no PEFT adapter: give a PeftModel"):
        RoadAdapter.from_peft(torch.nn.Linear(2, 2))


@pytest.mark.parametrize("name", ["", " a", 3, "a+b"])
def test_names_that_no_call_could_mean_are_refused(name):
    with pytest.raises(InputError, match=re.escape(f"{name!r} cannot be the name of an adapter")):
        RoadBank({name: random_adapter(SITES)})


def test_every_change_has_a_version():
    bank = RoadBank({name: random_adapter(SITES, seed=seed) for seed, name in enumerate("abc")})
    versions = [bank.version]
    for change in (
        lambda: bank.replace("a", random_adapter(SITES, seed=3)),
        lambda: bank.remove("b"),
        bank.trainable,
        lambda: bank.add("b", random_adapter(SITES)),
    ):
        change()
        versions.append(bank.version)
    assert len(set(versions)) == 5


def test_a_folder_without_an_adapter_is_refused_when_it_is_given(tmp_path):
    message = f"adapter 'a': '{tmp_path}' contains no adapter, run or PEFT adapter"
    with pytest.raises(InputError, match=message):
        RoadBank({"a": tmp_path})
    bank = RoadBank({"b": random_adapter(SITES)})
    with pytest.raises(InputError, match=message):
        bank.add("a", str(tmp_path))
    assert list(bank) == ["b"]


def test_an_adapter_taken_from_a_bank_is_a_copy():
    bank = RoadBank({"a": random_adapter(SITES)})
    before = [vector.clone() for vector in bank.rows(["a"])]
    taken = bank["a"]
    for name in taken.theta:
        taken.theta[name].add_(1)
        taken.alpha[name].add_(1)
    assert all(map(torch.equal, bank.rows(["a"]), before))


def test_a_bank_in_place_of_one_that_is_gone_is_read():
    """Memory is used again, so that the new bank may have the address of the old one."""
    base, batch = tiny_model("Llama", "causal-lm"), token_batch(1)
    sites = find_sites(base, "block-output")
    adapters = [random_adapter(sites, seed=seed, spread=1.0) for seed in range(2)]
    model = RoadModel(base, RoadBank({"a": adapters[0]}))
    with torch.no_grad():
        expected = [RoadModel(base, RoadBank({"a": adapter}))(batch)[1].logits for adapter in adapters]
        for number in range(6):
            assert torch.equal(model(batch)[1].logits, expected[number % 2])
            model.bank = None
            model.bank = RoadBank({"a": adapters[(number + 1) % 2]})


@pytest.mark.parametrize("change", ["replace", "remove"])
def test_an_adapter_that_is_changed_while_its_folder_is_read_stays_changed(tmp_path, monkeypatch, change):
    new = random_adapter(SITES, seed=1)
    for seed, name in ((0, "a"), (2, "b")):
        random_adapter(SITES, seed=seed).save(tmp_path / name)
    bank = RoadBank({name: tmp_path / name for name in "ab"})
    load = RoadAdapter.load

    def slow(folder):
        found = load(folder)
        if folder == tmp_path / "a":
            (bank.replace if change == "replace" else bank.remove)("a", *([new] if change == "replace" else []))
        return found

    monkeypatch.setattr(RoadAdapter, "load", slow)
    if change == "replace":
        assert [bank["a"].distance(new) for _ in range(2)] == [0, 0]  # in the call that was reading, and in the next one
    else:
        with pytest.raises(InputError, match="unknown adapter 'a'"):
            bank["a"]
        assert "a" not in bank


def test_adapters_come_while_another_thread_asks_for_trainable_ones(monkeypatch):
    bank = RoadBank({f"a{number}": random_adapter(SITES) for number in range(3)})
    asked = []

    def changing(entry):
        asked.append(entry)
        bank.add(f"b{len(asked)}", random_adapter(SITES))
        return False

    monkeypatch.setattr("road_interp.adapters.bank._is_trainable", changing)
    assert not bank.is_trainable
    assert len(asked) == 3


def test_an_adapter_that_does_not_fit_folders_that_were_not_read_is_refused(tmp_path):
    random_adapter(SITES).save(tmp_path)
    bank = RoadBank({"a": tmp_path})
    with pytest.raises(InputError, match="adapter 'b' does not fit this bank: its sites differ"):
        bank.add("b", random_adapter(SITES[:1]))
    assert list(bank) == ["a"]
    assert bank["a"].sites == SITES


def test_the_only_folder_may_be_replaced_without_reading_it(tmp_path):
    random_adapter(SITES).save(tmp_path)
    bank = RoadBank({"a": tmp_path})
    (tmp_path / "adapter.safetensors").write_bytes(b"damaged")
    bank.replace("a", other := random_adapter(SITES[:1]))
    assert bank["a"].distance(other) == 0
