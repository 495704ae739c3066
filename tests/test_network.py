"""Whole networks in one native call, against the float64 reference."""

import dataclasses
from functools import lru_cache

import pytest
import torch
from checks import (
    ISAS,
    NETWORK_BOUND,
    Target,
    as_network,
    assert_block,
    assert_close,
    check_bad_image,
    exact,
    exact_network,
    layouts,
    run_engine,
    same_bits,
    seeded,
)
from models import SMALL, SMALL_MOBILE, Spec, randomise

from effv2_kernels import blocks, cpu, optimize, sources
from effv2_kernels.reference import VARIANTS

# Images of each variant: squares and rectangles, below and above 224.
IMAGES = [
    ("s0", 96),
    ("s0", (160, 224)),
    ("s0", 224),
    ("s0", 256),
    ("s0", 384),
    ("s1", (160, 224)),
    ("s1", 224),
    ("s2", 96),
    ("s2", 224),
    ("l", 96),
    ("l", 224),
]
FAMILY = {
    f"{v}-{s}": Spec(v, VARIANTS[f"efficientformerv2_{v}"], img_size=s, num_classes=1000) for v, s in IMAGES
}

ALL = {**{spec.name: spec for spec in (*SMALL, *SMALL_MOBILE)}, **FAMILY}


def like_trained(model, g):
    """Random weights of the size that training leaves, so that activations stay of order 1."""
    randomise(model, g)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("attention_biases"):
                value /= 3
            elif ".talking_head" in name:
                # Near the identity; the second bias adds that share of the sum of all values.
                value *= 0.3 if value.ndim == 4 else 0.03
                if value.ndim == 4:
                    value[range(8), range(8)] += 1
    return model


@lru_cache(maxsize=4)
def case(name, batch=1):
    """(network, images, float64 logits) with weights like trained ones."""
    g = seeded(len(name) + batch)
    spec = dataclasses.replace(ALL[name], layer_scale_init=1e-5)  # without, activations grow block by block
    network = sources.read(like_trained(spec.build(g), g))
    images = spec.images(g, batch)
    return network, images, exact_network(network, images)[0]


@lru_cache(maxsize=4)
def hard_case(name):
    """(network, images) with large weights, statistics, scales and biases."""
    g = seeded(len(name))
    spec = ALL[name]
    return sources.read(spec.build(g)), spec.images(g, 2)


@lru_cache(maxsize=8)
def feature_case(norms, resize_bias=False, size=(64, 96)):
    g = seeded(11)
    options = {"features_only": True, "feature_norms": norms, "resize_bias": resize_bias}
    network = sources.read(like_trained(SMALL[0].build(g, img_size=(64, 96), **options), g))
    images = torch.randn(2, 3, *size, generator=g)
    return network, images, exact_network(network, images)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", ALL)
def test_logits(name, isa):
    network, images, expected = case(name)
    (logits,) = run_engine(cpu.Engine(network, isa), images)
    assert_close(logits, expected, NETWORK_BOUND, f"{name} on {isa}")


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", [*(spec.name for spec in (*SMALL, *SMALL_MOBILE)), "s0-224"])
def test_large_weights(name, isa):
    """Block by block, each from what the engine made of the block before; the network is that chain.

    Activations of such a network grow and cancel, and what one block adds to the error another magnifies a
    hundredfold: no bound of the network's outputs holds for all weights.
    """
    network, images = hard_case(name)
    (logits,) = run_engine(cpu.Engine(network, isa), images)
    x = images
    for block, block_name in zip(network.blocks, network.names, strict=True):
        (y,) = run_engine(cpu.Engine(as_network(block), isa), x)
        assert_block(y, block, x, exact(block, x), Target(isa), f"{block_name} of {name} on {isa}")
        x = y
    assert torch.equal(logits, x), f"{name} on {isa}"


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("batch", [1, 2, 3, 17])
def test_batches(batch, isa):
    network, images, expected = case("every_part_once", batch)
    (logits,) = run_engine(cpu.Engine(network, isa), images)
    assert_close(logits, expected, NETWORK_BOUND, f"batch {batch} on {isa}")


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("norms", [None, (True, False, True, True)])
def test_feature_maps(norms, isa):
    network, images, expected = feature_case(norms)
    outputs = run_engine(cpu.Engine(network, isa), images)
    assert len(outputs) == 4
    for i, (y, e) in enumerate(zip(outputs, expected, strict=True)):
        assert_close(y, e, NETWORK_BOUND, f"feature {i} on {isa}")
        assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("size", [(64, 96), (65, 97), (50, 130), (224, 96), (33, 16)])
def test_features_of_any_size_with_a_resized_bias(size, isa):
    network, images, expected = feature_case(None, True, size)
    outputs = run_engine(cpu.Engine(network, isa), images)
    for i, (y, e) in enumerate(zip(outputs, expected, strict=True)):
        assert_close(y, e, NETWORK_BOUND, f"feature {i} of {size} on {isa}")


def test_some_features_only():
    """Fewer maps than stages, and one in the middle of a stage."""
    network, images, _ = feature_case(None)
    network = blocks.Network(
        network.blocks, network.names, (blocks.Feature(2), network.features[1], network.features[3])
    )
    expected = exact_network(network, images)
    outputs = run_engine(cpu.Engine(network), images)
    assert len(outputs) == 3
    for y, e in zip(outputs, expected, strict=True):
        assert_close(y, e, NETWORK_BOUND)


@pytest.mark.parametrize("isa", ISAS)
def test_one_engine_takes_sizes_in_any_order(isa):
    """The arena grows and is used again by smaller images and batches."""
    network, _, _ = feature_case(None, True)
    engine = cpu.Engine(network, isa)
    g = seeded(12)
    for batch, height, width in [
        (1, 32, 32),
        (3, 96, 64),
        (1, 32, 32),
        (2, 33, 130),
        (5, 16, 16),
        (1, 200, 40),
    ]:
        images = torch.randn(batch, 3, height, width, generator=g)
        for y, e in zip(run_engine(engine, images), exact_network(network, images), strict=True):
            assert_close(y, e, NETWORK_BOUND, f"{batch} of {height}x{width} on {isa}")


@pytest.mark.parametrize("isa", ISAS)
def test_strided_images(isa):
    network, images, expected = case("odd_map_not_square", 3)
    engine = cpu.Engine(network, isa)
    (contiguous,) = run_engine(engine, images)
    assert_close(contiguous, expected, NETWORK_BOUND, isa)
    for name, view in layouts(images):
        (logits,) = run_engine(engine, view)
        assert torch.equal(logits, contiguous), f"{name} on {isa}"
    (logits,) = run_engine(engine, images[:1].expand(3, -1, -1, -1))
    assert torch.equal(logits[0], logits[2])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_values_that_are_not_finite_stay_in_their_image(value, isa):
    network, images, _ = feature_case(None, True, (96, 80))
    images = images.repeat(2, 1, 1, 1)[:3]
    engine = cpu.Engine(network, isa)
    expected = check_bad_image(engine, network, images, value, f"{value} on {isa}")
    assert bool(expected[0][1].isfinite().any())


@pytest.mark.parametrize("isa", ISAS)
def test_pytorch_that_gives_poisoned_memory(monkeypatch, isa):
    """``torch.empty`` promises nothing: whatever it holds must be overwritten."""
    spec = SMALL[0]
    g = seeded(13)
    model = spec.build(g)
    fast = optimize(model, isa=isa)
    images = spec.images(g, 2)
    expected = fast(images)
    empty = torch.empty

    def poisoned(*args, **kwargs):
        return empty(*args, **kwargs).fill_(torch.nan)

    monkeypatch.setattr(torch, "empty", poisoned)
    assert bool(torch.empty(1).isnan())
    assert same_bits(fast(images), expected)
    assert bool(fast(images).isfinite().all())
