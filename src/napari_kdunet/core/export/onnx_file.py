"""Write a model as an ONNX file, in 32, 16 or 8 bits."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from napari_kdunet import __version__
from napari_kdunet.core.errors import ConfigError, OutputError
from napari_kdunet.core.export.kunet import exportable
from napari_kdunet.core.files import write_bytes
from napari_kdunet.core.networks.model import Model, ModelLike, load_model
from napari_kdunet.core.prediction.engine import folded, with_log_odds
from napari_kdunet.core.volumes.volume import Volume, open_volume, shows_nothing

if TYPE_CHECKING:
    import onnx

__all__ = ["Precision", "export_onnx", "make_onnx"]

Precision = Literal["float32", "float16", "int8"]
_CALIBRATION_SLICES, _CALIBRATION_SIDE = 8, 512  # slices of a volume, and side of the window in their middle, pixels
_QUANTISED = ("Conv", "ConvTranspose", "MaxPool", "LeakyRelu", "Relu")


def export_onnx(
    model: ModelLike, path: str | Path, precision: Precision = "float32", *, calibrate: Any = None, name: str = ""
) -> Path:
    """Write a model as one ONNX file that goes from raw values to a mask, for any height and width.

    Standardisation, resampling to the working pixel size, mirrored borders, the network with fused batch
    normalisation, softmax and threshold are in the graph; `docs/export.md` describes its inputs and outputs. In
    ``float32`` the probability equals that of `predict` within 1e-4.

    Parameters
    ----------
    model : Model, path or str
        Model with a `KUNet`, or its file, or the name of a bundled one.
    path : path
        File to write; it is replaced if it exists.
    precision : {"float32", "float16", "int8"}
        Precision of the weights. ``float16`` halves the file and computes in float32; ``int8`` computes in 8 bits.
    calibrate : volume, optional
        Anything that `open_volume` takes: images of the kind that the network is for, from which ``int8`` learns the
        range of each layer's values. Required for ``int8``, and only allowed there.
    name : str
        Name of the model in the file's metadata; that of the file if empty.

    Returns
    -------
    Path
        `path`.

    Raises
    ------
    ModelError
        If the network is not a `KUNet`, or a weight is too large for ``float16``.
    ConfigError
        If `precision` is unknown or does not fit `calibrate`, or the libraries of the extra ``onnx`` are missing.
    VolumeError
        If the images to calibrate with cannot be read or show nothing.
    OutputError
        If the file cannot be written, or the temporary ones of ``int8``.
    """
    model, path = load_model(model), Path(path)
    if precision not in get_args(Precision):
        raise ConfigError(f"precision is {precision!r:.40}: choose float32, float16 or int8.")
    if (precision == "int8") != (calibrate is not None):
        need = "int8 needs images to calibrate with (calibrate)" if calibrate is None else "calibrate is for int8 only"
        raise ConfigError(f"precision is {precision}: {need}.")
    volume = None if calibrate is None else open_volume(calibrate)
    write_bytes(path, make_onnx(model, name or path.stem, volume, half=precision == "float16").SerializeToString())
    return path


def make_onnx(model: Model, name: str, calibrate: Volume | None = None, *, half: bool = False) -> onnx.ModelProto:
    """Return the model that `export_onnx` writes, in 8 bits if `calibrate` is given; raises the same errors."""
    net = exportable(model, "ONNX")
    if find_spec("onnx") is None or (calibrate is not None and find_spec("onnxruntime") is None):
        raise ConfigError('to export ONNX, install what writes it: pip install "napari-kdunet[onnx]".')
    from napari_kdunet.core.export.onnx_graph import prediction_graph

    graph = prediction_graph(with_log_odds(folded(net)), model.pixel_size, model.threshold, half, model.boundary)
    if calibrate is not None:
        graph = _quantised(graph, calibrate)
    precision = "int8" if calibrate is not None else "float16" if half else "float32"
    metadata = {
        "name": name,
        "version": __version__,
        "precision": precision,
        "pixel_size": model.pixel_size,
        "threshold": model.threshold,
        "class_names": list(model.class_names),
        **{key: getattr(net, key) for key in ("k", "depth", "multiple", "reach", "parameter_count")},
    }
    for key, value in metadata.items():
        entry = graph.metadata_props.add()
        entry.key, entry.value = f"kdunet.{key}", json.dumps(value)
    return graph


def _quantised(graph: onnx.ModelProto, volume: Volume) -> onnx.ModelProto:
    """Return a graph whose network computes in 8 bits.

    Weights are quantised symmetrically per channel, and activations in the range that they have on `volume`.
    """
    import onnx
    import onnxruntime
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.inputs = _calibration(volume)

        def get_next(self) -> dict[str, Any] | None:
            return next(self.inputs, None)

    onnxruntime.set_default_logger_severity(3)  # 2 warns of each input's default, as it is no constant
    graph.metadata_props.add(key="onnx.quant.pre_process", value="onnxruntime.quant")  # else it asks for that
    network = [node.name for node in graph.graph.node if node.op_type in _QUANTISED]
    try:
        with tempfile.TemporaryDirectory() as folder:
            written = Path(folder) / "model.onnx"
            quantize_static(
                graph,
                written,
                Reader(),
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_quantize=network,
            )
            quantised = onnx.load_model_from_string(written.read_bytes())
    except OSError as error:
        raise OutputError(
            f"cannot write the temporary files of int8: {error.strerror or error}; make room for them, or set TMPDIR "
            "to another folder"
        ) from error
    quantised.ClearField("metadata_props")
    return quantised


def _calibration(volume: Volume) -> Iterator[dict[str, Any]]:
    """Yield inputs of the graph: the middles of some slices that are spread over the volume.

    Raises
    ------
    VolumeError
        If no slice shows anything: activations would be scaled to nothing.
    """
    top, left = (max(0, (n - _CALIBRATION_SIDE) // 2) for n in volume.shape[1:])
    pixel = volume.voxel_size[1:] if volume.voxel_size else (0.0, 0.0)
    chosen = np.unique(np.linspace(0, len(volume) - 1, _CALIBRATION_SLICES).astype(int)).tolist()
    shown = [z for z in chosen if not volume.is_lost(z)]
    if not shown:
        raise shows_nothing(volume, "to calibrate on", "give another image, or other slices of it")
    for z in shown:
        mean, std = volume.statistics(z)
        window = volume.read(z, slice(top, top + _CALIBRATION_SIDE), slice(left, left + _CALIBRATION_SIDE))
        image = window[None, None].astype(np.float32)
        scalars = {"mean": np.array(mean, np.float32), "std": np.array(std, np.float32)}
        yield {"image": image, "pixel_size": np.array(pixel, np.float32), **scalars}
