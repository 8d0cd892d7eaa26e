"""Attention forward for Hopper: warps that load, warps that multiply, and barriers between them.

FlashAttention-3 (Shah et al. 2024, arXiv 2407.08608) in Gluon, the layer of Triton that leaves the
layouts and the pipeline to the author. A program has one warp, the producer, that copies tiles of
keys and values into a ring of slots in shared memory, and CONSUMERS groups of four warps with ROWS
queries each, which share these tiles. Each consumer issues the score product of the next keys
before the product of the current weights and values, so that the matrix unit works while the
exponentials of the next keys are computed.

`B` batch, `H` heads, `K` KV heads, `G` = H/K, `M` queries, `N` keys, `D` head_dim.
A *tile* is a program's unit of work: CONSUMERS·ROWS queries of one head; a *block* is BLOCK_N keys.
Steps (1)–(4) are those of the reference. Blocks are visited from the last one that the tile attends
to back to the first, so that those where something is masked come first.

Every slot of the ring has a barrier `full`, completed by the bytes of a copy, and one `empty`,
completed by one arrival of each consumer. The n-th use of a barrier is its phase n: a consumer
waits for phase n of `full` before it reads, the producer for phase n − 1 of `empty` before it
writes. `mbarrier.wait` takes the parity of a phase, and that of the phase before the first one
counts as completed. Producer and consumers visit the same blocks of the same tiles in the same
order, at least one block of each tile (masked if the tile attends to none), so that none of them
waits for a block that never comes.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from twofold.kernels import attention_hopper, attention_parts
from twofold.kernels.attention_order import place_in_groups

ROWS = gl.constexpr(attention_hopper.ROWS)
LN_2 = gl.constexpr(attention_parts.LN_2)
PRODUCER_REGISTERS = gl.constexpr(attention_hopper.PRODUCER_REGISTERS)

place_in_groups = gluon.jit(place_in_groups.fn)
load_tile = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared
store_tile = getattr(tma, "async_store", None) or tma.async_copy_shared_to_global


@gluon.jit
def place_in_pairs(tile, blocks, heads, H, programs):
    """Return (block, b, h) of a tile; the programs share the tiles of B·H = `heads` heads.

    Program p takes tiles p, p + programs and so on. A pair is the i-th block of one head and the
    i-th last of the next: every pair is the same amount of work. The number of heads is even, and a
    program's next two tiles are a pair, until fewer pairs than programs are left.
    """
    first = tile // (2 * programs) * programs  # first pair of this round
    width = gl.minimum(programs, blocks * heads // 2 - first)
    second, i = (tile - 2 * first) // width, (tile - 2 * first) % width
    bh, i = (first + i) // blocks * 2 + second, (first + i) % blocks
    return i + (1 - second) * (blocks - 1 - 2 * i), bh // H, bh % H


@gluon.jit
def place(tile, sizes, TILE_M: gl.constexpr, PAIRS: gl.constexpr):
    """Return (b, h, first query, last query) of a tile."""
    H, G, M, N, tiles, together = sizes
    blocks = gl.cdiv(M, TILE_M)
    if PAIRS:
        block, b, h = place_in_pairs(tile, blocks, tiles // blocks, H, gl.num_programs(0))
    else:
        block, b, h = place_in_groups(tile, blocks, H, together)
    first = block * TILE_M
    return b, h, first, gl.minimum(first + TILE_M, M) - 1


@gluon.jit
def blocks_seen(first, last, M, N, CAUSAL: gl.constexpr, BLOCK_N: gl.constexpr):
    """Return how many blocks all queries first … last see, and how many some of them see.

    Where causal, query i sees keys 0 … i + N − M. No query sees beyond the last key. A tile visits
    at least one block.
    """
    stop = N
    end = N
    if CAUSAL:
        stop = gl.minimum(N, gl.maximum(first + N - M + 1, 0))
        end = gl.minimum(N, gl.maximum(last + N - M + 1, 0))
    return stop // BLOCK_N, gl.maximum(gl.cdiv(end, BLOCK_N), 1)


@gluon.jit
def wait_full(full, step, STAGES: gl.constexpr, present=True):
    """Wait until the ring's block for this step, if there is one, has arrived; return its slot."""
    slot = step % STAGES
    mbarrier.wait(full.index(slot), step // STAGES & 1, pred=present)
    return slot


@gluon.jit
def bring(desc, b, h, row, ring, full, empty, step, STAGES: gl.constexpr):
    """Copy a block of rows into the ring as soon as all consumers have released the step's slot."""
    slot = step % STAGES
    mbarrier.wait(empty.index(slot), (step // STAGES & 1) ^ 1)
    mbarrier.expect(full.index(slot), desc.block_type.nbytes)
    load_tile(desc, [b, h, row, 0], full.index(slot), ring.index(slot))


@gluon.jit
def produce(
    x, CAUSAL: gl.constexpr, BLOCK_N: gl.constexpr, STAGES: gl.constexpr, CONSUMERS: gl.constexpr,
    PAIRS: gl.constexpr,
):  # fmt: skip
    """Copy queries, keys and values in, in the order in which the consumers wait for them."""
    q_desc, k_desc, v_desc, rings, fulls, empties, sizes = x
    q_tiles, k_ring, v_ring = rings
    q_full, k_full, v_full = fulls
    q_empty, k_empty, v_empty = empties
    H, G, M, N, tiles, together = sizes
    TILE_M: gl.constexpr = CONSUMERS * ROWS
    step = 0
    trip = 0
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        b, h, first, last = place(tile, sizes, TILE_M, PAIRS)
        total = blocks_seen(first, last, M, N, CAUSAL, BLOCK_N)[1]
        kv_head = h // G
        last_row = (total - 1) * BLOCK_N
        bring(k_desc, b, kv_head, last_row, k_ring, k_full, k_empty, step, STAGES)
        for c in gl.static_range(CONSUMERS):
            mbarrier.wait(q_empty.index(c), (trip & 1) ^ 1)
            mbarrier.expect(q_full.index(c), q_desc.block_type.nbytes)
            load_tile(q_desc, [b, h, first + c * ROWS, 0], q_full.index(c), q_tiles.index(c))
        for i in range(1, total):
            row = (total - 1 - i) * BLOCK_N
            bring(k_desc, b, kv_head, row, k_ring, k_full, k_empty, step + 1, STAGES)
            bring(v_desc, b, kv_head, row + BLOCK_N, v_ring, v_full, v_empty, step, STAGES)
            step += 1
        bring(v_desc, b, kv_head, 0, v_ring, v_full, v_empty, step, STAGES)
        step += 1
        trip += 1


@gluon.jit
def weigh(s, top, total, scale):
    """(2) Weigh a block's products against the running maximum; (3) add up the weights so far.

    `top` is a maximum of products; times scale, which is positive, it is that of base-2 scores.

    Returns:
        the weights, the factor that rescales earlier ones, the maximum and the sum.
    """
    new_top = gl.maximum(top, gl.max(s, axis=1))
    safe = gl.where(new_top == -float("inf"), 0.0, new_top)  # 0 stands in for −∞ − (−∞)
    p = gl.exp2(s * scale - gl.expand_dims(safe * scale, 1))
    rescale = gl.exp2((top - safe) * scale)
    return p, rescale, new_top, total * rescale + gl.sum(p, axis=1)


@gluon.jit
def masked(s, rows, row, M, N, CAUSAL: gl.constexpr):
    """Return products of keys from `row` on, −∞ where a query may not attend."""
    layout: gl.constexpr = s.type.layout
    columns = row + gl.arange(0, s.shape[1], layout=gl.SliceLayout(0, layout))
    bound = gl.zeros_like(rows) + N
    if CAUSAL:
        bound = gl.minimum(rows + (N - M + 1), N)
    live = gl.expand_dims(columns, 0) < gl.expand_dims(bound, 1)
    return gl.where(live, s, -float("inf"))


@gluon.jit
def consume(
    x, CAUSAL: gl.constexpr, BLOCK_N: gl.constexpr, STAGES: gl.constexpr, CONSUMERS: gl.constexpr,
    PAIRS: gl.constexpr, TURNS: gl.constexpr, EARLY: gl.constexpr, C: gl.constexpr,
):  # fmt: skip
    """Attend from consumer C's ROWS queries of every tile of the program."""
    q_desc, out_desc, rings, fulls, empties, turns, sizes, lse_ptr, scale = x
    q_tiles, k_ring, v_ring = rings
    q_full, k_full, v_full = fulls
    q_empty, k_empty, v_empty = empties
    H, G, M, N, tiles, together = sizes
    TILE_M: gl.constexpr = CONSUMERS * ROWS
    D: gl.constexpr = q_desc.block_type.shape[3]
    NEXT: gl.constexpr = (C + 1) % CONSUMERS
    dtype: gl.constexpr = q_desc.dtype
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    acc_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    p_layout: gl.constexpr = gl.DotOperandLayout(0, acc_layout, 2)
    row_layout: gl.constexpr = gl.SliceLayout(1, s_layout)
    out_layout: gl.constexpr = gl.SliceLayout(1, acc_layout)
    q_tile = q_tiles.index(C)
    q = q_tile.reshape([ROWS, D])
    s_zero = gl.zeros([ROWS, BLOCK_N], gl.float32, s_layout)
    step = 0
    trip = 0
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        b, h, first, last = place(tile, sizes, TILE_M, PAIRS)
        blocks = blocks_seen(first, last, M, N, CAUSAL, BLOCK_N)[1]
        first += C * ROWS
        whole = blocks_seen(first, last, M, N, CAUSAL, BLOCK_N)[0]
        rows = first + gl.arange(0, ROWS, layout=row_layout)
        row = (blocks - 1) * BLOCK_N
        # (1) S of the last block: q·kᵀ; the scale is applied in the exponent
        mbarrier.wait(q_full.index(C), trip & 1)
        slot = wait_full(k_full, step, STAGES)
        k = k_ring.index(slot).reshape([BLOCK_N, D]).permute([1, 0])
        s = warpgroup_mma(q, k, s_zero, use_acc=False, is_async=True)
        s = warpgroup_mma_wait(0, deps=[s])
        mbarrier.arrive(k_empty.index(slot))
        top = gl.full([ROWS], -float("inf"), gl.float32, row_layout)
        total = gl.zeros([ROWS], gl.float32, row_layout)
        s = masked(s, rows, row, M, N, CAUSAL)
        # (2) P̃ = exp(S − m), m the maximum so far; (3) ℓ = rowsum P̃, so far
        p, rescale, top, total = weigh(s, top, total, scale)
        p = gl.convert_layout(p.to(dtype), p_layout)
        acc = gl.zeros([ROWS, D], gl.float32, acc_layout)
        slot = wait_full(k_full, step + 1, STAGES, blocks > 1)
        edge = gl.maximum(blocks - whole, 1)
        for EDGE in gl.static_range(1 if CAUSAL else 0, -1, -1):
            for i in range(1 if EDGE else edge, edge if EDGE else blocks):
                row -= BLOCK_N
                # (1) S of the next block
                k = k_ring.index(slot).reshape([BLOCK_N, D]).permute([1, 0])
                if TURNS:
                    turn = step - trip + (1 if C == 0 else 0)
                    mbarrier.wait(turns.index(C), turn & 1)
                s = warpgroup_mma(q, k, s_zero, use_acc=False, is_async=True)
                # (4) out, so far, of this one
                v_slot = wait_full(v_full, step, STAGES)
                v = v_ring.index(v_slot).reshape([BLOCK_N, D])
                acc = warpgroup_mma(p, v, acc, is_async=True)
                if TURNS:
                    mbarrier.arrive(turns.index(NEXT))
                s = warpgroup_mma_wait(1, deps=[s])
                mbarrier.arrive(k_empty.index(slot))
                if EDGE:
                    s = masked(s, rows, row, M, N, CAUSAL)
                # (2) P̃ = exp(S − m), m the maximum so far; (3) ℓ = rowsum P̃, so far
                p_next, rescale, top, total = weigh(s, top, total, scale)
                if EARLY:
                    p_next = gl.convert_layout(p_next.to(dtype), p_layout)
                # Nothing moves past this wait, so the exponentials come before the next wait.
                slot = wait_full(k_full, step + 2, STAGES, i + 1 < blocks)
                acc, p_next = warpgroup_mma_wait(0, deps=[acc, p_next])
                mbarrier.arrive(v_empty.index(v_slot))
                acc = acc * gl.expand_dims(gl.convert_layout(rescale, out_layout), 1)
                p = p_next if EARLY else gl.convert_layout(p_next.to(dtype), p_layout)
                step += 1
        # (4) out of the first block, ÷ ℓ
        slot = wait_full(v_full, step, STAGES)
        v = v_ring.index(slot).reshape([BLOCK_N, D])
        acc = warpgroup_mma(p, v, acc, is_async=True)
        # (3) lse = m + log ℓ: −∞ where nothing is seen
        empty = total == 0.0
        divisor = gl.where(empty, 1.0, total)
        lse = gl.where(empty, -float("inf"), (top * scale + gl.log2(divisor)) * LN_2)
        lse_at = gl.cast(b * H + h, gl.int64) * M + rows
        gl.store(lse_ptr + lse_at, lse, mask=rows < M)
        acc = warpgroup_mma_wait(0, deps=[acc])
        mbarrier.arrive(v_empty.index(slot))
        step += 1
        # The queries have been read: the output takes their place in shared memory.
        share = gl.convert_layout(1.0 / divisor, out_layout)
        out = (acc * gl.expand_dims(share, 1)).to(dtype)
        q.store(out)
        fence_async_shared()
        store_tile(out_desc, [b, h, first, 0], q_tile)
        tma.store_wait(0)
        mbarrier.arrive(q_empty.index(C))
        trip += 1


@gluon.jit(do_not_specialize=["H", "G", "M", "N", "tiles", "together"])
def forward_kernel(
    q_desc,  # (B, H, M, D), in blocks of ROWS queries
    k_desc,  # (B, K, N, D), in blocks of BLOCK_N keys
    v_desc,  # (B, K, N, D)
    out_desc,  # (B, H, M, D)
    lse_ptr,  # (B, H, M) float32
    H, G, M, N,
    tiles,
    together,
    scale,  # softmax_scale · log₂e
    CAUSAL: gl.constexpr,
    BLOCK_N: gl.constexpr,
    STAGES: gl.constexpr,
    CONSUMERS: gl.constexpr,
    PAIRS: gl.constexpr,
    TURNS: gl.constexpr,
    EARLY: gl.constexpr,
    REGISTERS: gl.constexpr,
):  # fmt: skip
    """Attend from the queries of a program's share of the tiles."""
    layout: gl.constexpr = mbarrier.MBarrierLayout()
    q_tiles = gl.allocate_shared_memory(
        q_desc.dtype, [CONSUMERS] + q_desc.block_type.shape, q_desc.layout
    )
    k_ring = gl.allocate_shared_memory(
        k_desc.dtype, [STAGES] + k_desc.block_type.shape, k_desc.layout
    )
    v_ring = gl.allocate_shared_memory(
        v_desc.dtype, [STAGES] + v_desc.block_type.shape, v_desc.layout
    )
    q_full = gl.allocate_shared_memory(gl.int64, [CONSUMERS, 1], layout)
    q_empty = gl.allocate_shared_memory(gl.int64, [CONSUMERS, 1], layout)
    turns = gl.allocate_shared_memory(gl.int64, [CONSUMERS, 1], layout)
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], layout)
    k_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], layout)
    v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], layout)
    v_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], layout)
    for i in gl.static_range(CONSUMERS):
        mbarrier.init(q_full.index(i), count=1)
        mbarrier.init(q_empty.index(i), count=1)
        mbarrier.init(turns.index(i), count=1)
    for i in gl.static_range(STAGES):
        mbarrier.init(k_full.index(i), count=1)
        mbarrier.init(k_empty.index(i), count=CONSUMERS)
        mbarrier.init(v_full.index(i), count=1)
        mbarrier.init(v_empty.index(i), count=CONSUMERS)
    fence_async_shared()
    rings = (q_tiles, k_ring, v_ring)
    fulls = (q_full, k_full, v_full)
    empties = (q_empty, k_empty, v_empty)
    sizes = (H, G, M, N, tiles, together)
    copied = (q_desc, k_desc, v_desc, rings, fulls, empties, sizes)
    x = (q_desc, out_desc, rings, fulls, empties, turns, sizes, lse_ptr, scale)
    if CONSUMERS == 2:
        gl.warp_specialize(
            [
                (consume, (x, CAUSAL, BLOCK_N, STAGES, CONSUMERS, PAIRS, TURNS, EARLY,
                           gl.constexpr(0))),
                (consume, (x, CAUSAL, BLOCK_N, STAGES, CONSUMERS, PAIRS, TURNS, EARLY,
                           gl.constexpr(1))),
                (produce, (copied, CAUSAL, BLOCK_N, STAGES, CONSUMERS, PAIRS)),
            ],
            [4, 1],
            [REGISTERS, PRODUCER_REGISTERS],
        )  # fmt: skip
    else:
        gl.warp_specialize(
            [
                (consume, (x, CAUSAL, BLOCK_N, STAGES, CONSUMERS, PAIRS, TURNS, EARLY,
                           gl.constexpr(0))),
                (consume, (x, CAUSAL, BLOCK_N, STAGES, CONSUMERS, PAIRS, TURNS, EARLY,
                           gl.constexpr(1))),
                (consume, (x, CAUSAL, BLOCK_N, STAGES, CONSUMERS, PAIRS, TURNS, EARLY,
                           gl.constexpr(2))),
                (produce, (copied, CAUSAL, BLOCK_N, STAGES, CONSUMERS, PAIRS)),
            ],
            [4, 4, 1],
            [REGISTERS, REGISTERS, PRODUCER_REGISTERS],
        )  # fmt: skip
