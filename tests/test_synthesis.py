"""The whole method at toy size: one budget, two stages, samples, and what an interruption may not change."""

from dataclasses import replace

import pytest
import torch

from dpldm.method.classifier import Selector
from dpldm.method.decoders import MatchingSettings
from dpldm.method.diffusion import SAMPLERS
from dpldm.method.finishing import FinishSettings, raise_contrast
from dpldm.method.settings import SamplingSettings, SynthesisSettings, smoke
from dpldm.method.synthesizer import LatentDiffusion
from dpldm.privacy.accounting import Ledger
from dpldm.privacy.checks import PrivacyError
from dpldm.privacy.guard import PrivateData
from dpldm.privacy.mechanisms import PrivacySpec

TINY = smoke(SynthesisSettings())
FIVE = PrivacySpec(epsilon=5.0)
SHAPE = (1, 12, 12)


def toy_images(n=900, classes=3, seed=0):
    """Class c is a bright bar at row 3c + 1 on a dark, noisy ground."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    images = torch.rand(n, *SHAPE, generator=random) * 0.2
    for c in range(classes):
        images[labels == c, :, 4 * c : 4 * c + 2] += 0.7
    return images.clamp(0, 1), labels


def fitted(spec=FIVE, settings=TINY, seed=0, images=None):
    images, labels = images or toy_images()
    data = PrivateData(images, labels, 3, Ledger())
    synthesizer = LatentDiffusion(SHAPE, 3, settings, spec, seed)
    synthesizer.fit(data)
    return synthesizer, data.ledger


@pytest.fixture(scope="module")
def private():
    return fitted()


def draw(synthesizer, n=60, seed=0, **sampling):
    labels = torch.arange(n) % 3
    chosen = replace(synthesizer.settings.sampling, **sampling)
    return torch.cat(list(synthesizer.sample(labels, seed, chosen))), labels


def test_everything_is_in_the_ledger_and_within_the_target(private):
    _, ledger = private
    assert [m.name for m in ledger.mechanisms] == [
        "image mean",
        "image second moments",
        "latent second moments",
        "latent sums",
        "denoiser gradients",
        "selector gradients",
        "energy second moments",
        "energy sums",
    ]
    assert 0.98 * 5.0 < ledger.epsilon(1e-5) <= 5.0


MATCHED = replace(
    TINY,
    selection=replace(TINY.selection, candidates=1),
    matching=MatchingSettings(40, 0.25, features=200, width=16, channels=4, images=200, generated=60, start=20),
)


def test_matched_decoders_are_charged_draw_in_place_of_stage_1_and_can_be_restored():
    synthesizer, ledger = fitted(settings=MATCHED)
    assert synthesizer.stages == ("compression", "diffusion", "matching", "transport")
    names = [m.name for m in ledger.mechanisms]
    assert names[4:] == ["denoiser gradients", "mean embedding", "energy second moments", "energy sums"]
    assert 0.98 * 5.0 < ledger.epsilon(1e-5) <= 5.0
    images, _ = draw(synthesizer)
    again = LatentDiffusion(SHAPE, 3, MATCHED, FIVE, 0)
    for stage in synthesizer.stages:
        again.restore(stage, synthesizer.state(stage))
    torch.testing.assert_close(draw(again)[0], images)
    again.settings = replace(MATCHED, matching=replace(MATCHED.matching, steps=0))
    assert not torch.allclose(draw(again)[0], images, atol=0.05)


def test_matching_in_the_middle_changes_no_noise_of_the_stages_before_it():
    """A run without it is as it was before there was such a stage."""
    plain, matched = (fitted(None, replace(MATCHED, matching=replace(MATCHED.matching, steps=n)))[0] for n in (0, 3))
    for stage in ("compression", "diffusion"):
        for name, value in plain.state(stage).items():
            torch.testing.assert_close(matched.state(stage)[name], value)


def test_a_share_of_the_images_is_decoded_by_matched_decoders(monkeypatch):
    settings = replace(MATCHED, matching=replace(MATCHED.matching, image_share=0.25))
    synthesizer, _ = fitted(settings=settings)
    seen = []

    def white(latents, labels, random):
        seen.append(labels)
        return torch.ones(len(latents), *SHAPE)

    monkeypatch.setattr(synthesizer.matcher, "decode", white)
    images, labels = draw(synthesizer, n=600)
    by_decoders = images.flatten(1).amin(1) == 1
    assert 0.2 < by_decoders.float().mean() < 0.3
    assert torch.equal(torch.cat(seen), labels[by_decoders])


def test_images_of_matched_decoders_are_selected_and_pushed_by_a_classifier_of_real_images_as_they_are(monkeypatch):
    """Where stage 1 draws none, there is no other view; what the classifier refuses is drawn and decoded again."""
    settings = replace(MATCHED, selection=TINY.selection, transport=replace(TINY.transport, steps=0))
    views = []
    fit = Selector.fit

    def watched(self, data, synthetic, view, allowance, noise):
        views.append(view)
        return fit(self, data, synthetic, view, allowance, noise)

    monkeypatch.setattr(Selector, "fit", watched)
    synthesizer, ledger = fitted(settings=settings)
    assert views == [None]
    assert synthesizer.stages == ("compression", "diffusion", "matching", "selection")
    assert 0.98 * 5.0 < ledger.epsilon(1e-5) <= 5.0
    images, labels = draw(synthesizer, n=600)
    all_first, _ = draw(same_with(synthesizer, selection=replace(TINY.selection, candidates=1)), n=600)
    seen = [(synthesizer.selector.logits(x).argmax(1) == labels).float().mean() for x in (all_first, images)]
    assert seen[1] > seen[0]
    pushed = same_with(synthesizer, selection=replace(TINY.selection, push=0.5))
    torch.testing.assert_close(draw(pushed, n=600)[0], pushed.selector.pushed(images, labels))
    assert not torch.allclose(draw(pushed, n=600)[0], images)


@pytest.mark.parametrize("epsilon", [0.5, 20.0])
def test_spent_epsilon_never_exceeds_the_target_and_an_independent_accountant_agrees(epsilon):
    _, ledger = fitted(PrivacySpec(epsilon=epsilon))
    assert ledger.epsilon(1e-5) <= epsilon
    assert ledger.epsilon(1e-5, "pld") == pytest.approx(ledger.epsilon(1e-5), rel=0.01)


def test_given_noise_multiplier_is_used_and_epsilon_follows():
    _, ledger = fitted(PrivacySpec(noise_multiplier=2.0))
    gradients = next(m for m in ledger.mechanisms if m.name == "denoiser gradients")
    assert gradients.noise_multiplier == 2.0
    assert ledger.epsilon(1e-5) > Ledger([gradients]).epsilon(1e-5)


def test_samples_are_images_of_their_class(private):
    synthesizer, _ = private
    images, labels = draw(synthesizer)
    assert images.shape == (60, *SHAPE)
    assert images.min() >= 0
    assert images.max() <= 1
    bars = torch.stack([images[:, 0, 4 * c : 4 * c + 2].mean((1, 2)) for c in range(3)], 1)
    assert (bars.argmax(1) == labels).float().mean() > 0.9


@pytest.mark.parametrize("sampler", list(SAMPLERS))
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_every_sampler_with_and_without_guidance(private, sampler, guidance):
    images, _ = draw(private[0], sampler=sampler, guidance=guidance)
    assert images.isfinite().all()


def test_seed_decides_fit_and_samples(private):
    again, _ = fitted()
    other, _ = fitted(seed=1)
    images = draw(private[0])[0]
    torch.testing.assert_close(draw(again)[0], images)
    assert not torch.allclose(draw(other)[0], images)
    assert not torch.allclose(draw(private[0], seed=1)[0], images)


def test_batches_of_sampling_cover_all_labels_in_order(private):
    images, _ = draw(private[0], n=7, batch=3)
    assert images.shape[0] == 7


def same_with(synthesizer, **changes):
    """As fitted, drawing with other settings."""
    other = LatentDiffusion(SHAPE, 3, replace(synthesizer.settings, **changes), FIVE, 0)
    for stage in other.stages:
        other.restore(stage, synthesizer.state(stage))
    other.settings = replace(synthesizer.settings, **changes)
    return other


def unmoved(synthesizer, **changes):
    return same_with(synthesizer, transport=replace(TINY.transport, steps=0), **changes)


def test_images_are_finished_after_decoding_and_at_the_very_end_and_nothing_else_changes(private):
    plain = unmoved(private[0])
    contrast = FinishSettings(contrast=8.0)
    inked = raise_contrast(draw(plain)[0], 8.0, contrast.middle)
    torch.testing.assert_close(draw(unmoved(private[0], last=contrast))[0], inked)
    one = replace(TINY.selection, candidates=1)
    first = draw(same_with(plain, selection=one))[0]
    inked = draw(same_with(plain, selection=one, finish=contrast))[0]
    torch.testing.assert_close(inked, raise_contrast(first, 8.0, contrast.middle))
    bent = unmoved(private[0], last=FinishSettings(bend=1.0))
    assert torch.equal(draw(bent)[0], draw(bent)[0])
    assert not torch.allclose(draw(bent)[0], draw(plain)[0])


def test_a_released_image_is_the_first_of_its_candidates_that_the_private_classifier_sees_as_its_label(private):
    synthesizer = unmoved(private[0])
    images, labels = draw(synthesizer, 300)
    rounds = synthesizer.settings.selection.candidates
    start, random = synthesizer.drawing.start(rounds * 300, 0)  # one seed decides all candidates
    *_, latents = synthesizer.drawing.walk(labels.repeat(rounds), start, random, None)
    candidates = synthesizer.compressor.decode(latents)
    guesses = synthesizer.selector.logits(candidates).argmax(1).view(rounds, -1)
    candidates = candidates.unflatten(0, (rounds, -1))
    told = 0
    for i, label in enumerate(labels):
        right = (guesses[:, i] == label).nonzero().flatten()
        if len(right):
            torch.testing.assert_close(images[i], candidates[right[0], i], atol=1e-5, rtol=0)
            told += int(right[0] > 0)
    assert told > 0  # some were drawn again


def test_what_is_selected_is_moved(private):
    synthesizer = private[0]
    still, labels = draw(unmoved(synthesizer))
    torch.testing.assert_close(draw(synthesizer)[0], synthesizer.transport.move(still, labels))


def test_what_is_moved_is_pushed(private):
    pushing = replace(TINY.selection, push=0.5)
    moved, labels = draw(private[0])
    pushed = same_with(private[0], selection=pushing)
    torch.testing.assert_close(draw(pushed)[0], pushed.selector.pushed(moved, labels))
    assert not torch.allclose(draw(pushed)[0], moved)
    unselected = replace(pushing, candidates=1)  # whoever does not select has no classifier that pushes
    assert torch.equal(
        draw(same_with(private[0], selection=unselected))[0],
        draw(same_with(private[0], selection=replace(TINY.selection, candidates=1)))[0],
    )


def test_a_second_fit_keeps_nothing_of_the_first(private):
    again = LatentDiffusion(SHAPE, 3, TINY, FIVE, 0)
    for seed in (5, 0):
        again.fit(PrivateData(*toy_images(seed=seed), 3, Ledger()))
    for stage in ("selection", "transport"):
        for name, value in again.state(stage).items():
            torch.testing.assert_close(value, private[0].state(stage)[name])


@pytest.mark.parametrize(
    ("off", "stage", "what"),
    [
        ({"selection": replace(TINY.selection, candidates=1)}, "selection", "selector"),
        ({"transport": replace(TINY.transport, steps=0)}, "transport", "energy"),
    ],
)
def test_what_is_switched_off_is_no_stage_and_costs_nothing(off, stage, what):
    synthesizer, ledger = fitted(settings=replace(TINY, **off))
    assert stage not in synthesizer.stages
    assert len(synthesizer.stages) == 3
    assert not [m.name for m in ledger.mechanisms if m.name.startswith(what)]
    assert 0.98 * 5.0 < ledger.epsilon(1e-5) <= 5.0


def test_a_fit_resumed_after_the_first_stage_ends_the_same(private):
    images, labels = toy_images()
    first = LatentDiffusion(SHAPE, 3, TINY, PrivacySpec(epsilon=5.0), 0)
    data = PrivateData(images, labels, 3, Ledger())
    list(first.fit_stage("compression", data))
    later = LatentDiffusion(SHAPE, 3, TINY, PrivacySpec(epsilon=5.0), 0)
    later.restore("compression", first.state("compression"))
    data = PrivateData(images, labels, 3, Ledger(data.ledger.mechanisms))
    for stage in later.stages[1:]:
        list(later.fit_stage(stage, data))
    assert data.ledger.mechanisms == private[1].mechanisms
    torch.testing.assert_close(draw(later)[0], draw(private[0])[0])


def test_restored_synthesizer_draws_the_same(private):
    again = LatentDiffusion(SHAPE, 3, TINY, None, 0)
    for stage in again.stages:
        again.restore(stage, private[0].state(stage))
    torch.testing.assert_close(draw(again)[0], draw(private[0])[0])


def test_without_a_spec_the_ledger_is_not_private():
    _, ledger = fitted(spec=None)
    assert ledger.epsilon(1e-5) == float("inf")


def test_secure_mode_cannot_be_repeated():
    spec = PrivacySpec(epsilon=5.0, secure_mode=True)
    assert not torch.allclose(draw(fitted(spec)[0])[0], draw(fitted(spec)[0])[0])


def test_secure_mode_keeps_the_training_draws_secret_too(monkeypatch):
    """An example's place in the batch decides its noise levels, so with known ones its clipping bounds nothing."""
    seen = []

    def watch(network, loss, n, mechanism, settings, noise, random):
        seen.append((random.initial_seed(), noise.is_secure))
        return iter(())

    monkeypatch.setattr("dpldm.method.training.fit", watch)
    for spec in (FIVE, FIVE, PrivacySpec(epsilon=5.0, secure_mode=True), PrivacySpec(epsilon=5.0, secure_mode=True)):
        fitted(spec)
    (first, _), (again, _), (secret, secure), (other, _) = seen
    assert first == again
    assert secure
    assert len({first, secret, other}) == 3


def test_seed_decides_the_first_weights_of_an_autoencoder():
    settings = replace(TINY, compression=replace(TINY.compression, kind="autoencoder"))
    first, again = (LatentDiffusion(SHAPE, 3, settings, FIVE, 0).compressor.state() for _ in range(2))
    for name, value in first.items():
        torch.testing.assert_close(again[name], value)


def test_untrained_network_samples_the_mixture_itself():
    """The last layer starts at zero, so before any gradient step the diffusion is exactly the private mixture."""
    synthesizer, _ = fitted(spec=None)
    synthesizer.diffusion.build_network()
    labels = torch.zeros(4000, dtype=torch.int64)
    sampling = SamplingSettings(steps=30)
    *_, latents = synthesizer.sample_latents(labels, 0, sampling)
    exact = synthesizer.mixture.sample(labels, torch.Generator().manual_seed(1))
    torch.testing.assert_close(latents.mean(0), exact.mean(0), atol=0.1, rtol=0)
    torch.testing.assert_close(latents.std(0), exact.std(0), atol=0.1, rtol=0.05)


def test_colour_images_and_odd_sides():
    images = torch.rand(900, 3, 13, 13, generator=torch.Generator().manual_seed(0))
    synthesizer = LatentDiffusion((3, 13, 13), 3, TINY, PrivacySpec(epsilon=5.0), 0)
    synthesizer.fit(PrivateData(images, torch.arange(900) % 3, 3, Ledger()))
    assert draw(synthesizer, 6)[0].shape == (6, 3, 13, 13)


def test_too_few_images_or_a_bad_delta_are_refused_before_any_read():
    images, labels = toy_images(150)
    data = PrivateData(images, labels, 3, Ledger())
    with pytest.raises(ValueError, match="at least as many images as the batch"):
        LatentDiffusion(SHAPE, 3, TINY, PrivacySpec(epsilon=5.0), 0).fit(data)
    images, labels = toy_images()
    data = PrivateData(images, labels, 3, Ledger())
    with pytest.raises(PrivacyError, match="delta"):
        LatentDiffusion(SHAPE, 3, TINY, PrivacySpec(epsilon=5.0, delta=0.01), 0).fit(data)
    assert data.reads == ()


@pytest.mark.parametrize(
    "change",
    [
        {"compression_share": 0.0},
        {"compression_share": 0.3, "mixture_share": 0.3},  # with 0.25 for selection and transport nothing is left
        {"mixture_share": -0.1},
    ],
)
def test_shares_must_leave_something_for_each_stage(change):
    with pytest.raises(ValueError, match="positive shares"):
        SynthesisSettings(**change)


@pytest.mark.parametrize("random", [FinishSettings(bend=1.0), FinishSettings(contrast=8.0, contrast_share=0.5)])
def test_chance_is_refused_where_images_must_not_be_random(random):
    with pytest.raises(ValueError, match="expected finish without chance"):
        SynthesisSettings(finish=random)


@pytest.mark.parametrize("change", [{"sampler": "magic"}, {"steps": 1}, {"guidance": float("nan")}])
def test_sampling_settings_refuse_nonsense(change):
    with pytest.raises(ValueError, match="expected"):
        SamplingSettings(**change)
