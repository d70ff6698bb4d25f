"""Models as a web page: what Chromium computes with it is what `core.predict` computes, and the page can be used."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path

import numpy as np
import pytest
import tifffile
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from scipy import ndimage
from torch import nn

from browser import DESKTOP, PHONE, Page, chromium
from napari_kdunet import core
from napari_kdunet.sample import synthetic_em

PIXEL = 5.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("web")


@pytest.fixture(scope="module")
def raw() -> np.ndarray:
    return synthetic_em((3, 200, 290), voxel_size=(PIXEL,) * 3)[0]


@pytest.fixture(scope="module")
def html(folder, raw) -> Path:
    example = core.open_volume(raw, voxel_size=(PIXEL,) * 3)
    return core.export_web(core.load_model("lucchi-2unet"), folder / "page.html", example, name="lucchi-2unet")


@pytest.fixture(scope="module")
def page(folder):
    downloads = folder / "downloads"
    downloads.mkdir()
    with chromium(downloads) as driver:
        yield Page(driver, downloads)


def predicted(path: Path, model: str = "lucchi-2unet", z: int | None = None) -> np.ndarray:
    volume = core.open_volume(path)
    return np.asarray(core.predict(core.load_model(model), volume)[len(volume) // 2 if z is None else z])


# ------------------------------------------------------------------------------------------------------- the file


def test_it_is_small_and_stands_alone(html):
    text = html.read_text(encoding="utf-8")
    assert len(text.encode()) < 300_000
    assert not re.search(r"https?:|\bsrc=|@[A-Z]+@", text)
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]+)"', text)
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-inline" not in policy
    assert "'unsafe-eval'" not in policy


def test_names_are_text(model, tmp_path):
    strange = core.Model(model(k=1, depth=1).net, class_names=("background", '<b>&"x</script>'))
    text = core.export_web(strange, tmp_path / "m.html", name="</title><script>alert(1)</script>").read_text()
    assert "<b>" not in text
    assert "alert(1)</script>" not in text
    assert text.count("</script>") == 5


def test_what_cannot_be_exported(model, tmp_path):
    path = tmp_path / "m.html"
    path.write_text("before")
    for wrong in (model(k=5, depth=1), model(k=1, depth=1, classes=3), core.Model(nn.Conv2d(1, 2, 1))):
        with pytest.raises(core.ModelError, match="cannot be exported as a web page") as told:
            core.export_web(wrong, path)
        assert len(str(told.value)) < 300
    with pytest.raises(core.ModelError, match="depth 7 cannot be exported as a web page"):
        core.export_web(core.Model(core.KUNet(1, depth=7)), path)
    assert path.read_text() == "before"
    assert [each.name for each in tmp_path.iterdir()] == ["m.html"]


def test_the_module_is_what_its_source_gives():
    script = Path(__file__).parents[3] / "scripts/wasm.py"
    if not script.exists():
        pytest.skip("no scripts beside these tests")
    spec = importlib.util.spec_from_file_location("wasm", script)
    wasm = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(wasm)
    if wasm.compiler() != wasm.VERSION:
        pytest.skip(f"emscripten {wasm.VERSION} is not installed")
    assert wasm.compiled() == (wasm.FOLDER / "kdunet.wasm").read_bytes(), "run scripts/wasm.py"


# ------------------------------------------------------------------------------------------------- in the browser


def check_parity(page: Page, path: Path, model: str = "lucchi-2unet") -> None:
    """All that is saved of a slice against `predict`."""
    said = page.open(path)
    volume, expected = core.open_volume(path), predicted(path, model)
    saved = core.open_volume(page.save("probability"))
    assert saved.voxel_size[1:] == pytest.approx(volume.voxel_size[1:])
    probability = saved[0]
    assert_allclose(probability, expected, atol=1e-4)
    threshold = core.load_model(model).threshold
    for kind in ("mask.png", "mask.tif"):
        assert_array_equal(core.open_volume(page.save(kind))[0], 255 * (probability > threshold))
    labels, count = ndimage.label(probability > threshold, np.ones((3, 3)))
    assert said.startswith(f"{count} object")
    table = np.genfromtxt(page.save("objects.csv"), delimiter=",", names=True, ndmin=1)
    sizes = np.bincount(labels.ravel())[1:]
    assert_array_equal(table["pixels"], sorted(sizes, reverse=True))
    assert_allclose(table["area_nm2"], table["pixels"] * np.prod(volume.voxel_size[1:]), atol=1)
    largest = ndimage.center_of_mass(labels == sizes.argmax() + 1)
    assert_allclose((table["centre_y"][0], table["centre_x"][0]), largest, atol=0.06)


@pytest.mark.slow
@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_it_is_predict(page, html, folder, raw, size):
    page.visit(html, size)
    core.write_volume(raw, folder / "raw.tif", voxel_size=(PIXEL,) * 3, overwrite=True)
    check_parity(page, folder / "raw.tif")
    assert page.run("return document.documentElement.scrollWidth <= innerWidth")
    assert page.complaints() == []


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.skipif("KDUNET_DATA" not in os.environ, reason="KDUNET_DATA does not name a folder of real EM volumes")
@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_it_is_predict_on_a_real_slice(page, html, size):
    page.visit(html, size)
    check_parity(page, Path(os.environ["KDUNET_DATA"]) / "lucchi-val-raw.tif")


@pytest.mark.slow
def test_tiles_are_one_image(page, folder):
    path = core.export_web(core.load_model("lucchi-4unet"), folder / "four.html")
    rng = np.random.default_rng(0)
    image = ndimage.gaussian_filter(rng.standard_normal((1430, 1101)), 3, mode="wrap")
    image = (image / image.std() * 30 + 120 + rng.normal(0, 6, image.shape)).clip(0, 255).astype(np.uint8)
    tifffile.imwrite(folder / "large.tif", image, imagej=True, metadata={"unit": "nm"}, resolution=(1 / 8, 1 / 8))
    page.visit(path)
    page.open(folder / "large.tif")
    assert_allclose(page.probability(), predicted(folder / "large.tif", "lucchi-4unet"), atol=1e-4)


WRITTEN = {
    "plain": {},
    "deflate": {"compression": "deflate", "predictor": True, "rowsperstrip": 7},
    "lzw": {"compression": "lzw", "tile": (32, 48)},
    "lzw-predictor": {"compression": "lzw", "predictor": True},
    "packbits": {"compression": "packbits"},
    "big": {"bigtiff": True, "byteorder": ">"},
    "16": {"compression": "deflate", "predictor": True, "byteorder": ">"},
    "lzw-16": {"compression": "lzw", "predictor": True},
    "float": {"compression": "deflate", "predictor": True, "tile": (64, 64)},
    "float-plain": {"byteorder": ">"},
    "white-is-0": {"photometric": "miniswhite"},
    "imagej": {"imagej": True},
    "ome": {"ome": True},
}


@pytest.mark.slow
def test_tiffs(page, html, folder, raw):
    """Whatever way a microscope's program writes a stack, it is read as it is by `open_volume`."""
    page.visit(html)
    for name, how in WRITTEN.items():
        path, kind = folder / f"{name}.tif", np.float32 if "float" in name else np.uint16 if "16" in name else np.uint8
        stack = (raw.astype(kind) - kind(3 if kind is np.float32 else 0)) * kind(1 if kind is np.uint8 else 200)
        pixel = {"PhysicalSizeX": PIXEL, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": PIXEL, "PhysicalSizeYUnit": "nm"}
        metadata = {"axes": "ZYX"} | (pixel if name == "ome" else {"unit": "nm"} if name == "imagej" else {})
        size = {} if name == "ome" else {"resolution": (1 / PIXEL,) * 2, "resolutionunit": None}
        if name not in ("ome", "imagej"):
            size = {"resolution": (1e7 / PIXEL,) * 2, "resolutionunit": "centimeter"}
        tifffile.imwrite(path, stack, **({"photometric": "minisblack"} | how), metadata=metadata, **size)
        said = page.open(path)
        assert "object" in said, (name, said)
        assert page.run("return [state.slices, state.pixel]") == [3, [PIXEL, PIXEL]], name
        assert_allclose(page.probability(), predicted(path), atol=1e-4, err_msg=name)
    page.run("at('slice').value = 3; at('slice').dispatchEvent(new Event('change'))")
    page.until("return state.ready && state.z === 2")
    assert_allclose(page.probability(), predicted(path, z=2), atol=1e-4)


@pytest.mark.slow
def test_pictures_and_the_pixel_size_that_is_found(page, html, folder):
    """Of PNG and JPEG nothing is known: the size is that of `find_pixel_size`, and so is each doubt on the way."""
    image = synthetic_em((1, 420, 610), voxel_size=(6.0, 6.0, 6.0))[0][0]
    Image.fromarray(image).save(folder / "picture.png")
    Image.fromarray(255 - image).save(folder / "inverted.png")
    page.visit(html)
    model = core.load_model("lucchi-2unet")
    for name in ("picture.png", "inverted.png"):
        page.open(folder / name)
        found, expected = page.run("return state.found"), core.find_pixel_size(model, folder / name)
        assert [each["size"] for each in found["tried"]] == pytest.approx([each.pixel_size for each in expected.tried])
        ours = [np.inf if each["doubt"] is None else each["doubt"] for each in found["tried"]]
        assert_allclose(ours, [each.doubt for each in expected.tried], atol=1e-4)
        assert (found["size"], found["inverted"]) == (expected.pixel_size, expected.inverted)
        page.set_pixel_size(PIXEL)
        volume = core.open_volume(folder / name, voxel_size=(PIXEL,) * 3, invert=expected.inverted)
        assert_allclose(page.probability(), core.predict(model, volume)[0], atol=1e-4)
    Image.fromarray(np.stack([image] * 3, -1)).save(folder / "photo.jpg", quality=95)
    assert "object" in page.open(folder / "photo.jpg")


@pytest.mark.slow
def test_settings_change_the_result(page, html, folder, raw):
    tifffile.imwrite(folder / "s.tif", raw[:1], imagej=True, metadata={"unit": "nm"}, resolution=(1 / PIXEL, 1 / PIXEL))
    page.visit(html)
    page.open(folder / "s.tif")
    before, probability = page.text("summary"), page.probability()
    page.find("threshold").send_keys("\ue012" * 20)  # arrow left
    page.until(f"return at('summary').textContent !== {before!r}")
    threshold = float(page.text("level"))
    assert threshold == pytest.approx(core.load_model("lucchi-2unet").threshold - 0.2, abs=0.011)
    share = 100 * (probability > threshold).mean()
    page.until(f"return Math.abs(parseFloat(at('summary').textContent.split(', ')[1]) - {share}) < 0.06 * {share}")
    count = page.text("summary")
    page.find("least").send_keys("0000")  # 00000: none
    assert page.text("summary") == count
    page.find("least").send_keys("\ue009a\ue000" + "10000000")
    page.until("return at('summary').textContent.startsWith('0 objects')")
    for value in (20.0, None):
        page.set_pixel_size(value)
        volume = core.open_volume(raw[:1], voxel_size=(value or 10.0,) * 3)
        assert_allclose(page.probability(), core.predict(core.load_model("lucchi-2unet"), volume)[0], atol=1e-4)
    page.find("see").click()
    assert not page.find("overlay").is_displayed()


@pytest.mark.slow
def test_bad_files_are_one_line_and_leave_the_page_usable(page, html, folder, raw):
    good = folder / "good.tif"
    tifffile.imwrite(good, raw[:1], imagej=True, metadata={"unit": "nm"}, resolution=(1 / PIXEL, 1 / PIXEL))
    bad = {name: folder / f"bad-{name}.tif" for name in ("text", "empty", "cut", "cut-lzw", "zstd", "nan", "palette")}
    bad["text"].write_text("no image")
    bad["empty"].write_bytes(b"")
    bad["cut"].write_bytes(good.read_bytes()[:-5000])
    tifffile.imwrite(bad["cut-lzw"], raw[:1], compression="lzw")
    bad["cut-lzw"].write_bytes(bad["cut-lzw"].read_bytes()[:9000])
    tifffile.imwrite(bad["zstd"], raw[:1], compression="zstd")
    tifffile.imwrite(bad["nan"], np.where(raw[:1] > 200, np.nan, raw[:1]).astype(np.float32))
    tifffile.imwrite(bad["palette"], raw[0], photometric="palette", colormap=np.zeros((3, 256), np.uint16))
    page.visit(html)
    for path in bad.values():
        said = page.open(path)
        assert said.startswith(f"{path.name} cannot be used: "), said
        assert len(said) < 200
        assert not page.find("panel").is_displayed()
    said = page.open(good)
    assert page.open(bad["zstd"]).startswith("bad-zstd.tif cannot be used: its compression (50000)")
    page.run("remask()")
    page.until(f"return at('summary').textContent === {said!r}")


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everybody_can_use_it(page, html, scheme):
    """All that can be reached has a name, and text has a contrast of 4.5 at least."""
    page.visit(html, PHONE, scheme)
    page.find("example").click()
    assert "object" in page.said()
    page.driver.execute_cdp_cmd("Accessibility.enable", {})
    nodes = page.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    roles = {"button", "slider", "spinbutton", "checkbox", "image", "group", "progressbar"}
    named = [(node["role"]["value"], node["name"]["value"]) for node in nodes if node["role"]["value"] in roles]
    assert len(named) > 12
    assert [role for role, name in named if not name.strip()] == []
    assert page.run("return at('summary').getAttribute('aria-live')") == "polite"
    ratios = page.run(CONTRASTS)
    assert len(ratios) > 15
    assert [entry for entry in ratios if entry[1] < 4.5] == []


CONTRASTS = """
const parse = (text) => text.match(/[\\d.]+/g).map(Number);
const linear = (v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
const ground = (element) => {
  for (; element; element = element.parentElement) {
    const colour = parse(getComputedStyle(element).backgroundColor);
    if (colour.length < 4 || colour[3] > 0) return colour;
  }
};
return [...document.querySelectorAll("body *")].filter((each) => each.offsetParent && !each.disabled
    && [...each.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim())).map((each) => {
  const [a, b] = [light(parse(getComputedStyle(each).color)), light(ground(each))].sort((x, y) => y - x);
  return [each.textContent.trim().slice(0, 40), (a + 0.05) / (b + 0.05)];
});
"""


@pytest.mark.slow
def test_nothing_leaves_the_device(page, html):
    page.visit(html)
    page.complaints()
    script = "const done = arguments[1]; fetch(arguments[0]).then(() => done('sent'), () => done('refused'))"
    assert page.driver.execute_async_script(script, "http://127.0.0.1:9/") == "refused"
    assert any("Content Security Policy" in line for line in page.complaints())
    assert page.find("camera").get_dom_attribute("capture") == "environment"
