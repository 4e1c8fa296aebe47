"""Is it right? Metrics with error bars, verdicts on samples, measurements of the theory."""

from . import metrics as metrics
from . import sample_size as sample_size
from .baselines import Baseline as Baseline
from .baselines import baselines as baselines
from .compare import Comparison as Comparison
from .compare import compare as compare
from .conformance import ConformanceError as ConformanceError
from .conformance import check_density as check_density
from .conformance import check_kernel as check_kernel
from .conformance import check_objective as check_objective
from .conformance import check_score as check_score
from .conformance import check_transition as check_transition
from .sbc import Calibration as Calibration
from .sbc import sbc as sbc
