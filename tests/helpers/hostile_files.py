"""Damage files at random and read them: every file is understood, or refused with InputError.

    python tests/helpers/hostile_files.py KIND,KIND FIRST COUNT

A process of its own, with a limit of memory and of time for each file. Every file is a seed, so that one can be read again.
Writing outside the folder of the files, starting a program and connecting to the network end the process. A line for each kind
has the number of files that were understood and of those that were refused.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from helpers.gguf_files import write_gguf
from helpers.models import random_adapter, tiny_model
from helpers.taught import word_tokenizer
from road_interp import causal, measure
from road_interp.adapters.road_adapter import RoadAdapter
from road_interp.causal import template_pairs
from road_interp.causal.counterfactuals import read_pairs
from road_interp.causal.entity_task import load_ravel
from road_interp.causal.template_pairs import load_pairs
from road_interp.errors import InputError
from road_interp.measure import angles
from road_interp.models import gguf
from road_interp.models.road_model import RoadModel
from road_interp.recipes.loader import load_recipe, load_stored_recipe
from road_interp.results import Result
from road_interp.runs.origin import Origin
from road_interp.runs.run import Run
from road_interp.runs.run_folder import describe_environment
from road_interp.sites.find import find_sites

GOLDEN = Path(__file__).parents[1] / "golden" / "0.1.0"
RECIPES = Path(__file__).parents[2] / "interventions"
SECONDS, BYTES = 20, 1 << 30  # for one file
FORBIDDEN = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect", "socket.bind"}
CHANGES = {"os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "shutil.rmtree"}
TWO_PATHS = {"os.rename", "os.link", "os.symlink"}  # the second is made
PIECES = (
    *(b"null", b"NaN", b"-1", b"1e999", b"99999999999999999999", b"true", b'""', b"[]", b"{}", b"\0", b"\xff\xfe", b"\n"),
    *(b"[" * 5000, b'{"a":' * 3000, b"../../x", b"/etc/passwd", b"!!python/object/apply:os.system [echo]", b"*a", b"&a ", b": "),
    *(b"x" * 300, b"~nobody/x"),
)


Reader = Callable[[Path, Path], object]  # of the folder of a kind, and the file in it that is damaged


class TooSlow(BaseException):
    """A file took longer than SECONDS. Not an Exception, so that no reader takes it for damage of the file."""


def main(kinds: Sequence[str], first: int, count: int) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, _too_slow)
    with tempfile.TemporaryDirectory() as root:
        os.environ["HF_HOME"] = root
        os.chdir(root)
        readers = {}
        for kind in kinds:
            folder = Path(root) / kind
            folder.mkdir()
            readers[kind] = KINDS[kind](folder)
            for path in _files(folder):
                readers[kind](folder, path)  # everything is imported, and what is damaged later is understood
        _limit_memory()
        sys.addaudithook(lambda event, given: watch(event, given, root))
        for kind, read in readers.items():
            counts = _read_damaged(kind, read, Path(root) / kind, range(first, first + count))
            print(kind, counts["understood"], counts["refused"], flush=True)
    os._exit(0)  # what libraries tidy up at the end is not the doing of a file


def _read_damaged(kind: str, read: Reader, folder: Path, seeds: Iterable[int]) -> Counter[str]:
    pristine, counts = {path: path.read_bytes() for path in _files(folder)}, Counter[str]()
    for seed in seeds:
        draw = random.Random(f"{kind} {seed}")
        path = draw.choice(sorted(pristine))
        path.write_bytes(damaged(pristine[path], draw))
        signal.alarm(SECONDS)
        try:
            read(folder, path)
            counts["understood"] += 1
        except InputError:
            counts["refused"] += 1
        except BaseException:
            traceback.print_exc()
            print(f"seed {seed} of {kind}, {path.name}", file=sys.stderr)
            os._exit(1)
        signal.alarm(0)
        path.write_bytes(pristine[path])
        for left in set(_files(folder)) - set(pristine):
            left.unlink()
    return counts


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def damaged(content: bytes, draw: random.Random) -> bytes:
    """The content after one to four changes: bytes flipped, left out, doubled, moved or replaced, or the end cut off."""
    for _ in range(draw.choice((1, 1, 2, 4))):
        start = draw.randrange(len(content) + 1)
        stop = min(len(content), start + draw.choice((0, 1, 1, 4, 8, 64)))
        piece = content[start:stop]
        new = draw.choice(
            (
                draw.choice(PIECES),
                draw.randbytes(max(1, len(piece))),
                b"",
                piece * 2,
                bytes(each ^ 1 << draw.randrange(8) for each in piece),
                content[draw.randrange(len(content) + 1) :][:64],
            )
        )
        content = content[:start] + new + (b"" if draw.random() < 0.05 else content[stop:])
    return content


def _limit_memory() -> None:
    """Allow BYTES more than the process has now."""
    import resource  # not on Windows

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def watch(event: str, given: tuple, root: str) -> None:
    """End the process where it does what reading a file must not do."""
    writes = event == "open" and isinstance(given[0], str) and (given[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    changed = str(given[1 if event in TWO_PATHS else 0]) if writes or event in CHANGES else root
    if event in FORBIDDEN or not (os.path.abspath(changed).startswith(root) or changed == os.devnull):
        print(f"{event} {given}", file=sys.stderr)
        traceback.print_stack()
        os._exit(1)


def _too_slow(number: int, frame: object) -> None:
    raise TooSlow


def _adapter(folder: Path) -> Reader:
    random_adapter(find_sites(tiny_model("Llama", "causal-lm"), "all-linear"), "road_2").save(folder)
    return lambda folder, path: RoadAdapter.load(folder)


def _peft(folder: Path) -> Reader:
    base = tiny_model("Llama", "causal-lm")
    random_adapter(find_sites(base, "all-linear")).to_peft(folder, base)
    return lambda folder, path: RoadAdapter.load(folder, base)


def _pyvene(folder: Path) -> Reader:
    base = tiny_model("Llama", "causal-lm")
    RoadModel(base, random_adapter(find_sites(base, "block-output"))).save(folder / "pyvene")
    return lambda folder, path: RoadModel.load(folder / "pyvene", base)


def _recipe(folder: Path) -> Reader:
    for path in sorted(RECIPES.glob("*.yaml")):
        shutil.copy(path, folder)
    return lambda folder, path: load_recipe(path)


def _run(folder: Path) -> Reader:
    shutil.copytree(GOLDEN / "runs", folder, dirs_exist_ok=True)
    current = Path(shutil.copytree(folder / "classification", folder / "current"))
    recipe = load_stored_recipe(current / "recipe.yaml")
    RoadAdapter.load(current / "adapter").save(current / "adapter")
    (current / "data.csv").write_text("text,label\nfine,1\npoor,0\n")
    recipe = replace(recipe, data=replace(recipe.data, id=os.path.relpath(current / "data.csv")))
    (current / "recipe.yaml").write_text(recipe.to_yaml())
    (current / "origin.json").write_text(Origin.here(recipe, current).to_json())
    (current / "environment.json").write_text(describe_environment(0, "cpu", "fp32"))

    def read(folder: Path, path: Path) -> None:
        run = Run.load(folder / path.relative_to(folder).parts[0])
        run.check_data()
        if run.planes is not None and run.folder.name != "questions":
            run.composition.summary()

    return read


def _result(folder: Path) -> Reader:
    found = {name: getattr(module, name) for module in (measure, causal) for name in module.__all__}
    kinds = {name: kind for name, kind in found.items() if isinstance(kind, type) and issubclass(kind, Result)}
    for path in sorted((GOLDEN / "results").glob("*.json")):
        kinds[path.stem].load(path).save(folder / path.name)
    angles(random_adapter(find_sites(tiny_model("Llama", "causal-lm"), "attention"))).save(folder / "AngleReport.json")

    def read(folder: Path, path: Path) -> None:
        result = kinds[path.stem].load(path)
        result.summary()
        result.records()

    return read


def _templates(folder: Path) -> Reader:
    shutil.copy(Path(template_pairs.__file__).parent / "templates.json", folder)
    tokenizer = word_tokenizer(*_texts(json.loads((folder / "templates.json").read_text())))
    return lambda folder, path: load_pairs("gender", tokenizer, (8, 4, 4), templates=path)


def _ravel(folder: Path) -> Reader:
    names = [f"City{number}" for number in range(12)]
    prompt = "%s is in"
    files = {
        "entity_attributes": {name: {"Country": f"Land{n % 3}", "Continent": f"Part{n % 2}"} for n, name in enumerate(names)},
        "attribute_to_prompts": {"Country": [prompt], "Continent": [f"{prompt} the"]},
        "entity_to_split": {name: ("train", "val", "test")[n % 3] for n, name in enumerate(names)},
        "prompt_to_split": {prompt: "train", f"{prompt} the": "train"},
    }
    for name, content in files.items():
        (folder / f"ravel_city_{name}.json").write_text(json.dumps(content))
    return lambda folder, path: list(load_ravel(folder, "city", ["Country", "Continent"]).questions())


def _pairs(folder: Path) -> Reader:
    spans = [{"who": name, "does": " slept"} for name in ("Ann", "Bob")]
    pair = {"base": spans[0], "source": spans[1], "base_label": " she", "source_label": " he"}
    (folder / "pairs.jsonl").write_text(f"{json.dumps(pair)}\n" * 4)
    return lambda folder, path: read_pairs(path)


def _gguf(folder: Path) -> Reader:
    write_gguf(tiny_model("Llama", "causal-lm"), folder / "model.gguf")

    def read(folder: Path, path: Path) -> None:
        gguf.CACHE = folder / "cache"
        gguf.convert_gguf(path, "backbone")
        shutil.rmtree(gguf.CACHE)

    return read


def _texts(value: object) -> list[str]:
    """All texts in a JSON value."""
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for each in inner for text in _texts(each)]


KINDS = {
    "adapter": _adapter,
    "peft": _peft,
    "pyvene": _pyvene,
    "recipe": _recipe,
    "run": _run,
    "result": _result,
    "templates": _templates,
    "ravel": _ravel,
    "pairs": _pairs,
    "gguf": _gguf,
}

if __name__ == "__main__":
    main(sys.argv[1].split(","), int(sys.argv[2]), int(sys.argv[3]))
