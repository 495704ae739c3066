"""What earlier versions made still works, and gives the bits that it gave then: earlier_versions.py."""

import gzip
import json
import pickle
import tempfile
from pathlib import Path

import earlier_versions
import pytest
import safetensors.torch
import torch
from checks import ISAS
from digests import digest, real
from earlier_versions import FOLDER, outputs_of

import effv2_kernels
from effv2_kernels import cpu

VERSIONS = sorted(path.name for path in FOLDER.iterdir())
every = pytest.mark.parametrize(
    ("version", "name"), [(version, name) for version in VERSIONS for name in earlier_versions.SIZES]
)


@pytest.fixture
def made(version, name, tmp_path):
    """The path of what a version made, unpacked, by its kind."""

    def unpacked(kind):
        path = tmp_path / f"{name}.{kind}"
        path.write_bytes(gzip.decompress((FOLDER / version / f"{path.name}.gz").read_bytes()))
        return path

    return unpacked


def check(fast, version, name, isa=None):
    recorded = json.loads((FOLDER / version / "digests.json").read_text())[name]
    outputs = outputs_of(fast, name)
    assert all(bool(y.isfinite().all()) for y in outputs)
    assert all(float(y.std()) > 1e-2 for y in outputs)
    assert digest(outputs) == (recorded.get(real(isa or cpu.default_isa())) or of_today(name, isa))


def of_today(name, isa):
    """The digest of the same network as it is made now, for an ISA that came after that version."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "today.effv2"
        effv2_kernels.save(earlier_versions.network(name), path)
        return digest(outputs_of(effv2_kernels.load(path, isa=isa), name))


@every
@pytest.mark.parametrize("isa", ISAS)
def test_files(version, name, isa, made):
    check(effv2_kernels.load(made("effv2"), isa=isa), version, name, isa)


@every
def test_state_dicts(version, name, made):
    fast = earlier_versions.network(name)
    with torch.no_grad():
        for parameter in fast.parameters():
            parameter.zero_()
    fast.load_state_dict(safetensors.torch.load_file(made("safetensors")))
    check(fast, version, name)


@every
def test_pickles(version, name, made):
    check(pickle.loads(made("pickle").read_bytes()), version, name)


@every
def test_exported_programs(version, name, made):
    check(torch.export.load(made("pt2")).module(), version, name)


@pytest.mark.parametrize("version", VERSIONS)
def test_schemas(version):
    """Programs name ops and their arguments: each of those calls is one of an op of today."""
    then = (FOLDER / version / "schemas.txt").read_text().splitlines()
    assert len(then) >= 7
    now = {schema.name: schema for schema in map(torch._C.parse_schema, earlier_versions.schemas())}
    for schema in map(torch._C.parse_schema, then):
        assert now[schema.name].is_backward_compatible_with(schema), (
            f"{now[schema.name]} cannot be called as {schema}"
        )


def test_a_schema_that_asks_for_more_is_noticed():
    then = torch._C.parse_schema("effv2::head(Tensor x, Tensor weight, Tensor bias) -> Tensor")
    for now in (
        "Tensor x, Tensor weight",
        "Tensor x, Tensor weight, Tensor bias, int more",
        "Tensor x, Tensor bias, Tensor weight",
    ):
        assert not torch._C.parse_schema(f"effv2::head({now}) -> Tensor").is_backward_compatible_with(then)


def test_this_version_is_among_them():
    """A change of what is stored or of an op is a new version, whose files are kept here as well."""
    assert effv2_kernels.__version__ in VERSIONS
