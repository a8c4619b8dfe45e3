"""Which Keras the tests compare with: TensorFlow up to 2.15 has legacy Keras alone, later ones Keras 3 beside ``tf-keras``."""

import importlib.metadata
import importlib.util

import pytest

LEGACY_KERAS = "tf_keras" if importlib.util.find_spec("tf_keras") else "keras"
"""The module that legacy Keras is."""

HAS_KERAS_3 = not importlib.metadata.version("keras").startswith("2.")
needs_keras_3 = pytest.mark.skipif(not HAS_KERAS_3, reason="Keras 3 comes with TensorFlow 2.16")
