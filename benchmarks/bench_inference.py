"""Race predictions: ours against the same model in PyTorch eager, on a GPU if there is one.

Token ids of short and long sentences become probabilities, in batches of similar length, padded to
their longest; at the default sizes and at MiniLM's. Both have sinusoidal positions, which are all
that torch's modules take; ours with rotary ones, our default, race besides. Ours are batches as
large as `predict` makes them, theirs of as many sentences as proved quickest in this run, all of
them at once among the sizes. Both sides have the same number of threads; on a GPU ours are the
kernels, replayed as CUDA graphs, and beside that with every kernel launched each time. Time is the
clock's, from ids on the host to probabilities there, on a GPU too: events would leave out what the
host does before it first waits. (`bench_bert.py` has MiniLM itself against `transformers`,
tokenizing included.) The result is written after every size; who fails is in it with the reason.

    python benchmarks/bench_inference.py [--save]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

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
BATCHES = (16, 64, 256)  # sentences, and all at once
Call = Callable[[], None]


def torch_predict(
    config: ClassifierConfig, inputs: Sequence[Array], size: int, device: str
) -> Call:
    """Return a call that predicts with torch's model, so many sentences at a time."""
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


def our_predict(config: ClassifierConfig, inputs: Sequence[Array], side: ops.Side) -> Call:
    """Return a call that predicts with our model."""
    model = Classifier(config, side)

    def predict() -> None:
        inference.predict(model, inputs)

    return predict


def theirs(size: str, inputs: Sequence[Array], device: str) -> dict[str, Call]:
    """Return torch's contenders, one for each number of sentences in a batch."""
    config = config_of(size, positions="sinusoidal")
    numbers = sorted({min(n, len(inputs)) for n in (*BATCHES, len(inputs))})
    return {
        f"PyTorch eager, batches of {n}": torch_predict(config, inputs, n, device) for n in numbers
    }


def ours(size: str, inputs: Sequence[Array], side: ops.Side) -> dict[str, Call]:
    """Return our contenders."""
    config = config_of(size, positions="sinusoidal")
    name = "twofold, Triton" if side.device == "cuda" else "twofold, NumPy"
    found = {
        name: our_predict(config, inputs, side),
        f"{name}, rotary": our_predict(config_of(size), inputs, side),
    }
    if side.device == "cuda":
        found[f"{name}, not captured"] = our_predict(config, inputs, uncaptured(side))
    return found


def raced(
    calls: Mapping[str, Call], device: str, seconds: float, lost: dict[str, str]
) -> dict[str, list[float]]:
    """Return the wall-clock seconds of every prediction; `lost` receives why any failed."""
    whole = timing.waited if device == "cuda" else (lambda call: call)
    return timing.race({name: [whole(call)] for name, call in calls.items()}, "cpu", seconds, lost)


def main() -> None:
    asked = harness.options(
        __doc__, seconds={"type": float, "default": 40.0, "help": "for each size's race"}
    )
    harness.use_threads(asked.threads)
    side = ops.load("triton" if ops.cuda_available() else "reference")
    result = harness.begun(asked.threads, side.device)
    result["product_rates"] = {} if side.device == "cuda" else machine.product_rates(1.0)
    result |= {"races": {}, "sentences_per_second": {}, "reasons": {}}
    for size in SIZES:
        inputs = examples(np.random.default_rng(0), 64 if asked.quick else SENTENCES, *LENGTHS)
        peers = theirs(size, inputs, side.device)
        calls, lost = peers | ours(size, inputs, side), dict[str, str]()
        times = raced(calls, side.device, 2.0 if asked.quick else asked.seconds, lost)
        title = f"{size}, {len(inputs)} sentences"
        result["reasons"][title] = {who: " ".join(x.split())[:300] for who, x in lost.items()}
        if times:
            best = harness.quickest(times, (peers.keys() & times) or times)
            result["races"][title] = harness.summary(times, best)
        rates = {who: len(inputs) / float(np.median(t)) for who, t in times.items()}
        result["sentences_per_second"][size] = rates
        if asked.json:
            harness.put(asked.json, harness.written(result))
    harness.report("inference", result, asked)
    for title, reasons in result["reasons"].items():
        for who, reason in reasons.items():
            print(f"{title}: {who} did not run: {reason}")


if __name__ == "__main__":
    main()
