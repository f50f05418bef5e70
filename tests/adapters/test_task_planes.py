"""TaskPlanes: disjoint planes, the identity where inactive, rows independent of each other, equal to pyvene's subspaces."""

from __future__ import annotations

import pytest
import pyvene
import torch

from helpers.models import needs_compiler, padded_batch, random_adapter, tiny_model, token_batch
from road_interp.adapters.bank import RoadBank
from road_interp.adapters.joined_names import BASE
from road_interp.adapters.road_adapter import RoadAdapter
from road_interp.adapters.task_planes import TaskPlanes
from road_interp.errors import InputError
from road_interp.models.intervention import RoadIntervention
from road_interp.models.road_model import RoadModel
from road_interp.rotation import plane_maps
from road_interp.sites.find import find_sites
from road_interp.sites.site import Site

SITES = (Site("a", 12, 0), Site("b", 16, 0), Site("c", 12, 1), Site("d", 8, 2))
TASKS = ("x", "y", "z")
SPLITS = ["shares", "alternating", "sites", "layers"]
GREEDY = {"do_sample": False, "max_new_tokens": 5, "min_new_tokens": 5, "pad_token_id": 2}


def task_model(target_modules="all-linear", variant="road_1", group_size=2, how="shares", positions="all", tasks=TASKS):
    base = tiny_model("Llama", "causal-lm", num_hidden_layers=3 if how == "layers" else 2)
    sites = find_sites(base, target_modules)
    adapter = random_adapter(sites, variant, group_size)
    return RoadModel(base, adapter, positions, TaskPlanes.split(tasks, sites, how))


# ---------------------------------------------------------------- the value


@pytest.mark.parametrize("how", SPLITS)
def test_every_plane_belongs_to_one_task(how):
    planes = TaskPlanes.split(TASKS, SITES, how)
    assert planes.tasks == TASKS
    for index, site in enumerate(SITES):
        owners = torch.stack([planes.of(task)[site.name] for task in TASKS]).sum(0)
        assert torch.equal(owners, torch.ones_like(owners))
        rows = planes.rows(["x", "x+z", BASE, "x+y+z"])[index]
        assert torch.equal(rows[0], planes.of("x")[site.name])
        assert torch.equal(rows[1], planes.of("x")[site.name] | planes.of("z")[site.name])
        assert not rows[2].any()
        assert rows[3].all()


def test_the_planes_of_every_split():
    assert TaskPlanes.split(["x", "y"], SITES).of("x")["b"].tolist() == [True] * 4 + [False] * 4
    assert TaskPlanes.split(["x", "y"], SITES, "alternating").of("y")["d"].tolist() == [False, True, False, True]
    assert [mask.all().item() for mask in TaskPlanes.split(["x", "y"], SITES, "sites").of("x").values()] == [
        True,
        False,
        True,
        False,
    ]
    assert [mask.all().item() for mask in TaskPlanes.split(["x", "y"], SITES, "layers").of("x").values()] == [
        True,
        True,
        False,
        True,
    ]


@pytest.mark.parametrize("group_size", [2, 4])
def test_dimensions_are_those_of_the_planes(group_size):
    planes = TaskPlanes.split(["x", "y"], SITES, "alternating")
    first, second = plane_maps.plane_dimensions(12, group_size)
    mine, others = planes.dimensions(SITES[0], group_size)
    assert sorted(mine + others) == list(range(12))
    assert {first[0].item(), second[0].item()} <= set(mine)
    assert {first[1].item(), second[1].item()} <= set(others)


def test_layers_are_counted_among_those_that_have_sites():
    sites = (Site("h.1.a", 4, 1), Site("h.1.b", 4, 1), Site("h.4.a", 4, 4))
    planes = TaskPlanes.split(["x", "y"], sites, "layers")
    assert [planes.of("x")[site.name].all().item() for site in sites] == [True, True, False]
    assert [planes.of("y")[site.name].all().item() for site in sites] == [False, False, True]


def test_planes_round_trip_through_json():
    planes = TaskPlanes.split(["x", "y"], SITES, "alternating")
    again = TaskPlanes.from_json(planes.to_json(), SITES)
    assert again.to_json() == planes.to_json()
    partial = TaskPlanes.from_json({"x": {"a": [0, 5]}}, SITES)
    assert partial.of("x")["a"].tolist() == [True, False, False, False, False, True]
    assert not partial.of("x")["b"].any()
    assert partial.of("x")["b"].dtype == partial.rows(["x", BASE])[1].dtype == torch.bool
    at_a, *others = partial.strengths([{"x": 2}])
    assert at_a.tolist() == [[2, 1, 1, 1, 1, 2]]
    assert all((each == 1).all() for each in others)
    assert partial.dimensions(SITES[1], 2) == [[]]
    assert TaskPlanes.from_json({"x": {"a": [2]}}, SITES).dimensions(SITES[0], 2) == [[4, 5, 5]]  # two numbers are a range
    assert not TaskPlanes.from_json({"x": {"a": []}}, SITES).of("x")["a"].any()


def test_sites_may_be_a_list():
    model = tiny_model("Llama")
    sites = [*find_sites(model, "mlp")]
    identity = RoadAdapter.identity(sites)
    adapter = RoadAdapter(sites, identity.theta, identity.alpha)
    owned = TaskPlanes.split(["x", "y"], sites).owned
    for planes in (TaskPlanes(sites, owned), TaskPlanes(tuple(sites), owned)):
        assert RoadModel(model, adapter, planes=planes).planes.sites == adapter.sites == tuple(sites)


def test_planes_are_shown_in_one_line():
    assert repr(TaskPlanes.split(["x", "y"], SITES)) == f"TaskPlanes(x, y at {len(SITES)} sites)"


def test_a_site_outside_the_blocks_is_split_by_its_planes():
    planes = TaskPlanes.split(["x", "y"], (Site("a", 4),))
    assert [planes.of(task)["a"].tolist() for task in "xy"] == [[True, False], [False, True]]
    assert all(mask.dtype == torch.bool for mask in planes.of(BASE).values())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TaskPlanes(SITES, {}), "^TaskPlanes needs at least one task$"),
        (lambda: TaskPlanes.split(["a+b"], SITES), "'\\+' joins several"),
        (lambda: TaskPlanes.split([BASE], SITES), "__base__ means none"),
        (
            lambda: TaskPlanes.split("label", SITES),
            r"^TaskPlanes.split needs a list of str, not str: give the names of the tasks, as in \['label', 'closing'\]$",
        ),
        (lambda: TaskPlanes.split(["x", "y", "y", "x"], SITES), "^task 'x' is listed twice; give every task a name of its own$"),
        (
            lambda: TaskPlanes.split({"x": 0.25, "y": 0.75}, SITES),
            "^TaskPlanes.split gives equal shares: give a list",
        ),
        (lambda: TaskPlanes.split([f"t{n}" for n in range(9)], SITES), "^task 't8' would own no plane: split by 'shares'"),
        (lambda: TaskPlanes.split([], SITES), "^TaskPlanes needs at least one task$"),
        (lambda: TaskPlanes.split(["x", 5], SITES), "^TaskPlanes.split needs str, not int: give the names of the tasks"),
        (
            lambda: TaskPlanes.split(["x"], "mlp"),
            r"^TaskPlanes.split needs a list of Site, not str: give",
        ),
        (
            lambda: TaskPlanes.split(["x"], None),
            "needs a list of Site, not NoneType: give the sites of an adapter, adapter.sites, or find_sites\\(model, 'mlp'\\)$",
        ),
        (lambda: TaskPlanes.split(["x", "y"], SITES, "diagonal"), "unknown split 'diagonal'; use shares, alternating"),
        (
            lambda: TaskPlanes.split(["x", "y"], (Site("a", 4),), "layers"),
            "^planes cannot be split by layer: .* outside the block stack$",
        ),
        (lambda: TaskPlanes.from_json({"x": {"a": [0, 1]}, "y": {"a": [1]}}, SITES), "'a': plane 1 belongs to x and y"),
        (lambda: TaskPlanes.from_json({"x": {"q": [0]}}, SITES), "'q', which is not a site"),
        (lambda: TaskPlanes.from_json([1], SITES), "planes of tasks must be a mapping of tasks to sites and planes, not \\[1\\]"),
        (lambda: TaskPlanes.from_json({"x": [0]}, SITES), "task 'x' must own a mapping of sites to planes, not \\[0\\]"),
        (
            lambda: TaskPlanes.from_json({"x": {"a": [0.5]}}, SITES),
            "'x': site 'a' must have a list of whole numbers, not \\[0.5\\]",
        ),
        (lambda: TaskPlanes.from_json({"x": {"a": {0: 1}}}, SITES), "must have a list of whole numbers, not \\{0: 1\\}"),
        (lambda: TaskPlanes.from_json({"x": {"a": [6]}}, SITES), "'a' has planes 0 to 5"),
        (lambda: TaskPlanes(SITES, {"x": {"q": torch.ones(2).bool()}}), "'q', which is not a site"),
        (lambda: TaskPlanes(SITES, ["x"]), "^TaskPlanes needs Mapping, not list: .* for lists of planes, TaskPlanes.from_json$"),
        (lambda: TaskPlanes(SITES, {1: {}}), "^TaskPlanes needs str, not int: give names of tasks"),
        (lambda: TaskPlanes((), {"x": {}}), "^TaskPlanes needs at least one site$"),
        (lambda: TaskPlanes(SITES, {"x": [0]}), "^TaskPlanes, task 'x', needs Mapping, not list"),
        (lambda: TaskPlanes(SITES, {"x": {"a": [0]}}), "^TaskPlanes, task 'x', site 'a', needs Tensor, not list"),
        (lambda: TaskPlanes("a", {}), "^TaskPlanes needs a list of Site, not str"),
        (lambda: TaskPlanes.from_json({"x": {"a": [0]}}, None), "^TaskPlanes.from_json needs a list of Site, not NoneType"),
        (lambda: TaskPlanes(SITES, {"x": {"a": torch.ones(2).bool()}}), "mask of shape \\(6,\\)"),
        (lambda: TaskPlanes.split(["x", "y"], SITES).rows(["x+u"]), "unknown task 'u'; the tasks are x, y"),
    ],
)
def test_invalid_planes_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


# ---------------------------------------------------------------- on a model


@pytest.mark.parametrize("variant", ["road_1", "road_2"])
@pytest.mark.parametrize("how", ["shares", "layers"])
@pytest.mark.parametrize("target_modules", ["all-linear", "block-output"])
def test_a_row_does_not_depend_on_the_tasks_of_other_rows(variant, how, target_modules):
    model, batch = task_model(target_modules, variant, 2 if variant == "road_1" else 4, how), padded_batch((3, 7, 5, 7), "left")
    active = ["x", "x+z", BASE, "x+y+z"]
    together = model(base=batch, tasks=active)[1].logits
    for row, tasks in enumerate(active):
        real = batch["attention_mask"][row].bool()
        alone = {key: values[row : row + 1, real] for key, values in batch.items()}
        restricted = model.adapter.restrict(model.planes.of(tasks))
        expected = RoadModel(model.model, restricted)(base=alone)[1].logits
        torch.testing.assert_close(together[row, real], expected[0], rtol=0, atol=1e-5)


def test_inactive_planes_are_bitwise_the_identity():
    model, batch = task_model(), token_batch()
    bare = model.model(**batch).logits
    assert torch.equal(model(base=batch, tasks=[BASE] * 3)[1].logits, bare)
    mixed = model(base=batch, tasks=[BASE, "x", BASE])[1].logits
    assert torch.equal(mixed[[0, 2]], bare[[0, 2]])
    assert (mixed[1] - bare[1]).abs().max() > 1e-5
    all_planes = model(base=batch)[1].logits
    torch.testing.assert_close(model(base=batch, tasks=["x+y+z"] * 3)[1].logits, all_planes, rtol=0, atol=1e-6)


def test_disjoint_planes_commute_and_change_only_their_dimensions():
    sites = (Site("a", 16, 0),)
    adapter, planes = random_adapter(sites, "road_2", 4), TaskPlanes.split(["x", "y"], sites, "alternating")
    mine, others = (adapter.restrict(planes.of(task)) for task in "xy")
    torch.testing.assert_close((mine @ others).matrix("a"), (others @ mine).matrix("a"), rtol=0, atol=1e-6)
    torch.testing.assert_close((mine @ others).matrix("a"), adapter.matrix("a"), rtol=0, atol=1e-6)
    states = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    rotated = plane_maps.apply(mine.plane_maps("a"), states, 4)
    own, other = planes.dimensions(sites[0], 4)
    assert torch.equal(rotated[:, other], states[:, other])
    assert ((rotated[:, own] - states[:, own]).abs() > 0).all()


@pytest.mark.parametrize("positions", ["all", "last"])
def test_generation_equals_each_task_set_alone(positions):
    model, batch = task_model(positions=positions), padded_batch((4, 7, 5), "left")
    active = ["x", BASE, "y+z"]
    _, together = model.generate(batch, tasks=active, **GREEDY)
    for row, tasks in enumerate(active):
        alone = {key: values[row : row + 1] for key, values in batch.items()}
        _, ids = model.generate(alone, tasks=[tasks], **GREEDY)
        assert torch.equal(ids[0], together[row])
    _, beams = model.generate(batch, tasks=active, num_beams=2, **GREEDY)
    assert beams.shape == together.shape


@pytest.mark.parametrize("variant", ["road_1", "road_4"])
def test_only_the_trainable_tasks_get_a_gradient(variant):
    model, batch = task_model("block-output", variant), token_batch()
    model(base=batch, tasks=["x+y+z"] * 3, trainable_tasks=["x", "x", "y"])[1].logits.square().sum().backward()
    for site, intervention in model.by_site():
        values_per_plane = intervention.theta.numel() // (site.width // 2)
        no_gradient = (intervention.theta.grad == 0).view(-1, values_per_plane).all(1)
        assert torch.equal(no_gradient, model.planes.of("z")[site.name])
    values = model(base=batch, tasks=["x+y+z"] * 3, trainable_tasks=["x"] * 3)[1].logits
    torch.testing.assert_close(values, model(base=batch)[1].logits, rtol=0, atol=1e-6)


def test_gradients_of_mixed_rows_equal_those_of_the_rows_alone():
    model, batch = task_model(), token_batch()
    active = ["x+y", "y", "x+z"]
    model(base=batch, tasks=active, trainable_tasks=["x", "y", "z"])[1].logits.square().sum().backward()
    together = [each.theta.grad.clone() for each in model.interventions.values()]
    model.zero_grad()
    for row in range(3):
        alone = {key: values[row : row + 1] for key, values in batch.items()}
        model(base=alone, tasks=active[row : row + 1], trainable_tasks=["xyz"[row]])[1].logits.square().sum().backward()
    for ours, intervention in zip(together, model.interventions.values(), strict=True):
        torch.testing.assert_close(ours, intervention.theta.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("how", ["shares", "alternating"])
def test_tasks_equal_pyvenes_subspaces(how):
    model, batch = task_model(how=how), token_batch()
    active, chosen = ["x", "x+y", BASE], [[0], [0, 1], []]
    expected = model(base=batch, tasks=active)[1].logits
    through_loop = model(base=batch, subspaces=[chosen] * len(model.sites))[1].logits
    torch.testing.assert_close(through_loop, expected, rtol=0, atol=1e-5)
    slow = model(base=batch, unit_locations={"base": 0}, tasks=active)[1].logits
    fast = model(base=batch, positions=[[0]] * 3, tasks=active)[1].logits
    torch.testing.assert_close(slow, fast, rtol=0, atol=1e-5)


def test_a_plain_pyvene_model_takes_subspaces():
    base, batch = tiny_model("Llama", "causal-lm"), token_batch()
    site = find_sites(base, "block-output", layers=[1])[0]
    adapter = random_adapter((site,))
    intervention = RoadIntervention(32, subspace_partition=[[0, 8], [8, 32]])
    with torch.no_grad():
        intervention.theta.copy_(adapter.theta[site.name])
        intervention.alpha.copy_(adapter.alpha[site.name])
    config = pyvene.IntervenableConfig([{"component": f"{site.module}.output", "unit": "pos", "intervention": intervention}])
    plain = pyvene.IntervenableModel(config, base)
    _, output = plain(batch, subspaces=[[[0], [1], [0, 1]]], unit_locations=None)
    planes = TaskPlanes.from_json({"x": {site.name: range(4)}, "y": {site.name: range(4, 16)}}, (site,))
    model = RoadModel(tiny_model("Llama", "causal-lm"), adapter, planes=planes)
    torch.testing.assert_close(output.logits, model(base=batch, tasks=["x", "y", "x+y"])[1].logits, rtol=0, atol=1e-5)


def test_without_a_partition_subspaces_count_planes():
    intervention = RoadIntervention(8)
    torch.nn.init.constant_(intervention.theta, 1.0)
    states = torch.randn(2, 3, 8)
    changed = (intervention(states, subspaces=[[1], [0, 3]]) != states).any(1)
    assert changed.tolist() == [[False, False, True, True] + [False] * 4, [True, True] + [False] * 4 + [True, True]]


def test_tasks_and_a_bank_together():
    base = tiny_model("Llama", "causal-lm")
    sites = find_sites(base, "all-linear")
    adapters, planes = (
        {name: random_adapter(sites, seed=seed) for seed, name in enumerate("ab")},
        TaskPlanes.split(["x", "y"], sites),
    )
    model, batch = RoadModel(base, RoadBank(adapters), planes=planes), token_batch()
    _, output = model(base=batch, adapter_names=["a", "b", BASE], tasks=["x", "y", "x+y"])
    for row, (name, task) in enumerate([("a", "x"), ("b", "y")]):
        expected = RoadModel(tiny_model("Llama", "causal-lm"), adapters[name].restrict(planes.of(task)))(base=batch)[1]
        torch.testing.assert_close(output.logits[row], expected.logits[row], rtol=0, atol=1e-5)
    torch.testing.assert_close(output.logits[2], base(**batch).logits[2], rtol=0, atol=1e-6)


@needs_compiler
def test_compiled_tasks_are_equal_and_have_no_graph_break():
    model, batch = task_model(), token_batch()
    with torch.no_grad(), model.attached(tasks=["x", "y+z", BASE]):
        plain = model.model(**batch).logits
        torch._dynamo.reset()
        compiled = torch.compile(model.model, backend="eager", fullgraph=True)(**batch).logits
    torch.testing.assert_close(compiled, plain, rtol=0, atol=1e-5)


def test_invalid_task_arguments_are_refused():
    batch = token_batch()
    model = task_model()
    with pytest.raises(InputError, match="unknown task 'q'; the tasks are x, y, z"):
        model(base=batch, tasks=["q"] * 3)
    with pytest.raises(InputError, match="2 tasks for a batch of 3 rows"):
        model(base=batch, tasks=["x"] * 2)
    with pytest.raises(InputError, match=r"^tasks must be a list, one per row, as in \['x'\], not 'x'$"):
        model(base={name: values[:1] for name, values in batch.items()}, tasks="x")
    with pytest.raises(InputError, match="^trainable tasks must be a list, one per row"):
        model(base=batch, tasks=["x"] * 3, trainable_tasks="xyz")
    with pytest.raises(InputError, match="1 trainable tasks for a batch of 3 rows"):
        model(base=batch, tasks=["x"] * 3, trainable_tasks=["x"])
    with pytest.raises(InputError, match="trainable_tasks needs tasks"):
        model(base=batch, trainable_tasks=["x"] * 3)
    plain = RoadModel(tiny_model("Llama", "causal-lm"), random_adapter(model.sites))
    with pytest.raises(InputError, match="tasks needs a model with planes"):
        plain(base=batch, tasks=["x"] * 3)
    with pytest.raises(InputError, match="other sites"):
        RoadModel(tiny_model("Llama", "causal-lm"), RoadAdapter.identity(model.sites[:2]), planes=model.planes)
    with pytest.raises(InputError, match="subspace 0 splits plane 1: dimensions 2 and 3 belong together"):
        RoadIntervention(8, subspace_partition=[[0, 3], [3, 8]])
    with pytest.raises(InputError, match="subspace 1 contains dimension 8"):
        RoadIntervention(8, subspace_partition=[[0, 2], [2, 9]])
    with pytest.raises(InputError, match="row 1: subspace 2 does not exist: subspaces are 0 to 1"):
        RoadIntervention(8, subspace_partition=[[0, 2], [2, 8]])(torch.randn(2, 8), subspaces=[[0], [2]])
    for chosen in ([0.5], [True], ["a"], 1):
        with pytest.raises(InputError, match="row 0: .* not subspaces of a row"):
            RoadIntervention(8)(torch.randn(1, 8), subspaces=[chosen])
