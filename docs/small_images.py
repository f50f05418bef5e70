"""Make images small: PNG files and the images in notebooks get a palette of 256 colours; notebooks lose their times of execution.

A PNG file also gets the hash of the results that it was drawn from.

python docs/small_images.py docs/figures/*.png notebooks/*.ipynb
"""

from __future__ import annotations

import base64
import json
import sys
from io import BytesIO
from pathlib import Path

from PIL import Image, PngImagePlugin

sys.path.insert(0, str(Path(__file__).parent))

from figure_results import stamp


def with_palette(png: bytes) -> bytes:
    """The image on white with at most 256 colours and the same text chunks; one that has a palette stays as it is."""
    image = Image.open(BytesIO(png))
    if image.mode == "P":
        return png
    kept = PngImagePlugin.PngInfo()
    for name, text in image.info.items():
        if isinstance(text, str):
            kept.add_text(name, text)
    opaque = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA")).convert("RGB")
    opaque.quantize(256).save(small := BytesIO(), format="png", optimize=True, pnginfo=kept, dpi=image.info.get("dpi"))
    return small.getvalue()


def small_notebook(text: str) -> str:
    """The JSON of a notebook, with small images and without times of execution."""
    notebook = json.loads(text)
    for cell in notebook["cells"]:
        cell["metadata"].pop("execution", None)
        for data in (output["data"] for output in cell.get("outputs", ()) if "data" in output):
            if png := data.get("image/png"):
                data["image/png"] = base64.b64encode(with_palette(base64.b64decode(png))).decode()
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        if path.suffix == ".ipynb":
            path.write_text(small_notebook(path.read_text(encoding="utf-8")), encoding="utf-8")
        else:
            path.write_bytes(with_palette(path.read_bytes()))
            stamp(path, Path(__file__).parents[1] / "results")
