"""Kept for code that was written when the README named `pidistill.denoiser.Preconditioned`; import it from pidistill."""

from pidistill.models.denoiser import Denoiser as Denoiser
from pidistill.models.denoiser import Preconditioned as Preconditioned
