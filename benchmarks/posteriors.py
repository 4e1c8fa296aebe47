r"""Ten posteriors with reference answers: `glp.sample` at its defaults beside blackjax.

Every posterior of `posterior_models.py` is sampled with four seeds, 4 chains × 1,000 draws after
1,000, in float64 on one thread, each run in a process of its own: by `glp.sample`, and by blackjax's
NUTS (diagonal and dense metric) and MCLMC, from U(−2, 2) in the same unconstrained coordinates. For
each: are mean and standard deviation of every parameter right (`posterior_models.judge`), does the
verdict say so, the least bulk ESS for 1,000 gradients of the draws, and CPU seconds from a
log-density to the draws, compiling included and imports not. Machines are shared: ratios are of CPU
seconds of the process; wall seconds stand beside them. Gradients are counted for each chain.

    python benchmarks/posteriors.py [--only kidiq,sblrc] [--seeds 2] [--no-peers]

Peers run in an environment that is made where there is none (`--env`), by `peers_posteriors.py`;
one that takes over 300 CPU seconds is stopped and counts as that. Their results are kept in
`posteriors_peers.json`, and what is there is not run again: delete the file, or rows of it. The
tables are written to `posteriors.md`, all numbers to `posteriors.json`.

A posterior of your own: `--own FOLDER` with NAME.json (`data` and `reference`, as those here),
models.py with a function NAME(data) as in `posterior_models.py`, and, for the peers, peers.py with one
as in `peers_posteriors.py`.
"""

import argparse
import importlib.util
import json
import math
import multiprocessing
import os
import platform
import subprocess
import sys
import tempfile
import time
import venv
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path
from statistics import median

import numpy as np
import torch

import gradlogp as glp

sys.path.insert(0, str(Path(__file__).parent))
import posterior_models

HERE = Path(__file__).parent
PACKAGES = ("blackjax==1.7.1", "jax")
METHODS = ("NUTS diagonal", "NUTS dense", "MCLMC")
OURS, NUTS = "gradlogp", METHODS[:2]
CHAINS, DRAWS = 4, 1000
LIMIT, STOPPED = 300, 75  # CPU seconds of a peer, and how one that is stopped ends


# ---------------------------------------------------------------------------- one run


class Counted:
    """A target that counts rows: those with a gradient, and those with a value alone."""

    def __init__(self, target, dim, counts=None):
        self.target, self.event_shape = target, torch.Size([dim])
        self.counts = {"gradients": 0, "values": 0} if counts is None else counts

    def recorded(self):
        """Return the same with recorded gradients, which a run asks for."""
        return Counted(self.target.recorded(), *self.event_shape, self.counts)

    def log_prob(self, z):
        """Return log p(z), `(B,)`."""
        self.counts["values"] += len(z)
        return self.target.log_prob(z)

    def score(self, z):
        """Return ∇ log p(z), shape of z."""
        self.counts["gradients"] += len(z)
        return self.target.score(z)

    def log_prob_and_score(self, z):
        """Return both."""
        self.counts["gradients"] += len(z)
        return self.target.log_prob_and_score(z)


def model_of(name, own):
    """The posterior and its reference."""
    folders, source = posterior_models.FOLDERS, posterior_models
    if own and (own / f"{name}.json").exists():
        folders, source = (own,), module_at(own / "models.py")
    data, reference = posterior_models.load(name, folders)
    return getattr(source, name)(data), reference


def module_at(path):
    spec = importlib.util.spec_from_file_location(f"own_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def ours(name, seed, own):
    """A row of `glp.sample`; runs in a process of its own."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    sample = glp.sample  # imported here, before the clock starts, as the peers' modules are
    cpu, wall = time.process_time(), time.perf_counter()
    posterior, reference = model_of(name, own)
    target = Counted(glp.as_target(log_prob=posterior.log_prob), posterior.dim)
    marks = []  # steps done of how many, gradients, CPU seconds

    def progress(done, total):
        marks.append((done, total, target.counts["gradients"], time.process_time()))

    generator = torch.Generator().manual_seed(seed)
    try:
        chain = sample(target, generator=generator, progress=progress)
    except (ValueError, ArithmeticError, RuntimeError) as error:
        return {**label(name, OURS, seed), "refused": str(error), "right": False, "ok": False}
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    total = marks[-1][1]
    began = next(mark for mark in marks if mark[0] >= total - DRAWS)  # where the draws begin
    draws = posterior.constrain(chain.draws.flatten(0, 1)).unflatten(0, chain.draws.shape[:2])
    start = time.process_time()
    verdict = chain.verdict
    return {
        **label(name, OURS, seed),
        "ok": verdict.ok,
        "reasons": list(verdict.reasons),
        **judged(draws, reference, target.counts["gradients"] - began[2], marks[-1][3] - began[3]),
        "gradients_warm": began[2],
        "values": target.counts["values"],
        "cpu": cpu,
        "wall": wall,
        "cpu_verdict": time.process_time() - start,
    }


def label(name, method, seed):
    return {"posterior": name, "method": method, "seed": seed}


def judged(draws, reference, gradients, seconds):
    result = posterior_models.judge(draws, reference)
    return {
        **result._asdict(),
        "gradients": gradients,
        "seconds_draws": seconds,
        "ess_per_1000_gradients": 1000 * result.ess / gradients,
        "ess_per_second": result.ess / seconds,
    }


def peer(name, method, seed, own, python):
    """A row of blackjax, or None where the peer has no such model."""
    worker = [python, HERE / "peers_posteriors.py", name, method, str(seed)]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run.npz"
        run = subprocess.run(
            [*worker, out, "--limit", str(LIMIT), *(["--own", own] if own else [])],
            capture_output=True,
            text=True,
            check=False,
        )
        if run.returncode == STOPPED:
            return {**label(name, method, seed), "stopped": LIMIT, "right": False, "cpu": LIMIT}
        if run.returncode:
            raise RuntimeError(f"{name}, {method}: {run.stderr.strip()}")
        return peer_row(out, name, method, seed, own)


def peer_row(path, name, method, seed, own):
    """The row of a file that the worker wrote.

    Raises:
        ValueError: If its log-density is not ours up to a constant.
    """
    file = np.load(path)
    posterior, reference = model_of(name, own)
    mine, theirs = posterior.log_prob(torch.as_tensor(file["starts"])).numpy(), file["log_prob"]
    if not np.ptp(mine - theirs) <= 1e-9 * np.abs(mine).max() + 1e-9:
        raise ValueError(f"{name}: log p is {mine} here and {theirs} at the peer")
    number = {key: file[key].item() for key in file if file[key].ndim == 0}
    draws = torch.as_tensor(file["draws"])
    return {
        **label(name, method, seed),
        **judged(draws, reference, number["gradients"], number["seconds_draws"]),
        **{key: number[key] for key in ("gradients_warm", "divergences", "cpu", "wall")},
    }


def environment_of(folder):
    """The Python of the peers' environment, made where there is none."""
    python = folder / "bin" / "python"
    if not python.exists():
        print(f"making {folder} with {', '.join(PACKAGES)}", flush=True)
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *PACKAGES], check=True)
    return str(python)


# ---------------------------------------------------------------------------- tables

HEAD = (
    "| posterior | method | right | verdict ok | ESS / 1,000 gradients | gradients: warm-up | draws "
    "| ESS/s of draws | CPU s | wall s | worst mean, in errors | worst sd | R-hat |\n"
    "|" + "---|" * 13
)


def middle(rows, key):
    """The median over the runs that have such a number."""
    values = [row[key] for row in rows if row.get(key) is not None]
    return median(values) if values else math.nan


def line(rows):
    first = rows[0]
    stopped = sum("stopped" in row or "refused" in row for row in rows)
    right = f"{sum(row['right'] for row in rows)} of {len(rows)}"
    right += f", {stopped} without an end" if stopped else ""
    ok = f"{sum(row['ok'] for row in rows)} of {len(rows)}" if "ok" in first else ""
    show = lambda key, form: "–" if math.isnan(v := middle(rows, key)) else f"{v:{form}}"
    return (
        f"| {first['posterior']} | {first['method']} | {right} | {ok} "
        f"| {show('ess_per_1000_gradients', '.3g')} | {show('gradients_warm', ',.0f')} "
        f"| {show('gradients', ',.0f')} | {show('ess_per_second', ',.0f')} "
        f"| {show('cpu', '.1f')} | {show('wall', '.1f')} | {show('mean_errors', '.1f')} "
        f"| {show('sd_error', '.1%')} | {show('r_hat', '.3f')} |"
    )


def ratios(by, names):
    """For each posterior: ESS for a gradient over the better of NUTS, CPU seconds over the faster."""
    for name in names:
        mine = by.get((name, OURS))
        peers = [by[name, method] for method in NUTS if (name, method) in by]
        if mine and peers:
            ess = [middle(rows, "ess_per_1000_gradients") for rows in peers]
            ess = [value for value in ess if not math.isnan(value)]
            best = max(ess) if ess else math.nan
            cpu = min(middle(rows, "cpu") for rows in peers)
            yield {
                "posterior": name,
                "ess_ratio": middle(mine, "ess_per_1000_gradients") / best,
                "cpu_ratio": middle(mine, "cpu") / cpu,
            }


def marks_of(mine, ratio_rows, names):
    """What was aimed at, what was seen, and whether it was reached."""
    right = [row for row in mine if row["right"]]
    ok_right = sum(row["ok"] for row in right)
    ok_wrong = sum(row["ok"] and not row["right"] for row in mine)
    yield "runs that are right", f"{len(right)} of {len(mine)}", len(right) >= 0.95 * len(mine)
    yield "wrong runs that the verdict calls ok", str(ok_wrong), ok_wrong == 0
    share = f"{ok_right} of {len(right)}"
    yield "right runs that it calls ok (90 %)", share, ok_right >= 0.9 * len(right) > 0
    if ratio_rows:
        more = sum(row["ess_ratio"] >= 2 for row in ratio_rows)
        share = f"{more} of {len(ratio_rows)}"
        yield "ESS a gradient ≥ 2 × the better NUTS (8 of 10)", share, more >= 0.8 * len(names)
        fast = sum(row["cpu_ratio"] <= 0.2 for row in ratio_rows)
        share = f"{fast} of {len(ratio_rows)}"
        yield "CPU seconds ≤ 1/5 of the faster NUTS (7 of 10)", share, fast >= 0.7 * len(names)


def page(environment, by, names, ratio_rows, marks):
    """The Markdown page."""
    facts = ", ".join(f"{key} {value}" for key, value in environment.items())
    table = [
        line(by[name, method])
        for name in names
        for method in (OURS, *METHODS)
        if (name, method) in by
    ]
    lines = [
        "# Ten posteriors with reference answers", "",
        "`python benchmarks/posteriors.py`: 4 chains × 1,000 draws after 1,000, float64, one thread, "
        "medians over seeds. CPU seconds are those of the process, compiling included.", "",
        f"{facts}.", "", HEAD, *table,
    ]  # fmt: skip
    if ratio_rows:
        lines += [
            "",
            "| posterior | ESS a gradient, over the better NUTS | CPU s, over the faster |",
        ]
        lines += ["|---|---|---|"]
        lines += [
            f"| {r['posterior']} | {r['ess_ratio']:.3g} | {r['cpu_ratio']:.2g} |"
            for r in ratio_rows
        ]
    lines += ["", "| mark | seen | reached |", "|---|---|---|"]
    lines += [
        f"| {what} | {seen} | {'yes' if reached else 'no'} |" for what, seen, reached in marks
    ]
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="names with commas between them; all by default")
    parser.add_argument("--seeds", type=int, default=4, help="runs of each posterior")
    parser.add_argument("--peers", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--env", type=Path, default=HERE.parent / ".venv-peers")
    parser.add_argument("--own", type=Path, help="a folder with posteriors of your own")
    parser.add_argument("--out", type=Path, default=HERE / "posteriors.json")
    options = parser.parse_args()
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")  # of each run
    own = options.own and options.own.resolve()
    names = [model.__name__ for model in posterior_models.TEN]
    names += sorted(path.stem for path in own.glob("*.json")) if own else []
    names = options.only.split(",") if options.only else names
    seeds = range(options.seeds)

    environment = {
        "gradlogp": version("gradlogp"), "torch": torch.__version__,
        "python": platform.python_version(), "machine": platform.machine(),
        "cores": os.cpu_count(), "threads": 1, "seeds": options.seeds,
    }  # fmt: skip
    cache = options.out.with_name("posteriors_peers.json")
    known = json.loads(cache.read_text()) if cache.exists() else {"environment": {}, "rows": []}
    if options.peers:
        run_peers(known, names, seeds, own, options.env, cache)
    environment |= known["environment"]
    print(", ".join(f"{key} {value}" for key, value in environment.items()))
    print(HEAD, flush=True)
    context = multiprocessing.get_context("spawn")
    rows = [row for row in known["rows"] if row["posterior"] in names and row["seed"] in seeds]
    by = {}
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:
        for name in names:
            by[name, OURS] = [pool.submit(ours, name, seed, own).result() for seed in seeds]
            for method in METHODS:
                if found := [r for r in rows if (r["posterior"], r["method"]) == (name, method)]:
                    by[name, method] = found
            for method in (OURS, *METHODS):
                if (name, method) in by:
                    print(line(by[name, method]), flush=True)
    mine = [row for name in names for row in by[name, OURS]]
    ratio_rows = list(ratios(by, names))
    marks = list(marks_of(mine, ratio_rows, names))
    for row in mine:
        if not row["right"] or not row["ok"]:
            why = row.get("refused") or "; ".join(row["reasons"])
            print(f"{row['posterior']}, seed {row['seed']}: right {row['right']}; {why}")
    result = {"environment": environment, "rows": mine, "ratios": ratio_rows, "marks": marks}
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    text = page(environment, by, names, ratio_rows, marks)
    options.out.with_suffix(".md").write_text(text)
    print(text[text.index("| mark") :])


def run_peers(known, names, seeds, own, env, cache):
    """Run what the cache lacks, and write it after every run."""
    python = environment_of(env)
    installed = ("import importlib.metadata as m; print(m.version('blackjax'), m.version('jax'))",)
    said = subprocess.run([python, "-c", *installed], capture_output=True, text=True, check=True)
    known["environment"] = dict(zip(("blackjax", "jax"), said.stdout.split(), strict=True))
    there = {(row["posterior"], row["method"], row["seed"]) for row in known["rows"]}
    for seed in seeds:
        for name in names:
            for method in METHODS:
                if (name, method, seed) in there:
                    continue
                known["rows"].append(row := peer(name, method, seed, own, python))
                print(line([row]), flush=True)
                cache.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
