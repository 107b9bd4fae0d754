"""M2N2's filter as its authors write it, in torch: a pass over the picture for each offset."""

import math

import numpy as np
import torch


def interpolate(scores: np.ndarray, size: tuple[int, int]) -> torch.Tensor:
    """Scores [C, h, w] to [C, H, W], bilinear."""
    low = torch.tensor(scores)[None]
    return torch.nn.functional.interpolate(low, size, mode="bilinear", align_corners=False)[0]


def dense_loop(scores: np.ndarray, guide: np.ndarray, *, every: int = 1) -> torch.Tensor:
    """Scores [C, H, W] by a guide uint8 [H, W, 3]; of the window's offsets only each `every`-th."""
    colours = torch.tensor(guide).permute(2, 0, 1).float() / 255
    _, H, W = colours.shape
    picture = interpolate(scores, (H, W))
    total, weights = torch.zeros_like(picture), torch.zeros(H, W)
    for dy, dx, spatial in window(scores.shape[1:], (H, W))[::every]:
        here = slice(max(-dy, 0), min(H - dy, H)), slice(max(-dx, 0), min(W - dx, W))
        there = slice(max(dy, 0), min(H + dy, H)), slice(max(dx, 0), min(W + dx, W))
        contrast = (colours[:, *here] - colours[:, *there]).square().sum(0)
        weight = spatial * torch.exp(-contrast / (2 * 0.1**2))
        weights[here] += weight
        total[:, *here] += weight * picture[:, *there]
    return total / weights


def window(grid: tuple[int, int], size: tuple[int, int]) -> list[tuple[int, int, float]]:
    """Offsets (dy, dx) in pixels and their weights: sigma one patch, cut at the disc of 3 sigma."""
    (h, w), (H, W) = grid, size
    reach_y, reach_x = min(3 * H // h, H - 1), min(3 * W // w, W - 1)
    squared = {
        (dy, dx): (dy * h / H) ** 2 + (dx * w / W) ** 2
        for dy in range(-reach_y, reach_y + 1)
        for dx in range(-reach_x, reach_x + 1)
    }
    return [(dy, dx, math.exp(-d / 2)) for (dy, dx), d in squared.items() if d <= 9 * (1 + 1e-6)]
