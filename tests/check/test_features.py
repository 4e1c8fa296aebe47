"""The Fréchet distance of features against other formulas, its error against what it scatters."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from support import close
from torch import nn

from gradlogp.check.metrics.features import Classifier, frechet_distance


def law(d, seed):
    g = torch.Generator().manual_seed(seed)
    root = torch.randn(d, d, generator=g) / d**0.5
    return torch.randn(d, generator=g), root


def draw(n, mean, root, generator):
    return mean + torch.randn(n, len(mean), generator=generator) @ root.mT


@pytest.mark.parametrize("d", [1, 2, 6])
def test_value_is_the_formula_of_the_fid(d, generator):
    x, y = (draw(50, *law(d, seed), generator) for seed in (1, 2))
    m, S = zip(*((z.mean(0), np.cov(z.T.numpy()).reshape(d, d)) for z in (x, y)), strict=True)
    cross = sqrtm(S[0] @ S[1]).real
    expected = float((m[0] - m[1]).square().sum()) + float(np.trace(S[0] + S[1] - 2 * cross))
    close(frechet_distance(x, y).value, expected, 1e-8)
    assert frechet_distance(x, x).value < 1e-12
    close(frechet_distance(x, y).value, frechet_distance(y, x).value, 1e-9)


def test_the_dimension_is_not_divided_by_and_the_distance_is_squared(generator):
    """Shifting by v costs ‖v‖² exactly; scaling by c costs (c − 1)² tr S."""
    x = torch.randn(200, 5, generator=generator)
    v = torch.arange(5.0)
    close(frechet_distance(x, x + v).value, 30.0, 1e-9)
    close(frechet_distance(x, 3 * (x - x.mean(0)) + x.mean(0)).value, 4 * x.var(0).sum(), 1e-9)


@pytest.mark.parametrize("d", [2, 5])
def test_the_influence_function_is_the_derivative(d, generator):
    """Give one point more weight and see the distance change: n times ψ/(n) by finite differences."""
    x, y = (draw(400, *law(d, seed), generator) for seed in (1, 2))
    more = 3  # points repeated so often weigh more

    def with_weight(i):
        return frechet_distance(torch.cat([x, x[[i]].expand(more, -1)]), y).value

    base = frechet_distance(x, y).value
    slopes = torch.tensor([(with_weight(i) - base) * len(x) / more for i in range(60)])
    # the standard error is made of the spread of ψ over x and over y
    whole = frechet_distance(x, y).standard_error
    other = frechet_distance(x, torch.cat([y] * 400)).standard_error  # y known all but exactly
    assert other < whole
    assert abs(float(slopes.std()) / (other * len(x) ** 0.5) - 1) < 0.35


@pytest.mark.parametrize(("n", "m"), [pytest.param(300, 300, marks=pytest.mark.slow), (200, 800)])
def test_the_error_is_what_the_distance_scatters(n, m, generator):
    found = [
        frechet_distance(draw(n, *law(3, 1), generator), draw(m, *law(3, 2), generator))
        for _ in range(150)
    ]
    values = torch.tensor([e.value for e in found])
    errors = torch.tensor([e.standard_error for e in found])
    assert abs(float(errors.mean() / values.std()) - 1) < 0.25  # 5 √(1/300) of the spread


def test_a_sample_of_the_same_law_is_at_the_floor_and_another_is_not(generator):
    same = [draw(500, *law(4, 1), generator) for _ in range(3)]
    mean, root = law(4, 1)
    moved = draw(500, mean + 0.3, root, generator)
    floor, again = frechet_distance(same[0], same[1]), frechet_distance(same[2], same[1])
    off = frechet_distance(moved, same[1])
    assert abs(again.value - floor.value) < 4 * (again.standard_error + floor.standard_error)
    assert off.value - floor.value > 5 * off.standard_error


def test_singular_features(generator):
    """Dead units have no variance, and features may depend on one another."""
    x, y = (torch.randn(60, 3, generator=generator) for _ in range(2))
    pad = lambda z: torch.cat([z, torch.zeros(60, 2), z[:, :1] + z[:, 1:2]], 1)
    got = frechet_distance(pad(x), pad(y))
    assert np.isfinite(got.value)
    assert 0 < got.standard_error < 1
    wide = torch.randn(20, 40, generator=generator)  # fewer points than features
    assert np.isfinite(frechet_distance(wide, wide + 1).standard_error)


def blobs(generator, n=300, k=3):
    labels = torch.arange(n) % k
    centres = 3 * torch.randn(k, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    return centres[labels] + torch.randn(n, 1, 4, 4, generator=generator), labels


@pytest.mark.parametrize("k", [2, 3])
def test_a_classifier_tells_classes_apart(k, generator):
    (x, labels), (x_new, new) = blobs(generator, k=k), blobs(generator, k=k)
    judge = Classifier(x, labels, widths=(16, 8), generator=generator)
    assert float((judge.predict(x_new) == new).double().mean()) > 0.95
    assert judge.features(x_new).shape == (300, 8)
    assert (judge.features(x_new) >= 0).all()
    assert judge.features(x_new.float()).dtype == torch.float32
    close(judge.features(x_new[:5]), judge.features(x_new)[:5], 1e-12)
    shifted = Classifier(x, labels + 4, widths=(16, 8), generator=generator)  # any integers
    assert set(shifted.predict(x_new).tolist()) == set(range(4, 4 + k))


def test_features_are_those_of_scikit_learn(generator):
    """Its own prediction, from the same weights."""
    from sklearn.neural_network import MLPClassifier

    x, labels = blobs(generator)
    judge = Classifier(x, labels, widths=(16, 8), epochs=5, generator=generator)
    z = ((x - x.mean()) / x.std()).flatten(1)
    again = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU())
    for layer, (W, b) in zip(again[::2], judge._layers, strict=False):
        layer.weight.data, layer.bias.data = W.mT.clone(), b.clone()
    close(judge.features(x), again(z).detach(), 1e-10)
    own = MLPClassifier((16, 8), random_state=0)
    own.partial_fit(z.numpy(), labels.numpy(), classes=[0, 1, 2])
    own.coefs_ = [W.numpy() for W, _ in judge._layers]
    own.intercepts_ = [b.numpy() for _, b in judge._layers]
    assert own.predict(z.numpy()).tolist() == judge.predict(x).tolist()


def test_the_generator_decides(generator):
    x, labels = blobs(generator)
    make = lambda seed: Classifier(
        x, labels, widths=(8,), epochs=2, generator=torch.Generator().manual_seed(seed)
    ).features(x)
    assert torch.equal(make(1), make(1))
    assert not torch.equal(make(1), make(2))


@pytest.mark.usefixtures("as_user")
def test_bad_input(generator):
    x, labels = blobs(generator)
    with pytest.raises(ValueError, match=r"labels must have shape \(300,\)"):
        Classifier(x, labels[:-1])
    with pytest.raises(ValueError, match="two classes"):
        Classifier(x, 0 * labels)
    with pytest.raises(ValueError, match=r"widths|epochs"):
        Classifier(x, labels, widths=())
    with pytest.raises(ValueError, match=r"shape \(B, 1, 4, 4\)"):
        Classifier(x, labels, widths=(4,), epochs=1).features(x[:, 0])
    with pytest.raises(ValueError, match=r"shape \(n, d\)"):
        frechet_distance(x, x)
    with pytest.raises(ValueError, match="not finite"):
        frechet_distance(x.flatten(1) / 0, x.flatten(1))
