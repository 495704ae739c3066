"""People classify the pictures that they have: huge, 16 bits, CMYK, transparent, turned, animated, broken.

Each counts as the upright 8-bit RGB picture that timm and torchvision would make of it, or ends in one line.
"""

import shutil
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
from models import TINY, randomise

from effv2_kernels import photo
from effv2_kernels.__main__ import main
from effv2_kernels.errors import InputError
from effv2_kernels.reference import VARIANTS, create_model

Image = pytest.importorskip("PIL.Image")
S0 = "efficientformerv2_s0"
SIZE = (32, 48)


def supported(*formats):
    Image.init()
    return all(name in Image.SAVE and name in Image.OPEN for name in formats)


@pytest.fixture
def colours(generator):
    return Image.fromarray(torch.randint(256, (70, 90, 3), dtype=torch.uint8, generator=generator).numpy())


@pytest.fixture
def grey(generator):
    """(70, 90) uint8 with black and white in it."""
    pixels = torch.randint(256, (70, 90), dtype=torch.uint8, generator=generator).numpy()
    pixels[0, :2] = 0, 255
    return pixels


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width, height, bits, colour, rows, *more):
    """A PNG file of rows of packed bytes."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    content = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(*part) for part in [(b"IHDR", header), *more, (b"IDAT", content), (b"IEND", b"")]
    )


def check(path, expected, atol=0.0):
    """The file is read as the picture ``expected``, to ``atol`` grey levels of 255."""
    torch.testing.assert_close(
        photo.read(path, SIZE), photo.prepare(expected, SIZE), rtol=0, atol=atol / 255 / min(photo.STD)
    )


@pytest.mark.situation("classify 16-bit grey PNG, TIFF or PGM", "works: brought to 8 bits")
@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
@pytest.mark.parametrize("low", [0, 1], ids=["upper_byte", "both_bytes"])
def test_16_bit_grey_is_scaled(suffix, low, grey, tmp_path):
    """White is 65535: v * 257 and v * 256 are both what 8-bit v becomes."""
    wide = grey.astype(np.uint16) * (256 + low)
    if suffix == "png":
        rows = [row.astype(">u2").tobytes() for row in wide]
        (tmp_path / "g.png").write_bytes(png(90, 70, 16, 0, rows))
    elif suffix == "pgm":
        (tmp_path / "g.pgm").write_bytes(b"P5\n90 70\n65535\n" + wide.astype(">u2").tobytes())
    else:
        Image.fromarray(wide).save(tmp_path / "g.tif")
    check(tmp_path / f"g.{suffix}", Image.fromarray(grey).convert("RGB"))


@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_16_bit_grey_of_either_byte_order(order, grey, tmp_path):
    header = {"<u2": b"II*\0", ">u2": b"MM\0*"}[order]
    integer, short = order[0] + "I", order[0] + "H"
    pixels = (grey.astype(np.uint16) * 257).astype(order).tobytes()
    entries = [
        (256, 90),
        (257, 70),
        (258, 16),
        (259, 1),
        (262, 1),
        (273, 8),
        (277, 1),
        (278, 70),
        (279, 70 * 180),
    ]
    directory = struct.pack(short, len(entries))
    for tag, value in entries:
        directory += (
            struct.pack(short, tag)
            + struct.pack(short, 4)
            + struct.pack(integer, 1)
            + struct.pack(integer, value)
        )
    content = header + struct.pack(integer, 8 + len(pixels)) + pixels + directory + bytes(4)
    (tmp_path / "g.tif").write_bytes(content)
    check(tmp_path / "g.tif", Image.fromarray(grey).convert("RGB"))


@pytest.mark.parametrize("colour", [2, 4, 6], ids=["rgb", "grey_alpha", "rgba"])
def test_16_bit_colours(colour, generator, tmp_path):
    channels = {2: 3, 4: 2, 6: 4}[colour]
    pixels = torch.randint(256, (70, 90, channels), dtype=torch.uint8, generator=generator).numpy()
    rows = [(row.astype(np.uint16) * 257).astype(">u2").tobytes() for row in pixels]
    (tmp_path / "c.png").write_bytes(png(90, 70, 16, colour, rows))
    kept = pixels[..., :3] if channels > 2 else pixels[..., [0, 0, 0]]
    check(tmp_path / "c.png", Image.fromarray(np.ascontiguousarray(kept)))


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_grey_of_few_bits(bits, generator, tmp_path):
    values = torch.randint(2**bits, (70, 88), generator=generator).numpy().astype(np.uint8)
    each = np.unpackbits(values[..., None], axis=-1)[..., 8 - bits :].reshape(70, -1)
    (tmp_path / "g.png").write_bytes(
        png(88, 70, bits, 0, [row.tobytes() for row in np.packbits(each, axis=1)])
    )
    check(tmp_path / "g.png", Image.fromarray(values * (255 // (2**bits - 1))).convert("RGB"))


@pytest.mark.situation(
    "classify TIFF of floats or 32-bit integers", "refused: no white is fixed; save with 8 or 16 bits"
)
@pytest.mark.parametrize(("dtype", "words"), [(np.float32, "floats"), (np.int32, "32-bit integers")])
def test_values_without_a_white_are_refused(dtype, words, grey, tmp_path):
    Image.fromarray(grey.astype(dtype)).save(tmp_path / "f.tif")
    with pytest.raises(InputError, match=rf"f\.tif.*holds {words}, which have no fixed white: save it with"):
        photo.read(tmp_path / "f.tif", SIZE)


@pytest.mark.situation("classify CMYK, palette, grey, black and white pictures", "works: as the RGB picture")
@pytest.mark.parametrize("mode", ["L", "CMYK", "YCbCr", "P", "1", "HSV"])
def test_modes(mode, colours, tmp_path):
    image = colours.convert(mode)
    if mode in ("CMYK", "YCbCr"):
        image.save(tmp_path / "m.tif")
        path = tmp_path / "m.tif"
    elif mode == "HSV":
        torch.testing.assert_close(photo.prepare(image, SIZE), photo.prepare(image.convert("RGB"), SIZE))
        return
    else:
        image.save(tmp_path / "m.png")
        path = tmp_path / "m.png"
    check(path, image.convert("RGB"), atol=1 if mode == "YCbCr" else 0)


def test_cmyk_jpeg(tmp_path):
    """A JPEG of printers' colours, which many programs write inverted: red, and not its complement."""
    image = Image.new("RGB", (64, 64), (200, 30, 40))
    image.convert("CMYK").save(tmp_path / "print.jpg", quality=100, subsampling=0)
    check(tmp_path / "print.jpg", image, atol=3)


@pytest.mark.situation(
    "classify transparent pictures", "works: the colours stored beneath count, as in timm; a line says so"
)
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "PA", "P_bytes"])
def test_transparency(mode, colours, generator, tmp_path, capsys):
    alpha = Image.fromarray(torch.randint(255, (70, 90), dtype=torch.uint8, generator=generator).numpy())
    options = {}
    if mode == "PA":
        palette = colours.quantize(200)
        image, expected = palette.convert("PA"), palette.convert("RGB")
        image.putalpha(alpha)
        assert torch.equal(photo.prepare(image, SIZE), photo.prepare(expected, SIZE))
        return
    if mode.startswith("P"):
        image = colours.quantize(200)
        expected = image.convert("RGB")
        options = {"transparency": 7 if mode == "P" else bytes(range(200))}
    else:
        image = colours.convert(mode)
        image.putalpha(alpha)
        expected = colours if mode == "RGBA" else colours.convert("L").convert("RGB")
    image.save(tmp_path / "t.png", **options)
    check(tmp_path / "t.png", expected)
    err = capsys.readouterr().err
    assert "t.png': transparent parts count as the colours stored beneath" in err
    assert err.count("\n") == 1


def test_an_alpha_that_hides_nothing_is_not_spoken_of(colours, tmp_path, capsys):
    colours.convert("RGBA").save(tmp_path / "o.png")
    check(tmp_path / "o.png", colours)
    assert capsys.readouterr().err == ""


@pytest.mark.situation("classify pictures that EXIF turns or mirrors", "works: upright")
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("deep", [False, True], ids=["rgb", "16_bit"])
def test_exif(orientation, deep, grey, tmp_path):
    """What is stored is what, turned as EXIF says, gives the picture."""
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # of Image.Transpose: mirror, 180, flip, ...
    upright = Image.fromarray(grey)
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    if deep:
        stored = Image.fromarray(np.asarray(stored).astype(np.uint16) * 257)
    stored.save(tmp_path / "turned.png", exif=exif)
    check(tmp_path / "turned.png", upright.convert("RGB"))


def test_colour_profiles_are_ignored(colours, tmp_path):
    cms = pytest.importorskip("PIL.ImageCms")
    profile = cms.ImageCmsProfile(cms.createProfile("LAB")).tobytes()
    colours.save(tmp_path / "p.png", icc_profile=profile)
    check(tmp_path / "p.png", colours)


@pytest.mark.situation("classify an animation", "works: its first frame")
@pytest.mark.parametrize(
    ("name", "kind"), [("a.gif", "GIF"), ("a.webp", "WEBP"), ("a.png", "PNG"), ("a.tif", "TIFF")]
)
def test_animations(name, kind, colours, tmp_path):
    if not supported(kind):
        pytest.skip(f"this Pillow has no {kind}")
    first = colours.quantize(200) if kind == "GIF" else colours
    others = [Image.new("RGB", colours.size, (i, 0, 0)) for i in range(3)]
    options = {"lossless": True} if kind == "WEBP" else {}
    first.save(tmp_path / name, save_all=True, append_images=others, **options)
    check(tmp_path / name, first.convert("RGB"))


@pytest.mark.parametrize("size", [(1, 1), (1, 90), (90, 1), (3, 2)])
def test_tiny_pictures(size, tmp_path):
    image = Image.new("RGB", size, (10, 200, 30))
    image.save(tmp_path / "tiny.png")
    found = photo.read(tmp_path / "tiny.png", SIZE)
    assert found.shape == (1, 3, *SIZE)
    expected = (torch.tensor([10, 200, 30]) / 255 - torch.tensor(photo.MEAN)) / torch.tensor(photo.STD)
    torch.testing.assert_close(found, expected[None, :, None, None].expand(1, 3, *SIZE))


def huge_png(path):
    """The header of 400 megapixels, with hardly anything behind it."""
    path.write_bytes(png(20000, 20000, 8, 2, [b"\0" * 100]))


def huge_bmp(path):
    path.write_bytes(
        b"BM" + struct.pack("<IHHIIiiHHIIiiII", 200, 0, 0, 54, 40, 30000, 30000, 1, 24, 0, 0, 0, 0, 0, 0)
    )


def thin(path):
    Image.new("RGB", (60000, 1)).save(path)


def truncated_png(path):
    Image.effect_noise((80, 80), 90).save(path)
    path.write_bytes(path.read_bytes()[:2000])


def truncated_jpeg(path):
    Image.effect_noise((80, 80), 90).save(path, "jpeg")
    path.write_bytes(path.read_bytes()[:1500])


def broken_png(path):
    """A chunk whose checksum is wrong, which Pillow calls a syntax error."""
    content = bytearray(png(4, 4, 8, 2, [bytes(12)] * 4, (b"IDAT", b"x"), (b"tEXt", b"a\0b")))
    content[content.index(b"tEXt") + 6] ^= 255
    path.write_bytes(bytes(content))


def bomb_of_text(path):
    """A compressed comment of 100 MB: Pillow refuses it with a ValueError."""
    path.write_bytes(png(4, 4, 8, 2, [bytes(12)] * 4, (b"zTXt", b"a\0\0" + zlib.compress(bytes(10**8)))))


def empty(path):
    path.touch()


def text(path):
    path.write_text("this is no picture")


def heic(path):
    path.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100))


def directory(path):
    path.mkdir()


BROKEN = {
    huge_png: ["20000x20000 = 400 megapixels", "at most 179", "make it smaller"],
    huge_bmp: ["30000x30000 = 900 megapixels"],
    thin: ["60000x1", "too thin", "Crop"],
    truncated_png: ["truncated"],
    truncated_jpeg: ["truncated"],
    broken_png: ["picture.png"],
    bomb_of_text: ["picture.png"],
    empty: ["is empty"],
    text: ["is not a picture"],
    heic: ["HEIC", "save it as JPEG"],
    directory: ["is a directory"],
}


@pytest.mark.situation(
    "classify a truncated or broken file, a text, a directory, a PNG of 400 megapixels",
    "refused: one line that says what to do",
)
@pytest.mark.parametrize("write", BROKEN, ids=lambda write: write.__name__)
def test_what_is_refused_is_refused_in_one_line(write, tmp_path, capsys):
    path = tmp_path / "picture.png"
    write(path)
    size = "4096" if write is thin else "64"
    assert main(["classify", str(path), "--img-size", size]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    for word in [str(path), *BROKEN[write]]:
        assert word in captured.err


def test_the_guard_of_pillow_is_left_as_it_was(tmp_path):
    before = Image.MAX_IMAGE_PIXELS
    huge_png(tmp_path / "huge.png")
    with pytest.raises(InputError):
        photo.read(tmp_path / "huge.png", SIZE)
    assert before == Image.MAX_IMAGE_PIXELS


@pytest.mark.situation("classify a JPEG of hundreds of megapixels", "works: decoded at a smaller size")
def test_large_jpegs_are_decoded_smaller(generator, tmp_path, monkeypatch):
    """With a limit that a small picture is over: the eighth of a smooth picture is nearly the picture."""
    small = Image.fromarray(torch.randint(256, (12, 16, 3), dtype=torch.uint8, generator=generator).numpy())
    image = small.resize((960, 720), Image.Resampling.BICUBIC)
    image.save(tmp_path / "large.jpg", quality=95, subsampling=0)
    whole = photo.read(tmp_path / "large.jpg", SIZE)
    monkeypatch.setattr(photo, "MOST_PIXELS", 400_000)
    reduced = photo.read(tmp_path / "large.jpg", SIZE)
    assert not torch.equal(whole, reduced)  # another way of reduction
    assert float((whole - reduced).abs().mean()) < 0.06
    image.save(tmp_path / "large.png")
    with pytest.raises(InputError, match="megapixels, and at most"):
        photo.read(tmp_path / "large.png", SIZE)


def test_large_pictures_below_the_limit_are_read_whole_and_silently(tmp_path, monkeypatch, capfd):
    """Pillow warns from half of its limit on."""
    Image.new("L", (400, 300), 77).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)
    check(tmp_path / "large.png", Image.new("RGB", (400, 300), (77, 77, 77)))
    assert capfd.readouterr().err == ""


def test_a_shell_sees_one_line(tmp_path):
    """In a process of its own, since Python prints warnings and tracebacks there as a user sees them."""
    huge_png(tmp_path / "huge.png")
    command = [sys.executable, "-m", "effv2_kernels", "classify", str(tmp_path / "huge.png")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_classes_are_those_of_the_plain_picture(grey, generator, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(VARIANTS, S0, TINY.architecture)
    model = randomise(create_model(S0, img_size=32, num_classes=6), generator)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    Image.fromarray(grey).convert("RGB").save(tmp_path / "plain.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    shutil.copy(tmp_path / "deep.png", tmp_path / "no-suffix")
    options = ["--img-size", "32", "--num-classes", "6", "--checkpoint", str(tmp_path / "weights.pth")]
    assert (
        main(["classify", *(str(tmp_path / n) for n in ("plain.png", "deep.png", "no-suffix")), *options])
        == 0
    )
    lines = capsys.readouterr().out.splitlines()
    third = len(lines) // 3
    assert third == 6
    assert lines[1:third] == lines[third + 1 : 2 * third] == lines[2 * third + 1 :]
