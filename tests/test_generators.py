"""Two rivals behind sanitised image gradients: what one image can move, what is charged for it, and the transport."""

import math
from dataclasses import replace

import pytest
import torch
from dp_accounting.pld import privacy_loss_distribution
from scipy.optimize import linprog, minimize

from dpldm.privacy.accounting import Ledger
from dpldm.privacy.budget import calibrate
from dpldm.privacy.checks import PrivacyError
from dpldm.privacy.guard import PrivateData
from dpldm.privacy.mechanisms import PrivacySpec
from dpldm.privacy.noise import NoiseSource, watched
from dpldm.recipes import CHOSEN_ON, gan_settings, sinkhorn_settings
from dpldm.rivals import gs_wgan, sinkhorn
from dpldm.rivals.gs_wgan import GANSettings, GradientSanitizedGAN
from dpldm.rivals.sanitised import GeneratorSettings
from dpldm.rivals.sinkhorn import Sinkhorn, SinkhornSettings

SHAPE = (1, 8, 8)
FIVE = PrivacySpec(epsilon=5.0)
SETTINGS = {
    Sinkhorn: sinkhorn_settings("smoke", CHOSEN_ON, 5.0),
    GradientSanitizedGAN: gan_settings("smoke", CHOSEN_ON, 5.0),
}
BOTH = pytest.mark.parametrize("method", list(SETTINGS))


def toy_images(n=300, shape=SHAPE, classes=3, seed=0):
    """Class c is a bright bar on a dark, noisy ground."""
    labels = torch.arange(n) % classes
    images = torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed)) * 0.2
    for c in range(classes):
        images[labels == c, :, 2 * c + 1] += 0.7
    return images, labels


def fitted(method, spec=FIVE, settings=None, seed=0, data=None):
    images, labels = data or toy_images()
    guard = PrivateData(images, labels, 3, Ledger())
    synthesizer = method(tuple(images.shape[1:]), 3, settings or SETTINGS[method], spec, seed)
    synthesizer.fit(guard)
    return synthesizer, guard.ledger


def draw(synthesizer, n=12, seed=0):
    return torch.cat(list(synthesizer.sample(torch.arange(n) % 3, seed)))


# --- transport --------------------------------------------------------------------------------------------------------


def random_costs(n, m, seed=0):
    return torch.rand(n, m, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("equal", [True, False])
@pytest.mark.parametrize(("n", "m"), [(5, 5), (4, 7), (6, 1)])
def test_transport_cost_is_the_minimum_found_by_another_solver(n, m, equal):
    """The dual of entropic transport, maximised by a general optimiser."""
    cost, regularisation = random_costs(n, m), 0.1
    masses = torch.full((m,), 1 / m, dtype=torch.float64) if equal else torch.arange(1.0, m + 1) / (m * (m + 1) / 2)

    def negative_dual(potentials):
        f, g = torch.tensor(potentials[:n]), torch.tensor(potentials[n:])
        inner = (((f[:, None] + g - cost) / regularisation).exp() * masses).sum() / n
        return -float(f.mean() + g @ masses.double() - regularisation * (inner - 1))

    best = -minimize(negative_dual, [0.0] * (n + m), method="L-BFGS-B", options={"maxiter": 2000, "ftol": 1e-14}).fun
    found = sinkhorn.transport_cost(cost, regularisation, 500, None if equal else masses)
    assert float(found) == pytest.approx(best, abs=1e-5)


def test_little_regularisation_gives_the_linear_programme():
    n, m = 5, 6
    cost = random_costs(n, m)
    rows = torch.eye(n).repeat_interleave(m, 1).numpy()
    columns = torch.eye(m).repeat(1, n).numpy()
    marginals = [*[1 / n] * n, *[1 / m] * m]
    exact = linprog(cost.flatten().numpy(), A_eq=[*rows, *columns], b_eq=marginals).fun
    plan = sinkhorn.transport_plan(cost, 1e-3, 5000)
    assert float((plan * cost).sum()) == pytest.approx(exact, abs=1e-3)
    assert float((torch.full((n, m), 1 / (n * m)) * cost).sum()) > exact + 0.05


def test_rows_of_the_plan_are_exact_and_columns_in_the_limit():
    plan = sinkhorn.transport_plan(random_costs(5, 8), 0.05, 2)
    torch.testing.assert_close(plan.sum(1), torch.full((5,), 0.2, dtype=torch.float64))
    plan = sinkhorn.transport_plan(random_costs(5, 8), 0.05, 2000)
    torch.testing.assert_close(plan.sum(0), torch.full((8,), 0.125, dtype=torch.float64))


def test_plan_survives_costs_far_above_the_regularisation():
    plan = sinkhorn.transport_plan(torch.tensor([[0.0, 5e4], [5e4, 0.0]]), 1e-2, 20)
    torch.testing.assert_close(plan, torch.eye(2) / 2)


def test_classes_of_the_private_sample_get_the_generated_shares():
    """Four of class 0 and one of class 1, against one of class 0, two of class 1 and one of 2, which is missing."""
    masses = sinkhorn.class_masses(torch.tensor([0, 1, 0, 0, 0]), torch.tensor([1, 0, 1, 2]))
    torch.testing.assert_close(masses, torch.tensor([1 / 12, 2 / 3, 1 / 12, 1 / 12, 1 / 12]))


def test_private_images_of_classes_that_are_not_generated_count_for_nothing():
    images, labels = toy_images(6)
    others = labels.masked_fill(labels == 2, 7)
    gradients = [
        sinkhorn_gradient(images[keep], labels[keep], 1e9, classes=torch.arange(6) % 2)
        for keep in (labels < 2, labels < 9)
    ]
    torch.testing.assert_close(*gradients)
    assert sinkhorn_gradient(images[others == 7], others[others == 7], 1.0).norm() == 0


def test_costs_of_a_pair_by_hand():
    settings = SinkhornSettings(l1_weight=3.0, label_weight=7.0)
    left, right = torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), 0.5)
    same, other = torch.tensor([0]), torch.tensor([1])
    assert float(sinkhorn.pair_costs(left, same, right, same, settings)) == pytest.approx(0.25 + 3 * 0.5)
    assert float(sinkhorn.pair_costs(left, same, right, other, settings)) == pytest.approx(0.25 + 3 * 0.5 + 7)


def test_gradient_agrees_with_finite_differences():
    """The whole divergence, through cost, plan and both arguments; C is so large that nothing is clipped."""
    images, labels = toy_images(7)
    images = images.double()
    generated = torch.rand(5, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    fresh, classes = generated[:2].flip(0).clone(), torch.arange(5) % 3
    settings = replace(SETTINGS[Sinkhorn], iterations=800, clip_norm=1e9, regularisation=0.05, label_weight=0.1)
    gradient = Sinkhorn(SHAPE, 3, settings, FIVE, 0).clipped_gradient(generated, classes, fresh, images, labels)

    def divergence(x):
        others = torch.cat([fresh, generated[2:]])
        costs = [sinkhorn.pair_costs(x, classes, y, k, settings) for y, k in ((images, labels), (others, classes))]
        shares = torch.tensor([2 / 5 / 3, 2 / 5 / 2, 1 / 5 / 2], dtype=torch.float64)  # 3, 2, 2 become 2, 2, 1 of 5
        to_private, to_others = (
            sinkhorn.transport_cost(cost, 0.05, 800, mass)
            for cost, mass in zip(costs, (shares[labels], None), strict=True)
        )
        return float(to_private - to_others)

    step = 1e-5
    for place in [(0, 0, 1, 1), (1, 0, 4, 6), (2, 0, 3, 3), (4, 0, 7, 0)]:
        move = torch.zeros_like(generated)
        move[place] = step
        slope = (divergence(generated + move) - divergence(generated - move)) / (2 * step)
        assert float(gradient[place]) / generated.numel() == pytest.approx(slope, rel=1e-3, abs=1e-8)


# --- what one image can move ------------------------------------------------------------------------------------------


def sinkhorn_gradient(private, labels, clip_norm, classes=None, **changes):
    settings = replace(SETTINGS[Sinkhorn], clip_norm=clip_norm, iterations=10, **changes)
    generated = torch.rand(6, *SHAPE, generator=torch.Generator().manual_seed(1))
    classes = torch.arange(6) % 3 if classes is None else classes
    return Sinkhorn(SHAPE, 3, settings, FIVE, 0).clipped_gradient(generated, classes, generated[:1], private, labels)


def test_sinkhorn_gradient_stays_in_the_ball_whatever_is_added():
    clip_norm, (images, labels) = 0.5, toy_images(8)
    images[0], labels[0] = 1e20, 2  # an image out of range, too: the bound may not rest on a check
    for count in range(9):
        gradient = sinkhorn_gradient(images[count:], labels[count:], clip_norm)
        assert gradient.norm() <= clip_norm
    assert sinkhorn_gradient(images[:0], labels[:0], clip_norm).norm() == 0


def test_one_image_moves_every_generated_image():
    """Why the sensitivity is that of the whole batch: no row of the gradient stays as it was."""
    images, labels = toy_images(6)
    images[0] = 1 - images[0]
    smooth = {"label_weight": 0.0, "regularisation": 0.1}
    change = sinkhorn_gradient(images, labels, 1e9, **smooth) - sinkhorn_gradient(images[1:], labels[1:], 1e9, **smooth)
    assert (change.flatten(1).norm(dim=1) > 0).all()


def test_one_image_can_move_the_clipped_gradient_by_nearly_the_declared_sensitivity():
    """One white image against one black one: g changes its direction, so that a declared C would be too little."""
    white, black = torch.ones(1, *SHAPE), torch.zeros(1, *SHAPE)
    label = torch.zeros(1, dtype=torch.int64)
    settings = replace(SETTINGS[Sinkhorn], clip_norm=1.0)
    grey = torch.full((4, *SHAPE), 0.5)
    classes = torch.zeros(4, dtype=torch.int64)
    synthesizer = Sinkhorn(SHAPE, 3, settings, FIVE, 0)
    gradients = [synthesizer.clipped_gradient(grey, classes, grey[:0], only, label) for only in (white, black)]
    assert 1.9 < (gradients[0] - gradients[1]).norm() <= synthesizer.template(100).sensitivity == 2.0


def test_discriminator_gradients_stay_in_the_ball_and_can_be_opposite():
    settings = GANSettings(parts=2, width=4, clip_norm=0.7)
    images, labels = toy_images(6)
    random = torch.Generator().manual_seed(0)
    rows = []
    for factor in (1e6, -1e6):  # two trainings may end anywhere
        torch.manual_seed(0)
        discriminator = gs_wgan.Discriminator(images, labels, 3, settings, random)
        with torch.no_grad():
            discriminator.network[-1].weight.mul_(factor)
        rows.append(discriminator.gradient(images, labels))
    assert all((gradient.flatten(1).norm(dim=1) <= 0.7).all() for gradient in rows)
    declared = GradientSanitizedGAN(
        SHAPE, 3, replace(settings, generator=GeneratorSettings(images=6)), FIVE, 0
    ).template(100)
    assert 0.99 * declared.sensitivity < (rows[0] - rows[1]).norm() <= declared.sensitivity
    assert declared.sensitivity == pytest.approx(2 * 0.7 * math.sqrt(6))


@BOTH
def test_noise_of_a_release_is_what_the_ledger_says(method):
    """All that is added to the gradients, over all steps: a sample of n has a standard error of σ/√2n."""
    with watched() as seen:
        synthesizer, ledger = fitted(method)
    added = [one.released - one.value for one in seen]
    (mechanism,) = ledger.mechanisms
    noise, std = torch.stack(added).flatten(), mechanism.noise_multiplier * mechanism.sensitivity
    releases = synthesizer.generator_settings.steps
    assert len(added) == releases
    assert mechanism.steps == releases * (2 if method is GradientSanitizedGAN else 1)
    assert float(noise.std()) == pytest.approx(std, abs=5 * std / math.sqrt(2 * len(noise)))
    assert abs(float(noise.mean())) < 5 * std / math.sqrt(len(noise))


def test_private_samples_are_poisson(monkeypatch):
    """Each batch is a Poisson sample of the declared rate: its size has the mean and the variance of a binomial."""
    sizes = []
    whole = Sinkhorn.clipped_gradient

    def watch(self, generated, labels, fresh, private, private_labels):
        sizes.append(len(private))
        return whole(self, generated, labels, fresh, private, private_labels)

    monkeypatch.setattr(Sinkhorn, "clipped_gradient", watch)
    settings = replace(
        SETTINGS[Sinkhorn], generator=replace(SETTINGS[Sinkhorn].generator, steps=400), batch=3, iterations=1
    )
    _, ledger = fitted(Sinkhorn, PrivacySpec(noise_multiplier=1.0), settings)
    found, variance = torch.tensor(sizes, dtype=torch.float64), 3 * (1 - 3 / 300)
    assert ledger.mechanisms[0].sample_rate == pytest.approx(3 / 300)
    assert float(found.mean()) == pytest.approx(3, abs=5 * math.sqrt(variance / 400))
    assert float(found.var()) == pytest.approx(variance, rel=5 * math.sqrt(2 / 400 + 1 / (400 * variance)))
    assert 0 in sizes  # the empty batch is met, and takes its step


# --- what is charged --------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("epsilon", [0.5, 10.0])
def test_spent_epsilon_is_within_the_target_and_an_independent_accountant_agrees(method, epsilon):
    _, ledger = fitted(method, PrivacySpec(epsilon=epsilon))
    assert 0.98 * epsilon < ledger.epsilon(1e-5) <= epsilon
    assert ledger.epsilon(1e-5, "pld") == pytest.approx(ledger.epsilon(1e-5), rel=0.01)


@pytest.mark.parametrize("epsilon", [1.0, 10.0])
def test_two_charges_a_step_cover_one_removal_and_one_addition(epsilon):
    """What GS-WGAN's analysis needs, composed by dp-accounting, against what the ledger reports for 2T steps."""
    settings = replace(gan_settings("quick", CHOSEN_ON, epsilon), generator=GeneratorSettings(steps=1000))
    template = GradientSanitizedGAN(SHAPE, 3, settings, FIVE, 0).template(60_000)
    mechanism = calibrate([], template, epsilon, 1e-5)
    both = privacy_loss_distribution.from_gaussian_mechanism(
        mechanism.noise_multiplier, sampling_prob=mechanism.sample_rate, value_discretization_interval=1e-3
    ).self_compose(mechanism.steps // 2)
    removed, added = both._pmf_remove, both._pmf_add  # one direction each: no public name for it
    assert removed.compose(added).get_epsilon_for_delta(1e-5) <= Ledger([mechanism]).epsilon(1e-5) * 1.005


def test_which_discriminator_learns_does_not_depend_on_the_secret_picks(monkeypatch):
    """The states of all discriminators must tell nothing about which ones were picked."""
    settings, order = SETTINGS[GradientSanitizedGAN], []
    train = GradientSanitizedGAN._train

    def watch(self, discriminator, updates, random):
        order.append(len(discriminator.images))
        train(self, discriminator, updates, random)

    monkeypatch.setattr(GradientSanitizedGAN, "_train", watch)
    orders = []
    for picks in (lambda count, noise: 0, lambda count, noise: count - 1):
        monkeypatch.setattr(gs_wgan, "pick", picks)
        order.clear()
        fitted(GradientSanitizedGAN)
        orders.append(list(order))
    assert orders[0] == orders[1]
    assert orders[0] == [*orders[0][: settings.parts], *orders[0][: settings.parts], orders[0][0]]


def test_picks_are_uniform():
    noise = NoiseSource.seeded(0)
    counts = torch.bincount(torch.tensor([gs_wgan.pick(4, noise) for _ in range(2000)]), minlength=4)
    assert (counts - 500).abs().max() < 5 * math.sqrt(2000 * 0.25 * 0.75)


# --- behind the protocol ----------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 10, 10)])
def test_samples_are_images_in_the_labels_order_whatever_the_batch(method, shape):
    synthesizer, _ = fitted(method, data=toy_images(shape=shape))
    images = draw(synthesizer)
    assert images.shape == (12, *shape)
    assert 0 <= images.min() <= images.max() <= 1
    settings = replace(SETTINGS[method], generator=replace(SETTINGS[method].generator, sampling_batch=5))
    assert draw(fitted(method, settings=settings, data=toy_images(shape=shape))[0]).shape == (12, *shape)


@BOTH
def test_seed_decides_and_a_restored_synthesizer_draws_the_same(method):
    first = fitted(method)[0]
    images = draw(first)
    torch.testing.assert_close(draw(fitted(method)[0]), images)
    assert not torch.allclose(draw(fitted(method, seed=1)[0]), images)
    assert not torch.allclose(draw(first, seed=1), images)
    again = method(SHAPE, 3, SETTINGS[method], None, 7)
    again.restore("generator", first.state("generator"))
    torch.testing.assert_close(draw(again), images)


@BOTH
def test_state_holds_the_generator_and_nothing_private(method):
    synthesizer, _ = fitted(method)
    assert set(synthesizer.state("generator")) == set(synthesizer.network.state_dict())
    assert all(len(value) < 300 for value in synthesizer.state("generator").values())


@BOTH
def test_without_a_spec_the_ledger_is_not_private_and_secure_runs_differ(method):
    assert fitted(method, None)[1].epsilon(1e-5) == math.inf
    secure = PrivacySpec(epsilon=5.0, secure_mode=True)
    assert not torch.allclose(draw(fitted(method, secure)[0]), draw(fitted(method, secure)[0]))


def test_sinkhorn_without_noise_learns_the_classes():
    """The bright bar of each class is where it belongs."""
    generator = replace(SETTINGS[Sinkhorn].generator, steps=250, images=15, learning_rate=1e-2, ema_decay=0.9)
    settings = SinkhornSettings(generator=generator, batch=60)
    images = draw(fitted(Sinkhorn, None, settings)[0], 60)
    bars = torch.stack([images[:, 0, 2 * c + 1].mean(1) for c in range(3)], 1)
    assert (bars.argmax(1) == torch.arange(60) % 3).float().mean() > 0.9


def test_gan_without_noise_learns_the_classes():
    generator = GeneratorSettings(latent=4, width=32, steps=300, images=15, learning_rate=2e-3, ema_decay=0.0)
    settings = GANSettings(generator, parts=2, width=32, warm_up_updates=50, updates=2, batch=20, learning_rate=3e-3)
    images = draw(fitted(GradientSanitizedGAN, None, settings)[0], 60)
    bars = torch.stack([images[:, 0, 2 * c + 1].mean(1) for c in range(3)], 1)
    assert (bars.argmax(1) == torch.arange(60) % 3).float().mean() > 0.9


def test_a_part_without_images_is_no_error():
    settings = replace(SETTINGS[GradientSanitizedGAN], parts=25)
    images = draw(fitted(GradientSanitizedGAN, settings=settings, data=toy_images(30))[0])
    assert images.isfinite().all()


@BOTH
def test_bad_input_is_refused_before_any_read(method):
    images, labels = toy_images(3)
    data = PrivateData(images, labels, 3, Ledger())
    with pytest.raises(ValueError, match="expected at least"):
        method(SHAPE, 3, SETTINGS[method], FIVE, 0).fit(data)
    data = PrivateData(*toy_images(), 3, Ledger())
    with pytest.raises(PrivacyError, match="delta"):
        method(SHAPE, 3, SETTINGS[method], PrivacySpec(epsilon=5.0, delta=0.01), 0).fit(data)
    assert data.reads == ()
    with pytest.raises(ValueError, match="even sides, got 9 x 8"):
        method((1, 9, 8), 3, SETTINGS[method], FIVE, 0)


@pytest.mark.parametrize(
    ("settings", "change"),
    [
        (GeneratorSettings, {"steps": 0}),
        (GeneratorSettings, {"ema_decay": 1.0}),
        (SinkhornSettings, {"regularisation": 0.0}),
        (SinkhornSettings, {"fresh_share": 1.5}),
        (SinkhornSettings, {"l1_weight": float("nan")}),
        (GANSettings, {"parts": 1}),
        (GANSettings, {"clip_norm": -1.0}),
    ],
)
def test_settings_refuse_nonsense_in_one_line(settings, change):
    with pytest.raises(ValueError, match=r"^expected [^\n]+, got [^\n]+$"):
        settings(**change)


@pytest.mark.parametrize("of_profile", [sinkhorn_settings, gan_settings])
def test_profiles_grow(of_profile):
    smoke, quick, paper = (
        of_profile(profile, CHOSEN_ON, 10.0).generator.steps for profile in ("smoke", "quick", "paper")
    )
    assert smoke < quick < paper
