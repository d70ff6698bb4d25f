"""Write a tiny model as one web page that segments slices in the browser: even on a phone, without a connection."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import re
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from napari_kdunet import __version__
from napari_kdunet.core.errors import ModelError
from napari_kdunet.core.export.c_file import LARGEST_K, ordered_weights
from napari_kdunet.core.export.example import read_middle
from napari_kdunet.core.export.kunet import exportable
from napari_kdunet.core.files import write_bytes
from napari_kdunet.core.networks.model import Model, ModelLike, load_model
from napari_kdunet.core.networks.unet import KUNet
from napari_kdunet.core.prediction.pixel_size import Limits
from napari_kdunet.core.volumes.volume import Volume, open_volume

__all__ = ["export_web"]

_DEEPEST = 6  # number of poolings that the compiled engine has room for
_WORKER = ("tiff.js", "engine.js", "pixel_size.js", "objects.js", "worker.js")
_EXAMPLE_SIDE = 320  # pixels
_EXAMPLE_QUALITY = 70  # of the example's JPEG


def export_web(model: ModelLike, path: str | Path, example: Any = None, *, name: str = "") -> Path:
    """Write a model with k up to 4 as one HTML file that opens a slice, finds its pixel size and shows the mask.

    The page holds all that it needs and may connect to nothing: it works from any static server and from a disk, in
    browsers of 2023 and later (Chrome 97, Firefox 113, Safari 16.4). The probability equals that of `predict` within
    1e-4, for slices without padding around the sample.

    Parameters
    ----------
    model : Model, path or str
        Model with a `KUNet` of two classes, or its file, or the name of a bundled one.
    path : path
        File to write (.html); it is replaced if it exists.
    example : volume, optional
        Anything that `open_volume` takes: a part of its middle slice becomes the example that the page offers.
    name : str
        Name of the model, which is the page's title; that of the file if empty.

    Returns
    -------
    Path
        `path`.

    Raises
    ------
    ModelError
        If the network is not such a `KUNet`, or too large or too deep.
    OutputError
        If the file cannot be written.
    """
    model, path = load_model(model), Path(path)
    net = exportable(model, "a web page", most=LARGEST_K, classes=2)
    if net.depth > _DEEPEST:
        raise ModelError(
            f"a U-Net of depth {net.depth} cannot be exported as a web page: depth may be up to {_DEEPEST}."
        )
    style, script, wasm = _part("page.css").strip(), _part("page.js"), _file("kdunet.wasm")
    settings = _settings(model, net) | {"example": None if example is None else _example(open_volume(example))}
    size = f"at {model.pixel_size:g} nm" if model.pixel_size else "at the pixels of the image"
    values = {
        "TITLE": html.escape(name or path.stem),
        "FOREGROUND": html.escape(model.class_names[1]),
        "ABOUT": f"A {net.k}-Unet of {net.parameter_count:,} parameters that works {size}, made by napari-kdunet "
        f"{__version__}.",
        "POLICY": f"default-src 'none'; script-src '{_digest(script)}' 'wasm-unsafe-eval'; "
        f"style-src '{_digest(style)}'; worker-src blob:; img-src data: blob:; base-uri 'none'; form-action 'none'",
        "STYLE": style,
        "MODEL": json.dumps(settings).replace("<", "\\u003c"),
        "WASM": _base64(wasm),
        "WEIGHTS": _base64(ordered_weights(net).astype("<f4").tobytes()),
        "WORKER": "".join(map(_part, _WORKER)),
        "SCRIPT": script,
    }
    page = re.sub(r"@([A-Z]+)@", lambda token: values[token[1]], _part("page.html"))
    write_bytes(path, page.encode())
    return path


def _settings(model: Model, net: KUNet) -> dict[str, Any]:
    """Return what the page needs to know about a model besides its weights."""
    return {
        "k": net.k,
        "depth": net.depth,
        "slope": net.slope,
        "reach": net.reach,
        "pixelSize": model.pixel_size,
        "threshold": model.threshold,
        "limits": asdict(Limits.of(model)),
    }


def _example(volume: Volume) -> dict[str, Any]:
    """Return the middle of the middle slice as a JPEG file for the page."""
    pixels = read_middle(volume, (_EXAMPLE_SIDE, _EXAMPLE_SIDE))
    low, high = np.percentile(pixels, (0.2, 99.8))
    grey = np.clip((pixels - low) / max(float(high - low), 1e-6) * 255, 0, 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(grey).save(stream, "JPEG", quality=_EXAMPLE_QUALITY)
    size = volume.voxel_size[2] if volume.voxel_size else None
    return {"name": "example.jpg", "type": "image/jpeg", "data": _base64(stream.getvalue()), "pixel": size}


def _file(name: str) -> bytes:
    return (resources.files("napari_kdunet") / "core/export/web" / name).read_bytes()


def _part(name: str) -> str:
    return _file(name).decode()


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _digest(content: str) -> str:
    """Return the hash by which a content security policy allows a script or style."""
    return f"sha256-{_base64(hashlib.sha256(content.encode()).digest())}"
