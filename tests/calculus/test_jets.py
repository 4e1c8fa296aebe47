"""Derivatives carried forward are those of reverse-mode differentiation; unknown ones are refused."""

from functools import partial

import pytest
import torch
from support import close
from torch import nn
from torch.nn import functional as F

from gradlogp import MLP, UNet
from gradlogp.calculus import jets
from gradlogp.calculus.reverse import (
    GradientField,
    _reverse_trace,
    hutchinson_trace,
    jacobian,
    jacobian_trace,
    slices,
)


def network(d, out, activation):
    layers = [nn.Linear(d, 7), activation(), nn.Linear(7, 6), activation(), nn.Linear(6, out)]
    net = nn.Sequential(*layers)
    for p in net.parameters():
        nn.init.uniform_(p, -0.9, 0.9, generator=torch.Generator().manual_seed(p.numel()))
    return net


class Attention(nn.Module):
    """Products of two tensors that both depend on x, norms, joins and picks."""

    def forward(self, x):
        q = torch.stack([x.sin(), 1 + x, x * x], -1)
        w = (q @ q.transpose(1, 2)).tanh()
        y = torch.cat([w @ q, torch.ones_like(q)], -1)
        return F.layer_norm(y.flatten(1), (y[0].numel(),)).sum(1) / (2.0 - x[:, 0].cos()) - x[:, 1]


ENERGIES = {
    **{a.__name__: network(4, 1, a) for a in (nn.SiLU, nn.Tanh, nn.Softplus, nn.GELU, nn.Sigmoid)},
    "quadratic": lambda x: x.square().sum(1) - 3 * x[:, 0] * x[:, 1],
    "quartic": lambda x: (x**4).sum(1) + 1 / (1 + x.pow(2).sum(-1)),
    "powers": lambda x: ((1 + x) ** 0.5 + x**1 + x**0 + (1 + x).rsqrt() + (x - 0.2).relu()).sum(1),
    "log": lambda x: -(1 + x.flatten(1).square().sum(1)).log(),
    "division": lambda x: (x / (3 + x.exp())).mean(1) - (2 - x[:, 1]).sqrt().abs(),
    "outer": lambda x: (x.unsqueeze(1) * x.unsqueeze(2)).flatten(1).exp().mean(1),
    "masks": lambda x: (
        (2 * x.sin()).masked_fill(x[:, :1] > 0.2, 1.5) * x.exp() + (x**3).masked_fill(x > 0.4, 2.0)
    ).sum(1),
    "a mask of what is linear": lambda x: (x.masked_fill(x < 0.1, 1.0) + x.square()).sum(1),
    "parts": lambda x: (lambda a, b, c, d: a * b.exp() - c.cos() * d)(*x.unbind(1)),
    "attention": Attention(),
    "dropout at rest": nn.Sequential(nn.Linear(4, 5), nn.Dropout(), nn.Tanh(), nn.Linear(5, 1)).eval(),
    "images": lambda x: F.conv2d(
        x.reshape(-1, 1, 2, 2), torch.arange(8.0).reshape(2, 1, 2, 2).double() - 3, padding=1
    ).sigmoid().sum((1, 2, 3)),
}  # fmt: skip


@pytest.mark.parametrize("name", ENERGIES)
def test_laplacian_and_its_gradients(name, generator):
    module = ENERGIES[name]
    module = module.double() if isinstance(module, nn.Module) else module
    log_prob = lambda x: -module(x).reshape(len(x))
    x = 0.5 * torch.rand(5, 4, generator=generator)
    gradient, trace = jets.laplacian(log_prob, x, torch.arange(4))  # not refused
    expected, exact = _reverse_trace(GradientField(log_prob), x, torch.arange(4))
    close(gradient.mT, expected)
    close(trace, exact)
    close(trace, jacobian(GradientField(log_prob), x).diagonal(dim1=1, dim2=2).sum(1))
    if not isinstance(module, nn.Module) or not list(module.parameters()):
        return
    weights = torch.rand(5, generator=generator)
    ours, theirs = (
        torch.autograd.grad((weights * (g.square().sum(1) + t)).sum(), list(module.parameters()),
                            allow_unused=True)
        for g, t in ((gradient.mT, trace), (expected, exact))
    )  # fmt: skip
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            close(a, b)


def unet_score(x, attention=False):
    g = torch.Generator().manual_seed(0)
    net = UNet((1, 4, 4), channels=(8, 8), attention=attention, generator=g).double()
    nn.init.normal_(net.outlet.weight, generator=g)
    return net(x, torch.zeros(len(x), dtype=x.dtype))


def mlp_score(x):
    net = MLP(4, 8, 1, generator=torch.Generator().manual_seed(0)).double()
    nn.init.normal_(net.outlet.weight, generator=torch.Generator().manual_seed(1))
    return net(x, torch.zeros(len(x), dtype=x.dtype))


def test_traces_of_networks(generator):
    x = torch.randn(6, 4, generator=generator)
    net = network(4, 4, nn.SiLU).double()
    for s in (net, mlp_score, lambda y: 0.3 * net(y) - y / 2):
        value, trace = jets.partial_trace(s, x, torch.arange(4))
        expected, exact = _reverse_trace(s, x, torch.arange(4))
        close(value, expected)
        close(trace, exact)
        pieces = [jets.partial_trace(s, x, torch.tensor([i]))[1] for i in range(4)]
        close(sum(pieces), exact)


@pytest.mark.parametrize("attention", [False, True])
def test_trace_of_the_unet(attention, generator):
    x = torch.randn(2, 1, 4, 4, generator=generator)
    s = partial(unet_score, attention=attention)
    value, trace = jets.partial_trace(s, x, torch.arange(16))  # not refused
    close(value, s(x))
    with torch.no_grad():
        close(trace, jacobian(s, x).diagonal(dim1=1, dim2=2).sum(1))


def test_a_derivative_that_cannot_be_batched(generator):
    """PyTorch fails to batch the derivative of a group norm that is to be differentiated again."""
    x = torch.randn(3, 4, 2, generator=generator)
    field = lambda y: F.group_norm(y, 2).cumsum(2)  # cumsum has no rule: reverse mode
    _, trace = jacobian_trace(field, x)
    with torch.no_grad():
        close(trace, jacobian(field, x).diagonal(dim1=1, dim2=2).sum(1))


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * g


class Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return torch.where(x > 0, 1.0, -1.0).double()

    @staticmethod
    def backward(ctx, g):
        return g


REFUSED = {
    "a function without a rule": lambda x: torch.cumsum(x, 1),
    "a function of its own": Cube.apply,
    "a power of its own": lambda x: x**x,
    "options": lambda x: F.softplus(x, 2.0),
    "in place": lambda x: F.relu(x + 1, inplace=True),
    "random": lambda x: F.dropout(x, 0.5),
    "a transpose as an attribute": lambda x: (x + x.mT.mT),
    "numbers": lambda x: x * float(x.sum()),
    "an exponent": lambda x: torch.pow(2.0, x),
    "switched off": lambda x: x * torch.no_grad()(lambda y: y.sin())(x),
    "cut off": lambda x: x - (x**2).detach(),
    "asks whether it is recorded": lambda x: -x - (
        x if x.requires_grad else x.detach().requires_grad_()
    ),
    "by NumPy": lambda x: x * torch.from_numpy(x.detach().numpy()),
    "straight through": Straight.apply,
    "whole numbers": lambda x: x * x.to(torch.int64),
    "bits": lambda x: x + x.view(torch.int64),
    "differentiates inside": lambda x: torch.autograd.grad(x.square().sum(), x, create_graph=True)[0],
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_known_is_refused(name, generator):
    x = torch.randn(3, 2, generator=generator)
    with pytest.raises(jets.Unsupported):
        jets.partial_trace(REFUSED[name], x, torch.arange(2))


def test_what_is_refused_is_differentiated_all_the_same(generator):
    x = torch.randn(3, 2, generator=generator)
    close(jacobian_trace(Cube.apply, x)[1], 3 * x.square().sum(1))
    close(jacobian_trace(REFUSED["differentiates inside"], x)[1], torch.full((3,), 4.0))
    close(jacobian_trace(REFUSED["switched off"], x)[1], x.sin().sum(1))
    close(jacobian_trace(REFUSED["a function without a rule"], x)[1], torch.full((3,), 2.0))


def test_a_sum_with_an_energy_keeps_both_parts(generator):
    """A score that is partly the gradient of an energy differentiates inside, in part only."""
    x = torch.randn(3, 2, generator=generator)
    energy = GradientField(lambda y: y.pow(4).sum(1), -1.0)
    s = lambda y: -y + energy(y)
    close(jacobian_trace(s, x)[1], -2 - 12 * x.square().sum(1))
    cube = GradientField(lambda y: -Cube.apply(y).sum(1) - y.square().sum(1))
    close(jacobian_trace(cube, x)[0], -3 * x**2 - 2 * x)
    close(jacobian_trace(cube, x)[1], -6 * x.sum(1) - 4)


def test_numbers_keep_the_precision_of_x(generator):
    torch.set_default_dtype(torch.float32)
    x = torch.rand(5, 2, generator=generator, dtype=torch.float64)
    whole = torch.tensor([3, 7])
    s = lambda y: (1.1 - y) ** 3 + 0.1 + y / whole
    value, trace = jacobian_trace(s, x)
    close(value, s(x), 1e-15)
    close(trace, (-3 * (1.1 - x) ** 2).sum(1) + 1 / 3 + 1 / 7, 1e-14)


def test_chunks_and_checkpoints_change_nothing(generator):
    x = torch.randn(5, 4, generator=generator)
    energy, net = network(4, 1, nn.SiLU).double(), network(4, 4, nn.Tanh).double()
    for s, module in (
        (GradientField(lambda y: -energy(y).squeeze(1)), energy),
        (net, net),
        (lambda y: net(y) + torch.cumsum(y, 1), net),  # in reverse mode
    ):
        results = []
        for chunk_size in (None, 1, 3):
            value, trace = jacobian_trace(s, x, chunk_size)
            loss = (trace + 0.5 * value.square().sum(1)).sin().sum()
            parameters = [p for p in module.parameters() if p.ndim > 1]
            results.append((value, trace, *torch.autograd.grad(loss, parameters)))
        for other in results[1:]:
            for a, b in zip(results[0], other, strict=True):
                close(a, b)
        with torch.no_grad():
            value, trace = jacobian_trace(s, x, 3)
        assert not value.requires_grad
        assert not trace.requires_grad
        close(trace, results[0][1].detach())


def test_slices_along_probes_are_those_of_reverse_mode(generator):
    x, energy = torch.randn(5, 4, generator=generator), network(4, 1, nn.SiLU).double()
    probes = torch.randn(3, 5, 4, generator=generator)
    s = GradientField(lambda y: -energy(y).squeeze(1))
    along, form = slices(s, x, probes)
    value, forms = hutchinson_trace(s, x, probes)
    close(along, (probes * value).sum(2))
    close(form, forms.mean(0))
    ours, theirs = (
        torch.autograd.grad((f + a.square().mean(0)).sum(), energy[0].weight)[0]
        for a, f in ((along, form), ((probes * value).sum(2), forms.mean(0)))
    )
    close(ours, theirs)
    odd = GradientField(lambda y: torch.cumsum(y.pow(2), 1).sum(1))  # no rule: in reverse mode
    close(slices(odd, x, probes)[1], hutchinson_trace(odd, x, probes)[1].mean(0))


def test_gradients_in_x_pass_through(generator):
    x = torch.randn(3, 2, generator=generator, requires_grad=True)
    _, trace = jacobian_trace(GradientField(lambda y: -y.pow(4).sum(1)), x)
    close(torch.autograd.grad(trace.sum(), x)[0], -24 * x.detach())
    assert x.grad is None
    _, trace = jacobian_trace(lambda y: y.pow(3), x)
    close(torch.autograd.grad(trace.sum(), x)[0], 6 * x.detach())


@pytest.mark.usefixtures("as_user")
def test_a_score_cut_off_from_x_is_refused_and_not_zero():
    x = torch.ones(4, 3)
    w = torch.ones(3, requires_grad=True)
    for s in (
        lambda y: -y.detach(),
        lambda y: torch.as_tensor(-y.detach().numpy()),
        torch.no_grad()(lambda y: -y),
        lambda y: -y.detach() * w,
    ):
        with pytest.raises(ValueError, match="does not depend on x through differentiable"):
            jacobian_trace(s, x)
    with pytest.raises(ValueError, match="chunk_size must be an integer of at least 1, got 0"):
        jacobian_trace(lambda y: -y, x, 0)


def test_no_graph_is_kept_where_no_gradient_is_asked_for():
    net, kept = network(4, 4, nn.Tanh), []

    def s(y):
        out = net(y)
        kept.append(out.value.requires_grad)
        return out

    x, every = torch.ones(3, 4), torch.arange(4)
    with torch.no_grad():
        jets.partial_trace(s, x, every)
    jets.partial_trace(s, x, every)
    assert kept == [False, True]
