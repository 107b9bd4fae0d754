"""What the peers make of class maps, in torch and SciPy as their repositories write it.

For timing beside ours and as a second oracle; nothing here is shared with the package.
"""

import numpy as np
import torch
from scipy import sparse
from scipy.sparse import linalg
from torch.nn.functional import conv2d, interpolate, normalize, one_hot, pad

# The 8 neighbours of a pixel, and with it the 9 of its window, as kernels [n, 1, 3, 3].
_WINDOW = torch.eye(9).view(9, 1, 3, 3)
_NEIGHBOURS = torch.cat([_WINDOW[:4], _WINDOW[5:]])


def _taps(x: torch.Tensor, kernel: torch.Tensor, dilations: tuple[int, ...]) -> torch.Tensor:
    """[K, H, W] -> [K, taps, H, W], the border repeated."""
    return torch.cat(
        [conv2d(pad(x[:, None], [d] * 4, mode="replicate"), kernel, dilation=d) for d in dilations],
        dim=1,
    )


def pamr(
    scores: torch.Tensor,
    picture: torch.Tensor,
    steps: int = 10,
    dilations: tuple[int, ...] = (8, 16),
) -> torch.Tensor:
    """PAMR of NACLIP's and SCLIP's repositories: scores [C, H, W], picture [3, H, W]."""
    near = _taps(picture, _NEIGHBOURS, dilations)
    deviation = _taps(picture, _WINDOW, dilations).std(1, keepdim=True)
    apart = (picture[:, None] - near).abs() / (1e-8 + 0.1 * deviation)
    weights = (-apart).mean(0).softmax(0)
    for _ in range(steps):
        scores = (_taps(scores, _NEIGHBOURS, dilations) * weights).sum(1)
    return scores


def labels(
    scores: torch.Tensor,
    query_class: torch.Tensor,
    scale: float,
    threshold: float = 0.0,
    area: float | None = None,
) -> torch.Tensor:
    """SCLIP's postprocess_result: scores of queries [Q, H, W] to labels, class 0 the background."""
    probabilities = (scale * scores).softmax(0)
    count = int(query_class.max()) + 1
    if count != len(query_class):
        member = one_hot(query_class).T.view(count, -1, 1, 1)
        probabilities = (probabilities * member).max(1)[0]
    if area is not None:
        areas = one_hot(probabilities.argmax(0), count)[..., 1:].sum((0, 1))
        kept = areas > area * areas.sum()
        probabilities[1:] *= kept.view(-1, 1, 1)
    found = probabilities.argmax(0)
    found[probabilities.max(0)[0] < threshold] = 0
    return found


def cliper(maps: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """CLIPer's fusion: maps of all heads [K, N, N] and class maps [C, N] to class maps."""
    maps = maps / (maps.amax(-2, keepdim=True) + 1e-5)
    maps = torch.where(maps < 0.1, 0, maps)
    maps = maps / (maps.sum(-1, keepdim=True) + 1e-5)
    product = torch.eye(maps.shape[-1])
    for head in maps:
        product = product @ head
    return (product @ scores.T).T


def lposs(
    features: torch.Tensor, side: int, scores: torch.Tensor, k: int = 400, alpha: float = 0.95
) -> np.ndarray:
    """LPOSS's propagation: another encoder's features [N, D] and class maps [C, N] to class maps.

    Its graph is sparse and each class solved by itself, with SciPy where LPOSS has CuPy.
    """
    unit = normalize(features, dim=-1)
    n = len(unit)
    similar, nearest = (unit @ unit.T).topk(min(k, n), dim=-1)
    place = 16.0 * torch.stack(torch.meshgrid(*[torch.arange(side)] * 2, indexing="ij"), -1)
    place = place.view(n, 2)
    near = torch.exp(-0.01 * torch.cdist(place, place)).gather(1, nearest)
    weights = similar.clamp(min=0) ** 3 * near
    rows = torch.arange(n).repeat_interleave(nearest.shape[1])
    w = sparse.csr_matrix(
        (weights.flatten().numpy(), (rows.numpy(), nearest.flatten().numpy())), shape=(n, n)
    )
    w = w + w.T
    w = w - sparse.diags(w.diagonal())
    degree = np.asarray(w.sum(1)).ravel()
    root = sparse.diags(1 / np.sqrt(np.where(degree == 0, 1, degree)))
    laplacian = sparse.eye(n) - alpha * (root @ w @ root)
    return np.stack([linalg.cg(laplacian, y, rtol=1e-6, maxiter=50)[0] for y in scores.numpy()])


def pixels(scores: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Class maps [C, h, w] bilinearly to [C, H, W]."""
    return interpolate(scores[None], size, mode="bilinear", align_corners=False)[0]
