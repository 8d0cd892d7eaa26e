"""The two sides: the same operators, functions, arguments and results under the same names."""

import importlib
import inspect

import pytest
from outside import by_triton_s_interpreter, python

from twofold.core import ops
from twofold.core.verify.foreign import operators

# What kernels take besides the common arguments: how to compute.
OWN = {"tile", "dk_dv_tile", "dq_tile", "split", "allow_tf32", "numbers", "go"}
# By default, tables of positions have the dtype that a side's operators compute in.
BY_SIDE = {("sinusoidal", "dtype"), ("tables", "dtype")}
# Functions of the host on one side and of the device on the other, where they are fused.
DEVICE = {("activation", "activate"), ("activation", "activate_grad")}


def functions(module):
    """Return a side's public functions in a module, without its checks."""
    return {
        name: f
        for name, f in vars(module).items()
        if inspect.isfunction(f)
        and (f.__module__ == module.__name__ or name in getattr(module, "__all__", ()))
        and not name.startswith(("_", "check"))
    }


def own_kernel(f, module):
    """Return whether this is a device function written in this module."""
    return getattr(getattr(f, "fn", None), "__module__", "") == module.__name__


@pytest.mark.parametrize("operator", ops.OPERATORS)
def test_both_sides_offer_the_same_calls(operator):
    ops.triton_device()
    reference = importlib.import_module(f"twofold.reference.{operator}")
    kernel = importlib.import_module(f"twofold.kernels.{operator}")
    offered = functions(reference).keys() & functions(kernel).keys()
    assert {*operators.functions(operator)} <= offered
    for name in offered:
        ours, theirs = (inspect.signature(getattr(side, name)) for side in (reference, kernel))
        for position, (argument, p) in enumerate(ours.parameters.items()):
            assert argument in theirs.parameters, f"{operator}.{name} lacks {argument}"
            other = theirs.parameters[argument]
            assert other.kind == p.kind, f"{name}({argument})"
            alike = other.default == p.default or (name, argument) in BY_SIDE
            assert alike, f"{name}({argument})"
            if p.kind is p.POSITIONAL_OR_KEYWORD:
                assert list(theirs.parameters)[position] == argument, f"{name}({argument})"
        beside = theirs.parameters.keys() - ours.parameters.keys()
        assert beside <= OWN, f"{operator}.{name} takes {beside} on one side only"
        assert all(theirs.parameters[a].kind is inspect.Parameter.KEYWORD_ONLY for a in beside)
        nothing = [f.return_annotation in ("None", None) for f in (ours, theirs)]
        assert nothing[0] == nothing[1], f"{operator}.{name} returns something on one side only"
    on_device = {name for name, f in vars(kernel).items() if own_kernel(f, kernel)}
    assert {(operator, name) for name in functions(reference).keys() & on_device} <= DEVICE


@pytest.mark.parametrize(
    "operator", [o for o in ops.OPERATORS if "backward" in operators.functions(o)]
)
def test_both_sides_return_gradients_of_the_same_names(operator, reference, triton):
    fields = {getattr(side, operator).Gradients._fields for side in (reference, triton)}
    assert len(fields) == 1


def test_an_unknown_side_or_operator_is_named(reference):
    with pytest.raises(ValueError, match="side is 'cuda'; it must be one of 'reference'"):
        ops.load("cuda")
    with pytest.raises(AttributeError, match="'convolution' is no operator; there are attention"):
        reference.convolution  # noqa: B018


def test_without_torch_the_triton_side_names_what_to_install():
    script = (
        "import importlib.util\n"
        "find = importlib.util.find_spec\n"
        "hidden = lambda name, *a: None if name == 'torch' else find(name, *a)\n"
        "importlib.util.find_spec = hidden\n"
        "from twofold.core import ops\n"
        "try:\n"
        "    ops.load('triton')\n"
        "except ModuleNotFoundError as error:\n"
        "    print(error)\n"
    )
    done = python("-c", script)
    assert done.stdout == "the kernels need torch: pip install 'twofold[triton]'\n"


def test_the_reference_imports_numpy_and_nothing_else():
    script = (
        "import sys, numpy\n"
        "before = set(sys.modules)\n"
        "import importlib\n"
        "from twofold.core.ops import OPERATORS\n"
        "for name in OPERATORS: importlib.import_module(f'twofold.reference.{name}')\n"
        "new = {m.split('.')[0] for m in set(sys.modules) - before}\n"
        "print(sorted(new - set(sys.stdlib_module_names)))\n"
    )
    done = python("-c", script)
    assert done.stdout == "['twofold']\n"


@by_triton_s_interpreter
@pytest.mark.parametrize(
    ("before", "said"),
    [
        (
            "import triton",
            "Triton was imported before its interpreter was turned on; set TRITON_INT",
        ),
        ("from twofold.adapters import functional, modules, hugging_face", "(1, 1, 2, 4)"),
    ],
)
def test_kernels_can_be_interpreted_unless_triton_was_imported_before(before, said):
    script = (
        f"{before}\n"
        "import torch\n"
        "from twofold.adapters import sides\n"
        "from twofold.adapters.attention import attention\n"
        "try:\n"
        "    with sides.use('triton'):\n"
        "        x = torch.ones(1, 1, 2, 4)\n"
        "        print(tuple(attention(x, x, x).shape))\n"
        "except RuntimeError as error:\n"
        "    print(error)\n"
    )
    done = python("-c", script)
    assert done.stdout.startswith(said), done.stderr
