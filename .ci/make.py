"""Set up, test and build dpldm: `make TARGET` or `python3 .ci/make.py TARGET`. Standard library only.

The file must parse on Python 3.7 and later, so that an old Python gets a sentence instead of a syntax error.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib.util
import math
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
COURSEWORK_LOCK = ROOT / "requirements-coursework.lock"
ENVIRONMENT = ROOT / "environment.yml"
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "dpldm-stamp"  # what .venv was made from; UNFINISHED while packages are being written
UNFINISHED = "unfinished"

SUPPORTED = ((3, 11), (3, 12), (3, 13))
CONDA_PYTHON = "3.12"
DISK_GB = {"Linux": 7, "Darwin": 2}  # the Linux build of PyTorch brings CUDA
DATASETS = ("mnist", "fashion_mnist")
SETTINGS = ("dataset", "epsilon", "seed", "profile")
COURSEWORK = ("coursework", "grade")
COURSE = ("students", "secret", "private", "to")

HELP = """\
make test         checks and tests, without the slow ones (minutes; no data needed)
make test-all     the same and the slow tests (fetches the data first)
make book         notebooks and site; choose with EPSILON=3 DATASET=mnist SEED=1 PROFILE=quick
make pdf          the same, and the whole book as _build/book.pdf; needs Chromium
make coursework   hand out the assignments; with STUDENTS=names.txt SECRET=secret.txt to each student's own numbers
make grade        grade SUBMISSIONS=folder, which has a folder for each student; also SECRET= PRIVATE= TO=
make data         fetch and verify the data sets
make setup        only the Python environment in .venv (the other targets do this themselves)
make lock         pyproject.toml -> requirements.lock and environment.yml; UPGRADE=1 takes newer versions
make environment  requirements.lock -> environment.yml
make clean        remove build output and caches; keeps data/, runs/ and .venv/"""


NEXT = """\
.venv is ready. What next:
  .venv/bin/dpldm run --profile smoke    seconds: does all of it work here?
  .venv/bin/dpldm run --epsilon 3        private digits, some minutes
  make book                              all pages: _build/html/index.html
  source .venv/bin/activate              then plain `dpldm` works; `dpldm --help` has more"""


class Stop(Exception):
    """One line for the user, and the exit code."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


# ---- running commands -------------------------------------------------------------------------------------------


def call(command, output=None, environ=None) -> int:
    """Run a command in the repository root and return its exit code, 128 + n after signal n."""
    process = subprocess.Popen(
        [str(part) for part in command],
        cwd=str(ROOT),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT if output else None,
        env=environ,
    )
    try:
        code = process.wait()
    except KeyboardInterrupt:
        try:
            process.wait(timeout=20)  # the terminal signalled the child too: let it put its files in order
        except (KeyboardInterrupt, subprocess.TimeoutExpired):
            process.kill()
            process.wait()
        raise
    return code if code >= 0 else 128 - code


def step(name: str, command, environ=None, show_failure: bool = True) -> int:
    """Run a command quietly: one line with its name, result and seconds, and the end of its output if it failed."""
    print(f"{name:<24}", end="", flush=True)
    start = time.monotonic()
    with tempfile.TemporaryFile() as output:
        code = call(command, output, environ)
        print("{:<12}{:7.1f} s".format("failed" if code else "ok", time.monotonic() - start), flush=True)
        if code and show_failure:
            output.seek(0)
            lines = output.read().decode("utf-8", "replace").splitlines()
            print("\n".join("    " + line for line in lines[-40:]), flush=True)
    return code


def finish(code: int) -> None:
    """Leave with a command's exit code if it failed; it has said why."""
    if code:
        raise SystemExit(code)


def quietly(command) -> bool:
    """Whether a short command succeeds; its output is dropped."""
    nothing = subprocess.DEVNULL
    return subprocess.run(command, stdin=nothing, stdout=nothing, stderr=nothing).returncode == 0


def must(name: str, command, environ=None) -> None:
    code = step(name, command, environ)
    if code:
        raise Stop(f"{name} failed with exit code {code}; its last lines are above", code)


# ---- which Python -----------------------------------------------------------------------------------------------


def dotted(version) -> str:
    return "{}.{}".format(*version[:2])


def how_to_install(version, system: str, has_apt: bool) -> str:
    """The command that installs a Python that fits, for this kind of machine."""
    with_uv = "uv python install 3.12 (uv: https://docs.astral.sh/uv)"
    if system == "Darwin":
        return "brew install python@3.12, or " + with_uv
    if has_apt and version < SUPPORTED[0]:
        return "sudo apt install python3.11 python3.11-venv, or where apt has none: " + with_uv
    return with_uv


def version_of(python: str):
    """(major, minor) of an interpreter, or None if it does not start (as the shims of version managers may not)."""
    command = [python, "-c", "import sys; print(*sys.version_info[:2])"]
    try:
        found = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        return tuple(int(part) for part in found.stdout.split()) if found.returncode == 0 else None
    except (OSError, ValueError):
        return None


def makes_environments(python: str) -> bool:
    return quietly([python, "-c", "import venv, ensurepip"])


def choose_python(executable: str, version, path: str) -> str:
    """This interpreter if it fits, else the first on the path that does; Stop names what is missing."""
    search = os.pathsep.join([path, str(Path.home() / ".local" / "bin")])
    named = [(shutil.which("python" + dotted(wanted), path=search), wanted) for wanted in SUPPORTED]
    fitting = [(executable, version[:2])] if version[:2] in SUPPORTED else []
    fitting += [(python, wanted) for python, wanted in named if python and version_of(python) == wanted]
    if not fitting:
        way = how_to_install(version[:2], platform.system(), bool(shutil.which("apt-get")))
        raise Stop(f"dpldm needs Python 3.11 to 3.13, this is {dotted(version)}; install it with: {way}")
    for python, _ in fitting:
        if makes_environments(python):
            return python
    raise Stop(
        f"Python {dotted(fitting[0][1])} lacks its venv module; install it with: "
        f"sudo apt install python{dotted(fitting[0][1])}-venv"
    )


def check_machine(system: str, machine: str) -> None:
    if system == "Windows":
        raise Stop("dpldm runs on Linux and macOS; on Windows use WSL: wsl --install, then the same command there")
    if (system, machine) == ("Darwin", "x86_64"):
        raise Stop("PyTorch no longer has builds for Intel Macs (or Python runs under Rosetta); use an arm64 Python")


# ---- the environment --------------------------------------------------------------------------------------------


def fingerprint() -> str:
    """What the environment was made from: the lock, the metadata, the Python and the place."""
    configuration = VENV / "pyvenv.cfg"
    python = re.findall(r"^version.*", configuration.read_text(), re.MULTILINE) if configuration.exists() else []
    parts = [LOCK.read_bytes(), (ROOT / "pyproject.toml").read_bytes(), repr(python).encode(), str(ROOT).encode()]
    return "\n".join([hashlib.sha256(b"\0".join(parts)).hexdigest(), str(ROOT)])


def is_current() -> bool:
    return STAMP.exists() and PYTHON.exists() and STAMP.read_text() == fingerprint()


def is_unfinished() -> bool:
    return STAMP.exists() and STAMP.read_text().startswith(UNFINISHED)


def has_usable_environment() -> bool:
    """Whether .venv holds a fitting Python with pip, made for this folder: then packages are added to it."""
    if not PYTHON.exists() or version_of(str(PYTHON)) not in SUPPORTED:
        return False
    if STAMP.exists() and STAMP.read_text().splitlines()[1:] != [str(ROOT)]:
        return False  # the folder was moved: the scripts in .venv/bin still point at the old place
    return any(quietly([str(PYTHON), "-m", *words]) for words in (["pip", "--version"], ["ensurepip"]))


def locked_block(name: str) -> str:
    """The lines of the lock that pin one package, with its hashes."""
    found = re.search(rf"^{re.escape(name)}==.*(?:\n[ ]+--hash=.*)+", LOCK.read_text(), re.MULTILINE)
    if not found:
        raise Stop(f"requirements.lock does not pin {name}; remake it with: make lock")
    return found.group(0) + "\n"


def uv_settings(pip_config: str, environ) -> dict:
    """What `pip config list` says about indexes and certificates, as the variables that uv reads.

    A variable that is set already wins. Looking into every index is safe because every file's hash is checked.
    """
    names = {"index-url": "UV_DEFAULT_INDEX", "extra-index-url": "UV_INDEX", "find-links": "UV_FIND_LINKS"}
    settings = {"UV_INDEX_STRATEGY": "unsafe-best-match"}
    for line in pip_config.splitlines():
        key, _, value = line.partition("=")
        option = key.rpartition(".")[2]
        try:
            words = str(ast.literal_eval(value)).split()
        except (SyntaxError, ValueError):
            continue
        if option in names:
            settings[names[option]] = ("," if option == "find-links" else " ").join(words)
        elif option == "cert":
            settings["SSL_CERT_FILE"] = " ".join(words)
    return {name: value for name, value in settings.items() if name not in environ}


def uv_environ() -> dict:
    listing = subprocess.run([str(PYTHON), "-m", "pip", "config", "list"], stdout=subprocess.PIPE)
    return {**os.environ, **uv_settings(listing.stdout.decode("utf-8", "replace"), os.environ)}


def install_packages() -> None:
    """Install the lock with uv, or with pip where uv cannot be had or does not get through."""
    pip = [PYTHON, "-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check"]
    wanted = VENV / "uv.txt"
    wanted.write_text(locked_block("uv"))
    uv = VENV / "bin" / "uv"
    locked = ["--require-hashes", "-r", LOCK]
    uv_install = [uv, "pip", "install", "--python", PYTHON, *locked]
    pip_install = [*pip, *locked]
    if is_unfinished():  # a package may lack files although its metadata are there
        uv_install.append("--reinstall")
        pip_install.append("--force-reinstall")
    STAMP.write_text("\n".join([UNFINISHED, str(ROOT)]))
    size = DISK_GB.get(platform.system(), 7) - 1
    if step("uv", [*pip, "--require-hashes", "--no-deps", "-r", wanted]) or step(
        f"packages (about {size} GB)", uv_install, uv_environ()
    ):
        must("packages, by pip", pip_install)
    must("dpldm itself", [*pip, "--no-deps", "--no-build-isolation", "--editable", "."])
    STAMP.write_text(fingerprint())


def set_up() -> None:
    """Make .venv what the lock says; does nothing where it is already."""
    if is_current():
        return
    check_machine(platform.system(), platform.machine())
    if not has_usable_environment():
        python = choose_python(sys.executable, sys.version_info, os.environ.get("PATH", ""))
        free, needed = shutil.disk_usage(str(ROOT)).free / 1e9, DISK_GB.get(platform.system(), 7)
        if free < needed:
            raise Stop(f"the packages need about {needed} GB, {ROOT} has {free:.1f} GB free")
        must("environment in .venv", [python, "-m", "venv", "--clear", VENV])
    install_packages()


# ---- the lock and environment.yml -------------------------------------------------------------------------------


def lock(upgrade: bool) -> None:
    set_up()
    options = "--universal --generate-hashes --python-version 3.11 --prerelease disallow --extra dev"
    quiet = "--quiet --no-header --no-emit-index-url --no-emit-find-links"  # the lock names no registry
    command = [VENV / "bin" / "uv", "pip", "compile", *options.split(), *quiet.split(), "pyproject.toml", "-o", LOCK]
    newer = ["--upgrade"] if upgrade else []
    must("requirements.lock", command + newer, uv_environ())
    set_up()
    lock_coursework(newer)
    must("environment.yml", [PYTHON, __file__, "environment"])


def lock_coursework(newer) -> None:
    """The extra's own lock: what it needs, with the versions of the main lock where both have a package."""
    import tomllib

    wanted = VENV / "coursework.txt"
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["coursework"]
    wanted.write_text("".join(line + "\n" for line in extra))
    options = "--universal --generate-hashes --python-version 3.11 --prerelease disallow --no-annotate"
    quiet = "--quiet --no-header --no-emit-index-url --no-emit-find-links"
    command = [VENV / "bin" / "uv", "pip", "compile", *options.split(), *quiet.split(), "-c", LOCK, wanted]
    must(COURSEWORK_LOCK.name, [*command, "-o", COURSEWORK_LOCK, *newer], uv_environ())


def direct_versions(pyproject: str, locked: str, python: str = CONDA_PYTHON) -> list:
    """`name==version` of every direct dependency, as locked for this Python."""
    import tomllib
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    project = tomllib.loads(pyproject)["project"]
    direct = project["dependencies"] + project["optional-dependencies"]["dev"]
    names = {canonicalize_name(Requirement(line).name) for line in direct}
    marker_values = {"python_version": python, "python_full_version": python + ".0"}
    pins = {}
    for line in re.findall(r"^[\w.-]+==[^\\\n]+", locked, re.MULTILINE):
        pin = Requirement(line)
        if pin.marker is None or pin.marker.evaluate(marker_values):
            pins[canonicalize_name(pin.name)] = f"{pin.name}{pin.specifier}"
    missing = sorted(names - set(pins))
    if missing:
        raise Stop("requirements.lock lacks {}; remake it with: make lock".format(", ".join(missing)))
    return sorted(pins[name] for name in names)


def environment_text() -> str:
    versions = direct_versions((ROOT / "pyproject.toml").read_text(), LOCK.read_text())
    return "".join(
        line + "\n"
        for line in [
            "# For conda: `conda env create -f environment.yml && conda activate dpldm`, run in this folder.",
            "# Made from pyproject.toml and requirements.lock by `make environment`; edit those instead.",
            "name: dpldm",
            "channels:",
            "  - conda-forge",
            "dependencies:",
            "  - python=" + CONDA_PYTHON,
            "  - pip",
            "  - pip:",
            *("      - " + version for version in versions),
            "      - --editable .",
        ]
    )


def environment(check: bool) -> None:
    """Write environment.yml, or with check only compare it."""
    if sys.version_info < SUPPORTED[0] or not importlib.util.find_spec("packaging"):
        set_up()
        finish(call([PYTHON, __file__, "environment"] + (["--check"] if check else [])))
        return
    wanted = environment_text()
    found = ENVIRONMENT.read_text() if ENVIRONMENT.exists() else ""
    if check and found != wanted:
        raise Stop("environment.yml does not match pyproject.toml and requirements.lock; remake it: make environment")
    if not check and found != wanted:
        ENVIRONMENT.write_text(wanted)


# ---- targets ----------------------------------------------------------------------------------------------------


def test(slow: bool) -> None:
    set_up()
    if slow:
        data(DATASETS)
    module = [PYTHON, "-m"]
    failed = [
        name
        for name, command in (
            ("ruff check", [*module, "ruff", "check", "."]),
            ("ruff format", [*module, "ruff", "format", "--check", "."]),
            ("mypy", [*module, "mypy"]),
            ("environment.yml", [PYTHON, __file__, "environment", "--check"]),
        )
        if step(name, command)
    ]
    if failed:
        raise Stop("failed: {}; the tests were not run".format(", ".join(failed)))
    finish(call([*module, "pytest"] + ([] if slow else ["-m", "not slow"])))  # last: its summary ends the log


def setup() -> None:
    set_up()
    print(NEXT)


def data(names) -> None:
    set_up()
    for name in names:
        stream(["data", "fetch", name])


def stream(arguments) -> None:
    """Run a dpldm command in the open, with its progress."""
    print("dpldm " + " ".join(arguments), flush=True)
    start = time.monotonic()
    finish(call([VENV / "bin" / "dpldm", *arguments]))
    print("{:<36}{:7.1f} s".format("dpldm " + arguments[0], time.monotonic() - start), flush=True)


def check_settings(settings) -> None:
    """Refuse a bad number before the environment is made; dpldm itself checks the rest."""
    epsilon, seed = settings["epsilon"], settings["seed"]
    try:
        right = epsilon is None or 0 < float(epsilon) < math.inf
    except ValueError:
        right = False
    if not right:
        raise Stop(f"epsilon is a number above 0, not {epsilon!r}: make book EPSILON=3", 2)
    if seed is not None and not re.match(r"[0-9]+\Z", seed):
        raise Stop(f"seed is a whole number from 0, not {seed!r}: make book SEED=1", 2)


def book(settings, pdf: bool = False) -> None:
    check_settings(settings)
    set_up()
    options = [word for name in SETTINGS if settings[name] for word in ("--" + name, settings[name])]
    data(DATASETS)
    stream(["book", *options] + (["--pdf"] if pdf else []))


def coursework(course) -> None:
    """Hand out the assignments. JupyterLab and nbgrader come with it; grading needs neither."""
    set_up()
    stamp = VENV / "coursework-stamp"
    made_from = STAMP.read_text() + hashlib.sha256(COURSEWORK_LOCK.read_bytes()).hexdigest()
    if not stamp.exists() or stamp.read_text() != made_from:
        install = [VENV / "bin" / "uv", "pip", "install", "--python", PYTHON, "--require-hashes", "-r", COURSEWORK_LOCK]
        must("JupyterLab and nbgrader", install, uv_environ())
        stamp.write_text(made_from)
    finish(call([PYTHON, "-m", "dpldm.coursework", "release", *course]))


def grade(submissions, course) -> None:
    if not submissions:
        raise Stop("expected a folder with a folder for each student: make grade SUBMISSIONS=folder", 2)
    set_up()
    finish(call([PYTHON, "-m", "dpldm.coursework", "grade", submissions, *course]))


def clean() -> None:
    output, caches = ("_build", "executed", "build"), (".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis")
    found = [name for name in output + caches if (ROOT / name).is_dir()]
    for name in found:
        shutil.rmtree(str(ROOT / name))
    print("removed {}; data/, runs/ and .venv/ are kept".format(", ".join(found) or "nothing"))


def arguments(words=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make.py", description="Set up, test and build dpldm.")
    targets = ("help", "setup", "test", "test-all", "data", "book", "pdf", *COURSEWORK, "lock", "environment", "clean")
    parser.add_argument("target", choices=targets, nargs="?", default="help")
    parser.add_argument("--check", action="store_true", help="environment: compare, write nothing")
    parser.add_argument("--upgrade", action="store_true", default=bool(os.environ.get("UPGRADE")), help="lock")
    for name in SETTINGS:  # an empty variable counts as not given, as CI leaves empty what nobody filled in
        parser.add_argument("--" + name, default=os.environ.get(name.upper()) or None, help="book")
    for name in ("submissions", *COURSE):
        parser.add_argument("--" + name, default=os.environ.get(name.upper()) or None, help="coursework, grade")
    return parser.parse_args(words)


def main() -> int:
    given = arguments()
    settings = {name: getattr(given, name) for name in SETTINGS}
    course = [word for name in COURSE if getattr(given, name) for word in ("--" + name, getattr(given, name))]
    actions = {
        "help": lambda: print(HELP),
        "setup": setup,
        "test": lambda: test(slow=False),
        "test-all": lambda: test(slow=True),
        "data": lambda: data(DATASETS),
        "book": lambda: book(settings),
        "pdf": lambda: book(settings, pdf=True),
        "coursework": lambda: coursework(course),
        "grade": lambda: grade(given.submissions, course),
        "lock": lambda: lock(given.upgrade),
        "environment": lambda: environment(given.check),
        "clean": clean,
    }
    try:
        actions[given.target]()
    except KeyboardInterrupt:
        print("\ninterrupted; the same command takes it up again", file=sys.stderr)
        return 130
    except (Stop, OSError) as error:
        print(error, file=sys.stderr)
        return getattr(error, "code", 1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
