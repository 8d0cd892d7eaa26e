"""Observe which gradients an operator computes, and whether it keeps what they need."""

import importlib


def made_by(monkeypatch, operator):
    """Return a list that records which gradients an operator computes, on either side."""
    made = []
    for folder in ("reference", "kernels"):
        module = importlib.import_module(f"twofold.{folder}.{operator}")

        def backward(*args, backward=module.backward, **how):
            found = backward(*args, **how)
            made.append({name for name, x in found._asdict().items() if x is not None})
            return found

        monkeypatch.setattr(module, "backward", backward)
    return made


def kept_by(monkeypatch, operator):
    """Return a list that records whether an operator was to keep what backward needs."""
    kept = []
    for folder in ("reference", "kernels"):
        module = importlib.import_module(f"twofold.{folder}.{operator}")

        def forward(*args, forward=module.forward, keep=True, **how):
            kept.append(keep)
            return forward(*args, keep=keep, **how)

        monkeypatch.setattr(module, "forward", forward)
    return kept
