"""The module that ``optimize`` returns: folded weights as buffers, run by one native call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

import effv2_kernels.ops  # noqa: F401  (registers torch.ops.effv2)
from effv2_kernels import blocks, structure
from effv2_kernels.backends import CPU, TORCH_DTYPES, Choice, Settings
from effv2_kernels.errors import InputError, ModelError, UnavailableError
from effv2_kernels.ops.engines import Engine, network_engine


class Weights(nn.Module):
    """The tensors of one block, or scale and shift of one feature, as buffers; it computes nothing."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, *args: Any, **kwargs: Any) -> None:
        raise ModelError(
            f"this holds the weights of a {self.kind} and cannot be called; call the whole model."
        )

    def extra_repr(self) -> str:
        return ", ".join([self.kind, *(f"{name}={tuple(t.shape)}" for name, t in self.named_buffers())])

    def __setattr__(self, name: str, value: Any) -> None:
        # Buffers are views of one allocation, whose version counter tells the engine to pack anew.
        if self.__dict__.get("_buffers", {}).get(name, value) is not value:
            raise ModelError(
                f"'{name}' of an optimised model cannot be replaced; change it in place, with "
                f"load_state_dict(...) or .copy_(...)."
            )
        super().__setattr__(name, value)

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        in_place = {**local_metadata, "assign_to_params_buffers": False}
        super()._load_from_state_dict(state_dict, prefix, in_place, *args)


class OptimizedModel(nn.Module):
    """A network of folded blocks, for inference, with the call signature of the module it was read from.

    Takes images (N, C, H, W), of any strides, on the device of the model and of the dtype it was made for,
    and returns the logits (N, classes), or the list of feature maps (N, C, H, W) in channels_last, of the
    same dtype. Under ``torch.autocast`` images of another floating-point dtype are converted. Where
    gradients are asked for, they are those of the reference.

    Weights are float32 buffers named ``blocks.<index>.<field>`` (see ``effv2_kernels.blocks``); there are no
    parameters. ``state_dict``, ``load_state_dict``, ``copy.deepcopy``, ``pickle`` and ``.to(device)`` work;
    another dtype and training mode are refused.

    settings: how to run. device: where. single: return the output of the last block instead of a list (a
    part of a model).

    Raises, when called: InputError for another rank, channel count, dtype, device, or an empty input;
    ResolutionError where an attention bias does not fit; UnavailableError on a device without a backend.
    """

    def __init__(
        self,
        network: blocks.Network,
        settings: Settings = Settings(),  # noqa: B008  (it is frozen)
        *,
        device: torch.device = CPU,
        single: bool = False,
    ) -> None:
        super().__init__()
        self.training = False
        structure.check(network)
        self._settings = settings
        self._structure = structure.describe(network)
        self._single = single
        self._list = not (single or isinstance(network.blocks[-1], blocks.Head))
        self._engine: Engine | None = None
        self._version = 0
        weights = structure.tensors(network)
        # A normal tensor even under inference mode, where tensors have no version counter.
        with torch.inference_mode(False):
            self._flat = torch.empty(sum(t.numel() for t in weights), dtype=torch.float32, device="cpu")
        self._bind([t.shape for t in weights])
        with torch.no_grad():
            for view, tensor in zip(self._weights(), weights, strict=True):
                view.copy_(tensor)
        self.to(device)

    @property
    def threads(self) -> int | None:
        """Of each call on the CPU; None is ``torch.get_num_threads()`` at the time of the call."""
        return self._settings.threads

    @property
    def choice(self) -> Choice:
        """Backend, dtype and ISA that run, and why."""
        return self._settings.choose(self._flat.device)

    @property
    def network(self) -> blocks.Network:
        """The blocks, with the buffers of this module as their tensors (not copied)."""
        return structure.rebuild(self._structure, self._weights())

    @property
    def engine(self) -> Engine:
        """The packed network, made anew if the weights have changed."""
        engine = self._engine
        if engine is None or self._version != self._flat._version:
            version = self._flat._version
            engine = network_engine(self._weights(), self._structure, self._settings)
            self._engine, self._version = engine, version
        return engine

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        if (
            type(x) is not Tensor
            or torch.compiler.is_compiling()
            or (x.requires_grad and torch.is_grad_enabled())
            or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        ):
            return self._as_op(x)
        outputs = self.engine.run(self._autocast(x), self._settings.threads)
        return outputs if self._list else outputs[0]

    def _as_op(self, x: Tensor) -> Tensor | list[Tensor]:
        if not isinstance(x, Tensor):
            raise InputError(
                f"expected images as a torch.Tensor (N, C, H, W), but got {type(x).__name__}."
                + (" Convert with torch.from_numpy(x)." if type(x).__name__ == "ndarray" else "")
            )
        s = self._settings
        options = (s.backend, s.dtype, s.isa or "", s.threads or 0, s.cuda_graph)
        outputs: list[Tensor] = torch.ops.effv2.network(
            self._autocast(x), self._weights(), self._structure, *options
        )
        return outputs if self._list else outputs[0]

    def _autocast(self, x: Tensor) -> Tensor:
        dtype = TORCH_DTYPES[self._settings.dtype]
        if x.dtype is dtype or not x.is_floating_point() or not torch.is_autocast_enabled(x.device.type):
            return x
        return x.to(dtype)

    def _weights(self) -> list[Tensor]:
        return [t for part in (*self.blocks, *self.features) for t in part._buffers.values()]

    def _bind(self, shapes: list[torch.Size]) -> None:
        """Make the buffers: views of the one flat tensor, in the order of ``structure.keys``."""
        data = structure.parse(self._structure)
        self.blocks, self.features = nn.ModuleList(), nn.ModuleList()
        parts: dict[str, Weights] = {}
        for i, entry in enumerate(data["blocks"]):
            parts[f"blocks.{i}"] = Weights(entry["kind"])
        for i, _ in enumerate(data["features"]):
            parts[f"features.{i}"] = Weights("feature")
        for path, part in parts.items():
            getattr(self, path.partition(".")[0]).append(part.train(False))
        offset = 0
        for key, shape in zip(structure.keys(self._structure), shapes, strict=True):
            path, _, name = key.rpartition(".")
            view = self._flat[offset : offset + shape.numel()].view(shape)
            parts[path].register_buffer(name, view)
            offset += shape.numel()
        self.blocks.training = self.features.training = False

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> OptimizedModel:
        with torch.inference_mode(False):  # see __init__
            moved = fn(self._flat)
        if moved.dtype != torch.float32:
            raise UnavailableError(
                f"an optimised model computes in the precision it was made for, {self._settings.dtype}; it "
                f"cannot be cast to {moved.dtype}. Precision is chosen with optimize(model, dtype=...)."
            )
        if moved is not self._flat:
            shapes = [t.shape for t in self._weights()]
            self._flat, self._engine = moved, None
            self._bind(shapes)
        return self

    def train(self, mode: bool = True) -> OptimizedModel:
        if mode:
            raise ModelError(
                "an optimised model is for inference and has no training mode (BatchNorm is folded away). "
                "Train the model it was made from, then call optimize() again."
            )
        return self

    def __getstate__(self) -> dict[str, Any]:
        # One flat tensor instead of its views: pickle would store the whole memory once for each of them.
        shapes = [t.shape for t in self._weights()]
        state = {k: v for k, v in self.__dict__.items() if k not in ("_modules", "_engine")}
        return {**state, "_shapes": shapes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        shapes = state.pop("_shapes")
        super().__setstate__({**state, "_modules": {}, "_engine": None})  # type: ignore[no-untyped-call]
        if self._flat.is_inference():
            with torch.inference_mode(False):  # see __init__
                self._flat = self._flat.clone()
        self._bind(shapes)

    def description(self) -> dict[str, str]:
        """What a file needs beside the state dict to make this module again."""
        return {"structure": self._structure, "returns": "tensor" if self._single else "default"}

    def extra_repr(self) -> str:
        data = structure.parse(self._structure)
        asked = ", ".join(f"{name}={value}" for name, value in asdict(self._settings).items())
        return f"source={data['source'] or None}, blocks={len(data['blocks'])}, {asked}"
