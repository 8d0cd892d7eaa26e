"""The table of peers: what is judged, as which operator, and what it needs to run."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass

from twofold.core import ops
from twofold.core.verify.domains import DTYPES
from twofold.core.verify.foreign import CLAIMED

HALVES = ("tf32", "float16", "bfloat16")  # of a kernel whose float32 products are tf32


def installed(distribution: str) -> str:
    """Return the installed version of a package, "" if there is none."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


@dataclass(frozen=True)
class Peer:
    """A function of another library, behind the call that a contract judges.

    Attributes:
        name: how the tables call it.
        operator: whose contract it is held to.
        function: "file:function" in this folder.
        distribution: the package that it is from, as `pip install` names it.
        what: the function as its library knows it.
        precisions: those that it is judged in.
        cuda: whether it runs on CUDA alone.
        cost: its share of the cases is one in so many.
        claimed: cases for each property and precision.
    """

    name: str
    operator: str
    function: str
    distribution: str
    what: str
    precisions: tuple[str, ...] = DTYPES
    cuda: bool = False
    cost: int = 1
    claimed: int = CLAIMED

    @property
    def target(self) -> str:
        """Return the function as "module:function"."""
        return f"{__package__}.{self.function}"

    def version(self) -> str:
        """Return the installed version, "" if there is none."""
        return installed(self.distribution)

    def missing(self) -> str:
        """Say why it cannot be judged on this machine, "" if it can."""
        if not self.version():
            return f"{self.distribution} is not installed"
        return "needs CUDA" if self.cuda and not ops.cuda_available() else ""


_SDPA = "torch.nn.functional.scaled_dot_product_attention"
_FLEX = "torch.nn.attention.flex_attention.flex_attention"
_LIGER = "liger_kernel.ops.Liger"

_OF_FLAG_GEMS = tuple(
    Peer(
        f"flag_gems {name}", operator, f"flag_gems:{function}", "flag-gems", what,
        cost=4 if operator in ("attention", "softmax_cross_entropy") else 2,
    )
    for name, operator, function, what in (
        (
            "sdpa", "attention", "sdpa",
            "flag_gems.ops.scaled_dot_product_attention, of contiguous tensors",
        ),
        (
            "sdpa, forward", "attention", "sdpa_forward",
            "flag_gems.ops.scaled_dot_product_attention, without gradients",
        ),
        ("softmax", "softmax", "softmax", "flag_gems.ops.softmax, its backward"),
        (
            "softmax, whole blocks", "softmax", "softmax_of_whole_blocks",
            "flag_gems.ops.softmax, its backward, rows filled up to whole blocks",
        ),
        ("layer_norm", "layer_norm", "layer_norm", "flag_gems.ops.layer_norm, its backward"),
        (
            "layer_norm, whole blocks", "layer_norm", "layer_norm_of_whole_blocks",
            "flag_gems.ops.layer_norm, its backward, rows filled up to whole blocks",
        ),
        (
            "layer_norm, forward", "layer_norm", "layer_norm_forward",
            "flag_gems.ops.layer_norm, without gradients",
        ),
        (
            "skip_layer_norm", "layer_norm", "add_layer_norm",
            "flag_gems.fused.skip_layer_norm, without gradients",
        ),
        ("rms_norm", "rms_norm", "rms_norm", "flag_gems.ops.rms_norm"),
        (
            "fused_add_rms_norm", "rms_norm", "add_rms_norm",
            "flag_gems.fused.fused_add_rms_norm, on copies, without gradients",
        ),
        (
            "cross_entropy", "softmax_cross_entropy", "cross_entropy",
            "flag_gems.fused.cross_entropy_loss",
        ),
        (
            "cross_entropy, contiguous", "softmax_cross_entropy", "cross_entropy_of_contiguous",
            "flag_gems.fused.cross_entropy_loss, of contiguous logits",
        ),
        ("relu", "activation", "relu", "flag_gems.ops.relu, threshold_backward"),
        ("gelu", "activation", "gelu", "flag_gems.ops.gelu, its backward"),
        (
            "gelu tanh", "activation", "gelu_tanh",
            "flag_gems.ops.gelu, approximate='tanh', its backward",
        ),
        ("silu", "activation", "silu", "flag_gems.ops.silu, its backward"),
        ("silu_and_mul", "gated_activation", "swiglu_of_two", "flag_gems.fused.silu_and_mul"),
        ("gelu_and_mul", "gated_activation", "geglu_of_two", "flag_gems.fused.gelu_and_mul"),
        ("swiglu", "gated_activation", "swiglu", "flag_gems.fused.swiglu, dswiglu"),
        ("geglu tanh", "gated_activation", "geglu_tanh", "flag_gems.fused.geglu, dgeglu"),
        ("reglu", "gated_activation", "reglu_of_gate", "flag_gems.fused.reglu, dreglu"),
        (
            "rotary", "rotary", "rotary",
            "flag_gems.fused.apply_rotary_pos_emb, without gradients",
        ),
        ("embedding", "embedding", "embedding", "flag_gems.ops.embedding, its backward"),
    )
)  # fmt: skip

PEERS = (
    Peer("sdpa math", "attention", "torch_attention:math", "torch", f"{_SDPA}, MATH"),
    Peer("sdpa flash", "attention", "torch_attention:flash", "torch", f"{_SDPA}, FLASH_ATTENTION"),
    Peer(
        "sdpa efficient", "attention", "torch_attention:efficient", "torch",
        f"{_SDPA}, EFFICIENT_ATTENTION", cuda=True,
    ),
    Peer(
        "sdpa cudnn", "attention", "torch_attention:cudnn", "torch",
        f"{_SDPA}, CUDNN_ATTENTION", cuda=True,
    ),
    Peer("flex", "attention", "torch_attention:flex", "torch", f"{_FLEX}, not compiled", cost=4),
    Peer(
        "flex compiled", "attention", "torch_attention:flex_compiled", "torch",
        f"torch.compile({_FLEX})", ("float32",), cost=20, claimed=0,
    ),
    Peer(
        "torch layer_norm", "layer_norm", "torch_functions:layer_norm", "torch",
        "torch.nn.functional.layer_norm",
    ),
    Peer(
        "torch rms_norm", "rms_norm", "torch_functions:rms_norm", "torch",
        "torch.nn.functional.rms_norm",
    ),
    Peer("torch softmax", "softmax", "torch_functions:softmax", "torch", "torch.softmax"),
    Peer(
        "torch cross_entropy", "softmax_cross_entropy", "torch_functions:cross_entropy", "torch",
        "torch.nn.functional.cross_entropy",
    ),
    Peer("torch relu", "activation", "torch_functions:relu", "torch", "torch.nn.functional.relu"),
    Peer("torch gelu", "activation", "torch_functions:gelu", "torch", "torch.nn.functional.gelu"),
    Peer("torch silu", "activation", "torch_functions:silu", "torch", "torch.nn.functional.silu"),
    Peer(
        "torch gelu tanh", "activation", "torch_functions:gelu_tanh", "torch",
        "torch.nn.functional.gelu, approximate='tanh'",
    ),
    Peer(
        "torch swiglu", "gated_activation", "torch_functions:swiglu", "torch",
        "torch.nn.functional.silu of the gate, times up",
    ),
    *(
        Peer(
            f"torch adam {how}", "optimizers", f"torch_functions:{function}", "torch",
            f"torch.optim.Adam and AdamW, {how}",
        )
        for how, function in (
            ("for-loop", "adam"), ("foreach", "adam_foreach"), ("fused", "adam_fused")
        )
    ),
    Peer(
        "liger layer_norm", "layer_norm", "liger:layer_norm", "liger-kernel",
        f"{_LIGER}LayerNormFunction", cost=2,
    ),
    Peer(
        "liger rms_norm", "rms_norm", "liger:rms_norm", "liger-kernel",
        f"{_LIGER}RMSNormFunction, casting_mode='gemma', in_place=False", cost=2,
    ),
    Peer(
        "liger rms_norm, llama", "rms_norm", "liger:rms_norm_of_llama", "liger-kernel",
        f"{_LIGER}RMSNormFunction, casting_mode='llama', in_place=False", cost=2,
    ),
    Peer(
        "liger rms_norm, in place", "rms_norm", "liger:rms_norm_in_place", "liger-kernel",
        f"{_LIGER}RMSNormFunction", cost=2,
    ),
    Peer(
        "liger softmax", "softmax", "liger:softmax", "liger-kernel", f"{_LIGER}SoftmaxFunction",
        cost=2,
    ),
    Peer(
        "liger cross_entropy", "softmax_cross_entropy", "liger:cross_entropy", "liger-kernel",
        f"{_LIGER}CrossEntropyFunction, on a copy of the logits", cost=2,
    ),
    Peer(
        "liger cross_entropy, contiguous", "softmax_cross_entropy",
        "liger:cross_entropy_of_contiguous", "liger-kernel",
        f"{_LIGER}CrossEntropyFunction, on a contiguous copy",
    ),
    Peer(
        "liger cross_entropy, in place", "softmax_cross_entropy",
        "liger:cross_entropy_in_place", "liger-kernel",
        f"{_LIGER}CrossEntropyFunction, on the logits", cost=2,
    ),
    Peer(
        "liger gelu tanh", "activation", "liger:gelu_tanh", "liger-kernel",
        f"{_LIGER}GELUMulFunction, times 1", cost=2,
    ),
    Peer(
        "liger swiglu", "gated_activation", "liger:swiglu", "liger-kernel",
        f"{_LIGER}SiLUMulFunction, on copies", cost=2,
    ),
    Peer(
        "liger geglu tanh", "gated_activation", "liger:geglu_tanh", "liger-kernel",
        f"{_LIGER}GELUMulFunction, on copies", cost=2,
    ),
    Peer(
        "liger rope", "rotary", "liger:rotary", "liger-kernel",
        f"{_LIGER}RopeFunction, on copies", cost=2,
    ),
    Peer(
        "liger rope, own gradients", "rotary", "liger:rotary_with_own_gradients", "liger-kernel",
        f"{_LIGER}RopeFunction, on copies, times 1", cost=2,
    ),
    Peer(
        "fla attention", "attention", "fla:attention", "fla-core",
        "fla.ops.attn.parallel.parallel_attn", HALVES, cost=2,
    ),
    Peer(
        "fla layer_norm", "layer_norm", "fla:layer_norm", "fla-core",
        "fla.modules.norm.layernorm.layer_norm", cost=2,
    ),
    Peer(
        "fla layer_norm, full blocks", "layer_norm", "fla:layer_norm_of_full_blocks", "fla-core",
        "fla.modules.norm.layernorm.layer_norm, rows of a power of two", cost=2,
    ),
    Peer(
        "fla rms_norm", "rms_norm", "fla:rms_norm", "fla-core",
        "fla.modules.norm.layernorm.rms_norm", cost=2,
    ),
    Peer(
        "fla rms_norm, full blocks", "rms_norm", "fla:rms_norm_of_full_blocks", "fla-core",
        "fla.modules.norm.layernorm.rms_norm, rows of a power of two", cost=2,
    ),
    Peer(
        "fla cross_entropy", "softmax_cross_entropy", "fla:cross_entropy", "fla-core",
        "fla.modules.fused_cross_entropy.cross_entropy_loss", cost=2,
    ),
    Peer(
        "fla swiglu", "gated_activation", "fla:swiglu", "fla-core",
        "fla.modules.activations.swiglu", cost=2,
    ),
    Peer(
        "fla rotary", "rotary", "fla:rotary", "fla-core",
        "fla.modules.rotary.rotary_embedding", cost=2,
    ),
    *_OF_FLAG_GEMS,
)  # fmt: skip


def named(names: list[str] | None) -> list[Peer]:
    """Return the peers of these names, all if there are none.

    Raises:
        ValueError: there is no peer of a name.
    """
    by_name = {peer.name: peer for peer in PEERS}
    for name in names or ():
        if name not in by_name:
            raise ValueError(f"peer is {name!r}; it must be one of {', '.join(by_name)}")
    return [by_name[name] for name in names or by_name]
