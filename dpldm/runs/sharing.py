"""What runs on the same images share: a fit that is made once, or else budgets that add up."""

import filecmp
import functools
import shutil

from dpldm.privacy import statement as privacy_statement
from dpldm.privacy.accounting import Ledger
from dpldm.records import environment, files
from dpldm.records.schema import RecordError
from dpldm.records.stages import StageFolder
from dpldm.runs.experiment import Progress
from dpldm.runs.job import SAMPLES, Job


def take_over(job: Job, commit: str, progress: Progress) -> None:
    """Begin with what another run has made by the same settings of the same images, where this one has nothing yet.

    A secure run begins with all of a fit or with none of it: two that went on from the same first stage would each draw
    the others.
    """
    found = [(_made_alike(job, folder, commit), folder) for folder in _others(job)]
    stages, folder = max(found, key=lambda pair: len(pair[0]), default=([], job.stages))
    if not stages or (job.experiment.secure_mode and len(stages) < len(job.synthesizer.stages)):
        return
    job_folder, sources = job.stages.path, [folder.file(stage) for stage in stages]
    if SAMPLES in stages:
        sources.insert(0, folder.path / job.images_path.name)
    for source in sources:
        files.write_atomically(job_folder / source.name, functools.partial(shutil.copyfile, source))
    progress.say(f"begins with what {folder.path.name} has made of the same images: {', '.join(stages)}")


def _others(job: Job) -> list[StageFolder]:
    """The runs beside this one."""
    folders = sorted(path for path in job.stages.path.parent.glob("[!.]*") if path.is_dir())
    return [StageFolder(path) for path in folders if path != job.stages.path]


def _made_alike(job: Job, other: StageFolder, commit: str) -> list[str]:
    """The stages, from the first on, that another run of this version has made of what this one would make them of."""
    alike = []
    for stage in [*job.synthesizer.stages, SAMPLES]:
        try:
            facts = other.load(stage)[1]
        except RecordError:
            break
        if (facts.get("made_of"), facts.get("commit")) != (job.made_of(stage), commit):
            break
        alike.append(stage)
    return alike


def _shares_fit(job: Job, other: StageFolder) -> bool:
    """Whether the fit of this run is that of another one: what it has of it already, and what it would take over."""
    commit, chain = environment.environment_facts(str(job.device))["commit"], job.synthesizer.stages
    if not set(chain) <= set(_made_alike(job, other, commit)):
        return False
    kept = [stage for stage in chain if job.stages.has(stage)]
    return all(filecmp.cmp(job.stages.file(stage), other.file(stage), shallow=False) for stage in kept)


def spent_before(job: Job, anew: bool) -> str:
    """What secure runs recorded beside this one drew from the same private images, in a line; empty if none did but
    those whose fit it shares. Whoever sees them all sees all that they spent. ``anew``: it takes over no fit."""
    mine = {value for name, value in job.description["data_sha256"].items() if "(test, keyed)" not in name}
    runs = job.stages.path.parent
    others, ledger = [], Ledger()
    for path in sorted(job.record_path.parent.glob("[!.]*.json")):
        if not anew and _shares_fit(job, StageFolder(runs / path.stem)):
            continue
        try:
            other = files.read(path)
        except RecordError:
            continue
        if other["privacy"].get("secure_mode") is True and mine & set(other["data_sha256"].values()):
            others.append(path.stem)
            for mechanism in privacy_statement.from_record(other["privacy"]).mechanisms:
                ledger.add(mechanism)
    if not others:
        return ""
    delta = job.experiment.delta
    return (
        f"warning: secure runs have drawn from these images before ({', '.join(others)}; together ε = "
        f"{ledger.epsilon(delta):.4g} at δ = {delta:g}), and this one draws anew: to whoever sees more than one, their "
        "budgets add up"
    )
