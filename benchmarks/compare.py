"""How often does `compare` refuse samples of exactly the right law, and how often damaged ones?

    python benchmarks/compare.py [--seeds 200] [--size] [--power] [--peers]

The law has columns of several shapes: normal, exponential, heavier tails than normal, log-normal,
integers, uniform, bimodal, joined by a normal copula. There are n samples, n held-out and n training
rows. `--peers` adds the results of a bare classifier (scikit-learn's gradient-boosted trees, accuracy
in 5-fold cross-validation) and of `sdmetrics`, if it is installed, on the same rows.
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from gradlogp.check.compare import compare

Damage = Callable[[Tensor, Tensor, torch.Generator], Tensor]


def draw(n: int, d: int, g: torch.Generator) -> Tensor:
    """Return n rows of the law."""
    index = torch.arange(d)
    corr = 0.6 ** (index[:, None] - index).abs().double()
    z = torch.randn(n, d, dtype=torch.float64, generator=g) @ torch.linalg.cholesky(corr).T
    u = torch.special.ndtr(z)
    shapes: list[Callable[[Tensor, Tensor], Tensor]] = [
        lambda z, u: z,
        lambda z, u: -torch.log1p(-u.clamp(max=1 - 1e-15)),
        lambda z, u: z / ((1 + 0.25 * z.square()) ** -0.5),  # heavier tails than normal
        lambda z, u: torch.exp(3 * z),
        lambda z, u: (3 + 2 * z).round().clamp(min=0),
        lambda z, u: u,
        lambda z, u: z + 3 * z.sign(),
    ]
    return torch.stack([shapes[j % len(shapes)](z[:, j], u[:, j]) for j in range(d)], 1)


def _zeroed(x: Tensor, train: Tensor, g: torch.Generator) -> Tensor:
    x[:, 0] = 0.0
    return x


def _narrow(x: Tensor, train: Tensor, g: torch.Generator) -> Tensor:
    x[:, 0] *= 0.75
    return x


def _shifted(x: Tensor, train: Tensor, g: torch.Generator) -> Tensor:
    x[:, 0] += 0.2
    return x


def _decorrelated(x: Tensor, train: Tensor, g: torch.Generator) -> Tensor:
    x[:, 0] = x[torch.randperm(len(x), generator=g), 0]
    return x


def _whole(x: Tensor, train: Tensor, g: torch.Generator) -> Tensor:
    x[:, 0] = x[:, 0].round()
    return x


def _copies(x: Tensor, train: Tensor, g: torch.Generator) -> Tensor:
    k = len(x) // 20
    x[:k] = train[torch.randperm(len(train), generator=g)[:k]]
    return x


DAMAGES: dict[str, Damage] = {
    "one column zeroed": _zeroed,
    "one column × 0.75": _narrow,
    "one column shifted by 0.2 sd": _shifted,
    "two columns decorrelated": _decorrelated,
    "whole numbers where there were none": _whole,
    "5 % copies of training rows": _copies,
}


def modes(n: int, d: int, g: torch.Generator, dropped: bool) -> Tensor:
    """Return rows of which 5 % are a mode of their own, inside the range of every column."""
    x = torch.randn(n, d, dtype=torch.float64, generator=g)
    x = x + 3 * torch.where(torch.rand(n, 1, generator=g) < 0.5, 1.0, -1.0)
    few = torch.rand(n, generator=g) < (0.0 if dropped else 0.05)
    signs = 1.0 - 2.0 * (torch.arange(d) % 2).double()
    x[few] = torch.randn(int(few.sum()), d, dtype=torch.float64, generator=g) * 0.5 + 3 * signs
    return x


def classes(n: int, d: int, g: torch.Generator, wrong: bool) -> Tensor:
    """Return rows of the law with a column of three classes, of rates 0.5, 0.3, 0.2, or wrong ones."""
    rates = torch.tensor([0.4, 0.35, 0.25] if wrong else [0.5, 0.3, 0.2])
    k = torch.multinomial(rates, n, replacement=True, generator=g)
    return torch.cat([draw(n, d - 1, g), k.double()[:, None]], 1)


def rows(name: str, n: int, d: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return samples with that damage, held-out rows and training rows."""
    g = torch.Generator().manual_seed(seed)
    if name == "a mode of 5 % dropped":
        return modes(n, d, g, True), modes(n, d, g, False), modes(n, d, g, False)
    if name == "wrong class rates (0.4, 0.35, 0.25 for 0.5, 0.3, 0.2)":
        return classes(n, d, g, True), classes(n, d, g, False), classes(n, d, g, False)
    x, held, train = (draw(n, d, g) for _ in range(3))
    return (DAMAGES[name](x, train, g) if name else x), held, train


NAMES = (
    *list(DAMAGES)[:5],
    "a mode of 5 % dropped",
    list(DAMAGES)[5],
    "wrong class rates (0.4, 0.35, 0.25 for 0.5, 0.3, 0.2)",
)


def refused(name: str, n: int, d: int, seed: int) -> tuple[bool, tuple[str, ...]]:
    """Compare, and return whether the verdict is not ok, and its reasons."""
    x, held, train = rows(name, n, d, seed)
    g = torch.Generator().manual_seed(seed + 1)
    verdict = compare(x, held, train, baselines=False, generator=g).verdict
    return not verdict.ok, verdict.reasons


def bare_classifier(name: str, n: int, d: int, seed: int) -> bool:
    """Return whether cross-validated accuracy is above ½ at 5 %, decisions taken as independent."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.model_selection import cross_val_predict

    x, held, _ = rows(name, n, d, seed)
    data, labels = torch.cat([x, held]).numpy(), np.repeat([0, 1], [len(x), len(held)])
    order = np.random.default_rng(seed).permutation(len(data))
    guess = cross_val_predict(
        HistGradientBoostingClassifier(max_iter=60, max_leaf_nodes=15, random_state=seed),
        data[order], labels[order], cv=5,
    )  # fmt: skip
    accuracy = float((guess == labels[order]).mean())
    return (accuracy - 0.5) * 2 * math.sqrt(len(data)) > 1.645


def sdmetrics_score(name: str, n: int, d: int, seed: int) -> float:
    """Return the overall quality score of sdmetrics, in [0, 1]; it has no test and no error."""
    import pandas as pd
    from sdmetrics.reports.single_table import QualityReport

    x, held, _ = rows(name, n, d, seed)
    real, ours = (pd.DataFrame(v.numpy(), columns=[f"x{j}" for j in range(d)]) for v in (held, x))
    kinds = {"columns": {c: {"sdtype": "numerical"} for c in real}}
    if "class" in name:
        kinds["columns"][f"x{d - 1}"] = {"sdtype": "categorical"}
        for frame in (real, ours):
            frame[f"x{d - 1}"] = frame[f"x{d - 1}"].astype(int).astype(str)
    report = QualityReport()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report.generate(real, ours, kinds, verbose=False)
    return float(report.get_score())


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=200)
    for flag in ("size", "power", "peers"):
        parser.add_argument(f"--{flag}", action="store_true")
    a = parser.parse_args()
    torch.set_num_threads(1)
    if a.size or not (a.power or a.peers):
        print("| samples of the right law | n = 200 | n = 2,000 |\n|---|---|---|")
        for d in (2, 10, 60):
            cells = []
            for n in (200, 2000):
                began = time.process_time()
                found = [refused("", n, d, 1000 * k) for k in range(a.seeds)]
                each = (time.process_time() - began) / a.seeds
                cells.append(
                    f"{sum(f for f, _ in found)} of {a.seeds} refused ({each:.1f} s each)"
                )
                for _, reasons in [f for f in found if f[0]]:
                    print("   ", reasons[0], flush=True)
            print(f"| d = {d} | {' | '.join(cells)} |", flush=True)
    if a.power or a.peers:
        seeds = range(min(a.seeds, 50))
        print("| damage, d = 10 | compare, n = 200 | 500 | 2,000 |", end="")
        print(" bare classifier, 500 | 2,000 | sdmetrics, 2,000 |" if a.peers else "")
        print("|---|---|---|---|" + "---|---|---|" * a.peers)
        for name in (*NAMES, ""):
            share = lambda found: f"{np.mean(list(found)):.2f}"
            cells = [share(refused(name, n, 10, k)[0] for k in seeds) for n in (200, 500, 2000)]
            if a.peers:
                for n in (500, 2000):
                    cells.append(share(bare_classifier(name, n, 10, k) for k in seeds))
                scores = [sdmetrics_score(name, 2000, 10, k) for k in range(5)]
                cells.append(f"{np.mean(scores):.3f}")
            print(f"| {name or 'none'} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
