"""Label maps: where they come from, what they hold, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from morphbits import bids, images
from morphbits.config import from_toml
from morphbits.datasets import phantom
from morphbits.errors import UserError
from morphbits.synthesis import labels
from morphbits.synthesis.labels import FS_LABELS, LabelMaps, open_labels
from morphbits.training import TrainConfig

NOWHERE = Path("nowhere")


def opened(name: str, targets: str = "auto", data: Path = NOWHERE) -> LabelMaps:
    return open_labels(name, targets, count=3, seed=1, size="4mm", data=data)


def write(path: Path, volume: np.ndarray) -> None:
    images.save(path, volume, np.eye(4))


def blocks(*values: int, shape: tuple[int, int, int] = (20, 16, 16)) -> np.ndarray:
    """A label map of slabs along the first axis."""
    volume = np.zeros(shape, np.int32)
    for slab, value in zip(np.array_split(volume, len(values)), values, strict=True):
        slab[:] = value
    return volume


def test_phantom_maps_are_the_phantoms_tissues() -> None:
    maps = opened("phantom")
    assert maps.shape == (48, 48, 48) and maps.values == (0, 1, 2, 3) and maps.targets == (1, 2, 3)
    assert set(np.unique(maps[0])) == {0, 1, 2, 3} and maps[0].dtype == np.uint8
    assert not np.array_equal(maps[0], maps[1])
    on_disk = maps.grid.pad(phantom.make_phantom(1, 0, "4mm").labels)
    assert not np.array_equal(maps[0], on_disk)


def test_shapes_are_functions_of_their_number_and_smooth() -> None:
    maps = opened("shapes")
    assert maps.shape == (48, 48, 48) and maps.targets == tuple(range(26))
    assert np.array_equal(maps[1], opened("shapes")[1])
    other = open_labels("shapes", "auto", count=3, seed=2, size="4mm", data=NOWHERE)
    assert not np.array_equal(maps[0], maps[1]) and not np.array_equal(maps[0], other[0])
    for number in range(3):
        assert len(np.unique(maps[number])) > 13  # a few of 26 labels are nowhere the largest
        alike = (maps[number][1:] == maps[number][:-1]).mean()
        assert alike > 0.7  # neighbours 4 mm apart; of 26 even random labels 1 in 26 are alike


def test_shapes_upsample_linearly() -> None:
    """Between nodes 8 mm apart, at voxels of 2 mm: a linear function comes back exactly."""
    nodes = np.arange(5, dtype=np.float32).reshape(1, 5, 1, 1) * np.ones((1, 1, 3, 3), np.float32)
    centres = [(np.arange(n) + 0.5) * 2 for n in (16, 8, 8)]
    values = labels._upsampled(nodes, 8, centres)
    expected = np.broadcast_to((centres[0] / 8)[:, None, None], (16, 8, 8))
    assert np.array_equal(values[0], expected.astype(np.float32))


def test_a_folder_of_files(tmp_path: Path) -> None:
    write(tmp_path / "a.nii.gz", blocks(0, 2, 41))
    write(tmp_path / "b.mgz", blocks(0, 300, 2))
    (tmp_path / "readme.txt").write_text("not a label map")
    maps = opened(str(tmp_path))
    assert maps.count == 2 and maps.values == (0, 2, 41, 300) and maps.targets == (2, 41, 300)
    assert maps.shape == (32, 16, 16)  # padded to multiples of 16, with background
    assert np.array_equal(np.unique(maps[0]), [0, 1, 2])
    values = np.array(maps.values)[maps.grid.unpad(maps[1])]
    assert np.array_equal(values, blocks(0, 300, 2))


def test_targets(tmp_path: Path) -> None:
    write(tmp_path / "a.nii.gz", blocks(0, 2, 41, 77))
    folder = str(tmp_path)
    assert opened(folder, "fs").targets == (2, 41)
    assert opened(folder, "all").targets == (0, 2, 41, 77)
    assert opened(folder, "41 2 5").targets == (2, 41)
    with pytest.raises(UserError, match=r"none of the labels to optimize \(5 6\).*0, 2, 41, 77"):
        opened(folder, "5 6")


def test_labels_that_no_map_holds_are_said_and_other_numbers_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.nii.gz", blocks(0, 2, 41, 77))
    said = opened(str(tmp_path), "41 2 5 6").describe().splitlines()
    assert said[0].endswith("of 4 labels, 2 of them targets") and len(said) == 2
    assert said[1] == "warning: 2 of 4 labels to optimize are in no label map: 5, 6"
    assert "24 of 26 labels" in opened(str(tmp_path), "fs").describe()
    assert opened("shapes").describe() == "3 label maps (shapes) of 26 labels, 26 of them targets"
    for name in ("shapes", "phantom"):  # whose label 2 is not FreeSurfer's
        with pytest.raises(UserError, match=f"fs are FreeSurfer's numbers.*of {name} have"):
            opened(name, "fs")


def test_the_published_recipe_optimizes_the_labels_of_its_maps() -> None:
    recipe = Path(__file__).parents[2] / "python" / "experiments" / "paper-training.toml"
    usual = from_toml(TrainConfig, recipe).targets
    assert opened("shapes", usual).targets == tuple(range(26))
    assert opened("phantom", usual).targets == (1, 2, 3)


def test_all_maps_drawn_at_once_are_those_drawn_singly() -> None:
    maps, one_by_one = (open_labels("shapes", "auto", 2, 1, "4mm", NOWHERE) for _ in range(2))
    maps.draw_all(2)
    maps._draw = None  # type: ignore[assignment]
    assert all(np.array_equal(maps[number], one_by_one[number]) for number in range(2))
    small, large = (labels.drawing_seconds("shapes", 40, size) for size in ("4mm", "2mm"))
    assert 0 < small < large
    assert labels.drawing_seconds("a folder", 40, "4mm") == 0


def test_maps_with_other_axes_are_turned_to_those_of_the_first(tmp_path: Path) -> None:
    """Flipped and permuted copies become the same map; without an affine nothing is known."""
    volume = np.random.default_rng(1).integers(0, 4, (20, 16, 12)).astype(np.int32)
    affine = np.diag([-1.0, 2, 3, 1])
    affine[:3, 3] = 5, 6, 7
    images.save(tmp_path / "a.nii.gz", volume, affine)
    to_volume = np.array([[0, -1, 0, 19], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
    other = volume[::-1].transpose(2, 0, 1)  # other[k, i, j] = volume[19 - i, j, k]
    images.save(tmp_path / "b.mgz", other, affine @ to_volume)
    np.savez(tmp_path / "c.npz", vol=volume)
    maps = opened(str(tmp_path))
    for number in (1, 2):
        assert np.array_equal(maps[0], maps[number])


def rotated(angle: float, *sizes: float) -> np.ndarray:
    affine = np.eye(4)
    c, s = np.cos(angle), np.sin(angle)
    affine[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) * sizes
    return affine


@pytest.mark.parametrize(
    ("affine", "message"),
    [
        (rotated(0.4, 1, 1, 1), r"axes of .*b.nii.gz are turned by 23°.*a.nii.gz: resample"),
        (rotated(0, -3, 3, 1), r"b.nii.gz has voxels of 3.0 × 3.0 × 1.0 mm and .*a.nii.gz 1.0 × "),
        (rotated(0, 1.02, 1, 1), "voxels of 1.02 × "),
    ],
)
def test_maps_that_lie_otherwise_are_refused(
    tmp_path: Path, affine: np.ndarray, message: str
) -> None:
    write(tmp_path / "a.nii.gz", blocks(0, 1))
    images.save(tmp_path / "b.nii.gz", blocks(0, 1), affine)
    with pytest.raises(UserError, match=message):
        opened(str(tmp_path))
    images.save(tmp_path / "b.nii.gz", blocks(0, 1), rotated(0.05, 1.001, 1, 1))
    assert opened(str(tmp_path)).count == 2


def test_corr_takes_samseg_before_recon_all_and_crops_as_the_study(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no segmentations of CoRR.*seg.mgz"):
        opened("corr", data=tmp_path)
    conformed = np.zeros((256, 256, 256), np.int32)
    conformed[40:60, 20:50, 20:40] = 2
    conformed[100:120, 100:120, 100:120] = 165  # SAMSEG: skull
    subject = bids.recon_all_folder(tmp_path) / "sub-1_ses-1" / "mri"
    write(subject / "seg.mgz", conformed)
    (subject / "aseg.mgz").write_bytes(b"not read")
    maps = opened("corr", data=tmp_path)
    assert maps.count == 1 and maps.shape == (160, 192, 224)
    assert maps.values == (0, 2, 165) and maps.targets == (2,)
    assert "warning: 25 of 26 labels to optimize are in no label map: 3, 4" in maps.describe()
    assert maps[0][:20, :30, :20].all() and (maps[0] == 1).sum() == 20 * 30 * 20
    assert len(FS_LABELS) == len(set(FS_LABELS)) == 26


def test_corr_without_freesurfer_is_the_open_routes_tissues(tmp_path: Path) -> None:
    dataset, subject = bids.corr_dataset(tmp_path), bids.Subject("1", "1")
    tissues = blocks(0, 1, 2, 3)
    assert dataset.truth is not None
    write(bids.labels_in(dataset.truth, subject), tissues)
    write(dataset.moving(subject), tissues)
    maps = opened("corr", data=tmp_path)
    assert maps.count == 1 and maps.values == (0, 1, 2, 3) and maps.targets == (1, 2, 3)
    with pytest.raises(UserError, match="fs are FreeSurfer's numbers"):
        opened("corr", "fs", data=tmp_path)


@pytest.mark.parametrize(
    ("volumes", "message"),
    [
        ([blocks(0, 1), blocks(0, 1, shape=(16, 16, 16))], "16 × 16 × 16 voxels.*20 × 16 × 16"),
        ([blocks(0, 1) + 0.5], "not label numbers"),
        ([blocks(0, -1)], "negative"),
        ([blocks(0, 0)], "every voxel .* is 0"),
        ([], "holds no label maps"),
    ],
)
def test_what_is_refused(tmp_path: Path, volumes: list[np.ndarray], message: str) -> None:
    for k, volume in enumerate(volumes):
        write(tmp_path / f"{k}.nii.gz", volume)
    with pytest.raises(UserError, match=message):
        opened(str(tmp_path))


def test_what_is_no_folder() -> None:
    with pytest.raises(UserError, match=r"nowhere is no folder.*phantom, shapes, corr"):
        opened("nowhere")
