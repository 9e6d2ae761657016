"""An Apple GPU where there is none: tensors of the CPU that say they are on `mps`, and refuse what that device refuses.

Refused are float64 in every operation, numbers of two devices in one operation, and copies that change to or from float64
on the way. The storages of tensors on the device are known, and what is computed from them is on it too; the numbers are the
CPU's, so that a run there equals one on the CPU to the bit, as far as both use the same kernels.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DEVICE, CPU = torch.device("mps:0"), torch.device("cpu")
ORIGINAL_TO, ORIGINAL_DEVICE = Tensor.to, torch._C.TensorBase.device
aten = torch.ops.aten
ACROSS = {aten.copy_.default, aten.index.Tensor, aten.index_put_.default, aten._index_put_impl_.default}  # may take CPU's


class Refused(RuntimeError):
    """What PyTorch says on a Mac."""


class Local(threading.local):
    """What a thread is at: where it moves tensors to, and whether an operation of the device is under way."""

    to: torch.device | None = None
    inside = False


class AppleGPU:
    """The device; `enter` makes it there. counted: operations on it."""

    def __init__(self) -> None:
        self.storages: dict[int, Any] = {}
        self.local = Local()
        self.counted = 0

    def holds(self, x: Tensor) -> bool:
        while torch._C._functorch.is_functorch_wrapped_tensor(x):
            x = torch._C._functorch.get_unwrapped(x)
        return x.untyped_storage()._cdata in self.storages if ORIGINAL_DEVICE.__get__(x).type == "cpu" else False

    def mark(self, x: Tensor) -> None:
        if x.dtype == torch.float64:
            raise Refused("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")
        storage = x.untyped_storage()
        key = storage._cdata
        if key not in self.storages:
            self.storages[key] = weakref.ref(storage, lambda _: self.storages.pop(key, None))

    @contextmanager
    def move(self, to: torch.device) -> Iterator[None]:
        self.local.to = to
        try:
            yield
        finally:
            self.local.to = None

    def device_of(self, x: Tensor) -> torch.device:
        return DEVICE if self.holds(x) else ORIGINAL_DEVICE.__get__(x)

    def to(self, x: Tensor, *args: Any, copy: bool = False, **kwargs: Any) -> Tensor:
        """Tensor.to: one step changes the device or, on the CPU, the type from or to float64, not both."""
        if args and isinstance(args[0], Tensor):
            args, kwargs = (args[0].device, args[0].dtype), kwargs
        with torch._C.DisableTorchFunction():  # or `Factories` would put the CPU in place of a device that is named
            device, dtype, _, memory = torch._C._nn._parse_to(*args, **kwargs)
        source, dtype = x.device, dtype or x.dtype
        target = source if device is None else DEVICE if device.type == "mps" else device
        layout = {} if memory is None else {"memory_format": memory}
        if DEVICE not in (source, target):
            return ORIGINAL_TO(x, target, dtype, copy=copy, **layout)
        if torch.float64 in (dtype, x.dtype):
            raise Refused(f"from {x.dtype} on {source} to {dtype} on {target}")
        if source == target:
            return ORIGINAL_TO(x, dtype, copy=copy, **layout)
        with self.move(target):
            moved = ORIGINAL_TO(x, dtype, copy=True, **layout)
        if target == DEVICE and not torch._C._functorch.is_functorch_wrapped_tensor(moved):
            self.mark(moved)  # also in threads, which know nothing of the modes
        return moved

    @contextmanager
    def enter(self, patch: Any) -> Iterator[AppleGPU]:
        """patch: pytest's monkeypatch, which takes everything back."""
        from accelerate.state import AcceleratorState, GradientState, PartialState

        states = (PartialState, AcceleratorState, GradientState)
        patch.setattr(Tensor, "device", property(self.device_of), raising=False)
        patch.setattr(Tensor, "to", lambda x, *args, **kwargs: self.to(x, *args, **kwargs), raising=False)
        patch.setattr(Tensor, "cpu", lambda x, **_: self.to(x, CPU), raising=False)
        patch.setattr(torch.backends.mps, "is_available", functools.lru_cache(lambda: True))  # PyTorch's is one, too
        patch.setattr("accelerate.state.is_mps_available", lambda *_: True)
        patch.setattr("torch.nn.utils.clip_grad._device_has_foreach_support", lambda *_: False)
        patch.setattr("torch.nn.utils.clip_grad._has_foreach_support", lambda *_: False)
        for state in states:
            state._reset_state()
        with Factories(self), Operations(self):
            yield self
        for state in states:
            state._reset_state()


class Factories(TorchFunctionMode):
    """torch.zeros(..., device="mps") and the like; and what an operation of the device makes for itself."""

    def __init__(self, gpu: AppleGPU):
        super().__init__()
        self.gpu = gpu

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        device = kwargs.get("device")
        if device is None:
            local, before = self.gpu.local, self.gpu.local.inside
            local.inside = before or any(self.gpu.holds(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor))
            try:
                return function(*args, **kwargs)
            finally:
                local.inside = before
        device = torch.device(device)
        with self.gpu.move(DEVICE if device.type == "mps" else device):
            return function(*args, **kwargs | {"device": CPU if device.type == "mps" else device})


class Operations(TorchDispatchMode):
    """What is computed from tensors on the device is on the device."""

    def __init__(self, gpu: AppleGPU):
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        gpu, kwargs = self.gpu, kwargs or {}
        to = gpu.local.to
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        there = [x for x in given if gpu.holds(x)]
        if there and to is None:
            gpu.counted += 1
            strangers = [x for x in given if x.ndim and not gpu.holds(x)]
            if (strangers and function not in ACROSS) or any(x.dtype == torch.float64 for x in strangers):
                raise Refused(f"{function}: {[(x.dtype, tuple(x.shape)) for x in strangers]} of the CPU among the device's")
        result = function(*args, **kwargs)
        arrived = function is aten.copy_.default and not gpu.holds(given[0])  # on the CPU
        made = gpu.local.inside and not given
        if to == DEVICE or (to is None and (made or (there and not arrived))):
            for x in tree_leaves(result):
                number = made and isinstance(x, Tensor) and x.ndim == 0 and x.dtype == torch.float64  # of Python's
                if isinstance(x, Tensor) and not number:
                    gpu.mark(x)
        return result
