"""Compare what two releases wrote: every number and text of two files or folders, to the bit.

    python tests/compare_numbers.py BEFORE AFTER [OLD=NEW ...]

Files are .safetensors, .json and .json.gz. Adapters are compared tensor by tensor. In JSON the keys that say how a file was made
(format, result, provenance) and what is computed from the rest (summary, ...) are left out; outcomes written as "0101" count as
the list of false and true; the order of keys does not count. Keys that were renamed are named as OLD=NEW. Exit code 1 where
anything differs.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from road_interp.files import read_json_object

MADE = {"format", "result", "provenance", "summary", "costs", "correlations", "gap to training alone"}


def flat(value: Any, path: str, renamed: dict[str, str]) -> dict[str, Any]:
    """Leaves by their path."""
    if isinstance(value, dict):
        kept = {renamed.get(key, key): each for key, each in value.items() if key not in MADE}
        return {k: v for key, each in kept.items() for k, v in flat(each, f"{path}/{key}", renamed).items()}
    if isinstance(value, str) and value and not value.strip("01") and len(value) > 1:
        value = [digit == "1" for digit in value]
    if isinstance(value, list):
        return {k: v for index, each in enumerate(value) for k, v in flat(each, f"{path}/{index}", renamed).items()}
    return {path: renamed.get(value, value) if isinstance(value, str) else value}


def numbers_in(path: Path, renamed: dict[str, str]) -> dict[str, Any]:
    """Everything that a JSON or safetensors file holds."""
    if path.suffix == ".safetensors":
        return dict(load_file(path))
    return flat(read_json_object(path), "", renamed)


def files_of(folder: Path) -> list[Path]:
    """Those that are compared."""
    return sorted(path for path in folder.rglob("*") if path.name.endswith((".json", ".json.gz", ".safetensors")))


def compare(before: Path, after: Path, renamed: dict[str, str]) -> int:
    """The number of values that are equal; raises SystemExit naming the first that is not."""
    old, new = numbers_in(before, renamed), numbers_in(after, renamed)
    for key in {**old, **new}:
        same = torch.equal(old[key], new[key]) if isinstance(old.get(key), torch.Tensor) else old.get(key) == new.get(key)
        if not same:
            raise SystemExit(f"{before} and {after} differ at {key}: {old.get(key)!r}, {new.get(key)!r}")
    return len(old)


def main() -> None:
    before, after = Path(sys.argv[1]), Path(sys.argv[2])
    renamed = dict(pair.split("=") for pair in sys.argv[3:])
    files = [before] if before.is_file() else files_of(before)
    total = 0
    for path in files:
        other = after if before.is_file() else after / path.relative_to(before)
        if path.suffix == ".safetensors" and not other.is_file():
            (other,) = after.joinpath(path.parent.relative_to(before)).glob("*.safetensors")
        if not other.is_file():
            print(f"only before: {path}")
            continue
        total += compare(path, other, renamed)
    print(f"{total:,} values of {len(files)} files are equal")


if __name__ == "__main__":
    main()
