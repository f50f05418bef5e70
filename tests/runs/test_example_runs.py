"""The trained runs inside the package."""

from __future__ import annotations

import json

import pytest

from road_interp.adapters.road_adapter import RoadAdapter
from road_interp.measure.intervals import wilson
from road_interp.runs.run import Run


@pytest.mark.parametrize("name", ["composition-smollm2", *(f"sentiment-minilm/seed-{seed}" for seed in range(3))])
def test_example_runs_open_from_inside_the_package(name):
    """The notebooks open them where no checkout is."""
    folder = f"package://road_interp/example_runs/{name}"
    run = Run.load(folder)
    assert run.metrics
    assert RoadAdapter.load(folder).num_parameters == run.adapter.num_parameters
    kind, adapter = run.recipe.kind, f"RoadAdapter(road_1 at {len(run.adapter.sites)} sites, "
    assert repr(run).startswith(f"Run('{run.folder}', {kind}, {adapter}")
    assert len(repr(run)) < len(str(run.folder)) + 120
    size = sum(path.stat().st_size for path in run.folder.rglob("*") if path.is_file())
    assert size < 200_000


def test_the_summary_of_the_example_is_what_its_outcomes_give():
    run = Run.load("package://road_interp/example_runs/composition-smollm2")
    stored, derived = (
        json.loads(text)["summary"] for text in ((run.folder / "composition.json").read_text(), run.composition.to_json())
    )
    assert stored["control"]["sets"]["label+closing"] == pytest.approx(derived["control"]["sets"]["label+closing"])
    assert stored["rates"].keys() == derived["rates"].keys()


def test_the_scores_of_the_example_have_the_intervals_of_its_outcomes():
    run = Run.load("package://road_interp/example_runs/composition-smollm2")
    for active, interval in run.metrics["test"]["control"]["sets"].items():
        assert interval == pytest.approx(run.composition.control(active))
    prompts, sets = run.metrics["validation"]["prompts"], run.metrics["validation"]["control"]["sets"]
    assert all(interval == pytest.approx(wilson(round(value * prompts), prompts)) for value, *interval in sets.values())
