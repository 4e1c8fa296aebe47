"""Is it right? What kernels, transitions, densities, objectives and scores must do, with numbers."""

from .densities import check_density as check_density
from .kernels import check_kernel as check_kernel
from .objectives import check_objective as check_objective
from .report import ConformanceError as ConformanceError
from .scores import check_score as check_score
from .transitions import check_transition as check_transition
