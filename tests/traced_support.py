"""Log-densities that use every operation that the fused engine translates."""

import torch
from torch import Tensor
from torch.nn import functional as F

A = torch.tensor([[0.3, -1.2, 0.7, 0.4], [1.1, 0.2, -0.5, 0.9], [-0.6, 0.8, 0.1, -1.3]])
Y = torch.tensor([0.4, -0.9, 1.6])
WHICH = torch.tensor([2, 0, 2, 3, 1, 2])
X = torch.tensor([[0.7, -0.4, 1.3, 0.2], [-1.1, 0.5, 0.6, -0.8], [0.1, 2.3, -0.2, 1.9]]).double()


def written(x: Tensor) -> Tensor:
    """Writes into memory of its own, a part at a time."""
    out = torch.zeros_like(x)
    out[:, 1:] = x[:, 1:] * x[:, :1]
    out[:, 0] = x[:, 2].exp()
    out.mul_(0.5).add_(x).clamp_(min=-2.0)
    out[:, WHICH[:2]] = x[:, 2:] ** 2
    out[:, 3].zero_()
    return out.sum(1) - out.square().sum(1)


def in_place(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, 2].fill_(0.3)
    return (y * A[0]).sum(1).sin() - y.square().sum(1)


def products(x: Tensor) -> Tensor:
    a, B = A.to(x), x[:, :, None] * x[:, None, :]
    one = torch.baddbmm(B, B, B.mT, beta=0.5, alpha=0.1).sum((1, 2))
    two = torch.addmm(Y.to(x), x, a.mT, beta=2.0).square().sum(1)
    return one - two - (B @ x[:, :, None]).sum((1, 2))


def vectors(x: Tensor) -> Tensor:
    """Of one point, for `vectorized=False`."""
    a, y = A.to(x), Y.to(x)
    return -torch.dot(a @ x - y, a @ x) - (y + a @ x).square().sum()


def rows(x: Tensor) -> Tensor:
    """With products of vectors, one row after another."""
    row, a = A[0].to(x), x @ A[1].to(x)
    squares = torch.stack([torch.dot(point, point) for point in x])
    return torch.addmv(a, x.cos(), row, beta=2.0) * a - squares


def placed(x: Tensor) -> Tensor:
    put = F.pad(x, (0, 1), value=0.2).index_add(1, WHICH, x[:, WHICH] * 0.5)
    added = x.new_zeros(len(x), 4).scatter_add(1, WHICH.repeat(len(x), 1), x[:, WHICH].sin())
    taken = torch.gather(x, 1, WHICH.repeat(len(x), 1)) * x.index_select(1, WHICH)
    moved = torch.stack([x.flip(1), x.roll(1, 1)], 1).repeat(1, 2, 1)
    filled = torch.cat([F.pad(x, (1, 2), value=0.5), put, added, taken], 1)
    lower = (x[:, :, None] * x[:, None]).tril() + (x[:, :, None] + x[:, None]).triu(1)
    diagonal = (x[:, :, None] * x[:, None] * A[:1, None]).diagonal(dim1=1, dim2=2)
    return moved.cos().sum((1, 2)) - filled.square().sum(1) + (lower.sin() @ x[:, :, None]).sum(
        (1, 2)
    ) + diagonal.exp().sum(1)  # fmt: skip


def compared(x: Tensor) -> Tensor:
    inside = (x > -1) & (x <= 2.0) | (x >= 5.0)
    odd = ~torch.isnan(x) & torch.isfinite(x) & torch.isinf(x).logical_not()
    other = torch.logical_and(x != 0.5, torch.logical_or(x < 0.0, x == 0.7))
    both = inside.to(x) + (odd * x) + torch.where(other, x.sin(), x.square())
    both = torch.where((x > -1).all(1, keepdim=True) | (x > 2).any(1, keepdim=True), both, -both)
    return both.masked_fill(x.ge(2.2), 0.25).sum(1) + x.to(torch.bool).to(x).sum(1)


def truths(x: Tensor) -> Tensor:
    """True and false, of other numbers than 0 and 1 too."""
    high, low, half = x > 0.1, x > -0.5, torch.where(x > 0, x, 0.0)
    mask = torch.zeros_like(high)
    mask[:, :3] = half[:, :3]
    mask[:, 3].fill_(7)
    out = (high + low).to(x) + 2 * torch.logical_or(-half, half - 2).to(x) + mask * x
    out = out + 4 * torch.logical_and(half, x - 0.7).to(x) + 8 * low.masked_fill(high, 3).to(x)
    return out.sum(1) + 16 * (-half).all(1).to(x) + 32 * (-half).any(1).to(x)


def shapes(x: Tensor) -> Tensor:
    """The same numbers in lines of two lengths, and an index without dimension."""
    y = x.repeat(1, 2)[:, :6] * A[0, 0]
    sums = y.view(-1, 2, 3).sum(2).cos().sum(1) + y.view(-1, 3, 2).sum(2).sin().sum(1)
    part = x.view(-1, 2, 2).index_select(2, torch.tensor(1)).exp().sum((1, 2))
    return sums + part


FUNCTIONS = {
    "powers": lambda x: (x**2 + x**3 + x.abs() ** 1.5 + (x**2 + 1) ** -0.5 + x.square() ** 2).sum(1)
    + (x.abs() ** x.square() + 2.0 ** x + (x.exp() ** -2) + x.abs().sqrt()).sum(1),
    "logs": lambda x: (x.exp().log1p() + (1 + x * x).log() + x.expm1() - (2 - x).rsqrt().exp2()).sum(1)
    + ((x * x + 1).log2() + (x * x + 2).log10() + x.square().add(1).reciprocal()).sum(1),
    "waves": lambda x: (x.sin() * x.cos() + x.tan() + x.tanh() + x.atan() + x.cosh()).sum(1)
    + torch.atan2(x, 1 + x * x).sum(1),
    "special": lambda x: (x.erf() + x.erfc() * x + torch.lgamma(x.abs() + 0.2)).sum(1)
    + torch.digamma(0.3 + x.detach().abs()).sum(1) + torch.digamma(-x.detach() - 0.35).sum(1),
    "bounds": lambda x: (x.clamp(-0.5, 1.0) + x.clamp_min(0.3) * x + x.clamp_max(0.4)).sum(1)
    + (torch.maximum(x, x.square()) + torch.minimum(x, x.cos()) + x.relu() + x.sign() * x).sum(1)
    + (x.floor() * x).sum(1),
    "soft": lambda x: (F.softplus(x) + F.logsigmoid(x) + x.sigmoid() + F.silu(x)).sum(1)
    + F.softplus(20 * x, 2.0, 10.0).sum(1) + torch.logaddexp(x, x.square()).sum(1)
    + torch.xlogy(x.square(), x.square() + 1).sum(1),
    "labels": lambda x: -F.binary_cross_entropy_with_logits(
        x, (x > 0.3).to(x), reduction="none"
    ).sum(1),
    "mixed": lambda x: torch.addcmul(x, x, x.cos(), value=0.5).sum(1)
    + torch.addcdiv(x, x, 2 + x.cos(), value=2.0).sum(1) + torch.lerp(x, x.sin(), 0.3).sum(1)
    - (3.0 - x).sub(x.sin(), alpha=0.2).square().sum(1) + (-x / 3 + 1 / (3 + x)).mean(1),
    "sums": lambda x: torch.logsumexp(x[:, :, None] * A.to(x).mT, (1, 2))
    + x.var(1) + x.cumsum(1).cos().sum(1)
    + torch.log_softmax(x, 1)[:, 0] + torch.softmax(x, 1)[:, 1:].square().sum(1) + x.norm(dim=1)
    - x.amax(1) * x.amin(1),
    "product": lambda x: x.detach().prod(1) * x[:, 0],
    "written": written, "in place": in_place, "products": products, "placed": placed,
    "compared": compared, "rows": rows, "truths": truths, "shapes": shapes,
    "not a number": lambda x: x.sum(1) + torch.where(x > 0, x, torch.nan).sign().sum(1),
}  # fmt: skip
