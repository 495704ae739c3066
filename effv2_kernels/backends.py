"""What can run where: the names of backends, dtypes and ISAs, and the one question asked of each."""

from __future__ import annotations

from dataclasses import dataclass

from effv2_kernels.errors import UnavailableError, UnknownNameError

BACKENDS = ("cpu", "triton", "cuda")
DTYPES = ("fp32", "bf16", "fp16", "int8")


@dataclass(frozen=True)
class Choice:
    """A backend that can run, with the reasons that ``explain`` prints."""

    backend: str
    dtype: str
    isa: str
    why: str


def can_run(backend: str, *, dtype: str = "fp32", isa: str | None = None) -> tuple[bool, str]:
    """Whether a backend can run here, and why not, or what was chosen.

    backend: one of BACKENDS. dtype: one of DTYPES. isa: an instruction set of the CPU backend, None for
    the environment variable EFFV2_FORCE_ISA or else the best one of this machine.

    Raises UnknownNameError for a name that does not exist.
    """
    if backend not in BACKENDS:
        raise UnknownNameError.of("backend", backend, ("auto", *BACKENDS))
    if dtype not in DTYPES:
        raise UnknownNameError.of("dtype", dtype, DTYPES)
    if backend != "cpu":
        return False, f"this version has no {backend} backend yet; backend='cpu' is what there is"
    if dtype != "fp32":
        return False, f"the cpu backend computes in fp32 only in this version, not in {dtype}"
    return _cpu_isa(isa)


def _cpu_isa(isa: str | None) -> tuple[bool, str]:
    from effv2_kernels import cpu

    native = cpu.native()
    if isa is None:
        return True, f"{cpu.default_isa()}: {_why_default()}"
    if isa not in native.isas():
        raise UnknownNameError.of("ISA", isa, native.isas())
    if isa not in native.available_isas():
        return False, (
            f"this processor ({native.cpu_name()}) or its operating system cannot run {isa}; "
            f"it can run {', '.join(native.available_isas())}"
        )
    return True, f"{isa}: asked for"


def _why_default() -> str:
    from effv2_kernels import cpu

    if cpu.forced_isa() is not None:
        return "forced by EFFV2_FORCE_ISA"
    return f"the best of {', '.join(cpu.native().available_isas())}"


def choose(backend: str = "auto", *, dtype: str = "fp32", isa: str | None = None) -> Choice:
    """The backend, dtype and ISA that run.

    Raises UnknownNameError for a name that does not exist and UnavailableError, with the reason, for a
    combination that cannot run here. Nothing is ever replaced by something that was not asked for.
    """
    wanted = "cpu" if backend == "auto" else backend
    ok, reason = can_run(wanted, dtype=dtype, isa=isa)
    if not ok:
        asked = ", ".join(
            f"{name}={value!r}"
            for name, value in (("backend", backend), ("dtype", dtype), ("isa", isa))
            if value is not None
        )
        raise UnavailableError(f"{asked} cannot run here: {reason}.")
    from effv2_kernels import cpu

    return Choice(wanted, dtype, isa or cpu.default_isa(), reason)
