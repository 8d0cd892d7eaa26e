"""Sentences a second: ours against the same model in PyTorch eager, on the GPU where there is one.

Token ids of short and long sentences become probabilities, in batches of similar length, padded to
their longest; at the default sizes and at MiniLM's. Both have sinusoidal positions, which are all
that torch's modules take; ours with rotary ones, our default, race besides. Ours are batches as
large as `predict` makes them, theirs of as many sentences as proved quickest in this run. Both
sides have the same number of threads; on a GPU ours are the kernels, replayed as CUDA graphs, and
beside that with every kernel launched each time. (`bench_bert.py` has MiniLM itself against
`transformers`, tokenizing included.)

    python benchmarks/bench_inference.py [--save]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import harness
import numpy as np
import torch
from peer import SIZES, Peer, config_of, examples, tensors
from steps import uncaptured

from twofold.core import ops
from twofold.core.bench import machine, timing
from twofold.core.model.classifier import Classifier
from twofold.core.model.config import ClassifierConfig
from twofold.core.training import inference
from twofold.core.training.batches import Array, collate

SENTENCES, LENGTHS = 512, (5, 60)  # shortest and longest
BATCHES = (16, 64, 256)  # sentences


def torch_predict(
    config: ClassifierConfig, inputs: Sequence[Array], size: int, device: str
) -> Callable[[], None]:
    """Return what predicts with their model, so many sentences at a time."""
    torch.manual_seed(0)
    model = Peer(config).to(device).eval()

    def predict() -> None:
        order = np.argsort([len(x) for x in inputs], kind="stable")
        with torch.inference_mode():
            for start in range(0, len(order), size):
                batch = collate([inputs[i] for i in order[start : start + size]])
                ids, padding = (x.to(device) for x in tensors(batch))
                torch.softmax(model(ids, padding), dim=1).cpu()

    return predict


def our_predict(
    config: ClassifierConfig, inputs: Sequence[Array], side: ops.Side
) -> Callable[[], None]:
    """Return what predicts with ours."""
    model = Classifier(config, side)

    def predict() -> None:
        inference.predict(model, inputs)

    return predict


def main() -> None:
    asked = harness.options(__doc__)
    harness.use_threads(asked.threads)
    side = ops.load("triton" if ops.cuda_available() else "reference")
    ours = "twofold, Triton" if side.device == "cuda" else "twofold, NumPy"
    races, rates = {}, {}
    for size in SIZES:
        config = config_of(size, positions="sinusoidal")
        inputs = examples(np.random.default_rng(0), 64 if asked.quick else SENTENCES, *LENGTHS)
        theirs = {
            f"PyTorch eager, batches of {n}": torch_predict(config, inputs, n, side.device)
            for n in BATCHES
        }
        calls = {name: [call] for name, call in theirs.items()}
        calls[ours] = [our_predict(config, inputs, side)]
        calls[f"{ours}, rotary"] = [our_predict(config_of(size), inputs, side)]
        if side.device == "cuda":
            calls[f"{ours}, not captured"] = [our_predict(config, inputs, uncaptured(side))]
        times = timing.race(calls, side.device, 2.0 if asked.quick else 40.0)
        best = harness.quickest(times, theirs)
        races[f"{size}, {len(inputs)} sentences"] = harness.summary(times, best)
        rates[size] = {who: len(inputs) / float(np.median(t)) for who, t in times.items()}
    result = {
        "ran_on": machine.ran_on(asked.threads, side.device),
        "product_rates": {} if side.device == "cuda" else machine.product_rates(1.0),
        "races": races,
        "sentences_per_second": rates,
    }
    harness.report("inference", result, asked)


if __name__ == "__main__":
    main()
