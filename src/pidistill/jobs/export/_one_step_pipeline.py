"""A one-step student in diffusers, made by pidistill: image = a z + b unet(c z, clock), with z standard normal noise.

    pipe = DiffusionPipeline.from_pretrained("FOLDER", trust_remote_code=True)
    image = pipe(generator=torch.manual_seed(0)).images[0]

This file is all the code that runs, beside torch and diffusers, and what may lie in unet/network.py and vae/decoder.py.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor


class OneStepPipeline(DiffusionPipeline):
    """The pipeline draws images with one call of its network.

    unet: the network. vae: of a student in a latent space, otherwise None.
    step: its numbers a, b, c and clock, the shape (channels, height, width) of the noise, how many classes there are, the
        network's label for no class (null, which is never drawn) and how it takes its input (unit_range, whole_steps).
    """

    model_cpu_offload_seq = "unet->vae"
    _optional_components: ClassVar[list[str]] = ["vae"]

    def __init__(self, unet: Any, vae: Any = None, step: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.register_modules(unet=unet, vae=vae)
        self.register_to_config(step=step)

    @torch.no_grad()
    def __call__(self, batch_size: int = 1, class_labels: Any = None,
                 generator: torch.Generator | list[torch.Generator] | None = None, latents: torch.Tensor | None = None,
                 output_type: str = "pil", return_dict: bool = True) -> Any:
        """Draw images.

        class_labels: a number, or a list or tensor of batch_size; by default drawn at random, by the generator if it is one.
        latents: the noise, (batch_size, channels, height, width), standard normal; by default drawn by the generator.
        output_type: pil, np (in [0, 1]), or pt (in [0, 1]).
        """
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"output_type must be pil, np or pt, got {output_type!r}")
        step, device = self.config.step, self._execution_device
        shape = (batch_size, *step["shape"])
        noise = randn_tensor(shape, generator=generator, device=device) if latents is None else latents.to(device)
        if tuple(noise.shape) != shape:
            raise ValueError(f"latents must have the shape {shape}, got {tuple(noise.shape)}")
        x = self.draw(noise, self.choose_labels(class_labels, batch_size, generator, device))
        if self.vae is not None:
            x = self.vae(x)
        x = (x / 2 + 0.5).clamp(0, 1)
        self.maybe_free_model_hooks()
        images: Any = x if output_type == "pt" else x.cpu().permute(0, 2, 3, 1).numpy()
        images = self.numpy_to_pil(images) if output_type == "pil" else images
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def draw(self, noise: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        """Compute a z + b unet(c z, clock, labels) of noise (B, C, H, W) in float32."""
        step = self.config.step
        dtype, clock = self.unet.dtype, torch.tensor(step["clock"], device=noise.device)
        states, batch = step["states"], len(noise)  # states of a trajectory that the network gives at once; the last counts
        u = step["c"] * noise
        u = (u + 1) / 2 if step["unit_range"] else u
        if states > 1:
            u, clock = u.repeat_interleave(states, dim=0), clock.repeat(batch)
            labels = None if labels is None else labels.repeat_interleave(states, dim=0)
        else:
            clock = clock.expand(batch, -1).squeeze(1) if len(clock) == 1 else clock.expand(batch, -1)
        clock = clock.round().long() if step["whole_steps"] else clock
        output = self.unet(u.to(dtype), clock, class_labels=labels, return_dict=False)[0][:, :noise.shape[1]].float()
        output = output.unflatten(0, (batch, states))[:, -1] if states > 1 else output
        return step["a"] * noise + step["b"] * output

    def choose_labels(self, labels: Any, batch: int, generator: Any, device: Any) -> torch.Tensor | None:
        """Give the network's labels (batch,) of classes, which are counted without its label for no class."""
        classes, null = self.config.step["classes"], self.config.step["null"]
        if not classes:
            if labels is not None:
                raise ValueError("this student knows no classes, so class_labels must be left out")
            return None
        if labels is None:
            one = generator[0] if isinstance(generator, list) else generator
            labels = torch.randint(classes, (batch,), generator=one, device=one.device if one else "cpu")
        labels = torch.as_tensor(labels, device=device).long().reshape(-1).expand(batch)
        if bool(((labels < 0) | (labels >= classes)).any()):
            raise ValueError(f"class_labels must be 0 to {classes - 1}, got {labels.tolist()}")
        return labels + (labels >= null) if isinstance(null, int) else labels
