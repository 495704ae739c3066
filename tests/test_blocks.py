"""Blocks as data: the table of shapes, the description as JSON, and one stem per block in every folder."""

import re
from pathlib import Path

import pytest
import torch
from block_shapes import OPTIONS, SHAPES, of_kind
from checks import seeded
from models import SMALL, SMALL_MOBILE

from effv2_kernels import blocks, cpu, declaration, outline, reference, shapes, sources, structure
from effv2_kernels.errors import ModelError
from effv2_kernels.families.efficientformer_v2 import network_shapes
from effv2_kernels.reference import VARIANTS, EfficientFormerV2

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("kind", blocks.BLOCK_TYPES)
def test_a_block_has_its_file_in_every_folder(kind):
    for path in (
        f"csrc/cpu/blocks/{kind}.cpp",
        f"csrc/tests/test_{kind}.cpp",
        f"effv2_kernels/reference/{kind}.py",
        f"tests/test_{kind}.py",
        f"bench/bench_{kind}.py",
    ):
        assert (ROOT / path).is_file(), f"block {kind} has no {path}"


def test_no_folder_knows_a_block_that_the_others_do_not():
    kinds = set(blocks.BLOCK_TYPES)
    assert {path.stem for path in (ROOT / "csrc/cpu/blocks").glob("*.cpp")} == kinds
    assert {path.stem.removeprefix("bench_") for path in (ROOT / "bench").glob("bench_*.py")} - {
        "network"
    } == kinds
    assert {cls.kind for cls in blocks.Block.__subclasses__()} == kinds


def test_native_tests_are_of_the_group_that_their_file_is_named_after():
    """By that name ctest runs them: those of another group it would leave out."""
    for path in (ROOT / "csrc/tests").glob("test_*.cpp"):
        groups = set(re.findall(r"^TEST\((\w+),", path.read_text(encoding="utf-8"), re.MULTILINE))
        assert groups == {path.stem.removeprefix("test_")}, path.name


@pytest.mark.parametrize("kind", blocks.BLOCK_TYPES)
def test_a_block_has_its_shapes(kind):
    assert hasattr(shapes, kind), f"shapes.py has no function {kind}"
    assert of_kind(kind), f"SHAPES of tests/block_shapes.py has no {kind}"


def native_refusal(block, tensors, **options):
    """What C++ says to a block with other tensors, or with other options."""
    native = cpu.native()
    with pytest.raises(native.NativeError) as refused:
        native.Network("scalar", 0).add(block.kind, tensors, {**block.options(), **options})
    return str(refused.value)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_cpp_expects_what_is_declared(shape):
    """Field by field: each is asked for, in the shape that the declaration gives it."""
    block = shapes.random_block(shape, seeded(84))
    arrays = {name: tensor.numpy() for name, tensor in block.tensors().items()}
    kind, options = block.kind, block.options()
    cpu.native().Network("scalar", 0).add(kind, arrays, options)
    declared = declaration.tensor_shapes(type(block), shape.sizes, shape.options)
    assert declared.keys() == arrays.keys()
    for name, array in arrays.items():
        without = {key: value for key, value in arrays.items() if key != name}
        if (kind, name) == ("attention", "bias"):  # the one tensor that may be left out by itself
            cpu.native().Network("scalar", 0).add(kind, without, options)
        else:
            assert native_refusal(block, without) == f"{kind}: the tensor {name} is missing"
        message = native_refusal(block, {**arrays, name: array[..., None].copy()})
        assert message.startswith(f"{kind}: {name} has the shape ")
        assert message.endswith(f", expected {declared[name]}")
    for name in options:  # what it does not read it would not refuse
        message = native_refusal(block, arrays, **{name: -1})
        assert message == f"{kind}: the option {name} is missing or out of range"
    for name in ("heads", "key_dim", "value_dim"):
        if name in options:
            others = {key: value for key, value in options.items() if key != name}
            with pytest.raises(cpu.native().NativeError, match=f"the option {name} is missing"):
                cpu.native().Network("scalar", 0).add(kind, arrays, others)


def test_every_block_has_its_function_in_the_reference():
    for kind in blocks.BLOCK_TYPES:
        function = getattr(reference, kind)
        assert function is reference.BLOCK_FUNCTIONS[kind]
        assert kind in reference.__all__


def test_annotations_are_read_once():
    """Blocks are checked by the dozen."""
    for block_type in blocks.BLOCK_TYPES.values():
        assert declaration.arguments(block_type) is declaration.arguments(block_type)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_table_of_shapes_is_that_of_the_model(variant):
    model = EfficientFormerV2(VARIANTS[variant], img_size=(160, 224)).eval()
    network = sources.read(model)
    table = network_shapes(VARIANTS[variant], (160, 224))
    sizes = cpu.Engine(network).block_shapes(160, 224)
    size = (3, 160, 224)
    for block, shape, output in zip(network.blocks, table, sizes, strict=True):
        assert block.kind == shape.kind
        assert declaration.changed_options(block).keys() <= shape.options.keys()
        assert shape.options.items() <= block.options().items()
        assert size == (shape.sizes["in"], shape.height, shape.width)
        found = declaration.block_sizes(block)
        assert {name: found[name] for name in shape.sizes} == shape.sizes
        size = output


def test_every_shape_of_the_family_is_listed_once():
    family = shapes.family_shapes()
    assert len({str(s) for s in family.values()}) == len(family)
    for variant, architecture in VARIANTS.items():
        assert all(s in family.values() for s in network_shapes(architecture)), variant
    assert shapes.family_shapes("ffn").keys() == {name for name, s in family.items() if s.kind == "ffn"}


def test_different_shapes_have_different_names():
    made = [*SHAPES.values(), *OPTIONS.values(), *shapes.family_shapes().values()]
    made += shapes.family_shapes(family="mobilenet_v2").values()
    made += [shapes.attention(16, 4, 4, table=table) for table in (None, (3, 4), (4, 3), (4, 4))]
    made += [shapes.attention(16, 4, 4, **{name: 9}) for name in ("heads", "key_dim", "value_dim")]
    for i, shape in enumerate(made):
        assert all(other == shape for other in made[:i] if str(other) == str(shape)), shape


@pytest.mark.parametrize("kind", blocks.BLOCK_TYPES)
def test_random_blocks_are_of_their_shape_and_size(kind):
    """Those of no family are made by tests alone."""
    for shape in [*of_kind(kind), *list(shapes.family_shapes(kind).values())[:3]]:
        block = shapes.random_block(shape, seeded(80))
        found = declaration.block_sizes(block)
        assert {name: found[name] for name in shape.sizes} == shape.sizes
        for name, tensor in block.tensors().items():
            assert bool(tensor.abs().max() > 0), name


@pytest.mark.parametrize("spec", [*SMALL, *SMALL_MOBILE], ids=lambda spec: spec.name)
def test_a_network_can_be_described_and_rebuilt(spec):
    network = sources.read(spec.build(seeded(81)))
    text, tensors = structure.describe(network), outline.tensors(network)
    found = structure.parse(text)
    assert len(found.keys) == len(set(found.keys)) == len(tensors)
    rebuilt = found.rebuild(tensors)
    assert structure.describe(rebuilt) == text
    assert rebuilt.names == network.names
    for a, b in zip(rebuilt.blocks, network.blocks, strict=True):
        assert type(a) is type(b)
        assert a.options() == b.options()
        assert all(x is y for x, y in zip(a.tensors().values(), b.tensors().values(), strict=True))


def two_blocks():
    g = seeded(82)
    return [shapes.random_block(shapes.ffn(8, 16, 3, 3), g), shapes.random_block(shapes.head(8, 5, 3, 3), g)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: ((), (), ()), "needs at least one block"),
        (lambda b: (b, ("a",), ()), "2 blocks have 1 names"),
        (lambda b: (b[::-1], ("a", "b"), (blocks.Feature(1),)), "block 0 is a head; it must be the last"),
        (
            lambda b: ([b[0], shapes.random_block(shapes.head(16, 5, 3, 3), seeded(83))], ("a", "b"), ()),
            r"block 1 \(head\) takes 16 channels, but the block before it returns 8",
        ),
        (lambda b: (b, ("a", "b"), (blocks.Feature(0),)), "a head or returns features"),
        (lambda b: (b[:1], ("a",), ()), "a head or returns features"),
        (lambda b: (b[:1], ("a",), (blocks.Feature(1),)), "a feature names block 1; there are 1 blocks"),
        (lambda b: (b[:1], ("a",), (blocks.Feature(-1),)), "a feature names block -1"),
        (lambda b: (b[:1], ("a",), (blocks.Feature(0),) * 2), "in the order of their blocks, once each"),
        (
            lambda b: (b[:1], ("a",), (blocks.Feature(0, torch.ones(8)),)),
            "needs both scale and shift or neither",
        ),
        (
            lambda b: (b[:1], ("a",), (blocks.Feature(0, torch.ones(8), torch.ones(9)),)),
            r"float32 of shape \(8,\), got torch.float32 of shape \(9,\)",
        ),
    ],
)
def test_networks_that_do_not_fit_together(change, message):
    made, names, features = change(two_blocks())
    with pytest.raises(ModelError, match=message):
        outline.check(blocks.Network(tuple(made), tuple(names), tuple(features)))
