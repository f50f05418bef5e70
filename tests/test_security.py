"""Files of strangers are data: nothing of them is run, and nothing outside their folder is read."""

from __future__ import annotations

import ast
import inspect
import re
import shutil
from pathlib import Path

import pytest
import torch

from helpers.recipes import recipe_for
from road_interp.cli.model_commands import serve
from road_interp.errors import InputError
from road_interp.recipes.loader import builtin_recipes, load_recipe
from road_interp.recipes.schema import ModelRecipe
from road_interp.training import classification, trainer
from road_interp.training.api import train

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*(ROOT / "road_interp").rglob("*.py"), *(ROOT / "analyses").glob("*.py")])
NEVER = {"eval", "exec", "compile", "__import__", "pickle.load", "pickle.loads", "yaml.load", "yaml.unsafe_load", "joblib.load"}
NEVER |= {"os.system", "os.popen", "subprocess.run", "subprocess.Popen", "np.load", "numpy.load", "shutil.unpack_archive"}


class Trap:
    """A pickle that would run code when it is read."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('the trap was sprung')",))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_no_source_runs_what_it_reads(path):
    imported = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)]
    paths = {getattr(node, "module", None) or alias.name for node in imported for alias in node.names}
    names = {path.partition(".")[0] for path in paths}
    assert not names & {"pickle", "marshal", "shelve", "dill", "joblib", "cloudpickle"}
    for call in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)):
        name, options = ast.unparse(call.func), {option.arg: ast.unparse(option.value) for option in call.keywords}
        assert name not in NEVER or (path.name, name) == ("larger_models.py", "subprocess.run")  # which runs pip
        assert options.get("shell", "False") == "False"
        if name == "torch.load":
            assert options.get("weights_only") == "True"


def test_no_recipe_trusts_a_hub_models_code():
    assert ModelRecipe("a/b").trust_remote_code is False
    assert not any(load_recipe(name).model.trust_remote_code for name in builtin_recipes())


@pytest.fixture(scope="module")
def stopped(workplace):
    """The folder of a training that ended behind its first checkpoint."""
    real = classification.RoadTrainer._save_checkpoint

    def stop(self, *args, **kwargs):
        real(self, *args, **kwargs)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(classification.RoadTrainer, "_save_checkpoint", stop)
        with pytest.raises(KeyboardInterrupt):
            train(recipe_for(workplace), workplace / "stopped", progress=False)
    return workplace / "stopped"


@pytest.mark.training
@pytest.mark.parametrize("file", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "model.safetensors"])
def test_a_checkpoint_that_runs_code_or_is_damaged_is_refused(workplace, stopped, file):
    folder = shutil.copytree(stopped, workplace / file)
    checkpoint = trainer.last_checkpoint(folder / "checkpoints")
    whole = (checkpoint / file).read_bytes()
    torch.save(Trap(), checkpoint / file)
    trap = (checkpoint / file).read_bytes()
    for damaged in (trap, b"", whole[: len(whole) // 2], bytes(len(whole))):
        (checkpoint / file).write_bytes(damaged)
        with pytest.raises(InputError, match=f"{checkpoint.name} cannot be read"):
            train(recipe_for(workplace), folder, resume=True, progress=False)


def test_a_models_pickle_that_runs_code_is_refused(workplace, tmp_path):
    shutil.copytree(workplace / "model", tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    torch.save(Trap(), tmp_path / "model" / "pytorch_model.bin")
    with pytest.raises(InputError, match="cannot be loaded"):
        train(recipe_for(workplace, f"model.id={tmp_path / 'model'}"), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_the_server_listens_on_this_machine_only():
    assert inspect.signature(serve).parameters["host"].default == "127.0.0.1"


def test_every_promise_names_a_test_that_exists():
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "SECURITY.md").read_text())
    assert named
    assert all(f"\ndef {name}(" in (ROOT / path).read_text() for path, name in named)
