"""Kernels: frozen dataclasses with `init` and `step` that keep a density."""

from .hamiltonian import GHMC as GHMC
from .hamiltonian import HMC as HMC
from .overdamped import MALA as MALA
from .overdamped import ULA as ULA
from .position import PositionDependentULA as PositionDependentULA
from .preconditioner import Preconditioner as Preconditioner
from .unadjusted import LeimkuhlerMatthews as LeimkuhlerMatthews
from .unadjusted import PreconditionedULA as PreconditionedULA
from .unadjusted import TamedULA as TamedULA
from .underdamped import BAOA as BAOA
from .underdamped import BAOAB as BAOAB
from .underdamped import OBABO as OBABO
from .underdamped import Splitting as Splitting
from .welford import Welford as Welford
