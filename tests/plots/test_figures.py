"""Measured angles and what is drawn from them."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations, pairwise

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb, to_rgba
from matplotlib.container import BarContainer
from matplotlib.patches import Circle, FancyArrow
from matplotlib.transforms import Bbox
from scipy import stats

from helpers.compositions import composition_report
from helpers.models import random_adapter, tiny_model
from road_interp import measure, plots
from road_interp.adapters.road_adapter import RoadAdapter
from road_interp.causal.accuracy import InterchangeReport
from road_interp.causal.depth_sweep import DepthReport
from road_interp.errors import InputError
from road_interp.measure import AngleReport, CompositionReport
from road_interp.measure.engine_cost import Cost, EngineCostReport
from road_interp.measure.multitask_accuracy import MultiTaskAccuracyReport, MultiTaskAccuracyStudy
from road_interp.plots import export
from road_interp.rotation.plane_maps import VARIANTS
from road_interp.sites.find import find_sites
from road_interp.sites.site import Site

pytestmark = pytest.mark.rendered


@pytest.fixture
def report():
    return measure.angles(random_adapter(find_sites(tiny_model("Bert"), "all-linear")))


def test_report_follows_the_adapter():
    site = Site("a.b", 8, 3, "b")
    adapter = RoadAdapter((site,), {"a.b": torch.tensor([0.1, -0.2, 3.0, -3.0])}, {"a.b": torch.tensor([1.0, 2.0, 0.5, 1.0])})
    found = measure.angles(adapter)
    (row,) = found.sites
    np.testing.assert_allclose(row.angle, [0.1, -0.2, 3.0, -3.0], rtol=1e-6)
    np.testing.assert_allclose(row.magnitude, [1, 2, 0.5, 1], rtol=1e-6)
    summary = row.summary()
    assert summary["mean |angle|"] == pytest.approx(np.degrees(6.3 / 4), rel=1e-6)
    assert summary["circular mean"] == pytest.approx(np.degrees(stats.circmean(row.angle, np.pi, -np.pi)))
    assert (summary["planes"], summary["reflections"]) == (4, 0)
    assert [(plane, round(magnitude, 3)) for _, plane, _, magnitude in found.most_rotated(2)] == [(2, 0.5), (3, 1.0)]


@pytest.mark.parametrize("variant", VARIANTS)
def test_reports_come_back_from_json(variant):
    report = measure.angles(random_adapter(find_sites(tiny_model("GPT2"), "attention-qk"), variant, spread=1.0))
    assert AngleReport.from_json(report.to_json()) == report
    assert any(any(site.reflection) for site in report.sites) == (variant != "road_1")


def test_other_json_is_refused():
    refused = {
        "{": "not valid JSON",
        "[]": "the JSON of AngleReport must hold one object",
        "{}": "'variant' is missing",
        '{"variant": 1, "group_size": 2, "sites": [{"x": 1}]}': "'variant' must be text, not 1",
        '{"variant": "road_1", "group_size": 2, "sites": [{"x": 1}]}': r"unknown key 'sites\[0\]\.x'",
    }
    for text, message in refused.items():
        with pytest.raises(InputError, match=message):
            AngleReport.from_json(text)


def test_heat_maps_show_the_numbers(report):
    ax = plots.angles(report)
    cells = ax.images[0].get_array()
    assert cells.shape == (6, 2)
    assert cells[0, 1] == pytest.approx(np.degrees(np.abs(report.sites[6].angle).mean()))
    assert [label.get_text() for label in ax.get_yticklabels()] == report.kinds
    ax = plots.magnitudes(report)
    assert ax.images[0].get_array()[0, 0] == pytest.approx(100 * np.abs(report.sites[0].magnitude - 1).mean())


@pytest.mark.parametrize("exponent", [0, 1])
@pytest.mark.parametrize("colours", ["cividis", "gray_r", "magma"])
def test_numbers_are_dark_on_bright_cells_and_bright_on_dark_ones(exponent, colours):
    adapter = random_adapter(find_sites(tiny_model("Bert"), "all-linear"))
    with plt.rc_context({"image.cmap": colours}):
        ax = plots.angles(measure.angles(adapter**exponent))
    (image,) = ax.images
    for text in ax.texts:
        column, row = map(int, text.get_position())
        cell = image.get_array()[row, column]
        assert abs(np.mean(image.to_rgba(cell)[:3]) - np.mean(to_rgb(text.get_color()))) > 0.4
    plt.close(ax.figure)


def test_planes_draw_the_turned_vectors(report):
    ax = plots.planes(report, count=3)
    texts = [text.get_text() for text in ax.texts]
    site, plane, angle, magnitude = report.most_rotated(3)[0]
    assert len(texts) == 3
    assert texts[0] == f"{site.layer} {site.kind}\nplane {plane}: {np.degrees(angle):+.0f}°, × {magnitude:.2f}"


@pytest.mark.parametrize("kind", ["fc1", "mlp.experts.0.down_proj", "decoder.block: layer.0.SelfAttention.q"])
def test_captions_of_planes_stay_apart(report, kind):
    longer = replace(report, sites=tuple(replace(site, kind=kind) for site in report.sites))
    ax = plots.planes(longer)
    ax.figure.canvas.draw()
    boxes = [text.get_window_extent() for text in ax.texts]
    assert len(boxes) == 8
    assert not [pair for pair in combinations(boxes, 2) if Bbox.intersection(*pair)]
    assert min(text.get_fontsize() for text in ax.texts) >= 5
    assert min(box.x0 for box in boxes) >= 0
    assert max(box.x1 for box in boxes) <= ax.figure.bbox.width


def test_reflections_are_not_drawn_as_rotations_without_a_word(report):
    site, plane, *_ = report.most_rotated(1)[0]
    mirrored = replace(site, reflection=tuple(number == plane for number in range(len(site.angle))))
    sites = tuple(mirrored if each is site else each for each in report.sites)
    found = replace(report, sites=sites)
    assert "reflection, ×" in plots.planes(found, count=1).texts[0].get_text()
    for draw in (plots.angles, plots.angle_histogram):
        assert "1 plane is a reflection: its angle is twice that of the axis" in " ".join(draw(found).get_title().split())
        assert "reflection" not in draw(report).get_title()
    assert "reflection" not in plots.magnitudes(found).get_title()


def test_the_picture_of_a_plane_says_that_it_is_a_reflection():
    """A circle and an arrow look the same as those of a rotation."""
    site = Site("a.b", 4)
    theta, alpha = torch.tensor([0.5, 0.5, 0.5, 0.5 + torch.pi]), torch.ones(4)  # of road_2: rows of the planes, group by group
    adapter = RoadAdapter((site,), {"a.b": theta}, {"a.b": alpha}, "road_2")
    assert adapter.polar(site).reflection.tolist() == [False, True]
    titles = [plots.plane(adapter, index=index).get_title() for index in (0, 1)]
    assert titles == ["plane 0: +28.6°, × 1.000", "plane 1: reflection, × 1.000"]


@pytest.mark.parametrize("magnitude", [1.2, 4.0])
def test_no_vector_leaves_the_figure_or_reaches_the_next_plane(magnitude):
    site = Site("a.b", 16, 3, "b")
    angles, magnitudes = torch.arange(1.0, 9.0) / 3, torch.full((8,), magnitude)
    ax = plots.planes(measure.angles(RoadAdapter((site,), {"a.b": angles}, {"a.b": magnitudes})))
    circles = [patch for patch in ax.patches if isinstance(patch, Circle)]
    arrows = [patch for patch in ax.patches if isinstance(patch, FancyArrow)][1::2]
    centres = np.array([circle.center for circle in circles])
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    for number, (circle, arrow) in enumerate(zip(circles, arrows, strict=True)):
        corners = arrow.get_xy()
        assert ((corners >= (left, bottom)) & (corners <= (right, top))).all()
        distances = np.linalg.norm(corners[:, None] - centres, axis=2)
        assert (distances.argmin(1) == number).all()
        assert distances[:, number].max() == pytest.approx(magnitude * circle.radius, abs=0.02)


def with_angles(*degrees):
    """A report on one site per angle, each of another kind, whose two planes turn by that angle either way."""
    sites = tuple(Site(f"a.{number}", 4, 0, f"kind {number}") for number in range(len(degrees)))
    angles = {site.name: torch.tensor([each, -each]).deg2rad() for site, each in zip(sites, degrees, strict=True)}
    return measure.angles(RoadAdapter(sites, angles, {site.name: torch.ones(2) for site in sites}))


@pytest.mark.parametrize(("largest", "limit"), [(0.0, 15), (14.0, 15), (31.0, 45), (179.0, 180), (180.0, 180)])
def test_the_histogram_is_as_wide_as_its_angles(largest, limit):
    ax = plots.angle_histogram(with_angles(largest, 0.0))
    assert [ax.get_thetamin(), ax.get_thetamax()] == pytest.approx([-limit, limit])
    first, second = ax.patches
    assert [(steps.get_label(), np.sum(steps.get_data().values - steps.get_data().baseline)) for steps in (first, second)] == [
        ("kind 0", 2),
        ("kind 1", 2),
    ]
    tops, edges, below = second.get_data()
    ((low, high),) = zip(edges[:-1][tops > below], edges[1:][tops > below], strict=True)
    assert -low == pytest.approx(high)  # the identity is in the middle of a bar


def test_the_histogram_stacks_kinds_as_long_as_there_are_colours(report):
    ax = plots.angle_histogram(report)
    assert [steps.get_label() for steps in ax.patches] == report.kinds
    drawn = [steps.get_data() for steps in ax.patches]
    assert not drawn[0].baseline.any()
    for lower, upper in pairwise(drawn):
        assert upper.baseline == pytest.approx(lower.values)
    assert drawn[-1].values.sum() == sum(len(site.angle) for site in report.sites)
    assert [steps.get_label() for steps in plots.angle_histogram(with_angles(*range(9))).patches] == ["all modules"]


def test_the_histogram_needs_polar_axes(report):
    import matplotlib.pyplot as plt

    figure = plt.figure()
    polar = figure.add_subplot(projection="polar")
    assert plots.angle_histogram(report, polar) is polar
    with pytest.raises(InputError, match="needs polar axes"):
        plots.angle_histogram(report, figure.add_subplot())
    plt.close(figure)


def test_shares_are_means_over_sites():
    report = measure.angles(random_adapter(find_sites(tiny_model("Bert"), "all-linear"), "road_4"))
    ax = plots.shares(report)
    assert [label.get_text() for label in ax.get_yticklabels()] == report.kinds
    drawn = {bars.get_label(): [bar.get_width() for bar in bars] for bars in ax.containers}
    first = [site for site in report.sites if site.kind == report.kinds[0]]
    assert len(first) == 2
    for name, widths in drawn.items():
        assert widths[0] == pytest.approx(np.mean([site.shares[name] for site in first]))
    assert np.sum(list(drawn.values()), axis=0) == pytest.approx(np.ones(6))


def test_figures_are_saved_with_their_numbers_and_redraw_from_them(report, tmp_path):
    paths = export.draw_adapter(report, tmp_path / "deep" / "figures")
    assert [path.name for path in paths] == ["angles.png", "magnitudes.png", "planes.png"]
    again = AngleReport.from_json((tmp_path / "deep" / "figures" / "angles.json").read_text())
    assert again == report
    before = (tmp_path / "deep" / "figures" / "angles.png").read_bytes()
    export.draw_adapter(again, tmp_path / "again")
    assert (tmp_path / "again" / "angles.png").read_bytes() == before
    assert (tmp_path / "again" / "angles.pdf").read_bytes()[:5] == b"%PDF-"


def test_drawing_uses_given_axes_and_leaves_the_style_alone(report):
    import matplotlib.pyplot as plt

    size = plt.rcParams["font.size"]
    _, ax = plt.subplots()
    assert plots.planes(report, ax) is ax
    assert plt.rcParams["font.size"] == size
    plt.close("all")


def test_a_site_outside_the_blocks_has_its_own_column():
    model = tiny_model("Bert")
    report = measure.angles(random_adapter(find_sites(model, ["pooler.dense", "fc1"])))
    ax = plots.angles(report)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0", "1", "-"]
    assert json.loads(report.to_json())["sites"][-1]["layer"] is None
    deep = replace(report, sites=(*(replace(report.sites[0], layer=layer) for layer in range(30)), report.sites[-1]))
    labels = [label.get_text() for label in plots.angles(deep).get_xticklabels()]
    assert labels == ["0", "4", "8", "12", "16", "20", "24", "28", "-"]


def test_composition_bars_stand_for_rates():
    report = composition_report()
    ax = plots.composition(report)
    drawn = [bars for bars in ax.containers if isinstance(bars, BarContainer)]
    heights = {bars.get_label(): [bar.get_height() for bar in bars] for bars in drawn}
    assert heights["label"] == [report.rate(score.active, ["label"])[0] for score in report.scores]
    assert heights["exactly the active tasks"] == [report.control(score.active)[0] for score in report.scores]
    assert [text.get_text() for text in ax.get_xticklabels()] == ["none", "label", "closing", "label\n+ closing"]


def test_intervals_are_visible_in_a_dark_style():
    with plt.style.context("dark_background"):
        ax = plots.composition(composition_report())
    intervals = [each for each in ax.collections if isinstance(each, LineCollection)]
    assert len(intervals) == 3
    assert all(np.array_equal(each.get_color(), [to_rgba("w")]) for each in intervals)
    assert to_rgb(ax.get_facecolor()) == to_rgb("k")
    plt.close(ax.figure)


def test_control_of_several_methods_is_all_tasks_their_mean_and_their_least():
    reports = [composition_report(), replace(composition_report(1), method="other")]
    ax = plots.composition_control(reports)
    joint, means, least = (bars.lines[0].get_xdata().tolist() for bars in ax.containers)
    assert joint == [report.control("label+closing")[0] for report in reports]
    assert means == [report.mean_control()[0] for report in reports]
    assert least == [report.least_control()[1][0] for report in reports]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["road_1 (1 seed)", "other (1 seed)"]


@pytest.mark.parametrize(("task", "lines"), [("label", [0.6]), ("greeting", [])])
def test_the_more_frequent_label_is_drawn_where_a_task_is_the_label(task, lines):
    report = CompositionReport.from_json(replace(composition_report(), majority=0.6).to_json().replace("label", task))
    drawn = [line for line in plots.composition(report).get_lines() if line.get_label() == "more frequent label"]
    assert [line.get_ydata()[0] for line in drawn] == lines


def test_every_method_has_the_more_frequent_label_of_its_own_reviews():
    reports = [replace(composition_report(), majority=share, method=str(share)) for share in (0.6, None, 0.9)]
    (lines,) = [each for each in plots.composition_control(reports).collections if each.get_label() == "more frequent label"]
    assert [(each[0][0], each[:, 1].mean()) for each in lines.get_segments()] == [(0.6, 0), (0.9, 2)]
    greeting = CompositionReport.from_json(reports[0].to_json().replace("label", "greeting"))
    assert "more frequent label" not in [each.get_label() for each in plots.composition_control([greeting]).collections]


def test_means_are_drawn_with_their_intervals_in_the_row_of_their_name():
    series = {"one": {"a": (0.5, 0.4, 0.7), "b": (0.2, 0.2, 0.3)}, "other": {"b": (0.9, 0.8, 1.0)}}
    ax = plots.means(series, label="accuracy (fraction)")
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b"]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["one", "other"]
    drawn = [(points.get_xdata().tolist(), np.round(points.get_ydata()).tolist()) for points, *_ in ax.containers]
    assert drawn == [([0.5, 0.2], [0, 1]), ([0.9], [1])]
    ends = [[segment[:, 0].tolist() for segment in bars.get_segments()] for _, _, (bars,) in ax.containers]
    assert [np.round(each, 6).tolist() for each in ends] == [[[0.4, 0.7], [0.2, 0.3]], [[0.8, 1.0]]]
    assert plots.means({"": series["one"], "empty": {}}, label="accuracy (fraction)").get_legend() is None


def test_an_infinite_interval_crosses_the_axes():
    ax = plots.means({"": {"a": (0.5, -np.inf, np.inf), "b": (0.2, 0.1, 0.3)}}, label="log odds (nats)")
    (line,) = [line for line in ax.get_lines() if line.get_transform() == ax.get_yaxis_transform(which="grid")]
    assert line.get_xydata().tolist() == [[0, 0], [1, 0]]
    assert line.get_color() == ax.containers[0].lines[0].get_color()


def test_the_chosen_learning_rate_is_filled():
    scores = {"RoAd": {1e-2: 0.8, 1e-3: 0.8}, "LoRA": {1e-3: 0.6, 1e-2: 0.7}, "unfinished": {1e-3: 0.5}}
    ax = plots.learning_rates(scores, best={"RoAd": 1e-3, "LoRA": 1e-2}, label="accuracy (fraction)")
    lines, best = ax.get_lines()[:4:2], ax.get_lines()[1:4:2]
    assert [line.get_label() for line in lines] == ["RoAd", "LoRA"]
    assert [line.get_label() for line in ax.get_lines()[4:]] == ["unfinished"]
    assert [line.get_ydata().tolist() for line in lines] == [[0.8, 0.8], [0.6, 0.7]]
    assert [(float(point.get_xdata()[0]), point.get_ydata()[0]) for point in best] == [
        (pytest.approx(1e-3, rel=0.03), 0.8),
        (pytest.approx(1e-2, rel=0.03), 0.7),
    ]
    assert all(line.get_markerfacecolor() == "w" for line in lines)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0.001", "0.01"]


@pytest.mark.parametrize(("cost", "marks"), [(0.9, []), (6.0, ["1.5", "2", "3", "5"]), (0.15, ["0.2", "0.3"])])
def test_costs_far_from_1_have_numbers_on_their_axis(cost, marks):
    report = EngineCostReport(1, 1, "GPU", (Cost("m", "forward", "bare", cost, cost, cost),))
    ax = plots.engine_cost(report)
    labels = {label.get_text(): place for place, label in zip(ax.get_xticks(), ax.get_xticklabels(), strict=True)}
    assert any(abs(np.log(cost / place)) < np.log(1.7) for place in labels.values())
    assert {mark for mark in labels if not 0.4 <= float(mark) <= 1.2} <= {*marks}


def right_everywhere(tasks):
    outcomes = dict.fromkeys((*tasks, "+".join(tasks)), (True,) * 4)
    return MultiTaskAccuracyReport("m", "planes", tuple(tasks), (0,), dict.fromkeys(tasks, outcomes))


FLIPPED = InterchangeReport("t", "s", "span", "swap", 4, 2, 1.0, (0.3, 1.0), 1.0, 1.0, (0.0, 2.0))
STUDY = MultiTaskAccuracyStudy((right_everywhere("ab"),), {task: right_everywhere(task) for task in "ab"})


@pytest.mark.parametrize(
    ("draw", "result"),
    [
        (plots.multitask_accuracy, STUDY),
        (plots.interchange_depth, DepthReport((0,), (1,), (1, 2), (((FLIPPED, FLIPPED),),))),
    ],
)
def test_markers_at_1_are_whole(draw, result):
    ax = draw(result)
    assert "1 seeds" not in ax.get_title()
    for container in ax.containers:
        line = container.lines[0]
        centres = ax.transData.transform(line.get_xydata())[:, 1]
        radius = line.get_markersize() / 2 * ax.figure.dpi / 72
        assert (centres + radius <= ax.bbox.y1 + 1).all()


def test_tasks_alone_on_their_planes_are_drawn_too():
    own = replace(STUDY, own_planes={task: right_everywhere("ab") for task in "ab"})
    found, without = ({each.get_text() for each in plots.multitask_accuracy(of).get_legend().get_texts()} for of in (own, STUDY))
    assert found - without == {"trained alone on its planes"}


@pytest.mark.parametrize("draw", [plots.angles, plots.magnitudes, plots.angle_histogram, plots.planes, plots.shares])
def test_a_report_whose_sites_are_all_filtered_out_is_refused(report, draw):
    with pytest.raises(InputError, match="the AngleReport has no sites"):
        draw(replace(report, sites=()))
