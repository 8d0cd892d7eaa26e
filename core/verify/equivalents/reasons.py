"""Reasons that come back in the list of equivalents."""

UNSTORED = "what is outside is never stored"
STORE_CASTS = "tl.store casts to what its pointer is of"
BOTH_FLOAT32 = "what it meets is float32, which makes the result float32"
ANY_NEGATIVE = "NumPy takes any negative number for the unknown size"
SAME_AT_EQUALITY = "at equality both branches have the same value"
