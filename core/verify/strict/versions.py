"""Checks that this Triton's interpreter is built as the strict one needs it.

The interpreter is not a public interface, and changes from version to version. What is replaced or
called is listed here with the parameters that matter, so that a Triton built differently is refused
by name before anything runs, not halfway by an AttributeError or a check of the wrong argument.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from typing import Any

TESTED = "3.6.0, 3.7.1, 3.8.0 and 3.9.0"

# module: object: the parameters that a call of it begins with; None where any will do
_NEEDED: dict[str, dict[str, str | None]] = {
    "triton.runtime.interpreter": {
        "interpreter_builder.options": None,
        "interpreter_builder.codegen_fns": None,
        "_interpreter.load": None,
        "_ir.ROUNDING_MODE.RTZ": None,
        "_get_np_dtype": "tt_dtype",
        "_implicit_cvt": "arg",
        "_patch_lang": "fn",
        "_unwrap_tensor": "t",
        "TensorHandle": "data dtype",
        "GridExecutor": "fn arg_names grid pre_run_hooks",
        "GridExecutor.__call__": None,
        "GridExecutor._init_args_hst": "self args_dev kwargs",
        "GridExecutor._restore_args_dev": "self args_dev args_hst kwargs kwargs_hst",
        "InterpretedFunction.__call__": None,
        "InterpretedFunction.rewrite": "self",
        "ReduceScanOpInterface": "axis combine_fn",
        "ReduceScanOpInterface.apply": "self input",
        "ReduceOps": "axis combine_fn keep_dims",
        "TritonSemantic.load": "self ptr mask other",
        "TritonSemantic.atom_red_typechecking_impl": "self ptr val mask",
        "TritonSemantic.binary_op_sanitize_overflow_impl": "self lhs rhs binary_op",
        "InterpreterBuilder.set_grid_dim": "self nx ny nz",
        "InterpreterBuilder.set_grid_idx": "self x y z",
        "InterpreterBuilder.create_masked_load": "self ptrs mask other",
        "InterpreterBuilder.create_masked_store": "self ptrs value mask",
        "InterpreterBuilder.create_atomic_rmw": "self rmwOp ptr val mask",
        "InterpreterBuilder.create_atomic_cas": "self ptr",
        "InterpreterBuilder.create_ptr_to_int": "self src dst_type",
        "InterpreterBuilder.create_barrier": "self",
        "InterpreterBuilder.cast_impl": "self src dst_type",
        "InterpreterBuilder.create_fp_to_fp": "self src dst_type rounding_mode",
        "InterpreterBuilder.create_dot": "self a b d input_precision",
        "InterpreterBuilder.create_gather": "self src indices axis",
        "InterpreterBuilder.create_idiv": "self lhs rhs",
        "InterpreterBuilder.create_srem": "self lhs rhs",
        "InterpreterBuilder.create_urem": "self lhs rhs",
        "InterpreterBuilder.create_iabs": "self arg",
        "InterpreterBuilder.create_shl": "self lhs rhs",
        "InterpreterBuilder.create_lshr": "self lhs rhs",
        "InterpreterBuilder.create_ashr": "self lhs rhs",
        "InterpreterBuilder.create_fma": "self x y z",
        "InterpreterBuilder.unary_op": "self arg op",
        "InterpreterBuilder.binary_op": "self lhs rhs op",
        "InterpreterBuilder.ternary_op": "self lhs rhs other op",
    },
    "triton.runtime.jit": {"_normalize_ty": None},
    "triton.language.core": {
        "block_type.__init__": "self element_ty shape",
        "pointer_type": "element_ty address_space const",
        "tensor.__init__": "self handle type",
    },
    "triton.language.random": {"philox_impl": None},
    "triton.language.standard": {
        "_sum_combine": None,
        "_elementwise_max": None,
        "_elementwise_min": None,
        "_argmax_combine_tie_break_left": None,
        "_argmax_combine_tie_break_fast": None,
        "_argmin_combine_tie_break_left": None,
        "_argmin_combine_tie_break_fast": None,
        "sort": None,
        "topk": None,
        "bitonic_merge": None,
    },
}


def check() -> None:
    """Raise ImportError, saying what is missing, if Triton's interpreter is not as needed."""
    import triton

    wrong = [
        complaint
        for module, objects in _NEEDED.items()
        for name, parameters in objects.items()
        if (complaint := _complaint(module, name, parameters))
    ]
    if wrong:
        raise ImportError(
            f"the strict interpreter does not know Triton {triton.__version__}; it was tried with "
            f"{TESTED}. Missing: {'; '.join(wrong)}"
        )


def _complaint(module: str, name: str, parameters: str | None) -> str:
    try:
        found: Any = importlib.import_module(module)
        found = functools.reduce(getattr, name.split("."), found)
    except (ImportError, AttributeError):
        return f"{module}.{name}"
    if parameters is None:
        return ""
    there = " ".join(inspect.signature(found).parameters)
    if f"{there} ".startswith(f"{parameters} "):
        return ""
    return f"{module}.{name} that begins with ({parameters.replace(' ', ', ')})"
