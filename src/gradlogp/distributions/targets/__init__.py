r"""Known targets: densities that are not Gaussian, with closed-form scores and facts to check against.

Each has `log_prob`, `score`, `event_shape`, the exact `mean` and `cov` (float64, on the CPU) and
`log_normalizer`, the logarithm of ∫ exp(log_prob(x)) dx, or None if it is not known. All but the
logistic regression can be sampled exactly.
"""

from .logistic import LogisticRegression as LogisticRegression
from .logistic import Reference as Reference
from .shapes import Banana as Banana
from .shapes import Funnel as Funnel
from .shapes import Ring as Ring
from .wells import DoubleWell as DoubleWell
from .wells import LogCosh as LogCosh
from .wells import ManyWell as ManyWell
from .wells import SkewedGumbel as SkewedGumbel
