"""The README's programs run.

The BERT program runs in `test_finetune`, the pytest one in `test_pytest_plugin`.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
# A text by which each program is found.
PROGRAMS = ("pretrained.load", "ops.attention", "modules.TransformerEncoderLayer", "strict_triton")


def program(mark):
    """Return the only program of the README that contains this text."""
    blocks = (block.split("```")[0] for block in README.split("```python\n")[1:])
    (found,) = (block for block in blocks if mark in block)
    return found


def test_there_is_no_program_that_no_test_runs():
    assert len({program(mark) for mark in PROGRAMS}) == README.count("```python\n")


@pytest.mark.parametrize("side", ["reference", "triton"])
def test_the_operators_run(side, triton):
    """On either side, as its comment says."""
    written = program("ops.attention").replace('load("reference")', f'load("{side}")')
    drawn = np.random.default_rng(0).random((4, 1, 2, 5, 8), np.float32)
    names = dict(zip(("q", "k", "v", "dout"), drawn, strict=True))
    if side == "triton":
        names = {name: torch.tensor(x, device=triton.device) for name, x in names.items()}
    exec(written, names)
    assert names["ops"].name == side
    for name, of in (("out", "q"), ("dq", "q"), ("dk", "k"), ("dv", "v")):
        assert names[name].shape == names[of].shape


def test_the_adapters_run(monkeypatch):
    """The model has random weights, as there is no network to fetch any."""

    auto = transformers.AutoModelForCausalLM

    def from_pretrained(_, **how):
        config = transformers.LlamaConfig(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
            vocab_size=9,
        )  # fmt: skip
        return auto.from_config(config, **how)

    q, k, v = torch.rand(3, 1, 2, 5, 8).unbind()
    monkeypatch.setattr(auto, "from_pretrained", from_pretrained)
    gate, up = torch.rand(3, 2, 4).unbind(1)
    names = {"q": q, "k": k, "v": v, "sinks": torch.zeros(2), "gate": gate, "up": up}
    exec(program("modules.TransformerEncoderLayer"), names)
    assert names["model"].config._attn_implementation == "twofold"
    torch.testing.assert_close(
        names["out"], torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    )
    torch.testing.assert_close(names["hidden"], torch.nn.functional.silu(gate) * up)
    x = torch.rand(1, 3, 512)
    torch.testing.assert_close(names["norm"](x), torch.nn.RMSNorm(512)(x))
    names["layer"](x).sum().backward()
    names["optimizer"].step()
    assert names["model"](torch.tensor([[1, 2, 3]])).logits.isfinite().all()
