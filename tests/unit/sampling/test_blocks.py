"""Two-level argmax and inverse CDF agree with the plain ones."""

import pytest
import torch

from parallel.sampling.blocks import BLOCK_WIDTH, block_sums, first_over, pick, row_max

WIDTHS = (1, 2, BLOCK_WIDTH - 1, BLOCK_WIDTH, BLOCK_WIDTH + 1, 3 * BLOCK_WIDTH + 17)


@pytest.mark.parametrize("width", WIDTHS)
def test_row_max_is_argmax_and_equals_go_to_the_first(width: int):
    # Few distinct values, so that most rows have several maxima.
    x = torch.randint(0, 4, (64, width), generator=torch.Generator().manual_seed(0)).float()
    values, places = row_max(x)
    assert torch.equal(values, x.amax(1))
    assert torch.equal(places, x.argmax(1))


@pytest.mark.parametrize("column", [0, BLOCK_WIDTH, 2 * BLOCK_WIDTH + 3])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_row_max_shows_a_number_that_is_not_finite(column: int, value: float):
    x = torch.zeros(2, 2 * BLOCK_WIDTH + 5)
    x[1, column] = value
    values, _ = row_max(x)
    assert torch.isfinite(values).tolist() == [True, False]


@pytest.mark.parametrize("width", WIDTHS)
def test_pick_follows_the_running_sum(width: int):
    weights = torch.rand(50, width, generator=torch.Generator().manual_seed(1))
    sums = weights.double().cumsum(1)
    target = torch.linspace(0, 0.999, 50).double() * sums[:, -1]
    expected = (sums <= target[:, None]).sum(1)
    assert torch.equal(pick(weights, block_sums(weights), target), expected)


def test_a_weight_of_zero_is_never_picked():
    weights = torch.zeros(5, 2 * BLOCK_WIDTH + 9)
    weights[:, [3, BLOCK_WIDTH + 1]] = torch.tensor([1.0, 2.0])
    target = torch.tensor([0.0, 1.0, 2.999999, 3.0, 4.0], dtype=torch.float64)
    places = pick(weights, block_sums(weights), target)
    assert places.tolist() == [3, *[BLOCK_WIDTH + 1] * 4]


def test_first_over_says_what_lies_before():
    index, before = first_over(torch.tensor([[1.0, 2.0, 4.0]], dtype=torch.float64), torch.tensor([3.5]).double())
    assert (index.item(), before.item()) == (2, 3.0)
