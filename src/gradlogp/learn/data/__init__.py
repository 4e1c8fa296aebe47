"""Reading data: named sets, .npy, .npz, .csv, .parquet and folders of images become a `Dataset`.

Nothing is changed silently: `notes` name and count what is dropped, and what cannot be read is
refused with the file, the place in it and what to do.
"""

from .images import IMAGES
from .layout import Dataset
from .loading import load, train_held_out
from .named import NAMES, TOYS, toy

__all__ = ["IMAGES", "NAMES", "TOYS", "Dataset", "load", "toy", "train_held_out"]
