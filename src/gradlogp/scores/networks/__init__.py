"""Networks: plain `nn.Module`s, network(x, c) or network(x, c, condition) -> like x.

They know nothing of diffusion.
"""

from .embeddings import NO_CLASS as NO_CLASS
from .embeddings import drop as drop
from .mlp import MLP as MLP
from .unet import UNet as UNet
