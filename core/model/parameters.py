"""All parameters of a model in one flat buffer, each a named view of it.

Gradients, moments and averages are in buffers of the same layout, so an optimizer step is one
launch, a gradient norm one reduction, a checkpoint one tensor. Matrices come first and vectors
(biases, norms) after them: weight decay touches the first `decay_numel` elements and no others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

ALIGNMENT = 32  # elements: views start on 128 bytes, which suits vector loads and coalescing
INITIAL = 0x1217  # random stream of the initial values, apart from those of `training.batches`


class Layout:
    """Where each parameter lies in a flat buffer.

    Attributes:
        shapes: of each parameter by name, in the order of the buffer.
        offsets: of each parameter's first element.
        numel: length of the buffer, including the few unused elements between views (always zero).
        decay_numel: end of the matrices, the part that weight decay applies to.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        matrices = {name: shape for name, shape in shapes.items() if len(shape) > 1}
        vectors = {name: shape for name, shape in shapes.items() if len(shape) == 1}
        self.shapes = matrices | vectors
        self.offsets: dict[str, int] = {}
        self.decay_numel = end = 0
        for name, shape in self.shapes.items():
            self.offsets[name] = end
            end += -(-math.prod(shape) // ALIGNMENT) * ALIGNMENT
            if name in matrices:
                self.decay_numel = end
        self.numel = end

    @property
    def parameters(self) -> int:
        """Number of parameters in the model, not counting unused elements."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def extent(self, name: str) -> tuple[int, int]:
        """Return where a parameter begins, and where the next one may begin."""
        start = self.offsets[name]
        return start, start + -(-math.prod(self.shapes[name]) // ALIGNMENT) * ALIGNMENT

    def views(self, flat: Any) -> dict[str, Any]:
        """Return the named views of a buffer (of either side, any dtype) of `numel` elements."""
        if tuple(flat.shape) != (self.numel,):
            raise ValueError(f"flat.shape is {tuple(flat.shape)}; it must be ({self.numel},)")
        return {
            name: flat[self.offsets[name] :][: math.prod(shape)].reshape(shape)
            for name, shape in self.shapes.items()
        }

    def initial(self, seed: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Return a buffer of initial values, drawn by NumPy so that both sides start alike.

        Tables are normal with standard deviation 1/√d_model, other matrices uniform with the
        variance of Glorot & Bengio 2010 (equation 16), norms' weights 1, biases 0. A packed matrix
        counts as one, as in torch: in w_qkv, (3E, E), the projections of q, k and v begin with half
        the variance that separate (E, E) matrices would have.
        """
        rng = np.random.default_rng([seed, INITIAL])
        flat = np.zeros(self.numel, np.float32)
        for name, view in self.views(flat).items():
            if name.endswith("table"):
                view[...] = rng.standard_normal(view.shape) / math.sqrt(view.shape[1])
            elif view.ndim > 1:
                limit = math.sqrt(6 / sum(view.shape))
                view[...] = rng.uniform(-limit, limit, view.shape)
            elif name.endswith("norm.weight"):
                view[...] = 1
        return flat
