"""A matrix product for Hopper, to be raced with the plain one: c = f(a·b + bias).

One warp copies tiles of a and b into a ring of shared memory, and two groups of four warps
multiply. Either the groups share a tile (each has half its rows, and both read b), or they take
tiles in turn: while one adds the bias, activates and stores, the other has the matrix unit. The
first way multiplies more for what it loads, the second hides what is not a product.

In turn, a group must not start waiting for its slots until the other has finished waiting for the
earlier ones: a parity does not tell a phase from the one before the last. So each has a barrier
among `turns`, at which the other arrives when it has begun its tile's last product.

`M` × `K` times `K` × `N`. A *step* is a slice of BLOCK_K features of one tile; slots, barriers and
phases are those of `twofold.kernels.attention_hopper_kernel`. Steps (1) and (2) are those of
`reference.linear`. So far only `tests/hopper_machine.py` has run it, not a GPU.
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

from twofold.kernels.activation import SQRT_HALF
from twofold.kernels.attention_hopper_kernel import PRODUCER_REGISTERS, load_tile, store_tile

CONSUMER_REGISTERS = gl.constexpr(240)


@gluon.jit
def place(tile, sizes, BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr, GROUP_M: gl.constexpr):
    """Return the first row and column of a tile; GROUP_M tile rows share columns of b."""
    M, N, K = sizes
    wide = gl.cdiv(N, BLOCK_N)
    top = tile // (GROUP_M * wide) * GROUP_M
    rows = gl.minimum(GROUP_M, gl.cdiv(M, BLOCK_M) - top)
    within = tile % (GROUP_M * wide)
    return (top + within % rows) * BLOCK_M, within // rows * BLOCK_N


@gluon.jit
def produce(
    x, tiles, BLOCK_N: gl.constexpr, BLOCK_K: gl.constexpr, STAGES: gl.constexpr,
    SHARED: gl.constexpr, A_TURNED: gl.constexpr, B_TURNED: gl.constexpr,
    ROWS: gl.constexpr, GROUP_M: gl.constexpr,
):  # fmt: skip
    """Copy a and b in, step after step of every tile of the program."""
    a_desc, b_desc, a_ring, b_ring, full, empty, sizes = x
    M, N, K = sizes
    PIECES: gl.constexpr = 2 if SHARED else 1  # of a tile's rows
    step = 0
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        m, n = place(tile, sizes, PIECES * ROWS, BLOCK_N, GROUP_M)
        for k in range(0, K, BLOCK_K):
            slot = step % STAGES
            mbarrier.wait(empty.index(slot), (step // STAGES & 1) ^ 1)
            mbarrier.expect(
                full.index(slot), PIECES * a_desc.block_type.nbytes + b_desc.block_type.nbytes
            )
            for piece in gl.static_range(PIECES):
                row = m + piece * ROWS
                a_at = [k, row] if A_TURNED else [row, k]
                load_tile(a_desc, a_at, full.index(slot), a_ring.index(slot * PIECES + piece))
            b_at = [n, k] if B_TURNED else [k, n]
            load_tile(b_desc, b_at, full.index(slot), b_ring.index(slot))
            step += 1


@gluon.jit
def write(
    acc, bias_ptr, desc, staged, m, n, N, FIRST: gl.constexpr, HAS_BIAS: gl.constexpr,
    GELU: gl.constexpr, PARTS: gl.constexpr,
):  # fmt: skip
    """Store f(acc + bias) by way of shared memory, in parts by columns, from left to right."""
    if PARTS > 1:
        HALF: gl.constexpr = acc.shape[1] // 2
        left, right = gl.split(gl.permute(gl.reshape(acc, [acc.shape[0], 2, HALF]), [0, 2, 1]))
        write(
            left, bias_ptr, desc, staged, m, n, N, FIRST, HAS_BIAS, GELU, PARTS // 2,
        )  # fmt: skip
        write(
            right, bias_ptr, desc, staged, m, n + HALF, N, FIRST + PARTS // 2, HAS_BIAS, GELU,
            PARTS // 2,
        )  # fmt: skip
    else:
        # (1) bias
        if HAS_BIAS:
            columns = n + gl.arange(0, acc.shape[1], layout=gl.SliceLayout(0, acc.type.layout))
            bias = gl.load(bias_ptr + columns, mask=columns < N, other=0.0).to(gl.float32)
            acc += gl.expand_dims(bias, 0)
        # (2) activation
        if GELU:
            acc = acc * (0.5 * (1.0 + gl.erf(acc * SQRT_HALF)))
        part = staged.index(FIRST)
        part.store(acc.to(desc.dtype))
        fence_async_shared()
        store_tile(desc, [m, n], part)


@gluon.jit
def consume(
    x, tiles, BLOCK_N: gl.constexpr, BLOCK_K: gl.constexpr, STAGES: gl.constexpr,
    SHARED: gl.constexpr, A_TURNED: gl.constexpr, B_TURNED: gl.constexpr,
    ROWS: gl.constexpr, GROUP_M: gl.constexpr, HAS_BIAS: gl.constexpr, GELU: gl.constexpr,
    PARTS: gl.constexpr, C: gl.constexpr,
):  # fmt: skip
    """Multiply: group C takes half of every tile, or every other tile, of the program."""
    c_desc, z_desc, bias_ptr, staged, a_ring, b_ring, full, empty, turns, sizes = x
    M, N, K = sizes
    PIECES: gl.constexpr = 2 if SHARED else 1
    EVERY: gl.constexpr = 1 if SHARED else 2  # tiles of the program before its next one
    BEGIN: gl.constexpr = 0 if SHARED else C
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    steps = gl.cdiv(K, BLOCK_K)  # of a tile
    step = BEGIN * steps
    trip = 0
    stride = EVERY * gl.num_programs(0)
    for tile in range(gl.program_id(0) + BEGIN * gl.num_programs(0), tiles, stride):
        m, n = place(tile, sizes, PIECES * ROWS, BLOCK_N, GROUP_M)
        if SHARED:
            m += C * ROWS
        acc = gl.zeros([ROWS, BLOCK_N], gl.float32, layout)
        if not SHARED:
            mbarrier.wait(turns.index(C), (trip & 1) ^ (1 - C))
        # (1) product
        for i in range(steps):
            slot = step % STAGES
            mbarrier.wait(full.index(slot), step // STAGES & 1)
            a = a_ring.index(slot * PIECES + (C if SHARED else 0))
            b = b_ring.index(slot)
            if A_TURNED:
                a = a.permute([1, 0])
            if B_TURNED:
                b = b.permute([1, 0])
            acc = warpgroup_mma(a, b, acc, is_async=True)
            # The product before this one is done: the slot that it read may be overwritten.
            acc = warpgroup_mma_wait(1, deps=[acc])
            mbarrier.arrive(empty.index((step + STAGES - 1) % STAGES), pred=i > 0)
            step += 1
        if not SHARED:
            mbarrier.arrive(turns.index(1 - C))
        acc = warpgroup_mma_wait(0, deps=[acc])
        mbarrier.arrive(empty.index((step + STAGES - 1) % STAGES))
        step += (EVERY - 1) * steps
        trip += 1
        tma.store_wait(0)  # of the tile before
        if GELU:
            write(acc, bias_ptr, z_desc, staged, m, n, N, C * PARTS, HAS_BIAS, False, PARTS)
            tma.store_wait(0)
        write(acc, bias_ptr, c_desc, staged, m, n, N, C * PARTS, HAS_BIAS, GELU, PARTS)
    tma.store_wait(0)


@gluon.jit(do_not_specialize=["M", "N", "K", "tiles"])
def product_kernel(
    a_desc,  # (M, K) in blocks of ROWS × BLOCK_K, or (K, M) if A_TURNED
    b_desc,  # (K, N) in blocks of BLOCK_K × BLOCK_N, or (N, K) if B_TURNED
    bias_ptr,  # (N,) if HAS_BIAS
    c_desc,  # (M, N) in blocks of ROWS × BLOCK_N/PARTS
    z_desc,  # (M, N), the argument of the activation, if GELU
    M, N, K, tiles,
    BLOCK_N: gl.constexpr,
    BLOCK_K: gl.constexpr,
    STAGES: gl.constexpr,
    SHARED: gl.constexpr,
    A_TURNED: gl.constexpr,
    B_TURNED: gl.constexpr,
    ROWS: gl.constexpr,
    GROUP_M: gl.constexpr,
    HAS_BIAS: gl.constexpr,
    GELU: gl.constexpr,
    PARTS: gl.constexpr,
):  # fmt: skip
    """c = f(a·b + bias): one program's tiles, as many as the grid leaves it."""
    PIECES: gl.constexpr = 2 if SHARED else 1
    barriers: gl.constexpr = mbarrier.MBarrierLayout()
    a_ring = gl.allocate_shared_memory(
        a_desc.dtype, [PIECES * STAGES] + a_desc.block_type.shape, a_desc.layout
    )
    b_ring = gl.allocate_shared_memory(
        b_desc.dtype, [STAGES] + b_desc.block_type.shape, b_desc.layout
    )
    staged = gl.allocate_shared_memory(
        c_desc.dtype, [2 * PARTS] + c_desc.block_type.shape, c_desc.layout
    )
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barriers)
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barriers)
    turns = gl.allocate_shared_memory(gl.int64, [2, 1], barriers)
    for i in gl.static_range(STAGES):
        mbarrier.init(full.index(i), count=1)
        mbarrier.init(empty.index(i), count=PIECES)
    for i in gl.static_range(2):
        mbarrier.init(turns.index(i), count=1)
    fence_async_shared()
    sizes = (M, N, K)
    copied = (a_desc, b_desc, a_ring, b_ring, full, empty, sizes)
    x = (c_desc, z_desc, bias_ptr, staged, a_ring, b_ring, full, empty, turns, sizes)
    gl.warp_specialize(
        [
            (consume, (x, tiles, BLOCK_N, BLOCK_K, STAGES, SHARED, A_TURNED, B_TURNED, ROWS,
                       GROUP_M, HAS_BIAS, GELU, PARTS, gl.constexpr(0))),
            (consume, (x, tiles, BLOCK_N, BLOCK_K, STAGES, SHARED, A_TURNED, B_TURNED, ROWS,
                       GROUP_M, HAS_BIAS, GELU, PARTS, gl.constexpr(1))),
            (produce, (copied, tiles, BLOCK_N, BLOCK_K, STAGES, SHARED, A_TURNED, B_TURNED, ROWS,
                       GROUP_M)),
        ],
        [4, 1],
        [CONSUMER_REGISTERS, PRODUCER_REGISTERS],
    )  # fmt: skip
