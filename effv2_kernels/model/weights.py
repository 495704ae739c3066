"""The tensors of an optimised model, parameters that are views of one allocation, and the modules with them.

The engine keeps a packed copy of them. It is told of changes by the version counter that all views share, so
whatever would give a weight other memory, or another module its place, is turned into a change in place or
refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NoReturn, SupportsIndex

import torch
from torch import Tensor, nn

from effv2_kernels.errors import ModelError, UnavailableError


class Ledger:
    """What a model's weights have been asked for since it was made."""

    __slots__ = ("gradients",)

    def __init__(self) -> None:
        self.gradients = False  # some weight may require gradients


class Weight(nn.Parameter):
    """One tensor of a block, float32, a view of the model's one allocation.

    ``weight.data = other`` copies ``other`` into it. Changes in place are noticed by the model; those through
    ``weight.data.copy_(...)`` or an array that shares its memory are not, since PyTorch does not count them.
    """

    _ledger: Ledger | None = None
    _plain: Tensor | None = None

    @classmethod
    def of(cls, view: Tensor, ledger: Ledger, *, requires_grad: bool = False) -> Weight:
        """The parameter that shares memory and version counter with ``view``."""
        weight = cls(view, requires_grad=False)
        weight._ledger, weight._plain = ledger, view
        weight.requires_grad = requires_grad
        return weight

    @property
    def plain(self) -> Tensor:
        """The same memory and version counter as an ordinary tensor, which requires no gradient."""
        return self.detach() if self._plain is None else self._plain

    def _set_requires_grad(self, value: bool) -> None:
        torch._C.TensorBase.requires_grad.__set__(self, value)  # type: ignore[attr-defined]
        if value and self._ledger is not None:
            self._ledger.gradients = True

    # Read as ever: by no function of Python's, into which Torch's compiler might look.
    requires_grad = property(
        torch._C.TensorBase.requires_grad.__get__,  # type: ignore[attr-defined]
        _set_requires_grad,
    )

    def requires_grad_(self, requires_grad: bool = True) -> Weight:
        self.requires_grad = requires_grad
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Parameter:
        copied = memo[id(self)] = self._free()
        return copied

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        return self._free().__reduce_ex__(protocol)

    def _free(self) -> nn.Parameter:
        """An ordinary parameter with memory of its own: what a copy of one weight alone is."""
        return nn.Parameter(self.detach().clone(), self.requires_grad)

    def set_(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise ModelError(
            "a weight of an optimised model keeps its memory: change it in place, with .copy_(...). To "
            "parametrize or prune weights, do it to the model that was optimised, then call optimize() again."
        )

    def _set_data(self, value: Tensor) -> None:
        if value.shape != self.shape or value.device != self.device or value.dtype != self.dtype:
            raise ModelError(
                f"a weight of an optimised model is {self.dtype} {tuple(self.shape)} on {self.device} and "
                f"cannot become {value.dtype} {tuple(value.shape)} on {value.device}. Move the model with "
                f"model.to(device); precision is chosen with optimize(model, dtype=...)."
            )
        with torch.no_grad():
            self.copy_(value)

    data = property(
        torch._C.TensorBase.data.__get__,  # type: ignore[attr-defined]
        _set_data,
    )


class Fixed(nn.Module):
    """A module inside an optimised model: its parts stay what they are, and nothing ever calls it.

    Hooks on it would never run, and modules put into it would never be called: both are refused.
    """

    _what = "a part of an optimised model"

    def _refuse(self, what: str) -> NoReturn:
        raise ModelError(
            f"{what} {self._what} has no effect: the whole network runs as one call, not module by module. "
            f"Do it to the model that was optimised, then call optimize() again."
        )

    def _refuse_hook(self, *args: Any, **kwargs: Any) -> NoReturn:
        self._refuse("a hook on")

    register_forward_hook = _refuse_hook
    register_forward_pre_hook = _refuse_hook
    register_backward_hook = _refuse_hook
    register_full_backward_hook = _refuse_hook
    register_full_backward_pre_hook = _refuse_hook

    def add_module(self, name: str, module: nn.Module | None) -> None:
        self._refuse(f"a module '{name}' in")

    def register_buffer(self, name: str, *args: Any, **kwargs: Any) -> None:
        self._refuse(f"a buffer '{name}' in")

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        self._refuse(f"a parameter '{name}' in")

    def forward(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise ModelError(f"this holds {self._what} and cannot be called; call the whole model.")

    def __setattr__(self, name: str, value: Any) -> None:
        held = {**self.__dict__.get("_parameters", {}), **self.__dict__.get("_modules", {})}
        if held.get(name, value) is not value:
            raise ModelError(
                f"'{name}' of an optimised model cannot be replaced; change it in place, with "
                f"load_state_dict(...) or .copy_(...)."
            )
        if name in held:
            return  # as `part.bias += 1` ends
        if isinstance(value, (nn.Module, nn.Parameter)):
            self._refuse(f"'{name}' in")
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        if name in self._parameters or name in self._modules:
            self._refuse(f"deleting '{name}' of")
        super().__delattr__(name)


class Weights(Fixed):
    """The tensors of one block, or scale and shift of one feature, as parameters."""

    def __init__(self, kind: str, tensors: Mapping[str, Weight]) -> None:
        super().__init__()
        self.kind = kind
        self._what = f"the weights of a {kind}"
        self.training = False
        self._given = dict(tensors)
        self._parameters.update(tensors)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        # Who replaces a parameter has taken the old one out of this dictionary before.
        self._parameters.clear()
        self._parameters.update(self._given)
        super().register_parameter(name, param)

    def extra_repr(self) -> str:
        return ", ".join([self.kind, *(f"{name}={tuple(t.shape)}" for name, t in self.named_parameters())])

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        if torch.__future__.get_swap_module_params_on_conversion():
            raise UnavailableError(
                "an optimised model loads weights in place, which torch.__future__"
                ".set_swap_module_params_on_conversion(True) forbids: switch it off meanwhile."
            )
        in_place = {**local_metadata, "assign_to_params_buffers": False}
        super()._load_from_state_dict(state_dict, prefix, in_place, *args)


class Parts(Fixed, nn.ModuleList):
    """The blocks of a network in order, or its features."""

    _what = "the parts of an optimised model"

    def __init__(self, parts: Iterable[nn.Module] = ()) -> None:
        super().__init__()
        self.training = False
        self._modules.update({str(i): part for i, part in enumerate(parts)})

    def insert(self, index: int, module: nn.Module) -> None:
        self._refuse("a module in")
