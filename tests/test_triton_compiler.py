"""The ops as Torch's compiler sees them on a GPU: the launches in its graphs, and what these compute."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from block_shapes import OPTIONS, SHAPES
from checks import BLOCK_BOUND, assert_close, exact, one_torch_thread, seeded
from torch._subclasses.fake_tensor import FakeTensorMode

pytest.importorskip("triton")

import effv2_kernels.ops  # noqa: F401  (registers the ops)
from effv2_kernels import backends, shapes
from effv2_kernels.gpu.launch import FeatureMap
from effv2_kernels.gpu.packing import by_position
from effv2_kernels.ops import decomposition
from effv2_kernels.reference.attention_bias import gather
from effv2_kernels.triton import identity
from effv2_kernels.triton.kernels import LIMITS, pack


@pytest.fixture(autouse=True)
def quiet_pytorch():
    with one_torch_thread():
        yield


# What MobileNetV2 is made of, beside the head.
NEWER = ["strided ffn", "ffn without expansion", "conv 1x1 with relu6", "strided conv with relu6"]
ALL = {name: shape for name, shape in SHAPES.items() if shape.kind in LIMITS}
ALL |= {name: OPTIONS[name] for name in NEWER}

# Graphs for a GPU that is not here, made in a process without Triton's interpreter.


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["EFFV2_CACHE_DIR"] = str(tmp_path_factory.mktemp("tiles"))
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("trace_ops.py"))],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_graphs_hold_the_launches_of_the_engine(traced):
    """In order, with the same kernels, grids, tiles, constants and buffers; only outputs count as written."""
    rows = traced["graphs"]
    for row in rows:
        assert row["ops"] == [], row["case"]
        assert row["found"] == row["planned"], row["case"]
        assert all(launch["written"] for launch in row["found"]), row["case"]
        assert row["output"] == ["made", len(row["found"]) - 1, "y_ptr"], row["case"]
        assert row["dtype"] in row["case"]
        if len(row["shape"]) == 4:
            _, c, h, w = row["shape"]
            assert row["stride"] == [h * w * c, 1, w * c, c], row["case"]
    assert {row["case"].partition("-")[0] for row in rows} == set(LIMITS)
    kernels = {launch["kernel"] for row in rows for launch in row["found"]}
    assert {"product", "depthwise", "mixed_softmax", "mixed_values", "downsample_attention"} < kernels


def test_kernels_can_be_copied(traced):
    """Torch's compiler writes them and their functions into a file: no class of ours is there."""
    rows = {row["kernel"]: row["missing"] for row in traced["copies"]}
    assert {"product", "hidden", "conv", "mixed_softmax", "downsample_attention"} < rows.keys()
    assert not any(rows.values()), rows


def test_where_the_op_stays(traced):
    rows = {row["reason"]: (row["ops"], row["launches"]) for row in traced["opaque"]}
    assert rows.pop("none") == ([], 2)
    assert len(rows) == 3
    for reason, found in rows.items():
        assert found == (["effv2.ffn.default"], 0), reason


def test_interpreted_kernels_stand_in_no_graph(monkeypatch):
    """PyTorch cannot trace them."""
    monkeypatch.setattr(
        backends, "can_run", lambda backend, **_: backends.Answer(backend == "triton", "", "sm_90")
    )
    with FakeTensorMode():
        x = torch.empty(1, 3, 8, 8, device="cuda")
    assert not decomposition.runs_kernels(x)
    assert decomposition.kernels() == []
    monkeypatch.delenv("TRITON_INTERPRET")
    assert decomposition.runs_kernels(x)


def test_the_key_of_cached_graphs_knows_code_and_tiles(traced):
    rows = {row["when"]: row["sources"] for row in traced["key"]}
    assert rows.pop("without a GPU") == []
    states = {when: re.findall(r"STATE = '(\w+) (\w+)'", "".join(sources)) for when, sources in rows.items()}
    ((code, tiles),) = states["now"]
    assert states["again"] == [(code, tiles)]
    ((same_code, other_tiles),) = states["after tuning"]
    assert (same_code, other_tiles != tiles) == (code, True)


def test_any_change_of_the_code_is_seen(tmp_path):
    (tmp_path / "triton").mkdir()
    hashes = set()
    for name, text in (("a.py", "1"), ("triton/b.py", "2"), ("triton/b.py", "3"), ("c.py", "")):
        (tmp_path / name).write_text(text)
        identity.code_of.cache_clear()
        hashes.add(identity.code_of(tmp_path))
    assert len(hashes) == 4


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("grid", [(7, 7), (5, 8), (1, 3), (4, 1), (1, 1)])
def test_bias_without_an_index(grid, stride):
    table = torch.randn(3, *grid, generator=seeded(72))
    assert torch.equal(by_position(table, stride), gather(table, stride))


# The same for real on the CPU: kernels of Triton's interpreter in graphs of torch.compile. PyTorch's own
# operator for launches takes compiled kernels only; one that stands in for it launches interpreted ones.

_WRITTEN = {"y_ptr", "u_ptr", "wide_ptr"}  # the buffers that kernels fill, by argument
_launches = []
_launched = []


@torch.library.custom_op("effv2_tests::launch", mutates_args={"written"})
def launch(number: int, read: list[torch.Tensor], written: list[torch.Tensor]) -> None:
    kernel, grid, names, others = _launches[number]
    _launched.append(kernel.__name__)
    kernel[grid](**dict(zip(names, [*read, *written], strict=True)), **others)


class Recorded:
    """What stands in for ``torch.library.wrap_triton(kernel)``."""

    def __init__(self, kernel):
        self.kernel = kernel

    def __getitem__(self, grid):
        def record(**arguments):
            tensors = {k: v for k, v in arguments.items() if isinstance(v, torch.Tensor)}
            read = [k for k in tensors if k not in _WRITTEN]
            written = [k for k in tensors if k in _WRITTEN]
            others = {k: v for k, v in arguments.items() if k not in tensors}
            _launches.append((self.kernel, grid, [*read, *written], others))
            launch(len(_launches) - 1, [tensors[k] for k in read], [tensors[k] for k in written])

        return record


@pytest.fixture
def decomposed(monkeypatch):
    """The ops are decomposed on the CPU as well. Returns the kernels launched since, by name."""
    names = {dtype: name for name, dtype in backends.TORCH_DTYPES.items()}
    monkeypatch.setattr(decomposition, "runs_kernels", lambda x: True)
    monkeypatch.setattr(
        decomposition,
        "block_choice",
        lambda kind, x, values: backends.choose("triton", dtype=names[x.dtype], device=x.device),
    )
    monkeypatch.setattr(torch.library, "wrap_triton", Recorded)
    # Buffers are NaN until a kernel fills them.
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True, warn_only=True)
    _launches.clear()
    _launched.clear()
    yield _launched
    torch.use_deterministic_algorithms(False)


class OneOp(torch.nn.Module):
    """A block's op between two operators of PyTorch's own. weights: those of the block, as parameters."""

    def __init__(self, block):
        super().__init__()
        self.op = getattr(torch.ops.effv2, block.kind).default
        self.values = list(block.values().values())
        tensors = [v for v in self.values if isinstance(v, torch.Tensor)]
        self.weights = torch.nn.ParameterList(tensors)

    def forward(self, x):
        rest = iter(self.weights)
        values = [next(rest) if isinstance(v, torch.Tensor) else v for v in self.values]
        return self.op(x * 2, *values) * 0.5


def case(shape, dtype=torch.float32, batch=2):
    g = seeded(shape.height * 131 + shape.width)
    block = shapes.random_block(shape, g, spread=0.5)
    return block, shapes.random_input(shape, g, batch).to(dtype)


def compiled(module, **options):
    torch.compiler.reset()
    return torch.compile(module, fullgraph=True, backend="aot_eager", **{"dynamic": False, **options})


def kernels_of(block, x):
    n, c, h, w = x.shape
    return [one.name for one in pack(block, x.dtype, "cpu").plan(FeatureMap(n, h, w, c, x.dtype), "ieee")]


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, torch.float32) for name in ALL),
        ("ffn", torch.float16),
        ("conv", torch.bfloat16),
    ],
    ids=str,
)
def test_compiled_graphs_match_float64(decomposed, name, dtype):
    block, x = case(ALL[name], dtype)
    with torch.no_grad():
        y = compiled(OneOp(block))(x)
    assert decomposed == kernels_of(block, x)
    assert y.dtype == dtype
    assert y.ndim != 4 or y.is_contiguous(memory_format=torch.channels_last)
    bound = BLOCK_BOUND if dtype == torch.float32 else 5e-3
    assert_close(y.float(), 0.5 * exact(block, x * 2), bound, name)


@pytest.mark.parametrize("name", ALL)
def test_gradients_are_those_of_the_op(decomposed, name):
    block, x = case(ALL[name])
    module = OneOp(block)
    gradients = []
    for f in (module, compiled(module)):
        leaf = x.clone().requires_grad_()
        y = f(leaf)
        upstream = torch.randn(y.shape, generator=seeded(71))
        gradients.append(torch.autograd.grad(y, [leaf, *module.parameters()], upstream))
    assert decomposed == kernels_of(block, x)
    for eager, traced in zip(*gradients, strict=True):
        assert bool(eager.any())
        # Both are sums over all positions in plain fp32.
        assert_close(traced, eager.double(), 2e-5, name)


def test_inference_mode(decomposed):
    block, x = case(SHAPES["ffn"])
    module = OneOp(block)
    with torch.inference_mode():
        y = compiled(module)(x)
        assert decomposed == kernels_of(block, x)
        assert_close(y, module(x).double(), 2 * BLOCK_BOUND)


def test_a_batch_that_is_left_open_keeps_the_op(decomposed):
    block, x = case(SHAPES["ffn"])
    module = OneOp(block)
    with torch.no_grad():
        assert torch.equal(compiled(module, dynamic=True)(x), module(x))
    assert decomposed == []


def test_exported_programs_keep_the_op(decomposed):
    block, x = case(SHAPES["ffn"])
    program = torch.export.export(OneOp(block), (x,)).run_decompositions()
    assert "effv2.ffn.default" in [str(node.target) for node in program.graph.nodes]
    assert _launches == []


def test_what_the_op_refuses_is_refused_while_tracing(decomposed):
    block, x = case(SHAPES["attention"])
    with pytest.raises(Exception, match="5-5 rows by 4-4 columns"), torch.no_grad():
        compiled(OneOp(block))(x[:, :, :4])
    assert decomposed == []


def printed(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_the_cpu_needs_no_triton():
    """Neither to register the ops nor to compile a graph of them."""
    code = """
import sys
sys.modules["triton"] = None
import torch, effv2_kernels.ops
compiled = torch.compile(torch.ops.effv2.head, backend="aot_eager")
print(*compiled(torch.ones(1, 2, 3, 3), torch.ones(4, 2), torch.zeros(4)).flatten().tolist())
"""
    assert printed(code) == ["2.0"] * 4


def test_a_pytorch_that_cannot_trace_kernels():
    code = """
import torch
del torch.library.wrap_triton
import effv2_kernels.ops
print(*torch.ops.effv2.head(torch.ones(1, 2, 3, 3), torch.ones(4, 2), torch.zeros(4)).flatten().tolist())
"""
    assert printed(code) == ["2.0"] * 4
