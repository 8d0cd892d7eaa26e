"""What judging an operator as a plain call needs to know, and what options may be called."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from twofold.core import ops
from twofold.core.verify import domains
from twofold.core.verify.foreign.calls import Call
from twofold.core.verify.rounding import Approx
from twofold.reference.checks import dtype_name

ALIASES = {
    "softmax_scale": ("softmax_scale", "sm_scale", "scale", "scaling"),
    "causal": ("causal", "is_causal"),
    "mask": (
        "mask",
        "attn_mask",
        "attention_mask",
        "key_padding_mask",
        "padding_mask",
        "pad_mask",
        "src_key_padding_mask",
    ),
    "key_lengths": ("key_lengths", "cache_seqlens", "seq_lens", "context_lens", "seqused_k"),
    "cu_seqlens_q": ("cu_seqlens_q", "query_start_loc"),
    "key_heads": ("key_heads", "num_kv_heads", "num_key_value_heads"),
    "page_size": ("page_size", "block_size"),
    "longest": ("longest", "max_seq_len", "max_seqlen", "max_context_len", "max_seqlen_k"),
    "block_table": ("block_table", "block_tables", "page_table"),
    "eps": ("eps", "epsilon", "variance_epsilon"),
    "kind": ("kind", "activation", "pooling", "mode"),
    "softcap": ("softcap", "logits_soft_cap", "logit_softcapping"),
    "bias": ("bias", "attn_bias"),
    "ignore_index": ("ignore_index", "ignored_index"),
    "label_smoothing": ("label_smoothing", "smoothing"),
}


class Handed(NamedTuple):
    """One thing that the tensor of an option may say.

    Attributes:
        change: makes the tensor from (the contract's, the first tensor).
        fields: those of every case that has the option.
    """

    change: Callable[[Any, Any], Any]
    fields: Mapping[str, Any] = {}


@dataclass(frozen=True)
class Plain:
    """How an operator's contract becomes a plain call.

    Attributes:
        call: makes the call from (side, case, inputs).
        shapes: of the tensors, in words.
        outputs: what the function returns, in order; the first is a tensor or all of it.
        instead: what may stand in an output's place, told by its shape.
        named: the names of outputs, by (tensors, outputs); "" is not judged. By default in order.
        truth: by (case, inputs), of outputs that the contract does not have.
        options: the options a function may have, each with the values that the case's fields take
            if it does not.
        always: the values that fields of the case have in every plain call.
        pinned: cases that are always run, some of them past the first tile of an ordinary kernel.
        long: costly cases, past the sizes that small kernels know: run in one precision, last.
        exercised: cases that are always run if the function has the option.
        told: options that repeat what the tensors say, and that no function need have.
        learned: options that are tensors whose gradients are judged.
        optional: tensors that a function may lack or require, with the fields of cases where it
            lacks them, and where it requires them.
        neutral: tensors that a function may lack, with the value at which they change nothing, and
            the outputs that other values change.
        insisted: by an option that a function may require, the fields of a case without it.
        far: cases whose offsets pass 2³¹, run where that costs no memory.
        implied: a case of an option that a function may do without, reading it from the shapes.
        unsaid: how a call without such an option conveys it all the same.
        outside: what no case has, by the option or output without which it is meaningless.
        beyond: what no case has, by an option and what its value was found to mean.
        narrowed: brings a case into the plain domain, where `always` cannot.
        inputs: makes them, where they are not the contract's.
        small: cuts a case down for the properties, where the contract's own is too costly.
        either: for a missing option, what the function may do without it: which of these it is
            judged as is found by trying cases with these fields.
        meant: for an option it has, what its values may mean: found in the same way.
        handed: for an option it has, what its tensor may say, by words; the first is the
            contract's. Found in the same way.
        arranged: other orders of axes, by name: each makes a function of that order one of the
            usual order, and is found in the same way.
        arranged_case: the case to try them with, in which no order reads past a tensor's end.
        fewer: orders with fewer axes, tried if the function refuses all others, and the fields of
            cases for them.
        limits: what it may do without, by words: the fields of a case with the feature, and what
            brings a case into the domain without it. Found in the same way.
        instead_of_ours: common alternatives to what ours do, by words: the fields of cases that
            show the difference, if it takes them, and those of every case if it does so. Found
            where only the alternative holds.
        together: outputs that add to the same gradients: a case with a gradient for one that
            learns nothing cannot be run.
        tables: gradients of tables, with the fields of a case in which every row is looked up.
        any_dtype: outputs whose dtype need not be their input's.
        conventions: properties that no plain call is held to.
        spared: by option, a value and a property of it, to which a function with another default
            is not held.
    """

    call: Callable[[ops.Side, Any, Any], Call]
    shapes: str
    outputs: Sequence[str]
    options: Mapping[str, Mapping[str, Any]]
    always: Mapping[str, Any]
    pinned: Sequence[Mapping[str, Any]]
    instead: Mapping[str, str] = field(default_factory=dict)
    named: Callable[[Mapping[str, Any], Sequence[Any]], Sequence[str]] | None = None
    truth: Callable[[Any, Any], Mapping[str, Approx]] = lambda case, given: {}
    long: Sequence[Mapping[str, Any]] = ()
    exercised: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    told: Sequence[str] = ()
    learned: Sequence[str] = ()
    optional: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = field(
        default_factory=dict
    )
    neutral: Mapping[str, tuple[float, Sequence[str]]] = field(default_factory=dict)
    insisted: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    far: Sequence[Mapping[str, Any]] = ()
    implied: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    unsaid: Mapping[str, Callable[[Call], Call]] = field(default_factory=dict)
    either: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    meant: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    handed: Mapping[str, Mapping[str, Handed]] = field(default_factory=dict)
    arranged: Mapping[str, Callable[[Callable[..., Any]], Callable[..., Any]]] = field(
        default_factory=dict
    )
    arranged_case: Mapping[str, Any] = field(default_factory=dict)
    fewer: Mapping[
        str, tuple[Callable[[Callable[..., Any]], Callable[..., Any]], Mapping[str, Any]]
    ] = field(default_factory=dict)
    limits: Mapping[str, tuple[Mapping[str, Any], Callable[[Any], Any]]] = field(
        default_factory=dict
    )
    instead_of_ours: Mapping[str, tuple[Sequence[Mapping[str, Any]], Mapping[str, Any]]] = field(
        default_factory=dict
    )
    together: Sequence[str] = ()
    tables: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    outside: Mapping[str, str] = field(default_factory=dict)
    beyond: Mapping[tuple[str, str], str] = field(default_factory=dict)
    narrowed: Callable[[Any, int | None], Any] = lambda case, size: case
    inputs: Callable[[Any], Any] | None = None
    small: Callable[[Any], Any] | None = None
    any_dtype: Sequence[str] = ()
    conventions: Sequence[str] = ()
    spared: Mapping[str, tuple[float, str]] = field(default_factory=dict)

    @property
    def may_lack(self) -> tuple[str, ...]:
        """Return the tensors that a function may lack."""
        return (*self.optional, *self.neutral)

    def called(self) -> set[str]:
        """Return all that functions may call its options."""
        return {name for option in self.options for name in names_of(option)}

    def by_name(self, returned: Any, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """Return the outputs that are judged, by name, of what a function returned of tensors.

        Raises:
            TypeError: one of them is no tensor.
        """
        import torch

        outputs = returned if isinstance(returned, tuple) else (returned,)
        while len(outputs) > 1 and outputs[-1] is None:
            outputs = outputs[:-1]
        named = self.outputs if self.named is None else self.named(tensors, outputs)
        found = dict(zip(named, outputs, strict=False))
        found.pop("", None)
        if wrong := [x for x in found.values() if not isinstance(x, torch.Tensor)]:
            raise TypeError(f"it returns {type(wrong[0]).__name__}; it must return a tensor")
        return found

    def always_run(
        self, options: Iterable[str], far: bool, layouts: bool
    ) -> list[Mapping[str, Any]]:
        """Return the cases that are always run for a function that has these options.

        Small cases that are the only ones to test something come first, while there is time. Far
        offsets come after one other case: they mean nothing before a kernel was launched.

        Args:
            options: those that it has.
            far: whether there are enough addresses for such offsets.
            layouts: whether cases have a layout.
        """
        cases = [case for option in options for case in self.exercised.get(option, ())]
        cases += [self.pinned[0], *(self.far if far else ()), *self.pinned[1:]]
        if layouts and self.far:
            cases.append({**self.pinned[0], "layout": domains.EXPANDED})
            cases += ({**fields, "layout": domains.MIXED} for fields in self.pinned[:2])
        return cases


def names_of(option: str) -> tuple[str, ...]:
    """Return what functions may call an option."""
    return ALIASES.get(option, (option,))


def own_names(taken: Collection[str], options: Iterable[str]) -> dict[str, str]:
    """Return what a function that takes these parameters calls those options that it has."""
    theirs = {option: [n for n in names_of(option) if n in taken] for option in options}
    return {option: known[0] for option, known in theirs.items() if known}


def dtypes_told(
    found: Mapping[str, Any], tensors: Mapping[str, Any], any_dtype: Sequence[str]
) -> Iterator[str]:
    """Refuse outputs in another dtype than their input's, or report those that may have one.

    The input is the first floating-point one. An lse is expected in float32.

    Raises:
        TypeError: naming the output.
    """
    first, x = next((n, x) for n, x in tensors.items() if x is not None and x.is_floating_point())
    own = dtype_name(x)
    for name, y in found.items():
        if name == "lse":
            wanted, why = "float32", "whatever the inputs are"
        else:
            wanted, why = own, f"as the argument {first} is"
        if (theirs := dtype_name(y)) == wanted:
            continue
        if name not in any_dtype:
            raise TypeError(f"the output {name} is {theirs}; it must be {wanted}, {why}")
        yield f"{name} is {theirs} where {first} is {own}; both are usual"
