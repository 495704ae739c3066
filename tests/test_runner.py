"""effv2-run: the bits of Python, every option, and what it says of classes, times and memory."""

import json
import re
import subprocess
import sys
from dataclasses import replace

import c_library
import pytest
import runner
import runner_network
import torch
from checks import seeded
from models import FAMILIES, name_of
from runner import outputs, run, write
from runner_network import ISAS, NAMES, SIZE, SPEC

import effv2_kernels
from effv2_kernels import cpu, load, optimize, save
from effv2_kernels.errors import LatencyError
from effv2_kernels.families.efficientformer_v2 import Architecture
from effv2_kernels.search.latency import reports
from effv2_kernels.search.space import SearchSpace, StageChoices
from effv2_kernels.shapes import randomise

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="effv2-run is built for Linux")

path, images = runner_network.path, runner_network.images  # fixtures

TARGETS = [(isa, dtype) for isa in ISAS for dtype in cpu.native().formats(isa)]
DTYPES = c_library.DTYPES


def test_it_is_of_one_piece():
    """For a machine that has nothing else: neither a loader nor libraries."""
    said = subprocess.run(
        ["readelf", "-ld", runner.PROGRAM], capture_output=True, text=True, check=True
    ).stdout
    assert "LOAD" in said
    assert "INTERP" not in said
    assert "NEEDED" not in said


@pytest.mark.parametrize("target", TARGETS, ids="-".join)
@pytest.mark.parametrize("spec", FAMILIES, ids=name_of)
def test_the_bits_of_python(spec, target, tmp_path):
    isa, dtype = target
    g = seeded(202)
    save(optimize(spec.build(g)), tmp_path / "a.effv2", dtype="fp16" if dtype == "bf16" else "fp32")
    x = spec.images(g, 3)
    fast = load(tmp_path / "a.effv2", isa=isa, dtype=dtype)
    how = ("--isa", isa, "--dtype", dtype, "--threads", 2)
    (found,) = outputs(tmp_path, tmp_path / "a.effv2", "--input", write(tmp_path / "x.npy", x), *how)
    assert torch.equal(found, fast(x.to(DTYPES[dtype])).float())
    # One image without the batch's dimension, of halves.
    one = x[0].half()
    (found,) = outputs(tmp_path, tmp_path / "a.effv2", "--input", write(tmp_path / "x.npy", one), *how)
    assert torch.equal(found, fast(one.to(DTYPES[dtype])[None]).float())


def test_a_network_of_any_sizes(tmp_path):
    """As a search finds them: ratios of their own in every block, a stage without attention, grey images."""
    g = seeded(204)
    ratios = ((4,), (1, 3), (1, 3, 2.5, 4), (4, 1))
    found = Architecture((8, 24, 40, 48), (1, 2, 4, 2), ratios, (2, 0))
    (tmp_path / "architecture.json").write_text(found.to_json())
    sizes = {"num_classes": 7, "img_size": 36, "in_channels": 1}
    model = effv2_kernels.create_model(architecture=tmp_path / "architecture.json", **sizes)
    randomise(model)
    fast = optimize(model)
    save(fast, tmp_path / "a.effv2")
    x = torch.randn(3, 1, 36, 36, generator=g)
    (logits,) = outputs(tmp_path, tmp_path / "a.effv2", "--input", write(tmp_path / "x.npy", x))
    assert torch.equal(logits, fast(x))
    torch.testing.assert_close(logits, model(x), rtol=1e-4, atol=1e-5)


def test_its_reports_make_a_latency_table(tmp_path):
    """As a phone's do: networks are written, run where they are for, and their reports come back."""
    stage = StageChoices((8, 16), (1,), (2,))
    space = SearchSpace((stage, stage, *[StageChoices((16,), (1,), (2,), (0, 1))] * 2), (32, 32), 1)
    networks = [space.largest(), space.smallest()]
    reports.export(networks, space, 7, tmp_path)
    told = reports.command(space)
    assert told.startswith("effv2-run NAME.effv2 ")
    words = told.split(" > ")[0].split()[2:]  # as a user is told to
    for path in sorted(tmp_path.glob("*.effv2")):
        done = run(path, *words, "--threads", 1, "--repeat", 5)
        assert done.json["profile"]
        path.with_suffix(".json").write_text(done.out)
    table = reports.table_of_reports(tmp_path, "a phone")
    assert (table.device.name, table.device.threads, table.device.batch) == ("a phone", 1, 1)
    assert table.device.versions == {"effv2_kernels": effv2_kernels.__version__}
    assert all(table.predict(network) > 0 for network in networks)
    with pytest.raises(LatencyError, match="has no time for"):
        table.predict(replace(space.largest(), widths=(8, 16, 16, 24)))


def test_a_backbone(tmp_path):
    g = seeded(203)
    fast = optimize(SPEC.build(g, features_only=True, resize_bias=True))
    save(fast, tmp_path / "a.effv2")
    x = torch.randn(2, 3, 80, 50, generator=g)
    found = outputs(tmp_path, tmp_path / "a.effv2", "--input", write(tmp_path / "x.npy", x))
    assert len(found) == 4
    for y, expected in zip(found, fast(x), strict=True):
        assert torch.equal(y, expected)
    said = run(tmp_path / "a.effv2", "--img-size", "80x50").out
    for y in found:
        assert f"a map of 1x{'x'.join(map(str, y.shape[1:]))}\n" in said


def test_the_classes(path, images, tmp_path):
    logits = load(path)(torch.from_numpy(runner.np.load(images)))[0].double()
    expected = logits.softmax(0).topk(4)
    (found,) = run(path, "--input", images, "--top", 4, "--json").json["top"]
    assert [one["class"] for one in found] == expected.indices.tolist()
    assert [one["name"] for one in found] == [NAMES[i] for i in expected.indices]
    assert [one["logit"] for one in found] == logits[expected.indices].tolist()
    assert [one["probability"] for one in found] == pytest.approx(expected.values.tolist(), rel=1e-9)
    lines = run(path, "--input", images, "--top", 4).out.splitlines()
    for line, index, value in zip(lines[2:6], expected.indices, expected.values, strict=True):
        share, number, name = line.split(maxsplit=2)
        assert float(share.rstrip("%")) == pytest.approx(float(value) * 100, abs=0.0051)
        assert (int(number), name) == (int(index), NAMES[index])
    # All of them where more are asked for; and by number where there are no names.
    save(load(path), tmp_path / "nameless.effv2", labels=())
    everything = run(tmp_path / "nameless.effv2", "--input", images, "--top", 99)
    assert re.findall(r"% +class (\d+)$", everything.out, re.MULTILINE) == [
        str(int(i)) for i in logits.argsort(descending=True)
    ]
    (found,) = run(tmp_path / "nameless.effv2", "--input", images, "--json").json["top"]
    assert [one["name"] for one in found] == [None] * 5


def test_images_of_a_batch_have_classes_of_their_own(path, tmp_path):
    x = SPEC.images(seeded(204), 3)
    best = load(path)(x).argmax(1).tolist()
    done = run(path, "--input", write(tmp_path / "x.npy", x), "--json").json
    assert [top[0]["class"] for top in done["top"]] == best
    said = run(path, "--input", tmp_path / "x.npy", "--top", 1).out
    assert re.findall(r"^image (\d)\n +[\d.]+% +(\d+) ", said, re.MULTILINE) == [
        (str(i), str(index)) for i, index in enumerate(best)
    ]


def test_logits_that_are_no_numbers(path, tmp_path):
    x = SPEC.images(seeded(204))
    x[0, 0, 5, 5] = torch.nan
    (found,) = run(path, "--input", write(tmp_path / "x.npy", x), "--json").json["top"]
    assert [one["logit"] for one in found] == [None] * 5


def test_what_json_says(path, images):
    found = run(path, "--input", images, "--threads", 1, "--repeat", 5, "--warmup", 2, "--json").json
    assert found["version"] == effv2_kernels.__version__
    network = found["network"]
    assert network["path"] == str(path)
    assert (network["isa"], network["dtype"]) == (ISAS[0], "fp32")
    assert (network["file_dtype"], network["threads"]) == ("fp32", 1)
    assert network["load_milliseconds"] > 0
    assert found["input"] == {"kind": "array", "path": str(images), "shape": [1, 3, 64, 64]}
    latency = found["latency"]
    assert (latency["warmup"], latency["repeat"]) == (2, 5)
    times = latency["milliseconds"]
    assert 0 < times["min"] <= times["p50"] <= times["p90"] <= times["p99"] <= times["max"]
    assert times["min"] <= times["mean"] <= times["max"]
    assert "profile" not in found


def test_percentiles(path):
    """Of two runs, those between them lie in proportion."""
    times = run(path, *SIZE, "--repeat", 2, "--json").json["latency"]["milliseconds"]
    least, most = times["min"], times["max"]
    for name, q in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("mean", 0.5)):
        assert times[name] == pytest.approx(least + q * (most - least))


def test_without_an_image_it_takes_random_numbers(path, tmp_path):
    first, again = (outputs(tmp_path, path, *SIZE)[0] for _ in range(2))
    assert torch.equal(first, again)
    (x,) = outputs(tmp_path, runner.save_identity(tmp_path / "identity.effv2"), "--img-size", "90x110")
    assert x.shape == (1, 3, 90, 110)
    assert -1 <= float(x.min()) < -0.99
    assert 0.99 < float(x.max()) < 1
    assert abs(float(x.mean())) < 0.02
    assert float(x.var()) == pytest.approx(1 / 3, rel=0.02)
    assert "random numbers: 1x3x64x64\n" in run(path, *SIZE).out


def test_profile(path, images):
    found = run(path, "--input", images, "--profile", "--repeat", 3, "--json").json["profile"]
    assert found["peak_gflops"] > 0.1
    fast = load(path)
    rows = effv2_kernels.profile(fast, torch.zeros(1, 3, 64, 64), repeats=1, warmup=0).rows
    assert [(b["kind"], b["name"]) for b in found["blocks"]] == [(r.block, r.source) for r in rows]
    assert [b["output"] for b in found["blocks"]] == [[*r.output, 1, 1][:3] for r in rows]
    assert [b["gflop"] for b in found["blocks"]] == pytest.approx([r.gflop for r in rows])
    total = found["total"]
    for row in (*found["blocks"], total):
        assert row["gflops"] == pytest.approx(row["gflop"] / row["milliseconds"] * 1e3)
        assert row["share_of_peak"] == pytest.approx(row["gflops"] / found["peak_gflops"])
        assert row["share"] == pytest.approx(row["milliseconds"] / total["milliseconds"])
    assert sum(b["milliseconds"] for b in found["blocks"]) == pytest.approx(total["milliseconds"])
    lines = run(path, "--input", images, "--profile").out.splitlines()
    table = lines[next(i for i, line in enumerate(lines) if line.startswith("block ")) :]
    assert [line.split()[0] for line in table] == ["block", *(r.block for r in rows), "total"]
    assert len({len(line) for line in table}) == 1


def test_memory(path, tmp_path):
    """What is counted is no less than what Linux counts, but for the little that is said to be left out."""
    fast = optimize(SPEC.build(seeded(205), features_only=True, resize_bias=True))
    save(fast, tmp_path / "a.effv2")
    for network, size in ((path, 64), (tmp_path / "a.effv2", 64), (tmp_path / "a.effv2", 1024)):
        memory = run(network, "--img-size", size, "--threads", 1, "--json").json["memory"]
        system = memory.pop("vm_hwm")
        assert all(memory.values()), memory
        assert memory["mapping"] == network.stat().st_size
        both = memory["program"] + memory["packed_weights"]
        assert memory["loading"] == both + memory["mapping"]
        assert memory["running"] == both + memory["arena"] + memory["images_and_outputs"]
        assert memory["peak"] == max(memory["loading"], memory["running"])
        assert system <= memory["peak"] + 4e6
    assert memory["arena"] > 1e6
    assert memory["images_and_outputs"] > 3 * 1024 * 1024 * 4


@pytest.mark.parametrize("arguments", [("--help",), ("-h",), ("--version",)])
def test_help_and_version(arguments):
    done = run(*arguments)
    assert (done.code, done.err) == (0, "")
    if arguments == ("--version",):
        assert done.out == f"effv2-run {effv2_kernels.__version__}\n"
    else:
        codes = dict(
            re.findall(r"(\d+) ([^;]*?)[;.]", done.out.partition("Exit codes:")[2].replace("\n", " "))
        )
        assert [*map(int, codes)] == [*range(11)]
        assert "memory" in codes[str(runner.MEMORY)]
        assert "newer version" in codes[str(runner.VERSION)]


def test_json_of_a_path_that_is_no_text(path, tmp_path):
    odd = str(tmp_path).encode() + b"/\xff.effv2"
    with open(odd, "wb") as file:
        file.write(path.read_bytes())
    done = subprocess.run([runner.PROGRAM, odd, *map(str, SIZE), "--json"], capture_output=True, check=True)
    assert json.loads(done.stdout)["network"]["path"] == f"{tmp_path}/\ufffd.effv2"
