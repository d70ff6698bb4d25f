"""Teachers: a model of ours, any module or ONNX file that gives logits, or a probability volume."""

from __future__ import annotations

import warnings
import zlib
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_kdunet.core.config.distillation import DistillConfig
from napari_kdunet.core.data.onnx_teacher import PROBE_SIDE, OnnxNetwork
from napari_kdunet.core.errors import ModelError, VolumeError, one_line
from napari_kdunet.core.networks.bundled import bundled_models
from napari_kdunet.core.networks.model import Model, load_model
from napari_kdunet.core.networks.protocol import Counted, UsualUNet
from napari_kdunet.core.networks.unet import KUNet
from napari_kdunet.core.prediction.statistics import with_statistics
from napari_kdunet.core.prediction.tiler import Tiler
from napari_kdunet.core.volumes.fingerprint import volume_fingerprint
from napari_kdunet.core.volumes.probability import kind_of, read_probability
from napari_kdunet.core.volumes.resampling import Grid
from napari_kdunet.core.volumes.volume import Volume, open_volume

__all__ = ["TeacherOutput", "as_teacher", "is_torchscript", "teacher_fingerprint"]

_TORCHSCRIPT = (".pt", ".pth", ".ts")

_LEAST = 1e-4  # least distance of a volume's probabilities from 0 and 1, which a mask holds


class _Foreign(UsualUNet, nn.Module):
    """Somebody else's network: a single logit becomes those of two classes, an output of another size is resampled."""

    def __init__(self, net: nn.Module, name: str, classes: int) -> None:
        super().__init__()
        self.net, self.name, self.classes = net, name, classes

    @property
    def parameter_count(self) -> int:
        """Number of learnable parameters."""
        return self.net.parameter_count if isinstance(self.net, Counted) else sum(p.numel() for p in self.parameters())

    def forward(self, x: Tensor) -> Tensor:
        out = self.net(x)
        if not isinstance(out, Tensor) or out.ndim != 4 or out.shape[0] != x.shape[0]:
            raise ModelError(
                f"{self.name} must give (N, classes, Y, X) logits for (N, 1, Y, X): wrap it so that it does."
            )
        if out.shape[1] == 1:  # the logit of a sigmoid is the difference of two logits of a softmax
            out = torch.cat((torch.zeros_like(out), out), dim=1)
        if out.shape[1] != self.classes:
            raise ModelError(
                f"{self.name} gives {out.shape[1]} classes, but the student has {self.classes}: make them the same."
            )
        if out.shape[-2:] != x.shape[-2:]:
            out = F.interpolate(out, x.shape[-2:], mode="bilinear", align_corners=False)
        return out


def is_torchscript(path: str | Path) -> bool:
    """Return whether a file of this name is TorchScript, which can run code: it can write files, and run for ever."""
    return Path(path).suffix.lower() in _TORCHSCRIPT


def is_own_model(source: str | Path) -> bool:
    """Return whether a teacher of this name is a model of this package: a ``.safetensors`` file, or a bundled one."""
    return Path(source).suffix == ".safetensors" or str(source) in bundled_models()


def as_teacher(source: Any, config: DistillConfig, *, trust: bool = False) -> Model | Volume:
    """Open and check a teacher.

    Parameters
    ----------
    source : Model, torch.nn.Module, path, or volume
        One of these:

        - a model, its file, or the name of a bundled one;
        - a module, an ONNX file (``.onnx``) or a TorchScript file (``.pt``, ``.pth``, ``.ts``) that maps (N, 1, Y, X)
          images, standardised slice by slice at the working pixel size, with Y and X multiples of 32, to
          (N, classes, Y, X) or (N, 1, Y, X) logits;
        - a ZYX volume of foreground probabilities in [0, 1], or uint8 from 0 to 255, uint16 from 0 to 65535, or a mask.
    config : DistillConfig
        Settings, whose classes and working pixel size are assumed for modules and files of other tools.
    trust : bool
        Allow a TorchScript file. It can write files on this computer, which no other file can, so its maker has to be
        trusted.

    Raises
    ------
    ModelError, VolumeError
        If it cannot be read or does not fit.
    """
    if isinstance(source, Model):
        return _checked(source, config, "the teacher")
    if isinstance(source, nn.Module):
        return _foreign(source, type(source).__name__, config)
    if isinstance(source, str | Path):
        path = Path(source)
        if is_own_model(source):
            return _checked(load_model(source), config, str(source))
        if path.suffix.lower() == ".onnx":
            return _foreign(OnnxNetwork(path), str(path), config)
        if is_torchscript(path):
            return _foreign(_load_torchscript(path, trust), str(path), config)
    volume = open_volume(source)
    if kind_of(volume) == "labels":
        raise VolumeError(
            f"{volume.name} is {volume.dtype} and holds several classes or none: give probabilities as floats, or as "
            "uint8 from 0 to 255, or a mask."
        )
    if config.boundary:
        raise VolumeError(f"{volume.name} is a probability of the foreground, without outlines: leave boundary out.")
    if config.classes != 2:
        raise VolumeError(
            f"{volume.name} is a probability of 2 classes, but the student has {config.classes}: set classes to 2."
        )
    return volume


def _checked(model: Model, config: DistillConfig, name: str) -> Model:
    if isinstance(model.net, KUNet) and model.boundary != config.boundary:
        has, switch = ("has", "on") if model.boundary else ("has no", "off")
        raise ModelError(f"{name} {has} outlines as a class: switch boundary (Outlines as a class) {switch}.")
    if isinstance(model.net, KUNet) and model.net.classes != config.classes:
        raise ModelError(
            f"{name} has {model.net.classes} classes, but the student has {config.classes}: make them the same."
        )
    return model


def _foreign(net: nn.Module, name: str, config: DistillConfig) -> Model:
    """Return somebody else's network as a model, after it has shown on an empty patch that it can teach."""
    model = Model(_Foreign(net, name, config.classes), config.pixel_size)
    where = next((p.device for p in net.parameters()), torch.device("cpu"))
    channels, multiple = model.traits.channels, model.traits.multiple
    side = PROBE_SIDE if isinstance(net, OnnxNetwork) else -(-config.patch // multiple) * multiple
    try:
        with torch.no_grad():
            model.net(torch.zeros(1, channels, side, side, device=where))
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"{name} fails on a (1, 1, {side}, {side}) patch ({one_line(error)[:200]}).") from error
    return model


def _load_torchscript(path: Path, trust: bool) -> nn.Module:
    if not path.is_file():
        raise ModelError(f"no teacher {str(path)!r}: give a .safetensors, an ONNX file or a probability volume.")
    if not trust:
        raise ModelError(
            f"{path} is TorchScript, which can run code on this computer: ask for the network as .onnx, or give "
            "--trust-teacher (trust=True) if you made the file or trust its maker."
        )
    try:
        with warnings.catch_warnings():  # torch has deprecated the format, but such files will be around for years
            warnings.simplefilter("ignore", DeprecationWarning)
            return torch.jit.load(path, map_location="cpu")  # type: ignore[no-any-return]
    except (RuntimeError, ValueError) as error:
        raise ModelError(
            f"{path} is not a TorchScript file ({one_line(error)[:200]}): export the network with torch.jit."
        ) from error


class TeacherOutput:
    """A teacher's output for a volume.

    A network predicts whole slices at its own working pixel size, as in prediction, and not the student's augmented
    patches. So each slice is predicted once, however long the student learns from it.

    Parameters
    ----------
    teacher : Model or Volume
        The teacher as `as_teacher` returns it; a Volume is its probability for `raw`.
    raw : Volume
        The volume to predict, ZYX.
    device : str
        Device that a network runs on.
    threads : int
        CPU threads for a network.
    views : int
        Number of views (mirror images and quarter turns) of a slice over which a network is averaged, as in `predict`.
    """

    def __init__(self, teacher: Model | Volume, raw: Volume, device: str, threads: int, views: int = 1) -> None:
        if isinstance(teacher, Model):  # a generalist takes each volume's own statistics
            teacher = with_statistics(teacher, raw, "auto", device, threads)
        self.teacher, self.raw = teacher, raw
        self._tiler = None
        if isinstance(teacher, Model):
            self._tiler = Tiler.of(teacher, raw, device, threads, views, network="the teacher")
        self._working: dict[tuple[int, ...], Tensor] = {}

    @property
    def threshold(self) -> float:
        """Probability above which the teacher's output is foreground."""
        return self.teacher.threshold

    def working(self, z: int, y: slice, x: slice, grid: Grid) -> Tensor:
        """Return `probabilities` at the working pixel size of `grid`, cached for when labels are read again."""
        window = (z, y.start, y.stop, x.start, x.stop)
        if window not in self._working:
            self._working[window] = grid.to_working(self.probabilities(z, y, x)[None])[0]
        return self._working[window]

    def forget(self) -> None:
        """Free what `working` has cached."""
        self._working.clear()

    def probabilities(self, z: int, y: slice, x: slice) -> Tensor:
        """Return the probabilities of all classes but the background, (C - 1, Y, X) float32, in a window of slice `z`.

        Raises
        ------
        VolumeError
            If a probability of the volume is not in [0, 1].
        ModelError
            If the network gives NaN.
        """
        if self._tiler is not None:
            logits = self._tiler.window(self.raw, z, (y.start, y.stop), (x.start, x.stop))
            return logits.sigmoid() if len(logits) == 1 else logits.softmax(dim=0)[1:]
        assert isinstance(self.teacher, Volume)
        return torch.from_numpy(read_probability(self.teacher, z, y, x)).clamp(_LEAST, 1 - _LEAST)[None]


def teacher_fingerprint(teacher: Model | Volume) -> str:
    """Return a network's number of parameters and CRC-32 of weights and use, or a probability volume's fingerprint."""
    if isinstance(teacher, Volume):
        return volume_fingerprint(teacher, range(len(teacher)), teacher.threshold)
    total = zlib.crc32(repr((teacher.pixel_size, teacher.context_distance, teacher.threshold, teacher.adapts)).encode())
    for value in teacher.net.state_dict().values():
        if isinstance(value, Tensor):
            total = zlib.crc32(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes(), total)
    for module in teacher.net.modules():
        total = zlib.crc32(module.content, total) if isinstance(module, OnnxNetwork) else total
    return f"{teacher.parameter_count} parameters, {total:08x}"
