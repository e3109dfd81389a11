"""A mixture of Gaussians as the prior of a VAE, fitted to its latents after training.

The latents of images, the aggregate posterior, are not quite standard normal; what a density that was fitted to them
gives makes better images (https://huggingface.co/papers/1903.12436, "ex-post density estimation").
"""

import math
from dataclasses import dataclass

import torch
from diffusers import ConfigMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor

from hfgen.models.base import ModelMixin
from hfgen.models.labels import check_classes


@dataclass
class GaussianMixtureOutput(BaseOutput):
    """
    The output of a prior.

    Args:
        sample (`torch.Tensor` of shape `(B, D, h, w)`): Latents, float32.
    """

    sample: torch.Tensor


class GaussianMixturePrior(ModelMixin, ConfigMixin):
    r"""
    A mixture of Gaussians with full covariances over flattened latents: plain tensors, nothing that is trained.

    Latents of many dimensions have full covariances in the `rank` directions of `basis` alone; what is left is one
    isotropic Gaussian: `latents = offset + basis @ c + r` with `c` from the mixture and `r` orthogonal to the basis.
    A new prior is the standard normal distribution.

    Parameters:
        latent_shape (`tuple[int, int, int]`):
            Shape of the latents, without the batch: `(D, h, w)`.
        num_components (`int`, *optional*, defaults to 10):
            Number of Gaussians, K.
        num_class_embeds (`int`, *optional*):
            Number of classes, each with its own weights of the components, which all classes share.
        rank (`int`, *optional*):
            Number of directions with full covariances, P; by default all N = D * h * w.

    Buffers, float32:
        - **weights** (`(num_class_embeds or 1, K)`) -- How likely the components are.
        - **means** (`(K, P)`) -- Their means.
        - **factors** (`(K, P, P)`) -- The lower Cholesky factors of their covariances.
        - **basis** (`(N, P)`), **offset** (`(N,)`) -- Orthonormal directions, and the point that they start from.
        - **residual** (`()`) -- Standard deviation in all other directions.

    Raises:
        ValueError: If `rank` is not between 1 and N.
    """

    @register_to_config
    def __init__(
        self,
        latent_shape: tuple[int, int, int],
        num_components: int = 10,
        num_class_embeds: int | None = None,
        rank: int | None = None,
    ):
        super().__init__()
        size = math.prod(latent_shape)
        rank = size if rank is None else rank
        if not 1 <= rank <= size:
            raise ValueError(f"rank is {rank}, but latents of shape {tuple(latent_shape)} have from 1 to {size}.")
        self.register_buffer("weights", torch.full((num_class_embeds or 1, num_components), 1 / num_components))
        self.register_buffer("means", torch.zeros(num_components, rank))
        self.register_buffer("factors", torch.eye(rank).repeat(num_components, 1, 1))
        self.register_buffer("basis", torch.eye(size, rank))
        self.register_buffer("offset", torch.zeros(size))
        self.register_buffer("residual", torch.ones(()))

    def _class_weights(self, class_labels: torch.Tensor | None, batch_size: int) -> torch.Tensor:
        check_classes(class_labels, self.config.num_class_embeds, batch_size)
        return self.weights.float() if class_labels is None else self.weights[class_labels].float()

    def forward(
        self,
        noise: torch.Tensor,
        class_labels: torch.Tensor | None = None,
        temperature: float = 1.0,
        return_dict: bool = True,
    ) -> GaussianMixtureOutput | tuple[torch.Tensor]:
        r"""
        Turns noise into latents.

        Args:
            noise (`torch.Tensor` of shape `(B, 1 + N)`):
                Standard normal. The first entry of each row chooses the component, the others the point in it.
            class_labels (`torch.Tensor` of shape `(B,)`, *optional*):
                Classes, if the prior has them.
            temperature (`float`, *optional*, defaults to 1.0):
                Scales the distance from the mean of the component; 0 is the mean itself.
            return_dict (`bool`, *optional*, defaults to `True`):
                Whether to return a [`GaussianMixtureOutput`] instead of a tuple.

        Raises:
            ValueError: For noise of the wrong shape, or missing, unexpected or unknown classes.
        """
        basis = self.basis.float()
        if noise.ndim != 2 or noise.shape[1] != 1 + len(basis):
            raise ValueError(f"noise has shape {tuple(noise.shape)}, but must be (B, {1 + len(basis)}).")
        upper = self._class_weights(class_labels, len(noise)).cumsum(-1)
        uniform = torch.special.ndtr(noise[:, :1].float())  # in [0, 1]
        component = (uniform * upper[:, -1:] > upper).sum(-1)
        noise = temperature * noise[:, 1:].float()
        inside = noise @ basis  # standard normal, too, and independent of what lies outside
        outside = noise - inside @ basis.T
        inside = self.means[component].float() + (self.factors[component].float() @ inside[..., None])[..., 0]
        latents = self.offset.float() + inside @ basis.T + self.residual.float() * outside
        latents = latents.unflatten(1, tuple(self.config.latent_shape))
        return GaussianMixtureOutput(sample=latents) if return_dict else (latents,)

    @torch.no_grad()
    def sample(
        self,
        count: int,
        class_labels: torch.Tensor | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        temperature: float = 1.0,
    ) -> torch.Tensor:
        r"""
        Draws latents.

        Args:
            count (`int`): How many, B.
            class_labels (`torch.Tensor` of shape `(B,)`, *optional*): Classes, if the prior has them.
            generator (`torch.Generator` or list of them, *optional*):
                Makes the result repeatable; with one per sample, each depends on its own alone.
            temperature (`float`, *optional*, defaults to 1.0): See [`~GaussianMixturePrior.forward`].

        Returns:
            `torch.Tensor` of shape `(B, D, h, w)`, float32.

        Raises:
            ValueError: For missing or unexpected classes.
        """
        shape, device = (count, 1 + len(self.offset)), self.offset.device
        noise = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        return self(noise, class_labels, temperature, return_dict=False)[0]

    def log_prob(self, latents: torch.Tensor, class_labels: torch.Tensor | None = None) -> torch.Tensor:
        r"""
        Computes the logarithm of the density, in nats.

        Args:
            latents (`torch.Tensor` of shape `(B, D, h, w)` or `(B, N)`): Latents.
            class_labels (`torch.Tensor` of shape `(B,)`, *optional*): Classes, if the prior has them.

        Returns:
            `torch.Tensor` of shape `(B,)`, float32, differentiable in the latents.

        Raises:
            ValueError: For latents of the wrong shape, or missing or unexpected classes.
        """
        basis, factors, residual = self.basis.float(), self.factors.float(), self.residual.float()
        size, rank = basis.shape
        shape = tuple(self.config.latent_shape)
        if tuple(latents.shape[1:]) not in (shape, (size,)):
            raise ValueError(f"latents has shape {tuple(latents.shape)}, but must be (B, *{shape}) or (B, {size}).")
        latents = latents.float().flatten(1) - self.offset.float()
        inside = latents @ basis
        outside = (latents - inside @ basis.T).square().sum(1)
        log_outside = -0.5 * (outside / residual**2 + (size - rank) * (2 * math.pi * residual**2).log())
        difference = (inside[None] - self.means.float()[:, None]).mT  # (K, P, B)
        standard = torch.linalg.solve_triangular(factors, difference, upper=False)
        log_size = factors.diagonal(dim1=1, dim2=2).log().sum(1, keepdim=True) + 0.5 * rank * math.log(2 * math.pi)
        log_inside = -0.5 * standard.square().sum(1) - log_size  # (K, B)
        log_weights = self._class_weights(class_labels, len(latents)).log()
        return torch.logsumexp(log_inside.T + log_weights, dim=1) + log_outside
