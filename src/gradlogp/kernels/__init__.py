"""Kernels: frozen dataclasses with `init` and `step` that keep a density."""

from .decreasing import polynomial_decay as polynomial_decay
from .decreasing import weighted_average as weighted_average
from .hamiltonian import GHMC as GHMC
from .hamiltonian import HMC as HMC
from .minibatch import SVRG as SVRG
from .minibatch import ControlVariates as ControlVariates
from .minibatch import Plain as Plain
from .overdamped import MALA as MALA
from .overdamped import ULA as ULA
from .particles import RBF as RBF
from .particles import SVGD as SVGD
from .particles import Linear as Linear
from .position import PositionDependentULA as PositionDependentULA
from .preconditioner import Preconditioner as Preconditioner
from .psgld import PSGLD as PSGLD
from .sghmc import SGHMC as SGHMC
from .stochastic import SGLD as SGLD
from .tempering import ParallelTempering as ParallelTempering
from .unadjusted import LeimkuhlerMatthews as LeimkuhlerMatthews
from .unadjusted import PreconditionedULA as PreconditionedULA
from .unadjusted import TamedULA as TamedULA
from .underdamped import BAOA as BAOA
from .underdamped import BAOAB as BAOAB
from .underdamped import OBABO as OBABO
from .underdamped import Splitting as Splitting
from .welford import Welford as Welford
