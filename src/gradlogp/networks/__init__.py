"""Networks: plain `nn.Module`s, network(x, c, labels) -> like x, that know nothing of diffusion."""

from .mlp import MLP as MLP
from .unet import UNet as UNet
