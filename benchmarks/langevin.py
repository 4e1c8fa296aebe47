"""What a Langevin step costs, as a ratio to drawing the same normals in the same run.

The plain engine, the fused one where Numba is installed, and other libraries where they are, on a
two-mode mixture (isotropic), one of 100 components with full covariances, and a network as a score,
whose floor is the bare calls of it and the normals. Interleaved rounds of a tenth of a second or
more, float32, one thread except where two are named: the best of the times, and the median over rounds
of the ratio to the floor in the same round. JSON beside this file, and the table of
`docs/benchmarks.md`. The law of what is timed is checked against the exact one of ULA, or engines
against one another. Some ten minutes.

    python benchmarks/langevin.py [--repeats 9]

torchebm and blackjax are used if they are installed; use a separate environment for them. Memory that a
step of a network frees is not returned to the system (`MALLOC_TRIM_THRESHOLD_`): whether glibc does so
depends on the position of the last small array, and makes the same call 5 % slower or faster.
"""

import argparse
import json
import os
import platform
import sys
import time
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

import torch
from torch import nn

import gradlogp as glp
from gradlogp.core import Streams, block_of
from gradlogp.langevin import fused

H = 0.05
MEMORY = {"MALLOC_TRIM_THRESHOLD_": "1000000000", "MALLOC_MMAP_THRESHOLD_": "1000000000"}
HERE = Path(__file__).parent


def two_modes(d):
    means = torch.zeros(2, d)
    means[:, 0] = torch.tensor([-2.0, 2.0])
    return glp.GaussianMixture(torch.tensor([0.5, 0.5]), means, 1.0)


def hundred(d):
    g = torch.Generator().manual_seed(0)
    A = torch.randn(100, d, d, generator=g) / d**0.5
    means = 3 * torch.randn(100, d, generator=g)
    return glp.GaussianMixture(torch.full((100,), 0.01), means, A @ A.mT + 0.5 * torch.eye(d))


def network(d):
    g, layers = torch.Generator().manual_seed(0), []
    for n, m in ((d, 128), (128, 128), (128, d)):
        layers += [nn.Linear(n, m), nn.SiLU()]
        nn.init.normal_(layers[-2].weight, std=n**-0.5, generator=g)
    return nn.Sequential(*layers[:-1])


# ---------------------------------------------------------------------------- what is timed


def plain(target, x0, n_steps):
    """ULA step by step: what `glp.run` does, without keeping draws."""
    n = len(x0)
    kernel, streams = glp.langevin.ULA(H), Streams(0, 0, n, n, block=block_of(x0.shape[1:]))

    def run():
        with torch.no_grad():
            state = kernel.init(x0, target)
            for _ in range(n_steps):
                state, _ = kernel.step(state, target, generator=streams)
        return state.x

    return run


def whole(target, x0, n_steps):
    return lambda: glp.run(glp.langevin.ULA(H), target, x0, n_steps, burn_in=n_steps - 1).state.x


def in_numba(target, x0, n_steps, threads=1):
    if not fused.supports(glp.langevin.ULA(H), target, x0):
        return None
    kernel, how = glp.langevin.ULA(H), {"burn_in": n_steps - 1, "threads": threads}
    return lambda: fused.run(kernel, target, x0, n_steps, **how).state.x


def torchebm(law, x0, n_steps):
    """The same chain; torchebm's steps are ε with x − ε ∇E + √(2ε) z."""
    try:
        from torchebm.core import BaseModel
        from torchebm.samplers import LangevinDynamics
    except ImportError:
        return None

    class Energy(BaseModel):
        def forward(self, x):
            return -law.log_prob(x)

    sampler = LangevinDynamics(model=Energy(), step_size=H, noise_scale=1.0)
    return lambda: sampler.sample(x=x0.clone(), n_steps=n_steps)


def blackjax(law, x0, n_steps):
    """SGLD's step with the full gradient, vmapped over chains, in one jitted scan."""
    try:
        import blackjax as bj
        import jax
        import jax.numpy as jnp
    except ImportError:
        return None
    means, P = jnp.array(law.means.numpy()), 1.0
    log_pi = jnp.log(jnp.array(law.weights.numpy()))

    def log_p(x):
        return jax.nn.logsumexp(log_pi - 0.5 * P * ((x - means) ** 2).sum(-1))

    sgld = bj.sgld(lambda x, _: jax.grad(log_p)(x))

    @jax.jit
    def chain(key, x):
        def one(x, key):
            keys = jax.random.split(key, len(x))
            return jax.vmap(lambda k, y: sgld.step(k, y, 0, H))(keys, x), None

        return jax.lax.scan(one, x, jax.random.split(key, n_steps))[0]

    x = jnp.array(x0.numpy())
    return lambda: torch.tensor(jax.device_get(chain(jax.random.key(0), x)))


def normals(x0, n_steps):
    g = torch.Generator().manual_seed(0)

    def run():
        for _ in range(n_steps):
            torch.randn(x0.shape, generator=g)

    return run


def network_floor(net, x0, n_steps):
    g = torch.Generator().manual_seed(0)

    def run():  # the score is also needed where the chains start
        with torch.no_grad():
            net(x0)
            for _ in range(n_steps):
                net(x0)
                torch.randn(x0.shape, generator=g)

    return run


def timed(make, seconds, least):
    """Return a run of `make(n_steps)` about so long, and its number of steps."""
    n_steps, taken = least, 0.0
    while True:  # what a run begins with is no step: it has to be little beside them
        run = make(n_steps)
        if run is None:
            return None
        run()
        began = time.perf_counter()
        run()
        taken = time.perf_counter() - began
        if taken > seconds / 4:
            break
        n_steps *= 4
    n_steps = max(least, int(seconds * n_steps / taken))
    return make(n_steps), n_steps


def rounds(functions, repeats):
    """Return the seconds of every round of each function, interleaved, after one to warm up."""
    found = {name: [] for name in functions}
    for i in range(repeats + 1):
        for name, f in functions.items():
            began = time.perf_counter()
            f()
            if i:
                found[name].append(time.perf_counter() - began)
    return found


# ---------------------------------------------------------------------------- and is right


def check(what, cases, x0):
    """Return how many standard errors each engine is off after 50 steps; at most 5.

    The last coordinate of the two modes has ULA's exact variance when the chains start at 0; on the
    hundred components |x|² is compared with that of the plain engine.
    """
    n_steps, n = 50, len(x0)
    ends = {who: make(n_steps) for who, make in cases.items() if who != "floor"}
    ends = {who: f().double() for who, f in ends.items() if f is not None}
    a, off = (1 - H) ** (2 * n_steps), {}
    exact = (1 - a) / (1 - H / 2)
    first = ends["plain"].square().sum(1)
    for who, x in ends.items():
        if what == "two modes":
            off[who] = float((x[:, -1].square().mean() - exact) / (exact * (2 / n) ** 0.5))
        else:
            norm = x.square().sum(1)
            off[who] = float((norm.mean() - first.mean()) / (2 * first.var() / n) ** 0.5)
        assert abs(off[who]) < 5, f"{who} on {what} is {off[who]:.1f} standard errors off"
    return off


SECONDS = 0.1
"""About how long a round takes, where the fewest steps do not take longer."""

MOST = {"two modes": 5_200_000, "hundred": 7e5, "network": 3_200_000}
"""Largest number of chains times d, for the hundred times d², that is timed."""


def size(what, chains, d):
    return chains * d**2 if what == "hundred" else chains * d


def rows_of(what, target, d, chains, repeats):
    x0 = torch.zeros(chains, d)
    cases = {"plain": partial(plain, target, x0), "run": partial(whole, target, x0)}
    if what == "network":
        cases["floor"] = partial(network_floor, target.score_fn, x0)
    else:
        cases["floor"] = partial(normals, x0)
        cases["fused"] = partial(in_numba, target, x0)
        cases["fused, 2 threads"] = partial(in_numba, target, x0, threads=2)
    if what == "two modes":
        cases["torchebm"] = partial(torchebm, target, x0)
        cases["blackjax"] = partial(blackjax, target, x0)
    off = check(what, cases, x0) if what != "network" and chains >= 100 else {}
    least = 3 if what == "hundred" or x0.numel() > 2e6 else 20
    made = {who: timed(make, SECONDS, least) for who, make in cases.items()}
    made = {who: found for who, found in made.items() if found is not None}
    found = rounds({who: f for who, (f, _) in made.items()}, repeats)
    us = {who: [1e6 * v / made[who][1] for v in values] for who, values in found.items()}
    return [
        {
            "target": what, "d": d, "chains": chains, "steps": made[who][1], "who": who,
            "us_per_step": min(values),
            "over_floor": median(v / f for v, f in zip(values, us["floor"], strict=True)),
            "standard_errors_off": off.get(who),
        }
        for who, values in us.items()
    ]  # fmt: skip


def table(rows):
    """Return the rows as the table of the docs, microseconds a step."""
    who = ["floor", "run", "fused", "fused, 2 threads", "torchebm", "blackjax"]
    titles = ["floor", "`glp.run`", '`engine="fused"`', "2 threads", "torchebm", "blackjax"]
    lines = ["| target | d | chains | " + " | ".join(titles) + " |", "|---" * 9 + "|"]
    keys = dict.fromkeys((r["target"], r["d"], r["chains"]) for r in rows)
    for key in keys:
        found = {r["who"]: r for r in rows if (r["target"], r["d"], r["chains"]) == key}
        cells = []
        for name in who:
            row = found.get(name)
            ratio = f" ({row['over_floor']:.3g}×)" if row and name != "floor" else ""
            cells.append(f"{row['us_per_step']:,.3g}{ratio}" if row else "")
            if row and row["us_per_step"] >= 1000:
                cells[-1] = f"{row['us_per_step']:,.0f}{ratio}"
        lines.append(f"| {key[0]} | {key[1]} | {key[2]:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_table(rows):
    """Replace the table in the docs, where it has its place."""
    page = HERE.parent / "docs" / "benchmarks.md"
    text = page.read_text(encoding="utf-8")
    begin, end = "<!-- langevin: begin -->", "<!-- langevin: end -->"
    if begin in text:
        head, tail = text.split(begin)[0], text.split(end)[1]
        page.write_text(f"{head}{begin}\n{table(rows)}\n{end}{tail}", encoding="utf-8")


def versions():
    found = {}
    for name in ("torch", "numba", "torchebm", "blackjax", "jax"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--chains", type=int, nargs="+", default=[1, 4, 100, 10_000, 100_000])
    parser.add_argument("--dims", type=int, nargs="+", default=[2, 32, 512])
    parser.add_argument("--targets", nargs="+", default=["two modes", "hundred", "network"])
    parser.add_argument("--out", type=Path, default=HERE / "langevin.json")
    options = parser.parse_args()
    if MEMORY.keys() - os.environ.keys():
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | MEMORY)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    environment = versions() | {k: os.environ[k] for k in MEMORY} | {
        "python": platform.python_version(), "machine": platform.machine(), "threads": 1,
        "repeats": options.repeats,
    }  # fmt: skip
    print("  ".join(f"{k} {v}" for k, v in environment.items()))
    print(f"{'target':<11}{'d':>4}{'chains':>8}  {'':<11}{'µs a step':>11}{'× floor':>9}")
    rows = []
    for what in options.targets:
        for d in options.dims:
            makers = {"two modes": two_modes, "hundred": hundred}
            if size(what, min(options.chains), d) > MOST[what]:
                continue
            target = makers[what](d) if what in makers else glp.as_target(network(d))
            for chains in options.chains:
                if size(what, chains, d) > MOST[what]:
                    continue
                for row in rows_of(what, target, d, chains, options.repeats):
                    rows.append(row)
                    print(
                        f"{what:<11}{d:>4}{chains:>8}  {row['who']:<11}"
                        f"{row['us_per_step']:>11.2f}{row['over_floor']:>9.2f}",
                        flush=True,
                    )
    options.out.write_text(json.dumps({"environment": environment, "rows": rows}, indent=1))
    if options.out == HERE / "langevin.json":
        write_table(rows)
    print(f"written to {options.out.name}")


if __name__ == "__main__":
    main()
