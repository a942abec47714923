"""How good frozen features are: a logistic regression on them, with few labels.

  python -m benchmarks.probe <checkpoint> ... --data_dir=$DATA_DIR

Any checkpoint that `--checkpoint` takes, the reference's included. Features h of stanford_dogs at 64 px, evaluation
crop, standardised; a multinomial logistic regression on `test[:20%]`, top-1 accuracy on `test[20%:]`.
"""

import argparse
import dataclasses
import warnings

import numpy as np
import tensorflow as tf
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from simclr_tf import Config, data, released

STRENGTHS = (0.001, 0.01, 0.1)  # scikit-learn's C


def probe(checkpoint: str, data_dir: str) -> dict[float, float]:
    """Accuracy in 0..1 by strength."""
    model = released.load(checkpoint)
    config = Config(dataset="stanford_dogs", data_dir=data_dir, image_size=64)
    train, test = (features(model, dataclasses.replace(config), split) for split in ("test[:20%]", "test[20%:]"))
    accuracies = {}
    for strength in STRENGTHS:
        classifier = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=300))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            classifier.fit(*train)
        accuracies[strength] = classifier.score(*test)
    return accuracies


def features(model, config: Config, split: str) -> tuple[np.ndarray, np.ndarray]:
    """h [n, C] and labels [n]."""
    encode = tf.function(lambda images: model.encoder(images, training=False))
    h, labels = [], []
    for batch in data.Feed.evaluation(data.open_source(config, split), config):
        real = batch["weights"].numpy() > 0
        h.append(encode(batch["images"]).numpy()[real].astype(np.float32))
        labels.append(batch["labels"].numpy()[real])
    return np.concatenate(h), np.concatenate(labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoints", nargs="+")
    parser.add_argument("--data_dir", required=True)
    args = parser.parse_args()
    for checkpoint in args.checkpoints:
        found = probe(checkpoint, args.data_dir)
        print(checkpoint, *(f"C={strength}: {accuracy:.2%}" for strength, accuracy in found.items()), flush=True)


if __name__ == "__main__":
    main()
