"""How large the largest array of a call is."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Largest(TorchDispatchMode):
    """Records the most elements of any storage that is created or viewed within it.

    Byte tensors are not counted: the strict interpreter views memory as bytes.
    """

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.dtype != torch.uint8:
            elements = result.untyped_storage().nbytes() // result.element_size()
            self.elements = max(self.elements, elements)
        return result
