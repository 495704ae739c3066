"""Commands in this process, and what they are given."""

import pytest
import torch

import effv2_kernels
from effv2_kernels import shapes
from effv2_kernels.__main__ import main

# The smallest image whose last stage still has more than one position.
SMALL = ["--img-size", "64"]


@pytest.fixture
def picture(tmp_path, generator):
    """A picture of noise that is neither square nor of the model's size."""
    pixels = torch.randint(256, (90, 130, 3), generator=generator, dtype=torch.uint8)
    path = tmp_path / "noise.png"
    pytest.importorskip("PIL.Image").fromarray(pixels.numpy()).save(path)
    return path


@pytest.fixture
def checkpoint(tmp_path, generator):
    """(path, model) of a network with trained-like weights, whose logits differ from class to class."""
    torch.manual_seed(generator.initial_seed())
    model = effv2_kernels.create_model("efficientformerv2_s0", img_size=64, num_classes=12)
    shapes.randomise(model)
    path = tmp_path / "weights.pth"
    torch.save(model.state_dict(), path)
    return path, model


def run(capsys, *arguments):
    """(exit code, standard output, standard error) of one command."""
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err
