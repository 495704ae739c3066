"""The table that holds EfficientFormerV2 against MobileNetV2, from rounds that the test knows."""

from bench import families


def test_table():
    seconds = {
        "efficientformerv2_s0": 3.0,
        "efficientformerv2_s1": 4.5,
        "mobilenetv2_100": 2.0,
        "mobilenetv2_140": 4.0,
    }
    rounds = {
        (engine, name): [times * value * 1e-3 * drift for drift in (1.0, 2.0, 1.0)]
        for times, engine in enumerate(families.ENGINES, 1)
        for name, value in seconds.items()
    }
    rows = [
        [cell.strip() for cell in line.strip("| ").split("|")] for line in families.table(rounds).splitlines()
    ]
    assert rows[0] == ["effv2_kernels", "OpenVINO"]
    assert rows[2] == ["S0", "3.00 ms", "6.00 ms"]
    assert rows[6] == ["S0, times MobileNetV2 x1.0", "1.50x", "1.50x"]
    assert [row[1] for row in rows[7:]] == ["0.75x", "1.12x"]
