"""How faithful and how useful synthetic images are, measured with real images that privacy does not cover.

Everything here reads real images directly (the real test set, and for some scores the real training set), so the scores
are for research: they are no part of the private release and are charged to no budget.

Work is split into parts so that a caller can save each one and skip what it already has:

    for name, scores in evaluation_parts(images, labels, real_train, real_test, done=saved): save(name, scores)
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from dpldm.data.images import pixel_fault
from dpldm.evaluation.classifiers import (
    FEATURE_DIMENSIONS,
    VALIDATION_SHARE,
    Labelled,
    Stopped,
    TrainedClassifier,
    batch_count,
    guesses,
    share,
    share_by_class,
    train_classifier,
    uses_bfloat16,
)
from dpldm.evaluation.fidelity import fidelity, memorisation
from dpldm.evaluation.inception import INCEPTION_DIMENSIONS, find_inception_weights, inception_part
from dpldm.evaluation.learners import learner_rights
from dpldm.evaluation.settings import CLASSIFIERS, EVALUATION, JUDGES, LEARNERS, EvaluationSettings, LabelledImages
from dpldm.evaluation.two_sample import VIEWS, two_sample

TWO_SAMPLE = {f"two_sample_{judge}": judge for judge in JUDGES}
PARTS = (  # longest first, to pack the cores well
    *("cnn", "forest", "boosting", *TWO_SAMPLE, "fidelity", "svm", "knn", "memorisation", "mlp", "logreg"),
    "fid_inception",
)

Progress = Callable[[float, str], None]  # (share of the work done in [0, 1], name of the part)


# --- the whole evaluation ---------------------------------------------------------------------------------------------


def evaluate(
    synthetic_images: Tensor,
    synthetic_labels: Tensor,
    real_train: LabelledImages,
    real_test: LabelledImages,
    settings: EvaluationSettings = EVALUATION["quick"],
    device: torch.device | str = "cpu",
    seed: int = 0,
    progress: Progress | None = None,
    inception_weights: Path | None = None,
) -> dict[str, Any]:
    """All scores of a synthetic set as one dictionary of plain numbers; see `evaluation_parts` for the arguments."""
    parts = evaluation_parts(
        synthetic_images,
        synthetic_labels,
        real_train,
        real_test,
        settings,
        device,
        seed,
        progress=progress,
        inception_weights=inception_weights,
    )
    return merge(scores for _, scores in parts)


def merge(partials: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """One dictionary of what `evaluation_parts` yielded; nested dictionaries are united.

    >>> merge([{"recall": 0.5}, {"accuracy": {"mlp": [0.9]}}, {"accuracy": {"cnn": [0.95]}}])
    {'recall': 0.5, 'accuracy': {'mlp': [0.9], 'cnn': [0.95]}}
    """
    merged: dict[str, Any] = {}
    for scores in partials:
        for key, value in scores.items():
            merged[key] = {**merged.get(key, {}), **value} if isinstance(value, dict) else value
    return merged


def missing_parts(metrics: Mapping[str, Any], settings: EvaluationSettings, weights: Path | None) -> list[str]:
    """Those of PARTS that have scores which older versions did not take, and that these `metrics` lack.

    weights: of `find_inception_weights`; without them the Inception FID is not missing but not to be had.
    """
    learned, told = metrics.get("learners", {}), metrics.get("two_sample", {})
    missing = {part for part in LEARNERS if not learned.get(part)}
    missing |= {part for part, judge in TWO_SAMPLE.items() if not {f"{judge}{view}" for view in VIEWS} <= set(told)}
    if "share_copied" not in metrics.get("memorisation", {}):
        missing.add("memorisation")
    enough = min(metrics["n_synthetic"], metrics.get("n_real_test", 0)) > INCEPTION_DIMENSIONS
    if metrics["fid_inception"] is None and weights and enough and settings.inception != "never":
        missing.add("fid_inception")
    return [part for part in PARTS if part in missing]


def evaluation_parts(
    synthetic_images: Tensor,
    synthetic_labels: Tensor,
    real_train: LabelledImages,
    real_test: LabelledImages,
    settings: EvaluationSettings = EVALUATION["quick"],
    device: torch.device | str = "cpu",
    seed: int = 0,
    done: Collection[str] = (),
    progress: Progress | None = None,
    inception_weights: Path | None = None,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (name of the part, its metrics) for each of PARTS that is not in `done`, in the order they finish.

    synthetic_images: float32 (N, C, H, W) in [0, 1] with N > 128. synthetic_labels: int64 (N,), every class present.
    real_train, real_test: real images of the same shape and classes. Nothing is chosen by looking at real_test.
    seed: of classifiers and of subsets. Equal arguments give equal metrics on one machine.
    progress: called as progress(share_done, part), from any thread; None draws a bar if stderr is a terminal.
    inception_weights: file for the Inception FID, see `find_inception_weights`.

    The arguments are checked before the first part, by this call itself: ValueError, one line.
    """
    check_synthetic(synthetic_images, synthetic_labels, real_train, real_test)
    todo = [part for part in PARTS if part not in done]
    weights = None
    if "fid_inception" in todo and settings.inception != "never":
        weights = find_inception_weights(inception_weights)
    synthetic = Labelled(synthetic_images, synthetic_labels)
    return _parts(synthetic, real_train, real_test, settings, torch.device(device), seed, todo, progress, weights)


def _parts(
    synthetic: Labelled,
    real_train: LabelledImages,
    real_test: LabelledImages,
    settings: EvaluationSettings,
    device: torch.device,
    seed: int,
    todo: list[str],
    progress: Progress | None,
    weights: Path | None,
) -> Iterator[tuple[str, dict[str, Any]]]:
    with _Reporter(max(1, _work(todo, settings)), progress) as reporter:
        jobs: dict[str, list[Callable[[], Any]]] = {}
        for part in todo:
            if part in CLASSIFIERS:
                seeds = range(seed, seed + settings.classifier_seeds)
                jobs[part] = [
                    partial(_train_and_score, part, synthetic, real_test, settings, device, one, reporter)
                    for one in seeds
                ]
            elif part == "fidelity":
                jobs[part] = [partial(fidelity, synthetic, real_train, real_test, settings, device, seed)]
            elif part == "memorisation":
                images = (synthetic.images, real_train.images, real_test.images)
                jobs[part] = [partial(memorisation, *images, settings.n_memorisation_images, seed, device)]
            elif part in LEARNERS:
                jobs[part] = [partial(learner_rights, part, synthetic, real_test, seed)]
            elif part in TWO_SAMPLE:
                sides = (synthetic.images, real_test.images)
                judge = TWO_SAMPLE[part]
                jobs[part] = [
                    partial(two_sample, judge, view, *sides, settings, device, seed, reporter.check) for view in VIEWS
                ]
        for part, results in _in_parallel(jobs, device, reporter):
            if part in CLASSIFIERS:
                yield part, _usefulness_metrics(part, results, real_test, settings, device)
            else:
                reporter.add(_WORK[part], part)
                yield part, _other_metrics(part, results, real_test)
        if "fid_inception" in todo:
            yield "fid_inception", inception_part(synthetic.images, real_test.images, settings, weights, device, seed)


def _in_parallel(
    jobs: dict[str, list[Callable[[], Any]]], device: torch.device, reporter: _Reporter
) -> Iterator[tuple[str, list[Any]]]:
    """Yields (part, the results of its jobs) as parts finish.

    On a CPU each job has one thread, so that scores do not depend on the number of cores, and nothing waits.
    """
    if not jobs:
        return
    threads = torch.get_num_threads()
    workers = threads if device.type == "cpu" else 1
    executor = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
    try:
        futures = {part: [executor.submit(job) for job in group] for part, group in jobs.items()}
        waiting = list(futures)
        for finished in as_completed([future for group in futures.values() for future in group]):
            finished.result()  # raises what the job raised
            for part in [part for part in waiting if all(future.done() for future in futures[part])]:
                waiting.remove(part)
                yield part, [future.result() for future in futures[part]]
    finally:
        reporter.stop.set()
        executor.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(threads)


def check_synthetic(images: Tensor, labels: Tensor, real_train: LabelledImages, real_test: LabelledImages) -> None:
    """Raises a ValueError of one line unless the synthetic set can be scored against the real ones."""
    shape = tuple(real_train.images.shape[1:])
    if tuple(real_test.images.shape[1:]) != shape or real_test.num_classes != real_train.num_classes:
        arrived = f"{_shape_in_words(real_test.images.shape[1:])} and {real_test.num_classes}"
        expected = f"{_shape_in_words(shape)} and {real_train.num_classes} classes"
        raise ValueError(f"real test images differ from the training images: expected {expected}, got {arrived}")
    if images.dtype != torch.float32 or tuple(images.shape[1:]) != shape:
        expected = f"expected synthetic images like the real ones, float32 {_shape_in_words(shape)}"
        arrived = f"{str(images.dtype).removeprefix('torch.')} {_shape_in_words(images.shape[1:])}"
        raise ValueError(f"{expected}, got {arrived}: resize or convert them, or score them against other images")
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        expected = f"int64 ({len(images)},)"
        raise ValueError(f"synthetic labels must be {expected}, got {labels.dtype} {tuple(labels.shape)}")
    if len(images) <= FEATURE_DIMENSIONS:
        raise ValueError(
            f"{len(images)} synthetic images are too few: FID needs more than its {FEATURE_DIMENSIONS} feature "
            "dimensions; draw at least 1,000, and 60,000 for a figure to compare"
        )
    if fault := pixel_fault(images):
        raise ValueError(f"synthetic images: {fault}")
    present = set(labels.unique().tolist())
    wrong, missing = present - set(range(real_train.num_classes)), set(range(real_train.num_classes)) - present
    if wrong:
        raise ValueError(f"synthetic labels must be 0..{real_train.num_classes - 1}, got {sorted(wrong)[0]}")
    if missing:
        raise ValueError(f"no synthetic image has label {sorted(missing)[0]}; draw images of every class")


def _shape_in_words(shape: Sequence[int]) -> str:
    return f"(N, {', '.join(map(str, shape))})"


def _train_and_score(
    kind: str,
    synthetic: Labelled,
    real_test: LabelledImages,
    settings: EvaluationSettings,
    device: torch.device,
    seed: int,
    reporter: _Reporter,
) -> tuple[Tensor, TrainedClassifier]:
    """(which of the real test images it gets right, the classifier); the last line is the only look at the test set."""
    part = _WORK[kind] / batch_count(round((1 - VALIDATION_SHARE) * len(synthetic.labels)), settings)

    def on_batch() -> None:
        reporter.add(part, kind)
        reporter.check()

    count = real_test.num_classes
    trained = train_classifier(kind, synthetic.images, synthetic.labels, count, settings, device, seed, on_batch)
    everyone = torch.arange(len(real_test.labels))
    return guesses(trained.network, real_test.images, everyone) == real_test.labels, trained


def _usefulness_metrics(
    kind: str,
    results: list[tuple[Tensor, TrainedClassifier]],
    real_test: LabelledImages,
    settings: EvaluationSettings,
    device: torch.device,
) -> dict[str, Any]:
    chosen = [
        {"epoch": trained.epoch, "synthetic_validation_accuracy": trained.validation_accuracy} for _, trained in results
    ]
    arithmetic = "bfloat16" if kind == "cnn" and settings.bfloat16 and uses_bfloat16(device) else "float32"
    learned = _learned(kind, [right for right, _ in results], real_test)
    return {
        "accuracy": learned["learners"],
        **learned,
        "selection": {kind: chosen},
        "arithmetic": {kind: arithmetic},
    }


def _learned(kind: str, rights: list[Tensor], real_test: LabelledImages) -> dict[str, Any]:
    """Accuracy of each seed, and of every class over all seeds, from which test images a seed gets right."""
    classes = share_by_class(torch.cat(rights), real_test.labels.repeat(len(rights)), real_test.num_classes)
    return {"learners": {kind: [share(right) for right in rights]}, "by_class": {kind: classes}}


def _other_metrics(part: str, results: list[Any], real_test: LabelledImages) -> dict[str, Any]:
    if part in LEARNERS:
        return _learned(part, results, real_test)
    if part in TWO_SAMPLE:
        return {"two_sample": {f"{TWO_SAMPLE[part]}{view}": one for view, one in zip(VIEWS, results, strict=True)}}
    return results[0] if part == "fidelity" else {part: results[0]}


# --- progress ---------------------------------------------------------------------------------------------------------

_WORK = {"fidelity": 8, "memorisation": 4, "cnn": 12, "mlp": 1, "logreg": 1}  # rough seconds; classifiers: per epoch
_WORK |= {"forest": 25, "boosting": 12, "svm": 5, "knn": 6, "two_sample_forest": 16, "two_sample_cnn": 16}


def _work(todo: list[str], settings: EvaluationSettings) -> int:
    total = sum(work for part, work in _WORK.items() if part in todo and part not in CLASSIFIERS)
    return total + sum(
        settings.classifier_seeds * settings.epochs(kind) * _WORK[kind] for kind in CLASSIFIERS if kind in todo
    )


class _Reporter:
    """Passes the share of work done to the caller's function, or to a bar on a terminal; `stop` tells jobs to end."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self.total, self.progress, self.done = total, progress, 0.0
        self.lock, self.stop = threading.Lock(), threading.Event()
        hidden = progress is not None or not sys.stderr.isatty()
        layout = "{desc}: {percentage:3.0f}% |{bar}| {remaining} left"
        self.bar = tqdm(total=1.0, desc="evaluation", disable=hidden, bar_format=layout)

    def add(self, work: float, part: str) -> None:
        with self.lock:
            before, self.done = self.done, min(self.total, self.done + work)
            self.bar.update((self.done - before) / self.total)
            if self.progress:
                self.progress(self.done / self.total, part)

    def check(self) -> None:
        """Raises Stopped where the caller went away."""
        if self.stop.is_set():
            raise Stopped

    def __enter__(self) -> _Reporter:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()
