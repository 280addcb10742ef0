"""The set-up: one list of versions in three files, messages for machines that lack something, CI, citation."""

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from dpldm import cli

ROOT = Path(__file__).resolve().parent.parent
LOCK = (ROOT / "requirements.lock").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DIRECT = [Requirement(line) for line in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]]
SETTINGS = ("EPSILON", "DATASET", "SEED", "PROFILE", "UPGRADE", "MAKEFLAGS", "MAKEOVERRIDES")
needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="no make here; .ci/make.py does without")
PLATFORMS = [
    {"python_version": python, "python_full_version": python + ".9", "sys_platform": system, "platform_system": name}
    for python in ("3.11", "3.12", "3.13")
    for system, name in (("linux", "Linux"), ("darwin", "Darwin"))
]


def load_make(folder: Path):
    """The script of `folder`, as a module."""
    spec = importlib.util.spec_from_file_location("make", folder / ".ci" / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def copy(tmp_path):
    """The files of the set-up in an empty folder, with a .venv that is this Python and counts as current."""
    for name in (".ci/make.py", ".ci/run", "Makefile", "pyproject.toml", "requirements.lock", "environment.yml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").symlink_to(sys.executable)
    make = load_make(tmp_path)
    make.STAMP.write_text(make.fingerprint())
    return tmp_path


@pytest.fixture
def fake_dpldm(copy):
    """A dpldm command that writes down its arguments; fails with 7 when asked for the seed 13."""
    command = copy / ".venv" / "bin" / "dpldm"
    command.write_text('#!/bin/sh\necho "$@" >> calls\ncase "$*" in *"--seed 13"*) exit 7;; esac\n')
    command.chmod(0o755)
    return copy


def run(folder: Path, *command: str, **variables: str) -> subprocess.CompletedProcess:
    environ = {name: value for name, value in os.environ.items() if name not in SETTINGS} | variables
    return subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=60)


def script(folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess:
    return run(folder, sys.executable, ".ci/make.py", *words, **variables)


# ---- the lock, pyproject.toml and environment.yml say the same -----------------------------------------------------


def pins() -> list[tuple[Requirement, int]]:
    """Each pin of the lock with the number of its hashes, read without make.py."""
    blocks = re.findall(r"^([A-Za-z0-9][^\\\n]*?)\s*((?:\\\n\s+--hash=sha256:[0-9a-f]{64}\s*)*)$", LOCK, re.MULTILINE)
    return [(Requirement(line), hashes.count("--hash")) for line, hashes in blocks]


def test_lock_has_no_addresses():
    for sign in ("://", "--index", "--extra-index", "--find-links", "--trusted-host", " @ ", "file:"):
        assert sign not in LOCK


def test_every_pin_is_exact_stable_and_hashed():
    assert len(pins()) == len(re.findall(r"^[A-Za-z0-9].*==", LOCK, re.MULTILINE)) > 100
    for pin, hashes in pins():
        (specifier,) = pin.specifier
        assert specifier.operator == "==", pin
        assert "*" not in specifier.version
        assert not re.search(r"(a|b|rc|dev)\d+$", specifier.version), pin
        assert hashes > 0, pin


@pytest.mark.parametrize("values", PLATFORMS, ids=lambda values: f"{values['sys_platform']}-{values['python_version']}")
def test_lock_serves_each_platform(values):
    chosen: dict[str, list[Requirement]] = {}
    for pin, _ in pins():
        if pin.marker is None or pin.marker.evaluate(values):
            chosen.setdefault(canonicalize_name(pin.name), []).append(pin)
    assert all(len(versions) == 1 for versions in chosen.values()), "two versions of one package"
    for wanted in DIRECT:
        (pin,) = chosen[canonicalize_name(wanted.name)]
        (specifier,) = pin.specifier
        assert wanted.specifier.contains(specifier.version), f"{pin} is outside {wanted}"
    (setuptools,) = chosen["setuptools"]  # builds dpldm itself, without looking for another one
    assert Requirement("setuptools>=77").specifier.contains(str(setuptools.specifier).removeprefix("=="))
    assert ("triton" in chosen) == (values["sys_platform"] == "linux")


def test_torch_has_files_for_linux_and_macs():
    assert {pin.name: hashes for pin, hashes in pins()}["torch"] >= 9  # 3 Pythons on x86-64, arm64 and macOS


def test_python_range_is_said_once():
    make = load_make(ROOT)
    allowed = Requirement(f"python{PROJECT['requires-python']}").specifier
    said = [minor for minor in range(20) if allowed.contains(f"3.{minor}.5")]
    assert [(3, minor) for minor in said] == list(make.SUPPORTED)
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())
    assert workflow["jobs"]["test"]["strategy"]["matrix"]["python"] == [f"3.{minor}" for minor in said]


def test_conda_file_holds_the_locked_versions():
    content = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert content["name"] == "dpldm"
    (python,) = [line for line in content["dependencies"] if str(line).startswith("python=")]
    (installed,) = [line["pip"] for line in content["dependencies"] if isinstance(line, dict)]
    assert installed[-1] == "--editable ."
    version = python.removeprefix("python=")
    locked = {
        f"{pin.name}{pin.specifier}"
        for pin, _ in pins()
        if pin.marker is None or pin.marker.evaluate({"python_version": version, "python_full_version": version + ".1"})
    }
    assert set(installed[:-1]) <= locked
    assert {canonicalize_name(Requirement(line).name) for line in installed[:-1]} == {
        canonicalize_name(wanted.name) for wanted in DIRECT
    }


def test_conda_check_notices_an_edit(copy):
    assert script(copy, "environment", "--check").returncode == 0
    path = copy / "environment.yml"
    right = path.read_text()
    path.write_text(right.replace("torch==2", "torch==1"))
    refused = script(copy, "environment", "--check")
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1
    assert "make environment" in refused.stderr
    assert script(copy, "environment").returncode == 0
    assert path.read_text() == right


def test_new_dependency_without_a_pin_is_named(copy):
    path = copy / "pyproject.toml"
    path.write_text(path.read_text().replace('"tqdm>=4.67"', '"tqdm>=4.67", "not-locked>=1"'))
    refused = script(copy, "environment", "--check")
    assert refused.returncode == 1
    assert "requirements.lock lacks not-locked" in refused.stderr


# ---- a machine that lacks something --------------------------------------------------------------------------------


def test_script_parses_on_an_old_python():
    ast.parse((ROOT / ".ci" / "make.py").read_text(), feature_version=(3, 7))


def interpreter(folder: Path, name: str, answers: str, has_venv: bool) -> Path:
    """A stand-in for an interpreter: says its version, and whether it can import venv and ensurepip."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f'#!/bin/sh\ncase "$2" in *version_info*) {answers};; *) exit {0 if has_venv else 1};; esac\n')
    path.chmod(0o755)
    return path


@pytest.fixture
def make(monkeypatch, tmp_path):
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    return load_make(ROOT)


@pytest.mark.parametrize("version", [(3, 8), (3, 9), (3, 10), (3, 14)])
def test_unfit_python_is_refused_in_one_line(make, version, tmp_path):
    with pytest.raises(make.Stop) as refusal:
        make.choose_python(sys.executable, version, str(tmp_path))
    message = str(refusal.value)
    assert message.startswith(f"dpldm needs Python 3.11 to 3.13, this is 3.{version[1]}; install it with: ")
    assert "\n" not in message


def test_way_out_fits_the_machine(make):
    assert make.how_to_install((3, 10), "Linux", has_apt=True).startswith("sudo apt install python3.11 python3.11-venv")
    assert make.how_to_install((3, 9), "Darwin", has_apt=False).startswith("brew install python@3.12")
    assert make.how_to_install((3, 10), "Linux", has_apt=False).startswith("uv python install 3.12")
    assert make.how_to_install((3, 14), "Linux", has_apt=True).startswith("uv python install 3.12")


def test_another_python_on_the_path_is_found(make, tmp_path):
    folder = tmp_path / "bin"
    interpreter(folder, "python3.11", "exit 127", has_venv=True)  # a shim with nothing behind it
    interpreter(folder, "python3.12", "echo 3 12", has_venv=False)
    wanted = interpreter(folder, "python3.13", "echo 3 13", has_venv=True)
    assert make.choose_python(sys.executable, (3, 9), str(folder)) == str(wanted)
    assert make.choose_python(sys.executable, (3, 12), "") == sys.executable


def test_missing_venv_is_named(make, tmp_path):
    bare = interpreter(tmp_path / "bin", "python3.12", "echo 3 12", has_venv=False)
    with pytest.raises(make.Stop, match=r"lacks its venv module; install it with: sudo apt install python3\.12-venv"):
        make.choose_python(str(bare), (3, 12), str(tmp_path / "bin"))


@pytest.mark.parametrize(("system", "machine", "said"), [("Windows", "AMD64", "WSL"), ("Darwin", "x86_64", "Intel")])
def test_unfit_machine_is_refused(make, system, machine, said):
    with pytest.raises(make.Stop, match=said):
        make.check_machine(system, machine)
    make.check_machine("Darwin", "arm64")
    make.check_machine("Linux", "x86_64")


def test_full_disk_is_refused_before_anything_is_written(copy, monkeypatch, capsys):
    make = load_make(copy)
    shutil.rmtree(copy / ".venv")
    monkeypatch.setattr(make.shutil, "disk_usage", lambda path: SimpleNamespace(free=1e9))
    with pytest.raises(make.Stop, match=r"has 1\.0 GB free"):
        make.set_up()
    assert not (copy / ".venv").exists()


def test_setup_says_what_next(make, monkeypatch, capsys):
    monkeypatch.setattr(make, "set_up", lambda: None)
    monkeypatch.setattr(make.sys, "argv", ["make.py", "setup"])
    assert make.main() == 0
    said = capsys.readouterr().out
    commands = [line.split("  ")[1].split() for line in said.splitlines() if ".venv/bin/dpldm" in line]
    assert commands
    for _, *words in commands:
        cli._parser().parse_args(words)
    assert "make book" in said


def test_pip_settings_reach_uv(make):
    listing = (
        "global.index-url='first'\nglobal.extra-index-url='second third'\n"
        ":env:.find-links='here there'\nglobal.cert='pem'\nglobal.timeout='60'\n"
    )
    settings = make.uv_settings(listing, {"UV_INDEX": "mine"})
    del settings["UV_INDEX_STRATEGY"]
    assert settings == {"UV_DEFAULT_INDEX": "first", "UV_FIND_LINKS": "here,there", "SSL_CERT_FILE": "pem"}


# ---- installing ----------------------------------------------------------------------------------------------------


def commands_of(make, monkeypatch, failing: str = "nothing") -> list[str]:
    """What an installation would run, with one step failing."""
    ran: list[str] = []

    def step(name, command, environ=None):
        ran.append(" ".join(str(part) for part in command))
        return 1 if name.startswith(failing) else 0

    monkeypatch.setattr(make, "step", step)
    monkeypatch.setattr(make, "uv_environ", dict)
    return ran


def test_change_of_the_lock_is_installed_and_an_unchanged_one_is_not(copy, monkeypatch):
    make = load_make(copy)
    ran = commands_of(make, monkeypatch)
    make.set_up()
    assert not ran
    with (copy / "requirements.lock").open("a") as lock:
        lock.write("# changed\n")
    make.set_up()
    assert len(ran) == 3
    assert all("--require-hashes" in command for command in ran[:2])
    assert "--editable ." in ran[2]
    assert "--no-deps" in ran[2]
    assert re.fullmatch(r"uv==\S+ \\\n(\s+--hash=sha256:\w+( \\)?\n)+", (copy / ".venv" / "uv.txt").read_text())
    assert make.is_current()


def test_pip_installs_where_uv_cannot(copy, monkeypatch):
    for failing in ("uv", "packages ("):
        make = load_make(copy)
        make.STAMP.unlink()
        ran = commands_of(make, monkeypatch, failing)
        make.set_up()
        assert re.search(rf"-m pip install .*--require-hashes -r {re.escape(str(make.LOCK))}$", ran[-2])
        assert make.is_current()


def test_interrupted_installation_is_done_again(copy, monkeypatch):
    make = load_make(copy)
    make.STAMP.unlink()

    def interrupted(name, command, environ=None):
        raise KeyboardInterrupt

    monkeypatch.setattr(make, "step", interrupted)
    monkeypatch.setattr(make, "uv_environ", dict)
    with pytest.raises(KeyboardInterrupt):
        make.set_up()
    assert not make.is_current()
    ran = commands_of(make, monkeypatch)
    make.set_up()
    assert "--reinstall" in ran[1]
    assert make.is_current()


def test_moved_folder_gets_a_new_environment(copy):
    moved = copy.parent / (copy.name + "-moved")
    copy.rename(moved)
    make = load_make(moved)
    assert not make.is_current()
    assert not make.has_usable_environment()


# ---- targets -------------------------------------------------------------------------------------------------------


def test_each_target_exists_in_both_doors():
    targets = re.search(r"^TARGETS := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE).group(1).split()
    make = load_make(ROOT)
    for target in targets:
        assert make.arguments([target]).target == target
    assert {"help", "test", "test-all", "book", "data", "lock", "clean"} <= set(targets)
    assert set(re.findall(r"^make (\S+)", make.HELP, re.MULTILINE)) == set(targets) - {"help"}


@needs_make
def test_make_without_a_target_helps(copy):
    shown = run(copy, "make", f"PYTHON={sys.executable}")
    assert shown.returncode == 0
    assert "make book" in shown.stdout


@needs_make
def test_settings_reach_the_command(fake_dpldm):
    """By make's arguments, by the environment and by options: the same calls."""
    words = ["--epsilon", "3", "--dataset", "mnist", "--seed", "4", "--profile", "smoke"]
    ways = [
        ["make", f"PYTHON={sys.executable}", "book", "EPSILON=3", "DATASET=mnist", "SEED=4", "PROFILE=smoke"],
        ["sh", "-c", f"EPSILON=3 DATASET=mnist SEED=4 PROFILE=smoke {sys.executable} .ci/make.py book"],
        [sys.executable, ".ci/make.py", "book", *words],
    ]
    for way in ways:
        done = run(fake_dpldm, *way)
        assert done.returncode == 0, done.stderr
        calls = fake_dpldm / "calls"
        assert calls.read_text().splitlines()[-1] == "book --dataset mnist --epsilon 3 --seed 4 --profile smoke"
        calls.unlink()


def test_plain_book_fetches_the_data_and_builds(fake_dpldm):
    assert script(fake_dpldm, "book", EPSILON="", SEED="").returncode == 0
    calls = (fake_dpldm / "calls").read_text().splitlines()
    assert calls == ["data fetch mnist", "data fetch fashion_mnist", "book"]


def test_exit_code_passes_through(fake_dpldm):
    assert script(fake_dpldm, "book", "--seed", "13").returncode == 7


@pytest.mark.parametrize("setting", ["EPSILON=0", "EPSILON=-1", "EPSILON=nan", "EPSILON=inf", "EPSILON=x", "SEED=1.5"])
def test_bad_number_stops_before_anything_runs(fake_dpldm, setting):
    name, value = setting.split("=")
    refused = script(fake_dpldm, "book", **{name: value})
    assert refused.returncode == 2
    assert "make book" in refused.stderr
    assert not (fake_dpldm / "calls").exists()


@needs_make
def test_misspelt_setting_is_refused(fake_dpldm):
    refused = run(fake_dpldm, "make", f"PYTHON={sys.executable}", "book", "EPSILN=3")
    assert refused.returncode == 2
    assert "unknown setting EPSILN" in refused.stderr
    assert not (fake_dpldm / "calls").exists()


@needs_make
def test_setting_is_never_run_by_a_shell(fake_dpldm):
    run(fake_dpldm, "make", f"PYTHON={sys.executable}", "book", "DATASET=mnist;touch broken", "PROFILE=`touch broken`")
    assert not (fake_dpldm / "broken").exists()


def test_interrupt_ends_in_one_line_and_130(fake_dpldm):
    command = fake_dpldm / ".venv" / "bin" / "dpldm"
    command.write_text("#!/bin/sh\nkill -INT $PPID\n")
    stopped = script(fake_dpldm, "data")
    assert stopped.returncode == 130
    assert stopped.stderr.strip() == "interrupted; the same command takes it up again"


@needs_make
def test_missing_python_is_named(copy):
    refused = run(copy, "make", "PYTHON=no-such-python", "test")
    assert refused.returncode != 0
    assert "found no no-such-python; install it with" in refused.stderr


def test_clean_keeps_data_and_runs(copy):
    for name in ("_build", "executed", "data", "runs"):
        (copy / name).mkdir()
    assert script(copy, "clean").returncode == 0
    assert not any((copy / name).exists() for name in ("_build", "executed"))
    assert all((copy / name).exists() for name in ("data", "runs", ".venv"))


def test_ci_calls_make_test_with_and_without_make(copy):
    """The script finds its folder, gives no input, and passes the exit code on."""
    (copy / "bin").mkdir()
    for name, code in (("make", 3), ("python3", 4)):
        stand_in = copy / "bin" / name
        stand_in.write_text(f'#!/bin/sh\nif read line; then exit 99; fi\necho "$PWD {name} $*"\nexit {code}\n')
        stand_in.chmod(0o755)
    for name in ("bash", "env", "dirname"):
        (copy / "bin" / name).symlink_to(shutil.which(name))
    first = run(Path("/"), str(copy / ".ci" / "run"), PATH=str(copy / "bin"), CI="true")
    assert (first.returncode, first.stdout) == (3, f"{copy} make --no-print-directory test\n")
    (copy / "bin" / "make").unlink()
    second = run(Path("/"), str(copy / ".ci" / "run"), PATH=str(copy / "bin"), CI="true")
    assert (second.returncode, second.stdout) == (4, f"{copy} python3 .ci/make.py test\n")
    (copy / "bin" / "python3").unlink()
    third = run(Path("/"), str(copy / ".ci" / "run"), PATH=str(copy / "bin"), CI="true")
    assert third.returncode == 127
    assert "install it with: sudo apt install python3" in third.stderr


# ---- workflows, citation, licence ----------------------------------------------------------------------------------


def workflow_files() -> list[Path]:
    return sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def test_workflows_parse_and_never_paste_input_into_a_command():
    assert [path.name for path in workflow_files()] == ["book.yml", "test.yml"]
    for path in workflow_files():
        content = yaml.safe_load(path.read_text())
        assert content["permissions"] == {"contents": "read"}
        for job in content["jobs"].values():
            assert job["runs-on"]
            for part in job["steps"]:
                assert ("run" in part) != ("uses" in part)
                assert "${{" not in part.get("run", "")


def test_book_workflow_hands_over_every_setting():
    content = yaml.safe_load((ROOT / ".github" / "workflows" / "book.yml").read_text())
    inputs = set(content[True]["workflow_dispatch"]["inputs"])  # YAML 1.1 reads the key `on` as true
    (build,) = [part for part in content["jobs"]["build"]["steps"] if "make book" in part.get("run", "")]
    assert build["env"] == {name.upper(): f"${{{{ inputs.{name} }}}}" for name in inputs}
    assert inputs == set(load_make(ROOT).SETTINGS)


def test_binder_has_the_pinned_packages_and_opens_notebooks_as_notebooks():
    folder = ROOT / ".binder"
    script = (folder / "postBuild").read_text()
    assert os.access(folder / "postBuild", os.X_OK)
    assert subprocess.run(["bash", "-n", folder / "postBuild"]).returncode == 0
    assert "--require-hashes -r requirements.lock" in script
    assert "jupytext-config set-default-viewer python" in script
    assert {"jupyterlab", "jupytext"} <= set((folder / "requirements.txt").read_text().split())
    minor = (folder / "runtime.txt").read_text().strip().removeprefix("python-")
    assert minor == load_make(ROOT).CONDA_PYTHON


def test_citation_names_the_software_and_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"] == "Apache-2.0"
    assert citation["date-released"].year >= 2026, "a citation has a year"
    address = yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]["url"]
    assert citation.get("repository-code", "") == address, "the address of _config.yml, as soon as it has one"
    (paper,) = citation["references"]
    assert paper["doi"] == "10.11896/jsjkx.230700177"
    assert [person["family-names"] for person in paper["authors"]] == ["Ge", "Zhang", "Sun"]
    assert (paper["volume"], paper["issue"], paper["start"], paper["end"], paper["year"]) == (51, 3, 30, 38, 2024)


def test_licence_is_the_whole_apache_text():
    text = (ROOT / "LICENSE").read_text()
    assert text.split()[:4] == ["Apache", "License", "Version", "2.0,"]
    assert "END OF TERMS AND CONDITIONS" in text
    assert len(text) == 11358


def test_grade_asks_for_the_submissions_and_passes_them_on(copy):
    asked = script(copy, "grade")
    assert asked.returncode == 2
    assert "make grade SUBMISSIONS=folder" in asked.stderr
    module = copy / "dpldm" / "coursework"
    module.mkdir(parents=True)
    (module / "__main__.py").write_text("import sys\nprint(sys.argv[1:])\n")
    passed = script(copy, "grade", PYTHONPATH="", SUBMISSIONS="in", SECRET="s.txt")
    assert passed.stdout.strip() == "['grade', 'in', '--secret', 's.txt']", passed.stderr


def test_coursework_lock_keeps_the_versions_of_the_main_lock():
    locked = (ROOT / "requirements-coursework.lock").read_text()
    assert "://" not in locked
    versions = [dict(re.findall(r"^([\w.-]+)==([^\s;]+)", text, re.MULTILINE)) for text in (LOCK, locked)]
    both = set(versions[0]) & set(versions[1])
    assert len(both) > 40
    assert {name: versions[1][name] for name in both} == {name: versions[0][name] for name in both}
    assert {"nbgrader", "jupyterlab"} <= set(versions[1])
    assert locked.count("--hash=sha256:") > len(versions[1])
