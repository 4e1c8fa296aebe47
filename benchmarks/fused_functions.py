"""Functions of PyTorch operations: a step of ULA by PyTorch beside the fused engine.

    python benchmarks/fused_functions.py [--chains 4]

The ten posteriors of `posterior_models`, and a mixture written by hand. One thread, float64; CPU
microseconds per step of all chains, the least of five interleaved rounds. A run on the engine
translates its function first; what that takes is measured by a run of one step and taken off.
"""

import argparse
import time
import warnings

import posterior_models
import torch

import gradlogp as glp
from gradlogp.langevin import ULA, fused

ROUNDS, STEPS = 5, 400


def cases():
    """Return name, log-density and dimension."""
    for f in posterior_models.TEN:
        posterior = f(posterior_models.load(f.__name__).data)
        yield f.__name__, posterior.log_prob, posterior.dim
    means = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    square = lambda x: (x[:, None] - means).square().sum(2)
    yield "mixture of 5, by hand", lambda x: torch.logsumexp(-0.5 * square(x), 1), 3


def seconds(kernel, target, x0, n_steps, engine):
    """Return the CPU seconds of a run that keeps its last draw."""
    g = torch.Generator().manual_seed(1)
    began = time.thread_time()
    glp.run(kernel, target, x0, n_steps, n_steps - 1, generator=g, engine=engine)
    return time.thread_time() - began


def main():
    """Print a row for each density."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chains", type=int, default=4)
    n = parser.parse_args().chains
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    warnings.filterwarnings("ignore", "", RuntimeWarning)
    kernel = ULA(1e-9)
    print("| density | d | operations | numbers | PyTorch, µs | fused, µs | ratio |")
    print("|---|---|---|---|---|---|---|")
    for name, log_prob, d in cases():
        target = glp.as_target(log_prob=log_prob, event_shape=(d,))
        x0 = 0.1 * torch.randn(n, d, generator=torch.Generator().manual_seed(0))
        reason = fused.objection(kernel, target, x0)
        if reason is not None:
            print(f"| {name} | {d} | refused: {reason} | | | | |")
            continue
        program = fused.prepared(kernel, target, x0).program
        steps = max(1000, min(50_000, 50_000_000 // (program.size * n)))
        plain = ours = float("inf")
        seconds(kernel, target, x0, 1, "fused")
        for _ in range(ROUNDS):
            plain = min(plain, seconds(kernel, target, x0, STEPS, "torch") / STEPS)
            before = seconds(kernel, target, x0, 1, "fused")
            ours = min(ours, (seconds(kernel, target, x0, steps, "fused") - before) / steps)
        print(
            f"| {name} | {d} | {program.calls} | {program.size:,} | {1e6 * plain:.3g} | "
            f"{1e6 * ours:.3g} | {plain / ours:.3g} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
