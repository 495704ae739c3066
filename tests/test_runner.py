"""effv2-run: the bits of Python, every option, and an exit code and a line for all that can be wrong."""

import json
import random
import re
import subprocess
import sys
from dataclasses import replace

import c_library
import pytest
import runner
import torch
from checks import seeded
from models import FAMILIES, SMALL, SMALL_MOBILE, name_of
from mutations import MUTATIONS, join, split
from runner import outputs, run, write

import effv2_kernels
from effv2_kernels import blocks, cpu, load, optimize, save
from effv2_kernels.backends import Settings
from effv2_kernels.cli.models import randomise
from effv2_kernels.declaration import Layer
from effv2_kernels.errors import LatencyError
from effv2_kernels.families.efficientformer_v2 import Architecture
from effv2_kernels.model import OptimizedModel
from effv2_kernels.search.latency import reports
from effv2_kernels.search.space import SearchSpace, StageChoices

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="effv2-run is built for Linux")

SPEC = SMALL[0]
SIZE = ("--img-size", SPEC.img_size)
NAMES = (*(f"name {i}" for i in range(9)), "Grünfink, 金魚")
# The program has no emulated ones.
ISAS = [isa for isa in cpu.native().available_isas() if not isa.endswith("_emulated")]
TARGETS = [(isa, dtype) for isa in ISAS for dtype in cpu.native().formats(isa)]
DTYPES = c_library.DTYPES


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "network.effv2"
    save(optimize(SPEC.build(seeded(200))), path, labels=NAMES)
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write(tmp_path_factory.mktemp("images") / "x.npy", SPEC.images(seeded(201)))


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


USAGE = {
    (): "network is required",
    ("{path}", "another"): "not expected: another",
    ("{path}", "--quick"): "not expected: --quick",
    ("{path}", "--threads", "0"): "--threads is 0; expected 1 to 65536",
    ("{path}", "--threads", "-1"): "--threads is -1; expected 1 to 65536",
    ("{path}", "--threads", "1.5"): "--threads = 1.5; expected a whole number",
    ("{path}", "--threads", "99999999999"): "expected a whole number",
    ("{path}", "--threads", "two"): "expected a whole number",
    ("{path}", "--warmup", "0", "--repeat", "1", "--threads"): "--threads: 1 required",
    ("{path}", "--repeat", "0"): "--repeat is 0; expected 1 to",
    ("{path}", "--repeat", "-5"): "--repeat is -5; expected 1 to",
    ("{path}", "--warmup", "-1"): "--warmup is -1; expected 0 to",
    ("{path}", "--top", "0"): "--top is 0; expected 1 to",
    ("{path}", "--image", "a.png", "--input", "a.npy"): "excludes",
    ("{path}", "--img-size", "0"): "expected 224 or ROWSxCOLUMNS",
    ("{path}", "--img-size", "64x"): "expected 224 or ROWSxCOLUMNS",
    ("{path}", "--img-size", "64x64x3"): "expected 224 or ROWSxCOLUMNS",
    ("{path}", "--img-size", "-64"): "expected 224 or ROWSxCOLUMNS",
    ("{path}", "--img-size", "99999999999999999999"): "expected 224 or ROWSxCOLUMNS",
    ("{path}", "--img-size", "16777217"): "such as 160x224, at most 16777216 of each",
    ("",): "network is empty; expected FILE",
    ("{path}", "--threads", ""): "--threads is empty; expected N",
    ("{path}", "--warmup", "0", "--repeat", "1", "--threads="): "--threads: 1 required",
    ("{path}", "--img-size", ""): "--img-size is empty",
    ("{path}", "--dtype", ""): "--dtype is empty",
    ("{path}", "--isa", ""): "--isa is empty",
    ("{path}", "--image", ""): "--image is empty; expected FILE",
    ("{path}", "--input", ""): "--input is empty; expected FILE.npy",
    ("{path}", "--output", ""): "--output is empty; expected FILE.npy",
    ("{path}", "--dtype", "float16"): "unknown dtype 'float16'; known: fp32, bf16, fp16",
    ("{path}", "--isa", "avx1024"): "unknown ISA 'avx1024'; known: avx512, avx2, neon, scalar",
}


@pytest.mark.parametrize("arguments", USAGE, ids=" ".join)
def test_wrong_options(arguments, path):
    given = [argument.format(path=path) for argument in arguments]
    run(*given).refused(runner.USAGE, USAGE[arguments])


NEEDS = {"bf16": "it needs x86-64 with AVX2", "fp16": "it needs 64-bit Arm with arithmetic in half precision"}


def test_what_this_processor_lacks(path):
    """Why, what runs instead, and what not to ask for: of what was asked for, and nothing else."""
    instead = "what this processor has is taken"
    for isa in ISAS:
        for dtype in NEEDS.keys() - {*cpu.native().formats(isa)}:
            words = (f"'{isa}' has no {dtype}", NEEDS[dtype], "can run", f"{ISAS[-1]} (fp32)")
            done = run(path, "--isa", isa, "--dtype", dtype)
            done.refused(runner.UNAVAILABLE, *words, f"; without --dtype and --isa {instead}")
            forced = run(path, "--dtype", dtype, env={"EFFV2_FORCE_ISA": isa})
            unset = f"; with EFFV2_FORCE_ISA unset, and without --dtype, {instead}"
            forced.refused(runner.UNAVAILABLE, *words, unset)
    for dtype in NEEDS.keys() - {*cpu.native().formats(ISAS[0])}:
        done = run(path, "--dtype", dtype)
        done.refused(runner.UNAVAILABLE, NEEDS[dtype], f"; without --dtype {instead}")


def test_isas_of_other_processors(path):
    """They are known, and are no mistake of spelling; through the variable as by the option."""
    x86 = "avx2" in cpu.native().isas()
    others, whose = (("neon",), "64-bit Arm") if x86 else (("avx512", "avx2"), "x86-64")
    instead = "what this processor has is taken"
    for isa in others:
        words = (f"'{isa}' is an ISA of {whose}", f"it can run {', '.join(ISAS)}")
        run(path, "--isa", isa).refused(runner.UNAVAILABLE, *words, f"; without --isa {instead}")
        done = run(path, env={"EFFV2_FORCE_ISA": isa})
        unset = f"; with EFFV2_FORCE_ISA unset {instead}"
        done.refused(runner.UNAVAILABLE, "EFFV2_FORCE_ISA", *words, unset)
        assert "--isa" not in done.err
        assert "--dtype" not in done.err
        # What is asked for goes before the variable.
        assert run(path, *SIZE, "--isa", ISAS[-1], env={"EFFV2_FORCE_ISA": isa}).code == 0
    done = run(path, env={"EFFV2_FORCE_ISA": "avx1024"})
    done.refused(runner.USAGE, "EFFV2_FORCE_ISA", "unknown ISA 'avx1024'; known: avx512, avx2, neon, scalar")


def test_images_of_another_size(path, tmp_path):
    fits = "fit images of 49-64 rows by 49-64 columns, but this one is"
    run(path, "--img-size", "96x64").refused(runner.SIZE, f"{fits} 96x64: give another --img-size")
    write(tmp_path / "x.npy", torch.zeros(1, 3, 64, 96))
    run(path, "--input", tmp_path / "x.npy").refused(runner.SIZE, f"{fits} 64x96", "--input")
    for size in ("49x64", "64x49"):
        assert run(path, "--img-size", size).code == 0
    for size in ("48x64", "64x65"):
        run(path, "--img-size", size).refused(runner.SIZE, f"{fits} {size}")


def changed(metadata):
    def change(data):
        header, values = split(data)
        header["__metadata__"].update(metadata)
        return join(header, values)

    return change


def changed_blocks(change):
    """``change`` gets the list of them."""

    def change_data(data):
        header, values = split(data)
        change(header["__metadata__"]["structure"]["blocks"])
        return join(header, values)

    return change_data


def first_swapped(blocks):
    blocks[0], blocks[1] = blocks[1], blocks[0]


NETWORKS = {
    "empty": (lambda data: b"", runner.NETWORK, "truncated or not a safetensors file"),
    "truncated": (lambda data: data[:-1], runner.NETWORK, "truncated or not a safetensors file"),
    "within the header": (lambda data: data[:100], runner.NETWORK, "truncated or not a safetensors file"),
    "oversized": (lambda data: data + b"\0", runner.NETWORK, "truncated or not a safetensors file"),
    "a header of 2^63 bytes": (
        lambda data: b"\0" * 7 + b"\x80" + data[8:],
        runner.NETWORK,
        "its header is too long",
    ),
    "a picture": (
        lambda data: b"\x89PNG\r\n\x1a\n" * 9,
        runner.NETWORK,
        "truncated or not a safetensors file",
    ),
    "another program's": (
        changed({"format": "pt"}),
        runner.NETWORK,
        "was not written by effv2_kernels.save()",
    ),
    "newer": (changed({"version": "3"}), runner.VERSION, "has version '3' of the format"),
    "labels of others": (changed({"labels": '["one"]'}), runner.NETWORK, "there are 1 for 10 classes"),
    "no structure": (changed({"structure": "{}"}), runner.NETWORK, "does not describe a network"),
    "blocks in another order": (
        changed_blocks(first_swapped),
        runner.NETWORK,
        "does not hold the tensors that it describes",
    ),
    "blocks backwards": (
        changed_blocks(list.reverse),
        runner.NETWORK,
        "does not hold the tensors that it describes",
    ),
    "a kind that nobody knows, in several lines": (
        changed_blocks(lambda blocks: blocks[0].update(kind="a\nb\x1b[2J" + 5000 * "x")),
        runner.NETWORK,
        "unknown kind of block 'a?b?[2Jx",
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_that_are_refused(name, path, tmp_path):
    change, code, words = NETWORKS[name]
    (tmp_path / "a.effv2").write_bytes(change(path.read_bytes()))
    run(tmp_path / "a.effv2", *SIZE).refused(code, str(tmp_path / "a.effv2"), words)


def test_mutated_networks(path, tmp_path, generator):
    """Whatever a file is, the program ends in its own way."""
    chance, data, codes = random.Random(generator.initial_seed()), path.read_bytes(), set()
    for _ in range(40):
        (tmp_path / "a.effv2").write_bytes(chance.choice(MUTATIONS)(data, chance))
        done = run(tmp_path / "a.effv2", *SIZE, "--threads", 1)
        codes.add(done.code)
        if done.code:
            done.refused(done.code)
    assert codes <= {0, runner.NETWORK, runner.VERSION, runner.SIZE}
    assert runner.NETWORK in codes


def test_files_that_cannot_be_read_or_written(path, images, tmp_path):
    (tmp_path / "secret").touch(0o000)
    run(tmp_path / "none").refused(runner.FILE, f"there is no file {tmp_path / 'none'}")
    run(tmp_path).refused(runner.FILE, "it is no regular file")
    for option in ("--image", "--input"):
        run(path, option, tmp_path / "none").refused(runner.FILE, f"there is no file {tmp_path / 'none'}")
        run(path, option, tmp_path).refused(runner.FILE, f"cannot read {tmp_path}")
    for output in (tmp_path / "no" / "folder.npy", "/dev/full"):
        run(path, "--input", images, "--output", output).refused(runner.FILE, f"cannot write {output}")
    with open("/dev/full", "w") as full:
        command = [runner.PROGRAM, path, *map(str, SIZE)]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == runner.FILE
    assert done.stderr == "effv2-run: the output cannot be written\n"


def limited(kilobytes):
    """Started with so much address space."""
    return ("sh", "-c", f'ulimit -v {kilobytes} && exec "$0" "$@"', runner.PROGRAM)


def test_memory_that_cannot_be_had(path, tmp_path):
    codes = []
    for megabytes in (7, 8, 9, 10, 12, 20, 100):
        done = run(path, *SIZE, "--threads", 1, prefix=limited(megabytes << 10))
        codes.append(done.code)
        if done.code:
            done.refused(runner.MEMORY, "there is not enough memory", ": ")
    assert codes[0] == runner.MEMORY
    assert codes[-1] == 0
    assert codes == sorted(codes, reverse=True)


def test_memory_for_a_large_image(tmp_path):
    identity = runner.save_identity(tmp_path / "identity.effv2")
    less = "give fewer or smaller images, fewer threads"
    options = "(--img-size, --input, --threads, --dtype)"
    for size, asked in (("4096", "192 MiB"), ("16777216", "3 PiB")):
        done = run(identity, "--img-size", size, prefix=limited(300 << 10))
        words = ("there is not enough memory", f"; {asked} were asked for: ", less, options)
        done.refused(runner.MEMORY, *words)
    # Where the image and the output find room, and what the network makes on the way does not.
    done = run(identity, "--img-size", "3400", "--threads", 1, prefix=limited(300 << 10))
    done.refused(runner.MEMORY, "to run images of 1x3x3400x3400; ", " MiB were asked for: ", less, options)


def test_memory_for_loading(path):
    done = run(path, *SIZE, prefix=limited(7 << 10))
    done.refused(runner.MEMORY, "there is not enough memory to load the network", ": free some", "(--dtype)")


@pytest.mark.skipif("bf16" not in cpu.native().formats(ISAS[0]), reason="needs bf16")
def test_a_weight_beyond_the_dtype(tmp_path):
    """The file is sound, and it is not its fault."""
    large = torch.full((3, 3, 1, 1), torch.finfo(torch.float32).max)
    network = blocks.Network((blocks.Conv(Layer(large, torch.zeros(3))),), ("large",), (blocks.Feature(0),))
    save(OptimizedModel(network, Settings()), tmp_path / "a.effv2")
    words = (
        f"{tmp_path / 'a.effv2'} cannot run in bf16: block 0: conv: weight holds the value",
        "; use fp32",
    )
    run(tmp_path / "a.effv2", *SIZE, "--dtype", "bf16").refused(runner.OVERFLOW, *words)
    assert run(tmp_path / "a.effv2", *SIZE).code == 0


def test_a_truncated_file_ends_where_python_says(path, tmp_path):
    (tmp_path / "a.effv2").write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(effv2_kernels.CheckpointError) as refused:
        load(tmp_path / "a.effv2")
    (said,) = re.findall(r"its tensors end at byte \d+ of \d+", str(refused.value))
    run(tmp_path / "a.effv2").refused(runner.NETWORK, said)


@pytest.mark.parametrize("spec", [SMALL[2], SMALL_MOBILE[1]], ids=name_of)
def test_other_channels(spec, tmp_path):
    save(optimize(spec.build(seeded(206))), tmp_path / "a.effv2")
    rows, columns = spec.images(seeded(206)).shape[2:]
    assert run(tmp_path / "a.effv2", "--img-size", f"{rows}x{columns}").code == 0
    run(tmp_path / "a.effv2", "--image", "any.png").refused(
        runner.INPUT, "takes images of 1 channels, and a picture has 3", "--input"
    )


def test_json_of_a_path_that_is_no_text(path, tmp_path):
    odd = str(tmp_path).encode() + b"/\xff.effv2"
    with open(odd, "wb") as file:
        file.write(path.read_bytes())
    done = subprocess.run([runner.PROGRAM, odd, *map(str, SIZE), "--json"], capture_output=True, check=True)
    assert json.loads(done.stdout)["network"]["path"] == f"{tmp_path}/\ufffd.effv2"
