"""The list of tasks of a network in one launch: who waits for whom, against all rows that tiles read."""

from collections import Counter, defaultdict

import pytest
import torch
from checks import seeded
from emulated_cuda import image_of, kernels_of_cuda, needs_emulator, packed_case
from models import SMALL, SMALL_MOBILE, TINY, Spec

from effv2_kernels import create_model, shapes, sources
from effv2_kernels.families.efficientformer_v2 import Architecture
from effv2_kernels.gpu.launch import blocks_of

pytestmark = needs_emulator


# --- What tiles make and read, pixel by pixel: the kernels' own words for it are csrc/cuda/reach.h -------


def rows_of_pixels(pixels, width):
    return {pixel // width for pixel in pixels}


def under_window(rows, made_height, height, kernel, stride):
    """Rows of all images, one below the other, under windows around rows of the map that is made."""
    found = set()
    for row in rows:
        image, at = divmod(row, made_height)
        for tap in range(kernel):
            below = at * stride - kernel // 2 + tap
            if 0 <= below < height:
                found.add(image * height + below)
    return found


def of_images(images, height):
    return {image * height + row for image in images for row in range(height)}


def product(a, name, tile):
    tall, wide = map(int, name.split("x"))
    first = tile // blocks_of(a["outputs"], wide) * tall
    pixels = range(first, min(first + tall, a["images"] * a["y_height"] * a["y_width"]))
    made = rows_of_pixels(pixels, a["y_width"])
    reads = {"residual": made} if a["residual"] is not None else {}
    if a["source"] == "pixels":
        return made, {**reads, "x": made}
    if a["source"] == "enlarged":
        under = set()
        for row in made:
            image, at = divmod(row, a["y_height"])
            # Pixels' centres are half a pixel from their edges.
            lower = (at + 0.5) / 2 - 0.5
            for near in (int(lower // 1), int(lower // 1) + 1):
                under.add(image * a["height"] + min(max(near, 0), a["height"] - 1))
        return made, {**reads, "x": under}
    under = under_window(made, a["y_height"], a["height"], a["kernel"], a["stride"])
    return made, {**reads, "x": under, **({"u": made} if a["source"] == "joined" else {})}


def depthwise(a, _, tile):
    groups, runs = a["channels"] // 4, blocks_of(a["y_width"], 7)
    threads = range(tile * 256, min(tile * 256 + 256, a["images"] * a["y_height"] * runs * groups))
    made = {thread // groups // runs for thread in threads}
    return made, {"x": under_window(made, a["y_height"], a["height"], 3, a["stride"])}


def tiled(a, blocks, tile):
    """Rows of y in a tile of pixels, where tiles go along rows, then down, then through the images."""
    across, down = (
        blocks_of(a["y_width"], blocks["tile_width"]),
        blocks_of(a["y_height"], blocks["tile_height"]),
    )
    image, top = tile // across // down, tile // across % down * blocks["tile_height"]
    end = min(top + blocks["tile_height"], a["y_height"])
    return {image * a["y_height"] + row for row in range(top, end)}


def ffn(a, blocks, tile):
    made = tiled(a, blocks, tile // blocks["splits"])
    reads = {"x": under_window(made, a["y_height"], a["height"], 3, a["stride"])}
    return made, {**reads, "residual": made} if a["residual"] is not None else reads


def image_conv(a, blocks, tile):
    made = tiled(a, blocks, tile)
    return made, {"x": under_window(made, a["y_height"], a["height"], 3, 2)}


def stem(a, blocks, tile):
    made = tiled(a, blocks, tile)
    between = under_window(made, a["y_height"], a["mid_height"], 3, 2)
    return made, {"x": under_window(between, a["mid_height"], a["height"], 3, 2)}


def attention(a, blocks, tile, heads):
    tokens = a["height"] * a["width"]
    place, group = divmod(tile // (8 // heads), blocks_of(tokens, 16 * blocks["query_tiles"]))
    first = group * 16 * blocks["query_tiles"]
    queries = range(first, min(first + 16 * blocks["query_tiles"], tokens))
    made = {place * a["height"] + query // a["width"] for query in queries}
    return made, {"qkv": of_images([place], a["height"])}


def attention_downsample(a, _, tile):
    queries = a["query_height"] * a["query_width"]
    image, group = divmod(tile // 4, blocks_of(queries, 64))
    of_tile = range(group * 64, min(group * 64 + 64, queries))
    made = {image * a["query_height"] + query // a["query_width"] for query in of_tile}
    return made, {"q": made, "kv": of_images([image], a["height"])}


def mean(a, _, tile):
    of_image = a["channels"] // 8
    threads = range(tile * 256, min(tile * 256 + 256, a["images"] * of_image))
    images = {thread // of_image for thread in threads}
    return images, {"x": of_images(images, a["height"])}


def feature(a, _, tile):
    of_row = a["width"] * (a["channels"] // 8)
    threads = range(tile * 256, min(tile * 256 + 256, a["images"] * a["height"] * of_row))
    made = {thread // of_row for thread in threads}
    return made, {"x": made}


def reach(launch, chosen, tile):
    """(rows of y that a tile makes, rows that it reads of each argument)."""
    a, kind = launch.arguments, launch.kind
    if kind == "product":
        return product(a, chosen.name, tile)
    if kind == "attention":
        return attention(a, chosen.blocks, tile, int(chosen.name.split()[0]))
    return globals()[kind](a, chosen.blocks, tile)


# --- The list --------------------------------------------------------------------------------------------


def check_schedule(launches, image, outputs, blocks=3):
    from effv2_kernels.cuda.network import OneLaunch

    one = OneLaunch(launches, image, outputs, torch.device("cpu"), blocks)
    tasks = list(one.tasks)
    # In the order of the launches, and each tile of each of them once.
    listed = [(task.launch, task.tile) for task in tasks]
    counts = [
        launch.step(tile, {id(m): 0 for m in launch.maps}).extent.tiles
        for launch, tile in zip(launches, one.tiles, strict=True)
    ]
    assert listed == [(i, tile) for i, count in enumerate(counts) for tile in range(count)]

    raised = Counter(flag for task in tasks for flag in task.raises)
    assert set(raised) == set(range(len(raised)))
    parts = torch.frombuffer(bytearray(one._schedule.parts), dtype=torch.int32).tolist()
    assert parts == [raised[flag] for flag in range(len(parts))]
    assert one.control_bytes == 8 + 4 * len(parts)

    last = {flag: position for position, task in enumerate(tasks) for flag in task.raises}
    makers = defaultdict(list)  # of a row of a map: the flags of each tile that makes a part of it
    for position, task in enumerate(tasks):
        launch, waits = launches[task.launch], {flag for flags in task.waits for flag in flags}
        assert all(last[flag] < position for flag in waits), "waits for what comes later"
        made, reads = reach(launch, one.tiles[task.launch], task.tile)
        for name, rows in reads.items():
            m = launch.arguments[name]
            if m is image:
                continue
            for row in rows:
                assert makers[id(m), row], f"{launch.name} reads row {row} of {name}, which nobody has made"
                for flags in makers[id(m), row]:
                    what = f"tile {task.tile} of launch {task.launch}, {launch.name}: row {row} of {name}"
                    assert waits & set(flags), what
        for row in made:
            makers[id(launch.output), row].append(task.raises)
    for launch in launches:
        m = launch.output
        assert all(makers[id(m), row] for row in range(m.images * m.height)), f"{launch.name} leaves rows"


def planned(network, images):
    from effv2_kernels.gpu.planner import Images, Planner

    planner = Planner(network, kernels_of_cuda(), torch.float16, torch.device("cpu"))
    return planner.outline(Images.like(images, "ieee"))


ODD = Spec("odd", Architecture((24, 40, 72, 104), (1, 1, 2, 2), (1.0, 2.0, 3.0, 2.0), (2, 1)), (72, 104))


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("spec", [TINY, SMALL[0], ODD, SMALL_MOBILE[0]], ids=lambda spec: spec.name)
def test_small_networks(spec, batch):
    plan = planned(sources.read(spec.build(seeded(41))), spec.images(seeded(42), batch))
    check_schedule(plan.launches, plan.image, plan.outputs)


@pytest.mark.parametrize(("variant", "batch"), [("s0", 1), ("s0", 2), ("l", 1)])
def test_published_networks(variant, batch):
    network = sources.read(create_model(f"efficientformerv2_{variant}"))
    plan = planned(network, torch.zeros(batch, 3, 224, 224))
    check_schedule(plan.launches, plan.image, plan.outputs)


def test_features():
    options = {"features_only": True, "num_classes": 0, "feature_norms": (True, False, True, False)}
    network = sources.read(SMALL[0].build(seeded(43), **options))
    plan = planned(network, SMALL[0].images(seeded(44), 2))
    assert {"feature"} < {launch.kind for launch in plan.launches}
    check_schedule(plan.launches, plan.image, plan.outputs)


@pytest.mark.parametrize(
    "shape",
    [
        shapes.ffn(16, 40, 33, 30),
        shapes.ffn(16, 40, 33, 30, out=24, stride=2, residual=0),
        shapes.attention(16, 13, 11),
        shapes.attention(16, 13, 11, stride=2),
        shapes.attention_downsample(16, 24, 19, 17),
        shapes.conv(16, 24, 21, 13, stride=2),
        shapes.conv(16, 24, 21, 13),
        shapes.head(16, 10, 7, 7),
    ],
    ids=str,
)
def test_blocks_of_any_size(shape):
    """Behind another block, so that each waits for something."""
    packed, x, _ = packed_case(shape, torch.float16, 3)
    before, _, _ = packed_case(
        shapes.conv(shape.sizes["in"], shape.sizes["in"], shape.height, shape.width), torch.float16
    )
    image = image_of(x)
    first = before.plan(image, "ieee")
    launches = [*first, *packed.plan(first[-1].output, "ieee")]
    check_schedule(launches, image, [launches[-1].output])


def test_a_shape_that_the_one_launch_has_not():
    from effv2_kernels import _cuda

    packed, x, _ = packed_case(shapes.conv(16, 24, 5, 6), torch.float16)
    (launch,) = packed.plan(image_of(x), "ieee")
    largest = next(tile for tile in launch.tiles if tile.name == "128x64")
    step = launch.step(largest, {id(m): 1 << _cuda.OFFSET_BITS for m in launch.maps})
    assert not _cuda.has_shape(step)
    with pytest.raises(ValueError, match=r"step 0 \(product\) has a shape that the one launch has not"):
        _cuda.Schedule([step])
