import io

import numpy as np
import pytest
import torch
from PIL import Image

from csip.config import ClipConfig
from csip.data.transforms import decode_crop, erase, flip_clip, normalise_crops, resize_crop
from csip.errors import StoreError
from csip.joints import COCO17, H36M17, KINECT20


def encoded(pixels, kind):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format=kind)
    return file.getvalue()


def test_a_crop_is_decoded_to_rgb_with_channels_first():
    pixels = np.zeros((2, 3, 3), np.uint8)
    pixels[0, 2] = (200, 100, 50)
    got = decode_crop(encoded(pixels, "PNG"), "t/1")
    assert tuple(got.shape) == (3, 2, 3)
    assert got.dtype == torch.uint8
    assert got[:, 0, 2].tolist() == [200, 100, 50]
    assert int(got.sum()) == 350


def test_a_grey_crop_becomes_rgb():
    got = decode_crop(encoded(np.full((4, 4), 90, np.uint8), "JPEG"), "t/1")
    assert tuple(got.shape) == (3, 4, 4)
    assert (got.float() - 90).abs().max() <= 2


@pytest.mark.parametrize("mode", ["RGBA", "LA", "L", "P", "1"])
def test_grey_palette_and_transparent_pictures_become_rgb(mode):
    noise = np.random.default_rng(0).integers(0, 256, (20, 12, 4), dtype=np.uint8)
    picture = Image.fromarray(noise, "RGBA").convert(mode)
    file = io.BytesIO()
    picture.save(file, format="PNG")
    want = np.array(picture.convert("RGB"))
    np.testing.assert_array_equal(decode_crop(file.getvalue(), "t/1").permute(1, 2, 0).numpy(), want)


@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"quality": 60}, {"progressive": True}], ids=str)
def test_a_jpegs_pixels_are_those_of_another_decoder(options):
    # Both round their inverse transform and colours in their own way: a few levels, on average none.
    rng = np.random.default_rng(1)
    coarse = Image.fromarray(rng.integers(0, 256, (16, 7, 3), dtype=np.uint8)).resize(
        (60, 150), Image.Resampling.BICUBIC
    )
    file = io.BytesIO()
    coarse.save(file, format="JPEG", **{"quality": 95, **options})
    with Image.open(file) as picture:
        want = np.array(picture.convert("RGB")).astype(int)
    got = decode_crop(file.getvalue(), "t/1").permute(1, 2, 0).numpy().astype(int)
    assert np.abs(got - want).max() <= 4
    assert np.abs(got - want).mean() <= 0.5


def test_a_crop_is_not_turned():
    picture, exif = Image.new("RGB", (6, 10), (200, 0, 0)), Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side
    file = io.BytesIO()
    picture.save(file, format="JPEG", exif=exif)
    assert tuple(decode_crop(file.getvalue(), "t/1").shape) == (3, 10, 6)


@pytest.mark.parametrize("image", [b"", b"no picture", encoded(np.zeros((8, 8, 3), np.uint8), "JPEG")[:40]])
def test_bytes_that_are_no_picture_name_the_crop(image):
    with pytest.raises(StoreError, match=rf"Crop t/7: {len(image)} bytes that are no JPEG or PNG, or not a whole one"):
        decode_crop(image, "t/7")


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.9, 0.98])
def test_half_a_picture_is_none(kind, share):
    noise = np.random.default_rng(2).integers(0, 256, (40, 24, 3), dtype=np.uint8)
    whole = encoded(noise, kind)
    with pytest.raises(StoreError, match=r"Crop t/7: \d+ bytes that are .* not a whole one"):
        decode_crop(whole[: int(share * len(whole))], "t/7")


def test_resizing_is_bilinear_to_the_configured_size():
    clip = ClipConfig(height=8, width=16)
    half = torch.zeros(3, 16, 32, dtype=torch.uint8)
    half[:, :, 16:] = 200
    got = resize_crop(half, clip)
    assert tuple(got.shape) == (3, 8, 16)
    assert got.dtype == torch.uint8
    # Far from the edge nothing mixes; at the edge, halves do.
    assert got[:, :, :7].max() == 0
    assert got[:, :, 9:].min() == 200
    assert (got[0, 0, 7:9].float() - torch.tensor([0.125, 0.875]) * 200).abs().max() <= 26


@pytest.mark.parametrize("shape", [(40, 20), (150, 60), (256, 128), (300, 200)])
def test_how_a_crop_lies_in_memory_does_not_change_its_resized_pixels(shape):
    crop = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)).permute(2, 0, 1)
    assert not crop.is_contiguous()
    assert torch.equal(resize_crop(crop, ClipConfig()), resize_crop(crop.contiguous(), ClipConfig()))


@pytest.mark.parametrize("shape", [(3, 5, 4), (2, 3, 5, 4), (2, 3, 3, 16, 9), (0, 3, 5, 4)])
def test_normalising_is_the_arithmetic_bit_for_bit(shape):
    clip = ClipConfig()
    crops = torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    mean, std = torch.tensor(clip.mean).view(3, 1, 1), torch.tensor(clip.std).view(3, 1, 1)
    for view in (crops, crops.flip(-1), crops.transpose(-1, -2)):
        assert torch.equal(normalise_crops(view, clip), (view.float() / 255 - mean) / std)


def test_each_channel_loses_its_mean_and_is_divided_by_its_deviation():
    clip = ClipConfig(mean=(0.5, 0.25, 0), std=(0.5, 0.25, 2))
    crops = torch.tensor([255, 51, 102], dtype=torch.uint8).view(3, 1, 1).expand(2, 4, 3, 5, 6)
    got = normalise_crops(crops, clip)
    want = [(1 - 0.5) / 0.5, (0.2 - 0.25) / 0.25, 0.4 / 2]
    assert tuple(got.shape) == (2, 4, 3, 5, 6)
    torch.testing.assert_close(got[1, 3, :, 4, 5], torch.tensor(want))


def test_a_flip_mirrors_pictures_and_skeletons_together():
    # Red on the picture's left, where the person's right wrist is; after the flip both are on the right, and the wrist
    # there is the left one.
    crops = torch.zeros(2, 3, 8, 6, dtype=torch.uint8)
    crops[:, 0, :, :3] = 255
    skeleton = torch.zeros(2, 17, 3)
    left, right = COCO17.joints.index("left_wrist"), COCO17.joints.index("right_wrist")
    skeleton[:, right] = torch.tensor([-0.7, 0.1, 0.9])
    skeleton[:, left] = torch.tensor([0.4, 0.2, 0.5])
    mirrored, moved = flip_clip(crops, skeleton, COCO17)
    assert mirrored[:, 0, :, 3:].min() == 255
    assert mirrored[:, 0, :, :3].max() == 0
    torch.testing.assert_close(moved[0, left], torch.tensor([0.7, 0.1, 0.9]))
    torch.testing.assert_close(moved[1, right], torch.tensor([-0.4, 0.2, 0.5]))


@pytest.mark.parametrize("layout", [COCO17, H36M17, KINECT20], ids=lambda layout: layout.name)
def test_a_flip_touches_x_alone_and_twice_is_nothing(layout):
    torch.manual_seed(0)
    crops, skeleton = torch.randint(0, 256, (3, 3, 8, 6)), torch.randn(3, len(layout.joints), 3)
    before = skeleton.clone()
    once = flip_clip(crops, skeleton, layout)
    assert torch.equal(skeleton, before)
    swap = torch.from_numpy(layout.swap())
    torch.testing.assert_close(once[1][..., 1:], skeleton[:, swap, 1:])
    torch.testing.assert_close(once[1][..., 0], -skeleton[:, swap, 0])
    twice = flip_clip(*once, layout)
    assert torch.equal(twice[0], crops)
    assert torch.equal(twice[1], skeleton)


@pytest.mark.parametrize(("height", "width"), [(64, 32), (128, 64), (40, 40)])
def test_one_rectangle_of_one_colour_is_erased_inside_the_picture(height, width):
    colours = set()
    for seed in range(60):
        crop = torch.full((3, height, width), 255, dtype=torch.uint8)
        crop[0] = 7  # no erased colour is likely to be (7, 255, 255)
        got = erase(crop, ClipConfig(), np.random.default_rng(seed))
        assert int((crop != torch.tensor([7, 255, 255]).view(3, 1, 1)).sum()) == 0
        changed = (got != crop).any(dim=0)
        rows, columns = changed.any(dim=1).nonzero().flatten(), changed.any(dim=0).nonzero().flatten()
        h, w = len(rows), len(columns)
        # One whole rectangle: every pixel within the bounds changed, none outside.
        assert (rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1) == (h, w)
        assert int(changed.sum()) == h * w
        patch = got[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].flatten(1)
        assert int((patch != patch[:, :1]).sum()) == 0
        colours.add(tuple(patch[:, 0].tolist()))
        # Area 2-20 percent and aspect .3-3.3, both sides rounded to whole pixels.
        assert (h - 0.5) * (w - 0.5) <= 0.2 * height * width
        assert (h + 0.5) * (w + 0.5) >= 0.02 * height * width
        assert (h - 0.5) / (w + 0.5) <= 3.3
        assert (h + 0.5) / (w - 0.5) >= 0.3
    assert len(colours) > 50


def test_erased_rectangles_reach_every_edge():
    crop = torch.zeros(3, 40, 40, dtype=torch.uint8)
    reached = torch.zeros(40, 40, dtype=torch.bool)
    for seed in range(400):
        reached |= (erase(crop, ClipConfig(), np.random.default_rng(seed)) != crop).any(dim=0)
    for edge in (reached[0], reached[-1], reached[:, 0], reached[:, -1]):
        assert bool(edge.any())


def test_erasing_is_the_same_for_the_same_seed():
    crop = torch.zeros(3, 64, 32, dtype=torch.uint8)
    one, two = (erase(crop, ClipConfig(), np.random.default_rng(3)) for _ in range(2))
    assert torch.equal(one, two)


def test_a_crop_too_small_for_any_rectangle_stays_as_it_is():
    crop = torch.full((3, 1, 1), 9, dtype=torch.uint8)
    assert torch.equal(erase(crop, ClipConfig(), np.random.default_rng(0)), crop)
