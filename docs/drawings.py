"""The drawings of the page "Concepts", as SVG: sketches of the terms, not results.

python docs/drawings.py docs/figures/concepts
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Arc, FancyBboxPatch, Rectangle

from road_interp.plots.style import COLORS

FIRST, SECOND, THIRD, GREY = COLORS[0], COLORS[1], COLORS[2], "0.75"


def box(ax: Axes, x: float, y: float, width: float, height: float, text: str = "", color: str = "white") -> None:
    """A rounded box with a text in its middle."""
    style = "round,pad=0,rounding_size=0.08"
    ax.add_patch(FancyBboxPatch((x, y), width, height, style, facecolor=color, edgecolor="black", linewidth=0.8))
    ax.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=8)


def cells(ax: Axes, x: float, y: float, colors: list[str], size: float = 0.3) -> None:
    """A row of coordinates."""
    for number, color in enumerate(colors):
        ax.add_patch(Rectangle((x + number * size, y), size, size, facecolor=color, edgecolor="black", linewidth=0.6))


def arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], color: str = "black") -> None:
    """An arrow between two points."""
    ax.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": color, "linewidth": 1.2})


def state(ax: Axes) -> None:
    """Tokens below, a vector of coordinates for each token above."""
    for number, token in enumerate(("a", "fine", "film")):
        ax.text(0.6 + number * 1.6, 0.1, token, ha="center", fontsize=9)
        arrow(ax, (0.6 + number * 1.6, 0.35), (0.6 + number * 1.6, 0.75))
        cells(ax, number * 1.6, 0.8, [FIRST if number == 2 else "white"] * 4)
    ax.text(5.3, 0.95, "hidden states\nof one layer", va="center", fontsize=8)
    ax.set(xlim=(-0.2, 7), ylim=(0, 1.4))


def site(ax: Axes) -> None:
    """Modules of a block in a row; a rotation at the output of one of them."""
    for number, name in enumerate(("q_proj", "attention", "mlp")):
        box(ax, number * 1.8, 0.4, 1.2, 0.5, name)
        if number:
            arrow(ax, (number * 1.8 - 0.6, 0.65), (number * 1.8, 0.65))
    arrow(ax, (4.8, 0.65), (5.3, 0.65))
    box(ax, 5.3, 0.4, 0.5, 0.5, "R", FIRST)
    arrow(ax, (5.8, 0.65), (6.4, 0.65))
    ax.text(5.55, 0.1, "site: output of mlp", ha="center", fontsize=8)
    ax.set(xlim=(-0.2, 7), ylim=(0, 1.2))


def plane(ax: Axes) -> None:
    """Eight coordinates; two of them form a plane."""
    cells(ax, 0, 0.4, [FIRST, FIRST, SECOND, SECOND, THIRD, THIRD, GREY, GREY], 0.5)
    for number in range(4):
        ax.text(0.5 + number, 0.1, f"plane {number}", ha="center", fontsize=8)
    ax.set(xlim=(-0.2, 7), ylim=(0, 1.2))


def angle(ax: Axes) -> None:
    """A vector in a plane before and after a rotation by an angle and a scaling."""
    before, after = np.array([1.3, 0.3]), 1.35 * np.array([0.75, 0.98])
    arrow(ax, (0, 0), tuple(before), GREY)
    arrow(ax, (0, 0), tuple(after), FIRST)
    degrees = [float(np.degrees(np.arctan2(*each[::-1]))) for each in (before, after)]
    ax.add_patch(Arc((0, 0), 1.2, 1.2, theta1=degrees[0], theta2=degrees[1], color=SECOND, linewidth=1.2))
    ax.text(0.68, 0.42, "angle", color=SECOND, fontsize=8)
    ax.text(1.38, 0.25, "h", fontsize=9)
    ax.text(1.07, 1.28, "R h: longer by the magnitude", color=FIRST, fontsize=8)
    ax.set(xlim=(-0.2, 4), ylim=(-0.1, 1.5), aspect="equal")


def variant(ax: Axes) -> None:
    """The 2 x 2 blocks of road_1, road_2 and road_4, with their numbers of values per plane."""
    names = {"road_1": ("aa", "aa", 2), "road_2": ("aa", "bb", 4), "road_4": ("ab", "cd", 8)}
    for number, (name, (*rows, values)) in enumerate(names.items()):
        for row, letters in enumerate(rows):
            for column, letter in enumerate(letters):
                color = {"a": FIRST, "b": SECOND, "c": THIRD, "d": GREY}[letter]
                ax.add_patch(
                    Rectangle((number * 2.3 + column * 0.5, 0.85 - row * 0.45), 0.5, 0.45, facecolor=color, edgecolor="black")
                )
        ax.text(number * 2.3 + 0.5, 0.1, f"{name}: {values} values", ha="center", fontsize=8)
    ax.set(xlim=(-0.6, 7), ylim=(0, 1.4))


def adapter(ax: Axes) -> None:
    """An adapter has the angles and scales of every site."""
    box(ax, 0, 0.1, 4.6, 1.1)
    for number, name in enumerate(("layer 0, mlp", "layer 1, mlp")):
        ax.text(0.2, 0.85 - number * 0.45, name, va="center", fontsize=8)
        cells(ax, 1.8, 0.75 - number * 0.45, [FIRST, SECOND, FIRST, THIRD], 0.22)
        cells(ax, 3.2, 0.75 - number * 0.45, [GREY, GREY, FIRST, GREY], 0.22)
    ax.text(2.25, 1.3, "angles", ha="center", fontsize=8)
    ax.text(3.65, 1.3, "scales", ha="center", fontsize=8)
    ax.set(xlim=(-0.2, 7), ylim=(0, 1.5))


def bank(ax: Axes) -> None:
    """Rows of a batch that use different adapters of a bank."""
    for number, (name, color) in enumerate((("a", FIRST), ("b", SECOND), ("a", FIRST), ("base", "white"))):
        y = 1.2 - number * 0.38
        cells(ax, 0, y, ["white"] * 4)
        arrow(ax, (1.3, y + 0.15), (2.2, y + 0.15))
        box(ax, 2.2, y, 0.9, 0.3, name, color)
        arrow(ax, (3.1, y + 0.15), (4, y + 0.15))
        cells(ax, 4.1, y, [color] * 4)
    ax.set(xlim=(-0.2, 7), ylim=(0, 1.6))


def task(ax: Axes) -> None:
    """The planes of one state belong to two tasks; a row activates one or both."""
    active = {
        "label": [FIRST] * 4 + ["white"] * 4,
        "closing": ["white"] * 4 + [SECOND] * 4,
        "label+closing": [FIRST] * 4 + [SECOND] * 4,
    }
    for number, (name, colors) in enumerate(active.items()):
        ax.text(1.9, 1.07 - number * 0.42, name, ha="right", va="center", fontsize=8)
        cells(ax, 2.1, 0.92 - number * 0.42, colors)
    ax.set(xlim=(-0.2, 7), ylim=(0, 1.4))


def interchange(ax: Axes) -> None:
    """Some rotated coordinates of the base become those of the source."""
    for y, name, color in ((1.2, "source", SECOND), (0.65, "base", "white")):
        ax.text(-0.1, y + 0.15, name, ha="right", va="center", fontsize=8)
        cells(ax, 0, y, [color] * 4)
        arrow(ax, (1.3, y + 0.15), (2.1, y + 0.15))
        ax.text(1.7, y + 0.22, "R", ha="center", fontsize=8)
        cells(ax, 2.2, y, [color] * 4)
    arrow(ax, (3.5, 0.8), (4.2, 0.5))
    arrow(ax, (2.35, 1.2), (4.4, 0.55), SECOND)
    cells(ax, 4.3, 0.2, [SECOND, "white", "white", "white"])
    ax.text(5.6, 0.35, "then back by R inverse", va="center", fontsize=8)
    ax.set(xlim=(-1, 8), ylim=(0, 1.6))


DRAWINGS: dict[str, Callable[[Axes], None]] = {
    each.__name__: each for each in (state, site, plane, angle, variant, adapter, bank, task, interchange)
}


def main(folder: Path) -> None:
    """Draw all of them into a folder."""
    plt.rcParams["svg.hashsalt"] = "concepts"  # else every drawing has new ids
    for name, draw in DRAWINGS.items():
        figure, ax = plt.subplots(figsize=(3.6, 1.4), layout="constrained")
        draw(ax)
        ax.set_axis_off()
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
        plt.close(figure)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
