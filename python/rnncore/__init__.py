"""Recurrent neural networks for NumPy: forward, exact gradients, every gate in reach.

The layers compute in the compiled module ``rnncore._core``; ``rnncore.reference`` is the same
mathematics in plain NumPy, written to be read.
"""

from rnncore import diagnosis, plot
from rnncore._core import (
    Frozen,
    __version__,
    get_level,
    get_num_threads,
    levels,
    set_num_threads,
)
from rnncore.augmentation import Compose, Jitter, Scaling, TimeWarp, WindowSlice
from rnncore.config import set_level, show_config
from rnncore.conv1d import Conv1d
from rnncore.decoding import Hypothesis, beam_search, generate, sample
from rnncore.diagnosis import Verdict, constant_loss, gradient_norms, k_fold, verdict
from rnncore.dropout import Dropout
from rnncore.embedding import Embedding
from rnncore.encoder_decoder import EncoderDecoder
from rnncore.evaluation import evaluate, predict
from rnncore.layers import GRU, LSTM, MGU, RNN, Gradients, Tape
from rnncore.linear import Linear
from rnncore.losses import (
    binary_cross_entropy_with_logits,
    huber,
    mean_absolute_error,
    mean_squared_error,
    softmax_cross_entropy,
)
from rnncore.optimizers import SGD, Adam, AdamW, RMSprop, clip_grad_norm, clip_grad_value
from rnncore.parameters import Parameters
from rnncore.pooling import Pooling
from rnncore.schedules import CosineLR, ReduceLROnPlateau, StepLR, WarmupLR
from rnncore.sequential import Sequential
from rnncore.serialization import load, save
from rnncore.training import History, fit

__all__ = [
    "GRU",
    "LSTM",
    "MGU",
    "RNN",
    "SGD",
    "Adam",
    "AdamW",
    "Compose",
    "Conv1d",
    "CosineLR",
    "Dropout",
    "Embedding",
    "EncoderDecoder",
    "Frozen",
    "Gradients",
    "History",
    "Hypothesis",
    "Jitter",
    "Linear",
    "Parameters",
    "Pooling",
    "RMSprop",
    "ReduceLROnPlateau",
    "Scaling",
    "Sequential",
    "StepLR",
    "Tape",
    "TimeWarp",
    "Verdict",
    "WarmupLR",
    "WindowSlice",
    "__version__",
    "beam_search",
    "binary_cross_entropy_with_logits",
    "clip_grad_norm",
    "clip_grad_value",
    "constant_loss",
    "diagnosis",
    "evaluate",
    "fit",
    "generate",
    "get_level",
    "get_num_threads",
    "gradient_norms",
    "huber",
    "k_fold",
    "levels",
    "load",
    "mean_absolute_error",
    "mean_squared_error",
    "plot",
    "predict",
    "sample",
    "save",
    "set_level",
    "set_num_threads",
    "show_config",
    "softmax_cross_entropy",
    "verdict",
]
