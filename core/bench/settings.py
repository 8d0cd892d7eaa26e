"""torch's global settings: a function that changes them changes other functions' times."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

# How to get and set each.
SETTINGS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "the number of threads": (torch.get_num_threads, torch.set_num_threads),
    "whether gradients are made": (torch.is_grad_enabled, torch.set_grad_enabled),
    "the default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "the default device": (torch.get_default_device, torch.set_default_device),
    "the precision of products": (
        torch.get_float32_matmul_precision,
        torch.set_float32_matmul_precision,
    ),
    "whether algorithms are deterministic": (
        torch.are_deterministic_algorithms_enabled,
        torch.use_deterministic_algorithms,
    ),
}


class Settings:
    """torch's settings at the time of construction."""

    def __init__(self) -> None:
        self._were = {name: get() for name, (get, _) in SETTINGS.items()}

    def restore(self) -> list[str]:
        """Restore the settings that have changed, and return their names."""
        changed = []
        for name, (get, put) in SETTINGS.items():
            if get() != self._were[name]:
                put(self._were[name])
                changed.append(name)
        return changed
