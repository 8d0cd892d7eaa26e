"""Attention: what both sides refuse, and in which words."""

import numpy as np
import pytest

from twofold.reference.attention_scores import ScoreMod


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"q": np.ones((2, 3, 4, 5), int)}, TypeError, "q has dtype int64; it must be one of"),
        ({"k": np.ones((2, 3, 7, 5), "float32")}, TypeError, "k has dtype float32; it must have"),
        ({"q": np.ones((3, 4, 5))}, ValueError, "q.shape is (3, 4, 5); it must be of rank 4"),
        ({"q": np.ones((2, 3, 0, 5))}, ValueError, "q.shape is (2, 3, 0, 5); it must be"),
        ({"k": np.ones((3, 3, 7, 5))}, ValueError, "k.shape is (3, 3, 7, 5); it must be (2, K, N"),
        ({"k": np.ones((2, 2, 7, 5))}, ValueError, "k.shape[1] is 2; it must be a divisor of"),
        ({"v": np.ones((2, 3, 6, 5))}, ValueError, "v.shape is (2, 3, 6, 5); it must be (2, 3, 7"),
        ({"softmax_scale": float("nan")}, ValueError, "softmax_scale is nan; it must be finite"),
        (
            {"causal": "left"},
            ValueError,
            "causal is 'left'; it must be one of 'bottom-right', 'top",
        ),
        ({"window_size": (1, -2)}, ValueError, "window_size is (1, -2); it must be of ints from 0"),
        ({"window_size": (1,)}, ValueError, "window_size is (1,); it must be a pair"),
        ({"softcap": 0.0}, ValueError, "softcap is 0.0; it must be positive"),
        ({"score_mod": abs}, TypeError, "score_mod is a builtin_function_or_method; it must be a"),
        (
            {"score_mod": ScoreMod(None, None)},
            TypeError,
            "score_mod.function is a NoneType; it must be a function",
        ),
        (
            {"score_mod": ScoreMod(abs, 1)},
            TypeError,
            "score_mod.derivative is a int; it must be a f",
        ),
        (
            {"score_mod": ScoreMod(abs, abs, (), "bend")},
            TypeError,
            "score_mod.second_derivative is a str; it must be a function",
        ),
        ({"score_mod": ScoreMod(abs, abs, 1)}, TypeError, "score_mod.args is a int; it must be a"),
        ({"alibi_slopes": np.ones(2)}, ValueError, "alibi_slopes.shape is (2,); it must be broad"),
        ({"bias": np.ones((7, 4))}, ValueError, "bias.shape is (7, 4); it must be broadcastable"),
        ({"bias": np.ones(7, "float32")}, TypeError, "bias has dtype float32; it must have the dt"),
        ({"sinks": np.ones(2)}, ValueError, "sinks.shape is (2,); it must be (3,)"),
        ({"mask": np.ones((4, 7))}, TypeError, "mask has dtype float64; it must be bool"),
        ({"mask": np.ones((7, 4), bool)}, ValueError, "mask.shape is (7, 4); it must be broadcast"),
        (
            {"block_mask": np.ones((1, 1), bool)},
            ValueError,
            "block_size is None; it must be an int",
        ),
        ({"window_size": 5}, ValueError, "window_size is 5; it must be a pair"),
        (
            {"window_size": (True, 1)},
            ValueError,
            "window_size is (True, 1); it must be of ints from 0",
        ),
        (
            {"block_mask": np.ones((1, 1), bool), "block_size": [8, 8]},
            ValueError,
            "block_size is [8, 8]; it must be an int ≥ 1, or a tuple of two, with block_mask",
        ),
        ({"block_size": 4}, ValueError, "block_size is 4; it must be None without block_mask"),
        (
            {"block_mask": np.ones((1, 1), bool), "block_size": (4, 0)},
            ValueError,
            "block_size is (4, 0); it must be an int ≥ 1, or a tuple of two, with block_mask",
        ),
        (
            {"block_mask": np.ones((1, 1), bool), "block_size": (4,)},
            ValueError,
            "block_size is (4,); it must be an int ≥ 1, or a tuple of two, with block_mask",
        ),
        (
            {"block_mask": np.ones((1, 2)), "block_size": 4},
            TypeError,
            "block_mask has dtype float64; it must be bool",
        ),
        (
            {"block_mask": np.ones((2, 1), bool), "block_size": 4},
            ValueError,
            "block_mask.shape is (2, 1); it must be broadcastable to (2, 3, 1, 2)",
        ),
        ({"key_lengths": np.ones(3, int)}, ValueError, "key_lengths.shape is (3,); it must be (2,"),
        ({"key_lengths": np.ones(2)}, TypeError, "key_lengths has dtype float64; it must be int32"),
        ({"dropout_p": 1.0}, ValueError, "dropout_p is 1.0; it must be at least 0 and below 1"),
        ({"seed": -1}, ValueError, "seed is -1; it must be at least 0 and below 2**63"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, dict) else "",
)
def test_both_sides_refuse_bad_input(both_refuse, arguments, error, words):
    q, kv = np.ones((2, 3, 4, 5)), np.ones((2, 3, 7, 5))
    both_refuse("attention", {"q": q, "k": kv, "v": kv} | arguments, error, words)


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        (lambda s, *_: 1.0, TypeError, " is a float; it must be an array"),
        (lambda s, *_: s[..., :1], ValueError, ".shape is (1, 1, 3, 1); it must be (1, 1, 3, 2)"),
    ],
)
def test_what_a_function_of_the_scores_returns_is_looked_at(reference, changed, error, words):
    q, k = np.ones((1, 1, 3, 4)), np.ones((1, 1, 2, 4))
    with pytest.raises(error) as refusal:
        reference.attention.forward(q, k, k, score_mod=ScoreMod(changed, lambda s, *_: 1.0))
    assert str(refusal.value) == f"what score_mod.function returns{words}"


def test_head_dim_above_512_is_refused(both_refuse):
    wide = dict.fromkeys("qkv", np.ones((1, 1, 1, 513)))
    both_refuse("attention", wide, ValueError, "q.shape[-1] is 513; it must be at most 512")


PACKED = {"cu_seqlens_q": [0, 2, 6], "cu_seqlens_k": [0, 7, 7]}
PACKED = {name: np.array(x, "int32") for name, x in PACKED.items()}
PACKED |= {"max_seqlen_q": 4, "max_seqlen_k": 7}
LONE_Q = {"cu_seqlens_k": None, "max_seqlen_k": None}
LONE_K = {"cu_seqlens_q": None, "max_seqlen_q": None}


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (LONE_Q, ValueError, "cu_seqlens_k is None; it must be given if cu_seqlens_q is"),
        (LONE_K, ValueError, "cu_seqlens_k is given; it must be given if cu_seqlens_q is"),
        (
            {"cu_seqlens_q": None, "cu_seqlens_k": None},
            ValueError,
            "max_seqlen_q is 4; it must be None without cu_seqlens_q",
        ),
        (
            {"q": np.ones((2, 3, 6, 5)), **dict.fromkeys("kv", np.ones((2, 3, 7, 5)))},
            ValueError,
            "q.shape[0] is 2; it must be 1 with cu_seqlens_q",
        ),
        (
            {"cu_seqlens_q": np.array([0, 2, 6])},
            TypeError,
            "cu_seqlens_q has dtype int64; it must be int32",
        ),
        (
            {"cu_seqlens_q": np.zeros(1, "int32")},
            ValueError,
            "cu_seqlens_q.shape is (1,); it must be (S + 1,) of S ≥ 1 sequences",
        ),
        (
            {"cu_seqlens_k": np.array([0, 7], "int32")},
            ValueError,
            "cu_seqlens_k.shape is (2,); it must be (3,)",
        ),
        (
            {"max_seqlen_q": None},
            ValueError,
            "max_seqlen_q is None; it must be an int ≥ 1 with cu_seqlens_q",
        ),
        ({"max_seqlen_q": True}, ValueError, "max_seqlen_q is True; it must be an int ≥ 1 with"),
        ({"max_seqlen_k": 0}, ValueError, "max_seqlen_k is 0; it must be an int ≥ 1 with cu_seqle"),
        (
            {"mask": np.ones((6, 7), bool)},
            ValueError,
            "mask.shape is (6, 7); it must be broadcastable to (2, 3, 4, 7)",
        ),
        (
            {"block_mask": np.ones((2, 3), bool), "block_size": (3, 2)},
            ValueError,
            "block_mask.shape is (2, 3); it must be broadcastable to (2, 3, 2, 4)",
        ),
        ({"key_lengths": np.ones(1, int)}, ValueError, "key_lengths.shape is (1,); it must be (2,"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, dict) else "",
)
def test_both_sides_refuse_bad_packing(both_refuse, arguments, error, words):
    q, kv = np.ones((1, 3, 6, 5)), np.ones((1, 3, 7, 5))
    both_refuse("attention", {"q": q, "k": kv, "v": kv} | PACKED | arguments, error, words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            {"cu_seqlens_q": [1, 2, 6]},
            "cu_seqlens_q is [1, 2, 6]; it must be non-decreasing from 0 to 6",
        ),
        (
            {"cu_seqlens_q": [0, 2, 5]},
            "cu_seqlens_q is [0, 2, 5]; it must be non-decreasing from 0 to 6",
        ),
        (
            {"cu_seqlens_k": [0, 8, 7]},
            "cu_seqlens_k is [0, 8, 7]; it must be non-decreasing from 0 to 7",
        ),
        ({"max_seqlen_q": 3}, "max_seqlen_q is 3; it must be at least 4"),
        ({"max_seqlen_k": 6}, "max_seqlen_k is 6; it must be at least 7"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, dict) else "",
)
def test_both_sides_refuse_sequences_that_lie_elsewhere(both_refuse, triton, arguments, words):
    if triton.device == "cuda":
        pytest.skip("no check waits for a GPU's values")
    q, kv = np.ones((1, 3, 6, 5)), np.ones((1, 3, 7, 5))
    arguments = {n: np.array(x, "int32") if n[0] == "c" else x for n, x in arguments.items()}
    both_refuse("attention", {"q": q, "k": kv, "v": kv} | PACKED | arguments, ValueError, words)
