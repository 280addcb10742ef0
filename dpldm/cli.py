"""The command `dpldm`: its options, its help, and its last words.

The library is imported inside the commands, so that help and mistyped options are answered at once.
"""

import argparse
import codecs
import difflib
import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from dpldm import __version__
from dpldm.commands import (
    ABLATION,
    BOOK_RECORDS,
    DATASETS,
    DEFAULT_EPSILON,
    METHODS,
    PROFILES,
    RECORDS,
    RUNS,
    YARDSTICKS,
    audit_method,
    build_book,
    draw_samples,
    evaluate_images,
    publish_record,
    release_run,
    run_ablation,
    run_experiment,
    run_sweep,
    show_data,
    show_privacy,
    show_records,
)
from dpldm.data.kinds import KINDS
from dpldm.data.memory import lacks_memory

FAILED, INTERRUPTED = 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 2 after an error, 130 after Ctrl-C.

    What went wrong is one line on standard error; results go to standard output, progress to standard error.
    """
    # Before torch is loaded, whose threads would else spin while they wait for each other: beside another busy process
    # that takes the very cores on which the others still work.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    _ready_streams()
    try:
        given = _parser().parse_args(argv)
        _check_names(given)
        given.command(given)
        sys.stdout.flush()
    except BrokenPipeError:  # `dpldm records | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError, MemoryError, OverflowError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not lacks_memory(error):
            raise
        print(f"dpldm: {_last_words(error)}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt as interrupt:
        print(f"\ndpldm: {str(interrupt) or 'stopped; the same command begins again'}", file=sys.stderr)
        return INTERRUPTED
    return 0


def _ready_streams() -> None:
    """Output is always possible: a stream that was closed before the start is empty, or swallows what is written; one
    that can't hold a letter gets others in its place."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:  # its number must not go to the next file that is opened
            nothing = os.open(os.devnull, os.O_RDWR)
            if nothing != number:
                os.dup2(nothing, number)
                os.close(nothing)
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8"))
    codecs.register_error("in-ascii", _in_ascii)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="in-ascii")


_IN_ASCII = {"ε": "epsilon", "δ": "delta", "σ": "sigma", "×": "x", "±": "+/-", "≤": "<=", "…": "...", "→": "->",
             "·": "*", "–": "-", "²": "^2"}  # fmt: skip


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    """Letters for those that an encoding lacks, as a handler of `codecs`; others as Python writes them in ASCII."""
    assert isinstance(error, UnicodeEncodeError)
    letters = error.object[error.start : error.end]
    return "".join(_IN_ASCII.get(letter, ascii(letter)[1:-1]) for letter in letters), error.end


NAMES = {"dataset": DATASETS, "method": METHODS, "profile": PROFILES, "kind": tuple(KINDS)}


def _check_names(given: argparse.Namespace) -> None:
    """Mistyped names, and numbers that are no seeds, are refused before the slow imports, in the library's words."""
    for option, known in NAMES.items():
        asked = getattr(given, option, None)
        for name in asked if isinstance(asked, list) else [asked]:
            if name is not None and name not in known:
                own = ", or your own images with --data PATH" if option == "dataset" and hasattr(given, "data") else ""
                raise ValueError(f"unknown {option} {name!r}: {_expected(name, known, own)}")
    for name in getattr(given, "names", []):
        if name not in DATASETS:
            raise ValueError(f"unknown dataset {name!r}: {_expected(name, DATASETS)}")
    seed = getattr(given, "seed", None)
    if seed is not None and not 0 <= seed <= LARGEST_SEED:
        raise ValueError(f"expected a seed from 0 to {LARGEST_SEED}, got {_shortly(seed)}: choose another")


def _expected(name: str, known: Sequence[str], own: str = "") -> str:
    near = difflib.get_close_matches(name.lower(), known, 1)
    return f"did you mean {near[0]}?" if near else f"expected {' or '.join(known)}{own}"


def _shortly(number: int) -> str:
    text = str(number)
    return text if len(text) <= 20 else f"a number of {len(text)} digits"


def _last_words(error: BaseException) -> str:
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if lacks_memory(error):
        text = "out of memory: use fewer images, or a machine with more"
    return " ".join(text.split()) or type(error).__name__


LARGEST_SEED = 10**9
ABOUT_METHODS = f"{', '.join(METHODS)} (default dpldm); {' and '.join(YARDSTICKS)} are yardsticks without privacy"


def _epsilon_or_none(text: str) -> tuple[float | None]:
    return (None,) if text == "none" else (float(text),)


_epsilon_or_none.__name__ = "number, or none,"  # what argparse calls it in "invalid … value"


EXAMPLES = {
    "run": (
        "dpldm run --epsilon 3                                 digits (MNIST), some minutes",
        "dpldm run --profile smoke                             seconds: does all of it work here?",
        "dpldm run --dataset fashion_mnist --method dp-merf    another method, same protocol",
        "dpldm run --data my-images/ --epsilon 3 --secure      your own, a folder per class or .npz, for a release",
        "dpldm run --data my-images/ --epsilon 3 --dry-run     what would be done with them and why; writes nothing",
    ),
    "sample": (
        "dpldm sample runs/NAME/synthesizer.safetensors --out images.npz",
        "dpldm sample runs/NAME/synthesizer.safetensors --n 20 --labels 3,5 --out some.npz",
    ),
    "evaluate": (
        "dpldm evaluate images.npz --dataset mnist",
        "dpldm evaluate images.npz --dataset mnist --json s.json",
        "dpldm evaluate --records                       add what older records lack, if their images lie in runs",
        "dpldm evaluate --records NAME --remake         make the images again where they are gone",
        "dpldm evaluate --records NAME --protocol dpimagebench --device cuda",
    ),
    "records": ("dpldm records", "dpldm records --csv > records.csv"),
    "data": ("dpldm data", "dpldm data fetch mnist fashion_mnist", "dpldm data verify mnist"),
    "sweep": (
        "dpldm sweep --epsilon 0.2 1 10 --seeds 3",
        "dpldm sweep --dataset mnist fashion_mnist --epsilon 1 --method dpldm dp-merf",
    ),
    "ablation": (
        "dpldm ablation --dataset mnist --epsilon 1",
        "dpldm ablation --dataset mnist --epsilon 1 --only no-bend",
    ),
    "book": ("dpldm book --epsilon 3", "dpldm book --profile smoke --no-site", "dpldm book --only data privacy"),
    "privacy": ("dpldm privacy NAME                                    a name that `dpldm records` lists",),
    "publish": ("dpldm publish NAME                                    a name that `dpldm records` lists",),
    "release": (
        "dpldm release NAME for-others/                        a secure run, by a name that `dpldm records` lists",
        "dpldm release runs/NAME for-others/ --as png          by its folder; a folder of PNGs for each class",
    ),
    "audit": ("dpldm audit --epsilon 1", "dpldm audit --profile smoke"),
}


INCEPTION = (
    "",
    "FID by Inception features is measured where the variable DPLDM_INCEPTION_WEIGHTS names the file of weights that",
    "torch-fidelity uses, weights-inception-2015-12-05-6726825d.pth; without it that one score is left out.",
)
ABOUT_KINDS = (
    "",
    "what --kind says of your images, which is public, as it stands in the record and in what is released:",
    *(f"  {kind:<7} {about}" for kind, about in KINDS.items()),
)
NOTES = {"run": (*ABOUT_KINDS, *INCEPTION), "evaluate": INCEPTION}


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Examples keep their lines; descriptions are short enough for one."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dpldm",
        description="Differentially private synthetic images by latent diffusion.",
        epilog="\n".join(
            ["examples:", *(f"  {lines[0]}" for lines in EXAMPLES.values()), "", "dpldm COMMAND --help has more."]
        ),
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"dpldm {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, action: Callable[[argparse.Namespace], None], about: str) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name,
            help=about,
            description=about,
            epilog="\n".join(["examples:", *(f"  {line}" for line in EXAMPLES[name]), *NOTES.get(name, ())]),
            formatter_class=_HelpFormatter,
            allow_abbrev=False,
        )
        added.set_defaults(command=action)
        return added

    _add_run(command("run", run_experiment, "Fit a private synthesizer, draw images, score them, write a record."))
    _add_sample(command("sample", draw_samples, "Draw images from a saved synthesizer; costs no privacy."))
    _add_evaluate(command("evaluate", evaluate_images, "Score images against real ones, or add to older records."))
    _add_records(command("records", show_records, "Show all records as a table."))
    _add_data(command("data", show_data, "List, fetch or verify the public data sets."))
    _add_sweep(command("sweep", run_sweep, "Make many runs, several at a time; recorded ones are skipped."))
    _add_ablation(command("ablation", run_ablation, "Score the method with one thing changed at a time."))
    _add_book(command("book", build_book, "Execute the notebooks that need it and build the site of the book."))
    shown = command("privacy", show_privacy, "Say what a record's privacy means, with ε by three accountants.")
    shown.add_argument("record", type=Path, metavar="RECORD", help=f"a record, or its name in {RECORDS}")
    _add_publish(command("publish", publish_record, "Copy records, with their sample grids, among those of the book."))
    _add_release(command("release", release_run, "Write the folder to hand over from a finished run, and check it."))
    _add_audit(
        command("audit", audit_method, "Attack a fit on a public data set: a lower bound on ε, to hold to the claim.")
    )
    return parser


def _add_run(run: argparse.ArgumentParser) -> None:
    source = run.add_mutually_exclusive_group()
    source.add_argument("--dataset", metavar="NAME", help="mnist (default), fashion_mnist, letters, things or things64")
    source.add_argument("--data", type=Path, metavar="PATH", help="your own images: .npz, or a folder per class")
    run.add_argument(
        "--kind", default="none", metavar="WORD", help=f"what your own images show: {', '.join(KINDS)} (default none)"
    )
    run.add_argument(
        "--resize", type=int, metavar="SIDE", help="of your own images: the middle square of each, at 8 to 64 pixels"
    )
    budget = run.add_mutually_exclusive_group()
    budget.add_argument(
        "--epsilon", type=_epsilon_or_none, metavar="E", help=f"total budget ε, or none (default {DEFAULT_EPSILON:g})"
    )
    budget.add_argument("--noise-multiplier", type=float, metavar="S", help="noise of the diffusion instead of ε")
    budget.add_argument("--non-private", action="store_true", help="no noise, no privacy: the same as --epsilon none")
    run.add_argument("--delta", type=float, default=1e-5, metavar="D", help="δ, below 1/N (default 1e-5)")
    run.add_argument("--secure", action="store_true", help="for a release: secret noise, from the operating system")
    run.add_argument("--seed", type=int, default=0, metavar="N", help="of everything random (default 0)")
    run.add_argument("--profile", default="quick", metavar="NAME", help="smoke, quick (default) or paper")
    run.add_argument("--method", default="dpldm", metavar="NAME", help=ABOUT_METHODS)
    run.add_argument(
        "--compressor", metavar="NAME", help="stage 1: pca, refined-pca, autoencoder or public-autoencoder"
    )
    run.add_argument("--batch", type=int, metavar="N", help="expected batch of the training, at most the images")
    _add_sampling(run)
    run.add_argument(
        "--finished", action="store_true", help="finish a rival's images like ours (bend, contrast, …); free"
    )
    run.add_argument("--n-synthetic", type=int, metavar="N", help="images to draw (default: 60,000; smoke: 1,000)")
    run.add_argument("--test-data", type=Path, metavar="PATH", help="real images to score the synthesis of --data with")
    run.add_argument("--classifier-seeds", type=int, metavar="N", help="classifiers of each kind to score with")
    run.add_argument("--out", type=Path, default=RECORDS, metavar="FOLDER", help=f"of the record (default {RECORDS})")
    run.add_argument("--runs", type=Path, default=RUNS, metavar="FOLDER", help=f"of stages and images (default {RUNS})")
    run.add_argument("--dry-run", action="store_true", help="say what would be done with the images and why, and stop")
    run.add_argument("--force", action="store_true", help="begin anew even if the record exists; never with --secure")


def _add_sampling(added: argparse.ArgumentParser) -> None:
    added.add_argument("--sampler", metavar="NAME", help="deterministic, stochastic or churn")
    flag = "--steps" if added.prog.endswith("sample") else "--sampling-steps"
    added.add_argument(flag, dest="sampling_steps", type=int, metavar="N", help="of the sampler")
    added.add_argument("--guidance", type=float, metavar="W", help="classifier-free guidance; 1 is none")
    _add_device(added)


def _add_device(added: argparse.ArgumentParser) -> None:
    added.add_argument("--device", default="auto", metavar="NAME", help="auto (default), cpu, cuda or mps")


def _add_sample(sample: argparse.ArgumentParser) -> None:
    sample.add_argument("model", type=Path, metavar="MODEL", help="a synthesizer.safetensors")
    sample.add_argument("--n", type=int, default=1_000, metavar="N", help="images to draw (default 1,000)")
    sample.add_argument(
        "--labels", default="balanced", metavar="L", help="balanced (default), or classes: 3 or cat,dog"
    )
    sample.add_argument("--out", type=Path, required=True, metavar="FILE", help=".npz; a .png grid goes beside it")
    sample.add_argument("--seed", type=int, metavar="N", help="default: that of the run")
    _add_sampling(sample)


def _add_evaluate(evaluate: argparse.ArgumentParser) -> None:
    evaluate.add_argument("file", type=Path, nargs="?", metavar="FILE", help=".npz with `images` and `labels`")
    evaluate.add_argument(
        "--dataset", metavar="NAME", help="of FILE: mnist, fashion_mnist, letters, things or things64"
    )
    evaluate.add_argument("--profile", metavar="NAME", help="of FILE: smoke, quick (default) or paper")
    evaluate.add_argument("--seed", type=int, metavar="N", help="of FILE: of the classifiers (default 0)")
    evaluate.add_argument("--json", type=Path, metavar="FILE", help="write all scores there")
    evaluate.add_argument(
        "--records", type=Path, nargs="*", metavar="RECORD", help="add to these, or to all, the scores that they lack"
    )
    evaluate.add_argument(
        "--protocol", choices=("book", "dpimagebench"), default="book", help="this book's (default), or the peers'"
    )
    evaluate.add_argument("--reduced", action="store_true", help="of the peers': small, for a processor; it says so")
    evaluate.add_argument("--remake", action="store_true", help="of records: make images again where they are gone")
    evaluate.add_argument("--runs", type=Path, default=RUNS, metavar="FOLDER", help=f"of images (default {RUNS})")
    _add_device(evaluate)


def _add_records(records: argparse.ArgumentParser) -> None:
    records.add_argument("--folder", type=Path, metavar="FOLDER", help=f"default: {RECORDS} and {BOOK_RECORDS}")
    form = records.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="as JSON, every value")
    form.add_argument("--csv", action="store_true", help="as CSV, every value")


def _add_data(data: argparse.ArgumentParser) -> None:
    data.add_argument("action", nargs="?", choices=("list", "fetch", "verify"), default="list")
    data.add_argument("names", nargs="*", metavar="NAME", help="mnist, fashion_mnist, letters, things, things64")


def _add_publish(publish: argparse.ArgumentParser) -> None:
    publish.add_argument("records", nargs="+", type=Path, metavar="RECORD", help=f"a record, or its name in {RECORDS}")
    publish.add_argument("--to", type=Path, default=BOOK_RECORDS, metavar="FOLDER", help=f"default {BOOK_RECORDS}")
    publish.add_argument("--own-data", action="store_true", help="also of your own images: secure runs without scores")


def _add_release(release: argparse.ArgumentParser) -> None:
    release.add_argument("run", type=Path, metavar="RUN", help=f"a record, its name in {RECORDS}, or the run's folder")
    release.add_argument("folder", type=Path, metavar="FOLDER", help="to write; it must not be there, or be empty")
    release.add_argument("--as", dest="form", choices=("npz", "png"), default="npz", help="of the images (default npz)")
    release.add_argument("--with-model", action="store_true", help="the synthesizer as well, to draw more images from")
    release.add_argument("--i-know", action="store_true", help="also a run with seeded noise, which protects nobody")


def _add_audit(audit: argparse.ArgumentParser) -> None:
    audit.add_argument("--dataset", default="mnist", metavar="NAME", help="mnist (default) or fashion_mnist")
    audit.add_argument("--epsilon", type=float, default=DEFAULT_EPSILON, metavar="E", help="total ε (default 10)")
    audit.add_argument("--delta", type=float, default=1e-5, metavar="D", help="δ, below 1/N (default 1e-5)")
    audit.add_argument("--seed", type=int, default=0, metavar="N", help="of the fit and the coins (default 0)")
    audit.add_argument("--profile", default="quick", metavar="NAME", help="smoke, quick (default) or paper")
    audit.add_argument("--canaries", type=int, default=400, metavar="N", help="examples to hide (default 400)")


def _add_sweep(sweep: argparse.ArgumentParser) -> None:
    sweep.add_argument(
        "--dataset", nargs="+", default=["mnist"], metavar="NAME", help="mnist (default), fashion_mnist or both"
    )
    sweep.add_argument("--epsilon", nargs="+", type=float, required=True, metavar="E", help="total budgets ε")
    sweep.add_argument("--seeds", type=int, default=1, metavar="N", help="runs of each: seeds 0 to N-1 (default 1)")
    sweep.add_argument("--profile", default="quick", metavar="NAME", help="smoke, quick (default) or paper")
    sweep.add_argument("--method", nargs="+", default=["dpldm"], metavar="NAME", help=ABOUT_METHODS)
    sweep.add_argument("--delta", type=float, default=1e-5, metavar="D", help="δ, below 1/N (default 1e-5)")
    sweep.add_argument("--workers", type=int, metavar="N", help="runs at a time (default: one for each core)")
    sweep.add_argument("--out", type=Path, default=RECORDS, metavar="FOLDER", help=f"of records (default {RECORDS})")
    sweep.add_argument("--runs", type=Path, default=RUNS, metavar="FOLDER", help=f"of stages (default {RUNS})")


def _add_ablation(ablation: argparse.ArgumentParser) -> None:
    ablation.add_argument("--dataset", required=True, metavar="NAME", help="mnist or fashion_mnist")
    ablation.add_argument("--epsilon", type=float, required=True, metavar="E", help="total budget ε")
    ablation.add_argument("--seed", type=int, default=0, metavar="N", help="of everything random (default 0)")
    ablation.add_argument("--profile", default="quick", metavar="NAME", help="smoke, quick (default) or paper")
    ablation.add_argument("--only", nargs="+", default=[], metavar="NAME", help="only these rows (default: all)")
    ablation.add_argument("--out", type=Path, default=ABLATION, metavar="FOLDER", help=f"of files (default {ABLATION})")
    ablation.add_argument("--force", action="store_true", help="measure rows that are there already, too")


def _add_book(book: argparse.ArgumentParser) -> None:
    book.add_argument("--dataset", metavar="NAME", help="mnist or fashion_mnist (default: the notebooks')")
    book.add_argument("--epsilon", type=float, metavar="E", help="total budget ε (default: the notebooks')")
    book.add_argument("--seed", type=int, metavar="N", help="of everything random (default: the notebooks')")
    book.add_argument("--profile", metavar="NAME", help="smoke, quick or paper (default: the notebooks')")
    book.add_argument("--only", nargs="+", default=[], metavar="NAME", help="only these notebooks, and no site")
    pages = book.add_mutually_exclusive_group()
    pages.add_argument("--no-site", action="store_true", help="execute the notebooks, build no site")
    pages.add_argument("--pdf", action="store_true", help="print the whole book to _build/book.pdf too; needs Chromium")
