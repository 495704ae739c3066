"""Real input: the small trained network reads scikit-learn's handwritten digits."""

import pytest
import torch

from effv2_kernels import cpu, data, optimize, sources
from effv2_kernels.reference import run

pytest.importorskip("sklearn")
pytest.importorskip("safetensors")

METADATA = data.digits_metadata()


@pytest.fixture(scope="module")
def test_set():
    _, (images, classes) = data.digits_split()
    return images, classes


@pytest.fixture(scope="module")
def eager(test_set):
    model = data.load_digits_network()
    with torch.inference_mode():
        return model, model(test_set[0])


def right(logits, test_set):
    return int((logits.argmax(1) == test_set[1]).sum())


def test_split_is_fixed_and_apart(test_set):
    (train_images, train_classes), (images, classes) = data.digits_split()
    assert len(images) == len(classes) == METADATA["test_images"]
    assert len(train_images) == len(train_classes) == 1797 - METADATA["test_images"]
    assert images.shape[1:] == (1, 64, 64)
    assert images.dtype == torch.float32
    assert float(images.abs().max()) <= 1
    assert torch.equal(images, test_set[0])
    assert classes.unique().numel() == train_classes.unique().numel() == 10


def test_file_is_small_and_the_network_good():
    assert data.DIGITS_FILE.stat().st_size <= 2_000_000
    assert METADATA["right"] >= 0.97 * METADATA["test_images"]


def test_accuracy_is_what_training_printed(eager, test_set):
    assert right(eager[1], test_set) == METADATA["right"]


def test_folded_blocks_read_the_same_classes(eager, test_set):
    with torch.inference_mode():
        logits = run(sources.read(eager[0]), test_set[0])
    assert torch.equal(logits.argmax(1), eager[1].argmax(1))


@pytest.mark.parametrize("isa", cpu.native().available_isas())
def test_optimised_network_reads_the_same_classes(isa, eager, test_set):
    fast = optimize(eager[0], isa=isa)
    with torch.inference_mode():
        logits = fast(test_set[0])
    assert torch.equal(logits.argmax(1), eager[1].argmax(1))
    assert right(logits, test_set) == METADATA["right"]
