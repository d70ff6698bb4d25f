"""The sample data, the download served by this machine."""

import hashlib
import http.server
import io
import threading
import zipfile

import numpy as np
import pooch
import pytest
from PIL import Image

from napari_kdunet.core import VolumeError
from napari_kdunet.widgets import samples

SHAPE = (12, 6, 8)


def archive(colour: bool) -> bytes:
    """A zip in the layout of Lucchi++, whose masks are RGBA and named otherwise in some copies."""
    rng, buffer = np.random.default_rng(0), io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("__MACOSX/Lucchi++/Train_In/._mask0000.png", b"not an image")
        for part in ("Train", "Test"):
            for z in range(SHAPE[0]):
                raw = rng.integers(0, 255, SHAPE[1:], dtype=np.uint8)
                raw[0, 0] = z
                mask = np.where(raw > 99, 255, 0).astype(np.uint8)
                if colour:
                    mask = np.dstack([mask] * 3 + [np.full_like(mask, 255)])
                out = f"{z}.png" if colour else f"mask{z:04}.png"
                for name, pixels in ((f"In/mask{z:04}.png", raw), (f"Out/{out}", mask)):
                    png = io.BytesIO()
                    Image.fromarray(pixels).save(png, "PNG")
                    file.writestr(f"Lucchi++/{part}_{name}", png.getvalue())
    return buffer.getvalue()


@pytest.fixture
def serve(tmp_path, monkeypatch):
    """Serve bytes in the place of the real address, from a cache of this test; gives the requests made."""
    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / name)
    servers = []

    def start(content: bytes, sha256: str | None = None) -> list[str]:
        requests = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                requests.append(self.path)
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(samples, "URL", f"http://127.0.0.1:{server.server_port}/lucchi_pp.zip")
        monkeypatch.setattr(samples, "SHA256", sha256 or hashlib.sha256(content).hexdigest())
        return requests

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_synthetic_layers(make_napari_viewer, monkeypatch):
    from napari_kdunet.sample import synthetic_em

    monkeypatch.setattr(samples, "synthetic_em", lambda: synthetic_em((4, 64, 64), seed=1))
    viewer = make_napari_viewer()
    image, labels = viewer.open_sample("napari-kdunet", "synthetic")
    assert (image._type_string, labels._type_string) == ("image", "labels")
    assert image.data.shape == labels.data.shape == (4, 64, 64)
    assert set(np.unique(labels.data)) == {0, 1}
    for layer in (image, labels):
        np.testing.assert_array_equal(layer.scale, (10, 10, 10))
        assert [str(unit) for unit in layer.units] == ["nanometer"] * 3
        assert layer.axis_labels == ("z", "y", "x")


@pytest.mark.parametrize("colour", [False, True])
def test_lucchi_layers(make_napari_viewer, serve, colour):
    requests = serve(archive(colour))
    viewer = make_napari_viewer()
    image, labels = viewer.open_sample("napari-kdunet", "lucchi")
    assert image.data.shape == labels.data.shape == SHAPE
    np.testing.assert_array_equal(image.data[:, 0, 0], range(SHAPE[0]))  # slices in their order
    np.testing.assert_array_equal(labels.data, image.data > 99)
    assert labels.data.dtype == np.uint8
    np.testing.assert_array_equal(image.scale, (5, 5, 5))
    assert "Casser" in image.metadata["cite"]
    test_image, _ = viewer.open_sample("napari-kdunet", "lucchi-test")
    assert test_image.name == "EPFL hippocampus test"
    assert not np.array_equal(test_image.data, image.data)
    assert len(requests) == 1  # the second came from the cache


def test_offline_is_one_clear_message(qtbot, serve, monkeypatch):
    serve(b"")
    monkeypatch.setattr(samples, "URL", "http://127.0.0.1:9/lucchi_pp.zip")  # nobody answers there
    with pytest.raises(VolumeError, match="check the internet connection") as caught:
        samples.lucchi_train()
    assert "\n" not in str(caught.value)


def test_another_file_is_refused(qtbot, serve, tmp_path):
    serve(archive(False), sha256="0" * 64)
    with pytest.raises(VolumeError, match="SHA-256 differs"):
        samples.lucchi_train()
    assert not list((tmp_path / "napari-kdunet").iterdir())


def test_window_stays_alive_meanwhile(qtbot):
    from qtpy.QtCore import QTimer

    asked, answered = threading.Event(), []
    QTimer.singleShot(0, lambda: (answered.append(threading.current_thread()), asked.set()))

    def make(_):
        assert asked.wait(5)
        return threading.current_thread()

    assert samples._in_background(make, "Waiting") is not threading.main_thread()
    assert answered == [threading.main_thread()]
