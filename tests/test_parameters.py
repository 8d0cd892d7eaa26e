"""Initial values of parameters."""

import math

import numpy as np
import pytest

from twofold.core.model.parameters import INITIAL, Layout
from twofold.core.training import batches

SHAPES = {
    "types.table": (300, 50),
    "layers.0.attention.w_qkv": (180, 60),
    "head.weight": (60, 180),
    "head.bias": (60,),
    "final.norm.weight": (60,),
    "final.norm.bias": (60,),
}


def test_first_values_have_the_spread_that_is_said():
    """Within six standard deviations for that many draws."""
    layout = Layout(SHAPES)
    flat = layout.initial(3)
    views = layout.views(flat)
    assert flat.dtype == np.float32
    for name, x in views.items():
        far = 6 / math.sqrt(x.size)  # in deviations of one element, or of its square
        if name == "types.table":
            z = x.astype(float) * math.sqrt(50)
            assert abs(z.mean()) < far and abs((z**2).mean() - 1) < far * math.sqrt(2)
            assert 3.0 < abs(z).max() < 6.0  # normal
        elif x.ndim > 1:
            z = x.astype(float) / math.sqrt(6 / 240)
            assert abs(z).max() <= 1 and abs(z.mean()) < far / math.sqrt(3)
            assert abs((z**2).mean() - 1 / 3) < far * math.sqrt(4 / 45)  # uniform
        else:
            assert (x == (name == "final.norm.weight")).all()
    used = np.zeros(layout.numel)
    for view in layout.views(used).values():
        view[...] = 1
    assert not flat[used == 0].any()


def test_first_values_are_drawn_from_the_seed_in_a_stream_of_their_own():
    layout = Layout(SHAPES)
    assert np.array_equal(layout.initial(3), layout.initial(3))
    assert not np.array_equal(layout.initial(3), layout.initial(4))
    assert len({INITIAL, batches.ORDER, batches.WORDS}) == 3


@pytest.mark.parametrize("extent", [(1,), (-1,), (0, 1)])
def test_a_buffer_of_another_size_is_refused(extent):
    """A longer one, too: it belongs to another model."""
    layout = Layout(SHAPES)
    shape = layout.numel + extent[0], *extent[1:]
    with pytest.raises(ValueError, match="^flat.shape is .*; it must be"):
        layout.views(np.zeros(shape, np.float32))
