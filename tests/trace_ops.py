"""Trace the ops for a GPU that is not here, and print what stands in the graphs as JSON.

Run by test_triton_compiler.py in a process without Triton's interpreter, with EFFV2_CACHE_DIR an empty
folder.
"""

import builtins
import dis
import importlib.util
import json
import tempfile
from pathlib import Path

import pytest
import torch
from block_shapes import HEADS, OPTIONS, SHAPES
from claimed_gpu import claim_to_pytorch, claim_to_triton
from torch._functorch._aot_autograd.autograd_cache import AOTAutogradCacheDetails
from torch._functorch.aot_autograd import aot_export_joint_simple
from torch._higher_order_ops.triton_kernel_wrap import kernel_side_table
from torch._inductor.codegen.wrapper import user_defined_triton_kernel_transitive_closure_source_code
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from triton import JITFunction

import effv2_kernels.ops  # noqa: F401  (registers the ops)
from effv2_kernels import backends, shapes
from effv2_kernels.gpu.findings import findings_of
from effv2_kernels.gpu.launch import FeatureMap
from effv2_kernels.triton.kernels import pack

GPU = torch.device("cuda", 0)
FFN = SHAPES["ffn"]

CASES = [
    (SHAPES["stem"], torch.float32, "nchw"),
    (SHAPES["stem"], torch.float16, "nhwc"),
    (FFN, torch.float16, "nhwc"),
    (shapes.ffn(16, 40, 61, 59), torch.bfloat16, "nchw"),
    (SHAPES["attention"], torch.float16, "nhwc"),
    (SHAPES["strided attention"], torch.float32, "nhwc"),
    (SHAPES["attention with a resized bias"], torch.bfloat16, "nhwc"),
    (shapes.attention(16, 12, 13, **HEADS), torch.float16, "nchw"),  # bias by distance
    (SHAPES["conv"], torch.float16, "nhwc"),
    (SHAPES["attention_downsample"], torch.float16, "nhwc"),
    (SHAPES["head"], torch.float16, "nhwc"),
    (OPTIONS["strided ffn"], torch.float16, "nhwc"),
    (OPTIONS["ffn without expansion"], torch.bfloat16, "nchw"),
    (shapes.ffn(16, 16, 99, 91, activation="relu6", without=("fc1",)), torch.float16, "nhwc"),
    (OPTIONS["conv 1x1 with relu6"], torch.float16, "nhwc"),
    (OPTIONS["conv 3x3"], torch.float32, "nchw"),
    (OPTIONS["strided conv with relu6"], torch.float16, "nchw"),
    (OPTIONS["strided conv with relu6"], torch.float32, "nhwc"),
    (OPTIONS["attention with silu"], torch.float16, "nhwc"),
]


def random_block(shape):
    return shapes.random_block(shape, torch.Generator().manual_seed(0))


def image(shape, dtype, layout, batch=2):
    """Without data, in the mode that is active."""
    memory_format = torch.channels_last if layout == "nhwc" else torch.contiguous_format
    size = (batch, shape.sizes["in"], shape.height, shape.width)
    return torch.empty(size, dtype=dtype, device=GPU, memory_format=memory_format)


def trace(block, x):
    """The graph of the block's op as torch.compile makes it, without gradients."""
    values = list(block.values().values())
    weights = [torch.empty(v.shape, device=GPU) for v in values if isinstance(v, torch.Tensor)]
    op = getattr(torch.ops.effv2, block.kind).default

    def call(x, *weights):
        rest = iter(weights)
        return (op(x, *(next(rest) if isinstance(v, torch.Tensor) else v for v in values)),)

    return aot_export_joint_simple(call, (x, *weights), trace_joint=False).graph


def ops_in(graph):
    return [str(n.target) for n in graph.nodes if str(n.target).startswith("effv2.")]


def launches_in(graph):
    return [n for n in graph.nodes if "triton_kernel_wrapper" in str(n.target)]


def origin(node, launches):
    """What a tensor of the graph is: kind, shape or producer, and strides or dtype."""
    value = node.meta["val"]
    if "empty" in str(node.target):
        # Inductor takes the strides of this operator alone as they are.
        assert node.target is torch.ops.aten.empty_strided.default or value.is_contiguous()
        return ["new", value.numel(), str(value.dtype)]
    if "getitem" in str(node.target):
        launch, name = node.args
        return ["made", launches.index(launch), name]
    source = node
    while source.op != "placeholder" and source.all_input_nodes:
        source = source.all_input_nodes[0]
    if source is next(iter(node.graph.nodes)):
        return ["image", list(value.shape), list(value.stride())]
    assert value.is_contiguous()
    kind = "weight" if can_be_folded(node) else "weight that is made in every call"
    return [kind, list(value.shape), str(value.dtype)]


def can_be_folded(node):
    """Whether inductor computes it ahead if weights are frozen: it begins with nothing but weights."""
    if node.op == "placeholder":
        return True
    return bool(node.all_input_nodes) and all(map(can_be_folded, node.all_input_nodes))


def found(graph):
    """The launches in a graph."""
    launches = launches_in(graph)
    for node in launches:
        kernel = kernel_side_table.get_kernel(node.kwargs["kernel_idx"])
        others = kernel_side_table.get_constant_args(node.kwargs["constant_args_idx"])
        (config,), (grid,) = kernel.configs, node.kwargs["grid"]
        yield {
            "kernel": kernel.fn.__name__,
            "grid": list(grid),
            "arguments": {
                name: origin(value, launches) if isinstance(value, torch.fx.Node) else value
                for name, value in {**node.kwargs["kwargs"], **others}.items()
            },
            "written": sorted(node.kwargs["tensors_to_clone"]),
            "tile": [config.num_warps, config.num_stages],
        }


def measure(shape):
    """Find the last tile of each launch the fastest."""
    x = FeatureMap(2, shape.height, shape.width, shape.sizes["in"], torch.float16)
    launches = pack(random_block(shape), torch.float16, "cpu").plan(x, "ieee")
    findings_of(GPU).tiles.add({launch: launch.tiles[-1] for launch in launches})


def planned(block, x):
    """The launches of a plan, each with the tile that was measured or else the first one that fits."""
    n, c, h, w = x.shape
    packed = pack(block, x.dtype, "cpu")
    strides = x.stride() if packed.reads_any_layout and x.is_contiguous() else None
    source = FeatureMap(n, h, w, c, x.dtype, strides)
    made = {source: ["image", [n, c, h, w], list(source.strides or (h * w * c, 1, w * c, c))]}
    for i, launch in enumerate(packed.plan(source, "ieee")):
        tile = findings_of(GPU).tiles.find(launch) or launch.tiles[min(1, len(launch.tiles) - 1)]
        arguments = dict(launch.arguments)
        for name, value in launch.arguments.items():
            if isinstance(value, torch.Tensor):
                resized = name == "bias_ptr" and getattr(block, "resize_bias", False) and value.ndim == 3
                kind = "weight that is made in every call" if resized else "weight"
                arguments[name] = [kind, list(value.shape), str(value.dtype)]
            elif value in launch.written:
                arguments[name] = ["new", value.elements, str(value.dtype)]
                made[value] = ["made", i, name]
            elif isinstance(value, FeatureMap):
                arguments[name] = made[value]
        yield {
            "kernel": launch.name,
            "grid": [launch.programs(tile), 1, 1],
            "arguments": {**arguments, **launch.constants, **tile.blocks},
            "written": sorted(name for name, value in arguments.items() if str(value).startswith("['new'")),
            "tile": [tile.warps, tile.stages],
        }


def graphs():
    """Every block, and beside it what its engine would launch; with measured tiles for one of them."""
    measure(FFN)
    for shape, dtype, layout in CASES:
        block = random_block(shape)
        with FakeTensorMode():
            x = image(shape, dtype, layout)
            graph = trace(block, x)
        ((output,),) = graph.output_node().args
        y = output.meta["val"]
        yield {
            "case": f"{shape} {dtype} {layout}",
            "ops": ops_in(graph),
            "found": list(found(graph)),
            "planned": list(planned(block, x)),
            "output": origin(output, launches_in(graph)),
            "shape": list(y.shape),
            "stride": list(y.stride()),
            "dtype": str(y.dtype),
        }


def opaque():
    """One that is decomposed, and then the same op where it must stay."""
    block = random_block(FFN)

    def row(reason, x):
        graph = trace(block, x)
        return {"reason": reason, "ops": ops_in(graph), "launches": len(launches_in(graph))}

    with FakeTensorMode():
        yield row("none", image(FFN, torch.float16, "nhwc"))
        yield row("a dtype without kernels", image(FFN, torch.float64, "nhwc"))
    mode = FakeTensorMode(shape_env=ShapeEnv())
    sizes = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC])
    batch = mode.from_tensor(torch.empty(5), symbolic_context=sizes).shape[0]
    with mode:
        yield row("a batch that is left open", image(FFN, torch.float16, "nhwc", batch))
    with FakeTensorMode(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
        yield row("a GPU that Triton does not know", image(FFN, torch.float16, "nhwc"))


def key():
    """The sources of the kernels that a cached graph with an op of ours depends on."""

    def sources():
        details = object.__new__(AOTAutogradCacheDetails)
        return details.get_triton_source_codes_from_gm(torch.fx.GraphModule({}, graph))

    graph = torch.fx.Graph()
    graph.output(graph.call_function(torch.ops.effv2.ffn.default, ()))
    yield {"when": "now", "sources": sources()}
    yield {"when": "again", "sources": sources()}
    measure(shapes.head(8, 8, 1, 1))
    yield {"when": "after tuning", "sources": sources()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backends, "_no_gpu", lambda: "there is none")
        yield {"when": "without a GPU", "sources": sources()}


def copies():
    """The names that are missing where Torch's compiler writes a kernel and its functions into a file."""
    listed = map(kernel_side_table.get_kernel, kernel_side_table.id_to_kernel)
    for kernel in {kernel if isinstance(kernel, JITFunction) else kernel.fn for kernel in listed}:
        source = user_defined_triton_kernel_transitive_closure_source_code(kernel)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, f"copied_{kernel.__name__}.py")
            file.write_text(f"import triton\nimport triton.language as tl\n\n@triton.jit\n{source}")
            spec = importlib.util.spec_from_file_location(file.stem, file)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        known = vars(module).keys() | vars(builtins).keys()
        used = {
            read.argval
            for function in vars(module).values()
            if isinstance(function, JITFunction)
            for read in dis.get_instructions(function.fn)
            if read.opname == "LOAD_GLOBAL"
        }
        yield {"kernel": kernel.__name__, "missing": sorted(used - known)}


claim_to_triton()
claim_to_pytorch()
of_blocks = list(graphs())
print(
    json.dumps({"graphs": of_blocks, "key": list(key()), "opaque": list(opaque()), "copies": list(copies())})
)
