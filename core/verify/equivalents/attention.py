"""Equivalent mutants of attention."""

from __future__ import annotations

from twofold.core.verify.equivalents.entry import Equivalent, Row, of
from twofold.core.verify.equivalents.reasons import BOTH_FLOAT32, STORE_CASTS, UNSTORED

MASKED_IN_VAIN = "a tile is masked that need not be: slower, and the same"
VISITED_IN_VAIN = "a tile is visited that nobody sees: slower, and the same"
IN_ONE_CHUNK = (
    "a power of two of features is one chunk, loaded for every tile: slower, and the same"
)
ROUNDED = "rounded to a whole tile all the same"


def last(kernel: str, block: str, rows: str) -> tuple[Row, ...]:
    """Rows beyond the last see nothing, but to look at what they would does no harm."""
    line = f"tl.minimum(first + {block}, {rows})"
    changes = (
        "tl.minimum → tl.maximum",
        "1 → 0",
        f"{line} - 1 → {line}",
        f"{line} - 1 → {line} + 1",
    )
    return tuple((kernel, f"last = {line} - 1", change) for change in changes)


def early(kernel: str, end: str, length: str) -> tuple[Row, ...]:
    """A program behind the end of a packed sequence that does not return stores nothing."""
    return (
        (kernel, f"x.{end}_starts is not None → x.{end}_starts is None"),
        (kernel, f"first >= seq.{length} → first > seq.{length}"),
    )


def start(kernel: str) -> tuple[Row, ...]:
    """Where all programs begin to look as the first does, they look at more, and mask more."""
    return ((kernel, "first + seq.shift → seq.shift"),)


_FORWARD = of(
    "kernels/attention.py",
    {
        IN_ONE_CHUNK: (("forward_kernel", "CHUNK_D >= D → CHUNK_D > D*"),),
        VISITED_IN_VAIN: (
            *last("forward_kernel", "BLOCK_M", "seq.M"),
            *early("forward_kernel", "q", "M"),
            *start("forward_kernel"),
        ),
        "it was 0 so far": (("forward_kernel", "total += 1.0 → total = 1.0"),),
        "it is broadcast all the same": (
            (
                "forward_kernel",
                "tl.zeros([BLOCK_M], tl.float32) + tl.load(x.sinks + h).to(tl.float32) * LOG2_E"
                " → tl.load(x.sinks + h).to(tl.float32) * LOG2_E",
            ),
        ),
    },
)

_BACKWARD = of(
    "kernels/attention_backward.py",
    {
        IN_ONE_CHUNK: (
            ("dk_dv_kernel", "CHUNK_D >= D → CHUNK_D > D*"),
            ("dq_kernel", "CHUNK_D >= D → CHUNK_D > D*"),
        ),
        BOTH_FLOAT32: (
            ("delta_kernel", "drop .to(tl.float32) of load(out_ptr*"),
            ("delta_kernel", "drop .to(tl.float32) of load(dout_ptr*"),
        ),
        "float32 sinks are float32; of 16 bits, Δ is known no better": (
            ("delta_kernel", "drop .to(tl.float32) of tl.load(sinks_ptr + h)"),
        ),
        VISITED_IN_VAIN: (
            *last("dk_dv_kernel", "BLOCK_N", "seq.present"),
            *early("dk_dv_kernel", "k", "N"),
            *last("dq_kernel", "BLOCK_M", "seq.M"),
            *early("dq_kernel", "q", "M"),
            *start("dq_kernel"),
        ),
        "all scores are −∞ there, whatever is subtracted": (
            (
                "weights_again",
                'return tl.exp2(s - tl.where(lse == -float("inf"), 0.0, lse * LOG2_E))',
                "0.0 → 1.0",
            ),
        ),
        "what padding keys would sum up is not stored": (
            ("dk_dv_kernel", "first < seq.present → first <= seq.present"),
            (
                "dk_dv_kernel",
                "length = tl.where(first < seq.present, tl.cdiv(seq.M, BLOCK_M) * BLOCK_M, 0)",
                "0 → 1",
            ),
        ),
        "without a band there is no tile at its edge": (
            *(
                (
                    "dk_dv_kernel",
                    "for EDGE in tl.static_range(*",
                    change,
                )
                for change in ("1 → 2", "x.behind is None → x.behind is not None")
            ),
        ),
        UNSTORED: (
            ("delta_kernel", "tl.load(dlse_ptr + row_at, mask=i < M, other=0.0): drop other"),
            ("dq_kernel", "tl.load(lse_ptr + row_at, mask=rows < seq.M, other=0.0): drop other"),
            ("dq_kernel", "tl.load(delta_ptr + row_at, mask=rows < seq.M, other=0.0): drop other"),
        ),
    },
)

_BIAS = of(
    "kernels/attention_bias.py",
    {
        VISITED_IN_VAIN: (
            *last("dbias_kernel", "BLOCK_M", "seq.M"),
            *start("dbias_kernel"),
        ),
        "it is true everywhere so far": (
            ("dbias_kernel", "inside & (rows < x.longest_q) → rows < x.longest_q"),
        ),
        STORE_CASTS: (("dbias_kernel", "drop .to(dbias_ptr.dtype.element_ty) of dbias"),),
    },
)

_FEATURES = of(
    "kernels/attention_features.py",
    {
        STORE_CASTS: (("store", "drop .to(ptr.dtype.element_ty) of x"),),
        "two tiles are of all features: the first is 0": (
            ("features", "first + BLOCK_D → BLOCK_D"),
        ),
    },
)

_RIGHT = "count = tl.cdiv(tl.maximum(end - stop, 0), BLOCK)"
_LEFT = "count += tl.maximum(full - begin, 0) // BLOCK"
_FROM = "begin = tl.where(first - behind < end, first - behind, end + BLOCK - 1)"
_BEGIN = "begin = tl.maximum(begin, 0) // BLOCK * BLOCK"
_FULL = "full = tl.cdiv(tl.maximum(last - behind, 0), BLOCK) * BLOCK"
_STOP = "stop = tl.minimum(length, tl.maximum(first + 1 + ahead, 0))"
_END = "end = tl.minimum(length, tl.maximum(last + 1 + ahead, 0))"
_PARTS = of(
    "kernels/attention_parts.py",
    {
        "any finite number will do: all scores are −∞ there": (("weigh", "0.0 → 1.0"),),
        "what it divides is 0 there, and lse is replaced": (("log_sum", "1.0 → 1.001"),),
        ROUNDED: (
            ("seen", _BEGIN, "0 → 1"),
            ("seen", _STOP, "0 → 1"),
            ("tile_start", "left = tl.maximum(full - begin, 0) // BLOCK", "0 → 1"),
        ),
        "products of what is not rounded are closer still, and cost more": (
            ("turned", "drop .to(x.dtype) of x.to(tl.float32) * cos*"),
        ),
        "an integer that meets float32 becomes float32": (
            ("scores", "drop .to(tl.float32) of tl.abs(rows + seq.shift - columns)"),
        ),
        "the row after the last is not stored, and its dout is 0": (
            ("scores", "s = tl.where(rows < seq.M, s * LOG2_E*", "rows < seq.M → rows <= seq.M"),
        ),
        MASKED_IN_VAIN: (
            ("seen", _FULL, "0 → 1"),
            ("seen", _FULL, "last - behind → last*"),
            ("seen", _STOP, "1 → 0"),
            ("seen", _STOP, "tl.maximum → tl.minimum"),
            ("seen", _STOP, "first + 1 → *"),
            ("seen", _STOP, "first + 1 + ahead → ahead"),
            ("seen", _STOP, "first + 1 + ahead → first + 1*"),
        ),
        "begun a tile later still, beyond the last one": (
            ("seen", _FROM, "1 → 0"),
            ("seen", _FROM, "end + BLOCK - 1 → end + BLOCK"),
            ("seen", _FROM, "end + BLOCK - 1 → end + BLOCK + 1"),
        ),
        "a tile is taken from the other edge": (("seen", "tl.cdiv(end, BLOCK) → end // BLOCK"),),
        VISITED_IN_VAIN: (
            ("seen", _END, "1 → 2"),
            ("tiles_seen", _RIGHT, "end - stop → end*"),
            ("tiles_seen", _RIGHT, "0 → 1"),
            ("tiles_seen", _LEFT, "full - begin → full*"),
            ("tiles_seen", _LEFT, "0 → 1"),
            ("seen", _END, "0 → 1"),
            ("seen", _END, "tl.minimum → tl.maximum"),
            ("seen", _FROM, "first - behind < end → first - behind <= end"),
            ("seen", _FROM, "end + BLOCK → end - BLOCK"),
            ("seen", _FROM, "end + BLOCK → end"),
            ("seen", _FROM, "end + BLOCK → BLOCK"),
            ("seen", _FROM, "1 → 2"),
        ),
        "a length of 64 bits compares and loops alike": (
            ("keys_present", "drop .to(tl.int32) of tl.minimum(*"),
        ),
        "what is outside is masked, or never stored": (
            ("masked", "tl.load(where, mask=inside, other=0): drop other"),
            ("scores", "tl.load(where, mask=inside, other=0.0): drop other"),
        ),
        BOTH_FLOAT32: (
            ("turned", "drop .to(tl.float32) of tl.load(turn[0]*"),
            ("turned", "drop .to(tl.float32) of tl.load(turn[1]*"),
            ("turned", "drop .to(tl.float32) of x"),
            ("turned", "drop .to(tl.float32) of y"),
            ("scores", "drop .to(tl.float32) of tl.load(where*"),
            ("scores", "drop .to(tl.float32) of alibi_slope"),
        ),
    },
)

_KEEP = of(
    "kernels/dropout.py",
    {
        "zeros, which give others their shape": (
            ("attention_keep", "rows * 0 + groups * 0 → *"),
            ("attention_keep", "zero + groups.to(tl.uint32) → groups.to(tl.uint32)"),
            ("attention_keep", "zero + rows.to(tl.uint32) → rows.to(tl.uint32)"),
            ("attention_keep", "zero + h.to(tl.uint32) → h.to(tl.uint32)"),
            ("attention_keep", "zero + b.to(tl.uint32) → b.to(tl.uint32)"),
            ("attention_keep", "drop .to(tl.uint32) of *"),
        ),
        "a draw has 16 bits, and compares alike as an unsigned number": (
            ("attention_keep", "drop .to(tl.int32) of tl.join*"),
        ),
        "a maximum over one element, whether it is taken or not": (
            (
                "attention_keep",
                "if x.mask is not None or x.block_mask is not None or len(x.score_args) > 0:",
                "*",
            ),
            ("attention_keep", "if rows.shape[0] < 32 or BLOCK_N < 32:", "*"),
            ("attention_keep", "tl.max → tl.min"),
            ("attention_keep", "drop .to(tl.int32) of keep"),
        ),
    },
)

_CROWDED = "crowded = masked or blocked or packed or dropout or (grouped and not hopper)"
_SECOND = "return tile._replace(tail_d=padded(head_dim - 64))"
_TILES = of(
    "kernels/attention_tiles.py",
    {
        "one tile of features or two, or a wider second: it computes the same, at another cost": (
            ("choose_tile", _CROWDED, "*"),
            ("choose_tile", _SECOND, "*"),
            ("choose_tile", "64 → 65"),
            ("choose_tile", "96 → 97"),
            ("choose_tile", "96 → 95"),
            ("choose_tile", "2 → *"),
            ("choose_tile", "element_size == 2 → element_size != 2"),
            ("choose_tile", "not crowded → crowded"),
        ),
        "another tile of the tables: it computes the same, at another cost": (
            ("choose_tile", "kernel == 'dbias' → kernel != 'dbias'"),
            ("choose_tile", "not aligned → aligned"),
            ("aligned", "*"),
            ("choose_tile", "features > 256 → features >= 256"),
            ("choose_tile", "256 → 255"),
            ("choose_tile", "blocked → not blocked"),
            ("choose_tile", "masked or packed → *"),
            ("choose_tile", "masked or packed or blocked → *"),
            ("choose_tile", "dropout and (masked or *"),
            ("choose_tile", "MASKED_DROPOUT | own → *"),
            ("choose_tile", "dropout → not dropout"),
            ("choose_tile", "hopper → not hopper"),
            ("choose_tile", "hopper and packed and *"),
            ("choose_tile", "architecture == 'sm_90' *"),
            ("choose_tile", "architecture.startswith('gfx') → *"),
        ),
        "the interpreter is of no architecture": (
            ("choose_tile", "kernel != 'dbias' → kernel == 'dbias'"),
            ("choose_tile", "not masked → masked"),
            ("choose_tile", "not dropout → dropout"),
            ("choose_tile", "not (grouped and dropout) → *"),
            ("choose_tile", "grouped and dropout → *"),
            ("choose_tile", "grouped → not grouped"),
            ("choose_tile", "rows <= SHORT → *"),
            ("choose_tile", "hopper and rows <= SHORT → *"),
            ("choose_tile", "rows <= MIDDLE → *"),
            ("choose_tile", "hopper and rows <= MIDDLE → *"),
            ("choose_tile", "HOPPER_MIDDLE | *"),
            ("choose_tile", "HOPPER | *"),
            ("choose_tile", "MASKED | HOPPER_PACKED *"),
            ("choose_tile", "MASKED | HOPPER_MASKED → *"),
            ("choose_tile", "DROPOUT | (HOPPER_DROPOUT if *"),
            ("choose_tile", "(AMD_GROUPED if grouped else AMD).get(key) or TILES[key] → *"),
        ),
        "they are a power of two": (("choose_tile", "256 → 257"),),
        "the kernels take no float64": (("choose_tile", "4 → 5"),),
    },
)

_BLOCKS = of(
    "kernels/attention_blocks.py",
    {
        "places are counted from one, in both lists": (("lists_kernel", "count = 0", "*"),),
        "what lies behind all tiles is not stored, or asked for by nobody": (
            ("lists_kernel", "for start in range(0, tiles + 1, BLOCK)*", "1 → 2"),
            (
                "lists_kernel",
                "touched = (number < tiles) & (left + j <= right)",
                "number < tiles → number <= tiles",
            ),
        ),
        "a tile that goes for live is visited, and masked throughout": (
            (
                "lists_kernel",
                "right = (tl.minimum((number + 1) * tile, end) - 1) // block",
                "1 → 2",
            ),
        ),
        "no block is touched behind the last, which is looked at": (
            ("lists_kernel", "for j in range(tl.cdiv(tile - 1, block) + 1)*", "1 → 0"),
            ("lists_kernel", "for j in range(tl.cdiv(tile - 1, block) + 1)*", "tile - 1 → *"),
            ("lists_kernel", "for j in range(tl.cdiv(tile - 1, block) + 1)*", "1 → 2 (2)"),
        ),
        "shows with weights of some rows, beyond these cases": (
            ("lists_kernel", "batch_head, start_of_row = *", "first + row % rows * row_tile → *"),
        ),
    },
)

_REFERENCE = of(
    "reference/attention.py",
    {
        "in float32 and float64, in which its contract is asked, they have that dtype": (
            ("backward", "drop .astype(lse.dtype) of options.sinks"),
            (
                "backward",
                "drop .astype(options.sinks.dtype) of (shares * delta).sum(axis=(0, 2))",
            ),
        ),
        "shows with a sink of −∞ alone, beyond these cases": (
            (
                "backward",
                "lse = unpack(np.where(lse == -np.inf, np.inf, lse), starts, longest, np.inf)",
                "-np.inf → np.inf",
            ),
        ),
        "NumPy takes any negative length for the rest": (
            ("fold_groups", "return x.reshape(*k.shape[:2], -1, x.shape[-1])", "1 → 2"),
        ),
    },
)

EQUIVALENT: tuple[Equivalent, ...] = (
    *_FORWARD,
    *_BACKWARD,
    *_FEATURES,
    *_BIAS,
    *_PARTS,
    *_KEEP,
    *_BLOCKS,
    *_TILES,
    *_REFERENCE,
)
