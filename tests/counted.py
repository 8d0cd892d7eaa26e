"""How many products of tiles a call computes."""

import contextlib

import pytest
from triton.runtime import interpreter


@contextlib.contextmanager
def counting(triton):
    """Yield a list with an element for every product of tiles computed within; skip on a GPU."""
    if triton.device == "cuda":
        pytest.skip("products are counted in the interpreter")
    builder, made = type(interpreter.interpreter_builder), []
    plain = builder.create_dot

    def counted(self, *args):
        made.append("a product")
        return plain(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builder, "create_dot", counted)
        yield made
