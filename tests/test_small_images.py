"""Images of the manual and of notebooks take little space in the repository."""

from __future__ import annotations

import base64
import importlib
import json
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))
figure_results, small_images = (importlib.import_module(name) for name in ("figure_results", "small_images"))


@pytest.fixture
def png():
    """An image of many colours, with the command that drew it."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 4), np.uint8))
    told = PngImagePlugin.PngInfo()
    told.add_text("Command", "road-interp study size")
    image.save(drawn := BytesIO(), format="png", pnginfo=told)
    return drawn.getvalue()


def test_an_image_gets_a_palette_and_keeps_its_command(png):
    small = small_images.with_palette(png)
    image = Image.open(BytesIO(small))
    assert (image.mode, image.size, image.info["Command"]) == ("P", (64, 64), "road-interp study size")
    assert len(small) < len(png)
    assert small_images.with_palette(small) == small


def test_a_notebook_keeps_all_but_times_and_colours(png):
    outputs = [{"data": {"image/png": base64.b64encode(png).decode(), "text/plain": "drawn"}}, {"text": "printed"}]
    cells = [{"metadata": {"execution": {"shell.execute_reply": "12:00"}, "tags": ["x"]}, "outputs": outputs}, {"metadata": {}}]
    small = json.loads(small_images.small_notebook(json.dumps({"cells": cells})))
    first = small["cells"][0]
    assert first["metadata"] == {"tags": ["x"]}
    assert Image.open(BytesIO(base64.b64decode(first["outputs"][0]["data"]["image/png"]))).mode == "P"
    assert (first["outputs"][0]["data"]["text/plain"], first["outputs"][1], small["cells"][1]) == (
        "drawn",
        {"text": "printed"},
        {"metadata": {}},
    )


@pytest.mark.parametrize(
    "path", [*(ROOT / "notebooks").glob("*.ipynb"), *(ROOT / "docs" / "figures").glob("*.png")], ids=lambda path: path.name
)
def test_tracked_images_are_small(path):
    if path.suffix == ".png":
        assert Image.open(path).mode == "P"
    else:
        text = path.read_text(encoding="utf-8")
        assert small_images.small_notebook(text) == text


def test_a_figure_says_of_which_results_it_was_drawn(png, tmp_path):
    results, figures = tmp_path / "results", tmp_path / "figures"
    for study in ("drift", "drift-smollm2", "size"):
        (results / study / "one").mkdir(parents=True)
        (results / study / "one" / "seed-0.json").write_text("{}")
    figures.mkdir()
    for name in ("drift-grid.png", "drift-smollm2.png"):
        (figures / name).write_bytes(small_images.with_palette(png))
    assert len(list(figure_results.outdated(figures, results))) == 2
    for path in figures.glob("*.png"):
        figure_results.stamp(path, results)
        assert Image.open(path).info["Command"] == "road-interp study size"
    assert not list(figure_results.outdated(figures, results))
    (results / "drift-smollm2" / "one" / "seed-0.json").write_text('{"a": 1}')
    told = "drift-smollm2.png was drawn from other results of drift-smollm2: make figures"
    assert list(figure_results.outdated(figures, results)) == [told]
    with pytest.raises(SystemExit, match="no study in .* has this figure"):
        figure_results.study_of(Path("angles.png"), results)
