"""The arithmetic round the BlazePose models: regions, anchors, suppression, heatmaps, tiles."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from recon_std.detectors import person_finder
from recon_std.detectors.blazepose import _tiles
from recon_std.detectors.calibration import confidence, quality
from recon_std.detectors.landmark_model import refine_on_heatmap
from recon_std.detectors.person_finder import anchors, decode, weighted_suppression
from recon_std.detectors.regions import between, corners, cut, paste, to_picture, transform, whole

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)


def test_a_region_of_the_whole_picture_is_the_picture() -> None:
    picture = Image.fromarray(PIXELS)
    np.testing.assert_allclose(cut(picture, whole(picture), 40) * 255, PIXELS, atol=1e-3)


@pytest.mark.parametrize("quarter", [1, 2, 3])
def test_a_turned_region_stands_its_own_way_up(quarter: int) -> None:
    """A region turned clockwise by 90 degrees shows what lies to the right of the picture at its top."""
    picture = Image.fromarray(PIXELS)
    found = cut(picture, whole(picture, quarter * np.pi / 2), 40) * 255
    np.testing.assert_allclose(found, np.rot90(PIXELS, quarter), atol=0.01 * 255)


def test_outside_the_picture_is_black() -> None:
    picture = Image.new("RGB", (10, 20), (255, 255, 255))
    crop = cut(picture, whole(picture), 20)
    assert crop.shape == (20, 20, 3)
    assert crop[:, 6:14].min() == 1
    assert crop[:, :4].max() == 0
    assert cut(picture, np.array([500.0, 500.0, 4000.0, 0.3]), 8).max() <= 1
    assert cut(picture, np.array([9000.0, 500.0, 400.0, 0.3]), 8).max() == 0


def test_a_reduced_region_is_averaged() -> None:
    """A checkerboard of single pixels becomes grey, not black or white."""
    board = np.indices((256, 256)).sum(0) % 2 * 255
    picture = Image.fromarray(board.astype(np.uint8)[..., None].repeat(3, 2))
    np.testing.assert_allclose(cut(picture, whole(picture), 32), 0.5, atol=0.01)
    # and stays where it was
    half = np.zeros((256, 256, 3), np.uint8)
    half[:, 128:] = 255
    reduced = cut(Image.fromarray(half), whole(picture), 32)[..., 0]
    np.testing.assert_allclose(reduced[:, :16], 0, atol=1e-6)
    np.testing.assert_allclose(reduced[:, 16:], 1, atol=1e-6)


@given(st.tuples(st.floats(-50, 50), st.floats(-50, 50), st.floats(1, 100), st.floats(-3.1, 3.1)))
@settings(max_examples=50, deadline=None)
def test_between_gives_the_region_that_its_points_came_from(region: tuple[float, float, float, float]) -> None:
    """The point straight above a region's centre, at its half side over the margin, tells the region."""
    row = np.array(region)
    points = transform(to_picture(row, 1), np.array([[0.5, 0.5], [0.5, 0.5 - 0.5 / 1.25]]))
    np.testing.assert_allclose(between(points[:1], points[1:])[0], row, atol=1e-6)


def test_corners_go_clockwise_from_the_top_left() -> None:
    np.testing.assert_allclose(corners(np.array([5.0, 6.0, 4.0, 0.0])), [[3, 4], [7, 4], [7, 8], [3, 8]])
    np.testing.assert_allclose(corners(np.array([5.0, 6.0, 4.0, np.pi / 2]))[0], [7, 4])


@pytest.mark.parametrize("angle", [0.0, 0.4, -2.0])
def test_paste_puts_a_mask_back_where_it_was_cut(angle: float) -> None:
    blob = np.exp(-((np.indices((120, 160)) - np.array([50, 90])[:, None, None]) ** 2).sum(0) / 400).astype(np.float32)
    picture = Image.fromarray((blob * 255).astype(np.uint8)[..., None].repeat(3, 2))
    region = np.array([85.0, 55.0, 110.0, angle])
    pasted = paste(cut(picture, region, 128)[..., 0], region, 160, 120)
    assert pasted.shape == (120, 160)
    assert np.abs(pasted - blob).max() < 0.1
    assert np.abs(pasted - blob)[30:70, 70:110].max() < 0.02
    assert paste(np.ones((8, 8), np.float32), np.array([500.0, 500.0, 10.0, 0.0]), 160, 120).max() == 0


def test_anchors_are_the_cell_centres_of_each_layer() -> None:
    found = anchors()
    assert found.shape == (2254, 2)
    np.testing.assert_allclose(found[:4], np.array([[0.5, 0.5], [0.5, 0.5], [1.5, 0.5], [1.5, 0.5]]) / 28)
    np.testing.assert_allclose(found[28 * 28 * 2], [0.5 / 14, 0.5 / 14])
    np.testing.assert_allclose(found[-1], [6.5 / 7, 6.5 / 7])


def test_decode_adds_the_anchor_to_places_and_not_to_sizes() -> None:
    raw, logits = np.zeros((2254, 12), np.float32), np.full((2254, 1), -1000, np.float32)
    logits[2253] = 0
    raw[2253] = [1, 2, 30, 40, *range(5, 13)]
    (row,) = decode(raw, logits, 0.5)
    centre = 6.5 / 7 * 224
    assert row[0] == 0.5
    np.testing.assert_allclose(row[1:5], [centre + 1, centre + 2, 30, 40])
    np.testing.assert_allclose(row[5:], centre + np.arange(5, 13))
    assert decode(raw, logits, 0.51).shape == (0, 13)


def test_overlapping_boxes_become_their_weighted_mean() -> None:
    def row(score: float, x: float) -> np.ndarray:
        return np.array([score, x, 50, 40, 40, *np.full(8, x)])

    merged = weighted_suppression(np.stack([row(0.3, 104), row(0.9, 100), row(0.6, 300)]))
    assert merged[:, 0].tolist() == [0.9, 0.6]
    np.testing.assert_allclose(merged[0, [1, 5]], (0.9 * 100 + 0.3 * 104) / 1.2)
    assert merged[1, 1] == 300
    assert weighted_suppression(np.zeros((0, 13))).shape == (0, 13)


def test_people_seen_in_two_overlapping_views_are_one_person(monkeypatch: pytest.MonkeyPatch) -> None:
    """The finder places what each view shows in the picture before it compares."""
    target = np.array([60.0, 50.0])

    def network(crop: np.ndarray) -> list[np.ndarray]:
        # The "network" answers with where it sees the white pixel, at the last anchor.
        v, u = np.unravel_index(crop[..., 0].argmax(), crop.shape[:2])
        raw, logits = np.zeros((2254, 12), np.float32), np.full((2254, 1), -9, np.float32)
        logits[-1] = 9
        spot = np.array([u + 0.5, v + 0.5]) - 6.5 / 7 * 224
        raw[-1] = [*spot, 60, 60, *spot, *(spot - [0, 40]), *spot, *spot]
        return [raw, logits]

    pixels = np.zeros((100, 120, 3), np.uint8)
    pixels[49:51, 59:61] = 255
    views = [np.array([50.0, 50.0, 80.0, 0.0]), np.array([70.0, 50.0, 80.0, 0.0])]
    finder = person_finder.PersonFinder(network)  # type: ignore[arg-type]
    regions, scores = finder(Image.fromarray(pixels), views, 0.5)
    assert len(regions) == len(scores) == 1
    np.testing.assert_allclose(regions[0, :2], target, atol=0.5)
    np.testing.assert_allclose(regions[0, 2:], [2 * 1.25 * 40 * 80 / 224, 0], atol=1e-6)


def test_a_point_moves_to_the_heat_near_it() -> None:
    rows, cols = np.indices((64, 64))
    heat = np.exp(-((rows - 20.3) ** 2 + (cols - 31.6) ** 2) / 4)
    logits = np.log((heat + 1e-6) / (1 - heat + 1e-6))[..., None].repeat(4, 2)
    logits[..., 3] = -5  # heat that is nowhere enough
    points = np.array([[30.5, 21.5], [50.0, 50.0], [-3.0, 20.0], [31.0, 20.0]])
    moved = refine_on_heatmap(points, logits)
    np.testing.assert_allclose(moved[0], [31.6, 20.3], atol=0.3)
    np.testing.assert_array_equal(moved[1:], points[1:])


@pytest.mark.parametrize(("size", "count"), [((640, 480), 6), ((480, 640), 6), ((600, 600), 9), ((1000, 100), 3)])
def test_tiles_cover_the_picture_and_overlap_by_half(size: tuple[int, int], count: int) -> None:
    tiles = np.array(_tiles(Image.new("RGB", size), 2))
    assert len(tiles) == count
    assert (tiles[:, 2] == max(size) / 2).all()
    low, high = tiles[:, :2] - tiles[:, 2:3] / 2, tiles[:, :2] + tiles[:, 2:3] / 2
    assert (low.min(0) <= 0.001).all()
    assert (high.max(0) >= np.array(size) - 0.001).all()
    for axis in (0, 1):
        steps = np.diff(np.unique(tiles[:, axis].round(6)))
        assert (steps <= tiles[0, 2] / 2 + 1e-6).all()


def test_quality_and_confidence_rise_with_what_speaks_for_them() -> None:
    good, poor = np.array([0.9, 0.95, 0.01, 1]), np.array([0.4, 0.6, 0.1, 1])
    assert 0 < quality(poor) < quality(good) <= 1
    raw = np.array([0.0, 0.3, 0.9])
    sure = confidence(raw, 0.9)
    assert sure[0] == 0
    assert (np.diff(sure) > 0).all()
    assert (confidence(raw[1:], 0.4) < sure[1:]).all()
    assert confidence(np.ones(1), 1.0).max() <= 1
