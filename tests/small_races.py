"""Small problems, their races, and functions that take part in one."""

from twofold.core import ops
from twofold.core.bench import contenders, problems, races
from twofold.core.bench.costs import Ceilings, Cost

CEILINGS = Ceilings(bandwidth=1e10, rate=1e11)
COST = Cost(1e7, 5e7)
SMALL = {
    "attention": problems.attention(1, 2, 1, 5, 7, 8, "float32"),
    "layer_norm": problems.layer_norm(3, 8, "float32"),
    "layer_norm fused": problems.layer_norm(3, 8, "float32", fused=True),
    "rms_norm": problems.rms_norm(3, 8, "float32"),
    "rms_norm fused": problems.rms_norm(3, 8, "float32", fused=True),
    "linear": problems.linear(3, 8, 5, "float32", "gelu"),
    "activation": problems.activation(1024, "float32"),
    "bias and activation": problems.activation(2048, "float32", bias=True),
    "gated_activation": problems.gated_activation(3, 8, "float32"),
    "packed gated_activation": problems.gated_activation(3, 8, "float32", "gelu", packed=True),
    "silu": problems.activation(1024, "float32", "silu"),
    "softmax": problems.softmax(3, 7, "float32"),
    "softmax_cross_entropy": problems.cross_entropy(3, 7, "float32"),
    "rotary": problems.rotary(1, 2, 3, 8, "float32"),
    "embedding": problems.embedding(6, 5, 8, "float32"),
    "positional_encoding": problems.positional_encoding(2, 3, 5, 8, "float32"),
    "dropout": problems.dropout(1024, "float32"),
    "optimizers": problems.adam(8),
    "attention_decode": problems.decode(2, 4, 2, 9, 8, "float32"),
}


def raced(problem, rivals, judge=lambda contender, problem: "", device="cpu"):
    return list(races.run(problem, rivals, CEILINGS, device, 0.0, judge))


def of_the_command():
    """Return the device that the command races on, and its problems."""
    return ("cuda", problems.on_gpu()) if ops.cuda_available() else ("cpu", problems.on_cpu())


def entered(name, operator):
    """Return the contender that `--against module:function` enters, and a problem on a CPU."""
    (rival,) = (c for c in contenders.of(operator, "cpu", [name]) if c.foreign)
    return rival, next(p for p in problems.on_cpu() if p.operator == operator)
