r"""Distances between a model and the truth, each with a standard error.

A distance between two finite samples of one law is not 0. Compare every number with its floor, the
same distance between two independent samples of real data.
"""

from __future__ import annotations

from .classifier import c2st as c2st
from .copies import Copies as Copies
from .copies import copies as copies
from .copies import membership as membership
from .features import Classifier as Classifier
from .features import frechet_distance as frechet_distance
from .fields import Conservativity as Conservativity
from .fields import LogDensityDifference as LogDensityDifference
from .fields import conservativity as conservativity
from .fields import log_density_difference as log_density_difference
from .gaussians import FisherInformation as FisherInformation
from .gaussians import MeanScore as MeanScore
from .gaussians import fisher_divergence as fisher_divergence
from .gaussians import fisher_information as fisher_information
from .gaussians import gaussian_fisher as gaussian_fisher
from .gaussians import gaussian_kl as gaussian_kl
from .gaussians import gaussian_wasserstein as gaussian_wasserstein
from .gaussians import mean_score as mean_score
from .ksd import SteinDiscrepancy as SteinDiscrepancy
from .ksd import ksd as ksd
from .memorisation import DenoisingGap as DenoisingGap
from .memorisation import Memorisation as Memorisation
from .memorisation import denoising_gap as denoising_gap
from .memorisation import nearest_neighbours as nearest_neighbours
from .two_sample import TwoSample as TwoSample
from .two_sample import mmd as mmd
from .two_sample import sliced_wasserstein as sliced_wasserstein
