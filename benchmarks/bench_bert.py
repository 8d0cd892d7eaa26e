"""Race BERT on the CPU: the NumPy side against `transformers` on torch, with the same weights.

Sentences: MiniLM with a head classifies movie reviews, tokenizing included, in batches of 64 of
similar length, padded to their longest; `transformers` runs them without gradients, with its
default attention (SDPA). Fine-tuning: a step on 32 reviews with dropout .1, frozen embeddings,
clipping and AdamW. Both have the same number of threads.

    python benchmarks/bench_bert.py [--save]
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

import harness
import numpy as np
import torch
import transformers

from twofold.core import pretrained
from twofold.core.bench import machine, timing
from twofold.core.data.datasets import load_dataset
from twofold.core.data.pretrained import pretrained_folder
from twofold.core.training.batches import collate, epoch_batches

LABELS, SENTENCES, BATCH, STEP = ("negative", "positive"), 512, 64, 32
STEPS = 16  # batches that steps are taken on, in rotation
DROPOUT = 0.1
LR, RECIPE = 5e-5, {"weight_decay": 0.01, "max_norm": 1.0, "frozen": 1}


def peer() -> tuple[Any, Any]:
    """Return the tokenizer and model of transformers."""
    folder = pretrained_folder("minilm")
    model = transformers.BertForSequenceClassification.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()
    return tokenizer, model


def mask_of(lengths: Any, longest: int) -> torch.Tensor:
    """Return transformers' mask, which is 1 where there is no padding."""
    return torch.tensor((np.arange(longest) < lengths[:, None]).astype(np.int64))


def sentences(texts: Sequence[str]) -> dict[str, Any]:
    """Return the contenders that classify texts."""
    bert = pretrained.load("minilm", labels=LABELS)
    tokenizer, model = peer()
    model.eval()

    def ours() -> None:
        bert.predict(texts)

    def theirs() -> None:
        ids = [np.array(x) for x in tokenizer(list(texts))["input_ids"]]
        order = np.argsort([len(x) for x in ids], kind="stable")
        with torch.inference_mode():
            for start in range(0, len(order), BATCH):
                batch = collate([ids[i] for i in order[start : start + BATCH]])
                mask = mask_of(batch.lengths, batch.inputs.shape[1])
                logits = model(torch.tensor(batch.inputs), attention_mask=mask).logits
                torch.softmax(logits, dim=1)

    return {"transformers, PyTorch": [theirs], "twofold, NumPy": [ours]}


def steps(texts: Sequence[str], labels: Any) -> dict[str, Any]:
    """Return the contenders that take a step of fine-tuning, each on the same batches in turn.

    Batches differ in length, and steps in time: the ratio of medians is what counts.
    """
    how = {"dropout": DROPOUT, "embedding_dropout": DROPOUT, "attention_dropout": DROPOUT}
    bert = pretrained.load("minilm", labels=LABELS, **how)
    ids = [bert.encode(text) for text in texts]
    batches = epoch_batches(np.array([len(x) for x in ids]), STEP, 0, 0)[:STEPS]
    trainer = bert.trainer(optimizer="adamw", parts=2, **RECIPE)
    _, model = peer()
    model.train()
    for parameter in model.bert.embeddings.parameters():
        parameter.requires_grad_(False)
    adam = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad],
        LR,
        weight_decay=RECIPE["weight_decay"],
    )
    numbers = itertools.count(1)

    def ours(batch: Any) -> None:
        trainer.step([ids[i] for i in batch], labels[batch], next(numbers), LR)

    def theirs(batch: Any) -> None:
        padded = collate([ids[i] for i in batch])
        mask = mask_of(padded.lengths, padded.inputs.shape[1])
        given = torch.tensor(padded.inputs)
        adam.zero_grad()
        model(given, attention_mask=mask, labels=torch.tensor(labels[batch])).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), RECIPE["max_norm"])
        adam.step()

    return {
        "transformers, PyTorch": [partial(theirs, batch) for batch in batches],
        "twofold, NumPy": [partial(ours, batch) for batch in batches],
    }


def main() -> None:
    asked = harness.options(__doc__)
    transformers.utils.logging.disable_progress_bar()
    harness.use_threads(asked.threads)
    data = load_dataset("movie")
    texts = data.test_x[: 64 if asked.quick else SENTENCES]
    seconds = 0.0 if asked.quick else 60.0
    against = "transformers, PyTorch"
    races, rates = {}, {}
    for name, contenders in (
        (f"classify {len(texts)} reviews", sentences(texts)),
        (f"fine-tuning step, batch {STEP}", steps(data.train_x, data.train_y)),
    ):
        times = timing.race(contenders, "cpu", seconds)
        races[name] = harness.summary(times, against)
        if name.startswith("classify"):
            rates = {who: len(texts) / float(np.median(taken)) for who, taken in times.items()}
    begun = harness.begun(asked.threads, "cpu")
    begun["ran_on"]["transformers"] = transformers.__version__
    result = {
        **begun,
        "product_rates": machine.product_rates(1.0),
        "races": races,
        "sentences_per_second": rates,
    }
    harness.report("bert", result, asked)


if __name__ == "__main__":
    main()
