"""The module that ``optimize`` returns: folded weights as parameters, run by one native call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

import effv2_kernels.ops  # noqa: F401  (registers torch.ops.effv2)
from effv2_kernels import outline, structure
from effv2_kernels.backends import CPU, TORCH_DTYPES, Choice, Settings
from effv2_kernels.blocks import Head, Network
from effv2_kernels.declaration import block_sizes
from effv2_kernels.engine import Engine
from effv2_kernels.errors import ExportError, MissingAttributeError, ModelError, UnavailableError
from effv2_kernels.inputs import check_images, check_input, check_kind
from effv2_kernels.model.carried import check_names
from effv2_kernels.model.identity import same_objects
from effv2_kernels.model.tail import Tail
from effv2_kernels.model.weights import Ledger, Parts, Weight, Weights
from effv2_kernels.ops import routes
from effv2_kernels.ops.engines import network_engine
from effv2_kernels.ops.network import reference as run_in_pytorch

# Dynamo of older versions knows no parameters but those of nn.Parameter itself.
_OLD_DYNAMO = tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 10)


_DERIVED = frozenset(
    (
        "_modules", "_engine", "_ledger", "_parts", "_held", "_own", "_views", "_plain", "_outline", "_trunk",
        "_in_channels",
    )
)  # fmt: skip


class OptimizedModel(nn.Module):
    """A network of folded blocks, for inference, with the call signature of the module it was read from.

    Takes images (N, C, H, W), of any strides, on the device of the model and of the dtype it was made for,
    and returns the logits (N, classes), or the list of feature maps (N, C, H, W) in channels_last, of the
    same dtype. Under ``torch.autocast`` images of another floating-point dtype are converted. Where
    gradients are asked for, they are those of the reference; within the transforms of ``torch.func``,
    forward-mode differentiation and dispatch modes the blocks run in plain PyTorch.

    Weights are float32 parameters named ``blocks.<index>.<field>`` (see ``effv2_kernels.blocks``), which
    require no gradient unless asked to. ``state_dict``, ``load_state_dict``, ``copy.deepcopy``, ``pickle``
    and ``.to(device)`` work; another dtype and training mode are refused.

    settings: how to run. device: where. single: return the output of the last block instead of a list (a
    part of a model). attributes: more attributes of the result, by name; see ``effv2_kernels.model.carried``.

    Raises, when called: InputError for another rank, channel count, dtype, device, or an empty input;
    ResolutionError where an attention bias does not fit; UnavailableError on a device without a backend and
    where there is not enough memory; ExportError within an exporter that cannot take the network.
    """

    blocks: Parts
    features: Parts
    _settings: Settings
    _structure: str
    _single: bool
    _list: bool
    _flat: Tensor
    _engine: Engine | None
    _version: int
    # Derived from those, and neither copied nor pickled; see _bind.
    _ledger: Ledger
    _parts: tuple[Weights, ...]
    _held: tuple[dict[str, nn.Parameter | None], ...]
    _own: tuple[Weight, ...]
    _views: tuple[Tensor, ...]
    _plain: Any  # what plain tensors look like, see ops.routes
    _outline: outline.Outline  # what _structure describes
    _trunk: tuple[str, int, int] | None
    _in_channels: int
    # With values for models in pickles from before there were these.
    _tail: Tail | None = None
    _verified: float | None = None  # the relative error that optimize() found on a random image

    def __init__(
        self,
        network: Network,
        settings: Settings = Settings(),  # noqa: B008  (it is frozen)
        *,
        device: torch.device = CPU,
        single: bool = False,
        attributes: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.training = False
        outline.check(network)
        check_names(attributes or {}, taken=OptimizedModel)
        self._settings = settings
        self._structure = structure.describe(network)
        self._single = single
        self._list = not (single or isinstance(network.blocks[-1], Head))
        self._engine = None
        self._version = 0
        self._tail = None if network.norm is None else Tail.of(*network.norm)
        weights = outline.tensors(network)
        # A normal tensor even under inference mode, where tensors have no version counter.
        with torch.inference_mode(False):
            self._flat = torch.empty(sum(t.numel() for t in weights), dtype=torch.float32, device="cpu")
        self._bind([t.shape for t in weights])
        with torch.no_grad():
            for view, tensor in zip(self._own, weights, strict=True):
                view.copy_(tensor)
        self.to(device)
        for name, value in (attributes or {}).items():
            setattr(self, name, value)

    @property
    def threads(self) -> int | None:
        """Of each call on the CPU; None is ``torch.get_num_threads()`` at the time of the call."""
        return self._settings.threads

    @property
    def choice(self) -> Choice:
        """Backend, dtype and ISA that run, and why."""
        return self._settings.choose(self._flat.device)

    @property
    def network(self) -> Network:
        """The blocks, with the parameters of this module as their tensors (not copied)."""
        return self._outline.rebuild(self._weights())

    @property
    def engine(self) -> Engine:
        """The packed network, made anew if the weights have changed."""
        engine = self._engine
        # Weights that are trained may change without being counted: network_engine compares them.
        if engine is None or self._version != self._flat._version or self._ledger.gradients:
            version = self._flat._version
            engine = network_engine(self._own, self._outline, self._settings)
            self._engine, self._version = engine, version
        return engine

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        if self._is_plain(x):
            outputs = self.engine.run(self._autocast(x), self._settings.threads)
        else:
            outputs = self._indirectly(x, self._structure, self._weights())
        return outputs if self._list else outputs[0]

    def forward_features(self, x: Tensor) -> Tensor:
        """The last map, (N, C, H, W) in channels_last, behind the last norm, as timm's models give it.

        Raises what a call raises, and ModelError for a network without a head or one from a file.
        """
        tail = self._require_tail("forward_features")
        assert self._trunk is not None
        described, count, tensors = self._trunk
        if self._is_plain(x):
            (features,) = self.engine.run(self._autocast(x), self._settings.threads, count)
        else:
            (features,) = self._indirectly(x, described, self._weights()[:tensors])
        return tail.normalised(features)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The logits (N, classes) of what ``forward_features`` returned.

        pre_logits: return its mean over rows and columns (N, C) instead.

        Raises ModelError for a network without a head or one from a file.
        """
        tail = self._require_tail("forward_head")
        pooled = tail.pooled(x)
        if pre_logits:
            return pooled
        weight, bias = _for_modes(self._weights()[-2:])
        return tail.logits(pooled, weight, bias)

    def _is_plain(self, x: Tensor) -> bool:
        """Whether x may go straight to the engine, and the weights are those that it knows."""
        return (
            not torch.compiler.is_compiling()
            and type(x) is Tensor
            and self._known_weights()
            and routes.is_plain(x, self._plain)
            and not (torch.is_grad_enabled() and (x.requires_grad or self._wants_gradients()))
        )

    def _known_weights(self) -> bool:
        # torch.func.functional_call and its like put others in their place.
        return same_objects(self._own, self._held)

    def _wants_gradients(self) -> bool:
        return self._ledger.gradients and any(weight.requires_grad for weight in self._own)

    def _indirectly(self, x: Tensor, described: str, weights: list[Tensor]) -> list[Tensor]:
        """The outputs of the network that is described, by an op or in plain PyTorch."""
        check_images(x)
        x, s = self._autocast(x), self._settings
        if not torch.compiler.is_dynamo_compiling():
            routes.refuse_exporters()
        options = (s.backend, s.dtype, s.isa or "", s.threads or 0, s.cuda_graph)
        if not torch.compiler.is_compiling():
            if type(x) is Tensor and routes.at_rest():
                # As the engine would: PyTorch's dispatcher has less helpful words for it.
                check_input(x, self.engine.in_channels, TORCH_DTYPES[s.dtype], self._flat.device)
            weights = _for_modes(weights)
            if routes.is_watched():
                # In inference mode the op's own layer that sees to this is left out.
                return run_in_pytorch(x, weights, described, *options)
        else:  # the op says it as well, but Dynamo would bury that in a dump of the whole call
            check_kind(x, self._in_channels, TORCH_DTYPES[s.dtype])
        outputs: list[Tensor] = torch.ops.effv2.network(x, weights, described, *options)
        return outputs

    def _autocast(self, x: Tensor) -> Tensor:
        dtype = TORCH_DTYPES[self._settings.dtype]
        if x.dtype is dtype or not x.is_floating_point() or not torch.is_autocast_enabled(x.device.type):
            return x
        return x.to(dtype)

    def _require_tail(self, what: str) -> Tail:
        if self._tail is not None:
            return self._tail
        if self.blocks[-1].kind != Head.kind:
            instead = "It has no classifier: call the model itself, which returns its feature maps."
        else:
            instead = (
                "The norm in front of its classifier is folded away in files: call optimize() on the "
                "original model, or save one that was made with features_only=True."
            )
        raise ModelError(f"this optimised model has no {what}(). {instead}")

    def _weights(self) -> list[Tensor]:
        if _OLD_DYNAMO and torch.compiler.is_dynamo_compiling() and not self._ledger.gradients:
            return list(self._views)
        return [t for part in self._parts for t in part._parameters.values()]  # type: ignore[misc]

    def _bind(self, shapes: list[torch.Size], require_gradients: list[bool] | None = None) -> None:
        """Make the parameters: views of the one flat tensor, in the order of ``Outline.keys``."""
        self._outline = structure.parse(self._structure)
        count = len(self._outline.parts)
        tensors: dict[str, dict[str, Weight]] = {f"blocks.{i}": {} for i in range(count)}
        tensors |= {f"features.{i}": {} for i in range(len(self._outline.features))}
        self._ledger = Ledger()
        offset = 0
        with torch.inference_mode(False):
            for i, (key, shape) in enumerate(zip(self._outline.keys, shapes, strict=True)):
                path, _, name = key.rpartition(".")
                view = self._flat[offset : offset + shape.numel()].view(shape)
                asked = bool(require_gradients and require_gradients[i])
                tensors[path][name] = Weight.of(view, self._ledger, requires_grad=asked)
                offset += shape.numel()
        kinds = [*(part.kind for part in self._outline.parts), *["feature"] * len(self._outline.features)]
        parts = [Weights(kind, held) for kind, held in zip(kinds, tensors.values(), strict=True)]
        self._modules["blocks"] = Parts(parts[:count])
        self._modules["features"] = Parts(parts[count:])
        self._parts = tuple(parts)
        self._held = tuple(part._parameters for part in parts)
        self._own = tuple(weight for held in tensors.values() for weight in held.values())
        self._views = tuple(weight.plain for weight in self._own)
        self._plain = routes.plain_keys(self._flat)
        first = self._outline.block(0, dict(zip(self._outline.keys, self._views, strict=True)))
        self._in_channels = block_sizes(first)["in"]
        self._trunk = None if self._tail is None else structure.without_head(self._structure)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> OptimizedModel:
        with torch.inference_mode(False):  # see __init__
            moved = fn(self._flat)
        if moved.dtype != torch.float32:
            raise UnavailableError(
                f"an optimised model computes in the precision it was made for, {self._settings.dtype}; it "
                f"cannot be cast to {moved.dtype}. Precision is chosen with optimize(model, dtype=...). "
                "In a larger module, parts before it may have been cast by now: call float() on the whole."
            )
        if moved is not self._flat:
            shapes, asked = [t.shape for t in self._own], [t.requires_grad for t in self._own]
            self._flat, self._engine = moved, None
            self._bind(shapes, asked)
        if self._tail is not None:
            self._tail = self._tail.moved(self._flat.device)
        return self

    def train(self, mode: bool = True) -> OptimizedModel:
        if mode:
            raise ModelError(
                "an optimised model is for inference and has no training mode (BatchNorm is folded away). "
                "Train the model it was made from, then call optimize() again. In a larger module, parts "
                "before it may be in training mode by now: call eval() on the whole."
            )
        return self

    def __getattr__(self, name: str) -> Any:
        modules = self.__dict__.get("_modules", {})
        if name in modules:
            return modules[name]
        raise MissingAttributeError(
            f"an optimised model has no '{name}': it holds the folded weights of its blocks, not the modules "
            f"that they were read from. Ask the model that was optimised."
        )

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, (nn.Module, nn.Parameter)):
            self._refuse(f"'{name}' = {type(value).__name__}(...)")
        if name in self.__dict__.get("_modules", {}):
            self._refuse(f"'{name}' = {value!r}")
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        if name in self._modules:
            self._refuse(f"deleting '{name}'")
        super().__delattr__(name)

    def add_module(self, name: str, module: nn.Module | None) -> None:
        self._refuse(f"the module '{name}'")

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        self._refuse(f"the parameter '{name}'")

    def register_buffer(self, name: str, *args: Any, **kwargs: Any) -> None:
        self._refuse(f"the buffer '{name}'")

    def _refuse(self, what: str) -> NoReturn:
        raise ModelError(
            f"{what} would change nothing in an optimised model, which runs its own blocks. Change the model "
            f"that was optimised and call optimize() again, or put layers behind it, as in "
            f"nn.Sequential(model, layer)."
        )

    def _replicate_for_data_parallel(self) -> NoReturn:
        raise UnavailableError(
            "nn.DataParallel copies a model to several GPUs in every call, and an optimised one has its "
            "weights packed for one. Optimise the model once for each GPU, in a process of its own."
        )

    def __prepare_scriptable__(self) -> NoReturn:
        raise ExportError(
            "torch.jit.script cannot take an optimised model, which is one call of this package's engine. "
            "Give it the model that was optimised, or use torch.jit.trace."
        )

    def __getstate__(self) -> dict[str, Any]:
        # One flat tensor instead of its views: pickle would store the whole memory once for each of them.
        state = {k: v for k, v in self.__dict__.items() if k not in _DERIVED}
        asked = [t.requires_grad for t in self._own]
        return {**state, "_shapes": [t.shape for t in self._own], "_require_gradients": asked}

    def __setstate__(self, state: dict[str, Any]) -> None:
        shapes, asked = state.pop("_shapes"), state.pop("_require_gradients", None)
        super().__setstate__({**state, "_modules": {}, "_engine": None})  # type: ignore[no-untyped-call]
        if self._flat.is_inference():
            with torch.inference_mode(False):  # see __init__
                self._flat = self._flat.clone()
        self._bind(shapes, asked)

    def description(self) -> dict[str, str]:
        """What a file needs beside the state dict to make this module again."""
        return {"structure": self._structure, "returns": "tensor" if self._single else "default"}

    def extra_repr(self) -> str:
        asked = ", ".join(f"{name}={value}" for name, value in asdict(self._settings).items())
        return f"source={self._outline.source or None}, blocks={len(self._outline.parts)}, {asked}"


def _for_modes(weights: list[Tensor]) -> list[Tensor]:
    """The weights as dispatch modes take them: many refuse classes of parameters that they do not know."""
    if torch.compiler.is_compiling() or not routes.modes():
        return weights
    return [t.plain if isinstance(t, Weight) and not t.requires_grad else t for t in weights]
