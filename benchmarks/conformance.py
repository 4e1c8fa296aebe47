"""Samplers of other libraries under the public checks: what `glp.check` says of them.

    python benchmarks/conformance.py [--only azula] [--env FOLDER]

Each library is installed by pip, with the few packages that it imports, into a folder of its own
under `--env`, and is looked at in a process of its own, beside this environment's PyTorch. A sampler
becomes a transition or a kernel by an adapter of a few lines. It is held to the order that its
documentation gives; what fails is printed with the number, the right number and the likeliest mistake.
A failure is a statement about that version and that call, and the adapter may be at fault: read it
first.
"""

import argparse
import dataclasses
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch.overrides import TorchFunctionMode

import gradlogp as glp
from gradlogp.core import randn_like
from gradlogp.diffusion.transitions.facts import Facts

HERE = Path(__file__).parent
PEERS = {"azula": "0.11.1", "k-diffusion": "0.1.1.post1", "torchebm": "0.8.9"}
ALSO = {"azula": ("einops", "tqdm"), "k-diffusion": ("torchdiffeq", "tqdm"), "torchebm": ("tqdm",)}
"""What they import here beside PyTorch."""


class Handed(TorchFunctionMode):
    """Where the library draws normal numbers, it is handed those of a source."""

    def __init__(self, generator):
        super().__init__()
        self.generator = generator

    def __torch_function__(self, f, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if f is torch.randn_like:
            return randn_like(args[0], self.generator)
        if f is torch.randn:
            shape = kwargs.get("size", args[0] if isinstance(args[0], tuple | list) else args)
            like = torch.empty(tuple(shape), dtype=kwargs.get("dtype"))
            return randn_like(like, self.generator)
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


class State(NamedTuple):
    """Positions."""

    x: torch.Tensor


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


# ---------------------------------------------------------------------------- what is claimed


def flow(order, evaluations, memory=False):
    return Facts(order, evaluations, memory=memory, divides_by_alpha=True)


def noisy(order, evaluations=1):
    return Facts(order, evaluations, draws=1, divides_by_alpha=True)


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
    "torchebm": {"LangevinDynamics(step_size=h)": lambda: TorchEBM},
}


def look(peer):
    """Print what the checks say of each sampler of a library."""
    for call, made in CLAIMS[peer].items():
        sampler = made()
        try:
            if isinstance(sampler, type):
                # of an energy, whose gradient needs its value
                facts = dataclasses.replace(glp.langevin.ULA.facts, needs_log_prob=True)
                found = glp.check.check_kernel(sampler, facts=facts)
            else:
                found = laws_of(sampler)
            names = [n for n in found if n.startswith(("order", "variance at", "covariance on"))]
            said = ", ".join(f"{name} {found[name].value:.4g}" for name in names)
        except AssertionError as error:
            said = f"FAILS: {error}"
        except Exception as error:  # of the library, or of the adapter
            said = f"not measured, {type(error).__name__}: {str(error)[:160]}"
        print(f"{peer} {version(peer)} {call}: {said}", flush=True)


def laws_of(sampler):
    """The laws and orders of a transition; its conduct is that of the adapter."""
    from gradlogp.check.conformance.report import Report
    from gradlogp.check.conformance.transition_laws import laws

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
