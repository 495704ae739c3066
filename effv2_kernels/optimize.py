"""The one call that makes a model fast."""

from __future__ import annotations

import copy

import torch
from torch import nn

from effv2_kernels import backends, blocks, sources
from effv2_kernels.errors import InputError, ModelError, UnavailableError
from effv2_kernels.model import OptimizedModel


def optimize(
    model: nn.Module,
    *,
    dtype: str = "fp32",
    backend: str = "auto",
    isa: str | None = None,
    threads: int | None = None,
    strict: bool = True,
) -> nn.Module:
    """A new module that computes the same as ``model``, faster; ``model`` is left untouched.

    model: an EfficientFormerV2 of timm, of the official code or of ``create_model``, in eval mode, or any
        module that holds some (a detector with such a backbone): then a copy of it with each of them
        replaced. The weights are copied; later changes of ``model`` do not reach the result.
    dtype: "fp32"; "bf16", "fp16" and "int8" are refused by this version.
    backend: "auto" or "cpu". isa: "avx512", "avx2" or "scalar"; None is EFFV2_FORCE_ISA or the best one.
    threads: of each call; None is ``torch.get_num_threads()`` at the time of the call.
    strict: refuse a module without a whole EfficientFormerV2, or with parts of one outside. False: optimise
        the parts that are known (stem, stage blocks, downsampling) and leave the rest as it is;
        ``explain`` lists both.

    Raises ModelError for a module that cannot be optimised (unknown, in training mode, hooked, not finite,
    not float32), UnknownNameError and UnavailableError for a dtype, backend, ISA or device that does not
    exist or cannot run here, InputError for a thread count below 1.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"optimize() takes a torch.nn.Module, but got {type(model).__name__}.")
    if isinstance(model, OptimizedModel):
        raise ModelError("this model is optimised already; give the model it was made from.")
    if threads is not None and (type(threads) is not int or threads < 1):
        raise InputError(f"threads must be a positive integer or None, but got {threads!r}.")
    backends.choose(backend, dtype=dtype, isa=isa)

    def optimised(network: blocks.Network, *, single: bool = False) -> OptimizedModel:
        return OptimizedModel(network, backend=backend, dtype=dtype, isa=isa, threads=threads, single=single)

    if model.training:
        raise ModelError(f"{type(model).__name__} is in training mode: call model.eval() first.")
    networks = dict(sources.find_networks(model, strict=strict))
    parts = sources.read_parts(model, skip=tuple(networks))
    if (strict and parts) or not (networks or parts):
        raise _refusal(model, parts, strict)
    replacements: dict[int, OptimizedModel] = {}
    for path in [*networks, *parts]:
        module = model.get_submodule(path)
        _check_tensors(module, path)
        if id(module) in replacements:
            continue
        # Folded weights are let go of as soon as they are copied, before they are packed.
        if path in networks:
            replacements[id(module)] = optimised(networks.pop(path))
        else:
            steps = parts.pop(path)
            features = (blocks.Feature(len(steps) - 1),)
            network = blocks.Network(steps, (path,) * len(steps), features)
            replacements[id(module)] = optimised(network, single=True)
            del steps, network
        _ = replacements[id(module)].engine
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


def _check_tensors(module: nn.Module, path: str) -> None:
    for name, tensor in [*module.named_parameters(path), *module.named_buffers(path)]:
        if tensor.device.type != "cpu":
            raise UnavailableError(
                f"'{name}' is on {tensor.device}, for which there is no backend yet. Move the model with "
                f".to('cpu') first."
            )
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise ModelError(
                f"'{name}' is {tensor.dtype} and so are the inputs of the model; the optimised one takes "
                f"float32. Call model.float() first; precision is chosen with optimize(model, dtype=...)."
            )
