from .config.distillation import DistillConfig
from .config.objects import ObjectsConfig
from .config.training import TrainConfig
from .errors import (
    ChoiceError,
    CollapsedError,
    ConfigError,
    DivergedError,
    InputError,
    KDUNetError,
    LabelsError,
    ModelError,
    OutputError,
    TrainingError,
    UnlabelledError,
    VolumeError,
)
from .experiments.studies import Run, study_runs
from .experiments.study import RunResult, iter_study
from .experiments.sweep import Tradeoff, iter_sweep, smallest_within
from .export.bioimageio import export_bioimageio
from .export.c_file import export_c
from .export.onnx_file import export_onnx
from .export.onnx_model import OnnxModel
from .export.web_page import export_web
from .metrics import Confusion, Scores, evaluate
from .networks.bundled import bundled_models
from .networks.model import Model, load_model
from .networks.unet import KUNet
from .objects.instances import instances
from .objects.measure import measure
from .objects.scores import ObjectScores, score_objects
from .prediction.pixel_size import PixelSizeSearch, TriedSize, find_pixel_size, iter_find_pixel_size
from .prediction.predict import predict
from .prediction.statistics import adapt_statistics
from .training.adapt import adapt, iter_adapt
from .training.events import Done, Event, Saved, Started, Stepped, Validated
from .training.losses import Losses, dice_loss, distillation_loss, hard_loss, soft_loss
from .training.train import distill, iter_distill, iter_train, train
from .volumes.volume import Volume, open_volume
from .writing.writer import write_volume

__all__ = [
    "ChoiceError",
    "CollapsedError",
    "ConfigError",
    "Confusion",
    "DistillConfig",
    "DivergedError",
    "Done",
    "Event",
    "InputError",
    "KDUNetError",
    "KUNet",
    "LabelsError",
    "Losses",
    "Model",
    "ModelError",
    "ObjectScores",
    "ObjectsConfig",
    "OnnxModel",
    "OutputError",
    "PixelSizeSearch",
    "Run",
    "RunResult",
    "Saved",
    "Scores",
    "Started",
    "Stepped",
    "Tradeoff",
    "TrainConfig",
    "TrainingError",
    "TriedSize",
    "UnlabelledError",
    "Validated",
    "Volume",
    "VolumeError",
    "adapt",
    "adapt_statistics",
    "bundled_models",
    "dice_loss",
    "distill",
    "distillation_loss",
    "evaluate",
    "export_bioimageio",
    "export_c",
    "export_onnx",
    "export_web",
    "find_pixel_size",
    "hard_loss",
    "instances",
    "iter_adapt",
    "iter_distill",
    "iter_find_pixel_size",
    "iter_study",
    "iter_sweep",
    "iter_train",
    "load_model",
    "measure",
    "open_volume",
    "predict",
    "score_objects",
    "smallest_within",
    "soft_loss",
    "study_runs",
    "train",
    "write_volume",
]
