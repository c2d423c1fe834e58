"""The reference of record for posteriors: NUTS by blackjax, an optional package (`gentk[mcmc]`).

Chains start at N(0, 1) in w, adapt step size and diagonal mass by the windows that Stan uses, and run in one compiled
call; the first call's compilation counts, as a user waits for it.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from gentk.metrics.chains import effective_sample_size, split_r_hat
from gentk.metrics.reference import Reference
from gentk.recipe import extras
from gentk.targets.logistic import Logistic


def nuts(model: Logistic, seed: int, *, chains: int = 4, warmup: int = 500, length: int = 1000) -> Reference:
    """`length` draws of each chain from a logistic regression's posterior, judged as HMC's are.

    Raises MissingAsset without blackjax.
    """
    blackjax = extras.load("blackjax", "mcmc")
    jax = extras.load("jax", "mcmc")
    rows, precision = jax.numpy.asarray(model.rows.numpy(), dtype=jax.numpy.float32), 1 / model.prior**2

    def log_prob(w: Any) -> Any:
        return jax.nn.log_sigmoid(rows @ w).sum() - 0.5 * precision * (w @ w)

    def chain(key: Any) -> Any:
        first, second, third = jax.random.split(key, 3)
        start = jax.random.normal(first, (model.dim,))
        (state, found), _ = blackjax.window_adaptation(blackjax.nuts, log_prob).run(second, start, warmup)
        step = blackjax.nuts(log_prob, **found).step

        def one(at: Any, k: Any) -> Any:
            at, info = step(k, at)
            return at, (at.position, info.num_integration_steps)

        return jax.lax.scan(one, state, jax.random.split(third, length))[1]

    begun = time.perf_counter()
    positions, steps = jax.jit(jax.vmap(chain))(jax.random.split(jax.random.key(seed), chains))
    w = torch.from_numpy(np.array(positions, dtype=np.float64)).transpose(0, 1)  # (T, n, D)
    seconds = time.perf_counter() - begun
    size = min(effective_sample_size(w).min(), effective_sample_size(w.square()).min())
    r_hat = max(split_r_hat(w).max(), split_r_hat(w.square()).max())
    flat = w.reshape(-1, model.dim)
    order = torch.randperm(len(flat), generator=torch.Generator().manual_seed(0))
    return Reference(flat[order].float(), "NUTS", seconds, float(r_hat), float(size), int(np.asarray(steps).sum()))
