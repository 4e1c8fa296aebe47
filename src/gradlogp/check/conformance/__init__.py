"""Is it right? What kernels, transitions, densities, objectives and scores must do, with numbers."""

from .kernels import check_kernel as check_kernel
from .report import ConformanceError as ConformanceError
from .report import Report as Report
from .transitions import check_transition as check_transition
