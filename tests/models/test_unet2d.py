"""The UNet builder."""

import pytest
import torch

from hfgen.models.unet2d import build_unet, level_sizes, use_plain_attention_


def test_starts_at_zero_and_learns():
    unet = build_unet(12, 1, (8, 16), norm_num_groups=4, attention_head_dim=8)
    noisy, timesteps = torch.randn(2, 1, 12, 12), torch.tensor([3, 700])
    assert unet(noisy, timesteps).sample.abs().max() == 0
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-2)
    for _ in range(3):  # zero outputs let the gradient through one layer more each step
        (unet(noisy, timesteps).sample - 1).square().mean().backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in unet.parameters())


def test_attention_stands_where_it_is_asked_for():
    unet = build_unet(28, 1, (8, 8, 8), norm_num_groups=4, attention_head_dim=8)
    assert unet.config.down_block_types == ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D")
    assert unet.config.up_block_types == ("AttnUpBlock2D", "UpBlock2D", "UpBlock2D")
    unet = build_unet(28, 1, (8, 8, 8), attention_resolutions=(14,), norm_num_groups=4, attention_head_dim=8)
    assert unet.config.down_block_types == ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D")
    unet = build_unet(28, 1, (8, 8, 8), attention_resolutions=(), norm_num_groups=4, attention_head_dim=8)
    assert set(unet.config.down_block_types) == {"DownBlock2D"}
    with pytest.raises(ValueError, match=r"attention_resolutions has 16, but the feature maps are \[28, 14, 7\]"):
        build_unet(28, 1, (8, 8, 8), attention_resolutions=(16,))


def test_plain_attention_computes_the_same():
    unet = build_unet(8, 1, (8, 8), norm_num_groups=4, attention_head_dim=8)
    for parameter in unet.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    noisy, timesteps = torch.randn(2, 1, 8, 8), torch.tensor([3, 700])
    before = unet(noisy, timesteps).sample
    use_plain_attention_(unet)
    torch.testing.assert_close(unet(noisy, timesteps).sample, before, rtol=1e-4, atol=1e-5)


def test_sizes():
    assert level_sizes(28, 3) == [28, 14, 7]
    with pytest.raises(ValueError, match="28 pixels cannot be halved 3 times: use a multiple of 8"):
        level_sizes(28, 4)
