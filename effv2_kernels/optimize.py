"""The one call that makes a model fast."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from effv2_kernels import blocks, sources
from effv2_kernels.backends import DTYPE_NAMES, Settings
from effv2_kernels.errors import InputError, ModelError
from effv2_kernels.model import OptimizedModel


def optimize(
    model: nn.Module,
    *,
    dtype: str | None = None,
    backend: str = "auto",
    isa: str | None = None,
    threads: int | None = None,
    cuda_graph: bool = True,
    strict: bool = True,
) -> nn.Module:
    """A new module that computes the same as ``model``, faster; ``model`` is left untouched.

    model: an EfficientFormerV2 of timm, of the official code or of ``create_model``, in eval mode, or any
        module that holds some (a detector with such a backbone): then a copy of it with each of them
        replaced. The weights are copied; later changes of ``model`` do not reach the result. It runs where
        ``model`` is, on the CPU or a CUDA GPU.
    dtype: "fp32", and on a GPU "fp16" and "bf16": of inputs, weights, activations and outputs; sums are in
        float32. None is that of the model's own tensors. "int8" is refused by this version.
    backend: "cpu", "triton" (CUDA GPUs), or "auto", which follows the device.
    isa: of the CPU: "avx512", "avx2" or "scalar"; None is EFFV2_FORCE_ISA or the best one.
    threads: of each call on the CPU; None is ``torch.get_num_threads()`` at the time of the call.
    cuda_graph: on a GPU, replay images of a shape that comes again as one captured graph.
    strict: refuse a module without a whole EfficientFormerV2, or with parts of one outside. False: optimise
        the parts that are known (stem, stage blocks, downsampling) and leave the rest as it is;
        ``explain`` lists both.

    Raises ModelError for a module that cannot be optimised (unknown, in training mode, hooked, not finite, of
    several dtypes or devices), UnknownNameError and UnavailableError for a dtype, backend, ISA or device that
    does not exist or cannot run here, InputError for a thread count below 1 or on a GPU.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"optimize() takes a torch.nn.Module, but got {type(model).__name__}.")
    if isinstance(model, OptimizedModel):
        raise ModelError("this model is optimised already; give the model it was made from.")
    if threads is not None and (type(threads) is not int or threads < 1):
        raise InputError(f"threads must be a positive integer or None, but got {threads!r}.")
    if model.training:
        raise ModelError(f"{type(model).__name__} is in training mode: call model.eval() first.")
    networks = dict(sources.find_networks(model, strict=strict))
    parts = sources.read_parts(model, skip=tuple(networks))
    if (strict and parts) or not (networks or parts):
        raise _refusal(model, parts, strict)
    replacements: dict[int, OptimizedModel] = {}
    for path in [*networks, *parts]:
        module = model.get_submodule(path)
        device, own = _device_and_dtype(module, path, any_dtype=dtype is not None)
        if id(module) in replacements:
            continue
        settings = Settings(backend, own if dtype is None else dtype, isa, threads, cuda_graph)
        settings.choose(device)
        # Folded weights are let go of as soon as they are copied, before they are packed.
        if path in networks:
            optimised = OptimizedModel(networks.pop(path), settings, device=device)
        else:
            steps = parts.pop(path)
            features = (blocks.Feature(len(steps) - 1),)
            network = blocks.Network(steps, (path,) * len(steps), features)
            optimised = OptimizedModel(network, settings, device=device, single=True)
            del steps, network
        replacements[id(module)] = optimised
        _ = optimised.engine
    try:
        # deepcopy takes what its memo holds, so the replaced modules are not copied.
        result: nn.Module = copy.deepcopy(model, dict(replacements))
    except RuntimeError as error:
        raise ModelError(
            f"what is left of {type(model).__name__} cannot be copied: {error} (A module that keeps tensors "
            f"of a graph, such as a cache filled outside of torch.no_grad(), has to drop them first.)"
        ) from error
    return result


def _refusal(model: nn.Module, parts: dict[str, tuple[blocks.Block, ...]], strict: bool) -> ModelError:
    left = [
        f"'{u.path or type(model).__name__}' ({u.class_name}) {u.reason}" for u in sources.unrecognised(model)
    ]
    shown = "; ".join(left[:8]) + (f"; and {len(left) - 8} more" if len(left) > 8 else "")
    if not parts:
        return ModelError(
            f"{type(model).__name__} holds no EfficientFormerV2. Not recognised: {shown}. Known origins: "
            f"timm, the official code, effv2_kernels.create_model."
        )
    return ModelError(
        f"{type(model).__name__} holds parts of an EfficientFormerV2 ({', '.join(map(repr, parts))}) but not "
        f"as a whole network. Not recognised: {shown}. With strict=False the known parts are optimised and "
        f"the rest is left as it is."
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
    if not any_dtype and (dtype not in DTYPE_NAMES or (device.type == "cpu" and dtype != torch.float32)):
        taken = "float32" if device.type == "cpu" else "float32, float16 or bfloat16"
        raise ModelError(
            f"'{dtypes[dtype]}' is {dtype} and so are the inputs of the model; the optimised one takes "
            f"{taken} on {device}. Call model.float() first; precision is chosen with "
            f"optimize(model, dtype=...)."
        )
    return device, DTYPE_NAMES.get(dtype, "")
