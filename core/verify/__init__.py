"""How a kernel earns trust: bounds from rounding analysis, and means to hold kernels to them."""
