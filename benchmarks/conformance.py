"""Samplers of other libraries under the public checks of `glp.check`.

    python benchmarks/conformance.py [--only azula] [--env FOLDER]

Each library is installed by pip, with the few packages that it imports, into a separate folder under
`--env`, and is checked in a separate process with this environment's PyTorch. An adapter of a few lines
turns a sampler into a transition or a kernel, which is compared with the order in the library's
documentation; failures are printed with the number, the right number and the likeliest mistake. A
failure is a statement about that version and that call, and the adapter may be wrong: read it first.
"""

import argparse
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

import gradlogp as glp
from gradlogp.check.conformance import kernel_paths
from gradlogp.check.conformance.kernel_laws import gaussian
from gradlogp.check.conformance.report import Report
from gradlogp.check.conformance.transition_laws import laws
from gradlogp.core import rand_like, randn_like
from gradlogp.diffusion.transitions.facts import Facts
from gradlogp.langevin.kernels.facts import UNKNOWN

HERE = Path(__file__).parent
PEERS = {
    "azula": "0.11.1", "k-diffusion": "0.1.1.post1", "diffusers": "0.42.1",
    "torchebm": "0.8.9", "ebmkit": "0.16.0", "blackjax": "1.7.1",
}  # fmt: skip
ALSO = {
    "azula": ("einops", "tqdm"),
    "k-diffusion": ("torchdiffeq", "tqdm"),
    "diffusers": (
        "huggingface_hub>=1.32,<2", "safetensors>=0.8", "importlib_metadata", "zipp", "filelock",
        "regex", "requests", "certifi", "charset_normalizer", "idna", "urllib3", "pyyaml", "tqdm",
        "httpx", "httpcore", "h11", "anyio", "fsspec",
    ),
    "torchebm": ("tqdm",),
    "ebmkit": (),
    "blackjax": ("jax==0.10.2", "jaxlib==0.10.2", "ml_dtypes", "opt_einsum", "optax", "absl_py"),
}  # fmt: skip
"""What they import here beside PyTorch."""


class Handed(TorchFunctionMode):
    """Where the library draws normal numbers, it is handed those of a source."""

    def __init__(self, generator, double=False):
        super().__init__()
        self.generator, self.double = generator, double

    def __torch_function__(self, f, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if f in (torch.randn_like, torch.rand_like):
            return (randn_like if f is torch.randn_like else rand_like)(args[0], self.generator)
        if f in (torch.randn, torch.rand):
            shape = kwargs.get("size", args[0] if isinstance(args[0], tuple | list) else args)
            like = torch.empty(tuple(shape), dtype=kwargs.get("dtype"))
            return (randn_like if f is torch.randn else rand_like)(like, self.generator)
        if self.double and f is torch.Tensor.to and args[1:] == (torch.float32,):
            return args[0]  # a step that is rounded says nothing of an order
        return f(*args, **kwargs)


# ---------------------------------------------------------------------------- adapters


class Azula:
    """A sampler of azula: one step from t to s, by its `step`."""

    def __init__(self, name, facts, **options):
        self.name, self.facts, self.options = name, facts, options

    def made(self, score, **options):
        """Return the sampler, with a score as its denoiser."""
        import azula.sample

        denoiser = lambda x, t: SimpleNamespace(mean=score.denoise(x, t))
        wrapped = type("Denoiser", (), {"schedule": staticmethod(score.schedule)})
        wrapped.__call__ = lambda self, x, t: denoiser(x, t)
        return getattr(azula.sample, self.name)(wrapped(), silent=True, **self.options, **options)

    def __call__(self, z, t, s, score, *, generator=None):
        """Return the state at s."""
        if s is None:  # its samplers end at the last time: Tweedie's mean from there
            return score.denoise(z, t)
        if s == t:
            return z
        with Handed(generator):
            return self.made(score).step(z, t.double(), s.double()).to(z)


class AzulaRun(Azula):
    """A multistep sampler of azula, which runs as a whole: again from the start for each step."""

    def begin(self):
        """Return a transition that remembers where it has been."""
        seen = []

        def move(z, t, s, score, *, generator=None):
            if s is None:
                return score.denoise(z, t)
            seen[:] = seen or [(z, t)]
            if len(seen) == 1 or seen[-1][1] is not s:
                seen.append((None, s))
            sampler = self.made(score)
            times = torch.stack([t.double() for _, t in seen])
            cls = type(sampler)
            sampler.__class__ = type(cls.__name__, (cls,), {"timesteps": times})
            return sampler(seen[0][0]).to(z)

        return move

    def __call__(self, z, t, s, score, *, generator=None):
        """Return the state at s."""
        return self.begin()(z, t, s, score, generator=generator)


class KDiffusion:
    """A sampler of k-diffusion: one step between two levels, in y = z/α and r = σ/α."""

    def __init__(self, name, facts, **options):
        self.name, self.facts, self.options = name, facts, options

    def __call__(self, z, t, s, score, *, generator=None):
        """Return the state at s."""
        sys.path.append(str(HERE))
        from peers_diffusion import k_diffusion_sampling

        if s is None:
            return score.denoise(z, t)
        if s == t:
            return z
        (a, b), (a_s, b_s) = score.schedule(t.double()), score.schedule(s.double())
        if a == 0:
            raise ValueError("k-diffusion has no level without data")
        ratio = lambda v: glp.noise.time_at(score.schedule, float(v.reshape(-1)[0]))

        def denoise(y, r):
            u = t if float(r.reshape(-1)[0]) == float(b / a) else ratio(r)
            return score.denoise(score.schedule(u)[0].to(y) * y, u)

        sample = getattr(k_diffusion_sampling(), f"sample_{self.name}")
        levels = torch.stack([b / a, b_s / a_s]).to(z)
        with Handed(generator):
            y = sample(denoise, z / a.to(z), levels, disable=True, **self.options)
        return a_s.to(z) * y


class Diffusers:
    """A scheduler of diffusers on levels of our choice, in double precision; α² + σ² = 1 or α = 1."""

    def __init__(self, name, facts, *, stages=1, preserving=True, exact=0, **options):
        self.name, self.facts, self.stages, self.exact = name, facts, stages, exact
        self.preserving, self.options = preserving, options

    def begin(self):
        """Return a transition that remembers where it has been."""
        import diffusers

        made, levels = getattr(diffusers, self.name)(**self.options), []
        made.set_timesteps(999)  # more than there are: no step takes itself for the last
        made.is_scale_input_called = True

        def move(z, t, s, score, *, generator=None):
            (a, b), (a_s, b_s) = ((v.double() for v in score.schedule(u)) for u in (t, s))
            levels.extend([] if levels else [b / a])
            levels.extend([b_s / a_s] * self.stages)
            made.sigmas, step = torch.stack(levels), len(levels) - 1 - self.stages
            made._step_index = step
            scale = [(1 + r**2).rsqrt() if self.preserving else 1 for r in (b / a, b_s / a_s)]
            if hasattr(made, "betas") and "DD" in self.name:  # a chain of these two levels
                made.alphas_cumprod = torch.stack([1 / (1 + r**2) for r in (b_s / a_s, b / a)])
                made.config.num_train_timesteps = made.num_inference_steps = 2
            y, at = z / a.to(z) * scale[0], (t, s)
            with Handed(generator, double=True):
                for k in range(self.stages):
                    alpha, sigma = (v.to(z) for v in score.schedule(at[k]))
                    noise = -sigma * score(alpha * y / scale[k], at[k])
                    number = 1 if "DD" in self.name else made.timesteps[step + k]
                    y = made.step(noise, number, y).prev_sample
            if step < self.exact:  # what a solver does after its start, whatever that is
                times = torch.linspace(float(t), float(s), 65, dtype=torch.float64)
                return glp.evolve(glp.diffusion.ProbabilityFlow(4), score, z, times, denoise=False)
            return a_s.to(z) * y / scale[1]

        return lambda z, t, s, score, **kw: (
            score.denoise(z, t) if s is None else z if s == t else move(z, t, s, score, **kw)
        )

    def __call__(self, z, t, s, score, *, generator=None):
        """Return the state at s."""
        return self.begin()(z, t, s, score, generator=generator)


class State(NamedTuple):
    """Positions."""

    x: torch.Tensor


class Moving(NamedTuple):
    """Positions and momenta, or directions."""

    x: torch.Tensor
    momentum: torch.Tensor


class Info(NamedTuple):
    """Their energies."""

    energy: torch.Tensor


class TorchEBM:
    """Langevin dynamics of torchebm: one step, of an energy made from the target."""

    def __init__(self, step_size):
        self.step_size = step_size

    def init(self, x, target):
        """Return the state at x."""
        return State(x)

    def step(self, state, target, *, generator=None):
        """Move every chain by one step."""
        from torchebm.core import BaseModel
        from torchebm.samplers import LangevinDynamics

        class Energy(BaseModel):
            def forward(self, x):
                return -target.log_prob(x)

        x = state.x
        sampler = LangevinDynamics(
            Energy(), step_size=self.step_size, dtype=x.dtype, device=x.device
        )
        with Handed(generator):
            new = sampler.sample(x=x.clone(), n_steps=1).detach()
        return State(new), Info(-target.log_prob(new))


class Ebmkit:
    """A sampler of ebmkit: its `step`, of an energy made from the target."""

    def __init__(self, step_size, name, **options):
        import ebm

        self.step_size = step_size
        self.sampler = getattr(ebm, name)(step_size=step_size, **options)

    def init(self, x, target):
        """Return the state at x; a velocity starts at 0."""
        return Moving(x, torch.zeros_like(x)) if hasattr(self.sampler, "_v") else State(x)

    def step(self, state, target, *, generator=None):
        """Move every chain by one step."""
        energy = lambda x: -target.log_prob(x)
        if isinstance(state, Moving):
            self.sampler._v = state.momentum
        with Handed(generator):
            new = self.sampler.step(energy, state.x).detach()
        after = Moving(new, self.sampler._v) if isinstance(state, Moving) else State(new)
        return after, Info(energy(new).detach())


class Blackjax:
    """A sampler of blackjax, one chain at a time by `jax.vmap`, with keys drawn from our generator."""

    def __init__(self, step_size, name, moving=False, **options):
        self.step_size, self.name, self.moving, self.options = step_size, name, moving, options
        self.compiled = {}

    def init(self, x, target):
        """Return the state at x; directions are those of `refresh`."""
        return (
            Moving(x, torch.eye(x.shape[1]).to(x)[:1].expand(x.shape)) if self.moving else State(x)
        )

    def refresh(self, state, *, generator=None):
        """Draw directions."""
        u = randn_like(state.x, generator)
        return state._replace(momentum=u / u.norm(dim=1, keepdim=True)) if self.moving else state

    def move(self, target, like):
        """Return the step, compiled, of chains in the dtype of `like`."""
        import blackjax
        import jax

        jax.config.update("jax_enable_x64", True)
        kind = jax.numpy.asarray(like.numpy()).dtype

        def asked(f, shape):
            out = jax.ShapeDtypeStruct(shape, kind)
            back = lambda x: f(torch.tensor(np.asarray(x))).numpy()
            return lambda x: jax.pure_callback(back, out, x, vmap_method="broadcast_all")

        value, slope = asked(target.log_prob, ()), asked(target.score, like.shape[1:])
        log_p = jax.custom_vjp(value)
        log_p.defvjp(lambda x: (value(x), x), lambda x, g: (g * slope(x),))
        settings = {"step_size": self.step_size} | self.options
        if self.name in ("hmc", "nuts"):
            settings["inverse_mass_matrix"] = jax.numpy.ones(like.shape[1])
        algorithm = getattr(blackjax, self.name)(log_p, **settings)

        def step(seed, x, direction):
            key, other = jax.random.split(jax.random.PRNGKey(seed))
            if not self.moving:
                return algorithm.step(key, algorithm.init(x))[0].position, direction
            state = algorithm.init(x, other)._replace(momentum=direction)
            state = algorithm.step(key, state)[0]
            return state.position, state.momentum

        return jax.jit(jax.vmap(step))

    def step(self, state, target, *, generator=None):
        """Move every chain by one step."""
        x, direction = state.x, getattr(state, "momentum", state.x)
        step = self.compiled.setdefault((id(target), x.dtype), None) or self.move(target, x)
        self.compiled[id(target), x.dtype] = step
        seeds = (2**62 * rand_like(x[:, 0].double(), generator)).long()
        new = [
            torch.tensor(np.asarray(v)) for v in step(*(v.numpy() for v in (seeds, x, direction)))
        ]
        after = Moving(*new) if self.moving else State(new[0])
        return after, Info(-target.log_prob(new[0]))


# ---------------------------------------------------------------------------- what is claimed


def flow(order, evaluations, memory=False):
    return Facts(order, evaluations, memory=memory, divides_by_alpha=True)


def noisy(order, evaluations=1):
    return Facts(order, evaluations, draws=1, divides_by_alpha=True)


OF_ENERGY = replace(glp.langevin.ULA.facts, needs_log_prob=True)
"""Langevin steps whose gradient is that of an energy."""

EXACT = replace(UNKNOWN, exact=True)


def of(adapter, name, *, facts=EXACT, **options):
    """Return step size -> kernel, and what is claimed; by default that the law is kept, no more."""
    return partial(adapter, name=name, **options), facts


STARTED = ", from exact first values"
PLAIN = (1, 0, ""), (2, 0, ""), (3, 0, "")

CLAIMS = {
    "azula": {
        "DDPMSampler()": lambda: Azula("DDPMSampler", noisy(1)),
        "EulerSampler()": lambda: Azula("EulerSampler", flow(1, 1)),
        "HeunSampler()": lambda: Azula("HeunSampler", flow(2, 2)),
        "REABSampler(order=2)": lambda: AzulaRun("REABSampler", flow(2, 1, True), order=2),
    },
    "k-diffusion": {
        "sample_euler": lambda: KDiffusion("euler", flow(1, 1)),
        "sample_heun": lambda: KDiffusion("heun", flow(2, 2)),
        "sample_dpm_2": lambda: KDiffusion("dpm_2", flow(2, 2)),
        "sample_euler_ancestral": lambda: KDiffusion("euler_ancestral", noisy(1)),
    },
    "diffusers": {
        'DDPMScheduler(variance_type="fixed_small")': lambda: Diffusers(
            "DDPMScheduler", noisy(1), variance_type="fixed_small", clip_sample=False
        ),
        'DDPMScheduler(variance_type="fixed_large")': lambda: Diffusers(
            "DDPMScheduler", noisy(1), variance_type="fixed_large", clip_sample=False
        ),
        "DDIMScheduler()": lambda: Diffusers("DDIMScheduler", flow(1, 1), clip_sample=False),
        "EulerDiscreteScheduler()": lambda: Diffusers(
            "EulerDiscreteScheduler", flow(1, 1), preserving=False
        ),
        "EulerAncestralDiscreteScheduler()": lambda: Diffusers(
            "EulerAncestralDiscreteScheduler", noisy(1), preserving=False
        ),
        "HeunDiscreteScheduler()": lambda: Diffusers(
            "HeunDiscreteScheduler", flow(2, 2), preserving=False, stages=2
        ),
        **{
            f"DPMSolverMultistepScheduler(solver_order={k}){words}": lambda k=k, n=n: Diffusers(
                "DPMSolverMultistepScheduler", flow(k, 1, k > 1), solver_order=k, exact=n
            )
            for k, n, words in (*PLAIN, (3, 2, STARTED))
        },
        **{
            f"DEISMultistepScheduler(solver_order={k}){words}": lambda k=k, n=n: Diffusers(
                "DEISMultistepScheduler", flow(k, 1, k > 1), solver_order=k, exact=n
            )
            for k, n, words in (*PLAIN, (3, 2, STARTED))
        },
        **{
            f"UniPCMultistepScheduler(solver_order={k}){words}": lambda k=k, n=n: Diffusers(
                "UniPCMultistepScheduler",
                flow(k + 1, 1, True),
                solver_order=k,
                exact=n,
                disable_corrector=list(range(n)),
            )
            for k, n, words in (*PLAIN, (3, 2, STARTED))
        },
    },
    "torchebm": {"LangevinDynamics(step_size=h)": lambda: (TorchEBM, OF_ENERGY)},
    "ebmkit": {
        "LangevinDynamics(step_size=h)": lambda: of(Ebmkit, "LangevinDynamics", facts=OF_ENERGY),
        "PreconditionedLangevin(precond=[1, 1, 1], step_size=h)": lambda: of(
            Ebmkit, "PreconditionedLangevin", precond=torch.ones(1), facts=OF_ENERGY
        ),
        "UnderdampedLangevin(step_size=h)": lambda: of(
            Ebmkit, "UnderdampedLangevin", facts=replace(UNKNOWN, affine=True, order=2, draws=1)
        ),
        "MALA(step_size=h)": lambda: of(Ebmkit, "MALA"),
        "HMC(step_size=h, leapfrog_steps=3)": lambda: of(Ebmkit, "HMC", leapfrog_steps=3),
        "NUTS(step_size=h)": lambda: of(Ebmkit, "NUTS"),
    },
    "blackjax": {
        "mala(log_p, h)": lambda: of(Blackjax, "mala"),
        "hmc(log_p, h, ones, 3)": lambda: of(Blackjax, "hmc", num_integration_steps=3),
        "nuts(log_p, h, ones)": lambda: of(Blackjax, "nuts"),
        "mclmc(log_p, L=1, step_size=h)": lambda: of(
            Blackjax, "mclmc", moving=True, L=1.0, facts=replace(UNKNOWN, exact=False, order=2)
        ),
    },
}


def look(peer):
    """Print what the checks say of each sampler of a library."""
    for call, made in CLAIMS[peer].items():
        sampler = made()
        try:
            found = kept_by(*sampler) if isinstance(sampler, tuple) else laws_of(sampler)
            said = ", ".join(f"{n} {said_of(found[n])}" for n in found if n.startswith(SHOWN))
        except AssertionError as error:
            said = f"FAILS: {error}"
        except Exception as error:  # of the library, or of the adapter
            said = f"not measured, {type(error).__name__}: {str(error)[:160]}"
        print(f"{peer} {version(peer)} {call}: {said}", flush=True)


SHOWN = ("order", "variance at", "covariance on", "change of E x² from", "relative bias")


def said_of(number):
    """A number, with its error bar where it has one."""
    error = f" ± {number.standard_error:.1g}" if number.standard_error else ""
    return f"{number.value:.4g}{error}"


def kept_by(make, facts):
    """What a kernel keeps; its conduct is that of the adapter."""
    report = Report()
    if facts.affine:
        gaussian(report, make, facts)
        kernel_paths.quartic(report, make, facts)
    elif not facts.exact:
        kernel_paths.nearly(report, make, facts)
    kernel_paths.invariance(report, make, facts, None, n=100_000)
    return report


def laws_of(sampler):
    """The laws and orders of a transition; its conduct is that of the adapter."""
    report = Report()
    laws(report, sampler, sampler.facts)
    return report


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=PEERS)
    parser.add_argument("--env", type=Path, default=HERE.parent / ".venv-peers" / "conformance")
    parser.add_argument("--inside", choices=PEERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        look(options.inside)
        return
    for peer in [options.only] if options.only else PEERS:
        folder = options.env / peer
        if not folder.exists():
            install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target"]
            wanted = [f"{peer}=={PEERS[peer]}", *ALSO[peer]]
            subprocess.run([*install, str(folder), *wanted], check=True)
        paths = [str(folder), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
        subprocess.run([sys.executable, __file__, "--inside", peer], env=environment, check=True)


if __name__ == "__main__":
    main()
