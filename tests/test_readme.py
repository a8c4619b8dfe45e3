"""README's example of the layer, run as it stands, with the two lines of its comments."""

import re
from pathlib import Path

import numpy as np

from bn_graph.tf1 import tf

README = Path(__file__).parents[1] / "README.md"


def test_the_example_trains_saves_restores_and_predicts_one_image_as_among_all(tmp_path, monkeypatch, random):
    code = re.search(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)[1]
    code = (
        re.sub(r"# (?:train|predict): ", "", code)
        + "    alone = session.run(logits, {x: [image], is_training: False})\n"
    )
    code += "    among = session.run(logits, {x: images, is_training: False})\n"
    images = random.normal(3.0, 2.0, (20, 784)).astype(np.float32)
    given = {"images": images, "image": images[7], "labels": random.randint(10, size=20)}
    monkeypatch.chdir(tmp_path)
    with tf.Graph().as_default():
        tf.set_random_seed(3)  # of the first weights
        exec(code, given)
    assert sorted(path.name for path in (tmp_path / "model").iterdir())[0] == "checkpoint"
    # One row and twenty are multiplied in different orders, which differ by processor. A logit near 0 is a sum of terms as
    # large as the largest logit's, so all logits share that one's rounding: sums of 784 products, about sqrt(784) of eps.
    rounding = np.sqrt(784) * np.finfo(np.float32).eps * np.abs(given["among"][7]).max()
    np.testing.assert_allclose(given["alone"][0], given["among"][7], rtol=0, atol=rounding)
    assert not np.allclose(given["among"][7], given["among"][8], rtol=1e-2)  # as they were if only beta were left
