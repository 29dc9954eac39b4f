"""A small real tfds builder, made from scikit-learn's digits; tfds wants a folder for each."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from sklearn.datasets import load_digits


class SolsticeDigits(tfds.core.GeneratorBasedBuilder):
    """8x8 handwritten digits: 1,500 for training and 297 for testing."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> Any:
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Tensor(shape=(8, 8, 1), dtype=np.uint8),
                "label": tfds.features.ClassLabel(num_classes=10),
            }
        )
        return tfds.core.DatasetInfo(
            builder=self, features=features, supervised_keys=("image", "label")
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager
        return {
            "train": self._generate_examples(0, 1500),
            "test": self._generate_examples(1500, 1797),
        }

    def _generate_examples(self, start: int, stop: int) -> Iterator[tuple[int, dict[str, Any]]]:
        images, labels = load_digits(return_X_y=True)
        for index in range(start, stop):
            image = images[index].reshape(8, 8, 1).astype(np.uint8)
            yield index, {"image": image, "label": int(labels[index])}
