"""Random numbers by (seed, position)."""

import numpy as np

from parallel.sampling.random import uniforms


def numbers(seed: int, positions: np.ndarray) -> np.ndarray:
    return uniforms(np.full(len(positions), seed, np.uint64), positions)


def test_a_number_depends_on_its_seed_and_position_only():
    alone = uniforms(np.array([7], np.uint64), np.array([100]))
    in_a_batch = uniforms(np.array([1, 7, 2**63 - 1], np.uint64), np.array([100, 100, 5]))
    assert alone[0] == in_a_batch[1]


def splitmix64(state: int) -> int:
    """Return the output for a state, in Python's own integers."""
    mask = 2**64 - 1
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
    return state ^ (state >> 31)


def test_numbers_are_splitmix64_and_never_change_between_versions():
    # A stream resumed on a newer build goes on as it would have. The first output for seed 1234567 is published.
    gamma = 0x9E3779B97F4A7C15
    assert splitmix64((1234567 + gamma) % 2**64) == 6457827717110365317
    for seed in (0, 42, 2**63 - 1):
        expected = [splitmix64((splitmix64(seed) + gamma * (i + 1)) % 2**64) >> 11 for i in range(5)]
        assert (numbers(seed, np.arange(5)) * 2.0**53).tolist() == expected


def test_numbers_are_uniform_over_positions_and_over_seeds():
    many = np.arange(200_000)
    for values in (numbers(0, many), uniforms(many.astype(np.uint64), np.full(len(many), 17))):
        assert values.min() >= 0 and values.max() < 1
        counts = np.bincount((values * 256).astype(int), minlength=256)
        expected = len(many) / 256
        chi_square = ((counts - expected) ** 2 / expected).sum()
        # 255 degrees of freedom: mean 255, standard deviation 22.6.
        assert abs(chi_square - 255) < 6 * 22.6


def test_neighbouring_positions_and_seeds_are_uncorrelated():
    many = np.arange(100_000)
    base = numbers(3, many)
    for other in (numbers(3, many + 1), numbers(4, many), numbers(3 + 2**32, many)):
        assert abs(np.corrcoef(base, other)[0, 1]) < 6 / np.sqrt(len(many))
