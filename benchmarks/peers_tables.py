"""What `benchmarks/tables.py` compares with: levels coded, a spline flow, SDV's copula."""

import inspect
import json
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd

FEW, MOST_LEVELS, NOISE = 5, 40, 0.05


class Coded:
    """A table as numbers and noisy 0s and 1s, and back: on the grid and in the range of each column."""

    def __init__(self, frame, seed):
        self.rng, self.frame = np.random.default_rng(seed), frame
        self.levels, self.grids, parts = {}, {}, []
        for name, column in frame.items():
            if column.dtype.kind in "iuf":
                x = column.to_numpy(float)
                self.grids[name] = grid = self.grid(x[~np.isnan(x)])
                x = np.where(
                    np.isnan(x), np.nanmean(x), x + grid * (self.rng.random(len(x)) - 0.5)
                )
                parts.append((x - np.nanmean(column)) / np.nanstd(column))
                texts = column.isna().map({True: "hole", False: "value"})
            else:
                texts = column.astype(str).where(column.notna(), "hole")
            shares = texts.value_counts()
            kept = [*shares.index[(shares >= FEW) & (np.arange(len(shares)) < MOST_LEVELS)]]
            self.levels[name] = (kept, shares[len(kept) :])
            if len(shares) > 1:
                flags = [texts == level for level in kept]
                flags += [~texts.isin(kept)] * (len(kept) < len(shares))
                parts += [flag + NOISE * self.rng.normal(size=len(frame)) for flag in flags]
        self.z = np.column_stack(parts)

    @staticmethod
    def grid(x):
        for places in range(8):
            cells = x * 10.0**places
            if np.abs(cells - cells.round()).max() < 1e-6:
                whole = cells.round().astype(np.int64)
                return float(np.gcd.reduce(whole - whole.min())) * 10.0**-places
        return 0.0

    def decode(self, z):
        out, at = {}, 0
        for name, column in self.frame.items():
            if number := column.dtype.kind in "iuf":
                x = z[:, at] * np.nanstd(column) + np.nanmean(column)
                least, grid, at = np.nanmin(column), self.grids[name], at + 1
                x = least + grid * ((x - least) / grid).round() if grid else x
                x = x.clip(least, np.nanmax(column))
            kept, rare = self.levels[name]
            k = len(kept) + (len(rare) > 0)
            texts = np.array(kept * len(z))
            if k > 1:
                texts = np.array([*kept, "rare"], dtype=object)[z[:, at : at + k].argmax(1)]
                at += k
            if len(rare):
                drawn = self.rng.choice(rare.index, len(z), p=rare / rare.sum())
                texts = np.where(texts == "rare", drawn, texts)
            values = x if number else texts
            out[name] = pd.Series(values).mask(pd.Series(texts == "hole"))
        return pd.DataFrame(out)


def fitted_flow(z, seed, steps=2000):
    import torch
    import zuko

    torch.manual_seed(seed)
    x = torch.as_tensor(z[np.random.default_rng(seed).permutation(len(z))], dtype=torch.float32)
    aside, x = x[: len(x) // 10], x[len(x) // 10 :]
    flow = zuko.flows.NSF(x.shape[1], transforms=3, hidden_features=(64, 64))
    optimizer = torch.optim.Adam(flow.parameters(), 1e-3)
    best, kept = np.inf, None
    for step in range(steps):
        loss = -flow().log_prob(x[torch.randint(len(x), (256,))]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 99:
            with torch.no_grad():
                now = -float(flow().log_prob(aside).mean())
            if now < best:
                best, kept = now, {k: v.clone() for k, v in flow.state_dict().items()}
            elif step > 500 and now > best + 0.5:
                break
    flow.load_state_dict(kept)
    return flow


def flow(train, n, seed):
    import torch

    coded = Coded(train, seed)
    model = fitted_flow(coded.z, seed)
    with torch.no_grad():
        return coded.decode(model().sample((n,)).numpy().astype(float))


def flow_nats(train, held, seed):
    import torch

    model = fitted_flow(train, seed)
    with torch.no_grad():
        return model().log_prob(torch.as_tensor(held, dtype=torch.float32)).numpy()


def copula(train, n):
    from sdv.metadata import Metadata
    from sdv.single_table import GaussianCopulaSynthesizer

    tables = {"table": train}
    model = GaussianCopulaSynthesizer(Metadata.detect_from_dataframes(tables))
    model.fit(tables)
    return model.sample(n)["table"]


def copula_nats(train, held):
    """Log-density of the copula with SDV's margins, beta laws."""
    from copulas.multivariate import GaussianMultivariate
    from copulas.univariate import BetaUnivariate
    from scipy.stats import multivariate_normal, norm

    model = GaussianMultivariate(distribution=BetaUnivariate)
    model.fit(pd.DataFrame(train, columns=[f"x{i}" for i in range(train.shape[1])]))
    margins = model.univariates
    u = np.column_stack([m.cdf(held[:, j]) for j, m in enumerate(margins)]).clip(1e-12, 1 - 1e-12)
    with np.errstate(divide="ignore"):
        own = sum(np.log(m.pdf(held[:, j])) for j, m in enumerate(margins))
    q = norm.ppf(u)
    correlation = np.asarray(model.correlation)
    joint = multivariate_normal(cov=correlation, allow_singular=True).logpdf(q)
    return own + joint - norm.logpdf(q).sum(1)


if __name__ == "__main__":
    folder, n, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    np.random.seed(seed)  # noqa: NPY002  SDV draws from it
    frame, x = pd.read_csv(folder / "train.csv"), np.load(folder / "x.npz")
    start = time.process_time()
    copula(frame, n).to_csv(folder / "new.csv", index=False)
    seconds = time.process_time() - start
    lines = len(inspect.getsource(copula).splitlines())
    (folder / "said.json").write_text(json.dumps({"seconds": seconds, "lines": lines}))
    np.save(folder / "nats.npy", copula_nats(x["train"], x["held"]))
