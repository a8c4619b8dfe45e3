"""In a process of its own: rebuild the network with ``is_training=False``, restore, predict the test images.

``python -m experiments.machinery.predict_from_checkpoint --checkpoint PREFIX --data digits --output predictions.json``

It predicts the whole test set at once, and again one image at a time. Nothing but the checkpoint comes from the process
that trained: that is what a user's serving program is like.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

import bn_graph
from bn_graph.tf1 import tf
from experiments.machinery.harness import write_json

HIDDEN_UNITS = (100, 100)


def predict(checkpoint: str, dataset: bn_graph.Dataset) -> dict:
    """Class of each test image, from one run of all and from one run each, and how far the two sets of logits differ."""
    test = dataset.test
    sizes = (test.images.shape[1], *HIDDEN_UNITS, test.labels.shape[1])
    with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
        # The values of these weights don't matter: restore replaces them all, and would refuse if it couldn't.
        network = bn_graph.build_graph(False, bn_graph.normal_weights(sizes, seed=0))
        bn_graph.restore(session, checkpoint)
        at_once = session.run(network.logits, {network.x: test.images})
        alone = session.make_callable(network.logits, [network.x])
        one_at_a_time = np.concatenate([alone(image[np.newaxis]) for image in test.images])
    return {
        "at_once": at_once.argmax(1).tolist(),
        "one_at_a_time": one_at_a_time.argmax(1).tolist(),
        "largest_difference_of_logits": float(np.abs(at_once - one_at_a_time).max()),
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", required=True, help="prefix of the checkpoint")
    parser.add_argument("--data", default="auto", choices=("auto", "mnist", "digits"))
    parser.add_argument("--data-directory")
    parser.add_argument("--output", required=True, type=Path, help="JSON file to write")
    given = parser.parse_args(argv)
    try:
        write_json(given.output, predict(given.checkpoint, bn_graph.load(given.data, given.data_directory)))
    except (bn_graph.DataError, bn_graph.CheckpointError) as error:
        print(f"predict_from_checkpoint: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
