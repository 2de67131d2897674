"""A pytest plugin: the contract tests of the ops take the `cpu` backend for one that is on a GPU.

The processor calculates everything, but a tensor made without a device counts as being on the GPU, and
so does what becomes of it. What a GPU would refuse is refused: operands here and there, the processor's
generator, a numpy array of what is there. So it is known where there is no GPU that the tests, and the
ops' own Python, put every tensor where it belongs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

#: May be given tensors from both sides: indices are brought along.
_CROSSES = (Tensor.copy_, Tensor.to, Tensor.__getitem__, Tensor.__setitem__)


class PretendedGPU(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self._there: dict[int, Any] = {}  # storages, kept so that no other takes their place

    def is_there(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._there

    def _put(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        self._there[storage._cdata] = storage

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        # As "cpu" only where somebody says so; a device object is that of a tensor, or the default.
        stays = kwargs.get("device") == "cpu" and isinstance(kwargs["device"], str)
        tensors = [v for v in tree_leaves((args, kwargs)) if _is_real(v)]
        there = [t for t in tensors if self.is_there(t)]
        here = [t for t in tensors if t.dim() and not self.is_there(t)]
        if there and here and func not in _CROSSES:
            shapes = ", ".join(str(tuple(t.shape)) for t in here)
            raise RuntimeError(f"{func.__name__}: operands on two devices, {shapes} on the CPU")
        if kwargs.get("generator") is not None and not stays:
            raise RuntimeError(f"{func.__name__}: the generator is not the GPU's")
        if func is Tensor.numpy and there:
            raise TypeError("numpy: the tensor is on the GPU")
        out = func(*args, **kwargs)
        if func is Tensor.cpu:
            return out.clone()
        if not stays and (there or not tensors or func is Tensor.to):
            for value in filter(_is_real, tree_leaves(out)):
                self._put(value)
        return out


def _is_real(value: Any) -> bool:
    """A tensor with memory, of this process's making."""
    return type(value) in (Tensor, torch.nn.Parameter) and value.device.type == "cpu"


def _device_of(name: str) -> AbstractContextManager[object]:
    return PretendedGPU() if name == "cpu" else nullcontext()


def pytest_collection_finish() -> None:
    (conftest,) = (
        module
        for module in list(sys.modules.values())
        if str(getattr(module, "__file__", "")).endswith("tests/ops/conftest.py")
    )
    conftest.device_of = _device_of  # type: ignore[attr-defined]
