"""What each start does in CLIP's last block, in torch, on transformers' own submodules.

Written from the peers' formulas; nothing here is shared with the package.
"""

import numpy as np
import torch
from torch.nn.functional import interpolate


def last_features(
    model, pixels: np.ndarray, start: str, graph: np.ndarray | None = None
) -> np.ndarray:
    """Projected patch features of transformers' CLIPModel by a start.

    Args:
        pixels: [B, H, W, 3], normalised.
        graph: A [B, N, N] of ProxyCLIP.

    Returns:
        [B, h · w, D], or [B, N, D].
    """
    vision = model.vision_model
    grid = [side // vision.config.patch_size for side in pixels.shape[1:3]]
    with torch.no_grad():
        x = vision.embeddings(
            torch.tensor(pixels).permute(0, 3, 1, 2), interpolate_pos_encoding=True
        )
        x = vision.pre_layrnorm(x)
        *layers, last = vision.encoder.layers
        for layer in layers:
            x = layer(x, None)
            x = x[0] if isinstance(x, tuple) else x
        attention, normed = last.self_attn, last.layer_norm1(x)
        b, s, w = x.shape
        d = w // attention.num_heads
        q, k, v = (
            f(normed).view(b, s, attention.num_heads, d).transpose(1, 2)
            for f in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        qq, kk = (a @ a.transpose(-1, -2) / d**0.5 for a in (q, k))
        if start == "proxyclip":
            side = round(graph.shape[-1] ** 0.5)
            fields = v[:, :, 1:].transpose(2, 3).reshape(b, w, *grid)
            fields = interpolate(fields, (side, side), mode="bilinear", align_corners=False)
            values = fields.flatten(2).transpose(1, 2)
            mixed = attention.out_proj(torch.einsum("bmn,bnw->bmw", torch.tensor(graph), values))
            return model.visual_projection(vision.post_layernorm(mixed)).numpy()
        weights = {
            "vanilla": lambda: (q @ k.transpose(-1, -2) / d**0.5).softmax(-1),
            "maskclip": lambda: torch.eye(s),
            "maskclip_residual": lambda: torch.eye(s),
            "sclip": lambda: qq.softmax(-1) + kk.softmax(-1),
            "kk": lambda: kk.softmax(-1),
            "clearclip": lambda: qq.softmax(-1),
            "naclip": lambda: (kk + _gaussian(*grid)).softmax(-1),
        }[start]()
        out = attention.out_proj((weights @ v).transpose(1, 2).reshape(b, s, w))
        if start in ("vanilla", "maskclip_residual", "sclip"):
            out = x + out
            out = out + last.mlp(last.layer_norm2(out))
        return model.visual_projection(vision.post_layernorm(out[:, 1:])).numpy()


def _gaussian(h: int, w: int) -> torch.Tensor:
    """NACLIP's, of tokens with the class token first."""
    found = torch.zeros(1 + h * w, 1 + h * w)
    place = torch.cartesian_prod(torch.arange(h), torch.arange(w))
    squared = ((place[:, None] - place) ** 2).sum(-1)
    found[1:, 1:] = torch.exp(-squared / (2 * 5.0**2))
    return found


def affinity(features: np.ndarray) -> np.ndarray:
    """ProxyCLIP's A [N, N] of last features [N, D], patch by patch, in float64."""
    features = features.astype(np.float64)
    n = len(features)
    cosines = np.array([[a @ b / np.sqrt((a @ a) * (b @ b)) for b in features] for a in features])
    logits = 3 * (cosines - 1.2 * cosines.mean())
    attention = np.zeros((n, n))
    for i in range(n):
        kept = [j for j in range(n) if logits[i, j] >= 0 or i == j]
        attention[i, kept] = np.exp(logits[i, kept])
        attention[i] /= attention[i].sum()
    return attention
