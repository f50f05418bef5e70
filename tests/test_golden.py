"""Files written by 0.1.0 open: an adapter, pyvene's interventions, a run folder of each kind, and results."""

from __future__ import annotations

import copy
import json
from collections import Counter
from pathlib import Path

import pytest
import pyvene
import torch

import road_interp as ri
from helpers.models import random_adapter, tiny_model, token_batch
from road_interp import measure
from road_interp.causal.controls import ControlReport
from road_interp.causal.cost import CostReport
from road_interp.causal.depth_sweep import DepthReport
from road_interp.causal.layer_scan import ScanReport
from road_interp.errors import InputError
from road_interp.sites.find import find_sites

GOLDEN = Path(__file__).parent / "golden" / "0.1.0"
OLD_KEYS = {"accuracy": "heads"}  # what 0.1.0 called summaries' entries in metrics.json


def assert_same(adapter, expected):
    assert (adapter.sites, adapter.variant, adapter.group_size) == (expected.sites, expected.variant, expected.group_size)
    for site in expected.sites:
        assert torch.equal(adapter.theta[site.name], expected.theta[site.name])
        assert torch.equal(adapter.alpha[site.name], expected.alpha[site.name])


def test_adapters_open_to_the_bit():
    sites = find_sites(tiny_model("Llama", "causal-lm"), "block-output")
    assert_same(ri.RoadAdapter.load(GOLDEN / "adapter"), random_adapter(sites, "road_2", 4))
    parts = find_sites(tiny_model("GPT2"), "attention-qk", layers=[0])
    assert_same(ri.RoadAdapter.load(GOLDEN / "adapter-of-parts"), random_adapter(parts))


@torch.no_grad()
def test_interventions_open_in_plain_pyvene_and_as_a_model():
    base, batch = tiny_model("Llama", "causal-lm"), token_batch()
    expected = ri.RoadModel(copy.deepcopy(base), random_adapter(find_sites(base, "block-output")))(batch)[1].logits
    for model in (
        pyvene.IntervenableModel.load(str(GOLDEN / "pyvene"), copy.deepcopy(base)),
        ri.RoadModel.load(GOLDEN / "pyvene", copy.deepcopy(base)),
    ):
        torch.testing.assert_close(model(batch)[1].logits, expected, atol=1e-6, rtol=1e-6)
    base = tiny_model("GPT2")
    adapter = ri.RoadModel.load(GOLDEN / "pyvene-of-parts", base).adapter
    assert_same(adapter, random_adapter(find_sites(base, "attention-qk", layers=[0])))


@torch.no_grad()
@pytest.mark.parametrize(("folder", "depth"), [("interchange", 1), ("interchange-two-levels", 2)])
def test_interchanges_open_in_plain_pyvene(folder, depth):
    """Their angles; 0.1.0 did not save the rows."""
    base, batch = tiny_model("Llama", "causal-lm"), token_batch()
    with pytest.warns(UserWarning, match=r"a state of 0\.1\.0 does not hold the swapped rows"):
        loaded = pyvene.IntervenableModel.load(str(GOLDEN / folder), base)
    expected = ri.RoadInterchangeIntervention(base.config.hidden_size, depth=depth)
    (found,) = loaded.interventions.values()
    assert torch.equal(found.theta, expected.theta)
    assert found.depth == depth
    config = [{"layer": 1, "component": "block_output", "unit": "pos", "intervention": expected}]
    source = {name: values.flip(0) for name, values in batch.items()}
    logits = [
        model(batch, [source], {"sources->base": 3})[1].logits
        for model in (loaded, pyvene.IntervenableModel(pyvene.IntervenableConfig(config), base))
    ]
    assert torch.equal(*logits)


@pytest.mark.parametrize(
    ("kind", "tasks"),
    [
        ("classification", None),
        ("multitask-classification", ("tone", "again")),
        ("multitask-generation", ("label", "closing")),
        ("questions", ("word",)),
    ],
)
def test_runs_open(kind, tasks):
    run = ri.Run.load(GOLDEN / "runs" / kind)
    assert run.recipe.training.max_steps == 3
    assert run.adapter.num_parameters == 64
    assert "test" in run.metrics
    assert (None if run.planes is None else run.planes.tasks) == tasks
    if kind.startswith("multitask"):
        assert run.composition.tasks == tasks
        for key, value in run.composition.summary().items():
            assert values(value) == values(run.metrics["test"][OLD_KEYS.get(key, key)])


def values(summary):
    """A summary without its intervals, which 0.1.0 bootstrapped."""
    if isinstance(summary, dict):
        return {key: values(each) for key, each in summary.items()}
    return summary[0] if isinstance(summary, list | tuple) else summary


RESULTS = [
    measure.AblationReport,
    measure.AngleReport,
    measure.CapacityReport,
    measure.DriftStudy,
    measure.InterferenceReport,
    measure.MultiTaskAccuracyStudy,
    measure.QueryKey,
    measure.SeedStructure,
    measure.StrengthReport,
    measure.ThroughputReport,
    ControlReport,
    CostReport,
    DepthReport,
    ScanReport,
]


@pytest.mark.parametrize("kind", RESULTS)
def test_results_open(kind):
    """Files of studies, with lists cut short. Every number that they hold is in what is written today."""
    path = GOLDEN / "results" / f"{kind.__name__}.json"
    found = kind.load(path)
    assert kind.from_json(found.to_json()) == found
    old, new = (sorted(numbers(json.loads(text))) for text in (path.read_text(), found.to_json()))
    assert old
    assert not Counter(old) - Counter(new)


def numbers(value):
    """The numbers in the JSON of a result without its summary, but for those that followed from the others."""
    if isinstance(value, dict):
        left = ("summary", "provenance", "rates", "costs", "correlations", "gap to training alone", "format")
        value = [each for key, each in value.items() if key not in left]
    if isinstance(value, list):
        return [number for each in value for number in numbers(each)]
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else []


def shortened(value):
    """The JSON value with one entry of one list or mapping left out, in every way; of a list the first three."""
    if isinstance(value, dict):
        for key in value:
            yield {name: each for name, each in value.items() if name != key}
            yield from ({**value, key: each} for each in shortened(value[key]))
    elif isinstance(value, list):
        for place in range(min(3, len(value))):
            yield value[:place] + value[place + 1 :]
            yield from ([*value[:place], each, *value[place + 1 :]] for each in shortened(value[place]))


@pytest.mark.parametrize("kind", RESULTS)
def test_results_with_entries_left_out_are_understood_or_refused(kind):
    content = json.loads(kind.load(GOLDEN / "results" / f"{kind.__name__}.json").to_json())
    refused = 0
    for changed in shortened({name: each for name, each in content.items() if name != "provenance"}):
        try:
            found = kind.from_json(json.dumps({**changed, "provenance": content["provenance"]}))
        except InputError:
            refused += 1
        else:
            found.summary()
            found.records()
    assert refused > 3
