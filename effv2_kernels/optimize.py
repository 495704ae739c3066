"""The one call that makes a model fast."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from effv2_kernels import blocks, families, memory, sources, verification
from effv2_kernels.backends import DTYPE_NAMES, NEEDS, Settings, check_threads, model_dtypes
from effv2_kernels.errors import ModelError, UnavailableError
from effv2_kernels.model import OptimizedModel
from effv2_kernels.model.carried import carried
from effv2_kernels.sources.wrappers import expression, refuse_parallel, replaced, why_opaque


@memory.needed_to("optimise this model")
def optimize(
    model: nn.Module,
    *,
    dtype: str | None = None,
    backend: str = "auto",
    isa: str | None = None,
    threads: int | None = None,
    cuda_graph: bool = True,
    strict: bool = True,
    verify: bool = True,
) -> nn.Module:
    """A new module that computes the same as ``model``, faster; ``model`` is left untouched.

    model: a network of a known family (``effv2_kernels.families``) of any of its origins, such as timm or
        ``create_model``, in eval mode, or any module that holds some (a detector with such a backbone): then
        a copy of it with each of them replaced. The weights are copied; later changes of ``model`` do not
        reach the result. It runs where ``model`` is, on the CPU or a CUDA GPU.
    dtype: "fp32", "bf16" or "fp16": of inputs, weights, activations and outputs. On a GPU sums are in
        float32. On a CPU "bf16" is how weights and maps are kept, at the speed of "fp32" and with half its
        memory; scalar code and NEON refuse it. "fp16" needs an Arm processor that computes in it, and then
        all but softmax and means is; what goes beyond 65504 is an error. None is that of the model's own
        tensors. "int8" is refused by this version.
    backend: "cpu", "triton" or "cuda" (the latter two for CUDA GPUs; "cuda" in "fp16" and "bf16" alone, and
    in
        wheels that have its kernels), or "auto", which follows the device. On a GPU that runs each block by
        Triton, or by CUDA where ``tune`` measured that to be faster and its kernels passed a check on that
        very GPU.
    isa: of the CPU: "avx512", "avx2", "neon" or "scalar"; None is EFFV2_FORCE_ISA or the best one.
    threads: of each call on the CPU; None is ``torch.get_num_threads()`` at the time of the call.
    cuda_graph: on a GPU, replay images of a shape that comes again as one captured graph.
    strict: refuse a module without a whole network, or with parts of one outside. False: optimise
        the parts that are known (stem, stage blocks, downsampling) and leave the rest as it is;
        ``explain`` lists both.
    verify: run each network (or part) and its optimised version once on a small random image and refuse it
        where they differ; ``explain`` shows the error found. Takes about as long as four calls of ``model``
        and as reading it once more. Nothing of ``model`` changes by it, neither caches nor the counts of
        hooks, and no global random number is drawn. With strict=False a part that differs is left as it is.

    Raises ModelError for a module that cannot be optimised (unknown, in training mode, hooked, not finite, of
    several dtypes or devices, with another forward than its structure says, in a wrapper that cannot be
    copied or that shares it out among processes, optimised already), UnknownNameError and UnavailableError
    for a dtype, backend, ISA or device that does not exist or cannot run here, the latter also where there is
    not enough memory, and InputError for a thread count below 1, beyond 2147483647 or on a GPU.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"optimize() takes a torch.nn.Module, but got {type(model).__name__}.")
    if isinstance(model, OptimizedModel):
        raise ModelError("this model is optimised already; give the model it was made from.")
    check_threads(threads)
    opaque = why_opaque(model)
    if opaque is not None:
        raise ModelError(f"{type(model).__name__} {opaque}")
    if model.training:
        raise ModelError(f"{type(model).__name__} is in training mode: call model.eval() first.")
    refuse_parallel(model)
    done = [path for path, m in model.named_modules() if isinstance(m, OptimizedModel)]
    networks = dict(sources.find_networks(model, strict=strict))
    parts = sources.read_parts(model, skip=(*networks, *done))
    if done and (strict or not (networks or parts)):
        raise _done_already(model, done, [*networks, *parts])
    if (strict and parts) or not (networks or parts):
        raise _refusal(model, parts, strict)
    replacements: dict[int, nn.Module] = {}
    places: list[str] = []
    left: dict[str, str] = {}
    waiting = [*networks, *parts]
    while waiting:
        path = waiting.pop(0)
        module = model.get_submodule(path)
        device, own = _device_and_dtype(module, path, any_dtype=dtype is not None)
        if id(module) in replacements:
            places.append(path)
            continue
        settings = Settings(backend, own if dtype is None else dtype, isa, threads, cuda_graph)
        settings.choose(device)
        is_part = path in parts
        # Folded weights are let go of as soon as they are copied, before they are packed.
        if is_part:
            steps = parts.pop(path)
            features = (blocks.Feature(len(steps) - 1),)
            network = blocks.Network(steps, (path,) * len(steps), features)
            del steps
        else:
            network = networks.pop(path)
        optimised = OptimizedModel(
            network, settings, device=device, single=is_part, attributes=carried(module)
        )
        del network
        try:
            _ = optimised.engine
            if verify:
                optimised._verified = verification.verify(module, optimised, path=path, part=is_part)
        except (ModelError, UnavailableError) as error:
            if strict:
                raise
            left[path] = str(error)
            if not is_part:
                inside = {f"{path}.{name}".strip("."): p for name, p in sources.read_parts(module).items()}
                parts |= inside
                waiting = [*inside, *waiting]
            continue
        replacements[id(module)] = optimised
        places.append(path)
    if not replacements:
        raise ModelError(" ".join(left.values()))
    result = replaced(model, replacements, places)
    if left:
        verification.note(result, left)
    return result


def _done_already(model: nn.Module, done: list[str], others: list[str]) -> ModelError:
    shown, variable = ", ".join(map(repr, done)), type(model).__name__
    if not others:
        return ModelError(
            f"{variable} holds a model that is optimised already, at {shown}, and no other: it can be used "
            f"as it is."
        )
    steps = " and ".join(
        f"{e} = effv2_kernels.optimize({e})" for e in (expression("model", model, p) for p in others)
    )
    return ModelError(
        f"{variable} holds a model that is optimised already, at {shown}. Optimise the others in place: "
        f"{steps}; or give the module in which none is optimised."
    )


def _refusal(model: nn.Module, parts: dict[str, tuple[blocks.Block, ...]], strict: bool) -> ModelError:
    left = [
        f"'{u.path or type(model).__name__}' ({u.class_name}) {u.reason}" for u in sources.unrecognised(model)
    ]
    shown = "; ".join(left[:8]) + (f"; and {len(left) - 8} more" if len(left) > 8 else "")
    if not parts:
        return ModelError(
            f"{type(model).__name__} holds no {families.names()}. Not recognised: {shown}. Known "
            f"origins: {families.origins()}."
        )
    named = ", ".join(f"'{path}'" if path else "the module itself" for path in parts)
    unknown = f" Not recognised: {shown}." if left else ""
    return ModelError(
        f"{type(model).__name__} holds parts of an {families.names()} ({named}) outside of a whole network."
        f"{unknown} With strict=False the known parts are optimised and the rest is left as it is."
    )


def _device_and_dtype(module: nn.Module, path: str, *, any_dtype: bool) -> tuple[torch.device, str]:
    """Of all floating-point tensors of a module, the dtype by its name in DTYPES.

    any_dtype: the name does not matter, since another one was asked for.
    """
    devices: dict[torch.device, str] = {}
    dtypes: dict[torch.dtype, str] = {}
    for name, tensor in [*module.named_parameters(path), *module.named_buffers(path)]:
        if tensor.is_floating_point():
            devices.setdefault(tensor.device, name)
            dtypes.setdefault(tensor.dtype, name)
    mixed: dict[str, Mapping[Any, str]] = {"device": devices, "dtype": {} if any_dtype else dtypes}
    for kind, different in mixed.items():
        if len(different) > 1:
            shown = " and ".join(f"'{name}' is {value}" for value, name in different.items())
            raise ModelError(
                f"the tensors of one network must be of one {kind}, but {shown}. Use model.to(...)."
            )
    (device,), (dtype, *_) = devices, dtypes
    # Who computes in float16 on a CPU is asked of the compiled engine; GPUs do without that.
    asks = dtype not in DTYPE_NAMES or (device.type == "cpu" and dtype is torch.float16)
    if not any_dtype and asks and dtype not in (taken := model_dtypes(device)):
        lacks = f"; {NEEDS[DTYPE_NAMES[dtype]]}" if dtype in DTYPE_NAMES else ""
        names = [str(d).removeprefix("torch.") for d in taken]
        raise ModelError(
            f"'{dtypes[dtype]}' is {dtype} and so are the inputs of the model; the optimised one takes "
            f"{', '.join(names[:-1])} or {names[-1]} on {device}{lacks}. Call model.float() first; precision "
            f"is chosen with optimize(model, dtype=...)."
        )
    return device, DTYPE_NAMES.get(dtype, "")
