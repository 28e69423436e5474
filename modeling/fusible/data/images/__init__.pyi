"""Public names and their modules. Each is imported when it is first used."""

from .augmentation import (
    MixupCutmix as MixupCutmix,
    RepeatedAugmentationSampler as RepeatedAugmentationSampler,
    TrainingTransform as TrainingTransform,
    image_transform as image_transform,
)
from .classification import image_data as image_data
from .digits import digit_images as digit_images, digits_dataset as digits_dataset
from .fashion_mnist import fashion_mnist_dataset as fashion_mnist_dataset
