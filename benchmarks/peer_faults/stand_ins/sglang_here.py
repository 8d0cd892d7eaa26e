"""SGLang's kernels, for the scripts beside this folder, also where there is no GPU.

The packages' `__init__` want a server: without a GPU the modules of kernels are imported alone. Of
the server's utilities they ask which GPU there is; here that is none. Nothing of this computes.
"""

import importlib.util
import os
import sys
import types

import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1" or not torch.cuda.is_available()
device = "cpu" if INTERPRETED else "cuda"
KERNELS = ("/kernels", "/kernels/ops", "/kernels/ops/attention", "/kernels/ops/layernorm")


def prepare():
    os.environ["TRITON_INTERPRET"] = "1"
    folder = importlib.util.find_spec("sglang").submodule_search_locations[0]
    for path in ("", "/srt", *KERNELS):
        name = "sglang" + path.replace("/", ".")
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [folder + path]
    utils = sys.modules["sglang.srt.utils"] = types.ModuleType("sglang.srt.utils")
    for name in ("is_cuda", "is_hip", "is_gfx95_supported", "is_gfx1250_supported"):
        setattr(utils, name, lambda: False)
    utils.get_device_core_count = lambda device_id: 0


if INTERPRETED:
    prepare()
