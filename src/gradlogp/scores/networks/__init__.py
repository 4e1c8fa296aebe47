"""Networks: plain `nn.Module`s, network(x, c, labels) -> like x, that know nothing of diffusion."""

from .embeddings import NO_CLASS as NO_CLASS
from .embeddings import drop_labels as drop_labels
from .mlp import MLP as MLP
from .unet import UNet as UNet
