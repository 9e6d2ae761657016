"""Our networks against NVIDIA's own code on the same weights, as recorded by tools/record_originals.py."""

from __future__ import annotations

import json

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

LIMIT = 1e-5  # float32 on both sides: 1e-6 to 3e-6 on the machine that recorded them


@pytest.fixture(scope="module")
def recorded() -> dict[str, Tensor]:
    with safe_open(FIXTURE, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 -- no dictionary


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", NETS)
def test_network_computes_what_the_original_does(recorded, name, case):
    x, c_noise = net_input()
    net = fill(build_net(NETS[name], SHAPE, 0 if case == "uncond" else CLASSES))
    theirs = recorded[f"nets/{name}/{case}"]
    assert theirs.std() > 0.3
    with torch.no_grad():
        assert relative_error(net(x, c_noise, labels_for(case, len(x))), theirs) < LIMIT


def test_training_mode_of_edm2_is_the_originals(recorded):
    """Output, the weight that the forward pass leaves behind, and its gradient."""
    x, c_noise = net_input()
    net = fill(build_net(NETS["edm2"], SHAPE, CLASSES)).train()
    F = net(x, c_noise, labels_for("cond", len(x)))
    F.square().sum().backward()
    weight = net.enc["8x8_conv"].weight
    for key, ours in (("F", F), ("weight", weight), ("grad", weight.grad)):
        assert relative_error(ours, recorded[f"nets/edm2/training/{key}"]) < LIMIT, key
    assert relative_error(F, recorded["nets/edm2/cond"]) > 10 * LIMIT  # the first of two normalisations shows


NAMES = {"EDMPrecond": "edm", "VPPrecond": "vp", "VEPrecond": "ve", "iDDPMPrecond": "iddpm"}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("original", PRECONDS)
def test_preconditioning_is_the_originals(recorded, original, case):
    x, sigma = precond_input()
    classes = 0 if case == "uncond" else CLASSES
    spec = PRECOND_NET | ({"out_channels": 2} if original == "iDDPMPrecond" else {})
    denoiser = Preconditioned(fill(build_net(spec, PRECOND_SHAPE, classes)), PRECOND_SHAPE, classes,
                              preconditioning=NAMES[original])
    with torch.no_grad():
        D = denoiser(x, sigma, labels_for(case, len(x)))
    assert relative_error(D, recorded[f"preconds/{original}/{case}"]) < LIMIT
    ours = denoiser.preconditioning(sigma.double()).c_noise.float()
    torch.testing.assert_close(ours, recorded[f"preconds/{original}/c_noise"], rtol=1e-6, atol=1e-6)


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
