"""A sample's pictures are cut and turned together."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from conftest import picture

from lit_restore.data.batch import Sample
from lit_restore.data.crops import centre_crop, middle, random_crop, turned
from lit_restore.errors import UserError

Pixels = npt.NDArray[np.uint8]


def pair(image: Pixels, degraded: Pixels | None = None, restored: Pixels | None = None) -> Sample:
    return Sample("a", 0, image, degraded=degraded, restored=restored)


def test_crops_lie_inside_and_pictures_stay_aligned() -> None:
    image = picture(0, 24, 32)
    sample = pair(image, image[::2, ::2], 255 - image)
    places = set()
    for seed in range(40):
        cut = random_crop(sample, 8, np.random.default_rng(seed))
        assert cut.degraded is not None
        assert cut.restored is not None
        assert cut.image.shape == (8, 8, 3)
        np.testing.assert_array_equal(cut.degraded, cut.image[::2, ::2])
        np.testing.assert_array_equal(cut.restored, 255 - cut.image)
        places.add(cut.image.tobytes())
    assert len(places) > 20


def test_an_enlarged_twin_changes_nothing_of_the_crop() -> None:
    """Restored pictures may lie beside the clean ones or not: the run sees the same windows."""
    image = picture(0, 24, 32)
    for seed in range(5):
        alone, both = (
            random_crop(pair(image, None, restored), 8, np.random.default_rng(seed)).image
            for restored in (None, 255 - image)
        )
        np.testing.assert_array_equal(alone, both)


@pytest.mark.parametrize(
    ("sample", "reason"),
    [
        (pair(picture(0, 24, 32), picture(0, 11, 16)), "no whole scale"),
        (pair(picture(0, 24, 32), None, picture(0, 12, 16)), "restored image is 16x12"),
        (pair(picture(0, 7, 32)), "smaller than the 8 crop"),
    ],
)
def test_pictures_that_do_not_fit_are_refused(sample: Sample, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        centre_crop(sample, 8)


def test_the_middle_is_of_any_size_and_keeps_pictures_aligned() -> None:
    image = picture(0, 23, 32)
    cut = middle(pair(image, None, 255 - image), 19)
    np.testing.assert_array_equal(cut.image, image[2:21, 6:25])
    assert cut.restored is not None
    np.testing.assert_array_equal(cut.restored, 255 - cut.image)
    whole = middle(pair(image), 100)
    np.testing.assert_array_equal(whole.image, image)
    low = image[:22:2, ::2]
    cut = middle(pair(image, low), 19)
    assert cut.degraded is not None
    assert cut.image.shape == (18, 18, 3)
    np.testing.assert_array_equal(cut.degraded, cut.image[::2, ::2])
    np.testing.assert_array_equal(middle(pair(image), 100, 4).image, image[:20])


@pytest.mark.parametrize("cut", [(slice(None), slice(None)), (slice(3, 20), slice(5, 17))])
def test_a_turn_is_that_of_numpy(cut: tuple[slice, slice]) -> None:
    image = picture(0)[cut]
    for mirror in (False, True):
        for turns in range(4):
            found = turned(pair(image, image[::2], 255 - image), mirror=mirror, turns=turns)
            for one, other in ((image, found.image), (image[::2], found.degraded),
                               (255 - image, found.restored)):  # fmt: skip
                assert other is not None
                expected = np.rot90(one[:, ::-1] if mirror else one, turns)
                np.testing.assert_array_equal(other, expected)
