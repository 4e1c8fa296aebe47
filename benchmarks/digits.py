"""What draws of each class are worth on digits: a classifier learns from them and reads real ones.

    python benchmarks/digits.py [--steps 850 3000] [--seeds 3] [--images]

scikit-learn's digits, 70 % to learn from and 30 % held out. `ScoreEstimator(condition="classes")` at
its defaults but for the steps draws 200 of each class; a support vector machine trained on these reads
the held-out digits. Rows are vectors of the pixels that vary (deviation above 0.3 of 16); with
`--images` they are images. CPU seconds of the training, on one thread.
"""

import argparse
import time
import warnings

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.svm import SVC

import gradlogp as glp


def split(images):
    x, y = load_digits(return_X_y=True)
    x = (x if images else x[:, x.std(0) > 0.3]) / 16
    x = x.reshape(-1, 1, 8, 8) if images else x
    return train_test_split(x.astype("float32"), y, test_size=0.3, random_state=0, stratify=y)


def accuracy(x, y, real, labels):
    flat = (len(x), -1)
    machine = SVC(gamma="scale").fit(np.asarray(x).reshape(flat), y)
    return machine.score(real.reshape(len(real), -1), labels)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, nargs="+", default=[850, 3000])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    x, real, y, labels = split(args.images)
    print(f"trained on real digits: {accuracy(x, y, real, labels):.3f}")
    asked = np.repeat(np.arange(10), 200)
    for steps in args.steps:
        for seed in range(args.seeds):
            began = time.process_time()
            estimator = glp.ScoreEstimator(condition="classes", max_iter=steps, random_state=seed)
            estimator.fit(x, y)
            spent = time.process_time() - began
            drawn = estimator.sample(len(asked), y=asked)
            found = accuracy(drawn, asked, real, labels)
            print(f"{steps} steps, seed {seed}: {found:.3f}, {spent:.0f} CPU s", flush=True)


if __name__ == "__main__":
    main()
