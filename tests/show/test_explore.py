"""The explorer: its mathematics in Node against the library's, its tables, its page, a real browser."""

import json
import math
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from browser import CHROMIUM, browser
from support import close, read_page

import gradlogp as glp
from gradlogp import ExactScore, GaussianMixture
from gradlogp.core import Injected
from gradlogp.diffusion import AnnealedLangevin, ProbabilityFlow, ReverseSDE
from gradlogp.langevin.kernels import BAOAB, MALA, ULA
from gradlogp.noise.schedules import VE, VP
from gradlogp.show import explore as write_page
from gradlogp.show import planes

SCRIPT = Path(glp.show.__file__).parent / "explore.js"
NODE = shutil.which("node")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
needs_node = pytest.mark.skipif(NODE is None, reason="needs Node.js")

MEANS = [[-2.0, 0.3], [1.5, -0.5], [0.0, 2.0]]
COVS = [[[0.5, 0.2], [0.2, 0.4]], [[0.3, 0.0], [0.0, 0.9]], [[0.2, -0.05], [-0.05, 0.2]]]
SIGMA, LOWER = 0.7, 0.4


@pytest.fixture
def law():
    return GaussianMixture([0.5, 0.3, 0.2], torch.tensor(MEANS), torch.tensor(COVS))


def spec_of(law):
    covs = [[c[0][0], c[0][1], c[1][1]] for c in law.covs.tolist()]
    return {"weights": law.weights.tolist(), "means": law.means.tolist(), "covs": covs}


def node(body, **given):
    """Run JavaScript that has the names of `given` and E, the mathematics of the page."""
    start = f"const E = require({json.dumps(str(SCRIPT))}); let given = '';"
    names = ", ".join(given)
    code = f"""{start}
    process.stdin.on('data', (part) => given += part).on('end', () => {{
      const {{ {names} }} = JSON.parse(given);
      const at = (level, x) => {{ const all = []; for (let i = 0; i < x.length; i += 2) {{
        const out = new Float64Array(3); level.evaluate(x[i], x[i + 1], out); all.push([...out]); }}
        return all; }};
      const fixed = (...rows) => ({{ normal: () => Float64Array.from(rows.shift()),
        uniform: () => Float64Array.from(rows.shift()) }});
      const answer = (() => {{ {body} }})();
      console.log(JSON.stringify(answer));
    }});"""
    done = subprocess.run(
        [str(NODE), "-e", code],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def flat(x):
    return x.flatten().tolist()


# ---------------------------------------------------------------------------- fields


@needs_node
@pytest.mark.parametrize("sigma", [0.0, 0.1, 3.0])
def test_a_mixture_is_that_of_the_library(law, generator, sigma):
    x = 4 * torch.randn(50, 2, generator=generator)
    x[0] = torch.tensor([200.0, -300.0])  # where every component underflows
    got = torch.tensor(
        node("return at(E.mixture(spec).at(sigma), x);", spec=spec_of(law), sigma=sigma, x=flat(x))
    )
    noised = law.noised(1.0, sigma)
    close(got[:, 0], noised.log_prob(x), 1e-10)
    close(got[:, 1:], noised.score(x), 1e-10)


@needs_node
def test_responsibilities(law, generator):
    x = 2 * torch.randn(20, 2, generator=generator)
    body = """const level = E.mixture(spec).at(sigma), out = new Float64Array(3), all = [];
    for (let i = 0; i < x.length; i += 2) {
      level.responsibilities(x[i], x[i + 1], out); all.push([...out]);
    }
    return all;"""
    got = torch.tensor(node(body, spec=spec_of(law), sigma=SIGMA, x=flat(x)))
    close(got, law.noised(1.0, SIGMA).responsibilities(x), 1e-12)


@needs_node
def test_a_table_is_read_as_in_python(law, generator):
    window, sigmas = planes.Window((0.2, 0.4), 4.0), (0.2, 0.5, 1.25, 3.125, 7.8125)
    field = lambda x, s: torch.cat(
        [law.noised(1.0, s).score(x), law.noised(1.0, s).log_prob(x)[:, None]], 1
    )
    table = planes.tabulate(field, window, sigmas, 24)
    body = """const E_ = E.field(spec); return sigmas.map((s) => at(E_.at(s), x));"""
    for_page = [0.2, 0.3, 1.1, 5.0, 7.8125]
    u = 2 * torch.rand(40, 2, generator=generator) - 1
    x = torch.tensor(window.center) + 4.7 * u  # inside the grid of every level
    got = torch.tensor(node(body, spec=table.spec(), sigmas=for_page, x=flat(x)))
    for values, sigma in zip(got, for_page, strict=True):
        close(values[:, [1, 2, 0]], table(x, sigma), 1e-9)


@needs_node
def test_beyond_a_table_the_score_is_that_of_its_border(law):
    field = lambda x, s: law.noised(1.0, s).score(x)
    table = planes.tabulate(field, planes.Window((0.0, 0.0), 4.0), (1.0,), 24)
    got = node("return at(E.field(spec).at(1), x);", spec=table.spec(), x=[8.0, 1.0, 50.0, 1.0])
    assert got[0][1:] == got[1][1:]
    assert got[0][1] < 0


def test_blur_is_a_convolution(law, generator):
    """The quadrature of a mixture's log-density against its noised law, on a grid and at points."""
    log_prob = lambda x: law.log_prob(x) + 3.0  # not normalised
    blur = planes.Blur(log_prob, planes.find_window(log_prob))
    close(blur.mean, law.mean, 1e-4)
    close(blur.cov, law.cov, 1e-4)
    x = 2 * torch.randn(9, 2, generator=generator)
    for sigma in (blur.least, 0.5, 4.0):
        noised = law.noised(1.0, sigma)
        exact = torch.cat([noised.score(x), noised.log_prob(x)[:, None]], 1)
        close(blur(x, sigma), exact, 2e-4)  # e^-14 of the density is cut off
        grid = blur.on_grid(x[:, 0], x[:, 1], sigma)[range(9), range(9)]
        close(grid, blur(x, sigma), 1e-9)


def test_a_window_is_found_far_away():
    there = glp.Gaussian([300.0, -50.0], [[4.0, 0.0], [0.0, 0.01]])
    window = planes.find_window(there.log_prob)
    assert abs(window.center[0] - 300) < 0.5
    assert 2 * math.sqrt(28) < window.reach < 2.4 * math.sqrt(28)
    with pytest.raises(ValueError, match="no probability law on the plane"):
        planes.find_window(lambda x: 0 * x[:, 0])
    with pytest.raises(ValueError, match="finite nowhere"):
        planes.find_window(lambda x: x[:, 0] * torch.nan)


@pytest.mark.parametrize("schedule", [VP(), VE(0.01, 20.0), glp.schedules.Rectified()], ids=str)
def test_a_schedule_enters_by_its_ratio(law, generator, schedule):
    """α s(α y, t) at σ/α = r is the score of y = x + r ε, whatever the schedule."""
    field, low, high = planes.noise_to_data(ExactScore(law, schedule))
    assert low <= 0.01
    assert high > 15
    y = 2 * torch.randn(6, 2, generator=generator)
    for r in (0.1, 1.0, 8.0):
        close(field(y, r), law.noised(1.0, r).score(y), 1e-6)


def test_the_error_of_a_table_is_seen(law, generator):
    field = lambda x, s: law.noised(1.0, s).score(x)
    window, sigmas = (
        planes.Window((0.0, 0.0), 4.0),
        lambda n: [0.1 * 60 ** (i / n) for i in range(n + 1)],
    )
    errors = []
    for n, size in ((19, 100), (5, 100), (19, 16)):
        table = planes.tabulate(field, window, tuple(sigmas(n)), size)
        errors.append(planes.interpolation_error(table, field, generator))
    assert errors[0] < 0.003
    assert min(errors[1:]) > 5 * errors[0]


# ---------------------------------------------------------------------------- steps, with given noise


@pytest.fixture
def walkers(generator):
    draw = lambda: torch.randn(12, 2, generator=generator)
    return SimpleNamespace(
        x=1.5 * draw(), p=draw(), z=draw(), u=torch.rand(12, generator=generator)
    )


def step_in_node(law, w, call, *rows):
    body = f"""const x_ = Float64Array.from(x), p_ = Float64Array.from(p);
    const field = E.mixture(spec), level = field.at(sigma), noise = fixed(...rows);
    {call}; return [[...x_], [...p_]];"""
    got = node(
        body, spec=spec_of(law), sigma=SIGMA, lower=LOWER, x=flat(w.x), p=flat(w.p),
        rows=[flat(r) for r in rows],
    )  # fmt: skip
    return torch.tensor(got).reshape(2, -1, 2)


@needs_node
def test_ula_is_the_kernel(law, walkers):
    target, kernel = law.noised(1.0, SIGMA), ULA(0.3, temperature=0.8)
    state, _ = kernel.step(kernel.init(walkers.x, target), target, generator=Injected(walkers.z))
    got, _ = step_in_node(law, walkers, "E.ula(x_, level, 0.3, 0.8, noise)", walkers.z)
    close(got, state.x, 1e-12)


@needs_node
def test_mala_is_the_kernel(law, walkers):
    target, kernel = law.noised(1.0, SIGMA), MALA(0.9, temperature=0.7)
    noise = Injected(walkers.z, walkers.u)
    state, info = kernel.step(kernel.init(walkers.x, target), target, generator=noise)
    assert 0 < int(info.accepted.sum()) < 12
    got, _ = step_in_node(law, walkers, "E.mala(x_, level, 0.9, 0.7, noise)", walkers.z, walkers.u)
    close(got, state.x, 1e-12)


@needs_node
def test_baoab_is_the_kernel(law, walkers):
    target, kernel = law.noised(1.0, SIGMA), BAOAB(0.4, friction=1.3, temperature=0.6)
    state = kernel.init(walkers.x, target)._replace(momentum=walkers.p)
    state, _ = kernel.step(state, target, generator=Injected(walkers.z))
    got, momentum = step_in_node(
        law, walkers, "E.baoab(x_, p_, level, 0.4, 0.6, 1.3, noise)", walkers.z
    )
    close(got, state.x, 1e-12)
    close(momentum, state.momentum, 1e-12)


TRANSITIONS = (
    (ReverseSDE(), "E.reverse(x_, level, lower, noise)"),
    (ProbabilityFlow(), "E.flow(x_, level, field.at(lower))"),
    (AnnealedLangevin(1, 0.3), "E.ula(x_, level, 0.3 * sigma * sigma, 1, noise)"),
)


@needs_node
@pytest.mark.parametrize(("transition", "call"), TRANSITIONS, ids=["reverse", "flow", "annealed"])
def test_transitions_under_ve(law, walkers, transition, call):
    schedule = VE(0.1, 10.0)
    t, s = (torch.tensor(math.log(v / 0.1) / math.log(100)) for v in (SIGMA, LOWER))
    score = ExactScore(law, schedule)
    exact = transition(walkers.x, t, s, score, generator=Injected(walkers.z))
    got, _ = step_in_node(law, walkers, call, walkers.z)
    close(got, exact, 1e-10)


@needs_node
def test_a_walker_that_would_become_infinite_stays(law, walkers):
    walkers.z[3, 1] = 1e308
    body = "E.ula(x_, level, 50, 1, noise)"
    got, _ = step_in_node(law, walkers, body, walkers.z)
    close(got[3], walkers.x[3], 0.0)
    assert bool(torch.isfinite(got).all())


@needs_node
@pytest.mark.parametrize("sigma", [0.05, 0.8, 5.0])
def test_the_denoising_loss_of_a_gaussian(sigma):
    """½ Σ v/(v + σ²) over the eigenvalues v of the covariance, where the score is exact."""
    one = GaussianMixture([1.0], [[1.0, -2.0]], [[[0.5, 0.2], [0.2, 0.4]]])
    v = torch.linalg.eigvalsh(one.covs[0])
    body = "return E.loss(E.mixture(spec), spec, null, [0, 0], sigma).minimum;"
    got = node(body, spec={"kind": "mixture", **spec_of(one)}, sigma=sigma)
    close(torch.tensor(got), 0.5 * (v / (v + sigma**2)).sum(), 1e-5)


@needs_node
@pytest.mark.parametrize("sigma", [0.2, 1.5])
def test_the_denoising_loss_of_a_mixture_and_of_a_wrong_score(law, sigma, generator):
    """Against the objective of the library, averaged over 40,000 noisy points, in its errors."""
    wrong = GaussianMixture(law.weights, 1.1 * law.means, law.covs)
    body = """return E.loss(E.mixture(spec), spec, E.mixture(other), [0, 0], sigma);"""
    spec = {"kind": "mixture", **spec_of(law)}
    got = node(body, spec=spec, other=spec_of(wrong), sigma=sigma)
    x = law.sample(40_000, generator=generator)
    for name, score in (("minimum", law), ("learned", wrong)):
        losses = glp.objectives.denoising(
            score.noised(1.0, sigma).score, x, sigma, generator=generator
        )
        losses = losses * sigma**2
        off = (got[name] - losses.mean()) / (losses.std() / len(x) ** 0.5)
        assert abs(float(off)) < 4.5, (name, got, losses.mean())
    assert got["learned"] > got["minimum"] + 0.005


@needs_node
def test_the_score_near_a_circle_has_two_parts(tmp_path):
    """Normal of size 1/σ, tangent √(k I_1(k)/I_0(k)), as σ → 0; the loss tends to ½, a tangent's."""
    circle = glp.distributions.VonMisesCircle(1.0, 2.0)
    _, data = read_page(write_page(circle, tmp_path / "c.html", around=(0.0, 0.0), n_levels=6))
    assert data["pictures"] == ["level", "levels", "loss", "particles", "split"]
    body = """const field = E.field(spec), square = (a, b) => a * a + b * b;
    const parts = E.mean(field, spec, center, sigma, (a, b, x, y) => {
      const [u, v, w, z] = E.split(a, b, x, y, [0, 0]); return [square(u, v), square(w, z), x]; });
    return [...parts, E.loss(field, spec, null, center, sigma).minimum];"""
    sigma = data["fields"][0]["sigmas"][1]  # not between levels, of which there are few
    assert 0.05 < sigma < 0.1
    given = {"spec": data["fields"][0], "center": data["center"], "sigma": sigma}
    normal, tangent, mean, loss = node(body, **given)
    ratio = float(torch.special.i1(torch.tensor(2.0)) / torch.special.i0(torch.tensor(2.0)))
    assert normal == pytest.approx(sigma**-2, rel=0.02)
    assert tangent == pytest.approx(2 * ratio, rel=0.03)
    assert mean == pytest.approx(ratio, rel=0.01)
    assert loss == pytest.approx(0.5, abs=0.01)
    # E cos²θ = (1 + I_2/I_0)/2, and I_2 = I_0 − I_1 for k = 2
    assert data["cov"][0] == pytest.approx(1 - ratio / 2 - ratio**2, abs=2e-4)
    assert data["cov"][2] == pytest.approx(ratio / 2, abs=2e-4)


SLIPS = (
    ("ula", "Math.sqrt(2 * h * tau)", "Math.sqrt(h * tau)", 2),
    ("ula", "x[i] + h * out[1] + spread", "x[i] - h * out[1] + spread", 2),
    ("mala", "(back - forth)", "(forth - back)", 1),
    ("mala", "(4 * h * tau)", "(2 * h * tau)", 1),
    ("baoab", "-2 * friction * h", "-friction * h", 1),
    ("reverse", "keep = rho * rho", "keep = rho", 1),
    ("flow", "(u - s * out[1]) / 2", "(u - s * out[1])", 1),
    ("minimum", "found[0] / 2", "found[0]", 1),
    ("learned", "+ sigma * sigma * found[1] / 2", "+ sigma * found[1] / 2", 1),
)
"""Ways to be wrong in the mathematics of the page; the comparison of that sampler has to notice."""


@needs_node
@pytest.mark.parametrize("slip", SLIPS, ids=lambda slip: f"{slip[0]}: {slip[2]}")
def test_a_slip_is_noticed(slip, law, walkers, generator, tmp_path, monkeypatch):
    name, old, new, times = slip
    text = SCRIPT.read_text(encoding="utf-8")
    assert text.count(old) == times
    (tmp_path / "explore.js").write_text(text.replace(old, new), encoding="utf-8")
    monkeypatch.setattr(f"{__name__}.SCRIPT", tmp_path / "explore.js")
    compare = {
        "ula": lambda: test_ula_is_the_kernel(law, walkers),
        "mala": lambda: test_mala_is_the_kernel(law, walkers),
        "baoab": lambda: test_baoab_is_the_kernel(law, walkers),
        "reverse": lambda: test_transitions_under_ve(law, walkers, *TRANSITIONS[0]),
        "flow": lambda: test_transitions_under_ve(law, walkers, *TRANSITIONS[1]),
        "minimum": lambda: test_the_denoising_loss_of_a_gaussian(0.8),
        "learned": lambda: test_the_denoising_loss_of_a_mixture_and_of_a_wrong_score(
            law, 1.5, generator
        ),
    }
    with pytest.raises(AssertionError):
        compare[name]()


# ---------------------------------------------------------------------------- 5,000 walkers

N = 5000
RUNS = {
    "ula": "for (let i = 0; i < 700; i++) E.ula(x, level, 0.02, 1, noise);",
    "mala": "for (let i = 0; i < 150; i++) E.mala(x, level, 0.6, 1, noise);",
    "baoab": "const p = noise.normal(x.length);"
    "for (let i = 0; i < 200; i++) E.baoab(x, p, level, 0.3, 1, 1, noise);",
    "annealed": "for (const s of E.ladder(sigma, 8, 40))"
    "for (let i = 0; i < 20; i++) E.ula(x, field.at(s), 0.1 * s * s, 1, noise);",
    "reverse": "const l = E.ladder(sigma, 8, 400);"
    "for (let i = 0; i < 400; i++) E.reverse(x, field.at(l[i]), l[i + 1], noise);",
    "flow": "const l = E.ladder(sigma, 8, 60);"
    "for (let i = 0; i < 60; i++) E.flow(x, field.at(l[i]), field.at(l[i + 1]));",
    "hot": "for (let i = 0; i < 150; i++) E.mala(x, level, 0.6, 1.3, noise);",
}
"""From 5,000 walkers of the prior at σ = 8 to the law at σ; the last is a control, too hot."""


@needs_node
@pytest.mark.parametrize(
    "name",  # of the others a step is compared above
    [pytest.param(n, marks=[pytest.mark.slow] * (n in ("ula", "mala", "baoab"))) for n in RUNS],
)
def test_statistics_of_walkers(law, name):
    sigma = 1.2 if name in ("ula", "mala", "baoab", "hot") else 0.5
    (xx, xy), (_, yy) = law.cov.tolist()
    body = f"""const field = E.mixture(spec), level = field.at(sigma), noise = E.randomness(7);
    const x = E.prior({N}, mean, cov, 8, noise); {RUNS[name]} return E.statistics(x, level, 3);"""
    got = node(body, spec=spec_of(law), sigma=sigma, mean=law.mean.tolist(), cov=[xx, xy, yy])
    var = law.cov.diagonal() + sigma**2
    v, d = law.covs.diagonal(dim1=1, dim2=2) + sigma**2, law.means - law.mean
    fourth = law.weights @ (3 * v**2 + 6 * v * d**2 + d**4)
    mean_off = (torch.tensor(got["mean"]) - law.mean) / (var / N).sqrt()
    var_off = (torch.tensor(got["variance"]) - var) / ((fourth - var**2) / N).sqrt()
    spread = (law.weights * (1 - law.weights) / N).sqrt()  # at most, for a mean responsibility
    weight_off = (torch.tensor(got["weights"]) - law.weights) / spread
    worst = float(torch.cat([mean_off, var_off, weight_off]).abs().max())
    assert (worst < 4.5) == (name != "hot"), (worst, got)


@needs_node
def test_noise_of_the_page_is_normal():
    body = "const z = E.randomness(3).normal(200001); return z.reduce("
    body += "(m, v) => [m[0] + v, m[1] + v * v, m[2] + v ** 4], [0, 0, 0]).map((m) => m / 200001);"
    first, second, fourth = node(body)
    for value, right, var in ((first, 0, 1), (second, 1, 2), (fourth, 3, 96)):
        assert abs(value - right) < 4.5 * math.sqrt(var / 200001)


# ---------------------------------------------------------------------------- the page


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pages of a mixture, and of a learned score beside it."""
    path = tmp_path_factory.mktemp("pages")
    law = GaussianMixture([0.5, 0.3, 0.2], torch.tensor(MEANS), torch.tensor(COVS))
    write_page(law, path / "mixture.html", title="a <b> & c", names=("</script>", "y"))
    exact = ExactScore(law, VP())
    write_page(exact, path / "learned.html", exact=law, size=24, n_levels=6)
    return path


def test_a_page_is_whole_and_needs_nothing_else(folder):
    for name in ("mixture", "learned"):
        text, data = read_page(folder / f"{name}.html")
        assert len(text) < 3e6
        assert not re.search(
            r"https?://|<link(?! rel=\"icon\" href=\"data:,\")|\bsrc=|@import|fetch\(", text
        )
        assert "{{" not in text.replace("{{}}", "")
        assert data["low"] < data["high"]
    text, data = read_page(folder / "mixture.html")
    assert "<title>a &lt;b&gt; &amp; c</title>" in text
    assert data["names"] == ["</script>", "y"]
    assert "closed form" in text


def test_a_learned_score_stands_beside_the_exact_one(folder):
    text, data = read_page(folder / "learned.html")
    learned, exact = data["fields"]
    assert (learned["kind"], learned["channels"], exact["kind"]) == ("table", 2, "mixture")
    error = re.search(r"is off by ([\d.]+) %", text)
    assert float(error[1]) == pytest.approx(100 * learned["error"], rel=0.06)
    assert 1e-4 < learned["error"] < 0.2


class Frame:
    """Coordinates x = 10 + (2, 5) z."""

    shift, scale = torch.tensor([10.0, 10.0]), torch.tensor([2.0, 5.0])

    def decode(self, z):
        return self.shift + self.scale * z


def test_the_exact_law_is_drawn_in_the_coordinates_of_the_model(law, tmp_path, monkeypatch):
    """Of a model whose coordinates are not those of the data, against the same law in them."""
    monkeypatch.setattr(planes, "NODES", 96)
    there = GaussianMixture(
        law.weights, Frame().decode(law.means), law.covs * (Frame.scale[:, None] * Frame.scale)
    )
    score = ExactScore(law, VE(0.01, 20.0))
    score.coordinates = Frame()
    for exact in (there, SimpleNamespace(log_prob=there.log_prob)):
        _, data = read_page(
            write_page(score, tmp_path / "a.html", exact=exact, size=16, n_levels=4)
        )
        assert (data["shift"], data["scale"]) == ([10.0, 10.0], [2.0, 5.0])
        close(torch.tensor(data["mean"]), law.mean, 1e-3)
        close(torch.tensor(data["cov"])[[0, 2]], law.cov.diagonal(), 1e-3)


@needs_browser
def test_points_stand_for_a_law_that_nobody_knows(law, tmp_path, page, generator):
    """Walkers of a learned score are held against the data, with the noise."""
    x = law.sample(4001, generator=generator)
    path = write_page(ExactScore(law, VE(0.01, 20.0)), tmp_path / "a.html", points=x, size=24,
                      invert_y=True)  # fmt: skip
    _, data = read_page(path)
    assert len(data["points"]) == 2 * 1334
    close(torch.tensor(data["points"]).reshape(-1, 2), x[::3], 1e-3)
    page.show(path, reduced=True)
    numbers = page.js("document.getElementById('numbers').textContent")
    mean = float(x[::3, 0].mean())
    assert numbers.startswith("data")
    assert f"{mean:.2f}".replace("-", "−") in numbers
    x, y = page.middle("#panels canvas")
    page.click(x, y + 100)  # downwards, where y is larger
    assert page.js("explorer.state.x[1] > explorer.data.center[1] + 0.5")
    assert not page.errors, page.errors


def test_a_score_alone_has_one_level(tmp_path):
    text, data = read_page(write_page(torch.neg, tmp_path / "a.html", size=16))
    assert not data["levels"]
    assert not data["moments"]  # nothing is called exact
    assert (data["fields"][0]["name"], len(data["fields"][0]["sigmas"])) == ("given", 1)
    assert "there is one level" in text


@pytest.mark.parametrize(
    ("field", "given", "message"),
    [
        (glp.Gaussian([0.0, 0.0, 0.0]), {}, "must be in the plane"),
        (GaussianMixture([1.0], [[0.0, 0.0, 0.0]]), {}, "must be in the plane"),
        (3, {}, "field must be a density, a noisy score or a function, got 3"),
        (torch.neg, {"names": ("a",)}, "names must hold two column names"),
        (torch.neg, {"size": 4}, "size must be an integer from 16 to 160"),
        (torch.neg, {"picture": "far"}, "picture must be 'level', 'levels'"),
        (torch.neg, {"picture": "loss", "size": 16}, "needs something this field does not have"),
        (torch.neg, {"n_levels": 2}, "n_levels must be an integer from 4"),
        (torch.neg, {"exact": torch.neg}, "exact is for a noisy score"),
        (torch.log, {"size": 16}, "not finite everywhere"),
        (glp.as_score(lambda z, t: -z, "score", VP()), {}, "has no moments of its data"),
        (glp.Gaussian([0.0, 0.0]), {"sigmas": (1.0, 0.5)}, "sigmas must be above 1"),
        (glp.Gaussian([0.0, 0.0]), {"window": ((0.0, 0.0), -1.0)}, "window must be positive"),
    ],
)
def test_refusals(field, given, message, tmp_path, as_user):
    with pytest.raises(ValueError, match=message):
        write_page(field, tmp_path / "a.html", **given)
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------------- a browser

SUM = "(() => { const c = document.querySelector('#panels canvas'); return c.getContext('2d')"
SUM += ".getImageData(0, 0, c.width, c.height).data.reduce((a, b) => a + b, 0); })()"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


def state(page, name):
    return page.js(f"explorer.state.{name}")


@needs_browser
def test_slider_clicks_and_keys(page, folder):
    page.show(folder / "mixture.html")
    sigma, before = state(page, "sigma"), page.js(SUM)
    page.js("document.getElementById('sigma').focus()")
    for _ in range(5):
        page.key("ArrowRight", 39)
    assert state(page, "sigma") > sigma
    page.js(
        "var s = document.getElementById('sigma'); s.value = 800; s.dispatchEvent(new Event('input'))"
    )
    page.frames()
    assert state(page, "sigma") > 5 * sigma
    assert page.js(SUM) != before
    page.click(*page.middle("#panels canvas"))
    assert state(page, "x.length") == 100
    page.frames(5)
    assert state(page, "steps") > 0
    page.key(" ", 32)
    assert not state(page, "playing")
    steps = state(page, "steps")
    page.frames(5)
    assert state(page, "steps") == steps
    page.click(*page.middle("#step"))
    assert state(page, "steps") == steps + 1
    assert not page.errors, page.errors


@needs_browser
@pytest.mark.parametrize("name", ["mixture", "learned"])
def test_every_sampler_runs(page, folder, name):
    """Prior, then each sampler to the end or for a while; walkers stay finite, phone and dark."""
    page.show(folder / f"{name}.html", width=390, height=844, dark=True)
    page.js("document.getElementById('prior').click()")
    for sampler in page.js("[...document.getElementById('sampler').options].map((o) => o.value)"):
        page.js(
            f"var e = document.getElementById('sampler'); e.value = '{sampler}';"
            "e.dispatchEvent(new Event('change')); var v = document.getElementById('speed');"
            "v.value = 5; v.dispatchEvent(new Event('input'))"
        )
        page.frames(4)
        assert state(page, "steps") > 0, sampler
        assert page.js("explorer.state.x.every(Number.isFinite)"), sampler
        if sampler == "mala":  # which needs a density, and goes to where there is one
            assert state(page, "acceptance") > 0.1
    assert state(page, "x.length") == 10000
    assert not page.js("document.documentElement.scrollWidth > innerWidth")
    assert len(page.js("document.getElementById('numbers').textContent")) > 50
    assert not page.errors, page.errors


@needs_browser
def test_less_motion_starts_paused(page, folder):
    page.show(folder / "mixture.html", reduced=True)
    assert not state(page, "playing")
    page.js("document.getElementById('prior').click()")
    page.frames(4)
    assert state(page, "steps") == 0
    assert page.js("document.getElementById('play').textContent") == "Play"


def show(page, picture):
    page.js(f"explorer.show('{picture}')")
    page.frames()


@needs_browser
def test_plain_against_annealed(page, folder, law, generator):
    """The weights that the page ends with are those of the library's kernels, and not the same."""
    page.show(folder / "mixture.html")
    show(page, "annealed")
    data = page.js("({...explorer.data, fields: 0})")
    page.js("explorer.state.speed = 32")
    for _ in range(300):
        page.frames(2)
        if state(page, "ended"):
            break
    page.frames(12)
    assert state(page, "steps") == 400
    assert state(page, "history.length") == 100
    got = {
        name: torch.tensor(state(page, f"{of}.weights"))
        for name, of in (("annealed", "now"), ("plain", "then"))
    }
    low, high = data["low"], data["high"]
    cov = torch.tensor([[data["cov"][0], data["cov"][1]], [data["cov"][1], data["cov"][2]]])
    start = glp.Gaussian(data["mean"], cov + high**2 * torch.eye(2)).sample(N, generator=generator)
    ours = {"plain": start, "annealed": start}
    for sigma in [high * (low / high) ** (i / 39) for i in range(40)]:
        for name, level, h in (
            ("plain", low, data["stiff"] / 10),
            ("annealed", sigma, 0.3 * sigma**2),
        ):
            target, kernel = law.noised(1.0, level), ULA(h)
            there = kernel.init(ours[name], target)
            for _ in range(10):
                there, _ = kernel.step(there, target, generator=generator)
            ours[name] = there.x
    error = (2 * law.weights * (1 - law.weights) / N).sqrt()
    for name, x in ours.items():
        weights = law.noised(1.0, low).responsibilities(x).mean(0)
        assert float(((weights - got[name]) / error).abs().max()) < 4.5, (name, weights, got)
    assert float(((got["plain"] - law.weights) / error).abs().max()) > 8
    assert float((got["annealed"] - law.weights).abs().max()) < 0.05
    assert not page.errors, page.errors


@needs_browser
@pytest.mark.parametrize("name", ["mixture", "learned"])
def test_every_picture_is_painted(page, folder, name):
    """On a phone, in the dark: no error, nothing wider than the page, each canvas with content."""
    page.show(folder / f"{name}.html", width=390, height=844, dark=True)
    for picture in page.js("explorer.data.pictures"):
        show(page, picture)
        page.frames(40 if picture == "loss" else 3)
        assert not page.js("document.documentElement.scrollWidth > innerWidth"), picture
        colours = page.js(
            "[...document.querySelectorAll('#panels canvas')].map((c) => new Set(new Uint32Array("
            "c.getContext('2d').getImageData(0, 0, c.width, c.height).data.buffer)).size)"
        )
        assert min(colours) > 5, (picture, colours)
    assert len(page.js("explorer.state.losses")) == 36
    minimum, learned = page.js("['minimum', 'learned'].map((n) => explorer.state.losses[9][n])")
    assert 0 < minimum < 1
    assert learned is None or learned == pytest.approx(minimum, abs=0.05)
    assert not page.errors, page.errors
