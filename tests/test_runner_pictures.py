"""What effv2-run makes of pictures and arrays: what Python makes of them, and an error for what is none."""

import io
import itertools
import random
import sys
import zlib

import numpy as np
import pytest
import runner
import torch
from runner import outputs, run, write

from effv2_kernels import photo

images = pytest.importorskip("PIL.Image")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="effv2-run is built for Linux")

# Of 255: what two decoders of JPEG may make of the same coefficients, and then of resized ones.
JPEG_WORST, JPEG_MEAN = 6, 0.6


@pytest.fixture(scope="module")
def identities(tmp_path_factory):
    """Networks that return their images, by channels."""
    folder = tmp_path_factory.mktemp("saved")
    return {n: runner.save_identity(folder / f"identity-{n}.effv2", n) for n in (1, 3)}


@pytest.fixture(scope="module")
def identity(identities):
    return identities[3]


@pytest.fixture
def prepared(identities, tmp_path):
    """The picture of a file as the runner prepares it."""

    def prepare(path, size=(48, 64), channels=3):
        shape = f"{size[0]}x{size[1]}"
        (y,) = outputs(tmp_path, identities[channels], "--image", path, "--img-size", shape)
        return y

    return prepare


def noise(generator, *shape):
    return torch.randint(256, shape, generator=generator, dtype=torch.uint8).numpy()


def smooth(generator, rows, columns):
    """A picture with gradients and edges, as photographs have them."""
    coarse = torch.rand(1, 3, 7, 9, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, (rows, columns), mode="bicubic").clamp(0, 1)
    fine[:, :, rows // 3 :, : columns // 3] *= 0.3
    return (fine[0].permute(1, 2, 0) * 255).to(torch.uint8).numpy()


# Of larger and smaller pictures, wide, tall, and of the size itself; crops that begin at halves.
@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((300, 451), (224, 224)),
        ((451, 300), (224, 224)),
        ((50, 61), (48, 64)),
        ((7, 900), (48, 64)),
        ((235, 235), (224, 224)),
        ((33, 34), (31, 57)),
        ((1, 1), (32, 32)),
    ],
)
def test_the_bits_of_python(shape, size, prepared, tmp_path, generator):
    image = images.fromarray(noise(generator, *shape, 3))
    image.save(tmp_path / "a.png")
    image.save(tmp_path / "a.ppm")
    for name, channels in itertools.product(("a.png", "a.ppm"), (1, 3)):
        found, expected = prepared(tmp_path / name, size, channels), photo.prepare(image, size, channels)
        # A level more or less is one of 255, over a deviation of 0.225.
        difference = (found - expected).abs().max() * 0.225 * 255
        assert torch.equal(found, expected), f"{name}, {channels}: {float(difference):.2f} levels"


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "mode", ["L", "LA", "RGBA", "P", "1", "I;16", "palette with transparency", "grey PGM"]
)
def test_modes(mode, channels, prepared, tmp_path, generator):
    path = tmp_path / ("a.pgm" if mode == "grey PGM" else "a.png")
    if mode == "I;16":
        levels = torch.randint(65536, (60, 70), generator=generator).numpy().astype(np.uint16)
        image, options = images.fromarray(levels), {}
    elif mode == "palette with transparency":
        image, options = images.fromarray(noise(generator, 60, 70, 3)).quantize(40), {"transparency": 3}
    else:
        kind = "L" if mode == "grey PGM" else mode
        image, options = images.fromarray(noise(generator, 60, 70, 4)).convert(kind), {}
    image.save(path, **options)
    assert torch.equal(prepared(path, channels=channels), photo.read(path, (48, 64), channels))


@pytest.mark.parametrize("options", [{"subsampling": 0}, {"subsampling": 2}, {"progressive": True}], ids=str)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_jpeg(mode, channels, options, prepared, tmp_path, generator):
    """Decoders differ in how they round, and in how they enlarge colours of half the resolution."""
    images.fromarray(smooth(generator, 300, 420)).convert(mode).save(
        tmp_path / "a.jpg", quality=90, **options
    )
    size = (224, 224)
    found = prepared(tmp_path / "a.jpg", size, channels)
    deviations = torch.tensor(photo.of_channels(photo.STD, channels))[:, None, None]
    levels = (found - photo.read(tmp_path / "a.jpg", size, channels)).abs() * deviations * 255
    assert float(levels.max()) <= JPEG_WORST
    assert float(levels.mean()) <= JPEG_MEAN


@pytest.mark.parametrize("kind", ["jpeg", "png"])
def test_pictures_are_turned_upright(kind, prepared, tmp_path, generator):
    # Blocks of 16 x 16, which JPEG gives back as they are, or nearly.
    pixels = np.kron(noise(generator, 3, 5, 3), np.ones((16, 16, 1), np.uint8))
    image = images.fromarray(pixels)
    for orientation, order in itertools.product(range(10), "<>"):
        exif = images.Exif()
        exif.endian = order
        exif[0x010F] = "maker"
        exif[0x0112] = orientation
        path = tmp_path / f"a.{kind}"
        options = {"quality": 95, "subsampling": 0} if kind == "jpeg" else {}
        image.save(path, exif=exif, **options)
        found, expected = prepared(path), photo.read(path, (48, 64))
        assert float((found - expected).abs().max()) < 0.1, f"orientation {orientation}, {order}"
    assert not torch.equal(photo.prepare(image, (48, 64)), photo.prepare(image.rotate(180), (48, 64)))


def test_exif_that_leads_nowhere(prepared, tmp_path, generator):
    """Nothing of it is trusted."""
    image = images.fromarray(noise(generator, 40, 50, 3))
    expected = photo.prepare(image, (48, 64))
    for tiff in (
        b"",
        b"II*\0",
        b"II*\0\xff\xff\xff\xff",
        b"II*\0\x08\0\0\0\xff\xff",
        b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03",
        b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x01\0\x06\0\0",
        b"XX*\0\x08\0\0\0",
    ):
        image.save(tmp_path / "a.png", exif=tiff)
        assert torch.equal(prepared(tmp_path / "a.png"), expected)


def test_the_classes_of_a_photograph_are_those_of_python(tmp_path):
    """To a part of a thousand: the picture is another JPEG decoder's."""
    pytest.importorskip("sklearn")
    from sklearn import datasets

    from effv2_kernels import create_model, load, optimize, save
    from effv2_kernels.shapes import randomise

    torch.manual_seed(1)
    model = create_model("efficientformerv2_s0", num_classes=20, img_size=96)
    randomise(model)
    save(optimize(model.eval()), tmp_path / "a.effv2")
    image = images.fromarray(datasets.load_sample_image("china.jpg"))
    image.save(tmp_path / "a.jpg", quality=92)
    (found,) = outputs(tmp_path, tmp_path / "a.effv2", "--image", tmp_path / "a.jpg", "--img-size", 96)
    expected = load(tmp_path / "a.effv2")(photo.read(tmp_path / "a.jpg", (96, 96)))
    assert float((found - expected).norm() / expected.norm()) < 1e-3


def encoded(kind, image, **options):
    stored = io.BytesIO()
    image.save(stored, format=kind, **options)
    return stored.getvalue()


def png_of(columns, rows):
    """The head of a PNG of this size, and nothing else."""

    def chunk(name, data):
        return len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")

    head = columns.to_bytes(4, "big") + rows.to_bytes(4, "big") + b"\x08\x02\0\0\0"
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


PICTURES = {
    "empty": (b"", "is empty"),
    "text": (b"this is no picture", "is not a picture that can be read; give a JPEG, PNG or PPM file"),
    "HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0", "is a HEIC picture"),
    "a GIF": (b"GIF89a\x01\0\x01\0\0\0\0;", "is not a picture that can be read"),
    "a network": (b"\x08\0\0\0\0\0\0\0{}      ", "is not a picture that can be read"),
    "a JPEG's first bytes": (b"\xff\xd8\xff\xe0", "may be truncated"),
    "a large PNG": (png_of(16384, 16384), "pixels; expected at least 1 and at most 178956970"),
    "a huge PNG": (png_of(2**31 - 1, 2**31 - 1), "cannot be decoded"),
    "a PNG without pixels": (png_of(20, 20), "cannot be decoded"),
    "a thin picture": (b"P6 900000 1 255\n" + bytes(2700000), "crop it"),
}


@pytest.mark.parametrize("name", PICTURES)
def test_what_is_no_picture(name, identity, tmp_path):
    data, words = PICTURES[name]
    (tmp_path / "a.jpg").write_bytes(data)
    run(identity, "--image", tmp_path / "a.jpg").refused(runner.INPUT, words)


@pytest.mark.parametrize("kind", ["jpeg", "progressive jpeg", "png", "ppm"])
def test_truncated_pictures(kind, identity, tmp_path, generator):
    """At any byte: what is missing is never taken for black or grey."""
    options = {"progressive": True} if kind.startswith("progressive") else {}
    data = encoded(kind.split()[-1], images.fromarray(noise(generator, 24, 30, 3)), **options)
    chance = random.Random(generator.initial_seed())
    # A PNG is whole without the check sum of its last chunk, and a JPEG without its last mark is not.
    last = len(data) - (5 if kind == "png" else 1)
    for end in (last, *(chance.randrange(1, last) for _ in range(12))):
        (tmp_path / "a").write_bytes(data[:end])
        done = run(identity, "--image", tmp_path / "a", "--img-size", 32)
        done.refused(runner.INPUT, str(tmp_path / "a"))


def test_a_jpeg_whose_tables_are_too_large(identity, tmp_path, generator):
    """The decoder would write them beyond its memory; in any place where it looks for tables."""
    data = encoded("jpeg", images.fromarray(noise(generator, 24, 30, 3)), optimize=False)
    first, scan = data.index(b"\xff\xc4"), data.index(b"\xff\xda")
    length = int.from_bytes(data[scan + 2 : scan + 4], "big")
    small = b"\0" + bytes([0, 1, *[0] * 14]) + b"\5"
    large = b"\0" + bytes([0, 0, 255, 2, *[0] * 12]) + bytes(257)
    for table in (large, small + large):
        segment = b"\xff\xc4" + (2 + len(table)).to_bytes(2, "big") + table
        short = b"\xff\xc4" + (2 + len(table) - len(large) + 1).to_bytes(2, "big") + table
        for at in (2, first, scan, scan + 2 + length, len(data) - 2):
            for inserted in (segment, short):
                (tmp_path / "a.jpg").write_bytes(data[:at] + inserted + data[at:])
                done = run(identity, "--image", tmp_path / "a.jpg")
                done.refused(runner.INPUT, "a Huffman table of it has too many codes")


@pytest.mark.parametrize("kind", ["jpeg", "png", "ppm"])
def test_mutated_pictures(kind, identity, tmp_path, generator):
    """They are decoded, or refused in its own words."""
    data = encoded(kind, images.fromarray(noise(generator, 24, 30, 3)))
    chance = random.Random(generator.initial_seed())
    for _ in range(25):
        at = chance.randrange(min(len(data), 700) if chance.random() < 0.7 else len(data))
        changed = data[:at] + bytes([chance.randrange(256)]) + data[at + chance.randrange(3) :]
        (tmp_path / "a").write_bytes(changed)
        done = run(identity, "--image", tmp_path / "a", "--img-size", 32)
        if done.code:
            done.refused(runner.INPUT, str(tmp_path / "a"))


def npy(array, **options):
    stored = io.BytesIO()
    np.lib.format.write_array(stored, array, **options)
    return stored.getvalue()


X = np.arange(3 * 4 * 5, dtype=np.float32).reshape(1, 3, 4, 5)


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_arrays_of_every_version(version, identity, tmp_path):
    (tmp_path / "x.npy").write_bytes(npy(X, version=version))
    (y,) = outputs(tmp_path, identity, "--input", tmp_path / "x.npy")
    assert torch.equal(y, torch.from_numpy(X))


ARRAYS = {
    "empty": (b"", "it is no .npy file"),
    "text": (b"these are no numbers", "it is no .npy file"),
    "version 4": (npy(X).replace(b"NUMPY\1", b"NUMPY\4"), "it has version 4"),
    "truncated": (npy(X)[:-1], "needs more: it is truncated"),
    "oversized": (npy(X) + b"\0", "needs fewer"),
    "within the header": (npy(X)[:40], "it ends within its header"),
    "before the header": (npy(X)[:11], "it ends within its header"),
    "float64": (npy(X.astype("f8")), "its dtype is '<f8'; expected '<f4' or '<f2'"),
    "uint8": (npy(X.astype("u1")), "its dtype is '|u1'; expected '<f4' or '<f2'"),
    "big-endian": (npy(X.astype(">f4")), "its dtype is '>f4'; expected '<f4' or '<f2'"),
    "Fortran order": (npy(np.asfortranarray(X)), "it is in Fortran order; save numpy.ascontiguousarray(x)"),
    "objects": (npy(np.array([{}, []], dtype=object)), "its dtype is '|O'"),
    "records": (npy(np.zeros(2, dtype=[("a", "<f4")])), "there is no string"),
    "two dimensions": (npy(X[0, 0]), "has the shape 4x5; expected (N, C, H, W) or (C, H, W) of 3 channels"),
    "five dimensions": (npy(X[None]), "has the shape 1x1x3x4x5; expected (N, C, H, W)"),
    "four channels": (
        npy(np.zeros((1, 4, 5, 5), np.float32)),
        "has the shape 1x4x5x5; expected (N, C, H, W)",
    ),
    "channels last": (npy(np.zeros((5, 5, 3), np.float32)), "has the shape 5x5x3; expected"),
    "no images": (npy(X[:0]), "has the shape 0x3x4x5; expected"),
    "a scalar": (npy(np.float32(1)), "has the shape (); expected"),
    "an endless shape": (
        npy(X).replace(b"(1, 3, 4, 5)", b"(9223372036854775807, 9223372036854775807, 1)"),
        "cannot",
    ),
    "a size of 30 digits": (
        npy(X).replace(b"(1, 3, 4, 5)", b"(999999999999999999999999999999,)"),
        "a size is too large",
    ),
    "a negative size": (npy(X).replace(b"(1, 3, 4, 5)", b"(-1, 3, 4, 5) "), "a size is no number"),
    "a key twice": (npy(X).replace(b"'shape'", b"'descr'"), "it has 'descr' once too often"),
    "a key too few": (npy(X).replace(b"'fortran_order': False, ", b" " * 24), "it lacks"),
    "code": (npy(X).replace(b"False", b"exit("), "neither True nor False"),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_that_are_refused(name, identity, tmp_path):
    data, words = ARRAYS[name]
    (tmp_path / "x.npy").write_bytes(data)
    run(identity, "--input", tmp_path / "x.npy").refused(runner.INPUT, str(tmp_path / "x.npy"), words)


def test_arrays_of_halves_are_read_exactly(identity, tmp_path):
    every = np.arange(65536, dtype=np.uint16).view(np.float16).reshape(1, 1, 256, 256)
    write(tmp_path / "x.npy", torch.from_numpy(every.repeat(3, axis=1)))
    (y,) = outputs(tmp_path, identity, "--input", tmp_path / "x.npy")
    # The network multiplies with zeros, too: what is not finite spreads.
    finite = np.isfinite(every[0, 0])
    assert np.array_equal(y.numpy()[0, 0][finite], every[0, 0][finite].astype(np.float32))


def test_values_are_rounded_to_the_networks_dtype(identity, tmp_path, generator):
    """To bf16, to the nearest, ties to even; what it does not hold is refused."""
    x = torch.randn(1, 3, 40, 40, generator=generator) * torch.logspace(-30, 30, 40)
    x[0, :, 0, :4] = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, -(1 + 2**-8), 1 + 2**-8 + 2**-20])
    how = ("--isa", "avx2", "--dtype", "bf16")
    done = run(identity, *how, "--img-size", 32)
    if done.code == runner.UNAVAILABLE:
        pytest.skip(done.err)
    (y,) = outputs(tmp_path, identity, "--input", write(tmp_path / "x.npy", x), *how)
    assert torch.equal(y, x.bfloat16().float())
    x[0, 0, 3, 3] = torch.finfo(torch.float32).max
    run(identity, *how, "--input", write(tmp_path / "x.npy", x)).refused(
        runner.INPUT, "beyond what bf16 holds; use --dtype fp32"
    )
