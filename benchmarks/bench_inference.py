"""Sentences a second on the CPU: the NumPy side against the same model in PyTorch eager.

Token ids of short and long sentences become probabilities, in batches of similar length, padded to
their longest; at the default sizes and at MiniLM's. Ours are as large as `predict` makes them,
theirs of as many sentences as proved quickest in this run. Both
sides have the same number of threads. (`bench_bert.py` has MiniLM itself against `transformers`,
tokenizing included.)

    python benchmarks/bench_inference.py [--save]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import harness
import numpy as np
import torch
from peer import SIZES, Peer, config_of, examples, tensors
from threadpoolctl import threadpool_limits

from twofold.core import ops
from twofold.core.model.classifier import Classifier
from twofold.core.model.config import ClassifierConfig
from twofold.core.training import trainer as trainers
from twofold.core.training.batches import Array, collate

SENTENCES, LENGTHS = 512, (5, 60)  # shortest and longest
BATCHES = (16, 64, 256)  # sentences


def torch_predict(
    config: ClassifierConfig, inputs: Sequence[Array], size: int
) -> Callable[[], None]:
    """Return what predicts with their model, so many sentences at a time."""
    torch.manual_seed(0)
    model = Peer(config).eval()

    def predict() -> None:
        order = np.argsort([len(x) for x in inputs], kind="stable")
        with torch.inference_mode():
            for start in range(0, len(order), size):
                ids, padding = tensors(collate([inputs[i] for i in order[start : start + size]]))
                torch.softmax(model(ids, padding), dim=1)

    return predict


def numpy_predict(config: ClassifierConfig, inputs: Sequence[Array]) -> Callable[[], None]:
    """Return what predicts with ours."""
    model = Classifier(config, ops.load("reference"))

    def predict() -> None:
        with threadpool_limits(1, "blas"):  # the threads are batches
            trainers.predict(model, inputs)

    return predict


def main() -> None:
    asked = harness.options(__doc__)
    harness.use_threads(asked.threads)
    trainers.use_threads(asked.threads)
    races, rates = {}, {}
    for size in SIZES:
        config = config_of(size)
        inputs = examples(np.random.default_rng(0), 64 if asked.quick else SENTENCES, *LENGTHS)
        theirs = {
            f"PyTorch eager, batches of {n}": torch_predict(config, inputs, n) for n in BATCHES
        }
        contenders = {"twofold, NumPy": numpy_predict(config, inputs), **theirs}
        times = harness.race(contenders, seconds=2.0 if asked.quick else 40.0)
        best = min(theirs, key=lambda who: float(np.median(times[who])))
        races[f"{size}, {len(inputs)} sentences"] = harness.summary(times, best)
        rates[size] = {who: len(inputs) / float(np.median(t)) for who, t in times.items()}
    result = {
        "ran_on": harness.ran_on(asked.threads),
        "races": races,
        "sentences_per_second": rates,
    }
    harness.report("inference", result, asked)


if __name__ == "__main__":
    main()
