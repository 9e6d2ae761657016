"""A student with a network of your own, in the plane: python examples/own_network.py (half a minute)

A student's network is F(x, c_noise, labels): the noise scaled to standard deviation 1, a clock ln(t)/4 for each sample, and
labels or None. Anything that gives the shape of x will do; it should be smooth in the clock, which PID differentiates. Named
as python:MODULE:NAME, it is found again when the student is loaded.
"""

import torch
from torch import nn

import pidistill

SPEC = "gaussian:2,modes=4,std=0.1"


class Gated(nn.Module):
    """h <- h + W tanh(h) g(clock), three times."""

    def __init__(self, width: int = 96):
        super().__init__()
        self.inp, self.out = nn.Linear(2, width), nn.Linear(width, 2)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.gates = nn.ModuleList(nn.Linear(9, width) for _ in range(3))
        self.register_buffer("frequencies", torch.pi * 2.0 ** torch.arange(-2, 2))

    def forward(self, x, c_noise, labels=None):    # (B, 2), (B,), None -> (B, 2)
        phase = torch.outer(c_noise, self.frequencies.to(c_noise.dtype))
        clock = torch.cat([c_noise[:, None], phase.sin(), phase.cos()], dim=1)
        h = self.inp(x)
        for layer, gate in zip(self.layers, self.gates):
            h = h + layer(torch.tanh(h)) * (1 + gate(clock))
        return self.out(h)


if __name__ == "__main__":    # the run imports this file again, to make the network
    torch.manual_seed(0)
    student = pidistill.distill(SPEC, out="runs/own-network", force=True, overrides={
        "student.init": "random", "student.net": "python:own_network:Gated", "train.steps": 2000, "train.batch": 256,
        "optimizer.lr": 3e-3, "optimizer.decay": "cosine", "optimizer.clip": 1.0, "ema": 0.99, "log.every": 500})
    teacher = pidistill.load_teacher(SPEC)
    seeds = range(100_000, 101_000)    # no training draws them
    distance = (student.sample(seeds) - pidistill.sample_teacher(teacher, seeds)).square().mean().sqrt()
    print(f"r.m.s. distance to the teacher's solutions {distance:.3f}, of a standard deviation of {teacher.sigma_data:.2f}")
    again = pidistill.load_student("runs/own-network", net="python:own_network:Gated")    # no file decides what is imported
    assert torch.equal(again.sample(seeds), student.sample(seeds))
