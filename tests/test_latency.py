"""Latency tables: what readings add up to, how they are taken, and whether they predict."""

import json
import random
from dataclasses import replace

import pytest
from checks import one_torch_thread

from effv2_kernels import extras
from effv2_kernels.__main__ import main
from effv2_kernels.errors import Effv2Error, LatencyError, SearchError
from effv2_kernels.families.efficientformer_v2.architecture import VARIANTS
from effv2_kernels.search.latency import (
    Device,
    LatencyTable,
    Reading,
    block_names,
    measuring,
    operators,
    proof,
    reports,
    table_of,
)
from effv2_kernels.search.latency.measuring import carriers, measure
from effv2_kernels.search.latency.timer import Timer
from effv2_kernels.search.space import SearchSpace, StageChoices

SPACE = SearchSpace.read("fashion")
CLASSES = 10
DEVICE = Device("a machine", "none", "fp32", 1, 1, {"effv2_kernels": "0"})
CALL, STEP = 0.3, 0.01


def cost(name):
    """Of a block: anything that is the same for the same name."""
    return random.Random(name).uniform(0.5, 3.0)


def true_time(architecture):
    names = block_names(architecture, SPACE.img_size, CLASSES)
    return CALL + sum(cost(name) + STEP for name in names)


class Machine:
    """Stands for a device that drifts by a factor of two while it is asked, and adds noise of some size."""

    device, img_size, classes = DEVICE, SPACE.img_size, CLASSES

    def __init__(self, noise=0.0, seed=0):
        self.random, self.noise, self.reads = random.Random(seed), noise, 0
        self.slow = 1.0

    def runner(self, architecture):
        return Runner(self, architecture)

    def off(self):
        self.reads += 1
        return self.slow * self.random.lognormvariate(0.0, self.noise)


class Runner:
    def __init__(self, machine, architecture):
        self.machine, self.architecture = machine, architecture

    def whole(self):
        return true_time(self.architecture) * self.machine.off()

    def blocks(self):
        names = block_names(self.architecture, SPACE.img_size, CLASSES)
        time = tuple(cost(name) * self.machine.off() for name in names)
        self.machine.slow = self.machine.random.uniform(1.0, 2.0) if self.machine.noise else 1.0
        return time


def test_every_block_of_a_space_is_carried():
    networks = carriers(SPACE, CLASSES, random.Random(0))
    carried = [name for network in networks for name in set(block_names(network, SPACE.img_size, CLASSES))]
    generator = random.Random(1)
    for _ in range(200):
        names = block_names(SPACE.sample(generator), SPACE.img_size, CLASSES)
        assert set(names) <= set(carried)
    assert min(carried.count(name) for name in set(carried)) >= measuring._SIGHTINGS
    assert len(set(networks)) == len(networks) < 200


def test_a_table_of_exact_readings_is_exact(tmp_path):
    table = measure(SPACE, Machine(), tmp_path / "t.json")
    # Of times with six digits, as they are kept.
    assert table.call == pytest.approx(CALL, rel=1e-3)
    assert table.step == pytest.approx(STEP, rel=1e-3)
    for name, block in table.blocks.items():
        assert block.time == pytest.approx(cost(name), rel=1e-5)
        assert block.spread < 1e-5
        assert block.networks >= measuring._SIGHTINGS
    for seed in range(20):
        architecture = SPACE.sample(random.Random(seed))
        assert table.predict(architecture) == pytest.approx(true_time(architecture), rel=1e-5)
    assert LatencyTable.read(tmp_path / "t.json") == table


def test_a_machine_that_drifts(tmp_path):
    """Readings count by the reference beside them, and rounds go on until two halves of them agree."""
    machine = Machine(noise=0.02)
    table = measure(SPACE, machine, tmp_path / "t.json", tolerance=0.002)
    few = measure(SPACE, Machine(noise=0.02), tmp_path / "few.json", tolerance=1.0)
    found = proof.prove(table, SPACE, machine, networks=30, seed=1, rounds=9)
    assert found.median_error < 0.01
    assert found.correlation > 0.98
    lines = [len((tmp_path / f"{name}.json.readings").read_text().splitlines()) for name in ("t", "few")]
    assert lines[1] == 1 + measuring.FEWEST_ROUNDS < lines[0] <= 1 + measuring.MOST_ROUNDS
    assert few.blocks.keys() == table.blocks.keys()


def test_times_beside_a_slow_reference_count_less():
    a, b = (SPACE.sample(random.Random(seed)) for seed in (1, 2))
    readings = []
    for slow in (1.0, 2.0, 1.0):
        for architecture in (a, b):
            names = block_names(architecture, SPACE.img_size, CLASSES)
            times = tuple(slow * cost(name) for name in names)
            readings.append(Reading(architecture, times, slow * true_time(architecture), slow * 5.0))
    table = table_of(readings, DEVICE, SPACE.img_size, CLASSES)
    assert table.predict(a) == pytest.approx(true_time(a))
    assert table.predict(b) == pytest.approx(true_time(b))


def test_who_is_interrupted_goes_on(tmp_path):
    uninterrupted = Machine()
    whole = measure(SPACE, uninterrupted, tmp_path / "whole.json", rounds=8)

    class Interrupted(Machine):
        def off(self):
            if self.reads == uninterrupted.reads // 2:
                raise KeyboardInterrupt
            return super().off()

    with pytest.raises(KeyboardInterrupt):
        measure(SPACE, Interrupted(), tmp_path / "t.json", rounds=8)
    kept = (tmp_path / "t.json.readings").read_text()
    assert 1 <= len(kept.splitlines()) - 1 < 6
    (tmp_path / "t.json.readings").write_text(kept + '[{"architec')  # killed while it wrote
    machine = Machine()
    assert measure(SPACE, machine, tmp_path / "t.json", rounds=8) == whole
    again = Machine()
    assert measure(SPACE, again, tmp_path / "t.json", rounds=8) == whole
    assert again.reads == 0 < machine.reads


def test_readings_of_something_else_are_refused(tmp_path):
    out = tmp_path / "t.json"
    measure(SPACE, Machine(), out)
    other = Machine()
    other.device = replace(DEVICE, threads=2)
    with pytest.raises(LatencyError, match=r'with device .*"threads": 1, .* and now .* 2, .* another --out'):
        measure(SPACE, other, out)
    with pytest.raises(LatencyError, match="was written with seed 0, and now 3"):
        measure(SPACE, Machine(), out, seed=3)
    (tmp_path / "t.json.readings").write_text("what is this")
    with pytest.raises(LatencyError, match="is no record of such a run: remove it, or choose another --out"):
        measure(SPACE, Machine(), out)


def test_what_cannot_be_written(tmp_path):
    with pytest.raises(LatencyError, match="cannot be written"):
        measure(SPACE, Machine(), tmp_path / "no" / "t.json")


def test_a_network_that_the_table_does_not_have(tmp_path):
    table = measure(SPACE, Machine(), tmp_path / "t.json")
    with pytest.raises(LatencyError, match=r"no time for \d+ of the network's blocks: .*Measure a table"):
        table.predict(VARIANTS["efficientformerv2_s0"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read: No such file"),
        ("{", "is no latency table .JSONDecodeError"),
        ("[]", "is no latency table"),
        ('{"effv2_latency": 7}', "of format 7, and this version reads format 1: measure it again"),
        ('{"effv2_latency": 1, "blocks": {}}', "is no latency table .KeyError: 'img_size'"),
    ],
)
def test_files_that_are_no_table(text, message, tmp_path):
    path = tmp_path / "t.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(LatencyError, match=message):
        LatencyTable.read(path)


def test_a_table_of_another_device_says_what_differs(tmp_path):
    table = measure(SPACE, Machine(), tmp_path / "t.json")
    assert table.require(DEVICE) == []
    here = replace(DEVICE, name="a phone", dtype="fp16", versions={"effv2_kernels": "1"})
    differences = r"name: a phone here, a machine there; dtype: fp16 here, fp32 there; versions: "
    with pytest.raises(LatencyError, match=rf"table 't' is of another device \({differences}.*--force"):
        table.require(here, what="the latency table 't'")
    assert len(table.require(here, force=True)) == 3


# --- The engine ---------------------------------------------------------------------------------------------


def test_the_engine_is_timed_block_by_block():
    with one_torch_thread():
        timer = Timer(SPACE.img_size, in_channels=1, classes=CLASSES, threads=1)
        architecture = SPACE.largest()
        runner = timer.runner(architecture)
        blocks, whole = runner.blocks(), runner.whole()
    assert len(blocks) == len(block_names(architecture, SPACE.img_size, CLASSES))
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
        assert "blocks on" in capsys.readouterr().out
        assert main(["latency", *options, "--prove", str(table), "--networks", "5", "--plot", str(plot)]) == 0
    shown = capsys.readouterr().out
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


def test_operators(tmp_path):
    space = SearchSpace.read("fashion")

    class Clock(Machine):
        pass

    found = operators.times_by_kind({"largest": space.largest(), "smallest": space.smallest()}, Clock())
    assert set(found["largest"]) == set(operators.KINDS)
    assert "attention" not in found["smallest"]
    assert sum(found["largest"].values()) == pytest.approx(
        true_time(space.largest()) - CALL - STEP * len(block_names(space.largest(), SPACE.img_size, CLASSES))
    )
    operators.draw_by_kind(found, "ms", tmp_path / "o.svg")
    assert "talking-head attention" in (tmp_path / "o.svg").read_text()


# --- Other machines -----------------------------------------------------------------------------------------


def report(architecture, threads=1):
    names = block_names(architecture, SPACE.img_size, CLASSES)
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
    with pytest.raises(LatencyError, match="there is no report in"):
        reports.table_of_reports(path, "a phone")
    (path / "networks.json").unlink()
    with pytest.raises(LatencyError, match="is no folder that"):
        reports.table_of_reports(path, "a phone")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rounds", "0"], "--rounds, --networks and --tolerance must be positive"),
        (["--tolerance", "0"], "--tolerance must be positive"),
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
    with pytest.raises(LatencyError, match="is of 36x36 images and 10 classes, and what is asked for"):
        proof.prove(table, replace(small, img_size=(48, 36)), Machine(), seed=1)
    for path in (tmp_path / "none" / "p.svg", tmp_path / "p.unknown"):
        with pytest.raises(SearchError, match="cannot be written"):
            proof.draw(found, path)


def test_a_package_that_is_missing_is_named(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    assert main(["latency", "--prove", str(tmp_path / "t.json"), "--plot", "p.svg"]) == 2
    assert "needs scipy, matplotlib, which are not installed: pip install" in capsys.readouterr().err


def test_errors_are_the_projects():
    assert issubclass(LatencyError, Effv2Error)
