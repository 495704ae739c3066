"""What measures latency: the engine's clock, the command, reports of other machines, and proofs."""

import json
import os
import random
import sys
from dataclasses import replace
from itertools import count

import pytest
from checks import one_torch_thread
from latencies import CALL, CLASSES, SPACE, STEP, TASK, Machine, cost, measure, true_time

from effv2_kernels import extras
from effv2_kernels.__main__ import main
from effv2_kernels.cli import latency as command
from effv2_kernels.errors import Effv2Error, LatencyError, SearchError
from effv2_kernels.families.efficientformer_v2.architecture import VARIANTS
from effv2_kernels.search.latency import (
    Device,
    LatencyTable,
    Reading,
    block_names,
    kept,
    operators,
    proof,
    reports,
)
from effv2_kernels.search.latency.timer import Timer
from effv2_kernels.search.space import SearchSpace, StageChoices

# --- The engine ---------------------------------------------------------------------------------------------


def test_the_engine_is_timed_block_by_block():
    with one_torch_thread():
        timer = Timer(SPACE.img_size, in_channels=1, classes=CLASSES, threads=1)
        architecture = SPACE.largest()
        runner = timer.runner(architecture)
        blocks, whole = runner.blocks(), runner.whole()
    assert len(blocks) == len(block_names(architecture, TASK))
    assert min(blocks) > 0
    assert 0.3 * whole < sum(blocks) < 3 * whole
    assert timer.device.threads == 1
    assert timer.device.unit == "ms"


def test_the_commands(tmp_path, capsys):
    """Few rounds; how near a prediction comes is nothing that a busy machine could promise."""
    table, plot, space = tmp_path / "t.json", tmp_path / "proof.svg", tmp_path / "space.json"
    stage = {"widths": [16, 24], "depths": [1, 2], "ratios": [2, 4]}
    late = stage | {"attention_blocks": [0, 1]}
    space.write_text(
        json.dumps({"img_size": [32, 32], "in_channels": 1, "stages": [stage, stage, late, late]})
    )
    options = ["--space", str(space), "--classes", "10"]
    with one_torch_thread():
        assert main(["latency", *options, "--threads", "1", "--rounds", "2", "--out", str(table)]) == 0
        shown, doubts = capsys.readouterr()
        assert "blocks on" in shown
        assert "2 rounds are too few to say" in doubts
        held = main(["latency", *options, "--prove", str(table), "--networks", "5", "--plot", str(plot)])
    shown, doubts = capsys.readouterr()
    assert held == (1 if "The table does not hold here: " in doubts else 0)
    assert "5 random networks: median error" in shown
    assert "Spearman's correlation" in shown
    assert "predicted by the sum of blocks" in plot.read_text()
    changed = json.loads(table.read_text())
    changed["device"]["name"] = "another machine"
    table.write_text(json.dumps(changed))
    assert main(["latency", *options, "--prove", str(table)]) == 2
    assert "(name: " in (said := capsys.readouterr().err)
    assert "here, another machine there" in said


def test_the_command_for_operators(tmp_path, capsys, monkeypatch):
    """Of one network, and of few rounds: the others are no different."""
    name = "efficientformerv2_s0"
    home = "effv2_kernels.families.efficientformer_v2.architecture"
    monkeypatch.setattr(f"{home}.VARIANTS", {name: VARIANTS[name]})
    monkeypatch.setattr(operators.times_by_kind, "__defaults__", (1,))
    plot = tmp_path / "o.svg"
    with one_torch_thread():
        assert main(["latency", "--operators", "--threads", "1", "--plot", str(plot)]) == 0
    said = capsys.readouterr().out
    assert "ms by kind of block" in said
    row = next(line.split() for line in said.splitlines() if line.startswith("S0"))
    times = [float(cell) for cell in row[1:]]
    assert sum(times[:-1]) == pytest.approx(times[-1], abs=0.01)
    assert min(times) > 0
    assert "talking-head attention" in plot.read_text()


def test_operators_count_as_readings_of_tables_do(monkeypatch):
    """Some of which nothing was beside: those stay as they are."""
    turns = count()

    def some(architecture, runner, reference):
        return Reading(architecture, runner.blocks(), 1.0, None if next(turns) % 2 else 5.0)

    monkeypatch.setattr(operators, "read", some)
    found = operators.times_by_kind({"one": SPACE.largest()}, Machine(), rounds=4)
    times = map(cost, block_names(SPACE.largest(), TASK))
    assert sum(found["one"].values()) == pytest.approx(sum(times))


def test_operators(tmp_path):
    space = SearchSpace.read("fashion")

    class Clock(Machine):
        pass

    found = operators.times_by_kind({"largest": space.largest(), "smallest": space.smallest()}, Clock())
    assert set(found["largest"]) == set(operators.KINDS)
    assert "attention" not in found["smallest"]
    assert sum(found["largest"].values()) == pytest.approx(
        true_time(space.largest()) - CALL - STEP * len(block_names(space.largest(), TASK))
    )
    operators.draw_by_kind(found, "ms", tmp_path / "o.svg")
    assert "talking-head attention" in (tmp_path / "o.svg").read_text()


# --- Other machines -----------------------------------------------------------------------------------------


def report(architecture, threads=1):
    names = block_names(architecture, TASK)
    return {
        "version": "0.2.0",
        "network": {"isa": "neon", "dtype": "fp32", "threads": threads},
        "input": {"shape": [1, 1, *SPACE.img_size]},
        "latency": {"milliseconds": {"p50": true_time(architecture)}},
        "profile": {"blocks": [{"milliseconds": cost(name)} for name in names]},
    }


@pytest.fixture
def folder(tmp_path):
    """As for a phone: four networks, and the reports that came back."""
    networks = [SPACE.sample(random.Random(seed)) for seed in range(4)]
    reports.export(networks, SPACE, CLASSES, tmp_path)
    assert len(list(tmp_path.glob("*.effv2"))) == 4
    for number, architecture in enumerate(networks):
        (tmp_path / f"network-{number:03}.json").write_text(json.dumps(report(architecture)))
    return tmp_path, networks


def test_reports_of_a_phone(folder, capsys):
    path, networks = folder
    out = path / "t.json"
    assert main(["latency", "--device", str(path), "--name", "Pixel 6", "--out", str(out)]) == 0
    table = LatencyTable.read(out)
    assert table.device == Device("Pixel 6", "neon", "fp32", 1, 1, {"effv2_kernels": "0.2.0"})
    for architecture in networks:
        assert table.predict(architecture) == pytest.approx(true_time(architecture))
    assert main(["latency", "--device", str(path), "--out", str(out)]) == 2
    assert "give its --name" in capsys.readouterr().err
    with pytest.raises(LatencyError, match="was not measured beside a reference network"):
        proof.prove(table, SPACE, Machine(), networks=0, seed=1)


def test_reports_that_cannot_be_used(folder):
    path, networks = folder
    (path / "network-000.json").write_text(json.dumps(report(networks[0], threads=2)))
    with pytest.raises(LatencyError, match="of 2 settings"):
        reports.table_of_reports(path, "a phone")
    (path / "network-000.json").write_text('{"version": 1}')
    with pytest.raises(LatencyError, match=r"no report of effv2-run with --profile and --json \(KeyError"):
        reports.table_of_reports(path, "a phone")
    (path / "network-000.json").write_text(json.dumps(report(SPACE.smallest())))
    with pytest.raises(LatencyError, match=r"has the times of \d+ blocks, and its network has \d+"):
        reports.table_of_reports(path, "a phone")
    for found in path.glob("network-*.json"):
        found.unlink()
    with pytest.raises(LatencyError, match="lacks the reports of 4 of its 4 networks"):
        reports.table_of_reports(path, "a phone")
    (path / "networks.json").unlink()
    with pytest.raises(LatencyError, match="is no folder that"):
        reports.table_of_reports(path, "a phone")


def test_reports_that_are_missing_are_named(folder, capsys):
    """A table without them would lack blocks, and predict next to nothing."""
    path, _ = folder
    for number in (1, 3):
        (path / f"network-{number:03}.json").unlink()
    assert main(["latency", "--device", str(path), "--name", "x", "--out", str(path / "t.json")]) == 2
    said = capsys.readouterr().err
    assert "lacks the reports of 2 of its 4 networks (network-001, network-003): run 'effv2-run" in said
    assert not (path / "t.json").exists()


def test_reports_of_a_busy_phone_make_a_doubtful_table(folder, capsys):
    path, networks = folder
    for number, slow in enumerate((1.0, 1.6, 1.0, 1.6)):
        found = report(networks[number])
        found["latency"]["milliseconds"]["p50"] *= slow
        (path / f"network-{number:03}.json").write_text(json.dumps(found))
    assert main(["latency", "--device", str(path), "--name", "x", "--out", str(path / "t.json")]) == 0
    said = capsys.readouterr().err
    assert "off for the very networks that it was made of" in said
    assert "Make the reports again where little else runs." in said


@pytest.mark.parametrize(
    "value", [0, -1, float("nan"), float("inf"), "1.0", None, True, pytest.param(10**400, id="huge")]
)
@pytest.mark.parametrize("where", ["whole", "block"])
def test_reports_of_what_is_no_time(where, value, folder):
    path, networks = folder
    found = report(networks[0])
    if where == "whole":
        found["latency"]["milliseconds"]["p50"] = value
    else:
        found["profile"]["blocks"][1]["milliseconds"] = value
    (path / "network-000.json").write_text(json.dumps(found))
    if where == "block" and value == 0:  # less than a clock tells
        reports.table_of_reports(path, "a phone")
        return
    with pytest.raises(LatencyError, match=r"no report of effv2-run .*expected a .*run the network"):
        reports.table_of_reports(path, "a phone")


def test_a_list_of_no_networks(tmp_path):
    reports.export([], SPACE, CLASSES, tmp_path)
    with pytest.raises(LatencyError, match=r"is no folder that .*it lists no networks"):
        reports.table_of_reports(tmp_path, "a phone")


def test_a_list_that_cannot_be_written(tmp_path):
    (tmp_path / "networks.json").mkdir()
    with pytest.raises(LatencyError, match=r"networks.json cannot be written: Is a directory"):
        reports.export([SPACE.smallest()], SPACE, CLASSES, tmp_path)


@pytest.mark.parametrize("name", ["cpu", "cuda", "cuda:0"])
def test_a_folder_with_the_name_of_a_device(name, monkeypatch, tmp_path, capsys):
    def timer(args, space):
        raise LatencyError(f"a timer for {args.device}")

    monkeypatch.setattr(command, "_timer", timer)
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    options = ["latency", "--space", "fashion", "--out", "t.json", "--device"]
    assert main([*options, name]) == 2
    assert f"a timer for {name}" in capsys.readouterr().err
    assert main([*options, f"./{name}"]) == 2
    assert "give its --name" in capsys.readouterr().err


@pytest.mark.parametrize("what", [["--operators"], ["--prove", "t.json"]])
@pytest.mark.parametrize("name", ["none/p.svg", "p.foo", "p", "."])
def test_a_picture_that_cannot_be_written_is_refused_before(what, name, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(command, "_timer", lambda *_: pytest.fail("it began"))
    monkeypatch.chdir(tmp_path)
    measure(SPACE, Machine(), tmp_path / "t.json", rounds=1)
    assert main(["latency", "--space", "fashion", *what, "--plot", name]) == 2
    assert f"the picture '{name}' cannot be written" in capsys.readouterr().err


def test_the_room_that_there_is():
    timer = Timer(SPACE.img_size, in_channels=1, classes=CLASSES, threads=1)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < timer.room() < memory


@pytest.mark.skipif(sys.platform != "linux", reason="reads files that Linux has")
def test_the_room_in_a_container(tmp_path):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    8000 kB\nHugePages: 0\n")
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    assert kept.room_in_memory(tmp_path) == 8000 * 1024
    (group / "memory.max").write_text("max\n")
    (group / "memory.stat").write_text("anon 1000\nfile 3000000\n")
    assert kept.room_in_memory(tmp_path) == 8000 * 1024
    (group / "memory.max").write_text("4000000\n")
    assert kept.room_in_memory(tmp_path) == 3999000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rounds", "0"], "--rounds and --networks must be positive"),
        (["--tolerance", "0"], "--tolerance must be a finite share above 0, such as 0.005, but got 0"),
        (["--tolerance", "nan"], "but got nan"),
        (["--tolerance", "inf"], "but got inf"),
        (["--threads", "0"], "threads"),
        (["--device", "tpu"], "a device is cpu, cuda or cuda:1, but got 'tpu'"),
        (["--device", "meta"], "timed on cpu and cuda, but not on 'meta'"),
        (["--device", "cuda:97"], "there is no GPU cuda:97"),
        (["--space", "no-such"], "search space 'no-such' is no file"),
    ],
)
def test_options_that_make_no_sense(options, message, tmp_path, capsys):
    assert main(["latency", "--space", "fashion", "--out", str(tmp_path / "t.json"), *options]) == 2
    assert message in capsys.readouterr().err


def test_networks_for_elsewhere(tmp_path, capsys):
    """What cannot be written, and a number format that files do not have."""
    (tmp_path / "file").touch()
    options = ["latency", "--space", "fashion", "--export"]
    assert main([*options, str(tmp_path / "file")]) == 2
    assert "cannot be made: File exists" in capsys.readouterr().err
    assert main([*options, str(tmp_path / "out"), "--dtype", "bf16"]) == 2
    assert "saved networks hold fp32 or fp16, but --dtype is bf16" in capsys.readouterr().err


def test_a_proof_of_a_small_space_or_another(tmp_path):
    """It ends where there are fewer networks than were asked for."""
    stage = StageChoices((8, 16), (1,), (2,))
    small = SearchSpace((stage, *[StageChoices((16,), (1,), (2,))] * 3), SPACE.img_size, 1)
    table = measure(small, Machine(), tmp_path / "t.json", rounds=2)
    found = proof.prove(table, small, Machine(), networks=50, seed=1)
    assert len(found.rows) == small.subnets() == 2
    message = r"is of 36x36 images of 1 channel and 10 classes, and what is asked for of 48x36 images"
    with pytest.raises(LatencyError, match=message):
        proof.prove(table, replace(small, img_size=(48, 36)), Machine(), seed=1)
    with pytest.raises(LatencyError, match="asked for of 36x36 images of 3 channels and 10 classes"):
        proof.prove(table, replace(small, in_channels=3), Machine(), seed=1)
    for path in (tmp_path / "none" / "p.svg", tmp_path / "p.unknown"):
        with pytest.raises(SearchError, match="cannot be written"):
            proof.draw(found, path)


def test_a_proof_says_whether_the_table_holds():
    def of(errors):
        sampled = [SPACE.sample(random.Random(n)) for n in range(len(errors))]
        times = [1 + 0.005 * n for n in range(len(errors))]
        rows = (proof.Row(a, t * (1 + e), t) for a, t, e in zip(sampled, times, errors, strict=True))
        return proof.Proof(tuple(rows), "ms")

    assert of([0.01] * 40).doubts == []
    (doubt,) = of([0.05] * 40).doubts
    assert doubt == "the median error is 5.0%, and 4% at most is good"
    shuffled = of([0.03 if n % 2 else -0.03 for n in range(40)]).doubts
    assert [text.split(" is ")[0] for text in shuffled] == [
        "the correlation",
        "the correlation near the median",
    ]
    assert of([0.0]).doubts == []  # too few to have a correlation
    assert "nan" in str(of([0.0]))


def test_a_proof_times_what_the_table_is_of(tmp_path, capsys):
    out = tmp_path / "t.json"
    measure(SPACE, Machine(), out)
    for option, value in {"--batch": "2", "--classes": "11", "--dtype": "bf16", "--threads": "3"}.items():
        assert main(["latency", "--space", "fashion", "--prove", str(out), option, value]) == 2
        said = capsys.readouterr().err
        assert f"{option} is {value}, and the table to prove, {out}, is of " in said
        assert "leave it out" in said


@pytest.mark.parametrize(("option", "value"), [("--dtype", "int8"), ("--isa", "foo")])
def test_a_mistake_claims_no_file(option, value, tmp_path, capsys):
    out = tmp_path / "t.json"
    assert main(["latency", "--space", "fashion", "--out", str(out), option, value]) == 2
    assert value in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_package_that_is_missing_is_named(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    assert main(["latency", "--prove", str(tmp_path / "t.json"), "--plot", "p.svg"]) == 2
    assert "needs scipy, matplotlib, which are not installed: pip install" in capsys.readouterr().err


def test_errors_are_the_projects():
    assert issubclass(LatencyError, Effv2Error)
