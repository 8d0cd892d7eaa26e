"""How much memory a call takes at once."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Largest(TorchDispatchMode):
    """Remembers the most elements of any storage that is made or viewed within it.

    Bytes are not counted: the strict interpreter looks at memory so.
    """

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.dtype != torch.uint8:
            elements = result.untyped_storage().nbytes() // result.element_size()
            self.elements = max(self.elements, elements)
        return result
