"""Right answers in another style and classic mistakes, for assignments 2 to 4: assignment, answer, code, points, words.

``words``: of the sentence that names the mistake; empty for a right answer. Assignment 1 has its own in submissions.py.
"""

LENGTHS = "np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-30)"
SHORT = f"    short = rows * np.minimum(1, clip_norm / {LENGTHS})\n"
MOMENTS = "def second_moments(rows, clip_norm):\n"
NOISE = "def symmetric_noise(size, std, normal):\n"
GRADIENT = "def private_gradient(gradients, clip_norm, noise_multiplier, expected_batch, normal):\n"
PARTS = "def gradient_from_parts(parts, clip_norm, noise_multiplier, expected_batch, normal):\n"
CLIP = "    clip = lambda rows: rows / torch.tensor([max(1, float(row.norm()) / clip_norm) for row in rows])[:, None]\n"
LOSSES = "def denoising_losses(denoise, latents, sigmas, noise):\n"
EACH = (
    "    result = []\n"
    "    for x, levels, draws in zip(latents, sigmas, noise):\n"
    "        guess = denoise(x + levels[:, None] * draws, levels)\n"
    "        result.append({reduced})\n"
    "    return torch.stack(result)\n"
)
FORMULA = "((1 + levels[:, None] ** -2) * (guess - x) ** 2)"
SAMPLE = "def sample(denoise, noise, sigmas):\n"
RUN = "def training_epsilon(noise_multiplier, sample_rate, steps, delta):\n"
ACCOUNTED = (
    "    from dp_accounting import GaussianDpEvent as G, PoissonSampledDpEvent as P, SelfComposedDpEvent as S\n"
    "    from dp_accounting.rdp import RdpAccountant\n"
    "    return RdpAccountant().compose({event}).get_epsilon(delta)\n"
)
FRECHET = (
    "def frechet_distance(a, b):\n"
    "    s, t = np.cov(a.T, bias=True), np.cov(b.T, bias=True)\n"
    "    gap = ((a.mean(0) - b.mean(0)) ** 2).sum()\n"
)
BOUND = "def epsilon_lower(false_positive_rate, false_negative_rate, delta):\n"
RATE = "def rate_upper(errors, trials, confidence):\n"
CAUGHT = "def is_broken(with_record, without_record, epsilon, delta):\n"

ANSWERS: list[tuple[str, str, str, float, str]] = [
    # right, in another style
    (
        "2-compression",
        "second-moments",
        MOMENTS + "    total = np.zeros((rows.shape[1],) * 2)\n    for row in rows:\n"
        "        row = row * min(1, clip_norm / max(np.linalg.norm(row), 1e-30))\n        total += np.outer(row, row)\n"
        "    return total",
        4,
        "",
    ),
    ("2-compression", "symmetric-noise", NOISE + "    e = normal((size, size), std)\n    return (e + e.T) / 2", 4, ""),
    ("2-compression", "symmetric-noise", NOISE + "    e = normal((size, size), std)\n    return (e + e.T) / 2**0.5",
     4, ""),
    (
        "2-compression",
        "components",
        "import torch\ndef components(noisy_moments, dimensions):\n"
        "    values, vectors = torch.linalg.eigh(torch.as_tensor(noisy_moments))\n"
        "    return -vectors[:, values.argsort(descending=True)[:dimensions]]",
        3,
        "",
    ),
    ("3-diffusion", "private-gradient", GRADIENT + CLIP + "    g = clip(gradients).sum(0)\n"
     "    return g / expected_batch + normal(g.shape, noise_multiplier * clip_norm / expected_batch)", 5, ""),
    ("3-diffusion", "microbatches", PARTS + CLIP + "    total = sum(clip(part).sum(0) for part in parts)\n"
     "    std = noise_multiplier * clip_norm / len(parts) ** 0.5\n"
     "    return (total + sum(normal(total.shape, std) for part in parts)) / expected_batch", 4, ""),
    ("3-diffusion", "losses", LOSSES + EACH.format(reduced=f"{FORMULA}.mean()"), 4, ""),
    ("3-diffusion", "sampling", "def poisson_batch(uniforms, sample_rate):\n"
     "    return torch.nonzero(uniforms < sample_rate)", 2, ""),
    ("3-diffusion", "training-epsilon", RUN + ACCOUNTED.format(event="S(P(sample_rate, G(noise_multiplier)), steps)"),
     3, ""),
    ("4-evaluation", "frechet", FRECHET + "    w = np.linalg.eigvals(s @ t).real.clip(0)\n"
     "    return gap + np.trace(s + t) - 2 * np.sqrt(w).sum()", 4, ""),
    ("4-evaluation", "membership", "def membership_auc(member_scores, other_scores):\n    n, m = len(member_scores), "
     "len(other_scores)\n    return stats.mannwhitneyu(member_scores, other_scores).statistic / (n * m)", 3, ""),
    # wrong
    ("2-compression", "second-moments", MOMENTS + "    return rows.T @ rows", 1, "not clipped"),
    ("2-compression", "second-moments", MOMENTS + SHORT + "    short = short - short.mean(0)\n"
     "    return short.T @ short", 1, "mean of the rows"),
    ("2-compression", "second-moments", MOMENTS + SHORT.replace("1, clip", "1e9, clip") + "    return short.T @ short",
     1, "same length"),
    ("2-compression", "moment-sensitivity", "def moment_sensitivity(clip_norm, relation):\n    return clip_norm * "
     "(1 if relation == 'add-remove' else 2**0.5)", 0, "squared"),
    ("2-compression", "moment-sensitivity", "def moment_sensitivity(clip_norm, relation):\n    return clip_norm**2 * "
     "(1 if relation == 'add-remove' else 2)", 1, "no two rows reach it"),
    ("2-compression", "symmetric-noise", NOISE + "    return normal((size, size), std)", 1, "not symmetric"),
    ("2-compression", "symmetric-noise", NOISE + "    e = normal((size, size), std)\n    return e + e.T", 1, "grown"),
    (
        "2-compression",
        "symmetric-noise",
        NOISE + "    e = np.triu(normal((size, size), std))\n    return e + e.T",
        3,
        "The diagonal has its noise twice",
    ),
    ("2-compression", "components", "def components(noisy_moments, dimensions):\n"
     "    w, v = np.linalg.eigh(noisy_moments)\n    return v[:, np.argsort(-abs(w))[:dimensions]]", 0, "negative"),
    ("2-compression", "components", "def components(noisy_moments, dimensions):\n"
     "    return np.linalg.eigh(noisy_moments)[1][:, :dimensions]", 0, "smallest"),
    ("2-compression", "reconstruct", "def reconstruct(rows, centre, vectors):\n"
     "    return (rows - centre) @ vectors @ vectors.T", 0, "not added again"),
    ("2-compression", "dimensions", "def dimensions_above_noise(eigenvalues, std):\n"
     "    return int((np.abs(eigenvalues) > 2 * std * len(eigenvalues) ** 0.5).sum())", 0, "negative"),
    ("2-compression", "own-noise", "own_moment_std = 4 * gaussian_noise_multiplier(epsilon, 1e-5)", 0, "not composed"),
    ("3-diffusion", "private-gradient", GRADIENT + "    g = gradients.mean(0)\n    g = g * min(1, clip_norm / "
     "float(g.norm().clamp_min(1e-9)))\n    return g + normal(g.shape, noise_multiplier * clip_norm / expected_batch)",
     2, "after averaging"),
    ("3-diffusion", "private-gradient", GRADIENT + CLIP + "    g = clip(gradients).sum(0)\n"
     "    return (g + normal(g.shape, noise_multiplier * clip_norm)) / len(gradients)", 0, "batch is private"),
    ("3-diffusion", "private-gradient", GRADIENT + CLIP + "    if len(gradients) == 0:\n        return torch.zeros("
     "gradients.shape[1])\n    g = clip(gradients).sum(0)\n"
     "    return (g + normal(g.shape, noise_multiplier * clip_norm)) / expected_batch", 4, "needs noise too"),
    ("3-diffusion", "private-gradient", GRADIENT + CLIP + "    g = sum(row for row in clip(gradients))\n"
     "    return (g + normal(g.shape, noise_multiplier * clip_norm)) / expected_batch", 4, "With an empty batch"),
    ("3-diffusion", "microbatches", PARTS + CLIP + "    total = sum(torch.stack(list(clip(part))).sum(0) for part in "
     "parts)\n    return (total + normal(total.shape, noise_multiplier * clip_norm)) / expected_batch", 2,
     "With an empty part"),
    ("3-diffusion", "microbatches", PARTS + CLIP + "    return sum(clip(part).sum(0) + normal(part.shape[1:], "
     "noise_multiplier * clip_norm) for part in parts) / expected_batch", 2, "per microbatch"),
    ("3-diffusion", "losses", LOSSES + "    latents = (latents - latents.mean(0)) / latents.std(0)\n"
     + EACH.format(reduced=f"{FORMULA}.mean()"), 0, "batch statistics"),
    ("3-diffusion", "losses", LOSSES + "    n, K, d = noise.shape\n    x, s = latents.repeat(K, 1), sigmas.flatten()\n"
     "    guess = denoise(x + s[:, None] * noise.reshape(-1, d), s)\n"
     "    return ((1 + s**-2)[:, None] * (guess - x) ** 2).reshape(n, -1).mean(1)", 0, "order in which"),
    ("3-diffusion", "losses", LOSSES + EACH.format(reduced=f"{FORMULA}.mean(1).sum()"), 1, "added up and not averaged"),
    ("3-diffusion", "losses", LOSSES + EACH.format(reduced="((guess - x) ** 2).mean()"), 1, "weight"),
    ("3-diffusion", "sampling", "def poisson_batch(uniforms, sample_rate):\n"
     "    return uniforms.argsort()[: round(len(uniforms) * sample_rate)].sort().values", 0, "fixed size"),
    ("3-diffusion", "sampling", "def poisson_batch(uniforms, sample_rate):\n    return uniforms < sample_rate", 0,
     "positions are asked for"),
    ("3-diffusion", "training-epsilon", RUN + ACCOUNTED.format(event="P(sample_rate, G(noise_multiplier))"), 0,
     "not composed"),
    ("3-diffusion", "sampler", SAMPLE + "    x = noise\n    for now, following in pairwise(sigmas):\n        x = x + "
     "(following - now) * (x - denoise(x, now.expand(len(x)))) / now\n    return x", 0, "not scaled"),
    ("3-diffusion", "own-noise", "own_noise_multiplier = 2.0", 0, "not composed"),
    ("4-evaluation", "frechet", FRECHET + "    return gap + np.trace(s + t - 2 * np.sqrt(abs(s @ t)))", 0,
     "each entry"),
    ("4-evaluation", "downstream", "def downstream_accuracy(synthetic, synthetic_labels, real, real_labels):\n"
     "    means = np.stack([real[real_labels == k].mean(0) for k in range(3)])\n"
     "    return ((real[:, None] - means) ** 2).sum(2).argmin(1).__eq__(real_labels).mean()", 0, "trained on real"),
    ("4-evaluation", "downstream", "def downstream_accuracy(synthetic, synthetic_labels, real, real_labels):\n"
     "    means = np.stack([synthetic[synthetic_labels == k].mean(0) for k in range(3)])\n"
     "    return 100 * (((real[:, None] - means) ** 2).sum(2).argmin(1) == real_labels).mean()", 0, "percentage"),
    ("4-evaluation", "frechet", FRECHET + "    return gap + np.trace(s + t - 2 * linalg.sqrtm(s @ t) * (1 + 0j))", 0,
     "expected real ones"),
    ("4-evaluation", "membership", "def membership_auc(member_scores, other_scores):\n"
     "    return (member_scores[:, None] > other_scores).mean()", 0, "tie counts nothing"),
    ("4-evaluation", "bound", BOUND + "    return max(0, math.log(max(1e-9, 1 - delta - false_positive_rate) / "
     "false_negative_rate))", 2, "Only one"),
    ("4-evaluation", "bound", BOUND + "    a, b = false_positive_rate, false_negative_rate\n"
     "    return max(0, math.log((1 - delta - a) / b), math.log((1 - delta - b) / a))", 3,
     "Where nothing is ruled out:"),
    ("4-evaluation", "rate", RATE + "    return errors / trials", 1, "that was seen"),
    ("4-evaluation", "caught", CAUGHT + "    return True", 0, "the same whatever"),
    ("4-evaluation", "caught", CAUGHT + "    return bool(np.mean(with_record) > np.mean(without_record) + 2)", 2,
     "not noticed"),
]  # fmt: skip
