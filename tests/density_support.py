"""Every law and every known target, for the tests of densities and of scores."""

import torch

from gradlogp import Empirical, Gaussian, GaussianMixture
from gradlogp.distributions.analytic import (
    AffineSubspace,
    Classes,
    Embedded,
    Joint,
    Product,
    UniformSphere,
    VonMisesCircle,
)
from gradlogp.distributions.targets import (
    Banana,
    DoubleWell,
    Funnel,
    LogCosh,
    LogisticRegression,
    ManyWell,
    Ring,
    SkewedGumbel,
)

TURN = torch.linalg.qr(torch.randn(6, 2, generator=torch.Generator().manual_seed(1)).double())[0]
BASIS = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0], [0.5, -1.0]], dtype=torch.float64)
OFFSET = torch.tensor([1.0, -2.0, 0.0, 0.5], dtype=torch.float64)

COV = torch.tensor([[1.5, 0.6, 0.1], [0.6, 0.5, -0.2], [0.1, -0.2, 0.9]], dtype=torch.float64)
MEANS = torch.tensor([[-2.0, 0.3, 1.0], [1.0, -0.5, 0.0]], dtype=torch.float64)
COVS = torch.stack([COV, COV.flip(0, 1)])
SINGULAR = {
    "sphere": UniformSphere(5, 2.0),
    "circle": UniformSphere(2, 1.5),
    "von Mises": VonMisesCircle(1.3, 2.5, 0.7),
    "peaked": VonMisesCircle(0.8, 200.0, -2.0),
    "torus": Product([UniformSphere(2, 1.0), VonMisesCircle(0.5, 1.0)]),
    "subspace": AffineSubspace(BASIS, OFFSET, torch.tensor([0.4, 2.0], dtype=torch.float64)),
    "embedded": Embedded(VonMisesCircle(1.3, 2.5, 0.7), TURN),
    "padded": Embedded(UniformSphere(3), 7),
    "data": Empirical(torch.cat([MEANS, MEANS.flip(0, 1), 0.3 * MEANS])),
}
LAWS = SINGULAR | {
    "Gaussian": Gaussian(MEANS[0], COV),
    "Gaussian, diagonal": Gaussian(MEANS[0], COV.diagonal()),
    "Gaussian, one variance": Gaussian(MEANS[0], 0.7),
    "mixture": GaussianMixture([0.3, 0.7], MEANS, COVS),
    "mixture, diagonal": GaussianMixture([0.3, 0.7], MEANS, COVS.diagonal(dim1=1, dim2=2)),
    "mixture, a variance each": GaussianMixture([0.3, 0.7], MEANS, [0.4, 1.2]),
    "mixture, one variance": GaussianMixture([0.3, 0.7], MEANS, 0.4),
    "joint": Joint(GaussianMixture([0.3, 0.7], MEANS, COVS), 1),
    "classes": Classes([Gaussian(MEANS[0], COV), GaussianMixture([0.5, 0.5], MEANS, COVS)]),
}

KNOWN = [
    Banana(),
    Banana(0.4, 1.7, -0.6, 0.5),
    Funnel(),
    Funnel(3, 1.0),
    Funnel(2, 0.5),
    Ring(),
    Ring(0.5, 0.8),
    DoubleWell(),
    DoubleWell(3, 0.5, 1.3, -0.7),
    ManyWell(),
    ManyWell(6),
    LogCosh(3),
    SkewedGumbel(2),
]


def somewhere(law, alpha, sigma, generator, n=20):
    """Points where the noised law has mass, one at 0, and one near the manifold."""
    x = law.noised(alpha, sigma).sample(n, generator=generator).double()
    x[0] = 0.0
    x[1] = alpha * law.sample(1, generator=generator)[0]
    return x


def small_logistic(seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(20, 4, generator=g, dtype=torch.float64)
    y = (torch.rand(20, generator=g) < 0.4).double()
    return LogisticRegression(x, y, 0.7)
