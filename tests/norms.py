"""What the tests of layer norm and of its twin without a mean have in common."""

import numpy as np
import torch

from twofold.core.verify.contract import compare

X = np.ones((2, 3))
ARGUMENTS = {"x": X, "weight": np.ones(3)}
REFUSED = [
    (dict(x=X.astype(int)), TypeError, "x has dtype int64; it must be one of float16"),
    (dict(x=X.astype("f4")), TypeError, "weight has dtype float64; it must have the dtype of x"),
    (dict(x=np.ones((2, 0))), ValueError, "x.shape is (2, 0); it must be without an empty"),
    (dict(x=np.ones(())), ValueError, "x.shape is (); it must be of rank 1 or more"),
    (dict(weight=np.ones(4)), ValueError, "weight.shape is (4,); it must be (3,)"),
    (dict(weight=3.0), TypeError, "weight is a float; it must be an array"),
    (dict(residual=np.ones((3, 2))), ValueError, "residual.shape is (3, 2); it must be (2, 3)"),
    (dict(eps=0.0), ValueError, "eps is 0.0; it must be positive"),
]


def leaves(given, *names):
    """Return inputs as tensors that require gradients, None for one that is missing."""
    found = (getattr(given, name) for name in names)
    return [None if a is None else torch.tensor(a, requires_grad=True) for a in found]


def check_torch(contract, case, given, out, h, **gradients_of):
    """Compare torch's float64 results with the truth; leaves go by their gradients' names.

    They may be as far from the mathematics as float64's own bound.
    """
    loss = (out * torch.tensor(given.dout)).sum()
    if given.dh is not None:
        loss = loss + (h * torch.tensor(given.dh)).sum()
    loss.backward()
    theirs = {"out": out.detach(), "h": h.detach()}
    theirs |= {name: leaf.grad for name, leaf in gradients_of.items() if leaf is not None}
    with np.errstate(all="ignore"):
        bounds = contract.truth(case)
    for name, bound in bounds.items():
        assert compare(name, theirs[name].numpy(), bound)[2] == ""
