"""Kernels in C for training and drawing on the CPU: 3x3 convolutions, group normalisation with SiLU, and both at once."""

from pidistill.nets.parts.native.operators import conv3x3, norm_silu, norm_silu_conv, switched_off, to_channels_last, usable

__all__ = ["conv3x3", "norm_silu", "norm_silu_conv", "switched_off", "to_channels_last", "usable"]
