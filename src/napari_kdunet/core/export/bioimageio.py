"""Write a model as a package for bioimage.io: weights for torch and ONNX, with nothing of napari-kdunet needed."""

from __future__ import annotations

import hashlib
import io
import json
import math
import unicodedata
import zipfile
from contextlib import suppress
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from napari_kdunet import __version__
from napari_kdunet.core.errors import ConfigError
from napari_kdunet.core.export.example import read_middle
from napari_kdunet.core.export.kunet import exportable
from napari_kdunet.core.files import write_bytes
from napari_kdunet.core.networks.model import Model, ModelLike, load_model
from napari_kdunet.core.networks.unet import KUNet
from napari_kdunet.core.prediction.engine import folded
from napari_kdunet.core.volumes.resampling import Grid
from napari_kdunet.core.volumes.volume import Volume, open_volume

__all__ = ["export_bioimageio"]

_FORMAT = "0.5.12"  # version of the description that bioimageio.core 0.11 reads
_LEAST_NAME = 5  # characters of a model's name
_EPS = 1e-6  # added to the standard deviation
_PAPER = {
    "text": "Mangalam, K. and Salzmann, M., On Compressing U-net Using Knowledge Distillation, 2018",
    "doi": "10.48550/arXiv.1812.00249",
}
_COVER_SIDE = 256  # pixels; the cover is twice as wide

_Float: TypeAlias = NDArray[np.float32]


def export_bioimageio(
    model: ModelLike, path: str | Path, example: Any, *, author: str, license: str, name: str = ""
) -> Path:
    """Write a model as a bioimage.io package: weights for torch and ONNX, test tensors, documentation, cover.

    The package holds the network alone, at the working pixel size: whoever applies it standardises and resamples as
    its description says. The weights for torch and for ONNX both give the test output.

    Parameters
    ----------
    model : Model, path or str
        Model with a `KUNet`, or its file, or the name of a bundled one.
    path : path
        File to write (.zip); it is replaced if it exists.
    example : volume
        Anything that `open_volume` takes: the middle of its middle slice becomes the test input and the cover, so it
        must be free to be passed on.
    author, license : str
        Author and licence of the weights; the licence as SPDX identifier, such as ``CC-BY-4.0``.
    name : str
        Name of the model; that of the file if empty.

    Returns
    -------
    Path
        `path`.

    Raises
    ------
    ModelError
        If the network is not a `KUNet`.
    ConfigError
        If author or licence is missing or invalid, or the libraries of the extra ``onnx`` are not installed.
    VolumeError
        If the example cannot be read.
    OutputError
        If the file cannot be written.
    """
    model, path = load_model(model), Path(path)
    net = exportable(model, "a bioimage.io package")
    if not author.strip() or set("/\\") & set(author):
        raise ConfigError(f"author is {author!r:.60}: give the name of who made the model, without slashes.")
    if find_spec("onnx") is None:
        raise ConfigError('to export ONNX, install what writes it: pip install "napari-kdunet[onnx]".')
    from napari_kdunet.core.export.onnx_graph import network_graph

    license = _spdx(license)
    letters = unicodedata.normalize("NFKD", name or path.stem).encode("ascii", "ignore").decode()
    name = " ".join("".join(c if c.isalnum() or c in "-_+()" else " " for c in letters).split())[:100]
    name = name if len(name) >= _LEAST_NAME else f"{net.k}-Unet {name}".strip()
    image = _test_input(open_volume(example), model, net)
    probability = _apply(net, image)
    files = {
        "weights.pt": _bytes_of(torch.save, net.state_dict()),
        "architecture.py": resources.files(__package__).joinpath("architecture.py").read_bytes(),
        "weights.onnx": network_graph(folded(net)).SerializeToString(),
        "test_input.npy": _array(image),
        "test_output.npy": _array(probability),
        "cover.png": _cover(image, probability),
        "README.md": _documentation(model, net, name).encode(),
    }
    description = _describe(model, net, name, author.strip(), license, files)
    files["bioimageio.yaml"] = json.dumps(description, indent=2).encode()  # JSON is YAML
    package = io.BytesIO()
    with zipfile.ZipFile(package, "w", zipfile.ZIP_DEFLATED) as archive:
        for inside, content in files.items():
            archive.writestr(zipfile.ZipInfo(inside), content, zipfile.ZIP_DEFLATED)
    write_bytes(path, package.getvalue())
    return path


def _least_side(net: KUNet) -> int:
    """Return the least side of an input, in pixels, of which something is left inside the halo."""
    return 2 * net.reach + net.multiple


def _test_input(volume: Volume, model: Model, net: KUNet) -> _Float:
    """Return raw values (1, 1, side, side) at the working pixel size, from the middle; a smaller image is mirrored."""
    side = max(_least_side(net), -(-_COVER_SIDE // net.multiple) * net.multiple)
    grid = Grid.in_plane(volume.voxel_size, model.pixel_size)
    stored = torch.from_numpy(read_middle(volume, (math.ceil(side / grid.ratio[0]), math.ceil(side / grid.ratio[1]))))
    working = grid.to_working(stored[None, None])[0, 0, :side, :side].numpy()
    image: _Float = np.pad(working, [(0, side - n) for n in working.shape], mode="reflect")
    return image[None, None]


def _apply(net: KUNet, image: _Float) -> _Float:
    """Return the probabilities of all classes, computed as the description says."""
    standardised = (image - image.mean(dtype=np.float64)) / (image.std(dtype=np.float64) + _EPS)
    with torch.inference_mode():
        probability: _Float = net(torch.from_numpy(standardised.astype(np.float32))).softmax(dim=1).numpy()
    return probability


def _describe(
    model: Model, net: KUNet, name: str, author: str, license: str, files: dict[str, bytes]
) -> dict[str, Any]:
    """Return the content of ``bioimageio.yaml``."""

    def file(inside: str) -> dict[str, Any]:
        return {"source": inside, "sha256": hashlib.sha256(files[inside]).hexdigest()}

    scale = {"scale": model.pixel_size, "unit": "nanometer"} if model.pixel_size else {}
    form = {"k": net.k, "bn": net.bn, "classes": net.classes, "depth": net.depth, "activation": net.activation}
    architecture = {"callable": "KUNetProbability", **file("architecture.py"), "kwargs": form}
    size = {"min": _least_side(net), "step": net.multiple}
    spaces_in = [{"type": "space", "id": each, "size": size, **scale} for each in "yx"]
    spaces_out = [
        {"type": "space", "id": each, "size": {"tensor_id": "raw", "axis_id": each}, "halo": net.reach, **scale}
        for each in "yx"
    ]
    standardise = {"id": "zero_mean_unit_variance", "kwargs": {"axes": ["channel", "y", "x"], "eps": _EPS}}
    return {
        "type": "model",
        "format_version": _FORMAT,
        "name": name,
        "description": f"A {net.k}-Unet that segments electron micrographs: {', '.join(model.class_names)[:500]}.",
        "authors": [{"name": author}],
        "license": license,
        "cite": [_PAPER],
        "tags": ["electron-microscopy", "segmentation", "semantic-segmentation", "unet", "2d", "pytorch", "onnx"],
        "documentation": file("README.md"),
        "covers": [file("cover.png")],
        "inputs": [
            {
                "id": "raw",
                "axes": [{"type": "batch"}, {"type": "channel", "channel_names": ["raw"]}, *spaces_in],
                "data": {"type": "float32"},
                "preprocessing": [standardise],
                "test_tensor": file("test_input.npy"),
            }
        ],
        "outputs": [
            {
                "id": "probability",
                "axes": [
                    {"type": "batch"},
                    {"type": "channel", "channel_names": [_identifier(each) for each in model.class_names]},
                    *spaces_out,
                ],
                "data": {"type": "float32", "range": [0, 1]},
                "test_tensor": file("test_output.npy"),
            }
        ],
        "weights": {
            "pytorch_state_dict": {
                **file("weights.pt"),
                "architecture": architecture,
                "pytorch_version": torch.__version__.partition("+")[0],
            },
            "onnx": {**file("weights.onnx"), "opset_version": 17, "parent": "pytorch_state_dict"},
        },
        "config": {"kdunet": {"version": __version__, "pixel_size": model.pixel_size, "threshold": model.threshold}},
    }


def _spdx(license: str) -> str:
    """Return an SPDX identifier in its official spelling; raises `ConfigError` where it is none."""
    from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression  # of the extra onnx

    with suppress(InvalidLicenseExpression):
        found = str(canonicalize_license_expression(license))
        if " " not in found:  # not an expression of several identifiers
            return found
    raise ConfigError(f"license is {license!r}: give an SPDX identifier such as CC-BY-4.0.")


def _identifier(text: str) -> str:
    """Return the name of a channel: lower-case letters, digits and underscores."""
    return "".join(c if c.isascii() and c.isalnum() else "_" for c in text.lower()) or "class"


def _documentation(model: Model, net: KUNet, name: str) -> str:
    size = f"{model.pixel_size:g} nm" if model.pixel_size else "that of the images it has learnt from"
    classes = ", ".join(f"{i} = {each}" for i, each in enumerate(model.class_names))
    validation = model.summary.get("validation")
    found = validation.get("iou") if isinstance(validation, dict) else None
    is_score = isinstance(found, float) and 0 < found <= 1
    scored = f"Its IoU on the held-out slices that chose its threshold is {found:.3f}. " if is_score else ""
    return f"""# {name}

## Description

A U-Net with {net.k} channels at the top and {net.parameter_count:,} parameters, made by napari-kdunet {__version__}.
It segments electron micrographs slice by slice. Channels of the output: {classes}.

## Intended Use

Resample the image to the model's pixel size, {size}, and the result back. A pixel is foreground where
the probability of all classes but the background is above {model.threshold:.3g}, which was chosen on validation.
Standardise by the mean and deviation of the sample, without what lies around it. napari-kdunet does all of this, and
mirrors the borders of the image. A network does not know images of another microscope or stain.

## Validation

{scored}Look at the mask of a slice that you know, and score some labelled slices
(`napari-kdunet evaluate MASK LABELS`).

## Citation

{_PAPER["text"]}, https://doi.org/{_PAPER["doi"]}
"""


def _cover(image: _Float, probability: _Float) -> bytes:
    """Return a PNG of the input and, beside it, the foreground probability."""
    low, high = np.percentile(image, (1, 99))
    left = np.clip((image[0, 0] - low) / max(float(high - low), 1e-6), 0, 1)
    both = np.concatenate([left[:_COVER_SIDE, :_COVER_SIDE], 1 - probability[0, 0, :_COVER_SIDE, :_COVER_SIDE]], axis=1)
    return _bytes_of(lambda picture, to: picture.save(to, "PNG"), Image.fromarray((255 * both).astype(np.uint8)))


def _array(value: _Float) -> bytes:
    return _bytes_of(lambda array, to: np.save(to, array, allow_pickle=False), value)


def _bytes_of(write: Any, value: Any) -> bytes:
    stream = io.BytesIO()
    write(value, stream)
    return stream.getvalue()
