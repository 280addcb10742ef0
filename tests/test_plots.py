"""Figures: what is given is drawn, readable, labelled and without warnings."""

import functools
import io
import itertools
import json
import math
import warnings

import matplotlib
import matplotlib.style
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from dpldm.book import charts, samples, series, style
from dpldm.methods import METHODS
from dpldm.records import grids

NAMES = ("none", "half", "full")


def batch(count=6, channels=1, size=8):
    """Class 0 is black, 1 grey, 2 white, over and over."""
    labels = torch.arange(count) % 3
    return (labels / 2).reshape(-1, 1, 1, 1).expand(count, channels, size, size).clone(), labels


def row(method="dpldm", epsilon=10.0, cnn=(0.92, 0.95, 0.96), fid=(4.0, 5.0), **others):
    made = {
        "dataset": "mnist",
        "method": method,
        "public_data": "",
        "profile": "quick",
        "epsilon": epsilon,
        "delta": 1e-5,
    }
    for score, values in {"cnn": cnn, "fid_classifier": fid}.items():
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
        made |= {
            score: float(np.mean(values)) if values else math.nan,
            f"{score}_spread": spread,
            f"{score}_values": tuple(values),
        }
    return made | others


TABLE = pd.DataFrame(
    [
        row(), row(epsilon=1.0, cnn=(0.90, 0.91)), row("class-gaussian", cnn=(0.93,), fid=(7.0,)),
        row("real", math.inf, cnn=(0.98, 0.99)), row("dpldm", 1.0, dataset="fashion_mnist"),
    ]
)  # fmt: skip
PUBLISHED = pd.DataFrame({"dataset": ["mnist"] * 2, "method": ["DPDM"] * 2, "epsilon": [10, 1], "cnn": [0.981, 0.953]})
INGREDIENTS = pd.DataFrame(
    [
        row(title="as it is"), row(title="as it is", epsilon=1.0, cnn=(0.90,)),
        row(title="less", cnn=(0.5,), fid=(50.0,)),
        row(title="not measured", fid=()),
    ]
)  # fmt: skip
PRIVACY = {
    "epsilon": 9.9, "delta": 1e-5, "mechanisms": [
        {"name": "moments", "stage": "compression", "noise_multiplier": 5.0, "steps": 1},
        {"name": "training", "stage": "diffusion", "noise_multiplier": 1.2, "steps": 1500},
    ],
}  # fmt: skip
RATES = np.linspace(0, 1, 50)

FIGURES = {
    "sample_grid": lambda: samples.sample_grid(*batch(), NAMES, columns=3),
    "real_beside_synthetic": lambda: samples.real_beside_synthetic(batch()[0], *batch(), NAMES, columns=2),
    "reconstructions": lambda: samples.reconstructions(batch()[0], {"PCA": batch()[0], "decoder": batch()[0].numpy()}),
    "denoising_steps": lambda: samples.denoising_steps([batch()[0] * 9 - 4, batch()[0]], [80.0, 0.002], list("012345")),
    "accuracy_against_epsilon": lambda: series.accuracy_against_epsilon(TABLE, PUBLISHED),
    "one ε, one seed": lambda: series.accuracy_against_epsilon(pd.DataFrame([row(cnn=(0.9,))])),
    "not private": lambda: series.accuracy_against_epsilon(pd.DataFrame([row(epsilon=math.inf)])),
    "fid_against_epsilon": lambda: series.fid_against_epsilon(TABLE),
    "method_comparison": lambda: charts.method_comparison(TABLE),
    "ingredients": lambda: charts.ingredients(INGREDIENTS),
    "budget_split": lambda: charts.budget_split(PRIVACY, [0.1, 0.9]),
    "roc": lambda: charts.roc(RATES, RATES**0.5),
}


def png(figure):
    return Image.open(io.BytesIO(figure._repr_png_())).convert("RGB")


@functools.cache
def drawn(name):
    """A figure and its picture; any warning on the way is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = FIGURES[name]()
        return figure, png(figure)


def dots(axes):
    """Every drawn dot as (x, y) in data coordinates."""
    lines = [line for line in axes.lines if line.get_linestyle() == "None" and line.get_marker() in style.MARKERS]
    return [point for line in lines for point in zip(line.get_xdata(), line.get_ydata(), strict=True)]


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_labelled_and_drawn_without_warnings(name):
    figure, image = drawn(name)
    assert isinstance(figure, matplotlib.figure.Figure)
    assert image.width > 300
    for axes in figure.axes:
        assert axes.get_title(loc="left") or axes.get_title()
        assert axes.get_xlabel()
    assert figure.axes[0].get_ylabel()


def settings():
    return {key: value for key, value in matplotlib.rcParams.items() if key != "backend"}  # resolved when first asked


@pytest.mark.parametrize("name", FIGURES)
def test_the_readers_own_style_changes_nothing_and_is_left_alone(name):
    _, plain = drawn(name)
    with matplotlib.style.context(["dark_background", {"font.size": 20, "axes.titlesize": 30}]):
        before = settings()
        dark = png(FIGURES[name]())
        assert settings() == before
    assert np.array_equal(np.asarray(plain), np.asarray(dark))


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_is_drawn_over_the_edge_of_the_card(name):
    pixels = np.asarray(drawn(name)[1]).astype(int)
    card = np.array([int(grids.CARD[i : i + 2], 16) for i in (1, 3, 5)])
    edge = np.concatenate([pixels[3:6].reshape(-1, 3), pixels[-6:-3].reshape(-1, 3), pixels[:, 3:6].reshape(-1, 3),
                           pixels[:, -6:-3].reshape(-1, 3)])  # fmt: skip
    # Up to the line around the card, which crosses these strips at the corners, all of it is ground.
    assert np.mean(np.abs(edge - card).max(axis=1) > 2) < 0.01


# --- colours ---


def linear(colour):
    channels = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def contrast(first, second):
    """WCAG 2: (L1 + 0.05) / (L2 + 0.05)."""
    bright, dark = sorted(float(linear(colour) @ [0.2126, 0.7152, 0.0722]) + 0.05 for colour in (first, second))[::-1]
    return bright / dark


def seen(colour, blindness):
    """CIELAB of a colour as a reader without one kind of cone sees it (Viénot, Brettel and Mollon 1999)."""
    to_lms = np.array([[17.8824, 43.5161, 4.11935], [3.45565, 27.1554, 3.86714], [0.0299566, 0.184309, 1.46709]])
    without = {
        "none": np.eye(3),
        "protan": np.array([[0, 2.02344, -2.52581], [0, 1, 0], [0, 0, 1]]),
        "deutan": np.array([[1, 0, 0], [0.494207, 0, 1.24827], [0, 0, 1]]),
    }[blindness]
    rgb = np.clip(np.linalg.inv(to_lms) @ without @ to_lms @ linear(colour), 0, 1)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ rgb
    x, y, z = np.cbrt(xyz / [0.9505, 1.0, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_the_contrast_formula_knows_black_on_white():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


def test_text_and_colours_stand_out_from_the_card():
    assert contrast(grids.INK, grids.CARD) > 7
    assert min(contrast(colour, grids.CARD) for colour in style.PALETTE) > 3


@pytest.mark.parametrize("blindness", ["none", "protan", "deutan"])
def test_colours_stay_apart_for_colour_blind_readers(blindness):
    apart = {
        pair: np.linalg.norm(seen(pair[0], blindness) - seen(pair[1], blindness))
        for pair in itertools.combinations(style.PALETTE, 2)
    }
    assert min(apart.values()) > 15, min(apart, key=apart.get)


def test_the_measure_knows_a_red_and_a_green_that_look_alike():
    red, green = "#c04000", "#5a7d00"
    assert np.linalg.norm(seen(red, "none") - seen(green, "none")) > 70
    assert np.linalg.norm(seen(red, "deutan") - seen(green, "deutan")) < 5


def test_no_two_methods_look_alike():
    names = [*style.METHODS, *(f"other {number}" for number in range(20))]
    assert len(set(series.style_of(names).values())) == len(names)


def test_a_method_keeps_its_colour_whatever_stands_beside_it():
    assert set(style.METHODS) == set(METHODS)
    alone = {name: series.style_of([name])[name][0] for name in style.METHODS}
    assert len(set(alone.values())) == len(style.PALETTE)
    crowd = [
        "zebra",
        "another",
        *reversed(style.METHODS),
        "dpldm + public shapes",
        "dpldm (long)",
        "real, not private",
    ]
    beside = series.style_of(crowd)
    assert {name: beside[name][0] for name in style.METHODS} == alone
    for variant, method in (
        ("dpldm + public shapes", "dpldm"),
        ("dpldm (long)", "dpldm"),
        ("real, not private", "real"),
    ):
        assert beside[variant][0] == alone[method]
        assert beside[variant] != beside[method]


def test_a_smoke_run_is_never_drawn_without_saying_that_it_means_nothing():
    rows = pd.DataFrame(
        {"method": ["dpldm"] * 2, "public_data": [""] * 2, "epsilon": [1.0, math.inf], "profile": ["smoke"] * 2}
    )
    assert series.named(rows)["name"].str.endswith("(smoke, means nothing)").all()
    rows["profile"] = ["smoke", "quick"]
    assert series.named(rows)["name"].tolist() == ["dpldm (smoke, means nothing)", "dpldm, not private (quick)"]


# --- images ---


def test_a_grid_shows_the_images_in_the_rows_of_their_classes():
    images, labels = batch(7)
    axes = samples.sample_grid(images, labels, NAMES, columns=3).axes[0]
    (shown,) = axes.get_images()
    canvas = np.asarray(shown.get_array())
    assert canvas.shape == (3 * 8 + 2 * grids.GAP, 3 * 8 + 2 * grids.GAP, 3)
    centres = [4, 4 + 10, 4 + 20]
    ground = matplotlib.colors.to_rgb(grids.CARD)
    assert [text.get_text() for text in axes.get_yticklabels()] == list(NAMES)
    for number, y in enumerate(centres):
        assert np.allclose(canvas[y, centres[:2]], number / 2)
    assert np.allclose(canvas[centres[0], centres[2]], 0)  # the seventh image
    assert np.allclose(canvas[centres[1], centres[2]], ground)  # no third image of this class


def test_colour_images_keep_their_colours():
    images = torch.zeros(1, 3, 4, 4)
    images[:, 0] = 1
    canvas = samples.sample_grid(images, torch.tensor([0]), ["red"], columns=1).axes[0].get_images()[0].get_array()
    assert np.allclose(canvas, [1, 0, 0])


def test_a_class_without_images_has_an_empty_row():
    samples.sample_grid(torch.zeros(1, 1, 4, 4), torch.tensor([1]), NAMES)


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: samples.sample_grid(torch.zeros(2, 4, 4), torch.zeros(2), NAMES), r"expected shape \(N, C, H, W\)"),
        (lambda: samples.sample_grid(*batch(4), ["one"]), "labels: expected 0 to 0, got 0 to 2"),
        (lambda: samples.sample_grid(batch(4)[0], torch.zeros(3), NAMES), "labels: expected one for each of 4"),
        (lambda: samples.reconstructions(batch(4)[0], {"PCA": batch(3)[0]}), "PCA: expected images of the shape"),
        (lambda: samples.denoising_steps([batch()[0]], [1.0, 2.0], []), "noise_levels: expected one per batch"),
        (lambda: samples.denoising_steps([], [], []), "at least one"),
        (lambda: samples.denoising_steps([batch()[0]], [1.0], ["0"]), "row_names: expected 6, one per sample"),
        (lambda: charts.budget_split(PRIVACY, [1.0]), "shares: expected 2 fractions"),
        (lambda: charts.budget_split(PRIVACY, [0.5, 0.6]), "add up to 1.1"),
        (lambda: charts.budget_split({"mechanisms": []}, []), "shares: expected 0"),
        (lambda: charts.roc([0.0, 0.1], [0.0]), "tpr: expected as many"),
        (lambda: charts.roc([0.0, 0.0], [0.1, 0.2]), "at least one point"),
        (lambda: series.accuracy_against_epsilon(pd.DataFrame([row(), row()])), "several for dpldm at ε = 10"),
        (lambda: series.accuracy_against_epsilon(TABLE.drop(columns="cnn_values")), "none called cnn_values"),
        (lambda: series.accuracy_against_epsilon(TABLE.iloc[:0]), "at least one row with cnn"),
        (lambda: series.accuracy_against_epsilon(TABLE, PUBLISHED.assign(cnn=98.1)), "as a fraction of 1, got 98.1"),
        (lambda: series.fid_against_epsilon(TABLE, PUBLISHED), "published: .* none called fid_classifier"),
        (lambda: charts.method_comparison(TABLE.iloc[:0]), "at least one row"),
        (lambda: charts.ingredients(INGREDIENTS.iloc[:0]), "run dpldm ablation first"),
        (lambda: charts.ingredients(TABLE), "none called title"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_in_one_line(draw, message):
    with pytest.raises(ValueError, match=message) as caught:
        draw()
    assert "\n" not in str(caught.value)


# --- scores ---


def test_every_seed_of_every_method_is_a_dot_and_published_points_are_named():
    figure = series.accuracy_against_epsilon(TABLE, PUBLISHED)
    panels = {axes.get_title(loc="left"): axes for axes in figure.axes}
    assert list(panels) == ["MNIST", "Fashion-MNIST"]
    right_edge = 0.985
    assert sorted(dots(panels["MNIST"])) == sorted(
        [(10, 0.92), (10, 0.95), (10, 0.96), (1, 0.90), (1, 0.91), (10, 0.93), (right_edge, 0.98), (right_edge, 0.99)]
    )
    assert panels["MNIST"].get_xscale() == "log"
    assert list(panels["MNIST"].get_xticks()) == [1, 10]
    drawn = [list(line.get_ydata()) for line in panels["MNIST"].lines]
    assert [0.953, 0.981] in drawn  # published, by ε
    assert [pytest.approx(0.905), pytest.approx(0.9433333)] in drawn  # the means
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["dpldm", "class-gaussian", "real, not private", "DPDM (published)"]


def test_distances_stand_on_logarithmic_axes():
    figure = series.fid_against_epsilon(TABLE)
    assert {axes.get_yscale() for axes in figure.axes} == {"log"}
    accuracy, distance, *_ = charts.method_comparison(TABLE).axes
    assert (accuracy.get_xscale(), distance.get_xscale()) == ("linear", "log")
    assert len([place for place in distance.get_xticks() if 4 <= place <= 7]) >= 1


@pytest.mark.parametrize(
    ("levels", "title"), [([0.0, 5.0], "From image to noise"), ([5.0, 0.0], "From noise to image")]
)
def test_the_title_says_which_way_the_noise_goes_and_rows_have_their_classes(levels, title):
    (axes,) = samples.denoising_steps([batch(3)[0]] * 2, levels, ["0", "1", "2"]).axes
    assert axes.get_title(loc="left") == title
    assert [text.get_text() for text in axes.get_yticklabels()] == ["0", "1", "2"]
    assert axes.get_ylabel() == "class"


def test_dots_stand_clear_of_the_bars_and_inside_the_panel():
    figure = series.fid_against_epsilon(TABLE[TABLE["dataset"] == "mnist"])
    figure._repr_png_()
    (axes,) = figure.axes
    low, high = axes.get_ylim()
    for line in axes.lines:
        if line.get_linestyle() == "None" and line.get_marker() in style.MARKERS:
            assert all(low < y < high for y in line.get_ydata())
            assert all(axes.bbox.contains(*place) for place in line.get_transform().transform(line.get_xydata()))


def test_a_comparison_has_a_dot_for_every_seed():
    figure = charts.method_comparison(TABLE[TABLE["dataset"] == "mnist"])
    accuracy, distance = figure.axes
    assert sorted(x for x, _ in dots(accuracy)) == [0.90, 0.91, 0.92, 0.93, 0.95, 0.96, 0.98, 0.99]
    assert sorted(x for x, _ in dots(distance)) == [4.0, 4.0, 4.0, 5.0, 5.0, 5.0, 7.0]
    names = [text.get_text() for text in accuracy.get_yticklabels()]
    assert names == ["dpldm, ε = 10", "dpldm, ε = 1", "class-gaussian, ε = 10", "real, not private"]


def test_an_ablation_has_a_mark_for_every_seed_in_the_line_of_its_title():
    errors, distance = charts.ingredients(INGREDIENTS).axes
    titles = dict(zip(errors.get_yticks(), [text.get_text() for text in errors.get_yticklabels()], strict=True))
    drawn = sorted((titles[round(y)], round(x, 6)) for x, y in dots(errors))
    assert drawn == [
        ("as it is", 4.0), ("as it is", 5.0), ("as it is", 8.0), ("as it is", 10.0), ("less", 50.0),
        ("not measured", 4.0), ("not measured", 5.0), ("not measured", 8.0),
    ]  # fmt: skip
    assert sorted(x for x, _ in dots(distance)) == [4.0, 4.0, 5.0, 5.0, 50.0]
    assert [text.get_text() for text in errors.get_legend().get_texts()] == ["ε = 10", "ε = 1"]


def test_the_same_method_with_and_without_privacy_are_two_lines():
    frame = pd.DataFrame([row(), row(epsilon=math.inf)])
    labels = [text.get_text() for text in series.accuracy_against_epsilon(frame).legends[0].get_texts()]
    assert labels == ["dpldm", "dpldm, not private"]


def test_public_data_and_profiles_are_named():
    frame = pd.DataFrame([row(), row(public_data="procedural"), row(profile="paper")])
    labels = [text.get_text() for text in series.accuracy_against_epsilon(frame).legends[0].get_texts()]
    assert labels == ["dpldm (quick)", "dpldm + procedural (quick)", "dpldm (long)"]


def test_shares_are_drawn_as_given():
    (axes,) = charts.budget_split(PRIVACY, [0.1, 0.9]).axes
    assert [bar.get_width() for bar in axes.patches] == [0.1, 0.9]
    assert [text.get_text() for text in axes.get_yticklabels()] == [
        "moments (compression)\nσ = 5, 1 step", "training (diffusion)\nσ = 1.2, 1,500 steps",
    ]  # fmt: skip


# --- the PNG ---


def test_the_png_has_the_pixels_twice_as_large_and_the_statement(tmp_path):
    images, labels = batch(6)
    statement = {"epsilon": 10.0, "relation": "eine Person ± ein Bild"}
    path = grids.save_grid_png(tmp_path / "new" / "grid.png", images, labels, NAMES, statement, columns=2)
    with Image.open(path) as image:
        assert json.loads(image.text["privacy"]) == statement
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert pixels.shape[0] == 2 * (3 * 8 + 2 * grids.GAP) + 16
    left = pixels.shape[1] - 8 - 2 * (2 * 8 + grids.GAP)
    for number, grey in enumerate((0, 128, 255)):
        top = 8 + 2 * number * (8 + grids.GAP)
        assert (pixels[top : top + 16, left : left + 16] == grey).all()
        assert (pixels[top : top + 16, left + 20 : left + 36] == grey).all()
        assert pixels[top : top + 16, :left].min() < 100  # the name of the class is written beside it
    assert [each.name for each in path.parent.iterdir()] == ["grid.png"]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_can_be_read_back(tmp_path, channels):
    images = torch.randint(0, 256, (12, channels, 8, 6), generator=torch.Generator().manual_seed(0)).float() / 255
    labels = torch.arange(12) % 3
    path = grids.save_grid_png(tmp_path / "grid.png", images, labels, NAMES, {}, columns=4)
    grid = grids.read_grid_png(path, (channels, 8, 6), columns=4)
    assert grid.shape == (3, 4, channels, 8, 6)
    for number in range(3):
        assert np.allclose(grid[number], images[labels == number], atol=1e-6)
    for shape, columns in (((channels, 9, 6), 4), ((channels, 8, 6), 40)):
        with pytest.raises(ValueError, match="expected a grid of") as caught:
            grids.read_grid_png(path, shape, columns)
        assert "\n" not in str(caught.value)


def test_a_png_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def fail(self, *_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match=r"cannot write .*grid\.png: No space left on device; free some space"):
        grids.save_grid_png(tmp_path / "grid.png", *batch(), NAMES, {})
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="not JSON compliant"):
        grids.save_grid_png(tmp_path / "grid.png", *batch(), NAMES, {"epsilon": math.nan})


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32)])
def test_ten_images_side_by_side_are_large_enough_on_a_phone(shape):
    """24 pixels of 342, which a phone of 390 leaves for a figure, also beside long names."""
    rows = {name: np.zeros((10, *shape)) for name in ("dpldm", "dpldm + procedural shapes", "not private")}
    pairs = np.zeros((50, *shape))
    names = ["Ankle boot", "T-shirt/top", *map(str, range(8))]
    figures = [
        samples.image_rows(rows, "t", "method"),
        samples.real_beside_synthetic(pairs, pairs, np.arange(10).repeat(5), names),
    ]
    for figure in figures:
        figure._repr_png_()  # which lays it out
        for axes in figure.axes:
            share = axes.get_window_extent().width / figure.bbox.width
            assert 342 * share * shape[2] / axes.images[0].get_array().shape[1] >= 24
