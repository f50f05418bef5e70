"""Runs that are killed, stopped, or have no room left, and folders that several write, in processes of their own."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from helpers.models import random_adapter, tiny_model
from helpers.recipes import recipe_for
from road_interp import files
from road_interp.adapters.road_adapter import RoadAdapter
from road_interp.cli.app import main
from road_interp.measure.throughput import ThroughputReport, Timing
from road_interp.plots import export
from road_interp.provenance import current_provenance
from road_interp.runs import run_folder
from road_interp.runs.run import Run
from road_interp.sites.find import find_sites
from road_interp.training import trainer
from road_interp.training.api import train
from road_interp.training.classification import ClassificationExperiment
from road_interp.training.study import StudyOptions, find_study
from road_interp.training.study_pieces import settings_of

resource = pytest.importorskip("resource", reason="Windows has no limits of resources")
ANALYSES = Path(__file__).parents[1] / "analyses"
pytestmark = pytest.mark.faults
KILLS = 20
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["road_interp.training.classification"])


def go_on(workplace, folder, kill_at=None, most_bytes=None):
    """A process of its own: begin the run in the folder, or go on with it.

    Args:
        kill_at: the step and the moment after it (seconds) at which the process is killed; or a key of MOMENTS.
        most_bytes: no file may become larger.
    """
    torch.set_num_threads(1)
    if most_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
    if kill_at in MOMENTS:
        kill_before(*MOMENTS[kill_at])
    elif kill_at is not None:
        kill_in(*kill_at)
    try:
        train(recipe_for(workplace), folder, resume=(folder / "recipe.yaml").exists(), progress=False)
    except OSError as error:
        (folder / "told.txt").write_text(str(error))


def kill_in(step, seconds):
    real = trainer.RoadTrainer.training_step

    def counted(self, *args, **kwargs):
        if self.state.global_step == step:
            threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()
        return real(self, *args, **kwargs)

    trainer.RoadTrainer.training_step = counted


def kill_before(module, name, call):
    """Kill the process at a call of a function, by its number."""
    real, calls = getattr(module, name), []

    def counted(*args, **kwargs):
        calls.append(name)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)

    setattr(module, name, counted)


MOMENTS = {
    "before the recipe": (files.os, "replace", 1),
    "after the recipe": (files.os, "replace", 2),
    "checkpoint": (trainer.RoadTrainer, "_save_rng_state", 2),
    "scoring": (ClassificationExperiment, "score", 1),
    "results": (run_folder, "write_atomically", 6),
    "figure": (export, "save_figure", 2),
}


def train_by_command(workplace, folder, kill_at=None):
    """A process of its own: the command that trains and draws, begun or resumed."""
    torch.set_num_threads(1)
    if kill_at is not None:
        kill_before(*MOMENTS[kill_at])
    (workplace / "drawn.yaml").write_text(recipe_for(workplace).to_yaml())
    resume = ["--resume"] if (folder / "recipe.yaml").exists() else []
    sys.argv = ["road-interp", "train", str(workplace / "drawn.yaml"), "--out", str(folder), "--json", *resume]
    main()


def run_to_its_end(*arguments, target=go_on):
    process = FORKS.Process(target=target, args=arguments)
    process.start()
    process.join()
    return process


def equal(run, other):
    """Whether metrics and every learned value are the same, to the bit."""
    same = (torch.equal(run.adapter.theta[site.name], other.adapter.theta[site.name]) for site in run.adapter.sites)
    head = (run.folder / "head.safetensors").read_bytes() == (other.folder / "head.safetensors").read_bytes()
    return run.metrics == other.metrics and all(same) and head


@pytest.mark.parametrize("kill", range(KILLS))
def test_a_killed_run_ends_as_if_nothing_had_been(finished, workplace, kill):
    folder, chance = workplace / f"killed-{kill}", random.Random(kill)
    killed = run_to_its_end(workplace, folder, (chance.randrange(21), chance.uniform(0, 0.05)))  # of 24 steps
    assert killed.exitcode == -signal.SIGKILL
    assert not (folder / "metrics.json").exists()
    assert run_to_its_end(workplace, folder).exitcode == 0
    assert equal(Run.load(folder), finished)
    assert not [path for path in folder.rglob("*") if path.name.startswith(".")]


@pytest.mark.parametrize("moment", list(MOMENTS)[:-1])
def test_a_run_killed_outside_its_steps_ends_as_if_nothing_had_been(finished, workplace, moment):
    folder = workplace / f"killed {moment}"
    assert run_to_its_end(workplace, folder, moment).exitcode == -signal.SIGKILL
    assert not (folder / "metrics.json").exists()
    assert run_to_its_end(workplace, folder).exitcode == 0
    assert equal(Run.load(folder), finished)
    assert not [path for path in folder.rglob("*") if path.name.startswith(".")]


def test_a_run_killed_while_its_figures_are_drawn_is_resumed_to_them(finished, workplace):
    folder = workplace / "killed figure"
    assert run_to_its_end(workplace, folder, "figure", target=train_by_command).exitcode == -signal.SIGKILL
    assert (folder / "metrics.json").exists()
    assert {path.stem for path in (folder / "figures").glob("*.png")} == {"angles"}
    assert run_to_its_end(workplace, folder, target=train_by_command).exitcode == 0
    assert equal(Run.load(folder), finished)
    assert {path.stem for path in (folder / "figures").glob("*.png")} == {"angles", "magnitudes", "planes"}


@pytest.mark.parametrize("most_bytes", [2_000, 12_000, 20_000])
def test_no_room_left(finished, workplace, most_bytes):
    """The files of a checkpoint are some kilobytes each: the limit cuts them one after the other."""
    folder = workplace / f"full-{most_bytes}"
    assert run_to_its_end(workplace, folder, None, most_bytes).exitcode == 0
    told = folder / "told.txt"
    assert "no checkpoint could be written" in told.read_text()
    assert trainer.last_checkpoint(folder / "checkpoints") is None
    assert not (folder / "checkpoints").exists()
    told.unlink()
    assert run_to_its_end(workplace, folder).exitcode == 0
    assert equal(Run.load(folder), finished)


def test_interrupted_by_hand(workplace):
    recipe = recipe_for(workplace, "training.epochs=30")  # long enough that the signal arrives during the training
    finished = train(recipe, workplace / "never-stopped", progress=False)
    (workplace / "stopped.yaml").write_text(recipe.to_yaml())
    arguments = ["train", workplace / "stopped.yaml", "--out", workplace / "stopped", "--json"]
    command = [sys.executable, "-m", "road_interp.cli", *map(str, arguments)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which a process in the background may ignore
    )
    while trainer.last_checkpoint(workplace / "stopped" / "checkpoints") is None:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert (process.returncode, out) == (1, "")
    assert err.splitlines()[-1].startswith("road-interp: interrupted; go on with: the same command, --resume --out")
    assert "Traceback" not in err
    done = subprocess.run([*command, "--resume"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["test"] == finished.metrics["test"]
    assert equal(Run.load(workplace / "stopped"), finished)


def script(name, *arguments, most_bytes=resource.RLIM_INFINITY):
    """One of the scripts in a process of its own: how it ended, and what it said on standard error."""
    command = [sys.executable, ANALYSES / f"{name}.py", *arguments]
    process = subprocess.run(
        [*map(str, command)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes)),
    )
    return process.returncode, process.stderr


def timed(results):
    """Leave in a folder what the study of throughput measures."""
    tasks = [("requests", rows, 16, 8) for rows in (1, 8)] + [("length", 8, 32, 8), ("rank", 8, 16, 4)]
    timings = tuple(Timing(task, "bare", *setting, (0.5, 1.0), (1.0, 1.0), 8) for task, *setting in tasks)
    study = find_study("throughput")
    made = current_provenance((0,), settings_of(study, study.conditions["all"], StudyOptions()))
    (results / "throughput" / "all").mkdir(parents=True)
    report = ThroughputReport("tiny", 14, "cpu", "float32", 2, 2, timings, provenance=made)
    report.save(results / "throughput" / "all" / "seed-0.json.gz")


@pytest.mark.rendered
def test_no_room_for_a_figure(tmp_path):
    """The numbers come first, then the PDF, then the PNG, and each is whole or not there."""
    timed(tmp_path / "results")
    redraw = ("throughput", "--redraw", "--results", tmp_path / "results", "--out")
    assert script(*redraw, tmp_path / "whole")[0] == 0
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "whole").iterdir()}
    assert len(sizes) == 3
    for most_bytes in (size // 2 for size in sizes.values()):
        code, said = script(*redraw, tmp_path / "full", most_bytes=most_bytes)
        assert (code, said.count("\n")) == (1, 1)
        assert said.startswith("road-interp: ")
        for written in (tmp_path / "full").iterdir():
            assert abs(written.stat().st_size - sizes[written.name]) < 9  # the PNG names the folder


def test_a_measurement_goes_on_after_a_kill(tmp_path):
    places = ("--results", tmp_path / "results", "--runs", tmp_path / "runs", "--out", tmp_path / "figures")
    arguments = ("--quick", "--only", "fc1", "--only", "mlp", *places)
    command = [sys.executable, ANALYSES / "capacity.py", *arguments]
    killed = subprocess.Popen([*map(str, command)], stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    while not (pieces := list(tmp_path.glob("results/quick/capacity/*/*.json.gz"))):
        assert killed.poll() is None
        time.sleep(0.01)
    killed.kill()
    killed.communicate()
    assert not list(tmp_path.glob("figures/capacity.*"))
    first = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in pieces}
    assert {path.parent.name for path in pieces} == {"fc1"}
    code, _ = script("capacity", *arguments)
    assert code == 0
    assert {path.parent.name for path in tmp_path.glob("results/quick/capacity/*/*.json.gz")} == {"fc1", "mlp"}
    assert all((path.read_bytes(), path.stat().st_mtime_ns) == before for path, before in first.items())
    assert len(list(tmp_path.glob("figures/capacity.*"))) == 3


def test_a_script_says_in_one_line_what_is_wrong(tmp_path):
    for name, content in (("missing", None), ("other", b"[]"), ("no-text", b"\xff")):
        if content is not None:
            path = tmp_path / name / "capacity" / "road_1" / "seed-0.json"
            path.parent.mkdir(parents=True)
            path.write_bytes(content)
        code, said = script("capacity", "--redraw", "--results", tmp_path / name)
        assert (code, said.count("\n")) == (2, 1)
        assert said.startswith("road-interp: ")
        assert str(tmp_path / name) in said


def save_in_turn(folder, seeds):
    """Save adapters into one folder, one after the other, many times."""
    adapters = [random_adapter(find_sites(tiny_model("Bert"), "fc1"), seed=seed) for seed in seeds]
    for _ in range(100):
        for adapter in adapters:
            adapter.save(folder)


def test_two_processes_save_while_a_third_reads(tmp_path):
    known = [random_adapter(find_sites(tiny_model("Bert"), "fc1"), seed=seed) for seed in range(4)]
    known[0].save(tmp_path)
    writers = [FORKS.Process(target=save_in_turn, args=(tmp_path, seeds)) for seeds in ((0, 1), (2, 3))]
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        found = RoadAdapter.load(tmp_path)
        (which,) = [number for number, adapter in enumerate(known) if adapter.distance(found) == 0]
        seen.add(which)
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert len(seen) > 1
    assert len(list(tmp_path.iterdir())) == 2
