"""effv2-run: an exit code and a line for all that can be wrong, and for whatever a file may be."""

import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import runner
import runner_network
import small_files
import torch
from checks import seeded
from models import SMALL, SMALL_MOBILE, name_of
from mutations import MUTATIONS, join, split
from runner import run, write
from runner_network import ISAS, SIZE

import effv2_kernels
from effv2_kernels import blocks, cpu, load, optimize, save
from effv2_kernels.backends import Settings
from effv2_kernels.declaration import Layer
from effv2_kernels.model import OptimizedModel

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="effv2-run is built for Linux")

path, images = runner_network.path, runner_network.images  # fixtures

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


def test_pipes_are_not_waited_for(path, images, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for option in ("--image", "--input"):
        run(path, option, pipe, timeout=20).refused(runner.FILE, f"cannot read {pipe}: it is no regular file")
    done = run(path, "--input", images, "--output", pipe, timeout=20)
    done.refused(runner.FILE, f"cannot write {pipe}: it is no regular file")


# Done once it is computed, this would take hours.
NEVER = ("--warmup", 1000000, "--repeat", 1000000)


def test_outputs_do_not_destroy_what_is_read(path, images, tmp_path):
    """Under whatever name it is given; and it is told before anything is computed."""
    network = Path(shutil.copy(path, tmp_path / "a.effv2"))
    array = Path(shutil.copy(images, tmp_path / "a.npy"))
    picture = tmp_path / "a.ppm"
    picture.write_bytes(b"P6 64 64 255\n" + bytes(3 * 64 * 64))
    for read, option, what in (
        (network, (), "network"),
        (array, ("--input", array), "array of images"),
        (picture, ("--image", picture, *SIZE), "picture"),
    ):
        before = read.read_bytes()
        soft, hard = tmp_path / f"soft{read.suffix}", tmp_path / f"hard{read.suffix}"
        soft.symlink_to(read)
        hard.hardlink_to(read)
        for output in (read, soft, hard, f"{tmp_path}/./{read.name}"):
            done = run(network, *option, "--output", output, *NEVER, timeout=20)
            words = f"cannot write {output}: it is the {what} itself; give another name"
            done.refused(runner.FILE, words)
        assert read.read_bytes() == before


def test_outputs_write_over_arrays_alone(path, images, tmp_path):
    words = "it exists and is no .npy file, and nothing else is written over; give another name, or move it"
    for name, content in (
        ("other.effv2", path.read_bytes()),
        ("notes.txt", b"mine"),
        ("short.npy", b"\x93NUMP"),
    ):
        (tmp_path / name).write_bytes(content)
        done = run(path, "--input", images, "--output", tmp_path / name, *NEVER, timeout=20)
        done.refused(runner.FILE, f"cannot write {tmp_path / name}: {words}")
        assert (tmp_path / name).read_bytes() == content
    done = run(path, "--input", images, "--output", tmp_path, *NEVER, timeout=20)
    done.refused(runner.FILE, f"cannot write {tmp_path}: it is a directory")


def test_several_outputs_write_over_arrays_alone(tmp_path):
    small_files.write("backbone", tmp_path / "a.effv2", seeded(207))
    (tmp_path / "y.1.npy").write_bytes(b"mine")
    arguments = (tmp_path / "a.effv2", "--img-size", 32, "--output", tmp_path / "y.npy")
    run(*arguments, *NEVER, timeout=20).refused(
        runner.FILE, f"cannot write {tmp_path / 'y.1.npy'}: it exists"
    )
    assert not (tmp_path / "y.0.npy").exists()
    (tmp_path / "y.1.npy").unlink()
    for name in ("y.0.npy", "y.1.npy"):
        (tmp_path / name).symlink_to(tmp_path / "a.effv2")
        run(*arguments, *NEVER, timeout=20).refused(runner.FILE, f"{name}: it is the network itself")
        (tmp_path / name).unlink()


def test_outputs_go_to_arrays_links_and_devices(path, images, tmp_path):
    given = (path, "--input", images, "--output")
    assert run(*given, tmp_path / "y.npy").code == 0
    expected = (tmp_path / "y.npy").read_bytes()
    (tmp_path / "old.npy").write_bytes(images.read_bytes())
    (tmp_path / "empty").touch()
    (tmp_path / "link").symlink_to("target.npy")
    for name in ("old.npy", "empty", "link"):
        assert run(*given, tmp_path / name).code == 0
        assert (tmp_path / name).read_bytes() == expected
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target.npy").read_bytes() == expected
    assert run(*given, "/dev/null").code == 0
    few = ("--repeat", "1", "--warmup", "0")
    command = [*map(str, (runner.PROGRAM, *given)), "/dev/stdout", *few]
    done = subprocess.run(command, capture_output=True, check=True, timeout=60)  # a pipe that is read
    assert done.stdout.startswith(expected)


def test_pipes_that_are_open_are_read(path, images, tmp_path):
    command = [
        *map(str, (runner.PROGRAM, path, "--input")),
        "/dev/stdin",
        "--output",
        str(tmp_path / "y.npy"),
    ]
    whole = images.read_bytes()
    subprocess.run(command, input=whole, capture_output=True, check=True, timeout=60)
    assert run(path, "--input", images, "--output", tmp_path / "expected.npy").code == 0
    assert (tmp_path / "y.npy").read_bytes() == (tmp_path / "expected.npy").read_bytes()


def test_an_output_is_not_written_where_the_report_goes(path, images, tmp_path):
    command = [*map(str, (runner.PROGRAM, path, "--input", images, "--output")), "/dev/stdout"]
    with (tmp_path / "y.npy").open("wb") as file:
        done = subprocess.run(
            command, stdout=file, stderr=subprocess.PIPE, text=True, timeout=60, check=False
        )
    assert done.returncode == runner.FILE
    assert "what this program prints goes there" in done.stderr
    assert (tmp_path / "y.npy").read_bytes() == b""


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


def test_pictures_of_no_colours_that_there_are(tmp_path):
    path = runner.save_identity(tmp_path / "a.effv2", 2)
    assert run(path).code == 0
    run(path, "--image", "any.png").refused(
        runner.INPUT, "takes images of 2 channels, and a picture has 3 or, in grey, 1", "--input"
    )
