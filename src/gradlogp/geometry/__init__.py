"""What a score reveals about the manifold of its data: dimension, tangents and curvature."""

from .dimension import IntrinsicDimension as IntrinsicDimension
from .dimension import SigmaRange as SigmaRange
from .dimension import intrinsic_dimension as intrinsic_dimension
from .dimension import recommend_sigma as recommend_sigma
from .modes import Modes as Modes
from .modes import find_modes as find_modes
from .modes import gradient_flow as gradient_flow
from .survey import Field as Field
from .survey import Survey as Survey
from .survey import data_field as data_field
from .survey import model_field as model_field
from .survey import survey as survey
from .tangent import MeanCurvature as MeanCurvature
from .tangent import Projection as Projection
from .tangent import Split as Split
from .tangent import TangentSpace as TangentSpace
from .tangent import interpolate as interpolate
from .tangent import mean_curvature as mean_curvature
from .tangent import project as project
from .tangent import tangent_normal_split as tangent_normal_split
from .tangent import tangent_space as tangent_space
