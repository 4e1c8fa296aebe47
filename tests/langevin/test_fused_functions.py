"""Functions of PyTorch operations on the fused engine: what is translated, and what is refused."""

import inspect
import random

import numpy as np
import pytest
import torch
from traced_support import FUNCTIONS, X, vectors

from gradlogp import as_target
from gradlogp.langevin.fused import CannotCompile, functions, rules

pytest.importorskip("numba")


@pytest.fixture
def by_hand(monkeypatch):
    """The machine without its compiler."""
    from gradlogp.langevin.fused import machine

    for name in ("digamma", "reference", "gathered", "score", "reduced", "binary", "unary"):
        monkeypatch.setattr(machine, name, getattr(machine, name).py_func)
    monkeypatch.setattr(machine, "CHUNK", 3)  # so that an instruction is done in parts
    monkeypatch.setattr(machine, "SCRATCH", 9)
    with np.errstate(all="ignore"):
        yield machine


def compare(target, x):
    found = functions.translated(target, x)
    points = torch.cat([x, x.new_zeros(-len(x) % 4, x.shape[1])])
    score, log_p = found.on_tile(points, (0,))
    close = {"rtol": 1e-12, "atol": 1e-12, "equal_nan": True}
    torch.testing.assert_close(score[: len(x)], target.score(x), **close)
    torch.testing.assert_close(log_p[: len(x)], target.log_prob(x), **close)
    return found.program


def test_every_rule_gives_value_and_gradient(by_hand, monkeypatch):
    used = set()

    class Watched(dict[str, object]):
        def __getitem__(self, name):
            used.add(name)
            return dict.__getitem__(self, name)

    monkeypatch.setattr(rules, "RULES", Watched(rules.RULES))
    for name, f in FUNCTIONS.items():
        try:
            compare(as_target(log_prob=f), X)
        except (AssertionError, CannotCompile) as error:
            raise AssertionError(f"{name}: {error}") from error
    compare(as_target(log_prob=vectors, vectorized=False), X)
    assert rules.RULES.keys() - used == set()


def counted(x):
    return -x.pow(2).sum(1) * x.long().sum(1)


def caught(x):
    try:
        return torch.linalg.cholesky(x[:, :2, None] * x[:, None, :2]).sum((1, 2))
    except (RuntimeError, ValueError):
        return -x.pow(2).sum(1)


REFUSED = {
    "operation aten.linalg_cholesky_ex": lambda x: torch.linalg.cholesky(
        x[:, :, None] * x[:, None] + torch.eye(4)
    ).sum((1, 2)),
    "operation aten._linalg_check_errors|operation aten.linalg_cholesky_ex": caught,
    "operation aten._to_copy": counted,
    "operation aten.sort": lambda x: x.sort(1).values[:, 0],
    "operation aten.pow.Tensor_Scalar_out": lambda x: torch.pow(
        x.detach(), 2, out=torch.empty_like(x)
    ).sum(1),
    "draws random numbers": lambda x: -x.pow(2).sum(1) + torch.rand(len(x)),
    "looks at values of x": lambda x: -x.pow(2).sum(1) * (2 if x[0, 0] > 0 else 1),
    "looks at values": lambda x: x.sum(1) if bool((x > -5).all()) else -x.sum(1),
    "looks at values of": lambda x: x[:, (x[0] > 0).long()].sum(1),
    "it looks at values": lambda x: x.sum(1) * (2 if x.tolist()[0][0] > 9 else 1),
    "it looks at values of": lambda x: x.sum(1) * float(x.detach().numpy().max() > 9),
    "it looks at values of x": lambda x: x.sum(1) * float(np.asarray(x.detach()).max() > 9),
    "as another type": lambda x: x.sum(1) + x.detach().view(torch.int64).sum(1).sign(),
    "operation aten.copy_": lambda x: x.sum(1) * x.new_zeros(1, 4).long().copy_(x.detach()).sum(1),
    "operation aten.bitwise_and": lambda x: x.sum(1) * ((x > 1).sum(1) & 1),
    "at a single point it raises ValueError": lambda x: x.sum(1) + torch.zeros(3),
    "computes in torch.float32": lambda x: -x.float().pow(2).sum(1),
    "operation aten._fft_r2c": lambda x: torch.fft.fft(x).abs().sum(1),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_has_no_rule_is_refused_with_its_name(reason):
    target = as_target(score=REFUSED[reason])
    if "pow" not in reason:
        target = as_target(log_prob=REFUSED[reason])
    with pytest.raises(CannotCompile, match=reason):
        functions.translated(target, X)


@pytest.mark.parametrize("f", [
    lambda x: -(x - x.mean(0)).square().sum(1) - x.square().sum(1),
    lambda x: -x.square().sum(1) * (1 + random.random()),
], ids=["rows together", "random numbers of Python"])  # fmt: skip
def test_a_function_that_is_different_elsewhere_is_refused(f, by_hand):
    x0 = torch.cat([X, -X])
    good = functions.translated(as_target(log_prob=lambda x: -x.square().sum(1)), x0)
    functions.check(good, x0)
    with pytest.raises(CannotCompile, match="at other points it has a different value"):
        functions.check(functions.translated(as_target(log_prob=f), x0), x0)


def test_constants_are_those_of_the_moment():
    """A tensor that is overwritten between two uses counts with what it held at each of them."""
    kept = torch.tensor([1.0, 2.0, 3.0, 4.0])

    def f(x):
        first = (x * kept.fill_(2.0)).sum(1)
        return first + (x * kept.fill_(5.0)).sum(1)

    program = functions.translated(as_target(score=lambda x: f(x)[:, None] + 0 * x), X).program
    assert {2.0, 5.0} <= set(program.numbers.tolist())


def test_laws_of_pytorch_with_their_checks(by_hand):
    """Where a check fails and PyTorch raises an error, nothing is known: value and score are NaN."""
    laws = torch.distributions
    if "_is_all_true" not in inspect.getsource(laws.Distribution):
        pytest.skip("this PyTorch looks at its checks: such a law is not compiled, in words")

    def f(x):
        a, s = x[:, :1], x[:, 1:2]
        out = laws.Normal(a, s).log_prob(x[:, 2:]).sum(1) + laws.Gamma(2.0, s).log_prob(s)[:, 0]
        out = out + laws.Bernoulli(logits=a).log_prob(torch.ones(1))[:, 0]
        return (
            out
            + laws.StudentT(4.0, a, 1.5).log_prob(x[:, 3]).sum() * 0
            + laws.Poisson(s.exp()).log_prob(torch.tensor([3.0]))[:, 0]
        )

    target, x = as_target(log_prob=lambda x: torch.cat([f(row[None]) for row in x])), X.abs()
    compare(target, x)
    found = functions.translated(target, x)
    functions.check(found, x)
    outside = x.repeat(2, 1)[:4] * torch.tensor([1.0, -1.0, 1.0, 1.0])
    with pytest.raises(ValueError, match="to satisfy the constraint"):
        target.score(outside)
    score, log_p = found.on_tile(outside, (0,))
    assert score.isnan().all()
    assert log_p.isnan().all()


def test_rounding_is_no_difference(by_hand):
    """In single precision, at points where terms 10,000 times as large as the score cancel."""
    large = torch.linspace(-1, 1, 200) * 1e3 + 0.25
    target = as_target(log_prob=lambda x: -(x - large.to(x)).square().sum(1) / 2)
    x0 = (0.25 + 1e-5 * X[:, :1]).float()
    found = functions.translated(target, x0)
    score, _ = found.on_tile(x0.repeat(2, 1)[:4], (0,))
    exact = target.score(x0.repeat(2, 1)[:4])
    assert not torch.allclose(score, exact, rtol=0.01, atol=0.0)
    functions.check(found, x0)
    wrong = functions.Translated(
        as_target(log_prob=lambda x: target.log_prob(1.01 * x)), found.program
    )
    with pytest.raises(CannotCompile):
        functions.check(wrong, x0)
