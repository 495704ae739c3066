"""What the kernels' module of an installed wheel must say where there is no GPU; try_cuda_wheels.py asks."""

from importlib.metadata import version

from effv2_kernels import __version__, _cuda

LABEL = f"+cu{_cuda.runtime_version() // 1000}{_cuda.runtime_version() % 1000 // 10}"
STEP = _cuda.Step("product", "fp16", 0, {"images": 1, "y_height": 8, "y_width": 8, "outputs": 64})


def refusal() -> str:
    """Of a launch."""
    try:
        _cuda.launch(STEP, [], 0)
    except _cuda.CudaError as error:
        return str(error)
    raise SystemExit("a launch without memory has worked")


def main() -> None:
    assert version("effv2_kernels") == __version__ + LABEL, version("effv2_kernels")
    assert not _cuda.emulated
    assert _cuda.ARCHITECTURES == "80 86 89 90 100 120", _cuda.ARCHITECTURES
    assert STEP.extent.tiles == 1, STEP.extent.tiles
    if _cuda.device_count():
        print("there is a GPU: what is said without one is not asked")
        return
    reason = _cuda.why_not()
    print(reason)
    assert _cuda.driver_version() or f"needs an NVIDIA driver from {_cuda.LEAST_DRIVER} on" in reason
    assert "cudaError" in refusal()
    assert refusal() == refusal()
    assert _cuda.why_not() == reason
    assert STEP.extent.tiles == 1


if __name__ == "__main__":
    main()
