"""Custom torch operators made from a side's operators: what `torch.library` needs, in one place.

Batches may be empty, as in torch's own modules: then the outputs are empty, and the gradients of
all other inputs are 0. As neither side takes empty batches, `empty` checks such calls.

Each operator becomes two, `twofold::name` and `twofold::name_backward`, so that torch.compile sees
both whole, with implementations for fake tensors and a formula for autograd. Saved for backward are
the arguments and outputs that it reads; the kernels need no more, and NumPy, which keeps more,
recomputes it. A tensor made under `torch.inference_mode` cannot be saved, as in torch: if weights
are to be trained on it, use `x.clone()`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch.autograd import forward_ad

from twofold.adapters import empty, sides
from twofold.adapters.batches import one_by_one, refuse_batches, refuse_further
from twofold.adapters.sides import Place
from twofold.reference import checks

Tensors = tuple[torch.Tensor, ...]
LIBRARY = torch.library.Library("twofold", "FRAGMENT")


class Operator:
    """A custom operator, called with all its arguments in order.

    Args:
        name: after "twofold::".
        arguments: as a schema has them, such as "Tensor x, Tensor? bias", the first a tensor.
        outputs: how many tensors it returns; one that is not there is empty.
        forward: computes them, of (place, arguments, arguments as the side takes them).
        shapes: allocates them, of the arguments.
        alike: arguments that share one dtype where they are floating. Kernels refuse others; NumPy
            would not see that they differ, as it is given those of 16 bits in 32.
        backward: the gradients of what is `differentiable`, of (place, arguments, arguments as the
            side takes them, outputs, gradients of the outputs), by name. `wanted` is one of the
            arguments: the names of those whose gradient is asked for. Others may be missing, or
            made for nothing, as dweight and dbias of a frozen layer norm are.
        differentiable: arguments that have a gradient.
        unread: given the arguments and `wanted`, returns those that `backward` asks for their
            shape, dtype and device alone: they are not kept, may be changed in place, and hold
            nothing there.
        read: given the arguments, returns the indices of the outputs that `backward` reads; others
            are not kept, may be changed in place, and stand empty in its `outputs`.
        steady: indices of outputs that have no gradient.
        same: given the arguments, returns those whose gradient is that of another, by name; it is
            made once.
        rows: whether gradients lie as `side_by_side`, else they are contiguous.
        twice: whether there is a formula for gradients of gradients, registered elsewhere.
        optional: outputs whose gradient `backward` takes as None where there is none; of others
            it gets zeros.
    """

    def __init__(
        self,
        name: str,
        arguments: str,
        outputs: int,
        *,
        forward: Callable[[Place, SimpleNamespace, SimpleNamespace], Tensors],
        shapes: Callable[[SimpleNamespace], Tensors],
        alike: Sequence[str],
        backward: Callable[..., Mapping[str, Any]],
        differentiable: Sequence[str],
        unread: Callable[[SimpleNamespace], Sequence[str]] = lambda a: (),
        read: Callable[[SimpleNamespace], Sequence[int]] = lambda a: (),
        steady: Sequence[int] = (),
        optional: Sequence[int] = (),
        same: Callable[[SimpleNamespace], Mapping[str, str]] = lambda a: {},
        rows: bool = False,
        twice: bool = False,
    ) -> None:
        self.names = [part.split()[-1] for part in arguments.split(", ")]
        self._forward, self._shapes, self._backward = forward, shapes, backward
        self._alike = alike
        self.differentiable, self._read, self._unread = differentiable, read, unread
        self._constant = [i for i, n in enumerate(self.names) if n not in differentiable]
        self._steady, self._optional = steady, optional
        self._same, self._room = same, side_by_side if rows else dense
        returned = "Tensor" if outputs == 1 else f"({', '.join(['Tensor'] * outputs)})"
        # As `torch.library.custom_op` would, whose formula for autograd takes time that grows with
        # the square of the number of arguments: half a millisecond of the host for attention's.
        LIBRARY.define(f"{name}({arguments}) -> {returned}", tags=(torch.Tag.pt2_compliant_tag,))
        LIBRARY.impl(name, self._run, "CompositeExplicitAutograd")
        torch.library.register_fake(f"twofold::{name}", self._fake, lib=LIBRARY)
        LIBRARY.impl(name, self._recorded, "Autograd")
        self.op = getattr(torch.ops.twofold, name).default
        self._function: Any = type(name, (torch.autograd.Function,), self._formula())
        self.backward_op = torch.library.custom_op(
            f"twofold::{name}_backward",
            mutates_args=(),
            schema=f"(Tensor[] grads, int[] which, Tensor[] outputs, bool[] wanted, {arguments})"
            " -> Tensor[]",
        )(self._run_backward)
        self.backward_op.register_fake(self._fake_backward)
        one_by_one(self.backward_op)
        refuse_batches(LIBRARY, f"{name}_backward")
        if not twice:
            refuse_further(self.backward_op, f"{name} once: only attention's gradients have one")

    def __call__(self, *args: Any) -> Any:
        """Return what the operator computes: one tensor, or a tuple of several."""
        return self.op(*args)

    def named(self, args: Sequence[Any]) -> SimpleNamespace:
        """Return the arguments of a call by name."""
        return SimpleNamespace(**dict(zip(self.names, args, strict=True)))

    def _run(self, *args: Any) -> Any:
        a = self.named(args)
        checks.array(self.names[0], args[0])  # torch lets None pass for a tensor
        sides.check(vars(a))
        if args[0].numel() == 0:
            empty.check(self._run, vars(a))
            if not any(x.numel() for x in self._shapes(a)):
                return self._fake(*args)
        place = sides.of(args[0])
        if place.side.name == "reference":
            given = ((name, getattr(a, name)) for name in self._alike)
            checks.floating(**{n: x for n, x in given if x is not None and x.is_floating_point()})
        with sides.current(args[0]):
            found = self._forward(place, a, self.given(place, a))
        if place.side.name == "reference":  # which has strides and dtypes of its own
            found = tuple(to.copy_(x) for to, x in zip(self._shapes(a), found, strict=True))
        return found if len(found) > 1 else found[0]

    def _fake(self, *args: Any) -> Any:
        self._refuse_some_of_meta(args)
        found = self._shapes(self.named(args))
        return found if len(found) > 1 else found[0]

    def given(self, place: Place, a: SimpleNamespace) -> SimpleNamespace:
        """Return the arguments as a side takes them."""
        return SimpleNamespace(**{name: place.give(x) for name, x in vars(a).items()})

    def present(self, a: SimpleNamespace, wanted: Sequence[bool]) -> list[str]:
        """Return the arguments that are there and whose gradient is asked for."""
        asked = zip(self.differentiable, wanted, strict=True)
        return [name for name, this in asked if this and getattr(a, name) is not None]

    def made(self, a: SimpleNamespace, wanted: Sequence[bool]) -> list[str]:
        """Return those of them whose gradient is not the same as that of another of them."""
        present, same = self.present(a, wanted), self._same(a)
        return [name for name in present if same.get(name) not in present]

    def _run_backward(
        self,
        grads: Sequence[Any],
        which: Sequence[int],
        outputs: Sequence[Any],
        wanted: Sequence[bool],
        *args: Any,
    ) -> list[torch.Tensor]:
        a = self.named(args)
        names = self.made(a, wanted)
        if not any(g.numel() for g in grads):
            return [self._room(getattr(a, n)).zero_() for n in names]
        first = getattr(a, self.names[0])
        place = sides.of(first)
        there = dict(zip(which, grads, strict=True))
        each = [there.get(i) for i in range(len(outputs))]
        with sides.current(first):
            given = self.given(place, a)
            a.wanted = self.present(a, wanted)
            found = self._backward(place, a, given, outputs, each)
        return apart(self._laid_out(place.take(found[n], getattr(a, n))) for n in names)

    def _laid_out(self, x: torch.Tensor) -> torch.Tensor:
        """Return a gradient as `_fake_backward` says that it lies: as it is, or a copy."""
        if self._room is dense:
            return x.contiguous()
        if x.stride() == self._room(x.to("meta")).stride():
            return x
        return self._room(x).copy_(x)

    def _fake_backward(
        self,
        grads: Sequence[Any],
        which: Sequence[int],
        outputs: Sequence[Any],
        wanted: Sequence[bool],
        *args: Any,
    ) -> list[torch.Tensor]:
        a = self.named(args)
        return [self._room(getattr(a, n)) for n in self.made(a, wanted)]

    def _recorded(self, *args: Any) -> Any:
        """Compute, and have autograd record how to differentiate where it is asked to."""
        sides.refuse_nested(zip(self.names, args, strict=True))
        if forward_ad._current_level >= 0:
            self._refuse_tangents(args)
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*args):
            if torch._C._are_functorch_transforms_active():
                must = "it must be differentiated by torch.autograd: torch.func does not reach it"
                raise RuntimeError(f"{self.op} is within a transform of torch.func; {must}")
            self._refuse_learning(args)
            return self._function.apply(*args)
        return self._unrecorded(args)

    def _refuse_tangents(self, args: Sequence[Any]) -> None:
        """Raise where a derivative is asked for forwards, which autograd would take for zero."""
        for name, x in zip(self.names, args, strict=True):
            if isinstance(x, torch.Tensor) and forward_ad.unpack_dual(x).tangent is not None:
                must = "it must have none: only torch.autograd's derivatives, backwards, are there"
                raise RuntimeError(f"{name} of {self.op} has a tangent; {must}")

    def _refuse_learning(self, args: Sequence[Any]) -> None:
        """Raise where a gradient is asked for that is never made."""
        for i in self._constant:
            if isinstance(args[i], torch.Tensor) and args[i].requires_grad:
                must = "it must not, as it gets none: x.detach() does not"
                raise RuntimeError(f"{self.names[i]} of {self.op} requires a gradient; {must}")

    def _refuse_some_of_meta(self, args: Sequence[Any]) -> None:
        """Raise where some tensors have numbers and others none, for which nothing is computed."""
        tensors = [
            (name, x)
            for name, x in zip(self.names, args, strict=True)
            if isinstance(x, torch.Tensor) and x.ndim  # a seed may be the host's
        ]
        for name, x in tensors:
            if x.is_meta != tensors[0][1].is_meta:
                must = f"it must be on that of {tensors[0][0]}, {tensors[0][1].device}"
                raise ValueError(f"{name} of {self.op} is on device {x.device}; {must}")

    def _unrecorded(self, args: Sequence[Any]) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return self.op(*args)

    def _formula(self) -> dict[str, Any]:
        """Return what a function of autograd is made of."""

        def forward(ctx: Any, *args: Any) -> Any:
            found = self._unrecorded(args)
            outputs = found if isinstance(found, tuple) else (found,)
            a, none = self.named(args), nothing(outputs[0])
            a.wanted = self.present(a, self._asked(ctx))
            read, unread = self._read(a), self._unread(a)
            kept_args = [
                shaped(x) if name in unread and x is not None else x
                for name, x in zip(self.names, args, strict=True)
            ]
            keep(ctx, kept_args, [x if i in read else none for i, x in enumerate(outputs)])
            ctx.mark_non_differentiable(*(outputs[i] for i in self._steady))
            return found

        def backward(ctx: Any, *grads: Any) -> Any:
            return self._differentiate(ctx, *grads)

        return {"forward": staticmethod(forward), "backward": staticmethod(backward)}

    def _asked(self, ctx: Any) -> list[bool]:
        """Return for each argument that has a gradient whether it is asked for."""
        asked = dict(zip(self.names, ctx.needs_input_grad, strict=True))
        return [asked[name] for name in self.differentiable]

    def _differentiate(self, ctx: Any, *grads: Any) -> Any:
        args, outputs = kept(ctx)
        if all(g is None for g in grads):
            return (None,) * len(args)
        there = {i: g for i, g in enumerate(grads) if g is not None}
        needed = set(range(len(outputs))) - {*self._steady, *self._optional}
        if missing := needed - there.keys():
            shapes = self._shapes(self.named(args))
            there |= {i: torch.zeros_like(shapes[i]) for i in missing}
        which, wanted = sorted(there), self._asked(ctx)
        # No list with a None in it: autograd would take it for one that has no gradient.
        found = self.backward_op([there[i] for i in which], which, outputs, wanted, *args)
        a = self.named(args)
        by_name = dict(zip(self.made(a, wanted), found, strict=True))
        same = self._same(a)
        by_name |= {n: by_name[same[n]] for n in self.present(a, wanted) if n not in by_name}
        return tuple(by_name.get(name) for name in self.names)


def keep(ctx: Any, args: Sequence[Any], more: Sequence[torch.Tensor]) -> None:
    """Keep a call's arguments, tensors or not, and further tensors for its backward."""
    ctx.where = [i for i, x in enumerate(args) if isinstance(x, torch.Tensor)]
    ctx.rest = [None if i in ctx.where else x for i, x in enumerate(args)]
    ctx.save_for_backward(*(args[i] for i in ctx.where), *more)
    ctx.set_materialize_grads(False)


def kept(ctx: Any) -> tuple[list[Any], list[torch.Tensor]]:
    """Return the arguments and the further tensors that `keep` kept."""
    args, more = list(ctx.rest), list(ctx.saved_tensors)
    for i in ctx.where:
        args[i] = more.pop(0)
    return args, more


def apart(tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """Return tensors of which no two share memory, as torch asks for: a copy of one that does."""
    found: list[torch.Tensor] = []
    for x in tensors:
        places = {y.untyped_storage().data_ptr() for y in found}
        found.append(x.clone() if x.untyped_storage().data_ptr() in places else x)
    return found


def dense(x: torch.Tensor) -> torch.Tensor:
    """Allocate a contiguous tensor, shaped as x."""
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def zeros(likes: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """Return contiguous gradients of what nothing came of, shaped as these."""
    return [dense(x).zero_() for x in likes]


def shaped(x: torch.Tensor) -> torch.Tensor:
    """Return what has the shape, dtype and device of a tensor, and room for one number."""
    return x.new_empty(()).expand(x.shape)


def side_by_side(x: torch.Tensor) -> torch.Tensor:
    """Allocate (B, H, L, D) with the heads of a position side by side, as kernels do."""
    B, H, L, D = x.shape
    return x.new_empty_strided((B, H, L, D), (L * H * D, D, H * D, 1))


def statistics_dtype(x: torch.Tensor) -> torch.dtype:
    """Return the dtype of what is counted up beside a tensor: float32, of float64 its own."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def nothing(like: torch.Tensor) -> torch.Tensor:
    """Return what stands for an output that is not there."""
    return like.new_empty(0)
