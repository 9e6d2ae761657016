"""Our networks against NVIDIA's own code on the same weights, as recorded by tools/record_originals.py.

In two steps, neither of which depends on the processor: in float64 ours are the originals but for the rounding of the
record, and in float32 they are as close to that as rounding lets them be in any order of sums (`tests/rounding.py`).
"""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from pidistill.models.denoiser import Preconditioned
from pidistill.models.preconditioning import iddpm_times
from pidistill.nets.base import build_net
from tests.originals import (
    CASES,
    CLASSES,
    FIXTURE,
    NETS,
    PRECOND_NET,
    PRECOND_SHAPE,
    PRECONDS,
    SHAPE,
    SIGMAS,
    fill,
    labels_for,
    net_input,
    precond_input,
    relative_error,
)
from tests.rounding import float32_bound

# The record's own rounding, which is the same wherever the tests run: the originals computed it in float32, once. In float64
# ours are 6e-7 to 3.7e-6 away from it.
RECORDED = 1e-5


@pytest.fixture(scope="module")
def recorded() -> dict[str, Tensor]:
    with safe_open(FIXTURE, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 -- no dictionary


def check(function: Callable[[torch.dtype], Tensor], theirs: Tensor) -> None:
    """In float64 the function is the original's; in float32 it is as close to that as any order of its sums can be."""
    with torch.no_grad():
        exact, ours = function(torch.float64), function(torch.float32)
        bound = float32_bound(lambda: function(torch.float64), relative_error)
    assert exact.dtype == torch.float64 and ours.dtype == torch.float32
    assert relative_error(exact, theirs) < RECORDED
    assert relative_error(ours, exact) < bound < 1e-3


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", NETS)
def test_network_computes_what_the_original_does(recorded, name, case):
    x, c_noise = net_input()

    def F(dtype: torch.dtype) -> Tensor:
        net = fill(build_net(NETS[name], SHAPE, 0 if case == "uncond" else CLASSES)).to(dtype)
        return net(x.to(dtype), c_noise.to(dtype), labels_for(case, len(x)))

    theirs = recorded[f"nets/{name}/{case}"]
    assert theirs.std() > 0.3
    check(F, theirs)


def test_training_mode_of_edm2_is_the_originals(recorded):
    """Output, the weight that the forward pass leaves behind, and its gradient."""
    def train(dtype: torch.dtype) -> dict[str, Tensor]:
        x, c_noise = (value.to(dtype) for value in net_input())
        net = fill(build_net(NETS["edm2"], SHAPE, CLASSES)).train().to(dtype)
        F = net(x, c_noise, labels_for("cond", len(x)))
        F.square().sum().backward()
        weight = net.enc["8x8_conv"].weight
        return {"F": F, "weight": weight, "grad": weight.grad}

    exact, ours = train(torch.float64), train(torch.float32)
    for key in exact:
        assert relative_error(exact[key], recorded[f"nets/edm2/training/{key}"]) < RECORDED, key
        bound = float32_bound(lambda key=key: train(torch.float64)[key].detach(), relative_error)
        assert relative_error(ours[key], exact[key].detach()) < bound < 1e-3, key
    assert relative_error(ours["F"], recorded["nets/edm2/cond"]) > 10 * RECORDED  # the first of two normalisations shows


NAMES = {"EDMPrecond": "edm", "VPPrecond": "vp", "VEPrecond": "ve", "iDDPMPrecond": "iddpm"}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("original", PRECONDS)
def test_preconditioning_is_the_originals(recorded, original, case):
    x, sigma = precond_input()
    classes = 0 if case == "uncond" else CLASSES
    spec = PRECOND_NET | ({"out_channels": 2} if original == "iDDPMPrecond" else {})
    denoiser = Preconditioned(fill(build_net(spec, PRECOND_SHAPE, classes)), PRECOND_SHAPE, classes,
                              preconditioning=NAMES[original])
    formula, clock = denoiser.preconditioning, recorded[f"preconds/{original}/c_noise"]
    torch.testing.assert_close(formula(sigma.double()).c_noise.float(), clock, rtol=1e-6, atol=1e-6)
    # The originals' clock, since networks with VP's, which goes to 999, make 20 of a rounding of it.
    denoiser.preconditioning = lambda t: formula(t)._replace(c_noise=clock.double())
    check(lambda dtype: denoiser.to(dtype)(x.to(dtype), sigma.to(dtype), labels_for(case, len(x))),
          recorded[f"preconds/{original}/{case}"])


def test_iddpm_s_table_is_the_originals(recorded):
    torch.testing.assert_close(iddpm_times().float(), recorded["preconds/iDDPMPrecond/u"], rtol=1e-6, atol=0)


def test_record_is_complete_and_names_its_sources(recorded):
    with safe_open(FIXTURE, "pt") as file:
        metadata = {key: json.loads(value) for key, value in file.metadata().items()}
    assert metadata["commits"] == {"NVlabs/edm": "008a4e5316c8e3bfe61a62f874bddba254295afb",
                                   "NVlabs/edm2": "4bf8162f601bcc09472ce8a32dd0cbe8889dc8fc"}
    assert metadata["facts"].keys() == PRECONDS.keys()
    for name in PRECONDS:
        for case in CASES:
            assert recorded[f"preconds/{name}/{case}"].shape == (len(SIGMAS), *PRECOND_SHAPE)
    assert FIXTURE.stat().st_size < 150_000
