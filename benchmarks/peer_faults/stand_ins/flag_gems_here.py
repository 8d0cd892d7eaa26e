"""What FlagGems needs to be imported, and its kernels to be interpreted, where there is no GPU.

Its packages' `__init__` ask for a device, and its `libentry` and `libtuner` look up compiled
kernels, of which there are none: kernels are launched as Triton does it, and of what would be tuned
a configuration with the least block of columns will do. Its generator of pointwise kernels asks of
functions what Triton knows of compiled ones, hands kernels a buffer of its own, and prefers block
pointers, which are no longer in Triton. Nothing of this computes.

Triton's own interpreter gives Python's `and`, `or` and `not` of blocks, which is one of them; the
compiler takes each element, as & | and ~ do.
"""

import ast
import contextlib
import importlib.util
import math
import os
import sys
import tempfile
import types

import numpy as np
import torch

GENERATED = tempfile.TemporaryDirectory(prefix="flag_gems-")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1" or not torch.cuda.is_available()
device = "cpu" if INTERPRETED else "cuda"


class Words(ast.NodeTransformer):
    """`and`, `or` and `not` as the compiler takes them."""

    def visit_BoolOp(self, node):  # noqa: D102
        self.generic_visit(node)
        sign = ast.BitAnd() if isinstance(node.op, ast.And) else ast.BitOr()
        found, *others = node.values
        for other in others:
            found = ast.BinOp(found, sign, other)
        return ast.copy_location(found, node)

    def visit_UnaryOp(self, node):  # noqa: D102
        self.generic_visit(node)
        return ast.UnaryOp(ast.Invert(), node.operand) if isinstance(node.op, ast.Not) else node


def prepare():
    os.environ |= {"TRITON_INTERPRET": "1", "GEMS_VENDOR": "nvidia"}
    import triton
    from triton.runtime import autotuner, interpreter

    def bench(self, *args, config, **meta):
        return [float(config.kwargs.get("BLOCK_N", 0))] * 3

    autotuner.Autotuner._bench = bench
    from triton.language.extra.cuda import libdevice  # of which the interpreter has nothing

    def tanh(x):
        found = np.tanh(x.handle.data.astype(np.float64)).astype(np.float32)
        return triton.language.tensor(interpreter.TensorHandle(found, x.dtype), x.type)

    def erf(x):
        found = np.vectorize(math.erf)(x.handle.data.astype(np.float64)).astype(np.float32)
        return triton.language.tensor(interpreter.TensorHandle(found, x.dtype), x.type)

    libdevice.erf, libdevice.div_rn = erf, lambda x, y: x / y
    libdevice.tanh, libdevice.pow = tanh, lambda x, power: x * x  # of 2 alone

    plain = interpreter.FunctionRewriter._transform_ast

    def transform(self, source):
        if self.fn.__module__.startswith("flag_gems"):
            source = ast.unparse(ast.fix_missing_locations(Words().visit(ast.parse(source))))
        return plain(self, source)

    interpreter.FunctionRewriter._transform_ast = transform
    for name in ("flag_gems", "flag_gems.ops", "flag_gems.fused"):
        package = types.ModuleType(name)
        package.__path__ = list(importlib.util.find_spec(name).submodule_search_locations)
        sys.modules[name] = package
    launching = types.ModuleType("flag_gems.utils.libentry")
    launching.libentry = lambda: lambda kernel: kernel
    launching.libtuner = lambda configs, key, **_: triton.autotune(configs, key)
    sys.modules[launching.__name__] = launching
    from flag_gems import runtime

    runtime.torch_device_fn = types.SimpleNamespace(
        device=contextlib.nullcontext,
        get_device_properties=None,
        current_device=lambda: 0,
        get_device_capability=lambda device: (8, 0),
    )
    prepare_pointwise()


class View(torch.Tensor):
    """A tensor with other strides, which knows whose memory it shows."""

    def unwrap(self):  # noqa: D102
        return self.base


def view(base, shape, strides):
    made = base.as_strided(shape, strides).as_subclass(View)
    made.base = base
    return made


def prepare_pointwise():
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    InterpretedFunction.src = property(lambda self: JITFunction(self.fn).src)
    InterpretedFunction.cache_key = property(lambda self: self.fn.__module__)
    InterpretedFunction.__globals__ = property(lambda self: self.fn.__globals__)
    os.environ["FLAGGEMS_CACHE_DIR"] = GENERATED.name
    generator = importlib.import_module("flag_gems.utils.pointwise_dynamic")
    generator.JITFunction, generator.StridedBuffer = InterpretedFunction, view
    generator.get_codegen_config().prefer_block_pointer = False


def masked_lanes_are_nan():
    """Put NaN where the language leaves lanes of a masked load undefined."""
    from triton.runtime import interpreter

    plain = interpreter.InterpreterBuilder.create_masked_load

    def masked_load(self, pointers, mask, other, *how, **more):
        dtype = pointers.get_element_ty()
        if other is None and dtype.is_floating():
            fill = np.full(pointers.data.shape, np.nan, interpreter._get_np_dtype(dtype))
            other = interpreter.TensorHandle(fill, dtype)
        return plain(self, pointers, mask, other, *how, **more)

    interpreter.InterpreterBuilder.create_masked_load = masked_load


if INTERPRETED:
    prepare()
