"""`twofold predict RUN "text" …`: classify texts with a finished run or a Hugging Face BERT."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from threadpoolctl import threadpool_limits

from twofold.core import pretrained
from twofold.core.commands import options
from twofold.core.commands.common import (
    Json,
    choose_side,
    interpreted_strictly,
    kept,
    plain_errors,
    say,
    write_json,
)
from twofold.core.commands.lines import Texts, texts_given
from twofold.core.model.classifier import Classifier
from twofold.core.model.weights import CONFIG_FILE, WeightsError
from twofold.core.ops import Side
from twofold.core.training.codec import Codec, TextCodec
from twofold.core.training.inference import predict
from twofold.core.training.run import SETTINGS_FILE, Run, RunError


def command(
    run: Annotated[
        Path, typer.Argument(help="folder of a finished run, or of a Hugging Face BERT")
    ],
    texts: Texts = None,
    side: options.Side = "auto",
    json: Json = None,
) -> None:
    """Classify texts, given as arguments or as lines on standard input, answered as they arrive."""
    with plain_errors():
        chosen_side = choose_side(side)
        predictions: list[dict[str, Any]] = []
        with interpreted_strictly(chosen_side), threadpool_limits(1, "blas"):
            model, codec, labels = _opened(run, chosen_side)

            def write() -> None:
                if predictions:
                    write_json(json, {"predictions": predictions})

            with kept(write):
                for lot in texts_given(texts):
                    probabilities = predict(model, codec.encode(lot))
                    for text, p in zip(lot, probabilities, strict=True):
                        if json is not None:
                            predictions.append(_prediction(text, labels, p))
                        say(f"{labels[int(p.argmax())]}  {p.max():.3f}  {text}")


def _opened(folder: Path, side: Side) -> tuple[Classifier, Codec, tuple[str, ...]]:
    """Return the model of a run or of a Hugging Face folder, its codec, and its class names."""
    if not (folder / SETTINGS_FILE).exists() and (folder / CONFIG_FILE).exists():
        bert = pretrained.load(folder, ops=side)
        if bert.missing:
            raise WeightsError(
                f"{folder}: {', '.join(bert.missing)} are missing: it was not taught to classify; "
                f"twofold finetune --init {folder} teaches it"
            )
        return bert.model, TextCodec(bert.tokenizer, bert.longest), bert.labels
    opened = Run.open(folder)
    if opened.settings.model.input != "tokens":
        raise RunError(f"{folder} was trained on images; predict takes texts")
    return opened.load_model(side), opened.codec, opened.settings.labels


def _prediction(text: str, labels: tuple[str, ...], p: Any) -> dict[str, Any]:
    return {
        "text": text,
        "label": labels[int(p.argmax())],
        "probabilities": {label: float(x) for label, x in zip(labels, p, strict=True)},
    }
