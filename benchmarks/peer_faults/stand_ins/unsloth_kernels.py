"""Unsloth's kernels, for the scripts beside this folder, also where there is no GPU.

Unsloth's `__init__` wants a GPU, and all that it depends on. Its kernels need neither: their
modules are imported alone, and where unsloth_zoo is absent there is a stand-in for what they import
of it, which computes nothing.
"""

import importlib
import importlib.util
import logging
import os
import sys
from types import ModuleType

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ABSENT = {
    "unsloth_zoo.log": {"logger": logging.getLogger("unsloth_zoo")},
    "unsloth_zoo.temporary_patches.common": {"torch_compile": torch.compile},
    "unsloth_zoo.patching_utils": {"patch_layernorm": None},
    "unsloth_zoo.loss_utils": {"patch_loss_functions": None, "post_patch_loss_function": None},
}


def load(name: str) -> ModuleType:
    """Return a module of unsloth.kernels."""
    if DEVICE == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"
        os.environ["UNSLOTH_ALLOW_CPU"] = "1"  # Unsloth's own
        if importlib.util.find_spec("unsloth_zoo") is None:
            _stand_in()
        spec = importlib.util.find_spec("unsloth")
        assert spec is not None
        for package in ("unsloth", "unsloth.kernels"):
            inside = package.split(".")[1:]
            folders = spec.submodule_search_locations or []
            _module(package, {}, [os.path.join(folder, *inside) for folder in folders])
    return importlib.import_module(f"unsloth.kernels.{name}")


def _stand_in() -> None:
    from packaging.version import Version

    _module("unsloth_zoo", {})
    _module("unsloth_zoo.utils", {"Version": Version})
    _module("unsloth_zoo.temporary_patches", {})
    for name, held in ABSENT.items():
        _module(name, held)


def _module(name: str, held: dict[str, object], folders: list[str] | None = None) -> None:
    if name not in sys.modules:
        module = ModuleType(name)
        module.__path__ = folders or []
        vars(module).update(held)
        sys.modules[name] = module
