"""What an output may not replace, found before any work."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
import zarr

from folders import contents, names
from napari_kdunet.core.errors import OutputError
from napari_kdunet.core.writing.target import check_apart, check_target
from napari_kdunet.core.writing.writer import iter_write, write_volume

PIXELS = np.ones((3, 20, 30), np.uint8)


def test_what_may_be_written(tmp_path):
    assert check_target(str(tmp_path / "OUT.TIF")) == tmp_path / "OUT.TIF"
    for suffix in (".tif", ".tiff", ".zarr", ".h5", ".hdf5", ".mrc"):
        check_target(tmp_path / f"out{suffix}")
    check_target(tmp_path / "m.npz", (".npz",))


def test_what_may_not(tmp_path, monkeypatch, one_line):
    (tmp_path / "folder.tif").mkdir()
    (tmp_path / "photos.zarr").mkdir()
    (tmp_path / "file.zarr").write_text("")
    wrong = {
        "out.png": ".tif or .tiff or .zarr or .h5 or .hdf5 or .mrc",
        "out": ".tif",
        "no/out.tif": "no folder",
        "folder.tif": "folder",
        "photos.zarr": "not a Zarr",
        "file.zarr": "not a Zarr",
    }
    for overwrite in (False, True):
        for name, match in wrong.items():
            with one_line(OutputError, str(tmp_path / name), match):
                iter_write(PIXELS, tmp_path / name, overwrite=overwrite)  # at once, before the first slice
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    with one_line(OutputError, "no permission"):
        check_target(tmp_path / "out.tif")


@pytest.mark.parametrize("suffix", [".tif", ".zarr", ".h5", ".mrc"])
def test_names_that_are_too_long(tmp_path, suffix):
    with pytest.raises(OutputError, match="name is longer"):
        check_target(tmp_path / ("n" * 240 + suffix))
    with pytest.raises(OutputError, match="path is longer"):
        check_target(Path(tmp_path, *["d" * 100] * 60, f"out{suffix}"))
    with pytest.raises(OutputError, match="no folder"):
        check_target(tmp_path / ("d" * 300) / f"out{suffix}")
    longest = tmp_path / ("ü" * 90 + suffix)
    write_volume(PIXELS, longest)
    assert [path.name for path in tmp_path.iterdir()] == [longest.name]


@pytest.mark.parametrize("suffix", [".tif", ".zarr", ".h5", ".mrc"])
def test_an_existing_result_is_replaced_only_if_asked(tmp_path, suffix, one_line):
    path = tmp_path / f"out{suffix}"
    write_volume(PIXELS, path)
    before = contents(tmp_path)
    with one_line(OutputError, str(path), "--overwrite", "overwrite=True"):
        write_volume(2 * PIXELS, path)
    assert contents(tmp_path) == before
    write_volume(2 * PIXELS, path, overwrite=True)
    assert contents(tmp_path) != before
    assert names(tmp_path) == [path.name]


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize(
    "where",
    [
        "note.txt",
        "0/note.txt",
        "0/3/note.txt",
        "photos/1.jpg",
        "raw/zarr.json",
        "0/7",
        "0/c/7",
        "0/c/0/0/1",
        "0/c/zarr.json",
        "0/0/.zarray",
        "7",
        "0/3/0/0",
    ],
)
def test_what_a_user_put_into_a_result_of_ours_is_kept(tmp_path, version, where, one_line):
    path = tmp_path / "out.zarr"
    write_volume(PIXELS, path, ome_version=version)
    (path / where).parent.mkdir(parents=True, exist_ok=True)
    (path / where).write_text("mine")
    with one_line(OutputError, str(path), where.partition("/")[0], "another name"):
        write_volume(PIXELS, path, overwrite=True)
    assert (path / where).read_text() == "mine"


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_zarr_of_others_is_never_replaced(tmp_path, zarr_format, one_line):
    group = zarr.open_group(tmp_path / "group.zarr", mode="w", zarr_format=zarr_format)
    for name in ("raw", "gt"):
        group.create_array(name, data=PIXELS)
    zarr.create_array(tmp_path / "array.zarr", data=PIXELS, zarr_format=zarr_format)
    write_volume(PIXELS, tmp_path / "image.zarr", ome_version="0.4" if zarr_format == 2 else "0.5")
    image = zarr.open_group(tmp_path / "image.zarr")
    del image.attrs["napari_kdunet"]  # as any other program writes an OME-Zarr
    zarr.open_group(tmp_path / "empty.zarr", mode="w", zarr_format=zarr_format)
    before = contents(tmp_path)
    for name in ("group", "array", "image", "empty"):
        with one_line(OutputError, f"{name}.zarr", "not written"):
            write_volume(PIXELS, tmp_path / f"{name}.zarr", overwrite=True)
    assert contents(tmp_path) == before
    write_volume(PIXELS, tmp_path / "ours.zarr")
    zarr.open_group(tmp_path / "ours.zarr").attrs["remark"] = "mine"
    with one_line(OutputError, "remark"):
        write_volume(PIXELS, tmp_path / "ours.zarr", overwrite=True)


def test_a_link_is_followed(tmp_path):
    (tmp_path / "there").mkdir()
    for name in ("out.tif", "out.zarr", "out.h5"):
        link, real = tmp_path / name, tmp_path / "there" / f"real-{name}"
        link.symlink_to(real)
        write_volume(PIXELS, link)
        assert link.is_symlink()
        assert real.exists()
        with pytest.raises(OutputError, match="--overwrite"):
            write_volume(PIXELS, link)
        write_volume(PIXELS, link, overwrite=True)
    assert names(tmp_path / "there") == ["real-out.h5", "real-out.tif", "real-out.zarr"]
    (tmp_path / "lost.tif").symlink_to(tmp_path / "nowhere" / "out.tif")
    with pytest.raises(OutputError, match="no folder"):
        write_volume(PIXELS, tmp_path / "lost.tif")


@pytest.fixture
def inputs(tmp_path) -> Path:
    """A folder with a TIFF, a folder of slices, one of links to such, and a Zarr."""
    tifffile.imwrite(tmp_path / "raw.tif", PIXELS, photometric="minisblack")
    for folder in ("slices", "links", "elsewhere"):
        (tmp_path / folder).mkdir()
    for z in range(3):
        tifffile.imwrite(tmp_path / "slices" / f"{z}.tif", PIXELS[z])
        tifffile.imwrite(tmp_path / "elsewhere" / f"{z}.tif", PIXELS[z])
        (tmp_path / "links" / f"{z}.tif").symlink_to(tmp_path / "elsewhere" / f"{z}.tif")
    zarr.open_group(tmp_path / "raw.zarr", mode="w").create_array("em", data=PIXELS)
    write_volume(PIXELS, tmp_path / "result.zarr")
    zarr.open_group(tmp_path / "group.zarr", mode="w")
    (tmp_path / "group.zarr" / "em").symlink_to(tmp_path / "result.zarr" / "0")
    (tmp_path / "alias").symlink_to(tmp_path / "slices")
    os.link(tmp_path / "raw.tif", tmp_path / "twin.tif")
    return tmp_path


@pytest.mark.parametrize(
    ("out", "given"),
    [
        ("raw.tif", "raw.tif"),
        ("slices/../raw.tif", "raw.tif"),
        ("twin.tif", "raw.tif"),
        ("slices/1.tif", "slices"),
        ("slices/new.tif", "slices"),
        ("slices/new.zarr", "slices"),
        ("alias/new.tif", "slices"),
        ("slices/new.tif", "alias"),
        ("elsewhere/1.tif", "links"),
        ("raw.zarr", "raw.zarr"),
        ("raw.zarr", "raw.zarr/em"),
        ("raw.zarr/new.zarr", "raw.zarr"),
        ("raw.zarr/em/new.zarr", "raw.zarr/em"),
        ("raw.tif", "raw.tif:/data"),
        ("result.zarr", "group.zarr"),
    ],
)
def test_an_output_is_apart_from_the_inputs(inputs, out, given, one_line):
    with one_line(OutputError, str(inputs / out), str(inputs / given), "another name"):
        check_target(inputs / out, inputs=["lucchi-2unet", inputs / given], overwrite=True)


def test_outputs_beside_the_inputs(inputs):
    for out in ("new.tif", "elsewhere/new.tif", "slices.tif", "raw.tif.zarr"):
        check_target(inputs / out, inputs=["lucchi-2unet", *(inputs / name for name in ("raw.tif", "links", "slices"))])
    check_target(inputs / "raw.zarr" / "mask.zarr", inputs=[inputs / "raw.zarr" / "em"])
    check_apart(inputs, [inputs / "raw.tif"], adds=True)
    with pytest.raises(OutputError, match="contains the input"):
        check_apart(inputs, [inputs / "raw.tif"])
    with pytest.raises(OutputError, match="in the input"):
        check_apart(inputs / "slices" / "results", [inputs / "slices"], adds=True)


def test_parts_of_an_input_are_inputs(tmp_path, one_line):
    """Other files that an OME-TIFF, an HDF5 or an NRRD takes pixels of."""
    tifffile.imwrite(tmp_path / "a.ome.tif", PIXELS, photometric="minisblack", ome=True, metadata={"axes": "ZYX"})
    text = tifffile.tiffcomment(tmp_path / "a.ome.tif")
    part = '<TiffData FirstZ="1" IFD="0" PlaneCount="1"><UUID FileName="part.tif">urn:uuid:1</UUID></TiffData>'
    at = text.index("</Pixels>")
    tifffile.tiffcomment(tmp_path / "a.ome.tif", (text[:at] + part + text[at:]).encode())
    (tmp_path / "a.nhdr").write_text(
        "NRRD0004\ntype: uint8\ndimension: 2\nsizes: 4 4\nencoding: raw\ndata file: part.tif\n"
    )
    layout = h5py.VirtualLayout(PIXELS.shape, "u1")
    layout[:] = h5py.VirtualSource("part.tif", "em", shape=PIXELS.shape)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_virtual_dataset("em", layout)
    tifffile.imwrite(tmp_path / "part.tif", PIXELS, photometric="minisblack")
    (tmp_path / "link.tif").symlink_to("part.tif")
    for given in ("a.ome.tif", "a.nhdr", "a.h5", "a.h5:/em"):
        for out in ("part.tif", "link.tif"):
            with one_line(OutputError, str(tmp_path / out), str(tmp_path / given), "takes pixels from it"):
                check_target(tmp_path / out, inputs=[tmp_path / given], overwrite=True)
        check_target(tmp_path / "new.tif", inputs=[tmp_path / given])


def test_a_device_or_a_pipe_is_not_replaced(tmp_path, one_line):
    os.mkfifo(tmp_path / "out.tif")
    (tmp_path / "null.tif").symlink_to("/dev/null")
    for name in ("out.tif", "null.tif"):
        with one_line(OutputError, str(tmp_path / name), "device or a pipe"):
            check_target(tmp_path / name, overwrite=True)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_links_and_attributes_in_a_result_of_ours_are_kept(tmp_path, version, one_line):
    def changed(change) -> None:
        write_volume(PIXELS, tmp_path / "out.zarr", ome_version=version)
        change(tmp_path / "out.zarr")
        with one_line(OutputError, "out.zarr", "not written"):
            write_volume(PIXELS, tmp_path / "out.zarr", overwrite=True)
        shutil.rmtree(tmp_path / "out.zarr")

    chunk = Path("0/c/0/0/0" if version == "0.5" else "0/0/0/0")
    changed(lambda path: zarr.open_array(path / "0").attrs.update(remark="mine"))
    changed(lambda path: (path / chunk).unlink() or (path / chunk).symlink_to(tmp_path))
    changed(lambda path: (path / chunk.parent / "9").symlink_to(tmp_path))
    changed(lambda path: (path / (".zattrs" if version == "0.5" else "zarr.json")).write_text("mine"))


@pytest.mark.parametrize("name", ["a\0.tif", "a\ud800.tif", "a\0.zarr", "a\ud800.zarr"])
def test_names_that_no_file_can_have(tmp_path, one_line, name):
    message = "a character in its name that no file can have"
    with one_line(OutputError, message):
        check_target(tmp_path / name)
    with one_line(OutputError, message):
        write_volume(PIXELS, tmp_path / name)
    assert contents(tmp_path) == {}
