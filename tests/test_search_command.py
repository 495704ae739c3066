"""The command ``search`` on a small supernet that reads scikit-learn's digits, and what it writes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import digit_supernet
import pytest
import torch
from digit_supernet import DIGITS, evaluator
from searches import HERE, Formula, problem

import effv2_kernels
from effv2_kernels.__main__ import main
from effv2_kernels.cli import search as command
from effv2_kernels.errors import SearchError
from effv2_kernels.families.efficientformer_v2 import Architecture
from effv2_kernels.search import found as files
from effv2_kernels.search import pictures
from effv2_kernels.search.latency import LatencyTable
from effv2_kernels.search.methods.evolution import Evolution
from effv2_kernels.search.methods.slimming import Slimming
from effv2_kernels.search.supernet import Supernet

digits, one_thread = digit_supernet.digits, digit_supernet.one_thread  # fixtures

CPU = torch.device("cpu")


@pytest.fixture
def asked(digits, monkeypatch, capsys):
    """Run the command on the digits, on the machine of the tables; its code and what it said."""
    monkeypatch.setattr(command, "_timed_here", lambda args, supernet: replace(HERE, dtype=args.dtype))

    def run(output, *options):
        given = ["--supernet", digits / "supernet.safetensors", "--data", digits / "digits.safetensors"]
        code = main(["search", *map(str, [*given, "--output", output, *options])])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_from_the_supernet_to_an_optimised_network(digits, asked, tmp_path):
    output = tmp_path / "found"
    options = ["--latency", digits / "here.json", "--max-latency", 5.5, "--max-parameters", 1.3]
    code, out, err = asked(output, *options, "--explain")
    assert (code, err) == (0, "")
    assert "slimming begins with the largest subnet" in out
    assert "Every budget holds" in out
    wanted = {"architecture.json", "weights.safetensors", "NEXT.txt", "steps.jsonl", "evaluations.jsonl"}
    assert {p.name for p in output.iterdir()} == wanted | {"front.png", "path.png", "network.png"}
    last = json.loads((output / "steps.jsonl").read_text().splitlines()[-1])["chosen"]
    assert last["metrics"]["latency"] <= 5.5
    assert last["metrics"]["parameters"] <= 1.3
    # The weights are the supernet's, with statistics of their own, and as accurate as the search says.
    model = effv2_kernels.create_model(
        architecture=output / "architecture.json",
        checkpoint=output / "weights.safetensors",
        num_classes=10,
        img_size=32,
        in_channels=1,
    )
    assert sum(p.numel() for p in model.parameters()) == round(1e6 * last["metrics"]["parameters"])
    images, classes = (getattr(evaluator(digits).images, name) for name in ("images", "classes"))
    with torch.inference_mode():
        right = (model(images).argmax(1) == classes).double().mean()
        assert float(right) == pytest.approx(last["accuracy"], abs=1e-9)
        fast = effv2_kernels.optimize(model)
        assert torch.equal(fast(images).argmax(1), model(images).argmax(1))
    assert last["accuracy"] > 0.3, "the supernet has learnt nothing, and any weights would do"
    text = (output / "NEXT.txt").read_text()
    assert f"{last['accuracy']:.2%} of the held-out images" in text
    assert "python -m effv2_kernels train" in text
    # The lines of Python that it gives run.
    lines = text[text.index("  import effv2_kernels") :].replace("found.effv2", str(tmp_path / "found.effv2"))
    exec("\n".join(line[2:] for line in lines.splitlines()), {})
    assert (tmp_path / "found.effv2").exists()
    # Once more is refused; what lies there goes on, and ends with the same bits.
    before = {p.name: p.read_bytes() for p in output.iterdir()}
    code, _, err = asked(output, *options)
    assert code == 2
    assert "has a search already" in err
    for name in ("steps.jsonl", "evaluations.jsonl"):
        (output / name).write_bytes(before[name][: len(before[name]) // 2])
    assert asked(output, *options, "--resume")[0] == 0
    assert {p.name: p.read_bytes() for p in output.iterdir()} == before


def test_other_methods_and_two_devices(digits, asked, tmp_path):
    tables = ["--latency", digits / "here.json", "--latency", digits / "phone.json"]
    limits = ["--max-latency", 6, "--max-latency", 5.5]
    shared = ["--evaluations-file", tmp_path / "shared.jsonl", "--images", 100]
    for method in ("evolution", "random"):
        output = tmp_path / method
        code, out, err = asked(
            output, *tables, *limits, *shared, "--method", method, "--evaluations", 6, "--seed", 4
        )
        assert (code, err) == (0, "")
        assert f"Found by {method}" in out
        assert "evaluated 6 subnets" in out
        first, *_, last = map(json.loads, (output / "steps.jsonl").read_text().splitlines())
        assert first["search"]["seed"] == 4
        assert last["chosen"]["metrics"]["latency on here"] <= 6
        assert last["chosen"]["metrics"]["latency on phone"] <= 5.5


def test_a_process_that_is_killed(digits, asked, tmp_path):
    options = ["--max-parameters", 1.3, "--method", "random", "--evaluations", 15, "--images", 150]
    assert asked(tmp_path / "whole", *options)[0] == 0
    killed, accuracies = tmp_path / "killed", tmp_path / "killed" / "evaluations.jsonl"
    given = ["--supernet", digits / "supernet.safetensors", "--data", digits / "digits.safetensors"]
    words = ["-m", "effv2_kernels", "search", *given, "--output", killed, *options]
    process = subprocess.Popen(
        [sys.executable, *map(str, words)],
        cwd=Path(effv2_kernels.__file__).parent.parent,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    end = time.monotonic() + 60
    while not accuracies.exists() or accuracies.read_bytes().count(b"\n") < 4:
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL, "it was done before"
    assert accuracies.read_bytes().count(b"\n") < 15
    assert asked(killed, *options, "--resume")[0] == 0
    for name in ("steps.jsonl", "evaluations.jsonl", "weights.safetensors", "architecture.json"):
        assert (killed / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_speed_alone_and_size_alone(digits, asked, tmp_path):
    few = ["--method", "random", "--evaluations", 1, "--images", 20]
    cases = {
        "speed": (
            ["--latency", digits / "here.json", "--max-latency", 6, "--alpha", "parameters=0"],
            "latency",
        ),
        "size": (["--max-parameters", 1.5], "parameters"),
        "macs": (["--max-macs", 9, "--alpha", "macs=2", "--alpha", "parameters=0"], "macs"),
    }
    for name, (options, metric) in cases.items():
        assert asked(tmp_path / name, *options, *few)[0] == 0
        first = json.loads((tmp_path / name / "steps.jsonl").read_text().splitlines()[0])
        assert list(first["exponents"]) == [metric]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "a search needs a budget"),
        (["--max-latency", 3], "give one --max-latency for each --latency"),
        (["--latency", "here.json", "--max-latency", 3, "--max-latency", 4], "one --max-latency for each"),
        (["--latency", "here.json", "--latency", "here.json"], "is given twice"),
        (["--latency", "none.json", "--max-latency", 3], "cannot be read"),
        (["--latency", "here.json", "--max-latency", 0.01], "the smallest has"),
        (
            ["--latency", "here.json", "--max-latency", 3, "--dtype", "bf16"],
            "another device (dtype: bf16 here",
        ),
        (["--max-parameters", 2, "--alpha", "parameters"], "--alpha takes METRIC=NUMBER"),
        (["--max-parameters", 2, "--alpha", "energy=1"], "the score counts energy"),
        (["--max-parameters", 2, "--alpha", "parameters=-1"], "exponent of parameters"),
        (["--max-parameters", 2, "--metric", "energy"], "--metric takes NAME=TABLE"),
        (["--max-parameters", 2, "--metric", " =here.json"], "--metric takes NAME=TABLE"),
        (["--max-parameters", 2, "--metric", "energy="], "--metric takes NAME=TABLE"),
        (["--max-parameters", 2, "--max", "energy"], "--max takes METRIC=NUMBER"),
        (["--max-parameters", 2, "--max", "=3"], "--max takes METRIC=NUMBER"),
        (["--max-parameters", "nan"], "the budget of parameters must be a positive number; got nan"),
        (["--max-macs", "inf"], "the budget of macs must be a positive number; got inf"),
        (["--max-parameters", "-1"], "the budget of parameters must be a positive number; got -1"),
        (["--latency", "here.json", "--max-latency", "nan"], "budget of latency must be a positive number"),
        (["--max-parameters", 9, "--max", "parameters=0.01"], "parameters is given twice"),
        (["--latency", "here.json", "--max-latency", 9, "--max", "latency=9"], "latency is given twice"),
        (["--max", "macs=2", "--max", "macs=3"], "macs is given twice, by --max: give it once"),
        (["--max-macs", 2, "--alpha", "macs=2", "--alpha", "macs=3"], "macs is given twice, by --alpha"),
        (
            ["--max-macs", 2, "--metric", "energy={here}", "--metric", "energy={here}"],
            "energy is given twice, by --metric",
        ),
        (["--max-parameters", 2, "--dtype", "int8"], "unknown --dtype 'int8'"),
        (["--max-parameters", 2, "--device", "tpu"], "--device takes cpu, cuda or cuda:1, but got 'tpu'"),
        (["--max", "energy=2"], "there is a budget of energy, but what is known"),
        (["--max-parameters", 2, "--dataset", "torch/cifar10"], "which is no --dataset torch/cifar10: leave"),
        (["--max-parameters", 2, "--images", 0], "--images must be at least 1"),
        (["--max-parameters", 2, "--device", "cuda"], "needs a GPU"),
        (["--max-parameters", 2, "--method", "random", "--evaluations", 0], "at least 1 evaluation"),
    ],
)
def test_options_that_are_refused(options, message, digits, asked, tmp_path):
    if "cuda" in options and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    options = [str(option).replace("{here}", str(digits / "here.json")) for option in options]
    given = [digits / o if o.endswith(".json") and "=" not in o else o for o in options]
    code, _, err = asked(tmp_path / "out", *given)
    assert code == 2
    assert message in err


@pytest.mark.parametrize(
    ("device", "message"), [("cuda:77", "take cpu"), ("tpu", "--device takes cpu, cuda or cuda:1, but got")]
)
def test_devices_for_images_in_folders(device, message, digits, tmp_path, capsys):
    """Training, which reads them, would advise torchrun, which a search refuses."""
    words = ["--supernet", digits / "supernet.safetensors", "--data", tmp_path, "--output", tmp_path / "out"]
    assert main(["search", *map(str, words), "--max-parameters", "2", "--device", device]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "torchrun" not in err


def test_energy_beside_the_others(digits, asked, tmp_path):
    """A metric that adds up over blocks, from a table that need not be of this machine."""
    energy = replace(LatencyTable.read(digits / "phone.json"), device=replace(HERE, name="", unit="mJ"))
    energy.save(tmp_path / "energy.json")
    options = [
        "--metric",
        f"energy={tmp_path / 'energy.json'}",
        "--max",
        "energy=5.5",
        "--alpha",
        "energy=0.5",
    ]
    code, out, err = asked(tmp_path / "out", *options, "--images", 20)
    assert (code, err) == (0, "")
    assert "mJ" in out
    first, *_, last = map(json.loads, (tmp_path / "out" / "steps.jsonl").read_text().splitlines())
    assert first["exponents"] == {"parameters": 0.5, "energy": 0.5}
    metrics = last["chosen"]["metrics"]
    assert metrics["energy"] <= 5.5
    subnet = Architecture.read(tmp_path / "out" / "architecture.json")
    assert metrics["energy"] == energy.predict(subnet)
    score = 100 * (metrics["parameters"] / 3) ** -0.5 * metrics["energy"] ** -0.5
    assert last["chosen"]["mes"] == pytest.approx(score)


def test_a_mistake_claims_no_folder(digits, asked, tmp_path):
    """A search that could not begin can be begun when its options are right."""
    options = ["--max-parameters", 1.3, "--images", 20]
    (tmp_path / "wrong.jsonl").write_text('{"of": "something else"}\n')
    code, _, err = asked(tmp_path / "out", *options, "--evaluations-file", tmp_path / "wrong.jsonl")
    assert code == 2
    assert "was written with" in err
    assert asked(tmp_path / "out", *options)[0] == 0
    # Other images are told apart in words.
    code, _, err = asked(tmp_path / "out", *options[:-1], 21, "--resume")
    assert code == 2
    assert re.search("on 20 held-out images, 256 for statistics.* on 21 held-out images, 256 for", err)


@pytest.mark.parametrize("data", ["", "images.safetensors"])
def test_several_processes_are_refused(data, monkeypatch, capsys, tmp_path):
    """Each would take its share of the images for all of them, and write the files of all."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    words = ["--supernet", "none.safetensors", "--data", tmp_path / data, "--output", tmp_path]
    assert main(["search", *map(str, words), "--max-parameters", "2"]) == 2
    assert "a search is one process, but torchrun has started 2" in capsys.readouterr().err


def test_a_table_of_another_device_by_force(digits, asked, tmp_path):
    options = ["--latency", digits / "here.json", "--max-latency", 6, "--dtype", "bf16", "--force"]
    code, _, err = asked(tmp_path, *options, "--method", "random", "--evaluations", 1, "--images", 20)
    assert code == 0
    assert "is taken nevertheless: dtype: bf16 here, fp32 there" in err


def test_what_was_found_of_a_supernet_without_layer_scales(tmp_path):
    torch.manual_seed(0)
    supernet = Supernet(DIGITS, num_classes=3, distillation=False, layer_scale_init=None).eval()
    model = supernet.subnet(DIGITS.smallest())
    found = Slimming().run(problem())
    with pytest.raises(SearchError, match="but the weights are of"):
        files.write(tmp_path, model, found, "found")
    found = replace(found, best=replace(found.best, architecture=DIGITS.smallest()))
    files.write(tmp_path, model, found, "found")
    made = effv2_kernels.create_model(
        architecture=tmp_path / "architecture.json",
        checkpoint=tmp_path / "weights.safetensors",
        num_classes=3,
        img_size=32,
        in_channels=1,
    )
    # Its second classifier, for distillation, begins as the first one.
    assert torch.equal(made.head_dist.weight, made.head.weight)
    x = torch.randn(2, 1, 32, 32)
    torch.testing.assert_close(made(x), model(x))
    with pytest.raises(SearchError, match="cannot be written"):
        files.write(tmp_path / "none", model, found, "found")


def test_the_front():
    front = [(1, 0.2), (2, 0.5), (5, 0.9)]
    beaten = [(1, 0.1), (2, 0.4), (3, 0.5), (4, 0.3), (9, 0.9)]
    assert pictures.pareto([*beaten, *reversed(front)]) == front
    assert pictures.pareto([]) == []


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_pictures(ending, tmp_path):
    pytest.importorskip("matplotlib")
    searches = {
        "slimming": Slimming().run(problem()),
        "evolution": Evolution(9, 0).run(problem(evaluator=Formula())),
    }

    def drawn(folder):
        folder.mkdir()
        paths = [folder / f"{name}.{ending}" for name in ("front", "path", "network")]
        pictures.draw_front(searches, "latency", paths[0], unit="ms")
        pictures.draw_path(searches["slimming"], "latency", paths[1])
        pictures.draw_network(Architecture((8, 16, 24, 32), (0, 1, 3, 2), 2.5, (2, 1)), paths[2])
        return [path.read_bytes() for path in paths]

    front, path, network = drawn(tmp_path / "one")
    assert drawn(tmp_path / "two") == [front, path, network]
    if ending == "svg":
        for text in ("latency, ms", "front", "slimming: ", "evolution: 9"):
            assert text.encode() in front
        assert b">found<" in path
        for text, count in (("stage 4", 1), (">24 channels<", 1), ("x2.5", 6), (">A<", 3)):
            assert network.count(text.encode()) == count, text
    with pytest.raises(SearchError, match="cannot be written"):
        pictures.draw_network(DIGITS.largest(), tmp_path / "none" / f"network.{ending}")
