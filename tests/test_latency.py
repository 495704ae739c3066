"""Latency tables: what readings add up to, how they are taken, and whether they predict."""

import json
import random
from dataclasses import replace
from weakref import WeakSet

import pytest
from latencies import CALL, DEVICE, SPACE, STEP, TASK, Machine, Runner, cost, measure, true_time

from effv2_kernels.errors import LatencyError
from effv2_kernels.families.efficientformer_v2.architecture import VARIANTS
from effv2_kernels.search.latency import (
    LatencyTable,
    Reading,
    block_names,
    measuring,
    proof,
    table_of,
)
from effv2_kernels.search.latency.fit import at_one_speed
from effv2_kernels.search.latency.measuring import Measured, carriers


def test_every_block_of_a_space_is_carried():
    networks = carriers(SPACE, TASK, random.Random(0))
    carried = [name for network in networks for name in set(block_names(network, TASK))]
    generator = random.Random(1)
    for _ in range(200):
        names = block_names(SPACE.sample(generator), TASK)
        assert set(names) <= set(carried)
    assert min(carried.count(name) for name in set(carried)) >= measuring._SIGHTINGS
    assert len(set(networks)) == len(networks) < 200


def test_blocks_that_chance_does_not_bring_are_carried_as_well(monkeypatch):
    """As in spaces of many widths, of whose pairs thousands of random subnets leave some out."""
    monkeypatch.setattr(measuring, "_MOST_DRAWN", 10)
    networks = carriers(SPACE, TASK, random.Random(0))
    carried = [name for network in networks for name in set(block_names(network, TASK))]
    generator = random.Random(1)
    for _ in range(200):
        assert set(block_names(SPACE.sample(generator), TASK)) <= set(carried)
    assert min(carried.count(name) for name in set(carried)) >= measuring._SIGHTINGS
    assert all(network in SPACE for network in networks)
    assert len(set(networks)) == len(networks) < 300
    assert networks == carriers(SPACE, TASK, random.Random(0))  # whoever goes on has the same


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


def test_a_machine_that_stops_the_longest_networks(tmp_path):
    """As a busy one does: what that adds tells nothing of what calls and steps take."""

    class Stopped(Runner):
        def whole(self):
            time = super().whole()
            return 2.5 * time if time > 1.3 * true_time(SPACE.smallest()) and self.often() else time

        def often(self):
            return random.Random(self.architecture.to_json()).random() < 0.3

    class Busy(Machine):
        def runner(self, architecture):
            return Stopped(self, architecture)

    reference = SPACE.sample(random.Random(0))
    assert true_time(reference) > 0
    table = measure(SPACE, Busy(), tmp_path / "t.json")
    for seed in range(20):
        architecture = SPACE.sample(random.Random(seed))
        assert table.predict(architecture) == pytest.approx(true_time(architecture), rel=0.02)


def test_what_calls_and_steps_take_is_never_less_than_nothing(tmp_path):
    class Small(Runner):
        """Whose blocks add up to more than the whole: what a clock between them adds."""

        def whole(self):
            return 0.98 * true_time(self.architecture)

    class Clocked(Machine):
        def runner(self, architecture):
            return Small(self, architecture)

    table = measure(SPACE, Clocked(), tmp_path / "t.json")
    assert table.call >= 0
    assert table.step >= 0
    assert table.error < 0.02


def test_who_measured_on_a_busy_machine_is_told(tmp_path):
    few = measuring.measure(SPACE, Machine(), tmp_path / "few.json", rounds=2)
    assert few.doubts(0.005) == ["2 rounds are too few to say how far the table can be relied on."]
    good = measuring.measure(SPACE, Machine(), tmp_path / "good.json")
    assert (good.rounds, good.doubts(0.005)) == (measuring.FEWEST_ROUNDS, [])
    assert good.disagreement < 1e-6 > good.table.error
    noisy = measuring.measure(SPACE, Machine(noise=0.03), tmp_path / "noisy.json", rounds=6)
    doubt = noisy.doubts(1e-4)[0]
    assert "After 6 rounds, tables of every other one still disagree by" in doubt
    bad = Measured(replace(good.table, error=0.12), 40, 0.001)
    assert bad.doubts(0.005) == [
        "The table is 12.0% off for the very networks that it was made of: something slowed them down."
    ]


def test_times_beside_a_slow_reference_count_less():
    a, b = (SPACE.sample(random.Random(seed)) for seed in (1, 2))
    readings = []
    for slow in (1.0, 2.0, 1.0):
        for architecture in (a, b):
            names = block_names(architecture, TASK)
            times = tuple(slow * cost(name) for name in names)
            readings.append(Reading(architecture, times, slow * true_time(architecture), slow * 5.0))
    table = table_of(readings, DEVICE, TASK)
    assert table.predict(a) == pytest.approx(true_time(a))
    assert table.predict(b) == pytest.approx(true_time(b))


def test_readings_that_nothing_was_beside_stay_as_they_are():
    a = SPACE.sample(random.Random(1))
    readings = [Reading(a, (2.0,), 4.0, beside) for beside in (None, 2.0, None, 3.0, 4.0)]
    found, nominal = at_one_speed(readings)
    assert nominal == 3.0
    assert [r.whole for r in found] == [4.0, 6.0, 4.0, 4.0, 3.0]
    assert [r.blocks for r in found] == [(2.0,), (3.0,), (2.0,), (2.0,), (1.5,)]
    assert at_one_speed(readings[:1]) == (readings[:1], 1.0)


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


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("blocks", "abc", "TypeError: expected a number, got 'a'"),
        ("blocks", [1.0, 2.0], r"the times of 2 blocks, and its network has \d+"),
        ("blocks", None, "TypeError"),
        ("reference", 0, "expected a time above 0, got 0"),
        ("reference", -1.0, "expected a time above 0, got -1.0"),
        ("whole", float("nan"), "expected a time above 0, got nan"),
        ("whole", "1.0", "TypeError: expected a number, got '1.0'"),
        pytest.param("whole", 10**400, "expected a time above 0, got 1000", id="more than a float"),
        ("architecture", {"widths": []}, "ModelError"),
        ("architecture", json.loads(SPACE.largest().to_json()), r"network has \d+|of other networks"),
    ],
)
def test_readings_that_are_damaged(name, value, what, tmp_path):
    out = tmp_path / "t.json"
    measure(SPACE, Machine(), out, rounds=1)
    path = tmp_path / "t.json.readings"
    about, line = path.read_text().splitlines()
    round_ = json.loads(line)
    round_["readings"][3][name] = value
    path.write_text(f"{about}\n{json.dumps(round_)}\n")
    with pytest.raises(LatencyError, match=rf"is damaged \(.*({what}).*: remove it, or choose another"):
        measure(SPACE, Machine(), out, rounds=1)


def test_a_round_without_some_networks_is_damaged(tmp_path):
    out = tmp_path / "t.json"
    measure(SPACE, Machine(), out, rounds=1)
    path = tmp_path / "t.json.readings"
    path.write_text(path.read_text().splitlines()[0] + '\n{"readings": []}\n')
    with pytest.raises(LatencyError, match=r"is damaged .a round is of other networks than this"):
        measure(SPACE, Machine(), out, rounds=1)


def test_networks_that_memory_has_no_room_for_are_made_anew(tmp_path):
    """The times are those of networks that stay."""

    class Small(Machine):
        def __init__(self):
            super().__init__(noise=0.02)
            self.there, self.most, self.made = WeakSet(), 0, 0

        def runner(self, architecture):
            runner = Runner(self, architecture)
            self.there.add(runner)
            self.made, self.most = self.made + 1, max(self.most, len(self.there))
            return runner

        def room(self):
            return 20 - len(self.there)

    small = Small()
    table = measure(SPACE, small, tmp_path / "small.json", rounds=3)
    assert table == measure(SPACE, Machine(noise=0.02), tmp_path / "large.json", rounds=3)
    networks = len(carriers(SPACE, TASK, random.Random(0)))
    assert small.most <= 13 < networks  # half the room, and those that are in use
    assert 2 * networks < small.made < 3 * networks
    proved, plenty = Small(), Machine(noise=0.02)
    found = proof.prove(table, SPACE, proved, networks=30, seed=1, rounds=9)
    assert proved.most <= 13
    assert found.median_error < 0.02
    assert proof.prove(table, SPACE, plenty, networks=30, seed=1).median_error < 0.02
    # One run of the reference between two networks that stay, and one more for each that was made.
    assert plenty.reads < proved.reads <= plenty.reads + proved.made


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


NO_TIMES = [float("nan"), float("inf"), -1.0, "much", True, None, pytest.param(10**400, id="huge")]


@pytest.mark.parametrize("value", NO_TIMES)
@pytest.mark.parametrize("where", ["call", "step", "error", "block", "reference"])
def test_tables_of_what_is_no_time(value, where, tmp_path):
    """NaN would be within any budget."""
    path = tmp_path / "t.json"
    measure(SPACE, Machine(), path)
    found = json.loads(path.read_text())
    of = {"block": next(iter(found["blocks"].values())), "reference": found["reference"]}.get(where, found)
    of["time" if where in ("block", "reference") else where] = value
    path.write_text(json.dumps(found))
    with pytest.raises(LatencyError, match=r"is no latency table .*expected a"):
        LatencyTable.read(path)


def test_a_table_of_another_device_says_what_differs(tmp_path):
    table = measure(SPACE, Machine(), tmp_path / "t.json")
    assert table.require(DEVICE) == []
    here = replace(DEVICE, name="a phone", dtype="fp16", versions={"effv2_kernels": "1"})
    differences = r"name: a phone here, a machine there; dtype: fp16 here, fp32 there; versions: "
    with pytest.raises(LatencyError, match=rf"table 't' is of another device \({differences}.*--force"):
        table.require(here, what="the latency table 't'")
    assert len(table.require(here, force=True)) == 3
