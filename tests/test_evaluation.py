"""Scores against independent routes, and the protocol: nothing is chosen with a look at real test images."""

import io
import math
import pickle
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision import transforms

from dpldm.data.fetch import file_sha256
from dpldm.evaluation import classifiers, fidelity, inception, protocol
from dpldm.evaluation import features as features_module
from dpldm.evaluation.features import (
    WEIGHTS_FOLDER,
    FeatureNetwork,
    feature_network_for,
    load_feature_network,
    ship_feature_network,
    train_feature_network,
)
from dpldm.evaluation.settings import CLASSIFIERS, EVALUATION, EvaluationSettings

TINY = EvaluationSettings(
    classifier_seeds=2,
    cnn_epochs=3,
    mlp_epochs=8,
    logreg_epochs=8,
    batch_size=32,
    feature_epochs=1,
    n_feature_images=150,
    n_memorisation_images=60,
    inception="never",
)


OTHERS = [part for part in protocol.PARTS if part not in CLASSIFIERS]


@dataclass(frozen=True)
class Images:
    """Stands in for dpldm.data.images.ImageData."""

    name: str
    images: Tensor
    labels: Tensor
    num_classes: int = 3
    sha256: dict[str, str] = field(default_factory=dict)


def toy(count: int, seed: int, side: int = 12, channels: int = 1) -> Images:
    """Class c has a bright horizontal band at the c-th third, under noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    images = torch.rand(count, channels, side, side, generator=generator) * 0.6
    band = side // 3
    for label in range(3):
        images[labels == label, :, label * band : (label + 1) * band] += 0.3
    return Images("toy", images, labels)


@pytest.fixture(scope="module")
def toys() -> tuple[Images, Images, Images]:
    return toy(240, 0), toy(240, 1), toy(180, 2)


def gaussian_pair(dimensions: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    first = torch.randn(400, dimensions, generator=generator, dtype=torch.float64)
    mixing = torch.randn(dimensions, dimensions, generator=generator, dtype=torch.float64)
    return first, torch.randn(300, dimensions, generator=generator, dtype=torch.float64) @ mixing + 0.5


# --- Fréchet distance -------------------------------------------------------------------------------------------------


def test_fid_agrees_with_torchmetrics() -> None:
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Identity(torch.nn.Module):
        num_features = 6

        def forward(self, rows: Tensor) -> Tensor:
            return rows

    first, second = gaussian_pair()
    reference = FrechetInceptionDistance(feature=Identity(), normalize=True).set_dtype(torch.float64)
    reference.update(first, real=True)
    reference.update(second, real=False)
    expected = float(reference.compute())
    assert fidelity.fid(first, second) == pytest.approx(expected, rel=1e-9)
    assert fidelity.fid(first + 0.1, second) != pytest.approx(expected, rel=1e-3)


def test_frechet_distance_in_closed_form() -> None:
    """Diagonal covariances: the sum over dimensions of (difference of means)² + (difference of deviations)²."""
    means, deviations = (
        torch.tensor([[0.0, 1.0, 2.0], [3.0, 1.0, -1.0]]),
        torch.tensor([[1.0, 2.0, 0.0], [4.0, 0.5, 1.0]]),
    )
    expected = float(((means[0] - means[1]) ** 2 + (deviations[0] - deviations[1]) ** 2).sum())
    covariances = [torch.diag(deviation**2) for deviation in deviations]
    arguments = (means[0], covariances[0], means[1], covariances[1])
    assert fidelity.frechet_distance(*arguments) == pytest.approx(expected, abs=1e-6)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0))).Q
    turned = (turn @ means[0], turn @ covariances[0] @ turn.T, turn @ means[1], turn @ covariances[1] @ turn.T)
    assert fidelity.frechet_distance(*turned) == pytest.approx(expected, abs=1e-5)


def test_frechet_distance_of_singular_covariances_is_finite_and_symmetric() -> None:
    first, second = gaussian_pair()
    first, second = (torch.cat([part, part, torch.zeros(len(part), 3)], 1) for part in (first, second))
    there, back = fidelity.fid(first, second), fidelity.fid(second, first)
    assert there == pytest.approx(back, rel=1e-6)
    assert fidelity.fid(first, first) == pytest.approx(0, abs=1e-9)


def test_fid_refuses_too_few_rows() -> None:
    with pytest.raises(ValueError, match="more images than its 6"):
        fidelity.fid(torch.rand(6, 6), torch.rand(100, 6))


# --- neighbours -------------------------------------------------------------------------------------------------------


def naive_neighbours(real: Tensor, synthetic: Tensor, rank: int) -> tuple[float, float, float]:
    """(precision, recall, coverage) by loops over points."""

    def radius(points: Tensor, index: int) -> float:
        others = [float((points[index] - other).norm()) for place, other in enumerate(points) if place != index]
        return sorted(others)[rank - 1]

    def share_inside(points: Tensor, balls: Tensor) -> float:
        radii = [radius(balls, index) for index in range(len(balls))]
        inside = [any(float((p - b).norm()) <= r for b, r in zip(balls, radii, strict=True)) for p in points]
        return sum(inside) / len(inside)

    covered = [any(float((r - s).norm()) <= radius(real, index) for s in synthetic) for index, r in enumerate(real)]
    return share_inside(synthetic, real), share_inside(real, synthetic), sum(covered) / len(covered)


@pytest.mark.parametrize("chunk", [7, 500])
def test_precision_recall_and_coverage_equal_loops(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fidelity, "CHUNK", chunk)
    generator = torch.Generator().manual_seed(1)
    real = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    synthetic = 0.9 * torch.randn(30, 3, generator=generator, dtype=torch.float64) + 1.2
    precision, recall, covered = naive_neighbours(real, synthetic, 3)
    assert fidelity.precision_recall(real, synthetic, 3) == (precision, recall)
    assert fidelity.coverage(real, synthetic, 3) == covered
    assert 0 < recall < precision < 1  # narrow and shifted: the example tells the two apart


def test_memorisation_tells_copies_from_new_images() -> None:
    counts = {"train": 600, "test": 200, "fresh": 300}
    train, test, fresh = (
        torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
        for seed, count in enumerate(counts.values())
    )
    new = fidelity.memorisation(fresh, train, test, 300)
    copied = fidelity.memorisation(train, train, test, 300)
    smooth = fidelity.memorisation(torch.full_like(fresh, 0.5), train, test, 300)
    # standard errors: sqrt(0.75 · 0.25 / 300) = 0.025 and, with the percentile estimated from 200, about 0.01
    assert new["share_closer_expected"] == 0.75
    assert new["share_closer_to_train"] == pytest.approx(0.75, abs=0.1)
    assert smooth["share_closer_to_train"] in (0, 1)  # one image 300 times
    assert new["share_below_first_percentile"] < 0.05
    assert copied["share_closer_to_train"] == 1
    assert copied["share_below_first_percentile"] == 1
    assert copied["median_distance_synthetic"] < 0.01 < new["median_distance_synthetic"]
    assert smooth["share_below_first_percentile"] == 1  # why this share alone proves nothing


# --- classifiers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_classifiers_learn_and_do_not_learn_shuffled_labels(kind: str, toys: tuple[Images, Images, Images]) -> None:
    train, _, test = toys
    shuffled = train.labels[torch.randperm(len(train.labels), generator=torch.Generator().manual_seed(9))]
    reached = []
    for labels in (train.labels, shuffled):
        trained = classifiers.train_classifier(kind, train.images, labels, 3, replace(TINY, cnn_epochs=8))
        reached.append(classifiers.accuracy(trained.network, test.images, test.labels))
    chance, standard_error = 1 / 3, math.sqrt(2 / 9 / 180)
    assert reached[0] > 0.9
    assert abs(reached[1] - chance) < 0.3  # not 4 standard errors: shuffled labels still agree by chance here and there
    assert reached[0] - reached[1] > 8 * standard_error


@pytest.mark.parametrize(("side", "channels"), [(8, 1), (8, 3), (17, 1), (18, 3), (28, 1), (33, 1), (64, 3)])
@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_networks_take_every_side_grey_and_colour(kind: str, side: int, channels: int) -> None:
    network = classifiers.build_network(kind, (channels, side, side), 4, torch.Generator().manual_seed(0), "cpu")
    images = torch.rand(2, channels, side, side)
    assert network(images).shape == (2, 4)
    if kind == "cnn":
        features = FeatureNetwork(network, {}).features(images)
        assert features.shape == (2, classifiers.FEATURE_DIMENSIONS)


def test_cnn_has_the_widths_of_the_reference_classifier() -> None:
    network = classifiers.build_network("cnn", (1, 28, 28), 10, torch.Generator(), "cpu")
    # by hand: 3x3 convolutions 1-32-64-128, then 128·3·3 -> 128 -> 10, each with biases
    expected = (9 * 32 + 32) + (9 * 32 * 64 + 64) + (9 * 64 * 128 + 128) + (1152 * 128 + 128) + (1280 + 10)
    assert sum(parameter.numel() for parameter in network.parameters()) == expected


def test_initial_weights_have_torchs_scale() -> None:
    ours = classifiers.build_network("mlp", (1, 28, 28), 10, torch.Generator().manual_seed(0), "cpu")[1]
    theirs = torch.nn.Linear(784, 100)
    assert float(ours.weight.detach().std()) == pytest.approx(float(theirs.weight.detach().std()), rel=0.02)
    assert float(ours.weight.detach().abs().max()) == pytest.approx(1 / 28, rel=0.01)


def test_half_dropout_keeps_half_doubled_and_is_off_in_evaluation() -> None:
    layer = classifiers.HalfDropout(torch.Generator().manual_seed(0))
    values = torch.ones(8, 32, 13, 13).contiguous(memory_format=torch.channels_last)
    dropped = layer(values)
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert float(dropped.mean()) == pytest.approx(1, abs=5 / math.sqrt(values.numel()))
    assert not torch.equal(layer(values), dropped)
    assert torch.equal(layer.eval()(values), values)


def test_the_chosen_epoch_is_the_best_on_the_held_out_synthetic_tenth(monkeypatch: pytest.MonkeyPatch) -> None:
    train = toy(100, 0)
    curve = iter([0.2, 0.9, 0.9, 0.1])
    looked_at = []

    def scripted(network: torch.nn.Module, images: Tensor, labels: Tensor, indices: Tensor, **_: object) -> float:
        looked_at.append((images is train.images, len(indices)))
        return next(curve)

    monkeypatch.setattr(classifiers, "accuracy", scripted)
    trained = classifiers.train_classifier("mlp", train.images, train.labels, 3, replace(TINY, mlp_epochs=4))
    assert (trained.epoch, trained.validation_accuracy) == (2, 0.9)
    assert looked_at == [(True, 10)] * 4


def test_training_leaves_the_global_generator_alone() -> None:
    train = toy(60, 0)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    classifiers.train_classifier("cnn", train.images, train.labels, 3, replace(TINY, cnn_epochs=1))
    assert torch.equal(torch.get_rng_state(), before)


# --- the whole evaluation ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def metrics(toys: tuple[Images, Images, Images]) -> dict:
    synthetic, train, test = toys
    return protocol.evaluate(synthetic.images, synthetic.labels, train, test, TINY, seed=4)


def test_metrics_have_the_agreed_keys(metrics: dict) -> None:
    assert {"fid_classifier", "fid_classifier_train", "fid_inception", "precision", "recall", "n_synthetic"} <= set(
        metrics
    )
    assert set(metrics["accuracy"]) == {"cnn", "mlp", "logreg"}
    assert all(len(scores) == 2 and min(scores) > 0.5 for scores in metrics["accuracy"].values())
    assert metrics["n_synthetic"] == 240
    assert metrics["fid_inception"] is None
    assert metrics["fid_inception_note"] == "not asked for"
    assert metrics["features"].startswith("classifier trained on real images (now")
    assert 0 <= metrics["fid_classifier"] < math.inf


def test_the_same_seed_repeats_in_threads_and_another_does_not(
    metrics: dict, toys: tuple[Images, Images, Images]
) -> None:
    synthetic, train, test = toys
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        parts = protocol.evaluation_parts(synthetic.images, synthetic.labels, train, test, TINY, seed=4, done=OTHERS)
        again = protocol.merge(partial for _, partial in parts)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    assert again["accuracy"] == metrics["accuracy"]
    assert again["selection"] == metrics["selection"]
    first, second = (
        classifiers.train_classifier("mlp", train.images, train.labels, 3, TINY, seed=seed) for seed in (4, 5)
    )
    assert not torch.equal(next(first.network.parameters()), next(second.network.parameters()))


def test_real_test_images_are_not_there_while_classifiers_train(
    metrics: dict, toys: tuple[Images, Images, Images], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a classifier trains, the test set is wiped: the scores stay the same, so nobody looked; one look after."""
    synthetic, train, test = toys
    wiped, clean_labels = replace(test, images=test.images.clone(), labels=test.labels.clone()), test.labels
    train_classifier, guesses, looks = classifiers.train_classifier, classifiers.guesses, []

    def train_without_test_set(*arguments, **named):
        wiped.images.fill_(math.nan)
        wiped.labels.fill_(-1)
        try:
            return train_classifier(*arguments, **named)
        finally:
            wiped.images.copy_(test.images)
            wiped.labels.copy_(clean_labels)

    def counted(network, images, indices, bfloat16=False):
        looks.append(images is wiped.images)
        return guesses(network, images, indices, bfloat16)

    monkeypatch.setattr(protocol, "train_classifier", train_without_test_set)
    monkeypatch.setattr(protocol, "guesses", counted)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)  # one at a time, so that wiping cannot hit a score
    parts = protocol.evaluation_parts(synthetic.images, synthetic.labels, train, wiped, TINY, seed=4, done=OTHERS)
    assert protocol.merge(partial for _, partial in parts)["accuracy"] == metrics["accuracy"]
    assert sum(looks) == 3 * TINY.classifier_seeds


def test_parts_already_done_are_skipped(toys: tuple[Images, Images, Images]) -> None:
    synthetic, train, test = toys
    done = [part for part in protocol.PARTS if part not in ("memorisation", "logreg")]
    seen: list[tuple[float, str]] = []
    parts = protocol.evaluation_parts(
        synthetic.images, synthetic.labels, train, test, TINY, done=done, progress=lambda *step: seen.append(step)
    )
    assert [name for name, _ in parts] == ["memorisation", "logreg"]
    assert seen[-1][0] == pytest.approx(1)
    assert seen[-1][1] == "logreg"
    assert [step[0] for step in seen] == sorted(step[0] for step in seen)


def test_an_error_in_one_part_stops_the_others(
    toys: tuple[Images, Images, Images], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> dict:
        raise OSError("disk full")

    synthetic, train, test = toys
    monkeypatch.setattr(protocol, "memorisation", broken)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    settings = replace(TINY, cnn_epochs=10_000, classifier_seeds=1)
    done = [part for part in protocol.PARTS if part not in ("cnn", "memorisation")]
    parts = protocol.evaluation_parts(synthetic.images, synthetic.labels, train, test, settings, done=done)
    with pytest.raises(OSError, match="disk full"):
        list(parts)
    assert not [thread for thread in threading.enumerate() if "ThreadPoolExecutor" in thread.name]


def test_leaving_early_stops_the_threads(toys: tuple[Images, Images, Images], monkeypatch: pytest.MonkeyPatch) -> None:
    synthetic, train, test = toys
    settings = replace(TINY, cnn_epochs=10_000)
    parts = protocol.evaluation_parts(
        synthetic.images,
        synthetic.labels,
        train,
        test,
        settings,
        done=[part for part in protocol.PARTS if part not in ("cnn", "two_sample_cnn", "logreg")],
    )
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)  # five busy with a CNN each, one free
    assert next(parts)[0] == "logreg"
    parts.close()
    assert not [thread for thread in threading.enumerate() if "ThreadPoolExecutor" in thread.name]


def test_merge_unites_nested_dictionaries() -> None:
    assert protocol.merge([{"a": {"x": 1}}, {"a": {"y": 2}, "b": 3}]) == {"a": {"x": 1, "y": 2}, "b": 3}


# --- bad input --------------------------------------------------------------------------------------------------------


def changed(tensor: Tensor, value: float) -> Tensor:
    copy = tensor.clone()
    copy.view(-1)[0] = value
    return copy


BAD = {
    "too few": (lambda i, y: (i[:128], y[:128]), "too few.*128 feature"),
    "wrong shape": (lambda i, y: (i[:, :, :8], y), r"float32 \(N, 1, 12, 12\), got .* resize"),
    "wrong type": (lambda i, y: (i.double(), y), "float32"),
    "above one": (lambda i, y: (changed(i, 2.0), y), r"in \[0, 1\]"),
    "NaN": (lambda i, y: (changed(i, math.nan), y), "image 0 has NaN"),
    "label out of range": (lambda i, y: (i, changed(y, 3)), "0..2, got 3"),
    "negative label": (lambda i, y: (i, changed(y, -1)), "got -1"),
    "class missing": (lambda i, y: (i, y.clamp(max=1)), "no synthetic image has label 2"),
    "labels too short": (lambda i, y: (i, y[:-1]), "synthetic labels"),
    "labels not integers": (lambda i, y: (i, y.float()), "int64"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_synthetic_sets_are_refused_before_any_work(case: str, toys: tuple[Images, Images, Images]) -> None:
    synthetic, train, test = toys
    change, message = BAD[case]
    images, labels = change(synthetic.images, synthetic.labels)
    with pytest.raises(ValueError, match=message) as caught:
        protocol.evaluation_parts(images, labels, train, test, TINY)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", [{"classifier_seeds": 0}, {"learning_rate": math.nan}, {"inception": "perhaps"}])
def test_bad_settings_are_refused(change: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        replace(TINY, **change)


def test_profiles_are_there_and_the_paper_one_does_more_in_full_precision() -> None:
    assert set(EVALUATION) == {"smoke", "quick", "paper"}
    quick, paper = EVALUATION["quick"], EVALUATION["paper"]
    for kind in CLASSIFIERS:
        assert paper.epochs(kind) > quick.epochs(kind)
    assert paper.n_feature_images > quick.n_feature_images
    assert not paper.bfloat16
    assert min(quick.classifier_seeds, paper.classifier_seeds) >= 3


# --- feature networks -------------------------------------------------------------------------------------------------


def test_feature_network_there_and_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features_module, "WEIGHTS_FOLDER", tmp_path)
    train = replace(toy(150, 0), sha256={"train": "abc"})
    path = ship_feature_network(train, toy(90, 1), epochs=2)
    loaded = load_feature_network("toy")
    kept = train_feature_network(train.images, train.labels, 3, 0, 2)
    torch.testing.assert_close(
        loaded.features(train.images), kept.features(train.images), rtol=0.01, atol=0.01
    )  # float16
    assert float(loaded.metadata["test_accuracy"]) <= 1
    assert feature_network_for(train, TINY, "cpu", 0)[1].startswith("classifier trained on real images (ship")
    namesake = replace(train, sha256={"train": "other"})
    assert "(now" in feature_network_for(namesake, TINY, "cpu", 0)[1]
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="damaged feature network toy"):
        load_feature_network("toy")
    path.write_bytes(b"not a model")
    with pytest.raises(ValueError, match="damaged feature network toy"):
        load_feature_network("toy")


@pytest.mark.parametrize("dataset", ["mnist", "fashion_mnist"])
def test_shipped_networks_load_and_are_small(dataset: str) -> None:
    network = load_feature_network(dataset)
    assert network.features(torch.rand(3, 1, 28, 28)).shape == (3, classifiers.FEATURE_DIMENSIONS)
    assert network.metadata["dataset"] == dataset
    assert (WEIGHTS_FOLDER / f"{dataset}.safetensors").stat().st_size < 1_000_000


def test_no_network_is_shipped_for_other_data() -> None:
    with pytest.raises(FileNotFoundError, match="train one"):
        load_feature_network("cats")


@pytest.mark.slow
@pytest.mark.parametrize("dataset", ["mnist", "fashion_mnist"])
def test_shipped_networks_reach_their_stated_accuracy(dataset: str) -> None:
    from dpldm.data import datasets

    test = datasets.load(dataset, "test")
    network = load_feature_network(dataset)
    reached = classifiers.accuracy(network.network, test.images, test.labels)
    assert reached == pytest.approx(float(network.metadata["test_accuracy"]), abs=2e-4)


# --- Inception --------------------------------------------------------------------------------------------------------


class Colours(torch.nn.Module):
    """Stands in for Inception: a fixed random projection of 8-bit RGB pixels."""

    def forward(self, pixels: Tensor) -> tuple[Tensor]:
        assert pixels.dtype == torch.uint8
        assert pixels.shape[1] == 3
        weights = torch.randn(pixels[0].numel(), 4, generator=torch.Generator().manual_seed(0))
        return (pixels.flatten(1).float() @ weights,)


def test_inception_part_with_a_local_file(
    toys: tuple[Images, Images, Images], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    synthetic, train, test = toys
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"x")
    monkeypatch.setattr(inception, "INCEPTION_SHA256", file_sha256(weights))
    monkeypatch.setattr(inception, "load_inception", lambda path, device: (Colours(), "0123456789abcdef"))
    monkeypatch.setattr(inception, "INCEPTION_DIMENSIONS", 4)
    monkeypatch.setenv(inception.INCEPTION_VARIABLE, str(weights))
    settings = replace(TINY, inception="if-file", n_inception_images=None)
    others = [part for part in protocol.PARTS if part != "fid_inception"]
    [(_, scores)] = protocol.evaluation_parts(synthetic.images, synthetic.labels, train, test, settings, done=others)
    features = [inception.inception_features(Colours(), part.images) for part in (synthetic, test)]
    assert scores["fid_inception"] == pytest.approx(fidelity.fid(*features))
    assert "240 synthetic and 180 real test images, weights sha256 0123456789ab" in scores["fid_inception_note"]
    asked = []
    whole = inception.inception_features
    monkeypatch.setattr(inception, "inception_features", lambda *given: asked.append(len(given[1])) or whole(*given))
    others = (test.images, test.images * 0.5)
    again = [
        inception.inception_part(synthetic.images, real, settings, weights, torch.device("cpu"), 0)["fid_inception"]
        for real in (*others, others[0])
    ]
    assert asked == [240, 240, 180, 240, 180]  # the first real images are known, until others are asked for
    assert again[0] == again[2] == scores["fid_inception"] != again[1]


def test_inception_says_why_it_is_missing(
    toys: tuple[Images, Images, Images], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    synthetic, train, test = toys
    monkeypatch.delenv(inception.INCEPTION_VARIABLE, raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(inception, "urlopen", lambda *_, **__: pytest.fail("the network was used unasked"))
    others = [part for part in protocol.PARTS if part != "fid_inception"]
    settings = replace(TINY, inception="if-file")
    [(_, scores)] = protocol.evaluation_parts(synthetic.images, synthetic.labels, train, test, settings, done=others)
    assert scores["fid_inception"] is None
    assert "no local weights" in scores["fid_inception_note"]
    with pytest.raises(ValueError, match="no Inception weights at"):
        protocol.evaluation_parts(
            synthetic.images, synthetic.labels, train, test, settings, inception_weights=tmp_path / "none.pth"
        )


def test_a_silent_server_is_given_up_within_the_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    silent = threading.Event()
    monkeypatch.setattr(inception, "urlopen", lambda *_, **__: silent.wait(30) and io.BytesIO())
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(OSError, match="no answer within"):
        inception.download_inception_weights(connect_seconds=0.1)
    silent.set()
    assert not list(tmp_path.rglob("*.pth"))


class Trap:
    """Unpickling this would run code."""

    def __reduce__(self):
        return pytest.fail, ("the weights file ran code",)


@pytest.mark.parametrize(
    "content", [b"", b"not a model", pickle.dumps(Trap(), protocol=2)], ids=["empty", "text", "trap"]
)
def test_wrong_inception_files_are_refused_and_run_no_code(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"expected weights of Inception v3 .*: fetch weights-inception"):
        inception.load_inception(path)
    torch.save({"w": Trap()}, path)
    with pytest.raises(ValueError, match=r"expected weights of Inception v3 .*: fetch weights-inception"):
        inception.load_inception(path)


@pytest.mark.parametrize("cached", [False, True])
def test_other_weights_than_the_published_are_refused_before_any_work(
    cached: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "checkpoints" / inception._inception_file()[1]
    path.parent.mkdir()
    path.write_bytes(b"half of the file")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.delenv(inception.INCEPTION_VARIABLE, raising=False)
    with pytest.raises(ValueError, match=r"expected SHA-256 6726825d0af5, got SHA-256 .* of 16 bytes: fetch weights-"):
        inception.find_inception_weights(None if cached else path)
    monkeypatch.setattr(inception, "INCEPTION_SHA256", file_sha256(path))
    assert inception.find_inception_weights(None if cached else path) == path
    path.write_bytes(b"other weights now")
    with pytest.raises(ValueError, match="expected SHA-256"):
        inception.find_inception_weights(None if cached else path)


def test_the_sum_of_the_weights_is_the_one_that_their_name_begins() -> None:
    name = inception._inception_file()[1]
    assert inception.INCEPTION_SHA256.startswith(name.removesuffix(".pth").rpartition("-")[2])


@pytest.fixture(scope="module")
def random_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of weights for the published architecture, drawn at random; the published file itself is not at hand."""
    from torch_fidelity import feature_extractor_inceptionv3 as source

    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        torch.manual_seed(0)
        patch.setattr(source, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(source.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        made = source.FeatureExtractorInceptionV3("made", ["2048"])
        for layer in made.modules():
            if isinstance(layer, torch.nn.Conv2d):  # at torch's own scale nothing would be left at the end
                torch.nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    path = tmp_path_factory.mktemp("inception") / inception._inception_file()[1]
    torch.save(made.state_dict(), path)
    return path


class EightBits(torch.utils.data.Dataset):
    """What torch-fidelity takes: RGB in 8 bits, here converted by Pillow."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int) -> Tensor:
        page = transforms.functional.to_pil_image(self.images[number]).convert("RGB")
        return transforms.functional.pil_to_tensor(page)


def test_inception_features_and_distance_are_those_of_torch_fidelity(random_weights: Path) -> None:
    """Its own reading of the file, resizing, scaling, network and distance; images in 8 bits, as records have them."""
    from torch_fidelity import metric_fid, utils

    theirs = utils.create_feature_extractor(
        "inception-v3-compat", ["2048"], cuda=False, verbose=False, feature_extractor_weights_path=str(random_weights)
    )
    ours, checksum = inception.load_inception(random_weights)
    assert checksum == file_sha256(random_weights)
    generator, found, expected = torch.Generator().manual_seed(0), [], []
    for channels, count in ((1, 2), (1, 2), (3, 1)):
        brightness = torch.rand(count, 1, 1, 1, generator=generator)
        side = (torch.rand(count, channels, 28, 28, generator=generator) * brightness * 255).round() / 255
        found.append(inception.inception_features(ours, side))
        expected += utils.get_featuresdict_from_dataset(EightBits(side), theirs, 2, False, True, False).values()
        torch.testing.assert_close(found[-1], expected[-1].double(), rtol=1e-3, atol=1e-4)
        assert found[-1].shape == (count, inception.INCEPTION_DIMENSIONS)
    assert (found[0] - found[1]).abs().mean() > 0.01  # so that the features say something
    moments = [(rows[:, 0].mean().reshape(1), rows[:, 0].var().reshape(1, 1)) for rows in found[:2]]
    stats = [metric_fid.fid_features_to_statistics(rows[:, :1].double()) for rows in expected[:2]]
    for one in stats:
        one["sigma"] = one["sigma"].reshape(1, 1)
    told = metric_fid.fid_statistics_to_metric(*stats, verbose=False)["frechet_inception_distance"]
    assert fidelity.frechet_distance(*moments[0], *moments[1]) == pytest.approx(told, rel=1e-2)
