"""Seeds of dropout masks: every mask is a function of run, step, part and site."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from twofold.reference import dropout


def dropout_seeds(run_seed: int, step: int, part: int, sites: int) -> tuple[int, ...]:
    """Return the seeds of the masks for one part of one step's batch, one for each site.

    Site s gets the first 63 bits of Philox 4x32-10 at counter (step, part, s, 0) with the run's
    seed as key. No state passes from step to step, so a resumed run draws what it would have drawn.

    Args:
        run_seed: of the whole run, 0 ≤ run_seed < 2⁶³.
        step: counts from 1, below 2³².
        part: which part of the batch, if it is processed in several.
        sites: how many to draw; the model numbers them, see `ClassifierConfig.sites`.
    """
    site = np.arange(sites, dtype=np.uint32)
    steps, parts, zero = (np.full_like(site, n) for n in (step, part, 0))
    low, high, _, _ = dropout.philox(steps, parts, site, zero, run_seed)
    return tuple((int(h) << 32 | int(w)) >> 1 for w, h in zip(low, high, strict=True))


def drop(p: float, seeds: Sequence[Any] | None, site: int) -> dict[str, Any]:
    """Return an operator's dropout arguments at a site; none if seeds is None or p is 0."""
    return {} if seeds is None or p == 0.0 else {"dropout_p": p, "seed": seeds[site]}
