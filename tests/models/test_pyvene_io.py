"""Reading and writing pyvene folders gives equal outputs."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import replace

import pytest
import pyvene
import torch

from helpers.models import random_adapter, tiny_model, token_batch
from helpers.road_models import road_model
from road_interp.adapters.bank import RoadBank
from road_interp.adapters.base_model import BaseModelSignature
from road_interp.adapters.task_planes import TaskPlanes
from road_interp.errors import InputError
from road_interp.models.intervention import RoadIntervention
from road_interp.models.pyvene_io import read_interventions
from road_interp.models.road_model import RoadModel
from road_interp.sites.find import find_sites
from road_interp.sites.site import OutputSlice, Site


@torch.no_grad()
def logits(model, base, **options):
    return model(base, **options)[1].logits


@pytest.mark.parametrize(("variant", "group_size"), [("road_1", 2), ("road_2", 8), ("road_4", 4)])
@pytest.mark.parametrize("target_modules", ["block-output", "all-linear"])
def test_plain_pyvene_loads_the_folder(variant, group_size, target_modules, tmp_path):
    base, batch = tiny_model("Llama", "causal-lm"), token_batch()
    model = RoadModel(base, random_adapter(find_sites(base, target_modules), variant, group_size))
    expected = logits(model, batch)
    representations = list(model.config.representations)
    model.save(tmp_path)
    assert model.config.representations == representations
    types = json.loads((tmp_path / "config.json").read_text())["intervention_types"]
    assert set(types) == {"<class 'road_interp.RoadIntervention'>"}  # independent of the module that defines the class
    torch.testing.assert_close(logits(model, batch), expected)

    plain = pyvene.IntervenableModel.load(str(tmp_path), copy.deepcopy(base))
    assert type(plain) is pyvene.IntervenableModel
    assert {(each.variant, each.group_size) for each in plain.interventions.values()} == {(variant, group_size)}
    torch.testing.assert_close(logits(plain, batch), expected, atol=1e-6, rtol=1e-6)
    again = RoadModel.load(tmp_path, copy.deepcopy(base))
    assert again.sites == model.sites
    for site in model.sites:
        assert torch.equal(again.adapter.theta[site.name], model.adapter.theta[site.name])
        assert torch.equal(again.adapter.alpha[site.name], model.adapter.alpha[site.name])

    plain.save(str(tmp_path / "theirs"))  # folders written by pyvene itself can be read too
    theirs = RoadModel.load(tmp_path / "theirs", copy.deepcopy(base))
    torch.testing.assert_close(logits(theirs, batch), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("group_size", [2, 4, 32])
def test_planes_are_saved_as_subspaces(group_size, tmp_path):
    base, batch = tiny_model("Llama", "causal-lm"), token_batch()
    sites = find_sites(base, "block-output")
    model = RoadModel(
        base, random_adapter(sites, group_size=group_size), planes=TaskPlanes.split(["a", "b"], sites, "alternating")
    )
    expected = logits(model, batch, tasks=["a", "a+b", "__base__"])
    model.save(tmp_path)
    plain = pyvene.IntervenableModel.load(str(tmp_path), copy.deepcopy(base))
    found = logits(plain, batch, subspaces=[[[0], [0, 1], []]] * len(sites))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    again = RoadModel.load(tmp_path, copy.deepcopy(base))
    assert again.planes.to_json() == model.planes.to_json()
    assert torch.equal(logits(again, batch, tasks=["a", "a+b", "__base__"]), expected)
    by_pyvene = logits(model, batch, subspaces=[[[0], [0, 1], []]] * len(sites))
    assert torch.equal(logits(again, batch, subspaces=[[[0], [0, 1], []]] * len(sites)), by_pyvene)
    (tmp_path / "tasks.json").unlink()  # as in a folder that pyvene itself wrote
    assert RoadModel.load(tmp_path, copy.deepcopy(base)).planes.tasks == ("0", "1")
    (tmp_path / "tasks.json").write_text('["a"]')
    with pytest.raises(InputError, match=r"tasks.json' must list the names of 2 tasks"):
        RoadModel.load(tmp_path, copy.deepcopy(base))


@pytest.mark.parametrize("group_size", [2, 4, 8])
def test_a_task_with_a_single_plane_keeps_it(group_size, tmp_path):
    """pyvene reads a subspace of two numbers as a range."""
    base, batch = tiny_model("Llama", "causal-lm"), token_batch()
    sites = find_sites(base, "block-output")
    one = torch.arange(sites[0].width // 2) == 1
    planes = TaskPlanes(sites, {"one": {site.name: one for site in sites}, "rest": {site.name: ~one for site in sites}})
    model = RoadModel(base, random_adapter(sites, group_size=group_size), planes=planes)
    expected = logits(model, batch, tasks=["one", "rest", "one+rest"])
    found = logits(model, batch, subspaces=[[[0], [1], [0, 1]]] * len(sites))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    model.save(tmp_path)
    again = RoadModel.load(tmp_path, copy.deepcopy(base))
    assert again.planes.to_json() == planes.to_json()
    assert torch.equal(logits(again, batch, tasks=["one", "rest", "one+rest"]), expected)


@pytest.mark.parametrize("architecture", ["Bert", "GPT2"])
def test_architectures_and_slices_that_pyvene_does_not_know(architecture, tmp_path):
    base, batch = tiny_model(architecture), token_batch()
    model = RoadModel(base, random_adapter(find_sites(base, "attention-qk")))
    model.save(tmp_path)
    untouched = tiny_model(architecture).train()
    assert read_interventions(tmp_path, untouched)[0].sites == model.sites
    assert untouched.training
    assert all(parameter.requires_grad for parameter in untouched.parameters())
    again = RoadModel.load(tmp_path, copy.deepcopy(base))
    assert again.sites == model.sites
    with torch.no_grad():
        torch.testing.assert_close(again(batch)[1].last_hidden_state, model(batch)[1].last_hidden_state)


def test_a_slice_unknown_to_find_sites_keeps_its_dimensions(tmp_path):
    base = tiny_model("GPT2")
    site = Site("h.0.mlp.c_fc", 16, 0, "mlp.c_fc", OutputSlice(128, 8, 24))
    RoadModel(base, random_adapter((site,))).save(tmp_path)
    (found,) = RoadModel.load(tmp_path, base).sites
    assert (found.name, found.output_slice) == ("h.0.mlp.c_fc[8:24 of 128]", site.output_slice)


@pytest.mark.parametrize("architecture", ["Bert", "GPT2"])
def test_save_and_load_under_pyvenes_names(architecture, tmp_path):
    base, batch = tiny_model(architecture, "classifier"), token_batch()
    planes = TaskPlanes.split(["a", "b"], find_sites(base, "block-output"))
    model = RoadModel(base, random_adapter(planes.sites), "last", planes)
    model.save(tmp_path)
    for loaded in (RoadModel.load(tmp_path, base, positions="last"), RoadModel.load(str(tmp_path), model=base)):
        assert loaded.adapter.distance(model.adapter) == 0
        assert loaded.planes.tasks == ("a", "b")
    assert torch.equal(logits(RoadModel.load(tmp_path, base, "last"), batch), logits(model, batch))
    with pytest.raises(InputError, match=r"already contains a config\.json"):
        model.save(tmp_path)
    model.adapter.save(tmp_path / "adapter")
    with pytest.raises(InputError, match=r"is not a pyvene folder: RoadModel\(base, '.*'\) takes adapters and runs"):
        RoadModel.load(tmp_path / "adapter", base)
    assert RoadModel.load(tmp_path, base).adapter.distance(model.adapter) == 0


def test_a_config_with_pyvenes_component_names(tmp_path):
    base, batch = tiny_model("GPT2", "causal-lm"), token_batch()
    config = pyvene.IntervenableConfig([{"layer": 1, "component": "block_output", "intervention_type": RoadIntervention}])
    plain = pyvene.IntervenableModel(config, base)
    (intervention,) = plain.interventions.values()
    torch.nn.init.normal_(intervention.theta)
    expected = logits(plain, batch)
    plain.save(str(tmp_path))
    model = RoadModel.load(tmp_path, copy.deepcopy(base))
    assert [(site.name, site.layer, site.kind) for site in model.sites] == [("transformer.h.1", 1, "block-output")]
    torch.testing.assert_close(logits(model, batch), expected, atol=1e-6, rtol=1e-6)


@torch.no_grad()
def test_plain_pyvene_keeps_the_subspaces_of_an_instance(tmp_path):
    base, batch = tiny_model("Llama", "causal-lm"), token_batch()
    intervention = RoadIntervention(32, subspace_partition=[[0, 16], [16, 32]])
    intervention.theta += torch.randn(16, generator=torch.Generator().manual_seed(0))
    config = [{"layer": 1, "component": "block_output", "intervention": intervention}]
    model, subspaces = pyvene.IntervenableModel(config, base), [[[0], [1], [0, 1]]]
    model.save(str(tmp_path))
    expected = model(batch, subspaces=subspaces)[1].logits
    loaded = pyvene.IntervenableModel.load(str(tmp_path), base)
    assert torch.equal(loaded(batch, subspaces=subspaces)[1].logits, expected)
    with_tasks = RoadModel.load(tmp_path, base)
    torch.testing.assert_close(with_tasks(batch, tasks=["0", "1", "0+1"])[1].logits, expected, rtol=0, atol=1e-6)
    with pytest.raises(RuntimeError, match="'subspace_planes' are not the subspaces of this intervention"):
        RoadIntervention(32, subspace_partition=[[0, 8], [8, 32]]).load_state_dict(intervention.state_dict())


def test_a_state_of_another_form_is_refused():
    intervention = RoadIntervention(16, "road_2", 8)
    before = {name: values.clone() for name, values in intervention.state_dict().items()}
    other = RoadIntervention(16, "road_2", 2)
    torch.nn.init.normal_(other.theta)
    with pytest.raises(RuntimeError, match="'form' is not this intervention's variant, group_size and output slice"):
        intervention.load_state_dict(other.state_dict())
    assert all(torch.equal(values, before[name]) for name, values in intervention.state_dict().items())
    older = {name: values for name, values in intervention.state_dict().items() if name != "form"}
    intervention.load_state_dict(older)


@pytest.mark.parametrize("partition", [5, "ab", [5], [["a", 2]], [[0, 10**12]], [[-2, 4]], [[0, 1.5]]])
def test_invalid_subspaces_are_refused(tmp_path, partition):
    base = tiny_model("Llama", "causal-lm")
    RoadModel(base, random_adapter(find_sites(base, "block-output"))).save(tmp_path)
    config = tmp_path / "config.json"
    content = json.loads(config.read_text())
    place = pyvene.RepresentationConfig._fields.index("subspace_partition")
    for entry in content["representations"]:
        entry[place] = partition
    config.write_text(json.dumps(content))
    with pytest.raises(InputError, match="a subspace_partition of config.json must be lists of dimensions of 32"):
        RoadModel.load(tmp_path, base)


def test_tasks_that_are_no_json_are_refused(tmp_path):
    base = tiny_model("Llama", "causal-lm")
    sites = find_sites(base, "block-output")
    RoadModel(base, random_adapter(sites), planes=TaskPlanes.split(["a", "b"], sites)).save(tmp_path)
    (tmp_path / "tasks.json").write_text('["a", ')
    with pytest.raises(InputError, match="tasks.json' must list the names of 2 tasks"):
        RoadModel.load(tmp_path, base)


def test_invalid_folders_are_refused(tmp_path):
    base = tiny_model("Llama", "causal-lm")
    model = RoadModel(base, random_adapter(find_sites(base, "block-output")))
    model.save(tmp_path)
    config = tmp_path / "config.json"
    content = json.loads(config.read_text())

    def refuse(message, changed=content, model=base):
        config.write_text(json.dumps(changed))
        with pytest.raises(InputError, match=message):
            RoadModel.load(tmp_path, model)

    other = ["<class 'pyvene.models.interventions.VanillaIntervention'>"]
    vanilla = {**content, "intervention_types": other}
    refuse("contains an intervention of type <class 'pyvene.*VanillaIntervention'>, not RoadIntervention", vanilla)
    refuse("is not a pyvene config", {"a": 1})
    refuse("names a component that BertModel does not have", model=tiny_model("Bert"))
    entry = [*content["representations"][0]]
    entry[1] = "model.layers[0].input"
    refuse("rotates a module's input", {**content, "representations": [entry]})
    entry[1] = "model.layers[x].output"
    refuse("names a component", {**content, "representations": [entry]})
    refuse("names a component", {**content, "representations": [5]})
    refuse("names a component", {**content, "representations": [[None] * 40]})
    refuse("contains no intervention", {**content, "representations": []})
    entry[1] = "model.layers[0]"  # pyvene raises UnboundLocalError
    refuse("names a component", {**content, "representations": [entry]})
    config.write_text(json.dumps(content))
    state = next(tmp_path.glob("*.bin"))

    def refuse_state(message):
        with pytest.raises(InputError, match=message):
            RoadModel.load(tmp_path, base)

    tensors = torch.load(state)
    for form in ([9, 2, 0, 0, 0], [0.0, 2, 0, 0, 0], [[0, 2, 0, 0, 0]], [0, 2], [0, 2, 16, 0, 0]):
        torch.save({**tensors, "form": torch.tensor(form)}, state)
        refuse_state("is not the form of a RoadIntervention")
    torch.save({**tensors, "form": torch.tensor([1, 2, 0, 0, 0])}, state)
    refuse_state("contains several variants or group sizes")
    torch.save({"theta": tensors["theta"]}, state)
    refuse_state("is not the state of a RoadIntervention")
    for damaged in (pickle.dumps(print), b"", b"hello world", b"\x80\x02.", pickle.dumps([1.5] * 9)[:20]):
        state.write_bytes(damaged)
        refuse_state("cannot be read as tensors")
    state.unlink()
    refuse_state("does not exist")
    with pytest.raises(InputError, match=r"already contains a config\.json"):
        model.save(tmp_path)
    with pytest.raises(InputError, match="a bank holds several adapters"):
        RoadModel(base, RoadBank({"a": model.adapter})).save(tmp_path)


def test_positions_of_one_batch_are_not_saved(tmp_path):
    base = tiny_model("Llama", "causal-lm")
    model = RoadModel(base, random_adapter(find_sites(base, "all-linear")), positions=[[0]])
    with pytest.raises(InputError, match="tokens of one batch"):
        model.save(tmp_path / "pyvene")
    with pytest.raises(InputError, match="positions given as lists cannot be expressed in PEFT"):
        model.to_peft(tmp_path / "peft")
    assert not [*tmp_path.iterdir()]


def test_an_interrupted_save_leaves_no_other_rotations(tmp_path, monkeypatch):
    base = tiny_model("Llama", "causal-lm")
    sites = find_sites(base, "block-output")
    model = RoadModel(base, random_adapter(sites), "last", TaskPlanes.split(["a", "b"], sites))

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    for name in ("write_atomically", "pyvene.IntervenableModel.save"):
        with monkeypatch.context() as patch:
            patch.setattr(f"road_interp.models.pyvene_io.{name}", full_disk)
            with pytest.raises(OSError, match="No space"):
                model.save(tmp_path)
        with pytest.raises(InputError):
            RoadModel.load(tmp_path, base)
    model.save(tmp_path)
    assert RoadModel.load(tmp_path, base).positions == "last"


def test_positions_are_kept(tmp_path):
    model = road_model("GPT2", "block-output", positions="last")
    model.save(tmp_path / "saved")
    again = RoadModel.load(tmp_path / "saved", model.model)
    assert again.positions == again.adapter.positions == "last"
    batch = token_batch()
    assert torch.equal(again(base=batch)[1].logits, model(base=batch)[1].logits)
    assert RoadModel.load(tmp_path / "saved", model.model, positions="all").positions == "all"
    (tmp_path / "saved" / "positions.json").write_text('{"positions": 3}')
    with pytest.raises(InputError, match="'positions' must be text"):
        RoadModel.load(tmp_path / "saved", model.model)


def test_the_base_model_and_other_trained_weights_are_remembered(tmp_path):
    base = tiny_model("Llama", "causal-lm")
    adapter = replace(random_adapter(find_sites(base, "mlp")), modules_to_save="0" * 64)
    RoadModel(base, adapter).save(tmp_path)
    again = RoadModel.load(tmp_path, base).adapter
    assert (again.base, again.modules_to_save) == (BaseModelSignature.of(base), "0" * 64)
    with pytest.raises(InputError, match="made for another model.*num_hidden_layers is"):
        RoadModel.load(tmp_path, tiny_model("Llama", "causal-lm", num_hidden_layers=4))
    content = json.loads((tmp_path / "positions.json").read_text())
    for key, value, message in (("base", 3, "base must be an object"), ("modules_to_save", 3, "must be a sha256 or null")):
        (tmp_path / "positions.json").write_text(json.dumps({**content, key: value}))
        with pytest.raises(InputError, match=message):
            RoadModel.load(tmp_path, base)
    (tmp_path / "positions.json").write_text('{"positions": "all"}')  # of an older version
    assert read_interventions(tmp_path, base)[0].base is None
