r"""A fused engine for Langevin chains on the CPU: noise, score and step in one compiled loop.

It needs Numba (`pip install "gradlogp[fast]"`), which is imported, and compiles, when a run first
uses it. The law is that of the kernels; the noise is different, so that draws differ from those of
the plain engine. Chain k is the same for any number of chains, chunks and threads.
"""

from .api import Fused as Fused
from .api import Jitted as Jitted
from .api import gain as gain
from .api import objection as objection
from .api import prepared as prepared
from .api import run as run
from .api import slower as slower
from .api import supports as supports
from .functions import Translated as Translated
from .functions import check as check
from .tracing import CannotCompile as CannotCompile
