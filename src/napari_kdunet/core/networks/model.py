"""A model: a network and all that is needed to apply it; one ``.safetensors`` file. No pickle is ever loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from napari_kdunet import __version__
from napari_kdunet.core.errors import InputError, ModelError
from napari_kdunet.core.files import write_bytes
from napari_kdunet.core.networks.protocol import Network, UsualUNet
from napari_kdunet.core.networks.unet import KUNet

__all__ = ["Model", "bundled_models", "load_model"]

_KEY = "napari_kdunet"
_FORMAT = 1


@dataclass(frozen=True)
class Model:
    """A network and all that is needed to apply it.

    Attributes
    ----------
    net : nn.Module
        (N, channels, Y, X) float, standardised slice by slice, to (N, classes, Y, X) logits. A `KUNet`, or a
        teacher's own module, which can be applied but not saved.
    pixel_size : float
        Pixel size in nm that the network works at; 0 is the image's own.
    threshold : float
        Foreground probability above which a pixel is foreground, chosen on validation.
    class_names : tuple of str
        Background first.
    summary : dict
        How it was trained: settings, split, scores. JSON values only.
    """

    net: nn.Module
    pixel_size: float = 10.0
    threshold: float = 0.5
    class_names: tuple[str, ...] = ("background", "mitochondrion")
    summary: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.net.eval()

    @property
    def traits(self) -> Network:
        """What the network says of itself: channels, classes, `multiple`, `reach` and `k`.

        Of a module that does not say, what suits the usual U-Nets.
        """
        return self.net if isinstance(self.net, Network) else UsualUNet()

    @property
    def parameter_count(self) -> int:
        """Number of learnable parameters."""
        return sum(p.numel() for p in self.net.parameters())

    @property
    def form(self) -> dict[str, Any]:
        """The settings of training that are the network's own: a training that starts from it has them alike.

        Raises
        ------
        ModelError
            If the network is not a `KUNet`.
        """
        net = self.net
        if not isinstance(net, KUNet):
            raise ModelError(f"a {type(net).__name__} is not a k-Unet: it can teach and predict, but not be saved.")
        return {"k": net.k, "bn": net.bn, "classes": net.classes, "depth": net.depth, "activation": net.activation}

    @property
    def form_and_pixel_size(self) -> dict[str, Any]:
        """The settings of a training that goes on from this model as it is: its form, and the pixel size in nm.

        Raises
        ------
        ModelError
            If the network is not a `KUNet`.
        """
        return self.form | {"pixel_size": self.pixel_size}

    def describe(self) -> dict[str, Any]:
        """All but the weights, as JSON values: what `napari-kdunet info` shows and the file's metadata holds."""
        return {
            "format": _FORMAT,
            "version": __version__,
            **self.form,
            "parameters": self.parameter_count,
            "normalisation": "standardised slice by slice",
            "pixel_size": self.pixel_size,
            "threshold": self.threshold,
            "class_names": list(self.class_names),
            "summary": self.summary,
        }

    def save(self, path: str | Path) -> Path:
        """Write the model to a ``.safetensors`` file, beside its name first and renamed when whole.

        Raises
        ------
        OutputError
            If it cannot be written.
        """
        weights = {name: value.contiguous() for name, value in self.net.state_dict().items()}
        return save_tensors(path, weights, self.describe())


def load_model(source: str | Path) -> Model:
    """Read a model from a ``.safetensors`` file or by the name of a bundled one.

    Raises
    ------
    ModelError
        If there is no such file or name, or the file is damaged or not one of ours.
    """
    path = Path(source)
    if not path.exists() and str(source) in bundled_models():
        path = bundled_models()[str(source)]
    weights, about = load_tensors(path)
    version = about.get("format")
    if isinstance(version, int) and version > _FORMAT:
        raise ModelError(f"{path} was written by napari-kdunet {about.get('version')}: update to read it.")
    try:
        net = KUNet(
            about["k"],
            about["bn"],
            classes=about["classes"],
            depth=about["depth"],
            activation=about["activation"],
        )
        net.load_state_dict(weights)
        model = Model(
            net.eval(),
            float(about["pixel_size"]),
            float(about["threshold"]),
            tuple(about["class_names"]),
            about["summary"],
        )
    except (KeyError, TypeError, ValueError, RuntimeError, InputError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{path} is not a model of napari-kdunet or is damaged ({reason}).") from error
    return model


def bundled_models() -> dict[str, Path]:
    """Names and files of the models that come with the package."""
    folder = Path(str(resources.files("napari_kdunet"))) / "models"
    return {path.stem: path for path in sorted(folder.glob("*.safetensors"))}


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> Path:
    """Write tensors and JSON metadata to one ``.safetensors`` file, beside its name first and renamed when whole."""
    path = Path(path)
    write_bytes(path, save(dict(tensors), {_KEY: json.dumps(about)}))
    return path


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_tensors` wrote; `ModelError` where that cannot be."""
    if not path.is_file():
        known = ", ".join(bundled_models())
        hint = f"give a .safetensors file or one of {known}" if known else "give a .safetensors file"
        raise ModelError(f"no model {str(path)!r}: {hint}.")
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get(_KEY, "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as .safetensors ({error}).") from error
    if not isinstance(about, dict):
        raise ModelError(f"{path} is a .safetensors file, but not of napari-kdunet.")
    return tensors, about
