"""docs/format.md says of files what the code writes and reads."""

import json
import re
from pathlib import Path

import pytest
import torch
from checks import seeded
from models import SMALL

from effv2_kernels import optimize, save, structure
from effv2_kernels.errors import ModelError

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "format.md").read_text(encoding="utf-8")


def test_the_metadata(tmp_path):
    safetensors = pytest.importorskip("safetensors")
    stored = {"fp32": {torch.float32}, "fp16": {torch.float32, torch.float16}}
    keys = re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)
    for dtype, expected in stored.items():
        labels = [f"name {i}" for i in range(10)]
        save(optimize(SMALL[0].build(seeded(80))), tmp_path / "a.effv2", dtype=dtype, labels=labels)
        with safetensors.safe_open(tmp_path / "a.effv2", "pt") as file:
            metadata = file.metadata()
            dtypes = {file.get_tensor(key).dtype for key in file.keys()}  # noqa: SIM118
        assert sorted(metadata) == sorted(key for key in keys if key != "dtype" or dtype != "fp32")
        for key in metadata.keys() - {"structure", "labels"}:
            (said,) = re.findall(rf"^\| `{key}` \| (.*) \|$", PAGE, re.MULTILINE)
            assert f"`{metadata[key]}`" in said
        assert dtypes == expected


def test_the_example():
    (text,) = re.findall(
        r"<!-- structure:begin -->\n```json\n(.*)```\n<!-- structure:end -->", PAGE, re.DOTALL
    )
    names = structure.parse(text).keys
    assert names[0] == "blocks.0.fc1_weight"
    assert "blocks.1.mix1_weight" in names
    data = json.loads(text)
    assert structure.parse(text).features == tuple((f["block"], f["scaled"]) for f in data["features"])
    # A misspelt field or kind would not do.
    data["blocks"][0]["kind"] = "fffn"
    with pytest.raises(ModelError):
        structure.parse(json.dumps(data))
