"""Write a tiny model as one file of C99: its weights, and the code that predicts with them."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from napari_kdunet import __version__
from napari_kdunet.core.export.kunet import exportable
from napari_kdunet.core.files import write_bytes
from napari_kdunet.core.kernels.packing import packed_in_fours
from napari_kdunet.core.networks.model import ModelLike, load_model
from napari_kdunet.core.networks.unet import KUNet
from napari_kdunet.core.prediction.engine import folded, with_log_odds

__all__ = ["LARGEST_K", "export_c", "ordered_weights"]

LARGEST_K = 4

_HEAD = """\
/* {name}: a {net.k}-Unet of napari-kdunet {version}, as one file of C99 that needs only the C library (and -lm).

   size_t kdunet_bytes(int height, int width, double pixel_y, double pixel_x);
       Bytes of memory that an image of this size, with pixels of these sizes in nm, needs; 0 if it cannot be computed.
       A pixel size of 0 means unknown: it is taken as the {model.pixel_size:g} nm that the network works at. {memory}
   int kdunet_probability(const float *image, int height, int width, double pixel_y, double pixel_x,
                          const float *mean_and_std, float *probability, void *memory);
       From raw values, row by row, to the foreground probability of each pixel; both may be the same array. Mean and
       standard deviation are the image's own where none are given (a null pointer). `memory` is of `kdunet_bytes`,
       aligned as malloc does; nothing else is allocated. Returns 0, or -1 for a wrong size.

   A pixel is foreground above kdunet_threshold. Compile with -O3 and for the processor at hand: -march=native, or
   -msimd128 for WebAssembly. With -DKDUNET_MAIN it is a program. */

#include <stddef.h>

extern const float kdunet_threshold;
const float kdunet_threshold = {model.threshold!r}f;
size_t kdunet_bytes(int height, int width, double pixel_y, double pixel_x);
int kdunet_probability(const float *image, int height, int width, double pixel_y, double pixel_x,
                       const float *mean_and_std, float *probability, void *memory);

#define KD_K {net.k}
#define KD_DEPTH {net.depth}
#define KD_SLOPE {net.slope!r}f
static const double kd_pixel = {model.pixel_size!r};

static const float kd_weights[] = {{
{weights}
}};

"""


def export_c(model: ModelLike, path: str | Path, *, name: str = "") -> Path:
    """Write a model with k up to 4 as one C99 file without dependencies, from raw values to a probability.

    The comment at the top of the file says how to call it. The probability equals that of `predict` within 1e-4.

    Parameters
    ----------
    model : Model, path or str
        Model with a `KUNet` of two classes, or its file, or the name of a bundled one.
    path : path
        File to write; it is replaced if it exists.
    name : str
        Name of the model in the file; that of the file if empty.

    Returns
    -------
    Path
        `path`.

    Raises
    ------
    ModelError
        If the network is not such a `KUNet`, or too large.
    OutputError
        If the file cannot be written.
    """
    model, path = load_model(model), Path(path)
    net = exportable(model, "C", most=LARGEST_K, classes=2)
    numbers = ordered_weights(net)
    lines = [", ".join(map(_literal, numbers[i : i + 8])) for i in range(0, len(numbers), 8)]
    planes = sum(3 * net.k * 2**level / 4**level for level in range(net.depth + 1))
    text = _HEAD.format(
        name="".join(c for c in name or path.stem if c.isalnum() or c in " -_."),
        net=net,
        model=model,
        version=__version__,
        memory=f"It is {4 * planes:.0f} bytes a working pixel, and margins.",
        weights=",\n".join(lines),
    )
    code = (resources.files("napari_kdunet") / "core/export/kdunet.c").read_text(encoding="utf-8")
    write_bytes(path, (text + code).encode())
    return path


def _literal(value: np.float32) -> str:
    text = np.format_float_scientific(value, unique=True, trim="-", exp_digits=1)
    return f"{text}f"


def ordered_weights(net: KUNet) -> NDArray[np.float32]:
    """Return all weights of a network of two classes in the order in which the code reads them.

    Batch normalisation is folded in, and the two logits are replaced by their log odds.
    """
    net = with_log_odds(folded(net))
    parts: list[NDArray[np.float32]] = []
    for stage in net.down:
        parts += _stage(stage)
    for up, merge in zip(net.up, net.merge, strict=True):
        weight, bias = _numbers(up)
        for channel in range(len(bias)):  # its bias, then its weights (in, 2, 2)
            parts += [bias[[channel]], weight[:, channel].ravel()]
        parts += _stage(merge)
    weight, bias = _numbers(net.head)
    return np.concatenate([*parts, bias, weight.ravel()])


def _stage(stage: Any) -> list[NDArray[np.float32]]:
    convolutions = [layer for layer in stage if isinstance(layer, nn.Conv2d)]
    return [part for layer in convolutions for part in packed_in_fours(layer)]


def _numbers(layer: Any) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    return layer.weight.detach().cpu().numpy(), layer.bias.detach().cpu().numpy()
