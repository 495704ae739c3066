"""The roofline has every block with the work and bytes that it has, and what is drawn can be drawn again."""

import json
from dataclasses import asdict

import pytest

from bench import roofline

SIZE, BATCH = 64, 2


@pytest.fixture(scope="module")
def found():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(roofline, "COPIED_BYTES", 4 * roofline.PIECE_BYTES)
        return roofline.measure(
            ["efficientformerv2_s0", "mobilenetv2_035"], BATCH, threads=1, size=SIZE, rounds=1
        )


def test_every_block_by_its_work_and_bytes(found):
    panel, other = found.panels
    assert (other.model, len(other.points)) == ("MobileNetV2 x0.35", 20)
    assert (panel.model, len(panel.points)) == ("S0", 23)
    assert (found.isa, found.dtype, found.threads, found.batch, found.size)[1:] == ("fp32", 1, BATCH, SIZE)
    # 3x3, stride 2: 3 channels to 16 at 32x32 and to 32 at 16x16, each image; a bias for each channel
    macs = BATCH * 9 * (3 * 16 * 32 * 32 + 16 * 32 * 16 * 16)
    weights = 9 * (3 * 16 + 16 * 32) + 16 + 32
    stem = panel.points[0]
    assert (stem.block, stem.input) == ("stem", (3, SIZE, SIZE))
    assert stem.intensity == pytest.approx(
        macs / 4 / (weights + BATCH * (3 * SIZE * SIZE + 32 * 16 * 16)), rel=1e-6
    )
    # 176 channels to 1000 classes, behind a mean over 2x2
    head = panel.points[-1]
    moved = 1000 * 176 + 1000 + BATCH * (176 * 2 * 2 + 1000)
    assert head.intensity == pytest.approx(BATCH * 1000 * 176 / 4 / moved, rel=1e-2)
    assert all(point.gflops > 0 for point in panel.points)
    assert found.peak_gflops > 1
    assert found.gbytes > 0.1


def test_roofs(found):
    ridge = found.peak_gflops / found.gbytes / 2
    assert found.roof(ridge / 4) == pytest.approx(found.peak_gflops / 4)
    assert found.roof(ridge * 4) == found.peak_gflops


def test_json_round_trip(found):
    assert roofline.Roofline.from_json(json.loads(json.dumps(asdict(found)))) == found


def test_it_is_drawn(found, tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "roofline.svg"
    roofline.draw(found, path)
    text = path.read_text()
    for shown in (found.cpu, "attention downsample", "2x2", f"peak, {found.peak_gflops:.0f} GFLOP/s"):
        assert shown in text
