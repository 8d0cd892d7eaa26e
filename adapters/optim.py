"""torch optimizers around the fused Adam."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from twofold.adapters import sides
from twofold.adapters.arguments import capturing
from twofold.reference import checks

MOMENTS = "exp_avg", "exp_avg_sq"


class AdamW(torch.optim.AdamW):
    """AdamW (Loshchilov & Hutter 2019), one launch for each parameter.

    It is built, saved and loaded as `torch.optim.AdamW` is, and has the same state: either loads
    the other's. `foreach`, `fused` and `capturable` choose among torch's implementations and are
    ignored.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._step_supports_amp_scaling = False  # or GradScaler, if `fused`, leaves it to us

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with options of their own.

        Raises:
            TypeError, ValueError: naming the option whose value Adam does not take here.
        """
        if isinstance(param_group, dict):  # torch refuses anything else
            _numbers({**self.defaults, **param_group})
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; `closure` computes the loss again and returns it.

        Parameters without data, on meta or under FakeTensorMode, get their state, and their steps
        are counted.

        Raises:
            ValueError, TypeError: `amsgrad`, `maximize` or `differentiable` is set, a number is one
                that Adam does not take, a shape is not the parameter's, or no kernel has the dtype.
            RuntimeError: a tensor is sparse, complex or expanded, or a CUDA graph is being
                captured.
            In all these cases nothing is changed.
        """
        if capturing():
            must = "it must be outside: a replay would take the same step again, at the same rate"
            raise RuntimeError(f"AdamW steps while a CUDA graph is captured; {must}")
        # Once for each group: a number that is a tensor on a GPU makes the host wait.
        numbers = [_numbers(group) for group in self.param_groups]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
            numbers = [_numbers(group) for group in self.param_groups]
        moved = [
            (f"parameter {i} of group {g}", parameter, parameter.grad, numbers[g])
            for g, group in enumerate(self.param_groups)
            for i, parameter in enumerate(group["params"])
            if parameter.grad is not None
        ]
        for name, parameter, grad, _ in moved:
            self._check(name, parameter, grad)
        for _, parameter, grad, of_group in moved:
            self._one(parameter, grad, of_group)
        return loss

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _check(self, name: str, parameter: torch.Tensor, grad: torch.Tensor) -> None:
        """Refuse a parameter that cannot take its step, before any has taken one."""
        state = self.state.get(parameter) or {}
        written = {name: parameter, **{f"{m} of {name}": state[m] for m in MOMENTS if state}}
        tensors = {**written, f"the gradient of {name}": grad}
        for this, x in tensors.items():
            if x.layout != torch.strided or x.is_complex():
                was = "complex" if x.is_complex() else x.layout
                raise RuntimeError(f"{this} is {was}; it must be dense and real")
        checks.floating(**tensors)
        for this, x in tensors.items():
            if x.shape != parameter.shape:
                must = f"it must be {tuple(parameter.shape)}"
                raise ValueError(f"shape of {this} is {tuple(x.shape)}; {must}")
        for this, x in written.items():
            if checks.expanded(x.shape, x.stride()):
                must = "it must have an element of its own for each"
                raise RuntimeError(f"{this} is expanded, with strides {x.stride()}; {must}")
        if state and _has_numbers(state["step"]):
            steps = float(state["step"])
            checks.require(steps >= 0.0, f"step of {name}", steps, "at least 0")
        if _has_numbers(parameter) and sides.of(parameter).side.name == "triton":
            from twofold.kernels.precision import DTYPES

            checks.choice(f"dtype of {name}", checks.dtype_name(parameter), DTYPES)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _one(self, parameter: torch.Tensor, grad: torch.Tensor, numbers: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.tensor(0.0, dtype=torch.float32, device="cpu")
            for name in MOMENTS:
                state[name] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        if state["step"].is_cuda:  # torch's fused AdamW put it there: every step would wait
            state["step"] = state["step"].cpu()
        state["step"] += 1
        if parameter.numel() == 0 or not _has_numbers(parameter):
            return
        place = sides.of(parameter)
        own = (parameter, *(state[name] for name in MOMENTS))
        tensors = [_local(x) for x in (parameter, grad, *own[1:])]
        given = [place.give(x.contiguous()).reshape(-1) for x in tensors]
        with sides.current(parameter):
            place.side.optimizers.adam(*given, step=int(state["step"]), **numbers)
        for x, y in zip(tensors, given, strict=True):
            computed = torch.as_tensor(y)
            if x is not tensors[1] and computed.data_ptr() != x.data_ptr():  # a copy was updated
                x.copy_(computed.reshape(x.shape))
        # Autograd must notice if a tensor that it saved for backward has changed.
        torch.autograd.graph.increment_version(own)


def _local(x: torch.Tensor) -> torch.Tensor:
    """Return this process's share of a distributed tensor, any other tensor as it is."""
    return x.to_local() if hasattr(x, "to_local") else x


def _has_numbers(x: torch.Tensor) -> bool:
    """Return whether a tensor has data, as those on meta and fake ones do not."""
    return _local(x).untyped_storage().device.type != "meta"


def _numbers(group: dict[str, Any]) -> dict[str, Any]:
    """Return a group's options as Adam takes them; refuse those it does not take here."""
    for name in ("amsgrad", "maximize", "differentiable"):
        if group[name]:
            raise ValueError(f"{name} is {group[name]}; it must be False")
    names = ("lr", "weight_decay", "beta1", "beta2")
    given = (group["lr"], group["weight_decay"], *group["betas"])
    found = {name: float(x) for name, x in zip(names, given, strict=True)}
    for name in names[:2]:
        x = found[name]
        checks.require(0.0 <= x < math.inf, name, x, "at least 0 and finite")
    for name in names[2:]:
        checks.probability(name, found[name])
    checks.positive("eps", group["eps"])
    return found | {"eps": group["eps"], "decoupled": group["decoupled_weight_decay"]}
