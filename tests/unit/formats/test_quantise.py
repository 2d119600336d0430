"""Eight bits from floats: each weight within half a step, a slice the same as in the whole, broken stays broken."""

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize

from parallel.formats.kinds import GROUP_SIZE, QuantFormat
from parallel.formats.quantise import quantise_int8
from parallel.formats.quantised import QuantisedMatrix


def quantised(weight_RI: torch.Tensor) -> QuantisedMatrix:
    matrix = quantise_int8(weight_RI)
    assert matrix is not None
    return matrix


def random_weight(num_outputs: int, num_inputs: int, spread: float = 0.02) -> torch.Tensor:
    return spread * torch.randn(num_outputs, num_inputs, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("spread", [0.002, 0.02, 30.0])
def test_every_weight_is_within_half_a_step(dtype: torch.dtype, spread: float) -> None:
    weight_RI = random_weight(700, 416, spread).to(dtype)
    matrix = quantised(weight_RI)
    assert (matrix.format, matrix.shape, matrix.minimums_RG) == (QuantFormat.INT8, (700, 416), None)
    error_RGI = (matrix.dequantised() - weight_RI.float()).abs().unflatten(1, (-1, GROUP_SIZE))
    # The largest weight of a group is cut to code 127, where rounding the scale to float16 made the step smaller.
    step_RG1 = matrix.scales_RG.float().unsqueeze(-1)
    assert (error_RGI <= step_RG1 * (0.5 + 127 * 2**-11)).all()


def test_codes_are_those_of_ggml_but_for_rounding() -> None:
    weight_RI = random_weight(64, 512)
    theirs = torch.from_numpy(
        dequantize(quantize(weight_RI.numpy(), GGMLQuantizationType.Q8_0), GGMLQuantizationType.Q8_0)
    )
    ours = quantised(weight_RI).dequantised()
    error, their_error = ((found - weight_RI).square().mean().item() for found in (ours, theirs))
    assert error <= 1.001 * their_error


def test_slices_are_quantised_as_the_whole_is() -> None:
    weight_RI = random_weight(600, 1024)
    whole = quantised(weight_RI)
    part = quantised(weight_RI[17:530, 96:512])
    assert torch.equal(part.codes_RI, whole.codes_RI[17:530, 96:512])
    assert torch.equal(part.scales_RG, whole.scales_RG[17:530, 3:16])


def test_inputs_that_are_no_whole_groups_are_not_quantised() -> None:
    assert quantise_int8(random_weight(4, 80)) is None


def test_quantising_again_changes_nothing() -> None:
    once = quantised(random_weight(64, 256)).dequantised()
    assert torch.equal(quantised(once).dequantised(), once)


def test_zeros_stay_zeros() -> None:
    assert torch.equal(quantised(torch.zeros(3, 64)).dequantised(), torch.zeros(3, 64))


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_shows(broken: float) -> None:
    weight_RI = random_weight(2, 64)
    weight_RI[1, 40] = broken
    found = quantised(weight_RI).dequantised()
    assert found[0].isfinite().all() and found[1, :32].isfinite().all()
    assert not found[1, 32:].isfinite().any()


def test_no_weights_are_an_empty_matrix() -> None:
    assert quantised(torch.empty(0, 64)).shape == (0, 64)
    assert quantised(torch.empty(4, 0)).shape == (4, 0)
