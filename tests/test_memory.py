"""Memory that cannot be had: an error of this package that says so, and the process goes on."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checks import seeded
from models import SMALL, SMALL_MOBILE

from effv2_kernels import create_model, memory, optimize, save
from effv2_kernels.errors import InputError, UnavailableError

pytest.importorskip("safetensors.torch")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")

TESTS = Path(__file__).parent

# Every call is made with ever more memory until it works; what it raises before that is printed. Saving gets
# enough at once, since safetensors ends the process where it has too little itself.
LIMITED = """
import json, resource, sys
sys.path.insert(0, sys.argv[2])
import torch
import effv2_kernels
from effv2_kernels import create_model, load, optimize, save

torch.set_num_threads(1)  # others have stacks, for which there must be memory as well
path, checkpoint, folder = sys.argv[1], sys.argv[3], sys.argv[4]
UNLIMITED = resource.getrlimit(resource.RLIMIT_AS)


def attempts(make, grows):
    refused, room = [], 2 << 20
    while True:
        call = make()
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + room, UNLIMITED[1]))
        try:
            call()
            return refused
        except effv2_kernels.UnavailableError as error:
            refused.append(str(error))
        finally:
            resource.setrlimit(resource.RLIMIT_AS, UNLIMITED)
        room = room * 2 if grows else 1 << 30
        assert room < 1 << 34, refused


fast, model = load(path, threads=1), create_model("efficientformerv2_s0", checkpoint=checkpoint)
small = torch.zeros(1, 3, 64, 64)
backbone = load(sys.argv[5], threads=1)
for each in (fast, backbone):
    each(torch.zeros(1, 3, 224, 224))
optimize(model, verify=False)
save(fast, folder + "/again.effv2")
names = ["a" * 20_000] * 1000  # saving takes next to nothing but for them
large = torch.zeros(1, 3, 1, 1).expand(1, 3, 1024, 1024)


def unpacked():
    loaded = load(path, threads=1)
    return lambda: loaded.engine


calls = {
    "load": lambda: lambda: load(path, threads=1),
    "pack": unpacked,
    "run": lambda: lambda: backbone(large),
    "profile": lambda: lambda: effv2_kernels.profile(backbone, large, repeats=1, warmup=0),
    "save": lambda: lambda: save(fast, folder + "/again.effv2", labels=names),
    "optimise": lambda: lambda: optimize(model, threads=1, verify=False),
    "create": lambda: lambda: create_model("efficientformerv2_s0", checkpoint=checkpoint),
}
print(json.dumps({name: attempts(make, name != "save") for name, make in calls.items()}))
"""

# What the first of the messages of each call begins with.
FIRST = {
    "load": r"there is not enough memory to load .*s0.effv2, 1\d.\d MB in the file: free some, or",
    "pack": r"there is not enough memory to pack 1\d.\d MB of weights: free some, or run it where",
    "run": r"there is not enough memory to run images of \(1, 3, 1024, 1024\), whose outputs alone take "
    r"\d+.\d MB: give smaller or fewer ones.",
}


def run(*command):
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        # So that glibc keeps nothing for later of what is freed.
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """(network, checkpoint, backbone) of S0 and of a MobileNetV2, which takes images of any size."""
    folder = tmp_path_factory.mktemp("memory")
    torch.manual_seed(901)
    model = create_model("efficientformerv2_s0")
    torch.save(model.state_dict(), folder / "s0.pth")
    save(optimize(model, verify=False), folder / "s0.effv2")
    mobile = SMALL_MOBILE[0].build(seeded(902), features_only=True)
    save(optimize(mobile, verify=False), folder / "maps.effv2")
    return folder / "s0.effv2", folder / "s0.pth", folder / "maps.effv2"


def test_every_call_says_so_and_works_with_more(files, tmp_path):
    path, checkpoint, backbone = files
    refused = json.loads(run("-c", LIMITED, path, TESTS, checkpoint, tmp_path, backbone).stdout)
    for name, messages in refused.items():
        assert messages, f"{name} was never short of memory: the test shows nothing"
        for message in messages:
            assert message.startswith("there is not enough memory to "), (name, message)
    for name, pattern in FIRST.items():
        assert re.match(pattern, refused[name][0]), refused[name][0]
    assert "whose outputs alone take" in refused["profile"][0]
    assert "to optimise this model" in refused["optimise"][0]
    assert "to save this network" in refused["save"][0]
    assert any(f"read checkpoint '{checkpoint}', 1" in message for message in refused["create"])


COMMAND = """
import resource, sys
import torch
import effv2_kernels
from effv2_kernels.__main__ import main

torch.set_num_threads(1)
effv2_kernels.load(sys.argv[1], threads=1)(torch.zeros(1, 3, 224, 224))
main(["env"])
import effv2_kernels.cli.profile, effv2_kernels.profile
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (3 << 20), resource.getrlimit(resource.RLIMIT_AS)[1]))
print("code", main(["profile", "--threads", "1", *sys.argv[2:]]))
"""


@pytest.mark.parametrize(
    ("arguments", "purpose"),
    [
        (["--checkpoint", "{path}"], "load {path}, 1"),
        # Of what the command does itself: random images.
        (["--checkpoint", "{maps}", "--img-size", "2048"], "run profile: free some"),
    ],
)
def test_the_command_line(files, arguments, purpose):
    path, _, maps = files
    done = run("-c", COMMAND, path, *(a.format(path=path, maps=maps) for a in arguments))
    assert done.stdout.splitlines()[-1] == "code 2"
    assert done.stderr.startswith(f"error: there is not enough memory to {purpose.format(path=path)}")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(12, "Cannot allocate memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] err == 0. you tried to allocate 4 bytes."),
        RuntimeError("std::bad_alloc"),
        RuntimeError("unable to mmap 5 bytes from file <a>: Cannot allocate memory (12)"),
    ],
    ids=repr,
)
def test_what_counts_as_a_lack_of_memory(error):
    assert memory.lacks(error)
    message = "^there is not enough memory to try: free some, or run it where there is more.$"
    with pytest.raises(UnavailableError, match=message), memory.needed_to("try"):
        raise error


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes differ"), OSError(2, "No such file"), UnavailableError("bad_alloc")]
)
def test_what_does_not(error):
    with pytest.raises(type(error), match=str(error.args[-1])), memory.needed_to("try"):
        raise error


def test_images_beyond_all_counts():
    """Sizes and batches that the compiled module has no numbers for."""
    fast = optimize(SMALL[0].build(seeded(903), features_only=True, resize_bias=True), verify=False)
    image = torch.zeros(1, 3, 1, 1)
    for size in ((2**31, 1), (1, 2**40)):
        with pytest.raises(InputError, match=r"images of .* cannot run"):
            fast(image.expand(1, 3, *size))
    with pytest.raises((InputError, UnavailableError), match="8589934592"):
        fast(image.expand(2**33, 3, 64, 64))
