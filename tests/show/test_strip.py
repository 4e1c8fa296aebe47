"""The page of images: its errors against closed forms, its pixels, and a real browser."""

import base64
import re

import pytest
import torch
from browser import CHROMIUM, browser
from support import close, read_page

import gradlogp as glp
from gradlogp.noise.schedules import VE, VP
from gradlogp.show import strip

VARIANCE = 4.0


class Law:
    """Pixels N(3, v), each alone; its noisy score."""

    def __init__(self, *shape):
        self.shape = shape

    def sample(self, n, generator):
        return 3 + VARIANCE**0.5 * torch.randn(n, *self.shape, generator=generator)

    def score(self, schedule):
        def s(z, t):
            alpha, sigma = schedule(t)
            return (3 * alpha - z) / (alpha**2 * VARIANCE + sigma**2)

        return glp.as_score(s, "score", schedule, event_shape=self.shape)


@pytest.mark.parametrize("schedule", [VE(0.01, 50.0), VP()], ids=str)
def test_the_error_is_that_of_the_posterior_mean(schedule, tmp_path, generator):
    """Of N(3, v I): E (D − x_0)² = v σ²/(v + σ²) a pixel; within errors at each level."""
    images = Law(1, 4, 4).sample(400, generator=generator)
    page = strip(Law(1, 4, 4).score(schedule), images, tmp_path / "a.html", generator=generator)
    _, data = read_page(page)
    assert len(data["levels"]) == 10
    for level in data["levels"]:
        right = VARIANCE * level["sigma"] ** 2 / (VARIANCE + level["sigma"] ** 2)
        assert level["error"] ** 2 == pytest.approx(right, rel=4.5 * (2 / images.numel()) ** 0.5)
    assert data["deviation"] == pytest.approx(2.0, rel=0.05)
    sigmas = [level["sigma"] for level in data["levels"]]
    assert sigmas[0] == pytest.approx(0.04, rel=0.06)  # a fiftieth of the deviation
    assert sigmas[-1] == pytest.approx(16.0, rel=0.06)


def test_the_deviation_is_about_the_mean_image(tmp_path):
    """Two images that differ by 2 in every pixel, about a mean image that varies."""
    ramp = torch.linspace(0, 100, 16).reshape(1, 4, 4)
    images = torch.stack([ramp - 1, ramp + 1])
    score = Law(1, 4, 4).score(VE(0.01, 50.0))
    _, data = read_page(strip(score, images, tmp_path / "a.html", n_levels=3))
    assert data["deviation"] == pytest.approx(1.0, rel=1e-5)


def test_pixels_are_those_of_the_images(tmp_path, generator):
    """Channels last, the range of the clean images 0 to 255; one noise at all levels."""
    images = Law(3, 5, 4).sample(3, generator=generator)
    score = Law(3, 5, 4).score(VE(0.01, 50.0))
    _, data = read_page(strip(score, images, tmp_path / "a.html", n_levels=3, generator=generator))
    pixels = lambda text: torch.tensor(list(base64.b64decode(text))).reshape(3, 5, 4, 3)
    low, high = images.min(), images.max()
    clean = pixels(data["clean"]).permute(0, 3, 1, 2) / 255 * (high - low) + low
    close(clean, images, float(high - low) / 400)
    assert data["shape"] == [3, 3, 5, 4]
    noised = pixels(data["levels"][0]["pixels"][0])
    assert (noised - pixels(data["clean"])).abs().max() < 255 * 5 * 0.05 / float(high - low) + 1


@pytest.mark.parametrize(
    ("images", "given", "message"),
    [
        (torch.zeros(2, 2, 4, 4), {}, "must have shape \\(n, 1 or 3, height, width\\)"),
        (torch.zeros(2, 4), {}, "must have shape"),
        (torch.full((1, 1, 4, 4), torch.nan), {}, "images"),
        (torch.zeros(2, 1, 4, 4), {"n_levels": 2}, "n_levels must be an integer from 3"),
        (torch.zeros(300, 1, 64, 64), {}, "pass at most 24"),
        (torch.zeros(1, 3, 512, 512), {}, "too large for a page"),
    ],
)
def test_refusals(images, given, message, tmp_path, as_user):
    score = Law(*images.shape[1:]).score(VE(0.01, 50.0))
    with pytest.raises(ValueError, match=message):
        strip(score, images, tmp_path / "a.html", **given)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_browser_shows_it(tmp_path, generator):
    """Slider and clicks change what is shown, which is what the page holds; dark, on a phone."""
    images = Law(1, 4, 4).sample(3, generator=generator)
    score = Law(1, 4, 4).score(VE(0.01, 50.0))
    path = strip(score, images, tmp_path / "a.html", generator=generator)
    text, data = read_page(path)
    assert not re.search(r"https?://|\bsrc=|@import|fetch\(", text)
    shown = "(() => {{ const c = document.querySelectorAll('#{0} canvas')[{1}];"
    shown += " const all = [...c.getContext('2d').getImageData(0, 0, 4, 4).data];"
    shown += " return all.filter((v, i) => !(i % 4)); }})()"
    pixels = lambda text, image: list(base64.b64decode(text))[16 * image : 16 * image + 16]
    with browser(tmp_path / "profile") as page:
        page.show(path, width=390, height=844, dark=True)
        page.js(
            "var s = document.getElementById('sigma'); s.value = 7; s.dispatchEvent(new Event('input'))"
        )
        assert page.js("explorer.state.level") == 7
        assert page.js(shown.format("images", 8)) == pixels(data["levels"][7]["pixels"][1], 2)
        page.click(*page.middle("#images tr td:nth-child(3) button"))
        assert page.js("explorer.state.image") == 1
        assert page.js(shown.format("levels", 14)) == pixels(data["levels"][4]["pixels"][1], 1)
        assert not page.js("document.documentElement.scrollWidth > innerWidth")
        assert not page.errors, page.errors
