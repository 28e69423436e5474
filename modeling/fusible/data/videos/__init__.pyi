"""Public names and their modules. Each is imported when it is first used."""

from .annotations import (
    VideoList as VideoList,
    annotation_list as annotation_list,
    few_shot as few_shot,
    folder_of_classes as folder_of_classes,
    hmdb51 as hmdb51,
    kinetics as kinetics,
    something_something_v2 as something_something_v2,
    ucf101 as ucf101,
)
from .datasets import EvaluationVideos as EvaluationVideos, TrainingVideos as TrainingVideos
from .moving_digits import (
    DIRECTIONS as DIRECTIONS,
    moving_digit as moving_digit,
    place_digit as place_digit,
    still_digits as still_digits,
    write_moving_digits as write_moving_digits,
)
from .sampling import DenseSampling as DenseSampling, UniformSampling as UniformSampling
