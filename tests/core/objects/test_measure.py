"""Measurements of bodies of known size, at cubic and at flat voxels."""

import itertools
import math
import sys
import tracemalloc

import numpy as np
import pandas as pd
import pytest
from scipy.spatial import cKDTree

from napari_kdunet import core
from napari_kdunet.core.objects import shape
from napari_kdunet.core.objects.measure import remeasure

SIZES = [(10.0, 10.0, 10.0), (40.0, 8.0, 8.0)]


def space(voxel_size, shape_nm):
    """Places (3, Z, Y, X) in nm of the middles of voxels."""
    axes = [(np.arange(math.ceil(n / v)) + 0.5) * v for n, v in zip(shape_nm, voxel_size, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"))


def tube(places, start, end, radius):
    """Which places lie in a tube with round ends."""
    a, axis = (np.reshape(v, (3, 1, 1, 1)).astype(float) for v in (start, np.subtract(end, start)))
    along = np.clip(((places - a) * axis).sum(0) / max((axis**2).sum(), 1e-9), 0, 1)
    return ((places - a - along * axis) ** 2).sum(0) <= radius**2


@pytest.mark.parametrize("voxel_size", SIZES)
def test_ball(voxel_size):
    mask = tube(space(voxel_size, (500, 500, 600)), (250, 240, 260), (250, 240, 260), 180)
    (row,) = core.measure(mask.astype(np.uint8) * 7, voxel_size=voxel_size).to_dict("records")
    assert row["id"] == 7
    assert row["voxels"] == mask.sum()
    assert row["volume_um3"] == pytest.approx(4 / 3 * math.pi * 0.18**3, rel=0.02)
    assert row["surface_um2"] == pytest.approx(4 * math.pi * 0.18**2, rel=0.03)
    assert row["sphericity"] == pytest.approx(1, abs=0.03)
    assert [row[f"centroid_{a}_nm"] for a in "zyx"] == pytest.approx([250, 240, 260], abs=2)
    assert [row[f"axis_{a}_nm"] for a in ("major", "middle", "minor")] == pytest.approx([360] * 3, rel=0.02)
    assert row["skeleton_length_nm"] == pytest.approx(360, rel=0.02)
    assert row["mean_width_nm"] == pytest.approx(360, rel=0.02)
    assert row["branches"] == 1
    assert row["field_fraction"] == mask.mean()
    assert not row["touches_border"]


@pytest.mark.parametrize("voxel_size", SIZES)
def test_ellipsoid(voxel_size):
    places = space(voxel_size, (520, 520, 900)) - np.reshape((260, 260, 450), (3, 1, 1, 1))
    half = (200.0, 150.0, 400.0)
    mask = ((places / np.reshape(half, (3, 1, 1, 1))) ** 2).sum(0) <= 1
    (row,) = core.measure(mask, voxel_size=voxel_size).to_dict("records")
    assert row["volume_um3"] == pytest.approx(4 / 3 * math.pi * math.prod(half) / 1e9, rel=0.02)
    assert [row[f"axis_{a}_nm"] for a in ("major", "middle", "minor")] == pytest.approx([800, 400, 300], rel=0.02)
    assert [row[f"direction_{a}"] for a in "zyx"] == pytest.approx([0, 0, 1], abs=0.02)
    assert row["skeleton_length_nm"] == pytest.approx(800, rel=0.02)
    assert row["elongation"] == pytest.approx(2, rel=0.02)
    p = 1.6075  # Thomsen's formula, within 1.1 %
    a, b, c = (h / 1000 for h in half)
    area = 4 * math.pi * (((a * b) ** p + (a * c) ** p + (b * c) ** p) / 3) ** (1 / p)
    assert row["surface_um2"] == pytest.approx(area, rel=0.03)


@pytest.mark.parametrize("voxel_size", SIZES)
def test_a_disc_is_as_long_as_it_is_wide(voxel_size):
    places = space(voxel_size, (740, 720, 400)) - np.reshape((370, 360, 200), (3, 1, 1, 1))
    mask = ((places / np.reshape((300, 300, 150), (3, 1, 1, 1))) ** 2).sum(0) <= 1
    (row,) = core.measure(mask, voxel_size=voxel_size).to_dict("records")
    assert row["skeleton_length_nm"] == pytest.approx(600, rel=0.02)
    assert row["branches"] == 1


@pytest.mark.parametrize("voxel_size", SIZES)
@pytest.mark.parametrize("along", [(0.88, -0.43, 0.23), (-0.76, -0.56, -0.33), (0.16, -0.82, 0.55)])
def test_a_tube_is_as_long_in_any_direction(voxel_size, along):
    half = 450 * np.array(along) / np.linalg.norm(along)
    around = 2 * np.abs(half) + 300
    mask = tube(space(voxel_size, around), around / 2 - half, around / 2 + half, 100)
    (row,) = core.measure(mask, voxel_size=voxel_size).to_dict("records")
    assert row["skeleton_length_nm"] == pytest.approx(1100, rel=0.02)
    assert row["mean_width_nm"] == pytest.approx(200, rel=0.03)


@pytest.mark.parametrize("voxel_size", SIZES)
def test_branched(voxel_size):
    """A Y of tubes 240 nm wide, its arms of 900 and 800 nm from the middle."""
    places = space(voxel_size, (400, 1500, 1900))
    middle, radius = np.array((200, 750, 950)), 120.0
    arms = [(0, 0, 900 - radius), (0, 520, -450), (0, -520, -450)]
    mask = np.logical_or.reduce([tube(places, middle, middle + arm, radius) for arm in arms])
    (row,) = core.measure(mask, voxel_size=voxel_size).to_dict("records")
    length = sum(np.linalg.norm(arm) + radius for arm in arms)
    assert row["branches"] == 3
    assert row["skeleton_length_nm"] == pytest.approx(length, rel=0.02)
    assert row["mean_width_nm"] == pytest.approx(2 * radius, rel=0.05)  # the middle is shared by three


@pytest.mark.parametrize("voxel_size", SIZES)
def test_a_bent_tube_is_as_long_as_its_middle(voxel_size):
    """Three quarters of a circle of a radius of 520 nm, tilted; along the inner side it is shorter."""
    angles, radius, tilt = np.linspace(0, 1.5 * math.pi, 50), 120.0, 0.5
    circle = 520 * np.stack([np.sin(angles) * math.sin(tilt), np.sin(angles) * math.cos(tilt), np.cos(angles)], 1)
    middle = circle - circle.min(0) + 170
    places = space(voxel_size, middle.max(0) + 170)
    mask = np.logical_or.reduce([tube(places, a, b, radius) for a, b in itertools.pairwise(middle)])
    (row,) = core.measure(mask, voxel_size=voxel_size).to_dict("records")
    assert row["skeleton_length_nm"] == pytest.approx(520 * 1.5 * math.pi + 2 * radius, rel=0.02)
    assert row["mean_width_nm"] == pytest.approx(2 * radius, rel=0.02)
    assert row["branches"] == 1


def test_a_tight_bend_is_as_long_as_its_middle():
    """Of a bend of 3.5 radii; its ends are found on the outer side, and its middle is not."""
    rng, radius, bend, voxel_size = np.random.default_rng(3), 160.0, 560.0, (40.0, 8.0, 8.0)
    turned, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    angles = np.linspace(0, 0.7 * math.pi, 200)
    middle = bend * np.stack([0 * angles, np.sin(angles), np.cos(angles)], 1) @ turned
    middle += radius + 80 - middle.min(0)
    places = space(voxel_size, middle.max(0) + radius + 80)
    distance, _ = cKDTree(middle).query(places.reshape(3, -1).T, distance_upper_bound=radius)
    mask = np.isfinite(distance).reshape(places.shape[1:])
    (row,) = core.measure(mask, voxel_size=voxel_size).to_dict("records")
    assert row["skeleton_length_nm"] == pytest.approx(bend * 0.7 * math.pi + 2 * radius, rel=0.02)


@pytest.mark.parametrize(("voxel_size", "voxels"), [((25.0, 10.0, 10.0), 5.0), ((10.0, 10.0, 10.0), 8.0)])
def test_balls_of_few_voxels_are_right_wherever_they_lie(voxel_size, voxels):
    """In any phase along the coarsest axis, the two worst too: ends at the middle or at the face of a slice."""
    radius, ids = voxels * voxel_size[0], []
    for phase in np.linspace(0, 1, 8, endpoint=False):
        middle = radius + (2 + np.array([phase, phase / 3, phase / 7])) * voxel_size
        places = space(voxel_size, [2 * radius + 4 * voxel_size[0]] * 3)
        ids.append((len(ids) + 1) * tube(places, middle, middle, radius).astype(np.uint8))
    table = core.measure(np.concatenate(ids), voxel_size=voxel_size)
    axes = table[[f"axis_{a}_nm" for a in ("major", "middle", "minor")]].to_numpy()
    assert axes == pytest.approx(np.full((8, 3), 2 * radius), rel=0.02)
    assert table["volume_um3"].to_numpy() == pytest.approx(np.full(8, 4e-9 / 3 * math.pi * radius**3), rel=0.02)
    assert axes.mean() == pytest.approx(2 * radius, rel=0.005)


def test_an_object_of_one_voxel_is_as_thick_as_that():
    ids = np.zeros((3, 9, 9), np.uint8)
    ids[1, 4, 2:8] = 1
    (row,) = core.measure(ids, voxel_size=(40.0, 8.0, 4.0)).to_dict("records")
    thick = [2 * math.sqrt(5 / 12) * side for side in (40, 8)]
    assert row["axis_major_nm"] == pytest.approx(thick[0])
    assert row["axis_minor_nm"] == pytest.approx(thick[1])
    assert [row[f"direction_{a}"] for a in "zyx"] == [1, 0, 0]


@pytest.mark.parametrize("voxel_size", [(5.0, 5.0, 5.0), (50.0, 5.0, 5.0)])
@pytest.mark.parametrize("alone", [True, False])
def test_what_lies_in_one_slice_is_measured_in_plane(voxel_size, alone):
    """Of a slab as thin as that, the middle would be a surface of any number of branches."""
    y, x = np.mgrid[:300, :300]
    ellipse = ((y - 40) / 25) ** 2 + ((x - 60) / 40) ** 2 < 1
    strip = (np.clip(x, 160, 260) - x) ** 2 + (y - 40) ** 2 < 10**2
    branched = ((abs(y - 145) < 5) & (abs(x - 150) < 130)) | ((abs(x - 155) < 5) & (y > 144) & (y < 250))
    plane = ellipse + 2 * strip + 3 * branched
    ids = plane[None] if alone else np.stack([0 * plane, plane, 0 * plane])
    table = core.measure(ids.astype(np.uint8), voxel_size=voxel_size)
    assert table["skeleton_length_nm"].to_numpy() == pytest.approx([400, 600, 1295 + 525], rel=0.02)
    assert table["mean_width_nm"].to_numpy()[1:] == pytest.approx([100, 46], rel=0.05)
    assert table["branches"].tolist() == [1, 1, 3]


@pytest.mark.parametrize("thickness", [(2, 30.0), (4, 30.0), (5, 30.0), (6, 30.0), (2, 50.0), (3, 50.0), (4, 50.0)])
@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (1, 2, 0)])
def test_a_plate_is_as_long_as_its_outline(thickness, order):
    """As of what is seen in two or three thick sections: its middle is a surface, through which paths find any way."""
    planes, size = thickness
    y, x = np.mgrid[:160, :300]
    longest, widest = (70, 30) if planes == 6 else (40, 25)
    plate = ((y - 40) / widest) ** 2 + ((x - 90) / longest) ** 2 < 1
    branched = ((abs(y - 95) < 8) & (abs(x - 150) < 130)) | ((abs(x - 155) < 8) & (y > 94) & (y < 155))
    ids = np.zeros((planes + 4, 160, 300), np.uint8)
    ids[2:-2] = plate + 2 * branched * (planes == 2)  # of an arm of 75 nm in plane, thicker ones are none
    voxel_size = tuple((size, 5.0, 5.0)[axis] for axis in order)
    table = core.measure(np.ascontiguousarray(ids.transpose(order)), voxel_size=voxel_size)
    assert table["skeleton_length_nm"][0] == pytest.approx(10 * longest, rel=0.02)
    assert table["branches"][0] == 1
    if planes == 2 and size == 30:
        assert table["skeleton_length_nm"][1] == pytest.approx(1295 + 300, rel=0.03)
        assert table["branches"][1] == 3


def test_straight_tube_and_a_neighbour():
    places = space((10.0, 10.0, 10.0), (400, 400, 1200))
    ids = 3 * tube(places, (200, 120, 200), (200, 120, 1000), 80).astype(np.uint16)
    ids += 9 * tube(places, (200, 320, 200), (200, 320, 1000), 80).astype(np.uint16)
    raw = np.where(ids == 3, 50, np.where(ids == 9, 90, 200)).astype(np.uint8)
    table = core.measure(ids, raw, voxel_size=(10.0, 10.0, 10.0))
    assert table["id"].tolist() == [3, 9]
    assert table["skeleton_length_nm"].to_numpy() == pytest.approx([960, 960], rel=0.02)
    assert table["mean_width_nm"].to_numpy() == pytest.approx([160, 160], rel=0.02)
    assert table["branches"].tolist() == [1, 1]
    assert table["mean_grey"].tolist() == [50, 90]
    assert table["nearest_neighbour_nm"].to_numpy() == pytest.approx([200, 200], abs=2)


def test_box_border_and_slices():
    ids = np.zeros((6, 20, 30), np.uint16)
    ids[1:3, 4:8, 10:20] = 5
    ids[4:6, 0:3, 2:4] = 2
    first, second = core.measure(ids, voxel_size=(50.0, 5.0, 4.0)).to_dict("records")
    assert (first["id"], first["touches_border"], first["first_slice"], first["last_slice"]) == (2, True, 4, 5)
    assert (second["id"], second["touches_border"], second["slices"]) == (5, False, 2)
    box = [second[f"box_{a}_{end}_nm"] for a in "zyx" for end in ("min", "max")]
    assert box == [50, 150, 20, 40, 40, 80]
    assert second["volume_um3"] == pytest.approx(80 * 1000 / 1e9)


def test_contacts_are_what_lies_near():
    """A cube of 400 nm with a sheet 20 nm beside one face, of half its size, and another one far away."""
    ids, sheet = np.zeros((60, 60, 80), np.uint8), np.zeros((60, 60, 80), bool)
    ids[10:50, 10:50, 10:50] = 1
    sheet[10:50, 10:30, 52:54] = True
    sheet[:, :, 75:] = True
    row = core.measure(ids, voxel_size=(10.0,) * 3, contacts=sheet, within=25.0).iloc[0]
    assert row["contact_area_um2"] == pytest.approx(0.4 * 0.2, rel=0.15)
    assert row["contacts"] == 1
    sheet[10:50, 40:50, 52:54] = True
    assert core.measure(ids, voxel_size=(10.0,) * 3, contacts=sheet, within=25.0)["contacts"].tolist() == [2]
    assert core.measure(ids, voxel_size=(10.0,) * 3, contacts=sheet, within=15.0)["contacts"].tolist() == [0]


@pytest.mark.parametrize("axis", [0, 2])
@pytest.mark.parametrize("voxel_size", [(10.0, 10.0, 10.0), (40.0, 8.0, 8.0)])
@pytest.mark.parametrize(("gap", "flat"), [(0, 0.0), (2, 0.0), (2, 200.0)])
def test_contact_area_of_a_ball_and_of_a_plate_on_a_plane(voxel_size, axis, gap, flat):
    """A disc with a round rim of 240 nm, and of no flat part, which is a ball; touching a plane, and away from it."""
    side, radius, near = voxel_size[axis], 240.0, 60.0
    extent = np.full(3, 2 * (radius + flat) + 240)
    extent[axis] = 2 * radius + 480
    places = space(voxel_size, extent)
    face = 3 * 40 + 2 * radius  # between two voxels of either size
    middle = extent / 2
    middle[axis] = face - radius
    away = places - middle.reshape(3, 1, 1, 1)
    beside = np.sqrt(sum(away[i] ** 2 for i in range(3) if i != axis))
    body = np.maximum(beside - flat, 0) ** 2 + away[axis] ** 2 < radius**2
    plane = places[axis] > face + gap * side
    table = core.measure(body, voxel_size=voxel_size, contacts=plane, within=gap * side + near)
    angle = math.acos(1 - near / radius)
    rim = 2 * math.pi * radius * (flat * angle + near)
    assert table["contact_area_um2"][0] * 1e6 == pytest.approx(math.pi * flat**2 + rim, rel=0.03)
    assert table["contacts"][0] == 1
    if gap:
        less = core.measure(body, voxel_size=voxel_size, contacts=plane, within=(gap - 0.3) * side)
        assert less["contacts"][0] == 0


def test_contacts_with_what_lies_across_and_with_a_thin_sheet():
    """A tube through a ball meets it in two patches, a sheet of a voxel above it in one."""
    places = space((20.0, 10.0, 10.0), (500, 440, 440))
    ball = tube(places, (200, 220, 220), (200, 220, 220), 150)
    through = tube(places, (200, 220, 0), (200, 220, 440), 45)
    sheet = (places[0] > 360) & (places[0] < 380)
    rows = [core.measure(ball, voxel_size=(20, 10, 10), contacts=x, within=20).iloc[0] for x in (through, sheet)]
    assert [row["contacts"] for row in rows] == [2, 1]
    assert rows[1]["contact_area_um2"] * 1e6 == pytest.approx(2 * math.pi * 150 * 10, rel=0.15)  # 10 of 20 nm


def test_what_is_measured_again_equals_all_measured_anew():
    rng, size = np.random.default_rng(0), (40.0, 8.0, 10.0)
    ids = np.repeat(np.repeat(np.arange(1, 61).reshape(3, 4, 5), 7, 0), 12, 1).repeat(11, 2).astype(np.int32)
    ids[rng.random(ids.shape) < 0.2] = 0
    raw = rng.integers(0, 256, ids.shape, dtype=np.uint8)
    before = core.measure(ids, raw, voxel_size=size)
    ids[ids == 8] = 2  # merge
    ids[ids == 3] = 0  # delete
    ids[3:5, 2:9, 1:12] = 77  # paint a new one over another
    window = (slice(0, 14), slice(0, 40), slice(0, 50))
    again = remeasure(before, ids, {1, 2, 3, 8, 77}, window, raw, voxel_size=size)
    pd.testing.assert_frame_equal(again, core.measure(ids, raw, voxel_size=size), check_exact=True)
    ids[ids == 2] = 0
    gone = remeasure(again, ids, {2}, window, raw, voxel_size=size)
    pd.testing.assert_frame_equal(gone, core.measure(ids, raw, voxel_size=size), check_exact=True)


def test_nothing_to_measure():
    table = core.measure(np.zeros((3, 8, 8), np.uint8), voxel_size=(10.0,) * 3)
    assert len(table) == 0
    assert "surface_um2" in table


def test_what_cannot_be_measured():
    with pytest.raises(core.LabelsError, match="whole numbers"):
        core.measure(np.zeros((3, 8, 8), np.float32), voxel_size=(10.0,) * 3)
    with pytest.raises(core.LabelsError, match="shape"):
        core.measure(np.ones((3, 8, 8), np.uint8), np.ones((3, 8, 9), np.uint8), voxel_size=(10.0,) * 3)
    with pytest.raises(core.LabelsError, match="neither background nor an object"):
        core.measure(np.full((3, 8, 8), -1, np.int32), voxel_size=(10.0,) * 3)
    with pytest.raises(core.VolumeError, match="voxel size"):
        core.measure(np.ones((3, 8, 8), np.uint8))


def test_tables_on_disk(tmp_path):
    from napari_kdunet.core.objects.measure import write_table

    table = pd.DataFrame({"id": [1, 2], "volume_um3": [0.5, 0.25]})
    write_table(table, tmp_path / "t.csv")
    assert pd.read_csv(tmp_path / "t.csv").equals(table)


def test_parquet_needs_pyarrow(tmp_path, monkeypatch):
    from napari_kdunet.core.objects.measure import write_table

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(core.OutputError, match="pyarrow"):
        write_table(pd.DataFrame({"id": [1]}), tmp_path / "t.parquet")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["t.xlsx", "t"])
def test_a_table_of_another_kind_is_refused(name, tmp_path):
    from napari_kdunet.core.objects.measure import write_table

    with pytest.raises(core.OutputError, match=r"\.csv or \.parquet"):
        write_table(pd.DataFrame({"id": [1]}), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_parquet_keeps_numbers_and_types(tmp_path):
    from napari_kdunet.core.objects.measure import write_table

    pytest.importorskip("pyarrow")
    ids = np.zeros((6, 20, 30), np.uint16)
    ids[1:3, 4:8, 10:20] = 5
    table = core.measure(ids, voxel_size=(50.0, 5.0, 4.0))
    write_table(table, tmp_path / "t.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "t.parquet"), table)


class Rods:
    """A volume of one object, two rods along z in opposite corners, that is made when it is read."""

    dtype, ndim = np.dtype(np.uint8), 3

    def __init__(self, depth):
        self.slice = np.zeros((256, 256), np.uint8)
        self.slice[:40, :40] = self.slice[-40:, -40:] = 1
        self.shape = (depth, *self.slice.shape)

    def __getitem__(self, key):
        return np.broadcast_to(self.slice, self.shape)[key]


def test_memory_does_not_grow_with_an_object_that_reaches_everywhere(monkeypatch):
    monkeypatch.setattr(shape, "_LARGEST", 2**15)
    core.measure(Rods(48), voxel_size=(20.0,) * 3)  # what is imported and compiled on the way does not count
    tracemalloc.start()
    core.measure(Rods(2160), voxel_size=(20.0,) * 3)
    memory = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert memory < 2160 * 256 * 256 / 2  # a byte a voxel of its box would be twice as much


def test_contacts_to_probabilities_are_to_what_is_above_their_threshold(tmp_path):
    ids, sheet = np.zeros((20, 30, 40), np.uint8), np.full((20, 30, 40), 1e-4, np.float32)
    ids[5:15, 5:25, 10:20] = 1
    assert core.measure(ids, voxel_size=(10.0,) * 3, contacts=sheet)["contact_fraction"].tolist() == [0]
    sheet[:, :, 21] = 0.6
    touching = core.measure(ids, voxel_size=(10.0,) * 3, contacts=sheet)["contact_area_um2"]
    mask = core.measure(ids, voxel_size=(10.0,) * 3, contacts=sheet > 0.5)["contact_area_um2"]
    assert touching.tolist() == mask.tolist() != [0]
    core.write_volume(
        sheet, tmp_path / "p.zarr", voxel_size=(10.0,) * 3, metadata={"output": "probability", "threshold": 0.7}
    )
    assert core.measure(ids, voxel_size=(10.0,) * 3, contacts=tmp_path / "p.zarr")["contacts"].tolist() == [0]


def test_a_few_voxels_far_apart_do_not_stop_the_others(monkeypatch):
    monkeypatch.setattr(shape, "_LARGEST", 2**12)  # voxels of a box that is not thinned
    ids = np.zeros((34, 34, 34), np.uint8)
    ids[1, 32, 33] = ids[32, 1, 33] = ids[32, 33, 1] = 7
    ids[5:9, 5:9, 5:9] = 3
    table = core.measure(ids, voxel_size=(5.0,) * 3).set_index("id")
    assert table["voxels"].to_dict() == {3: 64, 7: 3}
    assert table["surface_um2"].isna().to_dict() == {3: False, 7: True}


def test_a_tube_of_slices_that_are_not_aligned():
    """Its middle comes back to where it was, so that an end has no direction."""
    z, y, x = np.indices((40, 48, 48))
    mask = (y - 24 - 6 * (z % 2)) ** 2 + (x - 24) ** 2 < 36
    (row,) = core.measure(mask.astype(np.uint8), voxel_size=(10.0,) * 3).to_dict("records")
    assert row["voxels"] == mask.sum()
    assert row["skeleton_length_nm"] >= 400, "the height of the tube"
    assert 0 < row["mean_width_nm"] < 180
