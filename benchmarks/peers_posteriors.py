"""One run of a blackjax sampler on one of the ten posteriors: the worker of `posteriors.py`.

    python benchmarks/peers_posteriors.py kidiq "NUTS dense" 0 run.npz [--limit 300]

It needs blackjax and jax and nothing of gradlogp; `posteriors.py` makes an environment for it. The
models are those of `posterior_models.py` in the same unconstrained coordinates, one chain at a time,
in float64. Starts are U(−2, 2), 4 chains × 1,000 draws after 1,000, all four at once by `jax.vmap`.
NUTS adapts steps and metric in windows; MCLMC tunes as its documentation shows and keeps every tenth
of 10,000 steps of two gradients. Into the file go the draws in the reference's parameters `(chain,
draw, n)`, the starts and log p there (by which the caller sees that both models are one), the
gradients of all chains, and CPU and wall seconds from after the imports, compiling included. A run
over its limit of CPU seconds ends with status 75.

`--own FOLDER` adds the functions of FOLDER/peers.py.
"""

import argparse
import importlib.util
import json
import lzma
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault(
    "XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
)

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm

jax.config.update("jax_enable_x64", True)

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = (ROOT / "tests" / "langevin" / "posteriors", ROOT / "benchmarks" / "posteriors")
CHAINS, WARM, DRAWS = 4, 1000, 1000
MCLMC_STEPS = 10_000
STOPPED = 75


class Posterior(NamedTuple):
    """A log-density of one unconstrained point `(d,)`, and the way to the parameters `(n,)`."""

    log_prob: Callable[[Any], Any]
    dim: int
    constrain: Callable[[Any], Any]


def load(name, folders):
    """Read the data of `name.json` or `name.json.xz`."""
    for path in (Path(folder) / f"{name}.json" for folder in folders):
        if path.exists():
            return json.loads(path.read_text())["data"]
        if (packed := path.with_suffix(".json.xz")).exists():
            return json.loads(lzma.decompress(packed.read_bytes()))["data"]
    raise FileNotFoundError(f"no {name}.json or {name}.json.xz in {', '.join(map(str, folders))}")


def array(data, *keys):
    return tuple(jnp.asarray(data[key], dtype=jnp.float64) for key in keys)


def normal(residual, log_sd):
    return -0.5 * jnp.sum(residual**2) * jnp.exp(-2 * log_sd) - len(residual) * log_sd


def half_cauchy(log_x, scale):
    return log_x - jnp.log1p((jnp.exp(log_x) / scale) ** 2)


def last_is_log(z):
    return jnp.append(z[:-1], jnp.exp(z[-1]))


def kidiq(data):
    y, hs, iq = array(data, "kid_score", "mom_hs", "mom_iq")
    X = jnp.stack([jnp.ones_like(y), hs, iq], 1)

    def log_prob(z):
        return normal(y - X @ z[:3], z[3]) + half_cauchy(z[3], 2.5)

    return Posterior(log_prob, 4, last_is_log)


def logmesquite(data):
    y, d1, d2, canopy, height, group = array(
        data, "weight", "diam1", "diam2", "canopy_height", "total_height", "group"
    )
    logs = (jnp.log(d1 * d2 * canopy), jnp.log(d1 * d2), jnp.log(d1 / d2), jnp.log(height))
    X = jnp.stack([jnp.ones_like(y), *logs, group], 1)
    y = jnp.log(y)
    return Posterior(lambda z: normal(y - X @ z[:6], z[6]) + z[6], 7, last_is_log)


def sblrc(data):
    X, y = array(data, "X", "y")
    d = X.shape[1]

    def log_prob(z):
        prior = -0.005 * (jnp.sum(z[:d] ** 2) + jnp.exp(2 * z[d])) + z[d]
        return normal(y - X @ z[:d], z[d]) + prior

    return Posterior(log_prob, d + 1, last_is_log)


def arK(data):
    (y,), K = array(data, "y"), data["K"]
    lagged = [y[K - k : len(y) - k] for k in range(1, K + 1)]
    X = jnp.stack([jnp.ones(len(y) - K), *lagged], 1)
    y = y[K:]

    def log_prob(z):
        prior = -0.005 * jnp.sum(z[: K + 1] ** 2) + half_cauchy(z[K + 1], 2.5)
        return normal(y - X @ z[: K + 1], z[K + 1]) + prior

    return Posterior(log_prob, K + 2, last_is_log)


def kilpisjarvi(data):
    x, y = array(data, "x", "y")

    def log_prob(z):
        prior = norm.logpdf(z[0], data["pmualpha"], data["psalpha"])
        prior += norm.logpdf(z[1], data["pmubeta"], data["psbeta"]) + z[2]
        return normal(y - z[0] - z[1] * x, z[2]) + prior

    return Posterior(log_prob, 3, last_is_log)


def schools_c(data):
    y, sigma = array(data, "y", "sigma")
    J = len(y)

    def log_prob(z):
        theta, mu, log_tau = z[:J], z[J], z[J + 1]
        likelihood = -0.5 * jnp.sum(((y - theta) / sigma) ** 2)
        return likelihood + normal(theta - mu, log_tau) - mu**2 / 50 + half_cauchy(log_tau, 5)

    return Posterior(log_prob, J + 2, last_is_log)


def schools_nc(data):
    y, sigma = array(data, "y", "sigma")
    J = len(y)

    def constrain(z):
        tau = jnp.exp(z[J + 1])
        return jnp.concatenate([z[J] + tau * z[:J], z[J : J + 1], tau[None]])

    def log_prob(z):
        theta = z[J] + jnp.exp(z[J + 1]) * z[:J]
        likelihood = -0.5 * jnp.sum(((y - theta) / sigma) ** 2)
        prior = -0.5 * jnp.sum(z[:J] ** 2) - z[J] ** 2 / 50
        return likelihood + prior + half_cauchy(z[J + 1], 5)

    return Posterior(log_prob, J + 2, constrain)


def gp_pois(data):
    x, counts = array(data, "x", "k")
    n = len(x)
    squares = (x[:, None] - x) ** 2

    def field(z):
        K = jnp.exp(2 * z[1] - 0.5 * squares * jnp.exp(-2 * z[0])) + 1e-10 * jnp.eye(n)
        return jnp.linalg.cholesky(K) @ z[2:]

    def log_prob(z):
        f = field(z)
        prior = 25 * z[0] - 4 * jnp.exp(z[0]) - jnp.exp(2 * z[1]) / 8 + z[1]
        return jnp.sum(counts * f - jnp.exp(f)) + prior - 0.5 * jnp.sum(z[2:] ** 2)

    return Posterior(log_prob, n + 2, lambda z: jnp.append(jnp.exp(z[:2]), field(z)))


def garch(data):
    (y,) = array(data, "y")

    def constrain(z):
        alpha1 = jax.nn.sigmoid(z[2])
        return jnp.stack([z[0], jnp.exp(z[1]), alpha1, (1 - alpha1) * jax.nn.sigmoid(z[3])])

    def log_prob(z):
        mu, alpha0, alpha1, beta1 = constrain(z)
        squares = (y - mu) ** 2

        def step(variance, square):
            after = alpha0 + alpha1 * square + beta1 * variance
            return after, after

        first = jnp.float64(data["sigma1"] ** 2)
        _, rest = jax.lax.scan(step, first, squares[:-1])
        variance = jnp.append(first, rest)
        u, v = z[2], z[3]
        s = jax.nn.log_sigmoid
        jacobian = z[1] + s(u) + 2 * s(-u) + s(v) + s(-v)
        return -0.5 * jnp.sum(jnp.log(variance) + squares / variance) + jacobian

    return Posterior(log_prob, 4, constrain)


def diamonds(data):
    y, X = array(data, "Y", "X")
    X = X[:, 1:] - X[:, 1:].mean(0)
    d = X.shape[1]

    def log_prob(z):
        b, a, log_sigma = z[:d], z[d], z[d + 1]
        prior = -0.5 * jnp.sum(b**2) - 2 * jnp.log1p((a - 8) ** 2 / 300)
        prior = prior - 2 * jnp.log1p(jnp.exp(2 * log_sigma) / 300) + log_sigma
        return normal(y - a - X @ b, log_sigma) + prior

    return Posterior(log_prob, d + 2, last_is_log)


def nuts(log_prob, starts, key, diagonal):
    """Draws `(chain, draw, d)`; gradients of warm-up and draws, divergences, CPU s of the draws."""
    warmup = blackjax.window_adaptation(
        blackjax.nuts,
        log_prob,
        is_mass_matrix_diagonal=diagonal,
        adaptation_info_fn=lambda state, info, adaptation: info.num_integration_steps,
    )

    def warm(key, start):
        (state, parameters), spent = warmup.run(key, start, num_steps=WARM)
        return state, parameters, spent.sum()

    def draw(key, state, parameters):
        step = blackjax.nuts(log_prob, **parameters).step

        def one(state, key):
            state, info = step(key, state)
            return state, (state.position, info.num_integration_steps, info.is_divergent)

        _, (draws, spent, divergent) = jax.lax.scan(one, state, jax.random.split(key, DRAWS))
        return draws, spent.sum(), divergent.sum()

    warm_key, draw_key = jax.random.split(key)
    state, parameters, before = jax.jit(jax.vmap(warm))(jax.random.split(warm_key, CHAINS), starts)
    arguments = jax.random.split(draw_key, CHAINS), state, parameters
    compiled = jax.jit(jax.vmap(draw)).lower(*arguments).compile()
    jax.block_until_ready(before)
    began = time.process_time()
    draws, spent, divergent = jax.block_until_ready(compiled(*arguments))
    seconds = time.process_time() - began
    return draws, int(before.sum()), int(spent.sum()), int(divergent.sum()), seconds


def mclmc(log_prob, starts, key):
    """As `nuts`; a step of MCLMC is two gradients."""
    kernel = blackjax.mcmc.mclmc.build_kernel()

    def warm(key, start):
        first, second = jax.random.split(key)
        state = blackjax.mcmc.mclmc.init(start, log_prob, first)
        return blackjax.mclmc_find_L_and_step_size(
            mclmc_kernel=kernel,
            num_steps=MCLMC_STEPS,
            state=state,
            rng_key=second,
            logdensity_fn=log_prob,
        )

    def draw(key, state, parameters):
        sampler = blackjax.mclmc(
            log_prob,
            L=parameters.L,
            step_size=parameters.step_size,
            inverse_mass_matrix=parameters.inverse_mass_matrix,
        )

        def thinned(state, keys):
            state, info = jax.lax.scan(lambda s, k: sampler.step(k, s), state, keys)
            return state, (state.position, (~info.nonans).sum())

        keys = jax.random.split(key, (DRAWS, MCLMC_STEPS // DRAWS))
        _, (draws, wrong) = jax.lax.scan(thinned, state, keys)
        return draws, wrong.sum()

    warm_key, draw_key = jax.random.split(key)
    state, parameters, steps = jax.jit(jax.vmap(warm))(jax.random.split(warm_key, CHAINS), starts)
    arguments = jax.random.split(draw_key, CHAINS), state, parameters
    compiled = jax.jit(jax.vmap(draw)).lower(*arguments).compile()
    jax.block_until_ready(steps)
    began = time.process_time()
    draws, wrong = jax.block_until_ready(compiled(*arguments))
    seconds = time.process_time() - began
    before = 2 * int(np.sum(steps))
    return draws, before, 2 * CHAINS * MCLMC_STEPS, int(wrong.sum()), seconds


METHODS = {
    "NUTS diagonal": lambda *a: nuts(*a, diagonal=True),
    "NUTS dense": lambda *a: nuts(*a, diagonal=False),
    "MCLMC": mclmc,
}


def stop_after(limit):
    """End the process where it has used that many CPU seconds: a compiled loop cannot be left."""
    while time.process_time() < limit:
        time.sleep(1)
    os._exit(STOPPED)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("method", choices=METHODS)
    parser.add_argument("seed", type=int)
    parser.add_argument("out", type=Path)
    parser.add_argument("--own", type=Path)
    parser.add_argument("--limit", type=float, default=300)
    args = parser.parse_args()
    threading.Thread(target=stop_after, args=(args.limit,), daemon=True).start()
    cpu, wall = time.process_time(), time.perf_counter()
    models, folders = globals(), FOLDERS
    if args.own:
        spec = importlib.util.spec_from_file_location("own_peers", args.own / "peers.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        models, folders = {**models, **vars(module)}, (args.own, *folders)
    posterior = models[args.name](load(args.name, folders))
    starts = np.random.default_rng(args.seed).uniform(-2, 2, (CHAINS, posterior.dim))
    key = jax.random.key(args.seed)
    draws, before, during, divergent, seconds = METHODS[args.method](
        posterior.log_prob, jnp.asarray(starts), key
    )
    draws = np.asarray(jax.jit(jax.vmap(jax.vmap(posterior.constrain)))(draws))
    np.savez(
        args.out,
        draws=draws,
        starts=starts,
        log_prob=np.asarray(jax.vmap(posterior.log_prob)(starts)),
        gradients_warm=before,
        gradients=during,
        divergences=divergent,
        seconds_draws=seconds,
        cpu=time.process_time() - cpu,
        wall=time.perf_counter() - wall,
    )


if __name__ == "__main__":
    main()
