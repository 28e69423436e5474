"""Public names and their modules. Each is imported when it is first used."""

from .audio import (
    SILENCE as SILENCE,
    AudioTokens as AudioTokens,
    SpeechCommands as SpeechCommands,
    decode_samples as decode_samples,
    encode_samples as encode_samples,
)
from .forecasting import Forecasts as Forecasts, load_arrays as load_arrays
from .listops import listops_tokenizer as listops_tokenizer, write_listops as write_listops
from .long_range_arena import (
    load_aan as load_aan,
    load_imdb as load_imdb,
    load_listops as load_listops,
    load_pixels as load_pixels,
    pad_tokens as pad_tokens,
)
from .pathfinder import write_pathfinder as write_pathfinder
from .series_features import SeriesFeatureExtractor as SeriesFeatureExtractor
