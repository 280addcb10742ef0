"""Transport: the map between Gaussians by hand, what is charged, and that moved images have the private moments."""

from dataclasses import replace

import pytest
import torch

from dpldm.method.edge_transport import Transport, TransportSettings, _between
from dpldm.method.edges import whitened
from dpldm.method.mixture import MixtureSettings
from dpldm.privacy.accounting import Ledger
from dpldm.privacy.budget import Allowance
from dpldm.privacy.guard import PrivateData
from dpldm.privacy.mechanisms import gaussian_noise_multiplier
from dpldm.privacy.noise import NoiseSource

TINY = TransportSettings(dim=6, images=300, steps=12, rate=0.3)
ALLOWANCE = Allowance(gaussian_noise_multiplier(5.0, 1e-5), 1e-5)


def bars(n, strength, side=12, seed=0):
    """Class 0 has a bar from left to right, class 1 from top to bottom; ``strength`` is its brightness."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 2
    images = 0.1 * torch.rand(n, 1, side, side, generator=random)
    places = torch.randint(3, side - 3, (n,), generator=random)
    for i, (label, place) in enumerate(zip(labels.tolist(), places.tolist(), strict=True)):
        bar = images[i, 0, place] if label == 0 else images[i, 0, :, place]
        bar += strength * (0.5 + 0.5 * torch.rand((), generator=random))
    return images.clamp(0, 1), labels


def fitted(settings=TINY, allowance=ALLOWANCE, n=2_000, seed=0):
    images, labels = bars(n, 0.9, seed=seed)
    data = PrivateData(images, labels, 2, Ledger())
    transport = Transport(2, settings)
    assert list(transport.fit(data, lambda: bars(300, 0.3, seed=9), allowance, NoiseSource.seeded(seed))) == [1, 2]
    return transport, data


def test_map_takes_one_covariance_to_the_other_and_is_symmetric():
    random = torch.Generator().manual_seed(0)
    source, target = (torch.randn(40, 5, generator=random).T.cov() for _ in range(2))
    chosen = _between(source, target)
    torch.testing.assert_close(chosen @ source @ chosen.T, target, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(chosen, chosen.T)
    torch.testing.assert_close(_between(source, source), torch.eye(5), atol=1e-4, rtol=0)


def test_what_is_charged_is_what_was_announced_and_uses_the_allowance_up():
    transport, data = fitted()
    assert list(data.ledger.mechanisms) == transport.mechanisms(ALLOWANCE)
    assert [m.name for m in data.ledger.mechanisms] == ["energy second moments", "energy sums"]
    assert {m.stage for m in data.ledger.mechanisms} == {"transport"}
    assert data.ledger.epsilon(1e-5) == pytest.approx(5.0, rel=1e-3)


def test_moved_images_have_moments_nearer_to_the_private_ones():
    transport, _ = fitted(allowance=Allowance(0.0, 1e-5), settings=replace(TINY, moments=MixtureSettings(1, 1, 9.0)))
    images, labels = bars(600, 0.3, seed=4)
    moved = transport.move(images, labels)
    assert moved.shape == images.shape
    assert 0 <= moved.min() <= moved.max() <= 1
    private, classes = bars(2_000, 0.9)

    def moments(some, kinds):
        rows = whitened(some, transport.mean, transport.axes)
        return torch.stack([torch.cat([rows[kinds == c].mean(0)[None], rows[kinds == c].T.cov()]) for c in (0, 1)])

    wanted = moments(private, classes)
    before, after = ((moments(some, labels) - wanted).norm() for some in (images, moved))
    assert after < 0.5 * before


def test_moving_depends_on_the_class_and_not_on_the_rest_of_the_batch():
    transport, _ = fitted()
    images, labels = bars(20, 0.3, seed=4)
    moved = transport.move(images, labels)
    torch.testing.assert_close(transport.move(images[3:5], labels[3:5]), moved[3:5], atol=1e-4, rtol=0)
    assert not torch.allclose(transport.move(images, 1 - labels), moved, atol=1e-2)


def test_moving_works_where_gradients_are_off_and_leaves_none():
    transport, _ = fitted()
    with torch.no_grad():
        moved = transport.move(*bars(4, 0.3))
    assert not moved.requires_grad


def test_many_classes_and_features_need_more_images():
    assert Transport(2, replace(TINY, images=10)).images_needed == 20 * 6 * 2
    assert Transport(2, TINY).images_needed == 300


def test_no_step_moves_nothing():
    transport, _ = fitted(replace(TINY, steps=0))
    images, labels = bars(10, 0.3)
    assert torch.equal(transport.move(images, labels), images)


def test_state_goes_there_and_back():
    transport, _ = fitted()
    again = Transport(2, TINY)
    again.restore(transport.state())
    images, labels = bars(10, 0.3)
    assert torch.equal(again.move(images, labels), transport.move(images, labels))


@pytest.mark.parametrize(
    "change",
    [{"steps": -1}, {"dim": 0}, {"dim": 1226}, {"images": 0}, {"share": 1.0}, {"rate": 0.0}, {"momentum": 1.0},
     {"moments": MixtureSettings(2, 2)}],
)  # fmt: skip
def test_settings_refuse_nonsense(change):
    with pytest.raises(ValueError, match="expected"):
        TransportSettings(**change)
