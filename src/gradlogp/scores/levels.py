r"""Levels of categories in a vector, with the right frequencies in each column before any training.

A column with levels, such as a category, has an entry of 0 or 1 for each level, or one entry for
two levels, with a little noise on it. In the frame of unit variance level k lies at μ_k and its
noise has variances v. If its probability is π_k and the network returns f_k,

.. math::
    p_k \propto π_k \, e^{f_k} \, N(u_t;\, α μ_k,\, α^2 v + σ^2), \qquad
    E[u_0 \mid u_t] = \sum_k p_k \left( μ_k + \frac{α v}{α^2 v + σ^2} (u_t - α μ_k) \right)

With a network that returns 0, each level has its frequency in the data, however rare; the network
learns how the probability depends on everything else. If levels were numbers, it would have to
learn the frequencies too, and that nothing lies between two levels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..noise.coordinates import AffineCoordinates

SEEN = 0.5
"""Rows by which a level is taken to be met more often, so that none has probability 0."""


class Levels(nn.Module):
    """The entries of a vector that encode the level of a column, and the law of each column alone.

    Arguments:
        d: Number of entries of the vector. None of them encodes a level until `choose` is called.
    """

    block: Tensor
    alone: Tensor
    blur: Tensor
    low: Tensor
    step: Tensor
    log_share: Tensor

    def __init__(self, d: int) -> None:
        super().__init__()
        self.register_buffer("block", torch.full((d,), -1))
        self.register_buffer("alone", torch.zeros(d, dtype=torch.bool))
        self.register_buffer("blur", torch.zeros(()))
        for name in ("low", "log_share"):
            self.register_buffer(name, torch.zeros(d))
        self.register_buffer("step", torch.ones(d))

    def choose(self, blocks: tuple[int, ...], blur: float) -> None:
        """Set which entries are 0 or 1: for each the number of its column, or −1.

        Arguments:
            blocks: The numbers, below the number of entries.
            blur: Standard deviation of the noise on these entries, in the units of the data.
        """
        self.block.copy_(torch.tensor(blocks))
        self.alone.copy_(torch.tensor([blocks.count(b) == 1 and b >= 0 for b in blocks]))
        self.blur.fill_(blur)

    def fit(self, rows: Tensor, coordinates: AffineCoordinates) -> None:
        """Fit the frequencies of levels to rows `(N, D)` in the units of the data, NaN where unknown.

        Arguments:
            rows: The rows.
            coordinates: The frame of the arguments of `denoise`.
        """
        shift, scale = coordinates.shift, coordinates.scale
        self.low.copy_(-shift / scale)
        self.step.copy_(1 / scale)
        for b in self.block.unique().tolist():
            own = (self.block.cpu() == b).nonzero()[:, 0]
            x = rows[:, own]
            x = x[~x.isnan().any(1)]
            if b < 0:
                continue
            if len(own) == 1:
                ones = (x > 0.5).sum(0) + SEEN
                self.log_share[own] = (ones / (len(x) + 2 * SEEN)).logit().to(self.log_share)
            else:
                met = torch.bincount(x.argmax(1), minlength=len(own)) + SEEN
                self.log_share[own] = (met / met.sum()).log().to(self.log_share)

    def denoise(self, u: Tensor, alpha: Tensor, sigma: Tensor, out: Tensor) -> Tensor:
        """Return E[u_0 | α u_0 + σ ε = u], meaningless in entries that do not encode a level.

        Arguments:
            u: States in the frame of unit variance, `(B, D)`.
            alpha: α, `(B, 1)`, or () for all.
            sigma: σ in that frame, `(B, D)` or `(D,)`.
            out: f, shape of u. For two levels in one entry it is f of 1, and f of 0 is 0.
        """
        low, step = self.low.to(u), self.step.to(u)
        var = (self.blur.to(u) * step).square()
        noisy = alpha.square() * var + sigma.reshape(-1, u.shape[1]).square()
        # what is common to all levels of a column is left out
        middle = alpha * (low + 0.5 * step)
        logit = alpha * step * (u - middle) / noisy + self.log_share.to(u) + out
        d = u.shape[1]  # entries of no level go together, apart from all others
        block = torch.where(self.block < 0, d, self.block).expand(len(u), -1)
        least = torch.where(self.alone, 0.0, -torch.inf).to(u)
        top = u.new_full((len(u), d + 1), -torch.inf).scatter_reduce(
            1, block, torch.maximum(logit, least).detach(), "amax"
        )
        top = top.gather(1, block)
        part = (logit - top).exp()
        each = part + (least - top).exp()
        p = part / u.new_zeros(len(u), d + 1).scatter_add(1, block, each).gather(1, block)
        gain = alpha * var / noisy
        return gain * u + (1 - alpha * gain) * (low + p * step)

    def fine(self) -> bool:
        """Whether what it holds can be such."""
        known = bool(((self.block >= -1) & (self.block < len(self.block))).all())
        return known and bool((self.step > 0).all()) and float(self.blur) >= 0
