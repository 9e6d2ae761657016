"""The memory of a training step, found by running the step on tensors that have shapes and no values.

Every storage's birth and death is followed through forward pass, backward pass, optimiser and averages. What kernels take
for themselves (convolutions' workspaces) is not seen, nor what an allocator loses between blocks.
"""

from __future__ import annotations

import copy
import weakref
from collections import Counter
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd import Variable
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from pidistill.core.precision import autocast
from pidistill.core.seeds import stream
from pidistill.nets.parts import native
from pidistill.objectives.base import Batch, Objective, Part, Phase
from pidistill.training.config import RunConfig, list_averages
from pidistill.training.optimizer import for_phase, make_optimizer
from pidistill.training.recompute import recompute_networks
from pidistill.training.unit import hold_constant

ACTIVATIONS = "activations"  # labels that begin so grow with the samples at a time; all else does not

# What autocast lifts to float32 on a GPU and leaves alone on the CPU (PyTorch's lists of operations).
LIFTED_OPERATIONS = {"group_norm", "layer_norm", "softmax", "log_softmax", "sum", "prod", "cumsum", "exp", "expm1", "log",
                     "log1p", "pow", "reciprocal", "rsqrt", "softplus", "logsumexp", "cosine_similarity", "mse_loss",
                     "l1_loss", "huber_loss"}


class GPUEmulation(TorchFunctionMode):
    """Computes on the CPU as a GPU would: attention without its matrix in memory, autocast's float32 lists.

    The tensors stay those of the CPU: a backward pass on pretended GPU tensors needs a GPU.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is scaled_dot_product_attention and torch.backends.cuda.mem_efficient_sdp_enabled():
            return torch.ops.aten._scaled_dot_product_efficient_attention(*args[:3], None, True)[0]
        if torch.is_autocast_enabled("cpu") and getattr(function, "__name__", "") in LIFTED_OPERATIONS:
            args = [x.float() if isinstance(x, Tensor) and x.is_floating_point() else x for x in args]
        return function(*args, **(kwargs or {}))


class Ledger(TorchDispatchMode):
    """Counts the bytes alive while tensors come and go, by what they are for; `peak` is the split when the sum was highest.

    block: sizes are rounded up to its multiples, as an allocator does.
    """

    def __init__(self, block: int):
        super().__init__()
        self.block = block
        self.alive: Counter[str] = Counter()
        self.total = self.highest = 0
        self.peak: dict[str, int] = {}
        self.label = ACTIVATIONS
        self._entries: dict[int, tuple[str, int, Any]] = {}  # of every storage: label, bytes, and what tells of its end

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            # There is no value to ask for; a step count is long past the warm-up of RAdam, a label is the first.
            return 100.0 if args[0].is_floating_point() else 0
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (list, tuple)) else (result,):
            if isinstance(tensor, Tensor):
                self.count(tensor)
        return result

    def count(self, tensor: Tensor, label: str | None = None) -> None:
        """Count the tensor's storage, or, given a label, count it under that one from now on."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._entries and label:
            former, size, reference = self._entries[key]
            self._entries[key] = label, size, reference
            self.alive[former] -= size
            self.alive[label] += size
        elif key not in self._entries:
            label, size = label or self.label, -(-storage.nbytes() // self.block) * self.block
            self._entries[key] = label, size, weakref.ref(storage, lambda _: self._drop(key))
            self.alive[label] += size
            self.total += size
        if self.total > self.highest:
            self.highest, self.peak = self.total, dict(self.alive)

    def _drop(self, key: int) -> None:
        label, size, _ = self._entries.pop(key)
        self.alive[label] -= size
        self.total -= size


class Rehearsal:
    """Rehearses the steps of a run without values; a call gives the memory that a step takes.

    objective: of the run, on the CPU or the meta device; it stays as it is.
    config: of the run.
    gpu: as on a GPU, else as on the CPU.
    processes: more than a single one exchange their gradients, which takes a copy of them.
    """

    def __init__(self, objective: Objective, config: RunConfig, gpu: bool, processes: int = 1):
        self.config, self.gpu, self.processes = config, gpu, processes
        self.known: dict[tuple[int, bool], dict[str, dict[str, int]]] = {}  # of large networks a step takes many seconds
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.examples = [[draw_example(part, number) for part in phase.parts]
                         for number, phase in enumerate(objective.phases())]
        objective.forget()
        self.objective = copy_as_fake(objective, self.fake)
        if config.train.recompute:
            recompute_networks(self.objective.networks.values())

    def __call__(self, micro: int, accumulate: bool) -> dict[str, int]:
        """Give the bytes at the fullest moment of a step with `micro` samples at a time, by what they are for.

        accumulate: the step has several such microbatches, and the gradients of those before are there already.
        """
        return max(self.by_phase(micro, accumulate).values(), key=lambda sizes: sum(sizes.values()))

    def by_phase(self, micro: int, accumulate: bool) -> dict[str, dict[str, int]]:
        """Give the bytes at the fullest moment of every phase, by its name and by what they are for."""
        if (micro, accumulate) not in self.known:
            phases = self.objective.phases()
            self.known[micro, accumulate] = {
                phase.name: max((self.rehearse(phases, number, part, samples, accumulate or len(phase.parts) > 1)
                                 for part, samples in enumerate(self.count_samples(phase, micro))),
                                key=lambda sizes: sum(sizes.values()))
                for number, phase in enumerate(phases)}
        return self.known[micro, accumulate]

    def count_samples(self, phase: Phase, micro: int) -> list[int]:
        """Count the samples at a time of every part of a phase: `micro`, or all that a process has of it."""
        if len(phase.parts) == 1:
            return [micro]
        return [min(micro, max(1, -(-len(ks) // self.processes))) for ks in phase.split(self.config.train.batch)]

    def rehearse(self, phases: list[Phase], number: int, part: int, micro: int, accumulate: bool) -> dict[str, int]:
        """Give the bytes at the fullest moment of a part of phase `number`. Parameters as above."""
        objective, config, ledger = self.objective, self.config, Ledger(512 if self.gpu else 64)
        averaged = [objective.networks[name] for name in objective.averaged]
        trained = trained_parameters(objective, phases[number])
        with ExitStack() as stack:
            stack.enter_context(self.fake)
            stack.enter_context(ledger)
            if self.gpu:
                stack.enter_context(GPUEmulation())
                stack.enter_context(native.switched_off())
            for label, tensors in group_tensors(objective).items():
                for tensor in tensors:
                    ledger.count(tensor, label)
            for name, call in objective.calls.items():
                if isinstance(call, nn.Module):
                    stack.enter_context(ModuleLabel(call, ledger, f"{ACTIVATIONS} of the {name}"))
            ledger.label = "EMA"
            averages = [torch.empty_like(t) for net in averaged for t in list_tensors(net) for _ in list_averages(config)]
            optimizers = [self.take_first_step(phase, ledger, keep=accumulate and phase is phases[number])
                          for phase in sorted(phases, key=lambda phase: phase is phases[number])]

            ledger.label = "gradients"
            exchanged = [torch.zeros_like(p) for p in trained] if self.processes > 1 else []
            ledger.label = ACTIVATIONS
            for p in trained:
                hook = p.register_post_accumulate_grad_hook(lambda p: ledger.count(p.grad, "gradients"))
                stack.callback(hook.remove)
            stack.enter_context(hold_constant(objective, phases[number]))
            batch = {key: value.new_empty((micro, *value.shape)) for key, value in self.examples[number][part].items()}
            with autocast(config.precision, torch.device("cpu")):
                loss = phases[number].parts[part].loss(batch, 0).sum()
            # loss.backward() would leave `GPUEmulation` meanwhile, and blocks that are computed again would not see it.
            Variable._execution_engine.run_backward((loss,), (torch.ones_like(loss),), False, False, (),
                                                    allow_unreachable=True, accumulate_grad=True)
            for p in trained:
                p.grad = None
            del averages, exchanged, optimizers
        return {label: size for label, size in ledger.peak.items() if size}

    def take_first_step(self, phase: Phase, ledger: Ledger, keep: bool) -> torch.optim.Optimizer:
        """Take a phase's optimiser through a step of no gradient, so that it has its state. keep: the gradients stay."""
        parameters = trained_parameters(self.objective, phase)
        settings = for_phase(self.config.optimizer, phase)
        ledger.label = "gradients"
        for p in parameters:
            p.grad = torch.zeros_like(p)
        ledger.label = "optimiser"
        optimizer = make_optimizer(settings, iter(parameters))
        for group in optimizer.param_groups:
            if self.gpu and not group.get("fused") and group.get("foreach") is None:
                group["foreach"] = True  # PyTorch's own choice there
        nn.utils.clip_grad_norm_(parameters, settings.clip or float("inf"))
        optimizer.step()
        if not keep:
            optimizer.zero_grad(set_to_none=True)
        return optimizer


class ModuleLabel:
    """While this is entered, the tensors that a module makes are counted in the ledger under a label of their own."""

    def __init__(self, module: Any, ledger: Ledger, label: str):
        self.module, self.ledger, self.label = module, ledger, label

    def __enter__(self) -> None:
        former = self.ledger.label
        self.hooks = [self.module.register_forward_pre_hook(lambda *_: setattr(self.ledger, "label", self.label)),
                      self.module.register_forward_hook(lambda *_: setattr(self.ledger, "label", former))]

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()


def draw_example(part: Part, number: int) -> Batch:
    """Draw a sample of a part of the objective's `number`-th phase, as tensors without a batch's dimension."""
    return {key: torch.as_tensor(np.asarray(value)) for key, value in part.draw(stream(0, phase=number), 0).items()}


def copy_as_fake(objective: Objective, mode: FakeTensorMode) -> Objective:
    """Copy the objective and all that it calls, with fake tensors on the CPU (of `mode`) as weights."""
    with mode:
        copies = {}
        for tensor in (tensor for tensors in group_tensors(objective).values() for tensor in tensors):
            empty = torch.empty_like(tensor, device="cpu")
            copies[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    return copy.deepcopy(objective, copies)


def group_tensors(objective: Objective) -> dict[str, list[Tensor]]:
    """Group what is in memory before a step: the trained weights, the copies that follow them, and each call's tensors."""
    collect = lambda modules: [tensor for module in modules for tensor in list_tensors(module)]
    return {"weights": collect(objective.networks.values()), "followers": collect(objective.copies.values()),
            **{name: list_tensors(call) for name, call in objective.calls.items()}}


def trained_parameters(objective: Objective, phase: Phase) -> list[nn.Parameter]:
    """List the parameters that a phase trains."""
    return [p for name, network in objective.networks.items() if name in phase.trains
            for p in network.parameters() if p.requires_grad]


def list_tensors(module: Any) -> list[Tensor]:
    """List the parameters and buffers of a module; what is no module has none."""
    return [*module.parameters(), *module.buffers()] if isinstance(module, nn.Module) else []
