"""Does once what the interpreter does again and again: types, and Philox.

Triton's interpreter spends most of its time on types: every operation makes a `block_type`,
measures it, and makes a tensor of it whose shape consists of new constants. A kernel has few types.
A draw of Philox is ninety operations, and a kernel with dropout does little else. Results stay the
same.

Triton is imported here: see `builder`.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import triton.language as tl
import triton.language.random as triton_random
from triton.runtime import interpreter
from triton.runtime.interpreter import TensorHandle

PHILOX = triton_random.philox_impl
# Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3": Philox 4x32.
_KEYS = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_ROUND = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_LOW, _WORD = np.uint64(0xFFFFFFFF), np.uint64(32)

_new_type, _new_tensor = tl.core.block_type.__init__, tl.core.tensor.__init__
_numpy_dtype = functools.cache(interpreter._get_np_dtype)
_types: dict[Any, dict[str, Any]] = {}  # what is known of a block type
_scalars: dict[Any, dict[str, Any]] = {}  # what is known of a tensor of a scalar type


def new_type(self: Any, element_ty: Any, shape: Any) -> None:
    """Initialise a `block_type`: the first of its kind as Triton does, others as copies of it."""
    axes = shape.values if isinstance(shape, tl.tuple) else shape
    key = (_key(element_ty), *[x.value if isinstance(x, tl.constexpr) else x for x in axes])
    if (known := _types.get(key)) is None:
        _new_type(self, element_ty, shape)
        known = _types[key] = {**vars(self), "of_tensors": {}}
    vars(self).update(known)


def new_tensor(self: Any, handle: Any, type: Any) -> None:
    """Initialise a tensor: the first of its type as Triton does, others as copies of it."""
    known = vars(type).get("of_tensors")
    if known is None:
        known = _scalars.setdefault(_key(type), {})
    if not known:
        _new_tensor(self, None, type)
        known.update(vars(self))
    vars(self).update(known)
    self.handle, self.type = handle, type


def get_np_dtype(tt_dtype: Any) -> Any:
    """Return the NumPy dtype of a Triton type, as the interpreter's `_get_np_dtype` does."""
    scalar = tt_dtype.scalar
    return np.dtype(np.uint64) if scalar.is_ptr() else _numpy_dtype(scalar)


def _key(type: Any) -> Any:
    """Return a key that tells a scalar type from others; pointers have no hash."""
    return (type.name, type.address_space, type.const) if type.is_ptr() else type


def philox(c0: Any, c1: Any, c2: Any, c3: Any, k0: Any, k1: Any, n_rounds: Any = 10) -> Any:
    """Return what `PHILOX` returns, or None unless all are 32-bit words of one shape."""
    words = (c0, c1, c2, c3, k0, k1)
    if any(x.dtype != tl.uint32 for x in words) or any(x.type != c0.type for x in (c1, c2, c3)):
        return None
    x0, x1, x2, x3, key0, key1 = (x.handle.data.astype(np.uint64) for x in words)
    for _ in range(int(getattr(n_rounds, "value", n_rounds))):
        a, b = _ROUND[0] * x0, _ROUND[1] * x2
        x0, x1 = (b >> _WORD) ^ x1 ^ key0, b & _LOW
        x2, x3 = (a >> _WORD) ^ x3 ^ key1, a & _LOW
        key0, key1 = (key0 + _KEYS[0]) & _LOW, (key1 + _KEYS[1]) & _LOW
    return tuple(
        tl.tensor(TensorHandle(x.astype(np.uint32), tl.uint32), c0.type) for x in (x0, x1, x2, x3)
    )
