"""What each command of `dpldm` does: thin doors to the library, which is imported inside of them."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpldm.runs.bar import progress_bar

if TYPE_CHECKING:
    from dpldm.method.settings import SamplingSettings
    from dpldm.runs.experiment import Experiment


RUNS, DEFAULT_EPSILON = Path("runs"), 10.0
RECORDS, BOOK_RECORDS, ABLATION = Path("runs/records"), Path("book/records"), Path("runs/ablation")
# The names that the library knows, here so that it need not be loaded for them; tests hold the two together. YARDSTICKS
# take no ε.
DATASETS = ("mnist", "fashion_mnist", "letters", "things", "things64")
IN_THE_BOOK = DATASETS[:2]
PROFILES = ("smoke", "quick", "paper")
YARDSTICKS = ("real", "non-private")
METHODS = ("dpldm", "class-gaussian", "dp-merf", "dp-sinkhorn", "gs-wgan", "dpdm", "reading-b", *YARDSTICKS)


def run_experiment(given: argparse.Namespace) -> None:
    """`dpldm run`."""
    from dpldm.privacy.mechanisms import PrivacySpec

    epsilon = _epsilon(given)
    if epsilon is not None or given.noise_multiplier is not None:
        PrivacySpec(epsilon, given.delta, given.noise_multiplier)  # a bad budget is refused before the slow imports
    from dpldm.book import freshness
    from dpldm.runs import experiment, plan, run, words

    folders = experiment.Folders(records=given.out, runs=given.runs)
    described = _experiment(given, epsilon)
    if given.dry_run:
        print(*plan.in_words(described), sep="\n")
        return
    with progress_bar() as progress:

        def begins(path: Path) -> None:
            for line in [] if given.data is None else plan.in_words(described, folders):
                progress.say(line)
            freshness.note_inputs(path, folders.runs, given.force)

        record = run.run(described, folders, progress, given.force, begins)
    print(words.summary(record, folders))


def _epsilon(given: argparse.Namespace) -> float | None:
    if given.non_private or given.noise_multiplier is not None:
        return None
    if given.epsilon is None:
        return None if given.method in YARDSTICKS else DEFAULT_EPSILON
    return given.epsilon[0]


def _experiment(given: argparse.Namespace, epsilon: float | None) -> "Experiment":
    from dataclasses import replace

    from dpldm.runs.experiment import Experiment

    base = Experiment(
        dataset=given.data or given.dataset or DATASETS[0],
        kind=given.kind,
        resize=given.resize,
        epsilon=epsilon,
        noise_multiplier=given.noise_multiplier,
        delta=given.delta,
        secure_mode=given.secure,
        method=given.method,
        profile=given.profile,
        seed=given.seed,
        n_synthetic=given.n_synthetic,
        test_data=given.test_data,
        device=given.device,
    ).resolved()
    assert base.settings is not None
    assert base.evaluation is not None
    scoring = base.evaluation
    if given.classifier_seeds is not None:
        scoring = replace(scoring, classifier_seeds=given.classifier_seeds)
    return replace(base, settings=_changed(base, given), evaluation=scoring)


def _changed(base: "Experiment", given: argparse.Namespace) -> Any:
    """The profile's settings with what was said on the command line, as far as the method has such settings."""
    from dataclasses import replace

    settings: Any = base.settings

    def needs(part: str, option: str) -> Any:
        if not hasattr(settings, part):
            raise ValueError(f"{option} does not apply to method {given.method!r}: leave it out, or choose another")
        return getattr(settings, part)

    if given.compressor is not None:
        settings = replace(settings, compression=replace(needs("compression", "--compressor"), kind=given.compressor))
    if given.batch is not None:
        if hasattr(settings, "fit"):
            settings = replace(settings, fit=replace(settings.fit, batch=given.batch))
        elif needs("batch", "--batch"):
            settings = replace(settings, batch=given.batch)
    if sampling := _sampling(settings, given, given.method):
        settings = replace(settings, sampling=sampling)
    if given.finished:
        from dpldm.recipes import finishing_for

        needs("finishing", "--finished")
        settings = replace(settings, finishing=finishing_for(base.known, base.epsilon, base.delta))
    return settings


def _sampling(settings: Any, given: argparse.Namespace, method: str) -> "SamplingSettings | None":
    """The settings' sampling with what was said on the command line; None for a method without a sampler."""
    from dataclasses import replace

    asked = {name: getattr(given, name) for name in ("sampler", "guidance")} | {"steps": given.sampling_steps}
    said = {name: value for name, value in asked.items() if value is not None}
    if not hasattr(settings, "sampling"):
        if said:
            raise ValueError(f"method {method!r} has no sampler: leave out what is said about its {', '.join(said)}")
        return None
    return replace(settings.sampling, **said)


def draw_samples(given: argparse.Namespace) -> None:
    """`dpldm sample`."""
    from dpldm.records import files
    from dpldm.runs import experiment
    from dpldm.runs import saved as runs_saved
    from dpldm.runs.saved import load_synthesizer, write_samples

    if given.n < 1:
        raise ValueError(f"expected 1 or more images, got --n {given.n}: raise it")
    if given.out.suffix != ".npz":
        raise ValueError(f"{given.out}: expected a file name that ends in .npz: rename it")
    saved = load_synthesizer(given.model, experiment.choose_device(given.device))
    assert saved.image_shape is not None
    files.check_memory(given.n, saved.image_shape)
    labels = runs_saved.labels_in_turn(given.labels, given.n, saved.class_names)
    sampling = _sampling(saved.settings, given, saved.method)
    files.check_writable(given.out.parent)
    seed = saved.seed if given.seed is None else given.seed
    with progress_bar() as progress:
        images = runs_saved.sample(saved, labels, seed, sampling, progress)
    grid = write_samples(given.out, images, labels, saved)
    print(f"{len(images):,} images in {given.out}, a grid of them in {grid}\nprivacy: {saved.statement['claim']}")


def evaluate_images(given: argparse.Namespace) -> None:
    """`dpldm evaluate`."""
    by_peers = given.protocol != "book"
    if given.reduced and not by_peers:
        raise ValueError("--reduced is for --protocol dpimagebench: leave it out")
    if given.records is not None:
        _score_records(given)
        return
    if given.file is None or given.dataset is None:
        raise ValueError("expected FILE with --dataset, or --records: say what to score")
    if given.remake or (by_peers and given.profile is not None):
        raise ValueError("--remake is for --records and --profile for this book's protocol: leave it out")
    from dpldm.data import datasets, own
    from dpldm.evaluation import protocol
    from dpldm.methods import PROFILES
    from dpldm.records import files
    from dpldm.runs import peers
    from dpldm.runs.experiment import choose_device
    from dpldm.runs.words import scores_in_words

    synthetic = own.load_own(given.file)
    device = choose_device(given.device)
    if given.json is not None:
        files.check_writable(given.json.parent)
    train, test = datasets.load(given.dataset, "train"), datasets.load(given.dataset, "test")
    settings = PROFILES[given.profile or "quick"].evaluation
    images, labels, seed = synthetic.images, synthetic.labels, given.seed or 0
    with progress_bar() as progress:
        if by_peers:
            protocol.check_synthetic(images, labels, train, test)
            metrics = peers.score(images, labels, test, peers.settings_of(given.reduced), device, seed, progress)
        else:
            track = lambda share, _: progress.track("evaluation", share)  # noqa: E731
            metrics = protocol.evaluate(images, labels, train, test, settings, device, seed, track)
    print(peers.in_words(metrics) if by_peers else "\n".join(scores_in_words(metrics)))
    if given.json is not None:
        text = json.dumps(metrics, indent=1, allow_nan=False) + "\n"
        files.write_atomically(given.json, lambda temporary: temporary.write_text(text, encoding="utf-8"))
        print(f"all scores: {given.json}")


def _score_records(given: argparse.Namespace) -> None:
    """`dpldm evaluate --records`."""
    if any(value is not None for value in (given.file, given.dataset, given.profile, given.seed, given.json)):
        raise ValueError("a record says how it is scored: leave out FILE, --dataset, --profile, --seed and --json")
    from dpldm.runs import peers, rescoring
    from dpldm.runs.experiment import Folders

    folders = Folders(runs=given.runs)
    paths = [_find_record(name) for name in given.records]
    if not paths:
        everything = [path for folder in (BOOK_RECORDS, RECORDS) for path in sorted(folder.glob("[!.]*.json"))]
        paths = everything if given.remake else rescoring.with_images(everything, folders)
        if gone := len(everything) - len(paths):
            print(f"{gone} left out, as their images are gone: --remake makes them again", file=sys.stderr)
    try:
        with progress_bar() as progress:
            add = peers.adder(given.protocol, given.reduced)
            refused = rescoring.add_to_all(paths, add, folders, progress, given.remake, given.device)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("stopped; what was finished is kept, run the same command to go on") from None
    print(f"{len(paths) - len(refused)} of {len(paths)} records lack nothing now")
    if refused:
        raise rescoring.RescoringError(f"{len(refused)} of {len(paths)} were refused, the first: {refused[0]}")


def show_records(given: argparse.Namespace) -> None:
    """`dpldm records`."""
    from dpldm.records import files, names, tables

    if given.folder is not None and not given.folder.is_dir():
        raise ValueError(f"{given.folder}: expected a folder of records, found none: name another with --folder")
    folders = [BOOK_RECORDS, RECORDS] if given.folder is None else [given.folder]
    found = {names.record_name(record): record for folder in folders for record in files.read_all(folder)}
    table = tables.table(found.values())
    if given.json:
        print(table.to_json(orient="records", force_ascii=False, indent=1, double_precision=15))
    elif given.csv:
        print(table.to_csv(index=False), end="")
    else:
        print(tables.to_text(table))


def show_data(given: argparse.Namespace) -> None:
    """`dpldm data`."""
    from dpldm.data import datasets

    if given.action == "list":
        for status in datasets.list_datasets():
            facts = f"{status.size / 1e6:.0f} MB, {status.licence}, {status.homepage}"
            print(f"{status.name:<14} {status.state:<8} {status.folder} ({facts})")
        return
    if not given.names:
        raise ValueError(f"expected a dataset to {given.action}: {' or '.join(datasets.DATASETS)}")
    act = datasets.fetch if given.action == "fetch" else datasets.verify
    for name in given.names:
        print("\n".join(act(name)))


def show_privacy(given: argparse.Namespace) -> None:
    """`dpldm privacy`."""
    from dpldm.data import datasets
    from dpldm.privacy import statement as privacy_statement
    from dpldm.records import files

    path = _find_record(given.record)
    record = files.read(path)
    print(path.name, *privacy_statement.in_words(record["privacy"], datasets.tuned_on(record["dataset"])), sep="\n")


def _find_record(given: Path) -> Path:
    """A record by its path or by its name, with or without `.json`; as it was given where there is none."""
    named = [given, given.with_name(f"{given.name}.json")]
    places = [path for path in named if path.is_file()]
    places += [folder / path for folder in (RECORDS, BOOK_RECORDS) for path in named if (folder / path).is_file()]
    if not places:
        raise ValueError(
            f"{given}: expected a record, or its name in {RECORDS} or {BOOK_RECORDS}, found none: `dpldm records` "
            "lists them"
        )
    return places[0]


def publish_record(given: argparse.Namespace) -> None:
    """`dpldm publish`."""
    from dpldm.records import publishing

    refused = []
    for record in given.records:
        try:
            print(publishing.publish(_find_record(record), given.to, given.own_data))
        except ValueError as error:
            refused.append(str(error))
    if refused:
        some = "" if len(given.records) == 1 else f"{len(refused)} of {len(given.records)} were refused, the first: "
        raise publishing.PublishingError(some + refused[0])


def release_run(given: argparse.Namespace) -> None:
    """`dpldm release`."""
    from dpldm.runs import release

    if given.run.is_dir():  # of the run; its record lies in the folder beside it
        beside = given.run.parent / RECORDS.name / f"{given.run.name}.json"
        run = release.Finished(beside if beside.is_file() else _find_record(Path(given.run.name)), given.run)
    else:
        record = _find_record(given.run)
        places = (record.parent.parent / record.stem, RUNS / record.stem)
        run = release.Finished(record, next((place for place in places if place.is_dir()), places[-1]))
    made = release.release(run, given.folder, given.form, given.with_model, given.i_know)
    print(f"{made}: {', '.join(sorted(path.name for path in made.iterdir()))}; read back, whole")


def audit_method(given: argparse.Namespace) -> None:
    """`dpldm audit`."""
    from dpldm.audit import evidence, method
    from dpldm.data import datasets
    from dpldm.methods import PROFILES
    from dpldm.privacy.checks import PrivacyError
    from dpldm.privacy.mechanisms import PrivacySpec
    from dpldm.recipes import settings_for

    if given.profile not in PROFILES:
        raise ValueError(f"unknown profile {given.profile!r}: expected {' or '.join(PROFILES)}")
    spec = PrivacySpec(given.epsilon, given.delta)
    train = datasets.load(given.dataset, "train")
    limit = PROFILES[given.profile].limit or len(train)
    examples = evidence.Examples(train.images[:limit], train.labels[:limit], train.num_classes)
    settings = settings_for(given.profile, train.known, given.epsilon, given.delta)
    found = method.audit_method(examples, settings, spec, given.seed, given.canaries)
    print(f"{given.dataset}, {given.profile}, seed {given.seed}", *method.in_words(found), sep="\n")
    if found.contradicted:
        raise PrivacyError(f"the audit disproves ε = {found.epsilon_claimed:.4g}: don't release, look for the mistake")


def run_sweep(given: argparse.Namespace) -> None:
    """`dpldm sweep`."""
    from dpldm.runs import sweep
    from dpldm.runs.experiment import Folders

    asked = sweep.Sweep(
        tuple(given.dataset), tuple(given.epsilon), given.seeds, given.profile, given.delta, tuple(given.method)
    )
    folders = Folders(records=given.out, runs=given.runs)
    done = sweep.run(
        asked,
        folders,
        given.workers,
        say=lambda line: print(line, file=sys.stderr, flush=True),
        known=BOOK_RECORDS,
    )
    print(sweep.as_text(done.records))
    if done.failed:
        some = f"{len(done.failed)} of {len(done.records)} runs failed"
        raise sweep.SweepError(f"{some}, first {done.failed[0]}; the same command makes those that are missing")


def run_ablation(given: argparse.Namespace) -> None:
    """`dpldm ablation`."""
    from dpldm.privacy.mechanisms import PrivacySpec

    PrivacySpec(given.epsilon)  # a bad budget is refused before the slow imports
    from dpldm.runs import ablation

    path = given.out / ablation.file_name(given.dataset, given.epsilon, given.profile, given.seed)
    try:
        made = ablation.run(
            given.dataset,
            given.epsilon,
            given.seed,
            given.profile,
            only=given.only,
            folder=given.out,
            force=given.force,
            say=lambda line: print(line, file=sys.stderr, flush=True),
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped; rows that are finished are kept in {path}, run it again to go on") from None
    columns = ["name", *(column for column in ablation.SCORES if column != "fit")]
    print(
        ablation.table([made])[columns].to_string(index=False, float_format="{:.4g}".format, na_rep="–"), path, sep="\n"
    )


def build_book(given: argparse.Namespace) -> None:
    """`dpldm book`."""
    from dpldm.book import build, notebooks

    if given.dataset is not None and given.dataset not in IN_THE_BOOK:
        raise ValueError(f"the book has no pages on {given.dataset}: expected {' or '.join(IN_THE_BOOK)}")
    said = {name: getattr(given, name) for name in notebooks.SHARED}
    build.build(
        {name: value for name, value in said.items() if value is not None},
        given.only,
        not given.no_site,
        say=lambda line: print(line, flush=True),
        pdf=given.pdf,
    )
