"""An audit of the whole method: attacks on the library's own releases, and what their success proves.

An accountant bounds ε from above, if every mechanism is what the ledger says it is. An audit bounds ε from below,
whatever the code does: it lets an attacker guess who took part, and a private release limits how often guesses are
right. A lower bound above the claimed ε proves a mistake. One below it proves nothing, only that this attack failed.
"""

import hashlib
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from dpldm.audit.attacks import ANOTHER_SEED, GRADIENT_CANARIES, gradient_canaries, model_attacks
from dpldm.audit.bounds import CONFIDENCE, CanaryScores, LowerBound, one_run_bound, one_run_power
from dpldm.audit.evidence import Examples, coins, decode, full_batch, guarded, odd_images, ones, only_the_first, weigh
from dpldm.audit.releases import replay, take_up, what_else_moved
from dpldm.method.settings import SynthesisSettings
from dpldm.method.stages import DIFFUSION
from dpldm.method.synthesizer import LatentDiffusion
from dpldm.privacy.accounting import Ledger
from dpldm.privacy.checks import PrivacyError
from dpldm.privacy.mechanisms import PrivacySpec
from dpldm.privacy.noise import Release, watched
from dpldm.runs import experiment


@dataclass(frozen=True)
class Audit:
    """What several attacks on one fit prove together.

    ``epsilon_claimed``: ε of the fit's own ledger. ``bounds``: attack → lower bound; with probability ``confidence``
    over the run, none of them lies above the true ε. ``images``, ``canaries``: how many there were. ``told``: what
    tells of single images beside the mechanisms, so that no ε holds at all; empty if the audit found nothing.
    """

    epsilon_claimed: float
    delta: float
    confidence: float
    bounds: dict[str, LowerBound]
    images: int
    canaries: int
    seconds: float
    told: tuple[str, ...] = ()

    @property
    def strongest(self) -> str:
        """The attack that proves most."""
        return max(self.bounds, key=lambda name: self.bounds[name].epsilon_lower)

    @property
    def power(self) -> float:
        """The largest ε that attacks by canaries among the images could have proved, had every guess been right."""
        return self._power(self.canaries)

    @property
    def gradient_power(self) -> float:
        """The same for attacks by gradients on DP-SGD."""
        return self._power(GRADIENT_CANARIES)

    def _power(self, canaries: int) -> float:
        return one_run_power(canaries, self.delta, 1 - (1 - self.confidence) / len(self.bounds))

    @property
    def contradicted(self) -> bool:
        """Whether any attack disproves the claim."""
        return bool(self.told) or self.bounds[self.strongest].contradicts(self.epsilon_claimed)


def audit_method(
    examples: Examples,
    settings: SynthesisSettings,
    spec: PrivacySpec,
    seed: int = 0,
    canaries: int = 400,
    confidence: float = CONFIDENCE,
) -> Audit:
    """Attack `LatentDiffusion` with the settings and the budget of a real run, by canaries in a single fit.

    The last ``canaries`` of the images make way for odd ones, each with a random class, of which a fair coin decides
    whether it takes part; a canary that does not is blank, so that the public number of images tells nothing. Attacks:

    - on each full-batch mechanism, and on all of them together: the attacker sees what was released and knows all
      images but the coins (`statistics_in_one_run`), and once more by one who doubts that there is noise;
    - on each DP-SGD of the ledger: gradients of the clipping norm (`gradient_canaries`), 2,000 of them;
    - on the saved model: "loss" and "moments" (`model_in_one_run`);
    - on what is beside the mechanisms: the public draws of a secure run, which may not follow from who takes part, and
      what later stages learn from synthetic images, which may follow from the releases alone.

    The fit is seeded as `run` seeds a secure one, with its noise seeded as well, so that it can be replayed.
    The confidence is divided among the attacks (Bonferroni). Seeds: ``seed`` of the fit, the coins and the canaries.

    Raises:
        PrivacyError: fewer than 20 canaries, or more than half of the images.
        ValueError: settings and budget that can't work with that many images.
    """
    if not 20 <= canaries <= len(examples) // 2:
        raise PrivacyError(
            f"expected 20 canaries or more and at most half of {len(examples)} images, got {canaries}: choose others"
        )
    start, n = time.monotonic(), len(examples)
    known = examples[: n - canaries]
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(examples.num_classes, (canaries,), generator=random)
    _, channels, height, width = examples.images.shape
    odd = Examples(odd_images(canaries, (channels, height, width), seed + 1), labels, examples.num_classes)
    included = coins(canaries, seed + 2)

    seeded = replace(spec, secure_mode=False)  # a replay needs the same first components

    def build(its_seed: int) -> LatentDiffusion:
        return LatentDiffusion((channels, height, width), examples.num_classes, settings, seeded, its_seed)

    def seed_on(part: Examples, seed: int) -> int:
        return _seed_of_a_secure_run(part, settings, spec, seed)

    def fitted(part: Examples, seed: int, last: str = "") -> tuple[LatentDiffusion, list[Release], Ledger]:
        synthesizer, guard = build(seed_on(part, seed)), guarded(part, n)
        synthesizer.check(n)
        with watched() as seen, only_the_first(len(part)):
            for stage in synthesizer.stages:
                for _ in synthesizer.fit_stage(stage, guard):
                    pass
                take_up(synthesizer, stage, synthesizer)
                if stage == last:
                    break
        return synthesizer, full_batch(seen), guard.ledger

    taking_part = known + odd[included]
    attacked, releases, ledger = fitted(taking_part, seed)
    reference = fitted(known, seed + ANOTHER_SEED, last=DIFFUSION)[0]  # all that an attack on the model looks at
    found = model_attacks(attacked, reference, known, odd, included, len(known) + canaries // 2)
    found = {f"saved model, {name}": scores for name, scores in found.items()}

    answers = [release.released for release in releases]
    told = [] if seed_on(taking_part[1:], seed) == attacked.seed else ["public draws"]
    told += what_else_moved(build(attacked.seed), known, n, attacked, answers, ledger)
    # each with the seed of the attacked run, which is not derived again: that reads all images
    replays = [replay(build(attacked.seed), part, n, attacked, answers, ledger) for part in (known, *ones(odd))]
    evidence = weigh(releases, ledger, replays[0], replays[1:])
    evidence["all statistics"] = evidence.pop("all")
    found |= {name: CanaryScores(decode(one, 1.0).float(), included) for name, one in evidence.items()}
    doubting = decode(evidence["all statistics"], 0.01).float()
    found["statistics, doubted"] = CanaryScores(doubting, included)
    for mechanism in ledger.mechanisms:
        if mechanism.sample_rate < 1:
            found[mechanism.name] = gradient_canaries(mechanism, GRADIENT_CANARIES, seed + 3)

    each = 1 - (1 - confidence) / len(found)
    bounds = {name: one_run_bound(scores, spec.delta, each) for name, scores in found.items()}
    claimed, seconds = ledger.epsilon(spec.delta), time.monotonic() - start
    return Audit(claimed, spec.delta, confidence, bounds, n, canaries, seconds, tuple(told))


def _seed_of_a_secure_run(part: Examples, settings: SynthesisSettings, spec: PrivacySpec, seed: int) -> int:
    """Of all that is public in a secure run on these images."""
    asked = experiment.Experiment(
        Path("audited"),
        spec.epsilon,
        noise_multiplier=spec.noise_multiplier,
        delta=spec.delta,
        secure_mode=True,
        seed=seed % experiment.LARGEST_SEED,
        settings=settings,
    )
    content = {"images": part.images, "labels": part.labels}
    sums = {name: hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest() for name, value in content.items()}
    return experiment.fit_seed(asked, sums)


def in_words(found: Audit) -> list[str]:
    """An audit for people: the claim, what each attack proves, the verdict and the time; one line each."""
    lines = [
        f"claimed: ε = {found.epsilon_claimed:.4g} at δ = {found.delta:g}; "
        f"attacked with {found.canaries} canaries among {found.images:,} images",
        f"proved, all lines together at {found.confidence:.0%} confidence:",
    ]
    for name, bound in found.bounds.items():
        lines.append(f"  ε ≥ {bound.epsilon_lower:<6.3f} {name:<24} {bound.correct} of {bound.guesses} guesses right")
    beside = f"{' and '.join(found.told)} tell of single images, so no ε holds" if found.told else "nothing moves"
    lines.append(f"beside the mechanisms: {beside}")
    strongest = found.bounds[found.strongest].epsilon_lower
    verdict = "below the claim, which is not disproved"
    if found.contradicted:
        verdict = "but the claim is DISPROVED" if found.told else "above the claim: DISPROVED"
    power = (
        f"if every guess had been right: ε ≥ {found.power:.3f} by {found.canaries} images, "
        f"{found.gradient_power:.3f} by {GRADIENT_CANARIES:,} gradients, and no more"
    )
    return [*lines, power, f"lower bound: ε ≥ {strongest:.3f}, {verdict}", f"time: {found.seconds:.0f} s"]
