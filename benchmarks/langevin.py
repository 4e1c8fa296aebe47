"""What a Langevin step costs, as a ratio to drawing the same normals in the same run.

The plain engine, the fused one where Numba is installed, and other libraries where they are, on a
two-mode mixture (isotropic), one of 100 components with full covariances, and a network as a score,
whose floor is as many bare calls of it. Interleaved rounds, best of them, float32, one thread; JSON
beside this file. The law of the timed chains is checked against the exact one of ULA.

    python benchmarks/langevin.py [--repeats 7]

torchebm and blackjax are looked for; give them an environment of their own.
"""

import argparse
import json
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import nn

import gradlogp as glp
from gradlogp import fused
from gradlogp.core import Streams

H = 0.05
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
    kernel, streams = glp.ULA(H), Streams(0, 0, len(x0), len(x0))

    def run():
        with torch.no_grad():
            state = kernel.init(x0, target)
            for _ in range(n_steps):
                state, _ = kernel.step(state, target, generator=streams)
        return state.x

    return run


def whole(target, x0, n_steps):
    return lambda: glp.run(glp.ULA(H), target, x0, n_steps, burn_in=n_steps - 1).state.x


def in_numba(target, x0, n_steps):
    if not fused.supports(glp.ULA(H), target, x0):
        return None
    run = lambda: fused.run(glp.ULA(H), target, x0, n_steps, burn_in=n_steps - 1).state.x
    return run


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


def best_of(functions, repeats):
    """Seconds of each function, best of interleaved rounds after one to warm up."""
    best = {name: float("inf") for name, f in functions.items() if f is not None and f() is not f}
    for _ in range(repeats):
        for name in best:
            began = time.perf_counter()
            functions[name]()
            best[name] = min(best[name], time.perf_counter() - began)
    return best


# ---------------------------------------------------------------------------- and is right


def check(name, x, x0, n_steps):
    """The last coordinate, without modes, has ULA's exact variance when the chains start at 0."""
    last = x[:, -1].double()
    a = (1 - H) ** (2 * n_steps)
    exact = (1 - a) / (1 - H / 2)
    off = float((last.square().mean() - exact) / (exact * (2 / len(last)) ** 0.5))
    assert abs(off) < 5, f"{name}: E x² is {off:.1f} standard errors off {exact}"
    return off


def rows_of(what, target, d, chains, repeats):
    budget = 2e7 if what == "two modes" else 2e6
    n_steps = int(min(1000, max(20, budget / (chains * d + 2000) / 10)))
    x0 = torch.zeros(chains, d)
    cases = {"plain": plain(target, x0, n_steps), "run": whole(target, x0, n_steps)}
    if what == "network":
        net = target.score_fn

        def floor():
            with torch.no_grad():
                for _ in range(n_steps):
                    net(x0)

        cases["bare calls"] = floor
    else:
        cases["floor"] = normals(x0, n_steps)
        cases["fused"] = in_numba(target, x0, n_steps)
    if what == "two modes":
        cases |= {
            "torchebm": torchebm(target, x0, n_steps),
            "blackjax": blackjax(target, x0, n_steps),
        }
    off = None
    if what == "two modes" and chains >= 100:
        ran = {k: f for k, f in cases.items() if f is not None and k != "floor"}
        off = {k: check(k, f(), x0, n_steps) for k, f in ran.items()}
    seconds = best_of(cases, repeats)
    floor = seconds.get("floor", seconds.get("bare calls"))
    if what == "network":
        floor += best_of({"floor": normals(x0, n_steps)}, repeats)["floor"]
    return [
        {
            "target": what, "d": d, "chains": chains, "steps": n_steps, "who": who,
            "us_per_step": 1e6 * s / n_steps, "over_floor": s / floor,
            "standard_errors_off": off.get(who) if off else None,
        }
        for who, s in seconds.items()
    ]  # fmt: skip


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
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--chains", type=int, nargs="+", default=[1, 4, 100, 10_000, 100_000])
    parser.add_argument("--dims", type=int, nargs="+", default=[2, 32, 512])
    parser.add_argument("--targets", nargs="+", default=["two modes", "hundred", "network"])
    parser.add_argument("--out", type=Path, default=HERE / "langevin.json")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    environment = versions() | {
        "python": platform.python_version(), "machine": platform.machine(), "threads": 1,
        "repeats": options.repeats,
    }  # fmt: skip
    print("  ".join(f"{k} {v}" for k, v in environment.items()))
    print(f"{'target':<11}{'d':>4}{'chains':>8}  {'':<11}{'µs a step':>11}{'× floor':>9}")
    rows = []
    for what in options.targets:
        for d in options.dims:
            makers = {"two modes": two_modes, "hundred": hundred}
            target = makers[what](d) if what in makers else glp.as_target(network(d))
            for chains in options.chains:
                if chains * d > 600_000 or (what == "hundred" and chains * d**2 > 3e5):
                    continue
                for row in rows_of(what, target, d, chains, options.repeats):
                    rows.append(row)
                    print(
                        f"{what:<11}{d:>4}{chains:>8}  {row['who']:<11}"
                        f"{row['us_per_step']:>11.2f}{row['over_floor']:>9.2f}",
                        flush=True,
                    )
    options.out.write_text(json.dumps({"environment": environment, "rows": rows}, indent=1))
    print(f"written to {options.out.name}")


if __name__ == "__main__":
    main()
