"""Other forms than the plain call: weights held by objects, named arguments, packed inputs."""

import sys

import pytest
import torch
from small_races import entered

from twofold.core.verify import foreign

pytestmark = pytest.mark.usefixtures("importable")


def judge(name, operator, *dtypes):
    dtypes = list(dtypes or ["float32"])
    return foreign.judge(f"foreign_forms:{name}", operator, 9, dtypes, claimed=3)


BOTH = {"forward", "backward"}


@pytest.mark.parametrize(
    ("name", "operator", "passes"),
    [
        ("torch_norm", "layer_norm", BOTH),
        ("torch_norm_without_bias", "layer_norm", BOTH),
        ("norm_of_torch", "layer_norm", BOTH),
        ("torch_linear", "linear", BOTH),
        ("torch_embedding", "embedding", BOTH),
        ("embedding_of_torch", "embedding", BOTH),
        ("torch_loss", "softmax_cross_entropy", BOTH),
        ("loss_of_torch", "softmax_cross_entropy", BOTH),
        ("smoothed_loss", "softmax_cross_entropy", BOTH),
        ("module_of_smoothing", "softmax_cross_entropy", BOTH),
        ("norm", "rms_norm", BOTH),
        ("gemma", "rms_norm", BOTH),
        ("norm_of_scale", "rms_norm", BOTH),
        ("norm_that_asks_for_a_bias", "rms_norm", BOTH),
        ("norm_by_name", "rms_norm", BOTH),
        ("told_the_shape", "rms_norm", BOTH),
        ("side_by_side", "gated_activation", BOTH),
        ("up_first", "gated_activation", BOTH),
        ("heads_inside", "attention", BOTH),
        ("scaled_dot_product", "attention", BOTH),
        ("top_left", "attention", BOTH),
        ("square_alone", "attention", BOTH),
        ("weight_of_columns", "linear", BOTH),
        ("linear_with_gelu", "linear", BOTH),
        ("losses_of_rows", "softmax_cross_entropy", BOTH),
        ("AdamWInFloat32", "optimizers", {"forward"}),
        ("AdamW", "optimizers", {"forward"}),
        ("fused_adam", "optimizers", {"forward"}),
        ("AdamOfNoBase", "optimizers", {"forward"}),
        ("adam_step", "optimizers", {"forward"}),
        ("adam_step_returned", "optimizers", {"forward"}),
    ],
)
def test_a_sound_one_passes(name, operator, passes):
    found = judge(name, operator)
    assert found.failures == [] and {row.pass_ for row in found.rows} == passes


@pytest.mark.parametrize(
    ("name", "operator", "words"),
    [
        ("norm_in_half", "rms_norm", "forward float32 out: out[0, 300] is 0; it must be"),
        ("in_neither_corner", "attention", "forward float32 out: out["),
        ("long_keys_in_part", "attention", "forward float32 out: out["),
        ("values_by_strides_of_keys", "attention", "forward float32 out: out["),
        ("gradient_by_strides_of_x", "softmax", "backward float32 dx: dx["),
        ("softmax_of_axis_1", "softmax", "property float32 leading axes: with other leading axes"),
        ("adam_step_late", "optimizers", "forward float32 params: params["),
        ("DecayingLate", "optimizers", "forward float32 params: params["),
        ("ForgettingLate", "optimizers", "forward float32 params: params["),
        ("smoothed_loss_by_other_classes", "softmax_cross_entropy", "forward float32 loss: loss[]"),
        ("mean_of_all_rows", "softmax_cross_entropy", "forward float32 loss: loss[]"),
    ],
)
def test_a_fault_is_found(name, operator, words):
    found = judge(name, operator)
    assert found.failures and found.failures[0].replace("-0;", "0;").startswith(words)


def test_who_smooths_by_default_is_not_asked_for_what_it_is_not_without():
    found, of_torch = (judge(x, "softmax_cross_entropy") for x in ("smoothed_loss", "plain_loss"))
    said = "'impossible classes' not checked: its smoothing is not 0 by default"
    assert said in found.notes and not any(said in note for note in of_torch.notes)
    assert "impossible classes" not in {claim.name for claim in found.claims}
    assert "impossible classes" in {claim.name for claim in of_torch.claims}


def test_weights_that_could_not_be_set_are_named():
    words = "its a_2, b_2 stay as they are: it has no weight, bias by name"
    assert words in judge("norm_of_other_names", "layer_norm").taken
    assert not judge("torch_norm", "layer_norm").taken


def test_a_module_is_left_as_it_is():
    judge("norm", "rms_norm")
    module = sys.modules["foreign_forms"].norm
    assert module.weight.shape == (8,) and module.variance_epsilon == 1e-6
    assert [name for name, _ in module.named_parameters()] == ["weight"]


def test_what_a_module_keeps_is_an_option():
    notes = " ".join(judge("norm", "rms_norm").notes)
    assert "none of them: offset" in notes and "eps" not in notes


def test_a_gain_of_one_more_is_found_out():
    said = "without offset, its offset is taken to be 1.0"
    assert said in judge("gemma", "rms_norm").taken
    assert said.replace("1.0", "0.0") in judge("norm_by_name", "rms_norm").taken


@pytest.mark.parametrize(
    ("name", "operator", "remark"),
    [
        ("up_first", "gated_activation", "its tensors are taken to be up before gate"),
        (
            "heads_inside",
            "attention",
            "its tensors are taken to be (batch, seqlen, heads, head_dim)",
        ),
        ("heads_inside", "attention", "causal is taken to be bottom-right"),
        ("top_left", "attention", "causal is taken to be top-left"),
        ("in_neither_corner", "attention", "causal is neither bottom-right nor top-left"),
        ("weight_of_columns", "linear", "its tensors are taken to be weight (in, out)"),
        ("linear_with_gelu", "linear", "without activation, its activation is taken to be gelu"),
        ("losses_of_rows", "softmax_cross_entropy", "its reduction is taken to be none"),
        (
            "gated_by_tanh",
            "gated_activation",
            "taken to be gelu_tanh, whose bounds hold in most cases",
        ),
        ("embedding_with_padding", "embedding", "gradient of row 0 is always 0: a padding_idx?"),
        ("BySign", "optimizers", "its optimizer is none of adam, adamw; judged as"),
    ],
)
def test_what_is_found_out_is_said(name, operator, remark):
    assert any(remark in note for note in judge(name, operator).taken)


def test_who_forgets_no_row_of_a_table_is_told_of_none():
    assert not judge("embedding_of_torch", "embedding").taken


def test_what_is_wrong_in_float32_alone_and_holds_in_tf32_is_told_so():
    for name, said in (("linear_in_tf32", True), ("linear_too_large", False)):
        found = judge(name, "linear")
        assert found.failures and ("--dtype tf32" in "".join(foreign.digest(found))) == said


def test_what_is_arranged_otherwise_does_not_race():
    rival, problem = entered("foreign_forms:heads_inside", "attention")
    assert rival.fault(problem).startswith("it takes (batch, seqlen, heads, head_dim); races give")


def test_it_races_too():
    for operator, name in (("rms_norm", "norm"), ("gated_activation", "side_by_side")):
        rival, problem = entered(f"foreign_forms:{name}", operator)
        tensors = problem.make(torch.Generator().manual_seed(0), "cpu")
        passes = rival.passes(problem, tensors)
        assert rival.outputs(problem, passes)


@pytest.mark.parametrize(
    ("name", "holds"), [("gate_rounded", True), ("gate_rounded_by_cutting", False)]
)
def test_the_activated_gate_may_be_rounded_before_the_product_and_it_is_said(name, holds):
    words = "it rounds the activated gate before the product with up; ours round once"
    for dtype in ("float16", "bfloat16") if holds else ("bfloat16",):
        found = judge(name, "gated_activation", dtype)
        assert (found.failures == []) == holds and (words in found.taken) == holds
    assert words not in judge("side_by_side", "gated_activation", "bfloat16").taken
