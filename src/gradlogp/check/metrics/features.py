r"""Fréchet distance of images in the features of a classifier, with its standard error.

A distance between pixels says little about images. The activations of a classifier's last hidden
layer represent what the classifier sees; the Fréchet distance compares their means and
covariances. With the features of an Inception network this is the FID; here the classifier is
small and trained on the data itself, so numbers are comparable only for the same classifier.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...core import (
    Estimate,
    check_batch,
    check_count,
    check_event_shape,
    check_finite,
    check_kind,
    check_points,
    finite_result,
    new_seed,
)
from ...distributions.analytic import Gaussian
from .gaussians import gaussian_wasserstein
from .two_sample import two_samples


class Classifier:
    """A small classifier: its features and its predictions.

    A perceptron on standardised input, trained by scikit-learn's `MLPClassifier` for a fixed
    number of epochs. It is evaluated by PyTorch, in the dtype of its input.

    Arguments:
        x: Training samples, `(n, *event)`.
        labels: Their classes, `(n,)`, integers.
        widths: Units of the hidden layers; the last one gives the features.
        epochs: Number of passes over the samples.
        generator: Source of initial weights and order.

    Raises:
        ValueError: For a wrong shape, fewer than two classes, or no hidden layer.
    """

    def __init__(
        self,
        x: Float[Tensor, "n *event"],
        labels: Int[Tensor, " n"],
        *,
        widths: tuple[int, ...] = (128, 32),
        epochs: int = 30,
        generator: torch.Generator | None = None,
    ) -> None:
        from sklearn.neural_network import MLPClassifier

        check_points(x)
        check_kind(labels, "labels", Tensor, "a tensor of integers")
        if labels.dtype.is_floating_point or labels.dtype.is_complex:
            raise ValueError(f"labels must be integers, got {labels.dtype}")
        if labels.shape != x.shape[:1]:
            raise ValueError(f"labels must have shape ({len(x)},), got {tuple(labels.shape)}")
        self.classes = labels.unique().cpu()
        if len(self.classes) < 2:
            raise ValueError("labels must contain at least two classes")
        check_event_shape(widths, "widths")
        check_count(len(widths), "the number of widths")
        check_count(epochs, "epochs")
        self.event_shape = x.shape[1:]
        self.mean, self.std = x.double().mean(), x.double().std().clamp(min=1e-12)
        network = MLPClassifier(widths, random_state=new_seed(generator) % 2**32)
        inputs = ((x.double() - self.mean) / self.std).flatten(1).detach().cpu().numpy()
        known = self.classes.numpy()
        for _ in range(epochs):
            network.partial_fit(inputs, labels.cpu().numpy(), classes=known)
        self._layers = [
            (torch.from_numpy(W), torch.from_numpy(b))
            for W, b in zip(network.coefs_, network.intercepts_, strict=True)
        ]

    def features(self, x: Float[Tensor, "n *event"]) -> Float[Tensor, "n features"]:
        """Return the activations of the last hidden layer."""
        check_batch(x, self.event_shape)
        h = ((x - self.mean.to(x)) / self.std.to(x)).flatten(1)
        for W, b in self._layers[:-1]:
            h = torch.addmm(b.to(h), h, W.to(h)).relu()
        return h

    def predict(self, x: Float[Tensor, "n *event"]) -> Int[Tensor, " n"]:
        """Return the most probable class of each sample."""
        W, b = self._layers[-1]
        h = self.features(x)
        out = torch.addmm(b.to(h), h, W.to(h))
        # two classes share one output, positive for the second
        chosen = out.argmax(1) if out.shape[1] > 1 else (out[:, 0] > 0).long()
        return self.classes.to(x.device)[chosen]


def frechet_distance(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Estimate:
    r"""Fréchet distance of two samples of features: W_2² of the Gaussians of their moments.

    .. math::
        \|m_x - m_y\|^2 + \operatorname{tr}\left(S_x + S_y - 2 (S_x^{1/2} S_y S_x^{1/2})^{1/2}\right)

    (squared, as the FID is). The standard error is that of the plug-in functional, whose influence
    function is the optimal potential, with T the optimal linear map from x to y

    .. math:: ψ(x) = (x - m_x)^\top (I - T)(x - m_x) + 2 (m_x - m_y)^\top (x - m_x)

    Between two samples of one law the distance is not 0 but of order d²/n, so it is smaller for
    larger samples: compare only at equal n and m, with the floor of two samples of data.

    Arguments:
        x: Features, `(n, d)`.
        y: Features, `(m, d)`.

    Raises:
        ValueError: For different dimensions, fewer than two points, or points that are not finite.

    References:
        | GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium
          (Heusel et al., 2017)
        | https://arxiv.org/abs/1706.08500
        | Wasserstein Distance of Gaussians: Asymptotics and Inference (Rippl, Munk & Sturm, 2016)
        | https://arxiv.org/abs/1507.04090
    """
    a, b = two_samples(x, y)
    if x.ndim != 2:
        raise ValueError(f"x must have shape (n, d), got {tuple(x.shape)}")
    d = a.shape[1]
    S_x, S_y = (torch.cov(z.mT).reshape(d, d) for z in (a, b))
    check_finite(S_x, "the covariance of x")
    check_finite(S_y, "the covariance of y")
    p, q = Gaussian(a.mean(0), S_x), Gaussian(b.mean(0), S_y)
    variance = 0.0
    for z, law, other in ((a, p, q), (b, q, p)):
        centred = z - law.mean
        bend = torch.eye(d, dtype=z.dtype, device=z.device) - _map(law, other)
        influence = ((centred @ bend) * centred).sum(1) + 2 * centred @ (law.mean - other.mean)
        variance += float(influence.var()) / len(z)
    return finite_result(Estimate(gaussian_wasserstein(p, q) ** 2, math.sqrt(variance)), "x or y")


def _map(p: Gaussian, q: Gaussian) -> Tensor:
    """Return the optimal linear map T = S_p^{-1/2} (S_p^{1/2} S_q S_p^{1/2})^{1/2} S_p^{-1/2}."""
    S_p, S_q = p._cov, q._cov
    root = S_p.w.sqrt()
    inverse = torch.where(root > 0, 1 / root.clamp(min=1e-300), 0.0)  # no mass to move there
    A, B = S_p.matrix(root), S_q.matrix(S_q.w.sqrt())
    _, sizes, Vh = torch.linalg.svd(B @ A)
    outer = S_p.matrix(inverse)
    return outer @ (Vh.mT * sizes) @ Vh @ outer
