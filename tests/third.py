"""Hold functions that compute what torch's do to what float32 allows both.

Attention has its derived bound. A whole module has none: it may be as far from float64 as torch's
own is.
"""

import numpy as np
import torch

from twofold.core.verify import attention_bound
from twofold.core.verify.attention_problem import problem
from twofold.core.verify.contract import compare
from twofold.core.verify.rounding import exact, machine
from twofold.reference.attention_scores import Options


def normal(*shape):
    return torch.randn(shape)


def barred(*shape):
    """Draw a mask of torch's modules, True where a query may not attend; each has its first key."""
    mask = torch.rand(shape) > 0.6
    mask[..., 0] = False
    return mask


def as_far_as_torch(function, peer, inputs):
    """Assert that outputs and gradients are no further off than the peer's.

    `function` and `peer` are called with tensors of float32, the peer with ones of float64, too;
    each returns a tensor or a tuple. None among the inputs stays None. Booleans have no gradient.
    """
    judged, single = (results(f, inputs, torch.float32) for f in (function, peer))
    no_further(judged, single, results(peer, inputs, torch.float64))


def no_further(judged, single, double):
    """Assert that no result is further off than the other's furthest, in the manner of `lockstep`.

    Distances are those in the maximum norm as a share of the largest element. Those of three tf32
    products are 16 times those of float32's; one rounding is always allowed.

    Args:
        judged: the tensors that are judged.
        single: the other's, in float32.
        double: the other's in float64, which stands for the truth.
    """
    for x, y in zip(judged, single, strict=True):
        assert (x.shape, x.dtype) == (y.shape, y.dtype)
    on = machine("float32")
    furthest = max(map(share, single, double))
    worst = max(map(share, judged, double))
    assert worst <= on.u_product / on.u * furthest + on.u


def share(x, truth):
    """Return how far a result is off, as a share of its largest element."""
    largest = truth.abs().max().item()
    distance = (x.double() - truth).abs().max().item()
    return distance / largest if largest else distance


def results(function, inputs, dtype):
    """Return outputs and, where inputs have them, gradients of a fixed weighted sum of outputs."""
    given = [cast(x, dtype) for x in inputs]
    found = function(*given)
    outputs = [x for x in (found if isinstance(found, tuple) else (found,)) if x is not None]
    having = [x for x in given if x is not None and x.requires_grad]
    grads = [gradient(x) for x in outputs]
    gradients = torch.autograd.grad(outputs, having, grads, allow_unused=True)
    return [x.detach() for x in (*outputs, *gradients) if x is not None]


def cast(x, dtype):
    if x is None or not x.is_floating_point():
        return x
    return x.detach().to(dtype).requires_grad_()


def gradient(output):
    """Return the gradient given for an output, the same for the same shape."""
    drawn = torch.randn(output.shape, generator=torch.Generator().manual_seed(0))
    return drawn.to(output.dtype)


def both_within_the_bound(functions, q, k, v, mask, *, is_causal, scale):
    """Assert that attention and its gradients are within the bound derived for float32.

    Each function is called with q (…, M, E), k, v (…, N, V) and the mask, that of torch.
    """
    width = max(q.shape[-1], v.shape[-1])
    out = q.new_empty((*q.shape[:-1], v.shape[-1]))
    on, given = machine("float32"), [headed(x, width) for x in (q, k, v, gradient(out))]
    options = Options(
        softmax_scale=q.shape[-1] ** -0.5 if scale is None else scale,
        causal="top-left" if is_causal else False,
        mask=None if mask is None or mask.is_floating_point() else four(mask),
        bias=None if mask is None or not mask.is_floating_point() else four(mask).astype(float),
    )
    x = problem(*given[:3], on, options)
    forward = attention_bound.forward(x)
    dlse = exact(np.zeros((*given[0].shape[:3], 1)), on)
    gradients = attention_bound.backward(x, forward, exact(given[3], on), dlse)
    truths = (forward.out, *(g for g in gradients if g is not None))
    for function in functions:
        found = results(function, (q, k, v, mask), torch.float32)
        for i, (y, truth) in enumerate(zip(found, truths, strict=True)):
            computed = four(y) if i == 4 else headed(y, width)
            assert compare(str(i), computed, truth)[2] == ""


def headed(x, width):
    """Return (…, L, D) as (B, H, L, width), with zeros behind the features."""
    x = torch.nn.functional.pad(x.double(), (0, width - x.shape[-1]))
    heads = x.shape[-3] if x.ndim > 2 else 1
    return x.reshape(-1, heads, *x.shape[-2:]).numpy()


def four(mask):
    """Return a mask with its axes but the last three in one."""
    return mask.reshape(-1, *mask.shape[-3:]).numpy() if mask.ndim > 4 else mask.numpy()
