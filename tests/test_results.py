"""Records, stages and image files: what is refused, what survives a failure, what comes back."""

import copy
import hashlib
import json
import math
import os
import resource
import statistics
import subprocess
import zipfile
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from dpldm.data import own
from dpldm.records import environment, files, numbers, schema, tables
from dpldm.records.images import load_images, save_images
from dpldm.records.names import _DEFINING, record_name
from dpldm.records.schema import RecordError
from dpldm.records.stages import StageFolder


def mechanism(name="train", noise_multiplier=2.0):
    return {
        "name": name, "stage": "diffusion", "noise_multiplier": noise_multiplier,
        "sample_rate": 0.1, "steps": 200, "sensitivity": 1.0,
    }  # fmt: skip


def record(seed=0, epsilon=10.0, cnn=(0.94, 0.95, 0.96), method="dpldm", fid=12.5, **top):
    private = epsilon is not None
    made = {
        "schema": 1, "method": method, "dataset": "mnist", "profile": "quick", "seed": seed, "public_data": None,
        "settings": {"latent_dimensions": 48, "sampler": {"name": "heun", "steps": 30}},
        "privacy": {
            "epsilon_target": epsilon, "epsilon": epsilon * 0.99 if private else None,
            "epsilon_rdp": epsilon * 1.05 if private else None, "delta": 1e-5,
            "relation": "add or remove one image with its label", "accountant": "prv",
            "mechanisms": [mechanism()] if private else [],
        },
        "metrics": {
            "fid_classifier": fid, "fid_inception": None,
            "accuracy": {"cnn": list(cnn), "mlp": [0.9], "logreg": [0.85, 0.87]},
            "precision": 0.7, "recall": 0.4, "n_synthetic": 60000, "nearest_ratio": 1.02,
        },
        "seconds": {"compression": 4.0, "diffusion": 100.5, "sampling": None, "evaluation": 60.0},
        "device": "cpu: some model, 2 cores", "commit": "0123abc", "versions": {"python": "3.11.9"},
        "data_sha256": {"train-images": "a" * 64},
    }  # fmt: skip
    return made | top


def changed(path, value):
    made = copy.deepcopy(record())
    *parents, last = path
    place = made
    for key in parents:
        place = place[key]
    if value is KeyError:
        del place[last]
    else:
        place[last] = value
    return made


# --- what is refused ---


def test_the_example_is_a_record_and_so_is_a_run_without_privacy():
    schema.validate(record())
    schema.validate(record(epsilon=None))


@pytest.mark.parametrize("key", list(record()))
def test_a_missing_key_is_named(key):
    with pytest.raises(RecordError, match=f"^{key}: expected .*, got nothing$"):
        schema.validate(changed([key], KeyError))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["schema"], 2, "schema: expected 1, got 2"),
        (["schema"], True, "schema: expected 1, got True"),
        (["method"], "../x", "method: expected a name of 1 to 48"),
        (["dataset"], "", "dataset: expected a name"),
        (["seed"], -1, "seed: expected a whole number, 0 or more, got -1"),
        (["seed"], 1.5, "seed: expected a whole number"),
        (["public_data"], "", "public_data: expected a text that names the public data, or null"),
        (["settings"], [], "settings: expected an object"),
        (["settings", "rate"], math.nan, "settings.rate: expected text, .* a finite number, .* got nan"),
        (["settings", "rate"], torch.ones(1), "settings.rate: expected text"),
        (["settings", "sampler", "steps"], {1: 2}, "settings.sampler.steps: expected texts as keys, got 1"),
        (["privacy", "delta"], 1, "privacy.delta: expected a number above 0 and below 1, or null, got 1"),
        (["privacy", "delta"], None, "privacy.delta: expected a number above 0 and below 1, got null"),
        (["privacy", "epsilon"], math.inf, "privacy.epsilon: expected a finite number above 0, or null, got inf"),
        (["privacy", "epsilon"], 10.1, "privacy.epsilon: expected at most the target 10, got 10.1"),
        (["privacy", "epsilon"], None, "privacy.epsilon: expected the ε spent, at most 10, got null"),
        (["privacy", "epsilon_rdp"], KeyError, "privacy.epsilon_rdp: expected .*, got nothing"),
        (["privacy", "epsilon_target"], None, "privacy: expected epsilon_target or noise_multiplier"),
        (["privacy", "mechanisms"], [], "privacy.mechanisms: expected at least one"),
        (["privacy", "mechanisms"], [mechanism(noise_multiplier=0)], "noise multipliers above 0"),
        (["privacy", "mechanisms", 0, "sample_rate"], 1.1, r"privacy.mechanisms\[0\].sample_rate: .* at most 1, got 1"),
        (["privacy", "mechanisms", 0, "steps"], 0, r"privacy.mechanisms\[0\].steps: expected a whole number"),
        (["privacy", "mechanisms", 0, "sensitivity"], KeyError, r"mechanisms\[0\].sensitivity: expected .* nothing"),
        (["metrics", "accuracy", "cnn"], [94.0], "metrics.accuracy.cnn: expected a list of numbers from 0 to 1"),
        (["metrics", "accuracy", "mlp"], KeyError, "metrics.accuracy.mlp: .* got nothing"),
        (["metrics", "accuracy", "forest"], 0.9, "metrics.accuracy.forest: expected a list"),
        (["metrics", "fid_inception"], KeyError, "metrics.fid_inception: expected .* or null, got nothing"),
        (["metrics", "fid_classifier"], -3.0, "metrics.fid_classifier: expected a finite number, 0 or more"),
        (
            ["metrics", "nearest_ratio"],
            math.nan,
            "metrics.nearest_ratio: expected text, .* a finite number, .* got nan",
        ),
        (["metrics", "parameters"], -1, "metrics.parameters: expected a whole number, 0 or more, got -1"),
        (["metrics", "learners"], [0.9], r"metrics.learners: expected an object, got \[0.9\]"),
        (["metrics", "learners"], {"knn": 0.9}, "metrics.learners.knn: expected a list of numbers from 0 to 1"),
        (["metrics", "two_sample"], {"cnn": 0.9}, "metrics.two_sample.cnn: expected an object, got 0.9"),
        (["metrics", "two_sample"], {"cnn": {"auc": 1.1}}, "metrics.two_sample.cnn.auc: expected a number from 0 to 1"),
        (["metrics", "two_sample"], {"cnn": {"auc": 1, "low": 1}}, "metrics.two_sample.cnn.high: .* got nothing"),
        (["metrics", "n_synthetic"], 6e4, "metrics.n_synthetic: expected a whole number"),
        (["seconds", "sampling"], -1, "seconds.sampling: expected a finite number, 0 or more, or null, got -1"),
        (["seconds", "waiting"], "long", "seconds.waiting: expected a finite number"),
        (["versions"], {}, "versions: expected an object of package names"),
        (["data_sha256"], {"train": "abc"}, "data_sha256: expected .* 64 hexadecimal digits"),
        (["extra"], 1, "extra: unknown key, expected only schema, method"),
    ],
)
def test_each_violation_is_named_in_one_line_and_nothing_is_written(tmp_path, path, value, message):
    with pytest.raises(RecordError, match=message) as caught:
        files.write(changed(path, value), tmp_path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("record not written: ")
    assert list(tmp_path.iterdir()) == []


# --- names ---


def test_the_name_is_stable_and_says_what_was_run():
    # Worked out from the definition by hand, not by the library: numbers in one spelling, keys sorted, no spaces.
    canonical = (
        '{"data_sha256":{"train-images":"' + "a" * 64 + '"},"dataset":"mnist","method":"dpldm",'
        '"privacy":{"delta":1e-05,"epsilon_target":10,"noise_multiplier":null},"profile":"quick","public_data":null,'
        '"seed":0,"settings":{"latent_dimensions":48,"sampler":{"name":"heun","steps":30}}}'
    )
    expected = hashlib.sha256(canonical.encode()).hexdigest()[:8]
    assert record_name(record()) == f"mnist-dpldm-eps10-quick-seed0-{expected}.json"


def test_the_name_does_not_depend_on_results_spelling_or_order():
    name = record_name(record())
    other = record(cnn=(0.1,), fid=None, commit="f" * 40, device="elsewhere", epsilon=10)
    other["settings"] = {"sampler": {"steps": 30.0, "name": "heun"}, "latent_dimensions": 48.0}
    assert record_name(dict(reversed(other.items()))) == name
    description = {key: record()[key] for key in _DEFINING}
    description["privacy"] = {"epsilon_target": 10, "delta": 1e-5}
    assert record_name(description) == name


def test_whatever_defines_the_run_changes_the_name():
    changes = [
        record(), record(seed=1), record(epsilon=0.2), record(epsilon=None), record(method="dpdm"),
        record(dataset="fashion_mnist"), record(profile="paper"), record(public_data="procedural"),
        record(settings={}), record(data_sha256={"train-images": "b" * 64}), changed(["privacy", "delta"], 1e-6),
    ]  # fmt: skip
    names = [record_name(one) for one in changes]
    assert len({name[-13:-5] for name in names}) == len(changes)
    assert [name.split("-")[2] for name in names[2:4]] == ["eps0.2", "epsnone"]


def test_a_run_by_noise_multiplier_is_named_by_it():
    asked = record()
    asked["privacy"] |= {"epsilon_target": None, "noise_multiplier": 1.5}
    schema.validate(asked)
    assert "-eps_of_noise1.5-" in record_name(asked)
    asked["privacy"]["epsilon_target"] = 10.0
    with pytest.raises(RecordError, match="where epsilon_target is null"):
        record_name(asked)


# --- there and back ---


def test_a_record_comes_back_and_is_found(tmp_path):
    made = record(settings={"name": "naïve ε", "widths": (64, 32)})
    path = files.write(made, tmp_path / "new" / "records")
    assert path.name == record_name(made)
    back = files.read(path)
    assert back == made | {"settings": {"name": "naïve ε", "widths": [64, 32]}}
    assert list(back) == list(schema.RECORD)
    assert files.find(path.parent, made) == path
    assert files.find(path.parent, record(seed=5)) is None
    assert files.find(tmp_path / "nowhere", made) is None
    before = path.read_bytes()
    files.write(dict(reversed(made.items())), path.parent)
    assert path.read_bytes() == before


def test_all_records_are_read_in_order(tmp_path):
    for seed in (2, 0, 1):
        files.write(record(seed=seed), tmp_path)
    assert [one["seed"] for one in files.read_all(tmp_path)] == [0, 1, 2]
    assert files.read_all(tmp_path / "nowhere") == []


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"null", b"\xff\xfe\x00", b"[" * 100_000, b"{}",
        json.dumps(changed(["settings", "rate"], math.nan)).encode(),
        json.dumps(record()).replace('"seed": 0', '"seed": 1e999').encode(),
        json.dumps(record()).replace('"n_synthetic": 60000', '"n_synthetic": ' + "9" * 5000).encode(),
    ],
)  # fmt: skip
def test_a_corrupt_record_is_named(tmp_path, content):
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    for reading in (lambda: files.read(path), lambda: files.read_all(tmp_path)):
        with pytest.raises(RecordError, match="expected") as caught:
            reading()
        assert str(path) in str(caught.value)
        assert "delete it" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_record_under_another_name_is_not_counted_twice(tmp_path):
    path = files.write(record(), tmp_path)
    (tmp_path / "copy.json").write_bytes(path.read_bytes())
    with pytest.raises(RecordError, match=r"copy\.json: expected the name mnist-dpldm"):
        files.read_all(tmp_path)


def test_a_missing_record_is_an_oserror(tmp_path):
    with pytest.raises(FileNotFoundError):
        files.read(tmp_path / "none.json")


# --- failures while writing ---


@contextmanager
def largest_file(size):
    """The kernel refuses to let any file of this process grow past `size` bytes, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def write_record(folder):
    return files.write(record(fid=99.0), folder)


def write_stage(folder):
    return StageFolder(folder).save("one", {"x": torch.ones(5000)}, {"new": True})


def write_images(folder):
    noise = torch.rand(50, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    return save_images(folder / "images.npz", noise, torch.zeros(50, dtype=torch.int64), {"epsilon": 1})


WRITERS = [write_record, write_stage, write_images]


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, writer):
    path = tmp_path / writer(tmp_path / "other").name
    path.write_bytes(b"old")
    with largest_file(100), pytest.raises(OSError, match=r"cannot write .*; free some space") as caught:
        writer(tmp_path)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == b"old"
    assert sorted(tmp_path.iterdir()) == sorted([path, tmp_path / "other"])


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_failure_before_the_last_step_leaves_nothing(tmp_path, monkeypatch, writer, failure, call):
    def fail(*_):
        raise failure

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(type(failure)):
        writer(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("writer", WRITERS)
def test_a_folder_that_is_a_file_is_an_oserror(tmp_path, writer):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match="cannot write"):
        writer(tmp_path / "file")
    with pytest.raises(OSError, match="cannot write"):
        writer(tmp_path / "file" / "deeper")


def test_check_writable(tmp_path, monkeypatch):
    files.check_writable(tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match=r"expected a folder that takes new files .*Errno"):
        files.check_writable(tmp_path / "file")
    with pytest.raises(OSError, match=r"expected 1,000,000,000,000 MB of room, found .* MB; free"):
        files.check_writable(tmp_path, free_bytes=10**18)
    with largest_file(100), pytest.raises(OSError, match="expected a folder that takes"):
        files.check_writable(tmp_path)
    if os.geteuid() != 0:
        (tmp_path / "new").chmod(0o500)
        with pytest.raises(OSError, match="cannot write into"):
            files.check_writable(tmp_path / "new")


# --- tables ---


def test_the_table_has_the_numbers_worked_out_by_hand():
    records = [record(seed=1, cnn=(0.90, 0.98), fid=10.0), record(seed=0, cnn=(0.94,), fid=13.0)]
    (row,) = tables.table(records).to_dict("records")
    assert (row["seeds"], row["epsilon"], row["epsilon_spent"], row["delta"]) == (2, 10.0, pytest.approx(9.9), 1e-5)
    assert row["cnn_values"] == (0.94, 0.90, 0.98)  # every one, in the order of the synthesis seeds
    assert row["cnn"] == pytest.approx(0.94)
    assert row["cnn_spread"] == pytest.approx(0.04)  # sqrt((0.04² + 0.04² + 0) / 2)
    assert (row["cnn_min"], row["cnn_max"]) == (0.90, 0.98)
    assert row["logreg_values"] == (0.85, 0.87, 0.85, 0.87)
    assert (row["fid_classifier"], row["fid_classifier_spread"]) == (11.5, pytest.approx(statistics.stdev([10, 13])))
    assert math.isnan(row["fid_inception"])
    assert row["fid_inception_values"] == ()
    assert row["seconds"] == 164.5
    assert row["records"] == tuple(record_name(one) for one in reversed(records))


def test_the_summary_keeps_every_value():
    records = [record(seed=seed, cnn=(0.5 + seed / 10,)) for seed in range(3)]
    long = tables.summary(records)
    row = long[long["score"] == "cnn"].iloc[0]
    assert (row["n"], row["min"], row["mean"], row["max"]) == (3, 0.5, pytest.approx(0.6), 0.7)
    assert row["standard_deviation"] == pytest.approx(0.1)
    assert row["values"] == (0.5, 0.6, 0.7)
    assert "fid_inception" not in set(long["score"])


def test_one_value_has_no_spread():
    row = tables.table([record(cnn=(0.9,))]).iloc[0]
    assert math.isnan(row["cnn_spread"])


def test_different_settings_are_never_averaged():
    frame = tables.table([record(), record(settings={"latent_dimensions": 32}), record(epsilon=1.0), record(seed=3)])
    assert sorted(frame["seeds"]) == [1, 1, 2]
    assert frame["variant"].nunique() == 3
    assert list(frame["epsilon"]) == [1.0, 10.0, 10.0]


def test_runs_without_privacy_have_infinite_epsilon():
    row = tables.table([record(epsilon=None, method="real")]).iloc[0]
    assert math.isinf(row["epsilon"])
    assert math.isinf(row["epsilon_spent"])


def test_the_text_is_aligned_rounded_and_names_its_records():
    records = [record(), record(seed=1, cnn=(0.91,)), record(epsilon=None, method="real", dataset="数据")]
    text = tables.to_text(tables.table(records))
    header, *rows = text.splitlines()[:3]
    assert "94.0 ± 2.2" in text  # mean and standard deviation of 94, 95, 96, 91
    assert "2 min 44 s" in text
    assert len({tables._width(line) for line in (header, *rows)}) == 1
    for one in records:
        assert record_name(one) in text
    assert "Inception" not in text  # measured by none of them
    assert tables.to_text(tables.table([])) == "No records yet."


MEASURED = {
    "learners": {"cnn": [0.94], "knn": [0.905], "forest": [0.919], "boosting": [0.9], "svm": [0.95, 0.97]},
    "two_sample": {"forest": {"auc": 0.9996, "low": 0.999, "high": 1.0}, "cnn": {"auc": 0.75, "low": 0.7, "high": 0.8}},
}


def test_learners_and_two_sample_tests_have_columns_where_a_record_has_them():
    """One seed of a run was measured by today's instruments, another before they were there: one run, one name."""
    old, new = record(seed=1), record()
    new["metrics"] = new["metrics"] | MEASURED
    schema.validate(new)
    assert record_name(new) == record_name(record())
    frame = tables.table([old, new, record(dataset="other")])
    row, other = frame.iloc[0], frame.iloc[1]
    assert (row["seeds"], row["knn_values"], row["knn"]) == (2, (0.905,), 0.905)
    assert row["svm"] == pytest.approx(0.96)
    assert (row["auc_forest"], row["auc_cnn"]) == (0.9996, 0.75)
    assert math.isnan(other["forest"])
    assert other["auc_forest_values"] == ()
    header, first, second = tables.to_text(frame).splitlines()[:3]
    assert [column in header for column in ("3-NN (%)", "SVM (%)", "AUC (forest)", "AUC (CNN)")] == [True] * 4
    assert "90.5 91.9 90.0 96.0 ± 1.4" in " ".join(first.split())
    assert second.count("–") >= 6
    assert "AUC" not in tables.to_text(tables.table([old]))


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (9.96, "10 s"), (59.4, "59 s"), (164.5, "2 min 44 s"), (7260, "2 h 01 min")]
)
def test_durations(seconds, text):
    assert numbers.duration(seconds) == text


# --- the environment ---


def test_the_environment_is_named():
    facts = environment.environment_facts()
    assert facts["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    assert facts["device"].startswith("cpu: ")
    assert "core" in facts["device"]
    assert facts["commit"]
    schema.validate(record(**facts))


def test_the_commit_is_that_of_the_checkout(tmp_path):
    def git(*arguments):
        identity = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")
        command = ("git", "-C", str(tmp_path), *identity, "-c", f"core.hooksPath={tmp_path}", *arguments)
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    assert environment._commit(tmp_path) is None
    git("init", "-q")
    assert environment._commit(tmp_path) is None  # no commit yet
    (tmp_path / "dpldm").mkdir()
    (tmp_path / "dpldm" / "a.py").write_text("1")
    git("add", "dpldm")
    git("commit", "-q", "-m", "one")
    commit = git("rev-parse", "HEAD")
    assert environment._commit(tmp_path) == commit
    (tmp_path / "record.json").write_text("{}")
    assert environment._commit(tmp_path) == commit
    assert environment._commit(tmp_path / "dpldm") is None  # installed somewhere inside another repository
    (tmp_path / "dpldm" / "b.py").write_text("2")
    assert environment._commit(tmp_path) == f"{commit}-dirty"


# --- stages ---


def test_a_stage_comes_back(tmp_path):
    stages = StageFolder(tmp_path / "run")
    assert not stages.has("compression")
    tensors = {
        "weights": torch.randn(3, 4, requires_grad=True), "labels": torch.arange(5), "mask": torch.tensor([True]),
        "scalar": torch.tensor(2.5), "half": torch.ones(2, dtype=torch.bfloat16), "empty": torch.zeros(0, 3),
        "turned": torch.arange(6.0).reshape(2, 3).T,
    }  # fmt: skip
    tensors["shared"] = tensors["weights"][1]
    facts = {"epsilon": 1.5, "mechanisms": [mechanism()], "note": "ε"}
    stages.save("compression", tensors, facts)
    assert stages.has("compression")
    loaded, known = stages.load("compression")
    assert known == facts
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)
    stages.save("compression", {}, {})
    assert stages.load("compression") == ({}, {})


@pytest.mark.parametrize("stage", ["", "../up", "a/b", ".hidden"])
def test_a_stage_name_stays_in_its_folder(tmp_path, stage):
    with pytest.raises(RecordError, match="stage: expected a name"):
        StageFolder(tmp_path).has(stage)


def test_facts_must_be_json(tmp_path):
    with pytest.raises(RecordError, match=r"facts\.loss: expected text"):
        StageFolder(tmp_path).save("one", {}, {"loss": math.inf})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["cut", "bit", "facts", "other", "empty", "missing"])
def test_a_damaged_stage_is_named(tmp_path, damage):
    stages = StageFolder(tmp_path)
    path = stages.save("diffusion", {"x": torch.ones(100)}, {"epsilon": 1.5})
    content = path.read_bytes()
    damaged = {
        "cut": content[:-10], "bit": content[:-1] + bytes([content[-1] ^ 1]), "facts": content.replace(b"1.5", b"0.5"),
        "other": b"no tensors here, whatever it was", "empty": b"", "missing": None,
    }[damage]  # fmt: skip
    if damaged is None:
        path.unlink()
    else:
        assert damaged != content
        path.write_bytes(damaged)
    with pytest.raises(RecordError, match=r"expected the finished stage 'diffusion'") as caught:
        stages.load("diffusion")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


# --- images ---


@pytest.mark.parametrize("channels", [1, 3])
def test_images_come_back_within_half_a_grey_level(tmp_path, channels):
    images = torch.rand(7, channels, 5, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(7) % 3
    statement = {"epsilon": 10.0, "delta": 1e-5, "relation": "add or remove one image"}
    path = save_images(tmp_path / "s.npz", images, labels, statement)
    with np.load(path, allow_pickle=False) as archive:
        assert archive["images"].dtype == np.uint8
        assert archive["images"].shape == ((7, 5, 5) if channels == 1 else (7, 5, 5, 3))
        assert archive["labels"].dtype == np.int64
        assert json.loads(str(archive["privacy"])) == statement
    back, classes, said = load_images(path)
    assert back.shape == images.shape
    assert back.dtype == torch.float32
    assert (back - images).abs().max() <= 0.5 / 255 + 1e-7
    assert torch.equal(classes, labels)
    assert said == statement


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(2, 2, 4, 4), torch.zeros(2, dtype=torch.int64), "C of 1 or 3"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), "floating-point"),
        (torch.zeros(0, 1, 4, 4), torch.zeros(0, dtype=torch.int64), "images: expected"),
        (
            torch.full((2, 1, 4, 4), 1.1),
            torch.zeros(2, dtype=torch.int64),
            r"image 0 has values 1.1\d* to",
        ),
        (torch.full((2, 1, 4, 4), math.nan), torch.zeros(2, dtype=torch.int64), "image 0 has NaN or infinite pixels"),
        (torch.zeros(2, 1, 4, 4), torch.zeros(3, dtype=torch.int64), "labels: expected 2 whole numbers"),
        (torch.zeros(2, 1, 4, 4), torch.tensor([0, -1]), "labels: expected 2 whole numbers of 0 or more"),
        (torch.zeros(2, 1, 4, 4), torch.zeros(2), "labels: expected 2 whole numbers"),
    ],
)
def test_wrong_images_are_refused(tmp_path, images, labels, message):
    with pytest.raises(RecordError, match=message):
        save_images(tmp_path / "s.npz", images, labels, {})
    assert list(tmp_path.iterdir()) == []


def test_another_ending_is_refused(tmp_path):
    with pytest.raises(RecordError, match=r"ends in \.npz"):
        save_images(tmp_path / "s.png", torch.zeros(1, 1, 2, 2), torch.zeros(1, dtype=torch.int64), {})


def foreign_archives(folder):
    pixels, labels = np.zeros((2, 4, 4), np.uint8), np.zeros(2, np.int64)
    np.savez(folder / "floats.npz", images=pixels.astype(float), labels=labels)
    np.savez(folder / "lacking.npz", images=pixels)
    np.savez(folder / "objects.npz", images=pixels, labels=np.array([{}, {}], dtype=object))
    np.savez(folder / "longer.npz", images=pixels, labels=np.zeros(3, np.int64))
    np.savez(folder / "statement.npz", images=pixels, labels=labels, privacy=np.array("{not json"))
    np.savez(folder / "listed.npz", images=pixels, labels=labels, privacy=np.array("[1]"))
    (folder / "text.npz").write_text("hello")
    (folder / "empty.npz").write_bytes(b"")
    np.savez(folder / "whole.npz", images=pixels, labels=labels)
    (folder / "cut.npz").write_bytes((folder / "whole.npz").read_bytes()[:-30])
    (folder / "whole.npz").unlink()
    with zipfile.ZipFile(folder / "zip.npz", "w") as archive:
        archive.writestr("images.npy", b"no array")


def test_foreign_archives_are_refused_in_one_line(tmp_path):
    foreign_archives(tmp_path)
    paths = sorted(tmp_path.iterdir())
    assert len(paths) == 10
    for path in paths:
        with pytest.raises(RecordError, match="expected") as caught:
            load_images(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError):
        load_images(tmp_path / "none.npz")


class Intruder:
    """Unpickling this writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_reading_images_executes_no_code(tmp_path):
    images = np.zeros((1, 4, 4), np.uint8)
    np.savez(tmp_path / "s.npz", images=images, labels=np.array([Intruder(tmp_path / "ran")], dtype=object))
    with pytest.raises(RecordError, match="Object arrays cannot be loaded"):
        load_images(tmp_path / "s.npz")
    assert not (tmp_path / "ran").exists()
    np.load(tmp_path / "s.npz", allow_pickle=True)["labels"]
    assert (tmp_path / "ran").exists()  # it would have


def test_images_of_others_without_a_statement_load(tmp_path):
    np.savez(tmp_path / "own.npz", images=np.full((2, 4, 4), 255, np.uint8), labels=np.array([0, 1], np.uint8))
    images, labels, statement = load_images(tmp_path / "own.npz")
    assert images.shape == (2, 1, 4, 4)
    assert images.min() == 1
    assert labels.tolist() == [0, 1]
    assert statement == {}


# --- what contradicts itself ---


def test_secure_noise_is_stated_as_the_settings_have_it(tmp_path):
    for asked, stated in ((False, True), (True, False)):
        edited = record(settings={"secure_mode": asked})
        edited["privacy"]["secure_mode"] = stated
        with pytest.raises(
            RecordError, match=f"privacy.secure_mode: expected {asked} as in the settings, got {stated}"
        ):
            files.write(edited, tmp_path)
    agreed = record(settings={"secure_mode": True})
    agreed["privacy"]["secure_mode"] = True
    assert files.read(files.write(agreed, tmp_path)) == agreed


def test_an_edited_epsilon_is_refused_wherever_records_are_read(tmp_path):
    path = files.write(record(), tmp_path)
    edited = json.loads(path.read_text())
    edited["privacy"]["epsilon"] = 0.1
    path.write_text(json.dumps(edited))
    for read in (
        lambda: files.read(path),
        lambda: files.read_all(tmp_path),
        lambda: files.find(tmp_path, edited),
    ):
        with pytest.raises(RecordError, match=r"claims epsilon=0\.1, but its mechanisms spend"):
            read()


@pytest.mark.parametrize(
    "path",
    [
        ["seed"],
        ["settings", "steps"],
        ["privacy", "epsilon"],
        ["privacy", "mechanisms", 0, "steps"],
        ["metrics", "n_synthetic"],
    ],
)
def test_a_number_of_400_digits_is_refused(tmp_path, path):
    file = tmp_path / "long.json"
    file.write_text(json.dumps(changed(path, 10**400)))
    with pytest.raises(RecordError, match=r"expected .*, got 1000.*\.\.\."):
        files.read(file)


def test_hidden_files_are_passed_over(tmp_path):
    path = files.write(record(), tmp_path)
    (tmp_path / f"._{path.name}").write_bytes(b"\0\5\x16\7")  # as macOS leaves them on foreign disks
    (tmp_path / "._x.json").write_text("{")
    assert len(files.read_all(tmp_path)) == 1


@pytest.mark.parametrize(("epsilon", "shown"), [(1000.0, "1000"), (0.2, "0.2"), (12345.0, "12300"), (10.0, "10")])
def test_epsilon_is_written_out(epsilon, shown):
    line = tables.to_text(tables.table([record(epsilon=epsilon)])).splitlines()[1]
    assert line.split()[3] == shown


def test_images_carry_the_names_of_their_classes(tmp_path):
    images, labels = torch.rand(12, 1, 8, 8), torch.arange(12) % 3
    path = save_images(tmp_path / "s.npz", images, labels, {}, ("cat", "Hündin", "猫"))
    assert own.load_own(path).class_names == ("cat", "Hündin", "猫")
    assert torch.equal(load_images(path)[1], labels)
    plain = save_images(tmp_path / "p.npz", images, labels, {})  # as older versions wrote it
    assert own.load_own(plain).class_names == ("0", "1", "2")
    assert torch.equal(load_images(plain)[0], load_images(path)[0])


@pytest.mark.parametrize("name", ["own-été", "own-猫の絵", "own-हिन्दी"])
def test_names_of_any_script_are_names(tmp_path, name):
    path = files.write(record(dataset=name), tmp_path)
    assert path.name.startswith(f"{name}-dpldm-")
    assert files.read_all(tmp_path)[0]["dataset"] == name


def test_more_images_than_the_memory_holds_are_refused_at_once():
    with pytest.raises(
        RecordError, match=r"expected at most [\d,]+ images, which fit the memory here, got 1,000,000,0"
    ):
        files.check_memory(10**9, (1, 28, 28))
    files.check_memory(60_000, (1, 28, 28))
