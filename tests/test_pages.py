"""Every page of the manual in Chromium: no page is wider than the window, on a desk and on a telephone, in either theme."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

BUILT = Path(__file__).parents[1] / "build" / "docs"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PAGES = sorted(path for path in BUILT.rglob("*.html") if not path.is_relative_to(BUILT / "_static"))
WIDTHS, THEMES = (1280, 390), ("light", "dark")
# Opens one page after the other in a frame, and writes into the title how many pixels each is wider than its frame.
SCRIPT = """<!doctype html><title></title><body><script>
  const found = {}, jobs = [];
  for (const page of %s) for (const width of %s) for (const theme of %s) jobs.push([page, width, theme]);
  const next = () => {
    if (!jobs.length) { document.title = JSON.stringify(found); return; }
    const [page, width, theme] = jobs.shift(), frame = document.createElement("iframe");
    frame.style.width = width + "px"; frame.style.height = "900px"; frame.style.border = "0";
    frame.onload = async () => {
      await frame.contentWindow.MathJax?.startup?.promise;
      const root = frame.contentDocument.documentElement;
      root.dataset.theme = theme;
      found[[page, width, theme].join(" ")] = root.scrollWidth - width;
      frame.remove();
      next();
    };
    frame.src = page;
    document.body.append(frame);
  };
  next();
</script>"""

pytestmark = [
    pytest.mark.pages,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium on the path"),
    pytest.mark.skipif(not PAGES, reason="make docs builds the pages"),
]


def test_no_page_scrolls_sideways(tmp_path):
    wide = tmp_path / "wide.html"
    wide.write_text("<div style='width: 1300px'>wider than both windows</div>")
    pages = [path.as_uri() for path in (*PAGES, wide)]
    (tmp_path / "all.html").write_text(SCRIPT % tuple(map(json.dumps, (pages, WIDTHS, THEMES))))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--disable-web-security"]
    options += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1400,1000", "--virtual-time-budget=600000"]
    command = [CHROMIUM, *options, "--dump-dom", (tmp_path / "all.html").as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=500, check=True).stdout
    found = json.loads(html.unescape(re.search("<title>(.*?)</title>", dom)[1]))
    assert len(found) == len(pages) * len(WIDTHS) * len(THEMES)
    too_wide = {name for name, wider in found.items() if wider > 0}
    assert too_wide == {f"{wide.as_uri()} {width} {theme}" for width in WIDTHS for theme in THEMES}
