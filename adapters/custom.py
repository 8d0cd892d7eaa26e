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
        arguments: as in a schema, such as "Tensor x, Tensor? bias"; the first is a tensor.
        outputs: how many tensors it returns; one that does not exist is empty.
        forward: computes the outputs from (place, arguments, arguments as the side takes them).
        shapes: allocates the outputs, given the arguments.
        alike: arguments that share one dtype if they are floating. Kernels refuse a mixture; NumPy
            would not notice one, as it gets 16-bit tensors in 32 bits.
        backward: returns the gradients of `differentiable` by name, from (place, arguments,
            arguments as the side takes them, outputs, gradients of the outputs). Among the
            arguments is `wanted`, the names of those whose gradient is needed. The gradients of
            others may be missing, or be computed in vain, as dweight and dbias of a frozen layer
            norm are.
        differentiable: arguments that have a gradient.
        unread: given the arguments and `wanted`, returns those of which `backward` uses only the
            shape, dtype and device: they are not kept, may be changed in place, and have no data in
            `backward`.
        read: given the arguments, returns the indices of the outputs that `backward` reads; others
            are not kept, may be changed in place, and are empty in its `outputs`.
        steady: indices of outputs that have no gradient.
        same: given the arguments, maps each whose gradient equals another's to that other one, by
            name; the gradient is computed once.
        rows: whether gradients are laid out as by `side_by_side`; otherwise they are contiguous.
        twice: whether there is a formula for gradients of gradients, registered elsewhere.
        optional: outputs whose gradient `backward` takes as None if there is none; for others it
            gets zeros.
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
        # As `torch.library.custom_op` would, but its autograd formula takes time quadratic in the
        # number of arguments: half a millisecond on the host for attention.
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
        """Return a call's arguments by name."""
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
        if place.side.name == "reference":  # its results have other strides and dtypes
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
        """Return the names of arguments that are not None and whose gradient is needed."""
        asked = zip(self.differentiable, wanted, strict=True)
        return [name for name, this in asked if this and getattr(a, name) is not None]

    def made(self, a: SimpleNamespace, wanted: Sequence[bool]) -> list[str]:
        """Return those of `present` whose gradient is computed, not the same as another's."""
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
        """Return a gradient in the layout that `_fake_backward` declares, copied if need be."""
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
        """Compute, and let autograd record how to differentiate if it must."""
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
        """Raise for a forward-mode derivative, which autograd would take for zero."""
        for name, x in zip(self.names, args, strict=True):
            if isinstance(x, torch.Tensor) and forward_ad.unpack_dual(x).tangent is not None:
                must = "it must have none: only torch.autograd's derivatives, backwards, are there"
                raise RuntimeError(f"{name} of {self.op} has a tangent; {must}")

    def _refuse_learning(self, args: Sequence[Any]) -> None:
        """Raise if an argument without a gradient requires one."""
        for i in self._constant:
            if isinstance(args[i], torch.Tensor) and args[i].requires_grad:
                must = "it must not, as it gets none: x.detach() does not"
                raise RuntimeError(f"{self.names[i]} of {self.op} requires a gradient; {must}")

    def _refuse_some_of_meta(self, args: Sequence[Any]) -> None:
        """Raise if some tensors have data and others, on meta, do not."""
        tensors = [
            (name, x)
            for name, x in zip(self.names, args, strict=True)
            if isinstance(x, torch.Tensor) and x.ndim  # a seed may be on the host
        ]
        for name, x in tensors:
            if x.is_meta != tensors[0][1].is_meta:
                must = f"it must be on that of {tensors[0][0]}, {tensors[0][1].device}"
                raise ValueError(f"{name} of {self.op} is on device {x.device}; {must}")

    def _unrecorded(self, args: Sequence[Any]) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return self.op(*args)

    def _formula(self) -> dict[str, Any]:
        """Return the methods of an `autograd.Function`."""

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
        """Return, for each differentiable argument, whether its gradient is needed."""
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
        # Pass no list that contains None: autograd would treat it as not differentiable.
        found = self.backward_op([there[i] for i in which], which, outputs, wanted, *args)
        a = self.named(args)
        by_name = dict(zip(self.made(a, wanted), found, strict=True))
        same = self._same(a)
        by_name |= {n: by_name[same[n]] for n in self.present(a, wanted) if n not in by_name}
        return tuple(by_name.get(name) for name in self.names)


def keep(ctx: Any, args: Sequence[Any], more: Sequence[torch.Tensor]) -> None:
    """Save a call's arguments, tensors or not, and further tensors for its backward."""
    ctx.where = [i for i, x in enumerate(args) if isinstance(x, torch.Tensor)]
    ctx.rest = [None if i in ctx.where else x for i, x in enumerate(args)]
    ctx.save_for_backward(*(args[i] for i in ctx.where), *more)
    ctx.set_materialize_grads(False)


def kept(ctx: Any) -> tuple[list[Any], list[torch.Tensor]]:
    """Return the arguments and the further tensors that `keep` saved."""
    args, more = list(ctx.rest), list(ctx.saved_tensors)
    for i in ctx.where:
        args[i] = more.pop(0)
    return args, more


def apart(tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """Return tensors of which no two share memory, as torch requires, copied where they do."""
    found: list[torch.Tensor] = []
    for x in tensors:
        places = {y.untyped_storage().data_ptr() for y in found}
        found.append(x.clone() if x.untyped_storage().data_ptr() in places else x)
    return found


def dense(x: torch.Tensor) -> torch.Tensor:
    """Allocate a contiguous tensor of x's shape."""
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def zeros(likes: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """Return contiguous zero gradients of these tensors' shapes."""
    return [dense(x).zero_() for x in likes]


def shaped(x: torch.Tensor) -> torch.Tensor:
    """Return a tensor of the shape, dtype and device of x that stores a single number."""
    return x.new_empty(()).expand(x.shape)


def side_by_side(x: torch.Tensor) -> torch.Tensor:
    """Allocate (B, H, L, D) with the heads of a position adjacent, as kernels do."""
    B, H, L, D = x.shape
    return x.new_empty_strided((B, H, L, D), (L * H * D, D, H * D, 1))


def statistics_dtype(x: torch.Tensor) -> torch.dtype:
    """Return the dtype of statistics of a tensor: float32, or float64 for float64."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def nothing(like: torch.Tensor) -> torch.Tensor:
    """Return an empty tensor, which stands for an output that does not exist."""
    return like.new_empty(0)
