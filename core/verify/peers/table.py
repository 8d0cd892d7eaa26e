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
_SGLANG = "sglang.kernels.ops"

_OF_SGLANG = (
    Peer(
        "sglang decode", "attention_decode", "sglang:decode", "sglang",
        f"{_SGLANG}.attention.decode_attention.decode_attention_fwd_normal", cost=2,
    ),
    Peer(
        "sglang decode, grouped", "attention_decode", "sglang:decode_grouped", "sglang",
        f"{_SGLANG}.attention.decode_attention.decode_attention_fwd_grouped", HALVES, cost=2,
    ),
    Peer(
        "sglang extend", "attention_decode", "sglang:extend", "sglang",
        f"{_SGLANG}.attention.extend_attention.extend_attention_fwd", HALVES, cost=2,
    ),
    Peer(
        "sglang extend, unified", "attention_decode", "sglang:extend_unified", "sglang",
        f"{_SGLANG}.attention.extend_attention.extend_attention_fwd_unified", HALVES, cost=2,
    ),
    *(
        Peer(
            f"sglang verify{how}", "attention_decode", f"sglang:{function}", "sglang",
            f"{_SGLANG}.attention.verify_splitkv.VerifySplitKV{how}", HALVES, cost=2,
        )
        for how, function in (("", "verify"), (", with a prefix", "verify_with_prefix"))
    ),
    Peer(
        "sglang merge", "merge_attention", "sglang:merge", "sglang",
        f"{_SGLANG}.attention.merge_state.merge_state_triton", cost=2,
    ),
    Peer(
        "sglang prefill", "attention", "sglang:prefill", "sglang",
        f"{_SGLANG}.attention.prefill_attention.context_attention_fwd", HALVES, cost=2,
    ),
    Peer(
        "sglang rms_norm", "rms_norm", "sglang:rms_norm", "sglang",
        f"{_SGLANG}.layernorm.fused_rmsnorm.fused_rmsnorm", cost=2,
    ),
    Peer(
        "sglang rms_norm, gemma", "rms_norm", "sglang:rms_norm_of_gemma", "sglang",
        f"{_SGLANG}.layernorm.minimax_m3_rmsnorm.gemma_rmsnorm and gemma_fused_add_rmsnorm",
        cost=2,
    ),
    *(
        Peer(
            f"sglang rotary, {how}", "rotary", f"sglang:{function}", "sglang",
            f"{_SGLANG}.attention.rotary_triton.{what}, three positions that are the same", cost=2,
        )
        for how, function, what in (
            ("sections", "rotary", "triton_mrope_fused"),
            ("interleaved", "rotary_interleaved", "triton_mrope_fused"),
            (
                "interleaved, full blocks", "rotary_interleaved_of_full_blocks",
                "triton_mrope_fused, heads of a power of two",
            ),
            ("ernie", "rotary_of_ernie", "triton_ernie45_rope_fused_inplace"),
        )
    ),
    Peer(
        "sglang geglu", "gated_activation", "sglang:geglu", "sglang",
        f"{_SGLANG}.activation.gelu_and_mul_triton.gelu_and_mul_triton", cost=2,
    ),
)  # fmt: skip

_UNSLOTH = "unsloth.kernels"

_CCE = "cut_cross_entropy.linear_cross_entropy, filter_eps=None, of the identity"

_OF_CCE = tuple(
    Peer(
        name, "softmax_cross_entropy", f"cce:{function}", "cut-cross-entropy", f"{_CCE}{of}",
        ("float16", "bfloat16"), cost=2,
    )
    for name, function, of in (
        ("cce", "cross_entropy", ""),
        ("cce, one block", "cross_entropy_of_one_block", " of up to 128 classes"),
    )
)  # fmt: skip
_OF_UNSLOTH = (
    Peer(
        "unsloth layer_norm", "layer_norm", "unsloth:layer_norm", "unsloth",
        f"{_UNSLOTH}.fast_layernorm", cost=2,
    ),
    Peer(
        "unsloth rms_norm", "rms_norm", "unsloth:rms_norm", "unsloth",
        f"{_UNSLOTH}.fast_rms_layernorm, gemma=False", cost=2,
    ),
    Peer(
        "unsloth rms_norm, gemma", "rms_norm", "unsloth:rms_norm_of_gemma", "unsloth",
        f"{_UNSLOTH}.fast_rms_layernorm, gemma=True", cost=2,
    ),
    Peer(
        "unsloth rms_norm, several rows", "rms_norm", "unsloth:rms_norm_of_several_rows",
        "unsloth", f"{_UNSLOTH}.rms_layernorm: its kernels of narrow rows", cost=2,
    ),
    Peer(
        "unsloth add_rms_norm", "rms_norm", "unsloth:add_rms_norm", "unsloth",
        f"{_UNSLOTH}.fused_add_rms_layernorm.fast_add_rms_layernorm_inference, on copies", cost=2,
    ),
    Peer(
        "unsloth cross_entropy", "softmax_cross_entropy", "unsloth:cross_entropy", "unsloth",
        f"{_UNSLOTH}.fast_cross_entropy_loss", cost=2,
    ),
    Peer(
        "unsloth swiglu, strided", "gated_activation", "unsloth:swiglu_of_strided", "unsloth",
        f"{_UNSLOTH}.swiglu_fg_kernel, swiglu_DWf_DW_dfg_kernel", cost=4,
    ),
    Peer(
        "unsloth swiglu, contiguous", "gated_activation", "unsloth:swiglu_of_contiguous",
        "unsloth", f"{_UNSLOTH}.swiglu_fg_kernel, swiglu_DWf_DW_dfg_kernel, on contiguous copies",
        cost=2,
    ),
    Peer(
        "unsloth geglu, contiguous", "gated_activation", "unsloth:geglu_of_contiguous", "unsloth",
        f"{_UNSLOTH}.geglu_exact_…_kernel, on contiguous copies", cost=2,
    ),
    Peer(
        "unsloth geglu tanh, contiguous", "gated_activation",
        "unsloth:geglu_tanh_of_contiguous", "unsloth",
        f"{_UNSLOTH}.geglu_approx_…_kernel, on contiguous copies", cost=2,
    ),
    Peer(
        "unsloth rope", "rotary", "unsloth:rotary", "unsloth",
        f"{_UNSLOTH}.fast_rope_embedding, on copies", cost=2,
    ),
    Peer(
        "unsloth rope, positions", "rotary", "unsloth:rotary_of_positions", "unsloth",
        f"{_UNSLOTH}.fast_rope_embedding, rope_embedding_indices=…, on copies", cost=2,
    ),
)  # fmt: skip

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
    *_OF_SGLANG,
    *_OF_UNSLOTH,
    *_OF_CCE,
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
