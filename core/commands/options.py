"""Options shared by several commands, with their help; the commands set the defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Operators = Annotated[list[str] | None, typer.Argument(help="operators, all by default")]
Pretrained = Annotated[str, typer.Option(help="minilm, or a folder with a Hugging Face BERT")]
Side = Annotated[str, typer.Option(help="reference (NumPy), triton, or auto: triton where CUDA is")]

# For `train` and `finetune`: the run, and how it learns.
Column = Annotated[str | None, typer.Option(help="of the file")]
Out = Annotated[Path | None, typer.Option(help="folder of the run, runs/… by default")]
Resume = Annotated[Path | None, typer.Option(help="go on with this run")]
Quick = Annotated[bool, typer.Option("--quick", help="a short form, to see that it runs")]
Seed = Annotated[int | None, typer.Option(help="of everything that is drawn")]
Parts = Annotated[
    int | None,
    typer.Option(help="pieces of a batch; 2 (on a GPU 1), or as many as there are processes"),
]
Optimizer = Annotated[str | None, typer.Option(help="adamw, adam, sgd, adagrad")]
LearningRate = Annotated[float | None, typer.Option(help="peak learning rate")]
Schedule = Annotated[str | None, typer.Option(help="linear, cosine, constant")]
Warmup = Annotated[float | None, typer.Option(help="share of the steps")]
MaxNorm = Annotated[float | None, typer.Option(help="clip the gradient; 0 does not")]
SoftTargets = Annotated[bool | None, typer.Option(help="learn from graded labels")]
Average = Annotated[float | None, typer.Option(help="decay of the weights' average")]
Patience = Annotated[int | None, typer.Option(help="epochs; 0 never stops early")]
Refit = Annotated[bool | None, typer.Option(help="fit again on train and validation together")]
Precision = Annotated[
    str | None, typer.Option(help="float32; bfloat16 between float32 parameters, on kernels")
]
AttentionDropout = Annotated[float | None, typer.Option(help="of weights")]
