"""libeffv2: the bits of Python, what it exports, how it is installed and found, and bad input."""

import ctypes
import re
import shutil
import subprocess
import sys
from pathlib import Path

import c_library
import pytest
import small_files
import torch
from c_library import Network, Refused
from checks import seeded
from models import FAMILIES, SMALL, name_of

import effv2_kernels
from effv2_kernels import cpu, load, optimize, save

ROOT = Path(__file__).resolve().parents[1]
HEADER = (ROOT / "csrc" / "effv2.h").read_text(encoding="utf-8")
SPEC = SMALL[0]

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into files of ELF, or into /proc")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "network.effv2"
    save(optimize(SPEC.build(seeded(180))), path)
    return path


def run(*command, **options):
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False, timeout=300, **options
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("spec", FAMILIES, ids=name_of)
@pytest.mark.parametrize("stored", ["fp32", "fp16"])
def test_the_bits_of_python(spec, stored, tmp_path):
    g = seeded(181)
    save(optimize(spec.build(g)), tmp_path / "a.effv2", dtype=stored)
    for isa in cpu.native().available_isas():
        fast, network = (
            load(tmp_path / "a.effv2", isa=isa),
            Network(tmp_path / "a.effv2", dtype="fp32", isa=isa),
        )
        assert network.describe().file_dtype.decode() == stored
        for images in (spec.images(g, 3), spec.images(g).contiguous(memory_format=torch.channels_last)):
            (found,) = network.run(images, threads=2)
            assert torch.equal(found, fast(images))


def test_a_backbone(tmp_path):
    g = seeded(182)
    fast = optimize(
        SPEC.build(g, features_only=True, resize_bias=True, feature_norms=(True, False, True, True))
    )
    save(fast, tmp_path / "a.effv2")
    images = torch.randn(2, 3, 80, 50, generator=g)
    network = Network(tmp_path / "a.effv2")
    assert network.describe().has_head == 0
    for found, expected in zip(network.run(images), fast(images), strict=True):
        assert torch.equal(found, expected)


def test_bf16(path):
    native = cpu.native()
    for isa in native.available_isas():
        if "bf16" not in native.formats(isa):
            with pytest.raises(Refused, match=f"unavailable: '{isa}' has no bf16"):
                Network(path, dtype="bf16", isa=isa)
            continue
        images = SPEC.images(seeded(183), 2).bfloat16()
        network = Network(path, dtype="bf16", isa=isa)
        assert network.describe().value_bytes == 2
        (found,) = network.run(images)
        assert torch.equal(found, load(path, dtype="bf16", isa=isa)(images))


def test_the_dtype_is_the_files_own_where_it_runs(tmp_path):
    small_files.write("halves", tmp_path / "a.effv2", seeded(184))
    for isa in cpu.native().available_isas():
        has = "fp16" in cpu.native().formats(isa)
        about = Network(tmp_path / "a.effv2", isa=isa).describe()
        assert about.dtype.decode() == ("fp16" if has else "fp32")
        assert about.file_dtype == b"fp16"


def test_names_are_told_from_python(path):
    """A dtype or ISA of another processor is refused, and a name that nobody knows."""
    for isa in cpu.native().available_isas():
        if "fp16" not in cpu.native().formats(isa):
            with pytest.raises(Refused, match=f"unavailable: '{isa}' has no fp16"):
                Network(path, dtype="fp16", isa=isa)
            with pytest.raises(effv2_kernels.UnavailableError, match="not fp16"):
                load(path, dtype="fp16", isa=isa)
    with pytest.raises(Refused, match="invalid argument: unknown dtype 'float32'"):
        Network(path, dtype="float32")
    with pytest.raises(
        Refused, match="invalid argument: unknown ISA 'avx1024'; known: avx512, avx2, neon, scalar"
    ):
        Network(path, isa="avx1024")


def test_isas_of_other_processors(path):
    x86 = "avx2" in cpu.native().isas()
    for isa in ("neon",) if x86 else ("avx512", "avx2"):
        whose = "64-bit Arm" if x86 else "x86-64"
        with pytest.raises(
            Refused, match=f"^unavailable: '{isa}' is an ISA of {whose}, .* it can run .*scalar"
        ):
            Network(path, isa=isa)


def test_an_empty_path():
    with pytest.raises(Refused, match="invalid argument: the path is empty"):
        Network("")


@pytest.mark.parametrize("threads", [-1, -(2**31)])
def test_threads(path, threads):
    with pytest.raises(Refused, match=f"invalid argument: threads is {threads}"):
        Network(path, threads=threads)
    with pytest.raises(Refused, match=f"invalid argument: threads is {threads}"):
        Network(path).run(SPEC.images(seeded(185)), threads)


@pytest.mark.parametrize("threads", [0, -1, 1.5, True])
def test_threads_in_python(path, threads):
    with pytest.raises(effv2_kernels.InputError, match="threads must be a positive integer or None"):
        load(path, threads=threads)


def test_images_of_another_size(path):
    network = Network(path)
    x = SPEC.images(seeded(186))
    wider = torch.zeros(1, 3, x.shape[2], x.shape[3] + 32)
    with pytest.raises(Refused, match=r"invalid size: the attention biases") as refused:
        network.run(wider)
    with pytest.raises(effv2_kernels.ResolutionError) as in_python:
        load(path)(wider)
    # Both say which sizes fit, and which one was given.
    sizes = r"\d+-\d+ rows by \d+-\d+ columns, but this one is \d+x\d+"
    assert re.findall(sizes, str(refused.value)) == re.findall(sizes, str(in_python.value)) != []
    with pytest.raises(Refused, match=r"invalid argument: expected 3 channels, got 4"):
        network.run(torch.zeros(1, 4, *x.shape[2:]))


@on_linux
def test_what_is_exported():
    """What the header declares, with its version, and nothing else."""
    assert c_library.LIBRARY.exists()
    lines = run("nm", "-D", "--defined-only", c_library.LIBRARY).splitlines()
    exported = {name for _, kind, name in map(str.split, lines) if kind != "A"}
    declared = set(re.findall(r"EFFV2_API [\w *]*?\b(effv2_\w+)\(", HEADER))
    assert exported == {f"{name}@@EFFV2_1" for name in declared}
    assert len(declared) > 10
    dynamic = run("readelf", "-d", c_library.LIBRARY)
    assert re.search(r"SONAME.*\[libeffv2\.so\.1\]", dynamic)
    assert "TEXTREL" not in dynamic


def test_the_version_stands_in_one_place():
    assert c_library.library().effv2_version().decode() == effv2_kernels.__version__


def test_the_bindings_of_these_tests_are_the_headers():
    """Their structs have the fields that the header declares, in this order."""
    for struct in (c_library.Options, c_library.Description, c_library.Shape, c_library.Images):
        (body,) = re.findall(
            rf"typedef struct effv2_{struct.__name__.lower()} {{\n(.*?)\n}}", HEADER, re.DOTALL
        )
        body = re.sub(r"/\*.*?\*/", "", body, flags=re.DOTALL)
        fields = re.findall(r"\b(\w+)\s*[,;]", body)
        assert fields == [name for name, *_ in struct._fields_]
    numbers = {
        int(n): name.lower().replace("_", " ") for name, n in re.findall(r"EFFV2_(\w+) = (\d+)", HEADER)
    }
    assert numbers == {0: "ok", **c_library.STATUS}


@pytest.fixture(scope="module")
def prefix(tmp_path_factory):
    """Where the library is installed."""
    prefix = tmp_path_factory.mktemp("prefix")
    run("cmake", "--install", c_library.BUILD, "--component", "c_api", "--prefix", prefix)
    return prefix


def check_example(program, tmp_path, **environment):
    """The example's logits are those of Python, for an image of a file."""
    g = seeded(187)
    fast, images = optimize(SPEC.build(g)), SPEC.images(g)
    save(fast, tmp_path / "a.effv2")
    images.numpy().tofile(tmp_path / "image.raw")
    rows, columns = images.shape[2:]
    said = run(program, tmp_path / "a.effv2", rows, columns, tmp_path / "image.raw", **environment)
    logits = fast(images)[0]
    found = [(int(index), float(value)) for index, value in map(str.split, said.splitlines())]
    expected = torch.topk(logits, 5)
    assert [index for index, _ in found] == expected.indices.tolist()
    assert torch.equal(torch.tensor([value for _, value in found]), expected.values)
    # Without an image it makes one; without a network it says why.
    assert len(run(program, tmp_path / "a.effv2", rows, columns, **environment).splitlines()) == 5
    refused = subprocess.run(
        [program, str(tmp_path / "none")], capture_output=True, text=True, check=False, **environment
    )
    assert refused.returncode == 1
    assert "there is no file" in refused.stderr


def test_an_installed_library_is_found_by_cmake(prefix, tmp_path):
    build = tmp_path / "build"
    run("cmake", "-S", ROOT / "examples" / "c", "-B", build, f"-DCMAKE_PREFIX_PATH={prefix}")
    run("cmake", "--build", build)
    check_example(str(build / "classify"), tmp_path)
    version = ".".join(effv2_kernels.__version__.split(".")[:2])
    (tmp_path / "newer").mkdir()
    (tmp_path / "newer" / "CMakeLists.txt").write_text(
        f"cmake_minimum_required(VERSION 3.18)\nproject(p C)\nfind_package(effv2 {version} REQUIRED)\n"
        f"find_package(effv2 99 QUIET)\nif(effv2_FOUND)\n  message(FATAL_ERROR found)\nendif()\n"
    )
    run(
        "cmake", "-S", tmp_path / "newer", "-B", tmp_path / "newer" / "build", f"-DCMAKE_PREFIX_PATH={prefix}"
    )


@on_linux  # one of its flags is of GNU's linker
@pytest.mark.skipif(shutil.which("pkg-config") is None, reason="needs pkg-config")
@pytest.mark.parametrize("kind", ["shared", "static"])
def test_an_installed_library_is_found_by_pkg_config(prefix, tmp_path, kind):
    (folder,) = prefix.rglob("pkgconfig")
    environment = {"PKG_CONFIG_PATH": str(folder), "PATH": "/usr/bin:/bin"}
    flags = run("pkg-config", "--cflags", "effv2", env=environment).split()
    libraries = run("pkg-config", "--libs", *(["--static"] * (kind == "static")), "effv2", env=environment)
    if kind == "static":
        libraries = libraries.replace("-leffv2", "-l:libeffv2.a")
    program = tmp_path / "classify"
    source = ROOT / "examples" / "c" / "classify.c"
    strict = ("-std=c99", "-Wall", "-Wextra", "-pedantic", "-Werror")
    run("cc", *strict, *flags, source, *libraries.split(), "-o", program)
    check_example(str(program), tmp_path, env={"LD_LIBRARY_PATH": str(folder.parent)})
    assert run("pkg-config", "--modversion", "effv2", env=environment).strip() == effv2_kernels.__version__


LITTLE_MEMORY_IN_PYTHON = """
import resource, sys
import torch
import effv2_kernels

fast = effv2_kernels.load(sys.argv[1], threads=1)
small = torch.zeros(1, 3, 64, 64)
fast(small)
large = torch.zeros(1, 3, 1, 1).expand(1, 3, 4096, 4096)
# Room for the maps that are returned, and not for those that are made on the way.
shapes = fast.engine.block_shapes(4096, 4096)
returned = sum(4 * c * h * w for c, h, w in (shapes[f.block] for f in fast.network.features))
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + returned + (1 << 22), -1))
for call in (fast, lambda x: fast.engine.profile(x, 1, repeats=1, warmup=0)):
    try:
        call(large)
    except effv2_kernels.UnavailableError as error:
        print(error)
resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
print(len(fast(small)))
"""


@on_linux
def test_memory_that_cannot_be_had_in_python(tmp_path):
    fast = optimize(SPEC.build(seeded(189), features_only=True, resize_bias=True))
    save(fast, tmp_path / "a.effv2")
    *refused, outputs = run(sys.executable, "-c", LITTLE_MEMORY_IN_PYTHON, tmp_path / "a.effv2").splitlines()
    assert len(refused) == 2
    for message in refused:
        assert message.startswith("there is not enough memory to run images of (1, 3, 4096, 4096)")
    assert outputs == "4"


LITTLE_MEMORY = """
import ctypes, resource, sys
sys.path.insert(0, sys.argv[2])
import torch
from c_library import Images, Network, Refused

network = Network(sys.argv[1])
small, large = torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, 1, 1).expand(1, 3, 4096, 4096)
network.run(small, 1)
room = ctypes.create_string_buffer(1)  # no call comes as far as to write there
outputs = (ctypes.c_void_p * 4)(*[ctypes.addressof(room)] * 4)
images = Images(large.data_ptr(), *large.shape, *large.stride())

def attempt(call):
    try:
        call()
        print("worked")
    except Refused as refused:
        print(refused)

def run_large():
    network._check(network._library.effv2_run(network._network, ctypes.byref(images), outputs, 4, 64))

used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[3]), -1))
attempt(run_large)
attempt(lambda: Network(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
attempt(lambda: network.run(small, 2))
"""


@on_linux
def test_memory_that_cannot_be_had(tmp_path):
    """Neither for a network nor for a call: the process goes on, and both work when there is memory again."""
    fast = optimize(SPEC.build(seeded(188), features_only=True, resize_bias=True))
    save(fast, tmp_path / "a.effv2")
    for room in (0, 1 << 16, 1 << 20):
        said = run(sys.executable, "-c", LITTLE_MEMORY, tmp_path / "a.effv2", ROOT / "tests", room)
        called, loaded, again = said.splitlines()
        short = "out of memory: there is not enough memory"
        asked = r"(; [\d.e+]+ ([KMG]iB|bytes) were asked for)?"  # not of what the language itself takes
        call = f"{short} to run images of 1x3x4096x4096{asked}: give fewer or smaller images, fewer threads, "
        assert re.match(call, called)
        assert bool(room) * (loaded == "worked") or re.match(
            f"{short} to load the network{asked}: free", loaded
        )
        assert again == "worked"


@on_linux
def test_many_networks_are_freed(path):
    """Loading and freeing again leaves nothing behind."""

    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1])

    for _ in range(3):
        Network(path).run(SPEC.images(seeded(189)))
    before = resident()
    for _ in range(20):
        Network(path).run(SPEC.images(seeded(189)))
    assert resident() - before < 20 * path.stat().st_size // 4096 // 2
    assert ctypes.sizeof(c_library.Options) == 32
