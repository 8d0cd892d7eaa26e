"""Options shared by several commands, with their help; the commands set the defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Operators = Annotated[list[str] | None, typer.Argument(help="operators; all by default")]
Pretrained = Annotated[str, typer.Option(help="minilm, or a folder with a Hugging Face BERT")]
Side = Annotated[
    str, typer.Option(help="reference (NumPy), triton, or auto: triton if there is CUDA")
]

# Of `train` and `finetune`: a run, and how it learns.
Column = Annotated[str | None, typer.Option(help="column of the data file")]
Out = Annotated[Path | None, typer.Option(help="folder of the run; runs/… by default")]
Resume = Annotated[Path | None, typer.Option(help="continue this run")]
Quick = Annotated[bool, typer.Option("--quick", help="a short run, to check that everything works")]
Seed = Annotated[int | None, typer.Option(help="seed of all random numbers")]
Epochs = Annotated[int | None, typer.Option(help="passes over the training examples")]
BatchSize = Annotated[int | None, typer.Option(help="examples of a step")]
Parts = Annotated[
    int | None,
    typer.Option(help="pieces of a batch; by default 2 (on a GPU 1), or one per process"),
]
Optimizer = Annotated[str | None, typer.Option(help="adamw, adam, sgd, adagrad")]
LearningRate = Annotated[float | None, typer.Option(help="peak learning rate")]
Schedule = Annotated[str | None, typer.Option(help="linear, cosine, constant")]
Warmup = Annotated[float | None, typer.Option(help="warm-up, as a share of all steps")]
WeightDecay = Annotated[float | None, typer.Option(help="of matrices; biases and norms have none")]
MaxNorm = Annotated[float | None, typer.Option(help="clip the gradient to this norm; 0: do not")]
LabelSmoothing = Annotated[
    float | None, typer.Option(help="share of each target spread over all classes")
]
SoftTargets = Annotated[bool | None, typer.Option(help="learn from graded labels")]
Average = Annotated[float | None, typer.Option(help="decay of the weights' moving average")]
Patience = Annotated[int | None, typer.Option(help="epochs without improvement; 0: no early stop")]
Refit = Annotated[bool | None, typer.Option(help="train again on train and validation together")]
CheckpointSteps = Annotated[int | None, typer.Option(help="steps from one checkpoint to the next")]
Precision = Annotated[
    str | None, typer.Option(help="float32, or bfloat16 with float32 parameters (kernels only)")
]
AttentionDropout = Annotated[float | None, typer.Option(help="of attention weights")]
