"""The peers' protocol at toy size: the published networks, what chooses the epoch, and what a record says of it."""

import copy
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_evaluation import toy
from test_experiment import Lines
from test_rescoring import aged, made, older, public  # noqa: F401 - fixtures
from torch import Tensor, nn
from torchvision import models

from dpldm.cli import main
from dpldm.evaluation import peers
from dpldm.evaluation.classifiers import Labelled, accuracy
from dpldm.evaluation.peers import FULL, KINDS, REDUCED, PeersSettings, build_peer, peers_scores
from dpldm.records import files, schema
from dpldm.records.images import save_images
from dpldm.records.schema import RecordError
from dpldm.runs import peers as runs_peers
from dpldm.runs.experiment import Folders
from dpldm.runs.rescoring import RescoringError

TOY = PeersSettings(
    epochs=1, batch=16, resnet_depth=8, wrn_depth=10, wrn_width=1, resnext_depth=11, groups=2, group_width=4
)
CPU = torch.device("cpu")


def labelled(count: int, seed: int) -> Labelled:
    images = toy(count, seed)
    return Labelled(images.images, images.labels)


# --- the networks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "millions"), [("resnet", 1.73), ("wrn", 8.95), ("resnext", 34.4)])
def test_networks_have_the_published_sizes(kind: str, millions: float) -> None:
    """He et al. 2016, table 6: 1.7; Zagoruyko and Komodakis 2016, table 4: 8.9; Xie et al. 2017, table 7: 34.4."""
    with torch.device("meta"):
        network = build_peer(kind, 1, 10)
    assert sum(weights.numel() for weights in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.03)


def test_the_resnext_computes_what_torchvisions_own_does() -> None:
    ours = build_peer("resnext", 3, 10, replace(FULL, group_width=8)).eval()
    theirs = models.ResNet(models.resnet.Bottleneck, [3, 3, 3, 1], 10, groups=8, width_per_group=8)
    theirs.conv1, theirs.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    theirs.layer4, theirs.fc = nn.Identity(), nn.Linear(1024, 10)
    values = list(ours.state_dict().values())
    theirs.load_state_dict(dict(zip(theirs.state_dict(), values, strict=True)))
    images = torch.rand(2, 3, 28, 28)
    torch.testing.assert_close(ours(images), theirs.eval()(images))


def test_a_wide_block_is_its_formula() -> None:
    block = peers.WideBlock(2, 4, 2, 0.3).eval()
    values = torch.randn(3, 2, 8, 8)
    scale = 1 / math.sqrt(1 + 1e-5)  # a fresh normalisation
    active = (values * scale).relu()
    first, second = block.rest[0], block.rest[4]
    assert block.shortcut is not None
    torch.testing.assert_close(block(values), block.shortcut(active) + second((first(active) * scale).relu()))
    assert [layer.p for layer in build_peer("wrn", 1, 3).modules() if isinstance(layer, nn.Dropout)] == [0.3] * 18


def test_settings_are_the_published_ones_and_the_reduced_are_not() -> None:
    published = (FULL.epochs, FULL.batch, FULL.learning_rate, FULL.ema, FULL.dropout, FULL.kinds)
    assert published == (50, 256, 0.01, 0.9999, 0.3, ("resnet", "wrn", "resnext"))
    learned, held_out = peers.split(60_000, FULL, 0)
    assert (len(learned), len(held_out)) == (55_000, 5_000)
    assert not set(learned.tolist()) & set(held_out.tolist())
    assert runs_peers.name_of(FULL) == "dpimagebench"
    assert runs_peers.name_of(REDUCED) == runs_peers.name_of(replace(FULL, epochs=49)) == "dpimagebench-reduced"
    with pytest.raises(ValueError, match="unknown classifier 'cnn'"):
        build_peer("cnn", 1, 10)


# --- what is learned, and by what it is chosen ------------------------------------------------------------------------


def test_scores_repeat_and_leave_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    scores = [peers_scores(labelled(120, 0), toy(90, 2), TOY, CPU, seed) for seed in (1, 1, 2)]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert scores[0] == scores[1]
    assert set(scores[0]["accuracy"]) == set(KINDS)
    assert scores[0]["best"] == max(scores[0]["accuracy"].values())
    assert scores[0]["mean"] == pytest.approx(sum(scores[0]["accuracy"].values()) / 3)
    assert (scores[0]["n_learned"], scores[0]["n_held_out"], scores[0]["reduced"]) == (110, 10, True)
    assert scores[0]["selection"] != scores[2]["selection"] or scores[0]["accuracy"] != scores[2]["accuracy"]


def test_it_learns_what_is_there_and_not_shuffled_labels() -> None:
    synthetic, settings = labelled(600, 0), replace(TOY, kinds=("wrn",), epochs=6, learning_rate=0.01)
    order = torch.randperm(600, generator=torch.Generator().manual_seed(9))
    assert peers_scores(synthetic, toy(180, 2), settings, CPU, 1)["best"] > 0.9
    assert (
        peers_scores(Labelled(synthetic.images, synthetic.labels[order]), toy(180, 2), settings, CPU, 1)["best"] < 0.6
    )


def test_the_epoch_is_chosen_on_held_out_synthetic_images_and_the_test_set_is_seen_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    synthetic, test, answers = labelled(120, 0), toy(90, 2), iter([0.5, 0.75, 0.75, 0.25])
    _, held_out = peers.split(120, TOY, 3)
    seen: list[str] = []

    def watched(network: nn.Module, images: Tensor, labels: Tensor, indices: Tensor | None = None) -> float:
        if images is test.images:
            seen.append("test")
            return accuracy(network, images, labels)
        assert images is synthetic.images
        assert indices is not None
        assert torch.equal(indices, held_out)
        seen.append("synthetic")
        return next(answers)

    monkeypatch.setattr(peers, "accuracy", watched)
    scores = peers_scores(synthetic, test, replace(TOY, kinds=("wrn",), epochs=4), CPU, 3)
    assert seen == ["synthetic"] * 4 + ["test"]
    assert scores["selection"]["wrn"] == {"epoch": 3, "synthetic_validation_accuracy": 0.75}  # of equals the later
    monkeypatch.undo()
    shorter = peers_scores(synthetic, test, replace(TOY, kinds=("wrn",), epochs=3), CPU, 3)
    assert shorter["selection"]["wrn"]["epoch"] == 3
    assert scores["accuracy"] == shorter["accuracy"]  # the weights that were kept are those of that epoch


def test_real_test_images_are_not_there_while_peers_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    synthetic, test = labelled(120, 0), toy(90, 2)
    expected = peers_scores(synthetic, test, TOY, CPU, 4)
    wiped, train = replace(test, images=test.images.clone(), labels=test.labels.clone()), peers.train_peer

    def blind(*arguments: Any) -> peers.Chosen:
        wiped.images.fill_(math.nan)
        wiped.labels.fill_(-1)
        chosen = train(*arguments)
        wiped.images.copy_(test.images)
        wiped.labels.copy_(test.labels)
        return chosen

    monkeypatch.setattr(peers, "train_peer", blind)
    assert peers_scores(synthetic, wiped, TOY, CPU, 4) == expected


def test_what_is_scored_is_the_average_of_the_weights() -> None:
    """After t steps the new weights count 1 - min(0.9999, (1 + t)/(10 + t)), as published."""
    assert [peers._weight(0.9999, t) for t in (1, 90)] == pytest.approx([9 / 11, 0.09])
    assert peers._weight(0.9999, 10**6) == pytest.approx(1e-4)
    slow, fast = (replace(TOY, kinds=("wrn",), epochs=2, ema=ema) for ema in (0.9999, 0.0))
    synthetic = labelled(240, 0)
    networks = [peers.train_peer("wrn", synthetic, 3, settings, CPU, 0).network for settings in (slow, fast)]
    first, second = (torch.cat([weights.flatten() for weights in one.parameters()]) for one in networks)
    assert not torch.allclose(first, second)


def test_progress_reaches_the_end() -> None:
    told: list[float] = []
    peers_scores(labelled(120, 0), toy(90, 2), TOY, CPU, 0, told.append)
    assert told == sorted(told)
    assert len(told) == 3 * 7  # 110 images in batches of 16, once, three times
    assert told[-1] == 1


# --- records and command ----------------------------------------------------------------------------------------------


def test_scores_go_into_the_record_under_the_name_of_their_settings(
    older: tuple[Path, Folders],  # noqa: F811
) -> None:
    path, folders = older
    before = files.read(path)
    settings = replace(TOY, kinds=("wrn",))
    told = Lines()
    assert runs_peers.add_peers(path, folders, told, settings=settings) == ["dpimagebench-reduced"]
    assert any("reduced: not what peers report" in line for line in told.lines)
    assert runs_peers.add_peers(path, folders, Lines(), settings=settings) == []
    after = files.read(path)
    found = after["metrics"]["peers"]["dpimagebench-reduced"]
    assert found["reduced"] is True
    assert found["settings"]["kinds"] == ["wrn"]
    assert found["delta"] == 1e-4
    assert found["delta_of_peers"] == pytest.approx(1 / (600 * math.log(600)))
    assert after["metrics"]["added"]["peers-dpimagebench-reduced"]["device"].startswith("cpu")
    for key in ("peers", "added", "learners"):
        after["metrics"].pop(key)
    assert after == before
    wrong = copy.deepcopy(files.read(path))
    wrong["metrics"]["peers"]["dpimagebench-reduced"]["best"] = 91.0
    with pytest.raises(RecordError, match=r"metrics\.peers\.dpimagebench-reduced\.best: expected a number from 0 to 1"):
        schema.validate(wrong)


def test_a_processor_is_told_the_hours_before_anything_is_made_again(
    older: tuple[Path, Folders],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path, folders = older
    shutil.rmtree(folders.runs)
    monkeypatch.setattr(peers, "expected_hours", lambda *_: 123.4)
    with pytest.raises(RescoringError, match="needs about 123 hours: use --device cuda, or --reduced"):
        runs_peers.add_peers(path, folders, Lines(), remake=True, device="cpu")
    assert not folders.runs.exists()


def test_hours_grow_with_images_and_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1_000))
    monkeypatch.setattr(peers.time, "perf_counter", lambda: next(clock))
    count, settings = 3_600 * peers.TRIED_IMAGES, replace(TOY, epochs=5)
    assert peers.expected_hours((1, 12, 12), 3, count, settings, CPU) == pytest.approx(3 * 5)  # a second for each step


def test_the_command_scores_a_file_and_says_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    synthetic = labelled(200, 0)
    save_images(tmp_path / "some.npz", synthetic.images, synthetic.labels, {})
    monkeypatch.setattr(peers, "REDUCED", replace(TOY, kinds=("wrn",)))
    monkeypatch.setattr(peers, "expected_hours", lambda *_: 123.4)
    words = ["evaluate", "some.npz", "--dataset", "mnist", "--protocol", "dpimagebench", "--device", "cpu"]
    assert main(words) == 2
    assert "about 123 hours" in capsys.readouterr().err
    assert main([*words, "--reduced", "--json", "s.json"]) == 0
    assert "reduced: not what peers report" in capsys.readouterr().out
    assert '"reduced": true' in (tmp_path / "s.json").read_text()
    assert main(["evaluate", "some.npz", "--dataset", "mnist", "--reduced"]) == 2
    assert "--reduced is for --protocol dpimagebench" in capsys.readouterr().err
