"""train.recompute: the same function and gradients, less memory between forward and backward pass."""

from __future__ import annotations

import copy

import pytest
import torch

from pidistill.core.errors import PidistillError
from pidistill.core.precision import autocast
from pidistill.jobs.build_objective import build_objective
from pidistill.models.teachers.base import load_teacher
from pidistill.nets.base import build_net
from pidistill.training.config import DistillConfig
from pidistill.training.config_file import load_config
from pidistill.training.recompute import find_recomputable_blocks, recompute_networks
from tests.helpers import MLP, held_by, shake
from tests.runs import start_run

SMALL = {"channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4]}
NETS = {"song_unet": {"name": "song_unet", "model_channels": 16, **SMALL},
        "dhariwal_unet": {"name": "dhariwal_unet", "model_channels": 32, **SMALL, "dropout": 0.0},
        "dhariwal_unet with dropout": {"name": "dhariwal_unet", "model_channels": 32, **SMALL, "dropout": 0.3},
        "edm2_unet": {"name": "edm2_unet", "model_channels": 16, **SMALL},
        "equilibrium": {"name": "equilibrium", "width": 32, "heads": 2, "injection": 1, "equilibrium": 2},
        "diffusers_net": {"name": "diffusers_net", "config": {
            "sample_size": 8, "in_channels": 1, "out_channels": 1, "block_out_channels": [32, 64], "layers_per_block": 1,
            "down_block_types": ["DownBlock2D", "AttnDownBlock2D"], "up_block_types": ["AttnUpBlock2D", "UpBlock2D"]}}}


def make(name: str, recompute: bool) -> torch.nn.Module:
    torch.manual_seed(0)
    net = shake(build_net(NETS[name], (1, 8, 8), 0)).train()
    if recompute:
        recompute_networks([net])
    return net


def step(net, precision="fp32"):
    """Output, gradients and the bytes that are kept between forward and backward pass."""
    torch.manual_seed(1)
    x, t = torch.randn(4, 1, 8, 8), torch.randn(4)
    with autocast(precision, x.device):
        out, kept = held_by(lambda: net(x, t))
    out.square().sum().backward()
    return out, [p.grad for p in net.parameters()], kept


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", NETS)
def test_same_output_and_gradients_and_less_kept(name, precision):
    out, gradients, kept = step(make(name, False), precision)
    again, others, fewer = step(make(name, True), precision)
    assert torch.equal(out, again) and fewer < 0.5 * kept
    for a, b in zip(gradients, others, strict=True):
        assert a is b is None or torch.equal(a, b)


def test_networks_without_blocks_stay_beside_those_that_have_some():
    net, plain = make("song_unet", False), build_net(MLP, (2,), 0)
    blocks = find_recomputable_blocks([plain, net])
    assert blocks and blocks == find_recomputable_blocks([net])
    with pytest.raises(PidistillError, match="needs a network with residual blocks"):
        find_recomputable_blocks([plain, plain])


@pytest.mark.parametrize("name", ["song_unet", "edm2_unet"])
def test_copies_compute_with_their_own_weights(name):
    net = make(name, True)
    assert make(name, False).state_dict().keys() == net.state_dict().keys()
    twin = shake(copy.deepcopy(net), seed=5)
    plain = make(name, False)
    plain.load_state_dict(twin.state_dict())
    out, gradients, _ = step(plain)
    again, others, _ = step(twin)
    assert torch.equal(out, again) and all(torch.equal(a, b) for a, b in zip(gradients, others, strict=True))
    with torch.no_grad():
        assert not torch.equal(net(torch.ones(1, 1, 8, 8), torch.ones(1)), twin(torch.ones(1, 1, 8, 8), torch.ones(1)))


def test_nothing_is_computed_again_without_gradients():
    net = make("song_unet", True)
    calls = []
    net.enc["8x8_block0"].affine.register_forward_hook(lambda *_: calls.append(1))
    with torch.inference_mode():
        net(torch.ones(1, 1, 8, 8), torch.ones(1))
    assert len(calls) == 1
    step(net)
    assert len(calls) == 3


def test_compiled(plain_kernels):
    """The compiler traces it: one graph, the same gradients."""
    net = make("song_unet", True)
    _, gradients, _ = step(net)
    net.zero_grad()
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    torch.manual_seed(1)
    compiled(torch.randn(4, 1, 8, 8), torch.randn(4)).square().sum().backward()
    for p, b in zip(net.parameters(), gradients, strict=True):
        torch.testing.assert_close(p.grad, b, rtol=1e-4, atol=1e-4)


def test_data_parallel():
    """Gradients that DistributedDataParallel exchanges are those of the plain network."""
    import torch.distributed as dist

    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    try:
        _, gradients, _ = step(make("song_unet", False))
        net = torch.nn.parallel.DistributedDataParallel(make("song_unet", True))
        _, others, _ = step(net)
    finally:
        dist.destroy_process_group()
    assert all(torch.equal(a, b) for a, b in zip(gradients, others, strict=True))


def test_a_run_ends_with_the_same_weights(tmp_path):
    plain, again = (start_run(tmp_path / str(value), {"train.recompute": value, "train.steps": 3}, images=True)
                    for value in (False, True))
    for a, b in zip(plain, again, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("changes, words", [
    ({"objective.scheme": "autodiff"}, "train.recompute=true does not go with objective.scheme=autodiff"),
    ({"student.init": "random", "student.net": MLP}, "needs a network with residual blocks")])
def test_what_cannot_be_computed_again_is_refused(changes, words):
    config = load_config(DistillConfig, "digits", {"train.recompute": True, **changes})
    with pytest.raises(PidistillError, match=words):
        build_objective(config, load_teacher("bundled:digits"))
