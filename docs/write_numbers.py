"""Write the numbers of README and documentation from results/, or check that they are those of results/.

    make check-results                         # exit code 1 and one line for every number that differs
    python docs/write_numbers.py --write

A number stands between `<!--= STUDY: ROW -->` and `<!--/-->`, where ROW is one of the "numbers" that `road-interp study STUDY
--redraw --json` prints. Lines may break inside; none starts with "<!--", because Markdown takes such a line
for a block of HTML. A number of three digits or more, with a decimal point or a comma for thousands, that results/ holds and
that stands elsewhere is a failure, too, and so is a figure in docs/figures that was drawn from other results.
"""

from __future__ import annotations

import difflib
import re
import sys
from functools import cache
from itertools import chain
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from figure_results import outdated

from road_interp.training.study import StudyOptions, find_study, studies
from road_interp.training.study_pieces import read_study

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *sorted(page for page in (ROOT / "docs").rglob("*.md") if "generated" not in page.parts))
NUMBER = re.compile(r"(?<![\w.,])(?:\d*\.\d+(?![\d.]*\.\d|\d)|\d{1,3}(?:,\d{3})+(?![\d,]*\d))")
CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.MULTILINE | re.DOTALL)
MARKED = re.compile(r"(<!--=\s+([\w-]+):\s+(.+?)\s+-->)(.*?)(<!--/-->)", re.DOTALL)


@cache
def rows(study: str, results: Path) -> dict[str, str]:
    """The value and the interval of every row of a study's table, without the zero before a decimal point."""
    found = find_study(study)
    _, named = found.describe(read_study(found, StudyOptions(results=results)))
    return {name: drop_zero(re.sub(r"\].*", "]", text)) for name, text in named}


def drop_zero(text: str) -> str:
    """The text with ".5" for "0.5", and ".00" for "-0.00" but at an end of an interval, whose sign says whether it holds 0."""
    return re.sub(r"(?<!\[)-(\.0+)(?![\d\]])", r"\1", re.sub(r"(?<![\d.])0\.(?=\d)", ".", text))


def one_line(text: str) -> str:
    """The text without its line breaks."""
    return " ".join(text.split())


def broken_as(old: str, value: str) -> str:
    """The value with the line breaks of the old one, if both have as many words."""
    spaces, words = [*re.findall(r"\s+", old), ""], value.split()
    return "".join(chain(*zip(words, spaces, strict=True))) if len(words) == len(spaces) else value


def current(text: str, results: Path) -> str:
    """The text with the numbers of the results. Raises KeyError that names study and row for a row that does not exist."""

    def replaced(found: re.Match[str]) -> str:
        start, study, row, old, end = found.groups()
        known, row = rows(study, results), one_line(row)
        if row not in known:
            near = ", ".join(difflib.get_close_matches(row, known, 3)) or "none like it"
            raise KeyError(f"study '{study}' has no row '{row}'; the nearest: {near}")
        return f"{start}{broken_as(old, known[row])}{end}"

    return MARKED.sub(replaced, text)


def differences(text: str, results: Path) -> list[str]:
    """A line for every number that is not that of the results."""
    pairs = zip(MARKED.finditer(text), MARKED.finditer(current(text, results)), strict=True)
    return [f"{old[2]}: {one_line(old[3])}: {one_line(old[4])} should be {new[4]}" for old, new in pairs if old[4] != new[4]]


def typed(text: str, results: Path) -> list[str]:
    """A line for every number of three digits or more that stands outside marks and code, and is one of the results."""
    found = telling(CODE.sub("", MARKED.sub("", text)))
    known = known_values(results) if found else {}  # which reads all results
    return [f"{number} is typed: {known[drop_zero(number)]}" for number in found if drop_zero(number) in known]


def telling(text: str) -> list[str]:
    """The numbers with three digits or more: shorter ones equal a result by chance.

    Zeros in front do not count, nor those at the end of a whole number.
    """
    found = NUMBER.findall(text)
    digits = [number.replace(".", "").lstrip("0") if "." in number else number.replace(",", "").rstrip("0") for number in found]
    return [number for number, each in zip(found, digits, strict=True) if len(each) >= 3]


@cache
def known_values(results: Path) -> dict[str, str]:
    """Study and row by value, for the numbers of three digits or more in the results of all studies."""
    values: dict[str, str] = {}
    for name in studies():
        for row, text in rows(name, results).items() if (results / name).is_dir() else ():
            values |= dict.fromkeys(telling(text), f"{name}: {row}")
    return values


def main() -> int:
    wrong = 0
    for page in PAGES:
        text = page.read_text()
        if sys.argv[1:] == ["--write"]:
            page.write_text(current(text, ROOT / "results"))
            continue
        for line in differences(text, ROOT / "results") + typed(text, ROOT / "results"):
            print(f"{page.relative_to(ROOT)}: {line}")
            wrong += 1
    if sys.argv[1:] != ["--write"]:
        for line in outdated(ROOT / "docs" / "figures", ROOT / "results"):
            print(line)
            wrong += 1
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
