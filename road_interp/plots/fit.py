"""Room for the texts of a figure: those that do not fit are wrapped, thinned out, turned, moved or made smaller."""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise
from textwrap import fill

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.projections.polar import PolarAxes
from matplotlib.text import Text
from matplotlib.transforms import Bbox, ScaledTranslation, blended_transform_factory

LABELS, LEGEND = 0.42, 0.36  # largest shares of the figure's width for the labels of the y axis and a legend beside the axes
SMALLEST, LEGIBLE = 5.0, 7.0  # points, of a label: where nothing else fits, and where the figure may grow
LINE = 1.2  # distance of two lines over the size of the text


def fit(ax: Axes, may_grow: bool) -> None:
    """Make the texts of axes fit the figure, which may become higher where it `may_grow`. What fits is left as it is."""
    figure = ax.get_figure(root=True)
    if figure is None:
        return
    if may_grow:
        _break_names(ax, figure)
    _fit_rows(ax, figure)
    moved = _move_legend(ax, figure)
    figure.draw_without_rendering()  # applies the layout
    if (_fit_columns(ax, figure) | _wrap_labels(ax, figure)) and not moved:
        figure.draw_without_rendering()
    for _ in range(2 if moved else 0):
        _anchor_legend(ax, figure)
        figure.draw_without_rendering()
    if _fit_rows(ax, figure) | _fit_columns(ax, figure) | _fit_radii(ax) | _fit_cells(ax):
        figure.draw_without_rendering()
    _shift_title(ax, figure)


def fit_width(texts: Sequence[Text], room: float) -> bool:
    """Make texts smaller until the widest takes `room` pixels. Whether it is legible then; if not, nothing is changed."""
    sizes = {text: float(text.get_fontsize()) for text in texts}
    size = min(sizes[text] * room / text.get_window_extent().width for text in texts)
    if size >= SMALLEST:
        plt.setp(texts, fontsize=min(size, *sizes.values()))
    return size >= SMALLEST


def _share(ax: Axes) -> float:
    """The part of the figure's width that the columns of the axes take."""
    place = ax.get_subplotspec()
    return 1.0 if place is None else len(place.colspan) / place.get_gridspec().ncols


def _wrap_labels(ax: Axes, figure: Figure) -> bool:
    """Break the title, and the labels of the axes and of colour bars, into lines that fit. Whether any did not."""
    bars = [each.colorbar.ax for each in (*ax.images, *ax.collections) if each.colorbar is not None]
    rooms = [(ax.title, 0.96 * _share(ax) * figure.bbox.width)]  # texts are a little wider at other resolutions
    for axes in (ax, *bars):
        box = axes.get_window_extent()
        rooms += [(axes.yaxis.label, box.height), (axes.xaxis.label, box.width)]
    wrapped = [_wrap(text, room) for text, room in rooms]
    return any(wrapped)


def _wrap(text: Text, room: float) -> bool:
    """Break a text into lines that fit `room` pixels; formulas stay whole. Whether it did not fit."""
    box = text.get_window_extent()
    length = max(box.width, box.height)
    if length > room:
        longest = max(map(len, text.get_text().split("\n")))
        whole = re.sub(r"\$[^$]*\$", lambda found: found[0].replace(" ", "\0"), text.get_text())
        lines = [fill(line, max(8, int(longest * room / length))) for line in whole.split("\n")]
        text.set_text("\n".join(lines).replace("\0", " "))
    return length > room


def _row_names(ax: Axes) -> list[Text]:
    """The labels of the y axis, where they are names and not numbers."""
    labels = [label for label in ax.get_yticklabels() if label.get_text()]
    return [] if isinstance(ax, PolarAxes) or _are_numbers(labels) else labels


def _break_names(ax: Axes, figure: Figure) -> None:
    """Break names on the y axis that would be too small on one line, and make the figure higher by the new lines."""
    labels = _row_names(ax)
    if not labels:
        return
    size, room = float(labels[0].get_fontsize()), LABELS * _share(ax) * figure.bbox.width
    widest = max(labels, key=lambda label: label.get_window_extent().width)
    share = room / widest.get_window_extent().width
    if share * size < LEGIBLE:
        letters = int(len(widest.get_text()) * share)
        names = [fill(label.get_text(), letters, break_long_words=False) for label in ax.get_yticklabels()]
        ax.set_yticks(ax.get_yticks(), names)
        rows = len(names) * max(name.count("\n") for name in names)
        figure.set_figheight(figure.get_figheight() + rows * size * LINE / 72)


def _fit_rows(ax: Axes, figure: Figure) -> bool:
    """Names on the y axis: no larger than their distance, and no wider than their share of the figure. Whether they changed."""
    labels = _row_names(ax)
    if not labels:
        return False
    lines = max(label.get_text().count("\n") + 1 for label in labels)
    spacing = ax.get_window_extent().height / (len(labels) * lines) * 72 / figure.dpi
    current = float(labels[0].get_fontsize())
    widest = max(label.get_window_extent().width / float(label.get_fontsize()) for label in labels)
    size = max(SMALLEST, min(current, spacing / LINE, LABELS * _share(ax) * figure.bbox.width / widest))
    ax.tick_params(axis="y", labelsize=size)
    return not math.isclose(size, current)


def _fit_columns(ax: Axes, figure: Figure) -> bool:
    """Labels of the x axis that overlap: of numbers some are left out, names are turned. Whether any overlapped."""
    low, high = sorted(ax.get_xlim())
    ticks = zip(ax.get_xticks(), ax.get_xticklabels(), strict=False)  # inner panels have no labels
    shown = [(place, label) for place, label in ticks if label.get_text() and low <= place <= high]
    labels = [label for _, label in shown]
    if isinstance(ax, PolarAxes) or not _overlap(labels) or labels[0].get_rotation():
        return False
    if _are_numbers(labels):
        step = next(step for step in range(2, len(labels) + 1) if not _overlap(labels[::step]))
        ax.set_xticks([place for place, _ in shown[::step]], [label.get_text() for label in labels[::step]])
    else:
        ax.set_xticks([place for place, _ in shown], [label.get_text().replace("\n", " ") for label in labels])
        size = ax.get_window_extent().width / len(labels) * 72 / figure.dpi / LINE
        ax.tick_params(axis="x", labelrotation=90, labelsize=max(SMALLEST, min(float(labels[0].get_fontsize()), size)))
    return True


def _fit_radii(ax: Axes) -> bool:
    """Numbers along a radius of polar axes that overlap: some are left out. Whether any overlapped."""
    labels = ax.get_yticklabels()
    if not isinstance(ax, PolarAxes) or not _overlap(labels):
        return False
    step = next(step for step in range(2, len(labels) + 1) if not _overlap(labels[::step]))
    ax.set_yticks(ax.get_yticks()[::step])
    return True


def _fit_cells(ax: Axes) -> bool:
    """Numbers in the cells of a heat map: smaller, without their intervals (the second line), or none. Whether there are any."""
    if not (ax.images and ax.texts):
        return False
    room = 0.85 * ax.get_window_extent().width / ax.images[0].get_size()[1]
    if not fit_width(ax.texts, room):
        for text in ax.texts:
            text.set_text(text.get_text().partition("\n")[0])
        if not fit_width(ax.texts, room):
            plt.setp(ax.texts, visible=False)
    return True


def _are_numbers(labels: Sequence[Text]) -> bool:
    return all(re.fullmatch(r"[-\u2212\d.,]+|\$.*\$", label.get_text()) for label in labels)


def _overlap(labels: Sequence[Text]) -> bool:
    boxes = [label.get_window_extent() for label in labels]
    return any(Bbox.intersection(one, other) for one, other in pairwise(boxes))


def _move_legend(ax: Axes, figure: Figure) -> bool:
    """Put a legend that is beside the axes, and wide, below them, in as many columns as fit. Whether it was moved."""
    legend = ax.get_legend()
    if legend is None or legend.get_bbox_to_anchor().x0 < ax.bbox.x1 - 1:
        return False
    room = _share(ax) * figure.bbox.width
    if legend.get_window_extent().width < LEGEND * room:
        return False
    handles, texts = ax.get_legend_handles_labels()
    if not handles:  # the legend was given its own
        handles = [handle for handle in legend.legend_handles if handle is not None]
        texts = [text.get_text() for text in legend.get_texts()]

    def fits(columns: int) -> bool:
        wide = ax.legend(handles, texts, ncols=columns, handlelength=1.2, columnspacing=1)
        return wide.get_window_extent().width <= room

    columns = bisect_left(range(len(texts)), True, key=lambda fewer: fits(len(texts) - fewer))
    fits(max(1, len(texts) - columns))
    _anchor_legend(ax, figure)
    return True


def _anchor_legend(ax: Axes, figure: Figure) -> None:
    """Place the legend under the labels of the x axis."""
    legend = ax.get_legend()
    assert legend is not None
    under = None if isinstance(ax, PolarAxes) else ax.xaxis.get_tightbbox()
    depth = 0.1 if under is None else (ax.bbox.y0 - under.y0) / figure.dpi
    across = figure.transFigure if _share(ax) == 1 else ax.transAxes
    below = ax.transAxes + ScaledTranslation(0, -depth, figure.dpi_scale_trans)
    legend.set_loc("upper center")
    legend.set_bbox_to_anchor((0.5, 0), blended_transform_factory(across, below))


def _shift_title(ax: Axes, figure: Figure) -> None:
    """Centre a title in the figure that would be cut off at its edge."""
    box = ax.title.get_window_extent()
    if _share(ax) == 1 and (box.x0 < 0 or box.x1 > figure.bbox.width):
        ax.title.set_x(ax.transAxes.inverted().transform((figure.bbox.width / 2, 0))[0])
