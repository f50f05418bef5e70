"""The files of an adapter: bitwise storage, interrupted saving, and errors that name site and reason."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.models import random_adapter, tiny_model
from road_interp.adapters.road_adapter import RoadAdapter
from road_interp.adapters.storage import DESCRIPTION
from road_interp.errors import InputError
from road_interp.files import locked
from road_interp.sites.find import find_sites
from road_interp.sites.site import OutputSlice, Site

SITES = (Site("a.query", 8, 0, "query"), Site("a.fused[key]", 16, 1, "fused[key]", OutputSlice(48, 16, 32)))


def tensor_file(folder: Path) -> Path:
    return folder / json.loads((folder / DESCRIPTION).read_text())["tensors"]


@pytest.mark.parametrize(("variant", "group_size"), [("road_1", 2), ("road_2", 4), ("road_4", 8)])
def test_save_and_load_are_bitwise_exact(tmp_path, variant, group_size):
    adapter = random_adapter(SITES, variant, group_size)
    adapter.save(tmp_path / "adapter")
    again = RoadAdapter.load(tmp_path / "adapter")
    assert (again.sites, again.variant, again.group_size) == (adapter.sites, variant, group_size)
    for site in SITES:
        assert torch.equal(again.theta[site.name], adapter.theta[site.name])
        assert torch.equal(again.alpha[site.name], adapter.alpha[site.name])
    assert {path.suffix for path in (tmp_path / "adapter").iterdir()} == {".json", ".safetensors"}


def test_sites_may_share_a_tensor(tmp_path):
    sites, values = (Site("first", 8), Site("second", 8)), torch.full((4,), 0.5)
    shared = RoadAdapter(sites, dict.fromkeys(("first", "second"), values), dict.fromkeys(("first", "second"), values))
    shared.save(tmp_path)
    assert RoadAdapter.load(tmp_path).distance(shared) == 0


def test_adapter_json_is_indented_and_names_the_tensor_file(tmp_path):
    folder = tmp_path / "several" / "new" / "parents"
    random_adapter(SITES).save(folder)
    text = (folder / DESCRIPTION).read_text()
    description = json.loads(text)
    assert text == json.dumps(description, indent=2) + "\n"
    assert tensor_file(folder).name == f"adapter-{description['sha256'][:16]}.safetensors"


def test_saving_again_repairs_a_folder_without_its_tensor_file(tmp_path):
    random_adapter(SITES, seed=1).save(tmp_path)
    tensor_file(tmp_path).unlink()
    random_adapter(SITES, seed=2).save(tmp_path)
    assert RoadAdapter.load(tmp_path).distance(random_adapter(SITES, seed=2)) == 0


def test_saving_again_replaces_the_adapter_and_removes_the_old_file(tmp_path):
    random_adapter(SITES, seed=1).save(tmp_path)
    other = random_adapter(SITES, seed=2)
    other.save(tmp_path)
    other.save(tmp_path)
    assert torch.equal(RoadAdapter.load(tmp_path).theta["a.query"], other.theta["a.query"])
    assert len(list(tmp_path.iterdir())) == 2


def test_an_adapter_is_not_saved_into_the_folder_of_a_run(tmp_path):
    """A run has its adapter in a folder of its own: a second one beside the recipe would be read in its place."""
    (tmp_path / "recipe.yaml").write_text("kind: classification")
    random_adapter(SITES).save(tmp_path / "adapter")
    with pytest.raises(InputError, match="is the folder of a run, which has an adapter: save into another folder"):
        random_adapter(SITES).save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"adapter", "recipe.yaml"}


@pytest.mark.parametrize("moment", ["before the tensors", "before the description", "before the old file is removed"])
def test_an_interrupted_save_leaves_a_valid_adapter(tmp_path, moment):
    old, new = random_adapter(SITES, seed=1), random_adapter(SITES, seed=2)
    old.save(tmp_path / "adapter")

    def killed() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def save_until_the_moment() -> None:
        replaced, real = itertools.count(1), os.replace
        last = {"before the tensors": 1, "before the description": 2}.get(moment)
        os.replace = lambda *paths: killed() if next(replaced) == last else real(*paths)
        if moment == "before the old file is removed":
            Path.unlink = lambda *_, **__: killed()
        new.save(tmp_path / "adapter")

    saving = multiprocessing.get_context("fork").Process(target=save_until_the_moment)
    saving.start()
    saving.join()
    assert saving.exitcode == -signal.SIGKILL
    expected = new if moment == "before the old file is removed" else old
    assert torch.equal(RoadAdapter.load(tmp_path / "adapter").theta["a.query"], expected.theta["a.query"])


def edit_description(folder: Path, **changes: object) -> None:
    path = folder / DESCRIPTION
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_tensors(folder: Path, change) -> None:
    """Change the stored tensors and update the checksum, as another tool might."""
    import hashlib

    path = tensor_file(folder)
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    edit_description(folder, sha256=hashlib.sha256(path.read_bytes()).hexdigest())


def set_tensor(name, value):
    return lambda tensors: tensors.__setitem__(name, value)


BAD_TENSORS = {
    "a.query.*theta\\[2\\] is nan": set_tensor("a.query.theta", torch.tensor([0, 0, float("nan"), 0])),
    "a.query.*alpha\\[0\\] is inf": set_tensor("a.query.alpha", torch.tensor([float("inf"), 0, 0, 0])),
    "a.query.*shape \\(3,\\).*needs \\(4,\\)": set_tensor("a.query.theta", torch.zeros(3)),
    "a.query.*dtype torch.int64": set_tensor("a.query.theta", torch.zeros(4, dtype=torch.int64)),
    "^.*: site 'a.query': its theta is missing$": lambda tensors: tensors.pop("a.query.theta"),
    "'a.value', which is not a site": set_tensor("a.value.theta", torch.zeros(4)),
    "unknown tensor 'a.query.gamma'": set_tensor("a.query.gamma", torch.zeros(4)),
}


@pytest.mark.parametrize("message", BAD_TENSORS)
def test_bad_tensors_are_refused_with_site_and_reason(tmp_path, message):
    random_adapter(SITES).save(tmp_path)
    edit_tensors(tmp_path, BAD_TENSORS[message])
    with pytest.raises(InputError, match=message):
        RoadAdapter.load(tmp_path)


BASE = {"name": "n", "model_type": "bert", "hidden_size": 32, "num_hidden_layers": 2}


SITE = {"name": "a", "width": 8, "layer": 0, "kind": "", "part": None}


BAD_DESCRIPTIONS = {
    "unknown variant 'road_3'": {"variant": "road_3"},
    "adapter.json: 'group_size' must be a whole number, not 2.5$": {"group_size": 2.5},
    "not divisible by group_size 6": {"group_size": 6},
    "even number": {"group_size": 3},
    "format 99 is newer than this release": {"format": 99},
    ": adapter.json: unknown key 'gropu_size'; known are base, format, group_size, modules_to_save, .*, variant$": {
        "gropu_size": 2
    },
    "must name a safetensors file of this folder": {"tensors": "../other.safetensors"},
    "'sites' must be a list": {"sites": 3},
    "site 0 must be an object": {"sites": ["a"]},
    "adapter.json: base must be an object$": {"base": "bert"},
    "adapter.json: base: key 'hidden_size' is missing$": {"base": {"name": "n", "model_type": "bert", "num_hidden_layers": 2}},
    "adapter.json: base: 'model_type' must be text, not 3$": {"base": {**BASE, "model_type": 3}},
    "adapter.json: base: 'num_hidden_layers' must be a whole number, not '2'$": {"base": {**BASE, "num_hidden_layers": "2"}},
    "adapter.json: site 1: 'name' must be text, not 3$": {"sites": [SITE, {**SITE, "name": 3}]},
    "adapter.json: site 0: 'kind' must be text, not None$": {"sites": [{**SITE, "kind": None}]},
    "adapter.json: site 0: 'layer' must be a whole number, not True$": {"sites": [{**SITE, "layer": True}]},
    "adapter.json: site 0: 'part' must be an object$": {"sites": [{**SITE, "part": [48, 16, 32]}]},
    "adapter.json: site 0: part: unknown key 'end'; known are period, start, stop$": {
        "sites": [{**SITE, "part": {"period": 48, "start": 16, "end": 32}}]
    },
    "adapter.json: site 0: part: 'stop' must be a whole number, not '32'$": {
        "sites": [{**SITE, "part": {"period": 48, "start": 16, "stop": "32"}}]
    },
    "adapter.json: 'positions' must be text, not 3$": {"positions": 3},
    "adapter.json: 'modules_to_save' must be text, not 3$": {"modules_to_save": 3},
    "adapter.json: format 2 is newer than .*: pip install 'road-interp>=9.8'$": {"format": 2, "release": "9.8"},
    "adapter.json: format 2 is newer than .*: pip install --upgrade road-interp$": {"format": 2, "release": None},
    "'frist' is not a position": {"positions": "frist"},
    "needs at least one site": {"sites": []},
    "site 0: key 'kind' is missing": {"sites": [{"name": "a", "width": 8}]},
    "width 7 cannot be paired": {"sites": [{"name": "a", "width": 7, "layer": 0, "kind": "", "part": None}]},
    "adapter.json: site 0: 'width' must be a whole number, not '8'$": {"sites": [{**SITE, "width": "8"}]},
}


@pytest.mark.parametrize("message", BAD_DESCRIPTIONS)
def test_bad_descriptions_are_refused(tmp_path, message):
    random_adapter(SITES).save(tmp_path)
    edit_description(tmp_path, **BAD_DESCRIPTIONS[message])
    with pytest.raises(InputError, match=message):
        RoadAdapter.load(tmp_path)


def test_damaged_folders_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"adapter\.json is missing"):
        RoadAdapter.load(tmp_path)
    random_adapter(SITES).save(tmp_path)
    path = tensor_file(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-4] + b"\x00\x00\x00\x40")
    with pytest.raises(InputError, match="changed after it was saved"):
        RoadAdapter.load(tmp_path)
    path.write_bytes(whole[:-4] + b"\x00\x00\xc0\x7f")
    with pytest.raises(InputError, match=f"{path.name}: site 'a.query': theta holds a value that is not finite$"):
        RoadAdapter.load(tmp_path)
    path.write_bytes(whole[:50])
    with pytest.raises(InputError, match="not a readable safetensors file"):
        RoadAdapter.load(tmp_path)
    path.unlink()
    with pytest.raises(InputError, match=f"{path.name} is missing$"):
        RoadAdapter.load(tmp_path)
    path.mkdir()
    with pytest.raises(InputError, match=f"{path.name} cannot be read \\(Is a directory\\)$"):
        RoadAdapter.load(tmp_path)
    (tmp_path / DESCRIPTION).write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        RoadAdapter.load(tmp_path)


def test_an_adapter_file_without_positions_rotates_all_tokens(tmp_path):
    random_adapter(find_sites(tiny_model("Bert"), "mlp")).save(tmp_path)
    description = json.loads((tmp_path / "adapter.json").read_text())
    assert description.pop("positions") == "all"
    (tmp_path / "adapter.json").write_text(json.dumps(description))
    assert RoadAdapter.load(tmp_path).positions == "all"


@pytest.mark.parametrize(("recipe", "positions"), [("adapter: {positions: last}", "last"), ("adapter: {variant: road_1}", "all")])
def test_an_adapter_file_without_positions_has_those_of_its_run(tmp_path, recipe, positions):
    folder = tmp_path / "adapter"
    random_adapter(SITES).save(folder)
    description = json.loads((folder / DESCRIPTION).read_text())
    for key in ("positions", "modules_to_save"):
        del description[key]
    (folder / DESCRIPTION).write_text(json.dumps(description))
    (tmp_path / "recipe.yaml").write_text(recipe)
    found = RoadAdapter.load(tmp_path)
    assert (found.positions, found.modules_to_save) == (positions, None)


def test_an_adapter_file_needs_its_format(tmp_path):
    random_adapter(SITES).save(tmp_path)
    description = json.loads((tmp_path / DESCRIPTION).read_text())
    assert description.pop("format") == 1
    (tmp_path / DESCRIPTION).write_text(json.dumps(description))
    with pytest.raises(InputError, match="adapter.json: key 'format' is missing$"):
        RoadAdapter.load(tmp_path)


def test_readers_do_not_wait_for_each_other(tmp_path):
    random_adapter(SITES).save(tmp_path)
    with ThreadPoolExecutor(1) as pool, locked(tmp_path, shared=True):
        pool.submit(RoadAdapter.load, tmp_path).result(timeout=20)


def test_an_adapter_is_read_from_the_folders_that_the_command_line_takes(tmp_path):
    base = tiny_model("Bert")
    adapter = random_adapter(find_sites(base, "mlp"))
    adapter.save(tmp_path / "run" / "adapter")
    adapter.to_peft(tmp_path / "peft", base)
    assert RoadAdapter.load(tmp_path / "run").distance(adapter) == 0
    assert RoadAdapter.load(str(tmp_path / "peft")).distance(adapter) == 0
    assert RoadAdapter.load(tmp_path / "peft", base).sites == adapter.sites
    base.layers = torch.nn.ModuleList(
        [torch.nn.Sequential(torch.nn.Linear(32, 32))]
    )  # a number in its path is no layer of the blocks
    sites = (Site("layers.0.0", 32, None, "layers.0.0"),)
    random_adapter(sites).to_peft(tmp_path / "outside", base)
    assert RoadAdapter.load(tmp_path / "outside", base).sites[0].layer is None
    assert RoadAdapter.of(tmp_path / "outside", base).sites[0].layer is None
    assert RoadAdapter.load(tmp_path / "outside").sites[0].layer == 0
    (adapter**2).save(tmp_path / "peft")  # a folder with both: its own format is complete
    assert RoadAdapter.load(tmp_path / "peft").distance(adapter**2) == 0
    assert RoadAdapter.of(adapter) is RoadAdapter.of(SimpleNamespace(adapter=adapter)) is adapter
    with pytest.raises(InputError, match=r"missing: no adapter here \(there is no such folder\)$"):
        RoadAdapter.of(str(tmp_path / "missing"))


def test_a_place_without_an_adapter_says_what_is_there(tmp_path):
    file, empty, of_pyvene = tmp_path / "file", tmp_path / "empty", tmp_path / "pyvene"
    file.write_text("")
    for folder in (empty, of_pyvene):
        folder.mkdir()
    (of_pyvene / "config.json").write_text("{}")
    for place, reason in (
        (file, "this is a file; give the folder with adapter.json"),
        (tmp_path / "gone", "there is no such folder"),
        (empty, "adapter.json is missing"),
        (of_pyvene, "adapter.json is missing; RoadModel.load reads this folder"),
    ):
        with pytest.raises(InputError) as error:
            RoadAdapter.load(place)
        assert str(error.value) == f"{place}: no adapter here ({reason})"
