"""Kept for code written for 0.1.0, whose documentation named `pidistill.denoiser.Preconditioned`; import it from pidistill."""

from pidistill.models.denoiser import Denoiser as Denoiser
from pidistill.models.denoiser import Preconditioned as Preconditioned
