"""Objectives of translation between two sets of images: contrastive patches, and a pool of earlier translations."""

import torch
from torch import nn
from torch.nn import functional as F


def patch_contrast(query: torch.Tensor, key: torch.Tensor, temperature: float = 0.07) -> torch.Tensor:
    """Measures how surely each place of a translation is found again among places of its input: InfoNCE, with the
    other places of the same image as negatives (CUT, https://huggingface.co/papers/2007.15651, equations 3 and 4).

    Args:
        query, key (`torch.Tensor` of shape `(B, S, D)`): Features of the translation and of the input at the same S
            places, of length 1 each.
        temperature (`float`, *optional*, defaults to 0.07): What similarities are divided by.

    Returns:
        `torch.Tensor` of shape `(B,)`: float32; `log(S)` where nothing is told apart.
    """
    with torch.autocast(query.device.type, enabled=False):
        similarity = query.float() @ key.float().detach().mT / temperature
        return -similarity.log_softmax(-1).diagonal(dim1=-2, dim2=-1).mean(-1)


class PatchProjection(nn.Module):
    """Projects features of places to vectors of length 1, with two layers for each map (CUT, section 3.2).

    Args:
        channels (`list[int]`): Those of the maps.
        width (`int`, *optional*, defaults to 256): Of the layers.
    """

    def __init__(self, channels: list[int], width: int = 256):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(count, width), nn.ReLU(), nn.Linear(width, width)) for count in channels
        )
        for part in self.modules():
            if isinstance(part, nn.Linear):
                nn.init.normal_(part.weight, std=0.02)
                nn.init.zeros_(part.bias)

    def forward(self, maps: list[torch.Tensor], places: torch.Tensor) -> list[torch.Tensor]:
        """Projects maps `(B, C, h, w)` at some places: `(B, S, D)` of each.

        Args:
            places (`torch.Tensor` of shape `(B, S)`): In [0, 1), along the rows of a map, one after another. Of a map
                with fewer pixels than places, some are taken more than once.
        """
        projected = []
        for layer, each in zip(self.layers, maps, strict=True):
            rows = each.flatten(2).mT
            index = (places * rows.shape[1]).long()[..., None].expand(-1, -1, rows.shape[2])
            projected.append(F.normalize(layer(rows.gather(1, index)).float(), dim=-1))
        return projected


class ImagePool(nn.Module):
    """Earlier translations, of which a discriminator sees some in place of the newest ones, so that it does not forget
    what generators did before (https://huggingface.co/papers/1612.07828, section 2.3).

    Args:
        size (`int`): How many are kept.
        shape (`tuple[int, int, int]`): Their channels, height and width.
    """

    images: torch.Tensor
    count: torch.Tensor

    def __init__(self, size: int, shape: tuple[int, int, int]):
        super().__init__()
        self.register_buffer("images", torch.zeros(size, *shape))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def exchange(self, images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        """Takes images in one by one: as long as there is room, an image stays and is returned; then it is, each other
        time, exchanged with one that is there.

        Args:
            images (`torch.Tensor` of shape `(B, C, H, W)`): The newest ones.
            draws (`torch.Tensor` of shape `(B, 2)`): In [0, 1): whether to exchange, and with which.

        Returns:
            `torch.Tensor` of shape `(B, C, H, W)`: What the discriminator is to see.
        """
        size = len(self.images)
        if not size:
            return images
        # All without asking the device: where each image goes, and where what is returned comes from.
        seen, places = images.clone(), (draws[:, 1] * size).long()
        for number in range(len(images)):
            free = self.count < size
            place = torch.where(free, self.count.clamp(max=size - 1), places[number])[None]
            swapped = ~free & (draws[number, 0] < 0.5)
            old = self.images.index_select(0, place)  # indexing by a tensor without dimensions would ask for its value
            new = images[number : number + 1].to(old)
            seen[number] = torch.where(swapped, old, new)[0]
            self.images.index_copy_(0, place, torch.where(free | swapped, new, old))
            self.count += free.long()
        return seen
