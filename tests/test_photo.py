"""Pictures as models expect them, against timm's own way; tests/users/test_pictures.py has those of users."""

import io
import os
import subprocess
import sys

import pytest
import torch

from effv2_kernels import photo

Image = pytest.importorskip("PIL.Image")


@pytest.mark.parametrize("shape", [(300, 300), (300, 451), (451, 300), (50, 61), (224, 700)])
@pytest.mark.parametrize("channels", [1, 3])
def test_photographs_are_prepared_as_timm_does(shape, channels, generator):
    timm = pytest.importorskip("timm.data", exc_type=ImportError)
    pixels = torch.randint(256, (*shape, 3), dtype=torch.uint8, generator=generator).numpy()
    image = Image.fromarray(pixels)
    statistics = {
        name: photo.of_channels(values, channels)
        for name, values in (("mean", timm.IMAGENET_DEFAULT_MEAN), ("std", timm.IMAGENET_DEFAULT_STD))
    }
    size = (channels, 224, 224)
    transform = timm.create_transform(size, interpolation="bicubic", crop_pct=photo.CROP, **statistics)
    actual = photo.prepare(image, (224, 224), channels)
    assert actual.shape == (1, *size)
    read_by_timm = image if channels == 3 else image.convert("L")
    # Both divide and subtract in float32: two roundings of values up to 2.7.
    torch.testing.assert_close(actual[0], transform(read_by_timm), rtol=0, atol=2 * 2.7 * 2**-23)


def test_photographs_are_turned_upright(generator):
    pixels = torch.randint(256, (40, 60, 3), dtype=torch.uint8, generator=generator).numpy()
    image = Image.fromarray(pixels)
    turned = image.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: rotate by 90 degrees clockwise to view
    stored = io.BytesIO()
    turned.save(stored, format="png", exif=exif)
    upright = photo.prepare(Image.open(stored), (32, 32))
    assert torch.equal(upright, photo.prepare(image, (32, 32)))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1", "I;16"])
def test_photographs_of_any_mode(mode):
    image = Image.new(mode, (40, 50))
    for channels in (1, 3):
        assert photo.prepare(image, (32, 48), channels).shape == (1, channels, 32, 48)


# One that waits for who writes into a pipe would wait for ever.
IRREGULAR = """
import sys
from effv2_kernels import photo
from effv2_kernels.errors import InputError

for path in sys.argv[1:]:
    try:
        photo.read(path, (32, 32))
    except InputError as error:
        print(error)
"""


@pytest.mark.skipif(os.name != "posix", reason="pipes are POSIX's")
def test_what_is_no_regular_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    paths = [str(tmp_path / "pipe"), "/dev/zero"]
    command = [sys.executable, "-c", IRREGULAR, *paths]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    for path, message in zip(paths, done.stdout.splitlines(), strict=True):
        assert message == f"{path!r} is no regular file; give the path of a photograph."
