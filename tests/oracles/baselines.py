"""What the benchmarks are measured against, in torch as the peers of this method write it.

Each of the functions without an underscore that the benchmarks ask for gives jobs by their names:
functions without arguments that are done when they return. Networks have random weights.
"""

import functools
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax.typing import DTypeLike
from torch.nn.functional import interpolate, normalize

from dsolo_jax.attention import Source, stable_diffusion
from dsolo_jax.attention.dino import DinoConfig
from dsolo_jax.attention.stable_diffusion import StableDiffusionConfig
from dsolo_jax.clip import ClipConfig
from dsolo_jax.readings import Readings

Jobs = dict[str, Callable]


def _device() -> str:
    """Where torch runs beside jax: on the same kind of device.

    Raises:
        NotImplementedError: it cannot.
    """
    devices = {"cpu": "cpu"} | ({"gpu": "cuda"} if torch.cuda.is_available() else {})
    backend = jax.default_backend()
    if backend not in devices:
        raise NotImplementedError(f"torch has no device for jax's {backend}")
    return devices[backend]


def _job(function: Callable) -> Callable:
    """`function` without gradients, waited for; float32 means float32, as it does in ours."""
    torch.backends.cudnn.allow_tf32 = False

    def run():
        with torch.inference_mode():
            function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return run


def _dtype(dtype: DTypeLike) -> torch.dtype:
    return getattr(torch, jnp.dtype(dtype).name)


def _channels_first(x: np.ndarray) -> torch.Tensor:
    return torch.tensor(x, device=_device()).permute(0, 3, 1, 2).contiguous()


def clip(config: ClipConfig, pixels: np.ndarray) -> Jobs:
    """transformers' image tower with each of its attentions; its last norm and projection lack."""
    given = _channels_first(pixels)

    def job(implementation: str) -> Callable:
        model = _clip(config, implementation)
        return _job(lambda: model(given, interpolate_pos_encoding=True))

    return {f"torch {name}": job(name) for name in ("sdpa", "eager")}


def _clip(config: ClipConfig, implementation: str = "sdpa"):
    from transformers import CLIPVisionConfig, CLIPVisionModel

    theirs = CLIPVisionConfig(patch_size=config.vision.patch_size)
    model = CLIPVisionModel._from_config(theirs, attn_implementation=implementation)
    return model.eval().to(_device())


@functools.cache  # asked for with several batches
def _tower(config: ClipConfig, dtype: DTypeLike):
    """The image tower with its projection, which `clip` lacks."""
    tower = _clip(config).to(_dtype(dtype))
    width = tower.config.hidden_size
    projection = torch.nn.Linear(width, config.projection_dim, bias=False)
    return tower, projection.to(_device(), _dtype(dtype))


def _dino(config: DinoConfig, pixels: np.ndarray) -> Jobs:
    """transformers' tower; of its attentions only eager gives maps, and those of all layers."""
    from transformers import AutoConfig, AutoModel

    theirs = AutoConfig.for_model(
        config.model_type, image_size=config.image_size, patch_size=config.patch_size
    )
    model = AutoModel.from_config(theirs, attn_implementation="eager").eval().to(_device())
    given = _channels_first(pixels)
    # DINOv2 always resamples its positions, and knows no such argument.
    options = {"interpolate_pos_encoding": True} if config.model_type == "vit" else {}

    def run():
        maps = model(given, output_attentions=True, **options).attentions
        attention = maps[-1].mean(1)[:, 1:, 1:]
        return attention / attention.sum(-1, keepdim=True)

    return {"torch eager": _job(run)}


@functools.cache  # asked for with several batches
def _vae(config: StableDiffusionConfig, dtype: DTypeLike):
    from tests.oracles import stable_diffusion

    with torch.device(_device()):
        model = stable_diffusion.vae(config.vae).eval()
    del model.decoder
    return model.to(_dtype(dtype))


@functools.cache  # it is large, and asked for with several batches
def _unet(config: StableDiffusionConfig, dtype: DTypeLike):
    """diffusers' denoiser."""
    from tests.oracles import stable_diffusion

    with torch.device(_device()):
        return stable_diffusion.unet(config.unet).eval().to(_dtype(dtype))


def _maps(config: StableDiffusionConfig, layers: tuple[str, ...], timestep: int, dtype, squares):
    """Two functions: the encoder and the whole denoiser as they are used, and the same with the
    mean of some self-attentions, captured as they run.

    Args:
        squares: uint8 [B, S, S, 3].
    """
    from tests.oracles.stable_diffusion import capturing

    autoencoder = _vae(config, dtype)
    denoiser = _unet(config, dtype)
    text = len(squares), config.text.max_position_embeddings, config.text.hidden_size
    prompt = torch.randn(text, device=_device()).to(denoiser.dtype)
    names = stable_diffusion.layer_names(config)
    given = (_channels_first(squares) / 127.5 - 1).to(denoiser.dtype)

    def denoise():
        latents = autoencoder.encode(given).latent_dist.mode() * config.vae.scaling_factor
        return denoiser(latents, timestep, prompt)

    def maps():
        with capturing(denoiser, tuple(names[layer] for layer in layers)) as found:
            denoise()
        return (sum(found.values()) / len(found)).float()

    return denoise, maps


def graph(source: Source, squares: np.ndarray, timestep: int, dtype: DTypeLike) -> Jobs:
    """What diffusers and transformers do for the graph of a source; none of one that is ours."""
    if source.kind == "dino":
        return _dino(source.config, squares.astype(np.float32) / 255)
    if source.kind != "stable_diffusion":
        return {}
    denoise, maps = _maps(source.config, source.layers, timestep, dtype, squares)
    return {"torch without maps": _job(denoise), "torch": _job(maps)}


def upsample(scores: np.ndarray, pixels: np.ndarray, form: str) -> Jobs:
    """Bilinear, and for the other forms the dense loop that the method's authors inherit (M2N2), of
    which only every 64th offset is run."""
    from tests.oracles import upsampling

    low, size = np.asarray(scores), pixels.shape[:2]
    jobs = {"torch interpolate": lambda: upsampling.interpolate(low, size).argmax(0)}
    if form != "bilinear":
        jobs["torch dense loop, 1/64 of it"] = lambda: upsampling.dense_loop(
            low, pixels, every=64
        ).argmax(0)
    return {name: _job(job) for name, job in jobs.items()}


def stages(
    clip_config: ClipConfig,
    source: Source,
    timestep: int,
    dtype: DTypeLike,
    readings: Readings,
    ours: tuple[np.ndarray, np.ndarray, np.ndarray],
    pixels: np.ndarray,
    text: np.ndarray,
    grid: tuple[int, int],
) -> Jobs:
    """The stages of the pipeline with Stable Diffusion and the whole of them, for a batch.

    Args:
        ours: cosines [B, C, N], presence [B, C] and attention [B, N, N] that ours makes, so that
            the solver's steps are as many as ours.
        pixels: uint8 [B, S, S, 3].
        text: of the classes [C, D].
        grid: of the patches in CLIP.
    """
    tower, projection = _tower(clip_config, dtype)
    sides = [clip_config.vision.patch_size * side for side in grid]
    resized = interpolate(_channels_first(pixels) / 127.5 - 1, sides, mode="bilinear")
    resized = resized.to(tower.dtype)
    words, cosines, presence, attention = (torch.tensor(x, device=_device()) for x in (text, *ours))
    side = round(cosines.shape[-1] ** 0.5)

    def class_maps():
        tokens = tower(resized, interpolate_pos_encoding=True).last_hidden_state[:, 1:]
        patches = normalize(projection(tokens).float(), dim=-1)
        maps = torch.einsum("cd,bnd->bcn", words, patches).unflatten(-1, grid)
        return interpolate(maps, (side, side), mode="bilinear").flatten(2)

    def solver():
        return robust_velocity(cosines, attention, presence, readings)

    scores = solver().unflatten(-1, (side, side))

    def labels():
        """Bilinear, as most peers do; ours are joint bilateral."""
        return interpolate(scores, pixels.shape[1:3], mode="bilinear").argmax(1).int().cpu().numpy()

    jobs = {"CLIP": class_maps, "solver": solver, "pixels": labels}
    try:
        _, maps = _maps(source.config, source.layers, timestep, dtype, pixels)
    except ImportError as error:
        print(f"no graph in torch: {error}", file=sys.stderr)
    else:
        jobs["graph"] = maps
        # Waited for once, at the end.
        jobs["whole"] = lambda: (maps(), class_maps(), solver(), labels())
    return {name: _job(job) for name, job in jobs.items()}


def last_layers(
    config: ClipConfig, pixels: np.ndarray, starts: tuple[str, ...], graph: np.ndarray
) -> Jobs:
    """transformers' image tower with the last layer of each peer."""
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

    from tests.oracles.last_layers import last_features

    theirs = CLIPConfig(
        vision_config=CLIPVisionConfig(patch_size=config.vision.patch_size).to_dict(),
        text_config=CLIPTextConfig(num_hidden_layers=1).to_dict(),
    )
    model = CLIPModel._from_config(theirs, attn_implementation="sdpa").eval()
    return {x: _job(functools.partial(last_features, model, pixels, x, graph)) for x in starts}


def of_class_maps(
    maps: np.ndarray, picture: np.ndarray, query: np.ndarray, key: np.ndarray, features: np.ndarray
) -> Jobs:
    """What peers make of class maps [C, r, r]: labels of a picture, or other class maps [C, N].

    Args:
        query, key: of Stable Diffusion's heads [K, N, d], for CLIPer.
        features: of DINO [N, D], for LPOSS.
    """
    from tests.oracles import peers

    scores, colours = torch.tensor(maps), torch.tensor(picture).permute(2, 0, 1) / 255
    of_query, size = torch.arange(len(maps)), picture.shape[:2]
    flat, side = scores.flatten(1), maps.shape[-1]
    q, k, found = (torch.tensor(x) for x in (query, key, features))

    def naclip():
        refined = peers.pamr(peers.pixels(scores, size), colours)
        return peers.labels(refined, of_query, 40, 0.1)

    def cliper():
        return peers.cliper((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1), flat)

    jobs = {
        "naclip": naclip,
        "sclip": lambda: peers.labels(peers.pixels(scores, size), of_query, 65, 0.1, 0.1),
        "cliper": cliper,
        "lposs": lambda: peers.lposs(found, side, flat),
    }
    return {name: _job(job) for name, job in jobs.items()}


def robust_velocity(
    cosines: torch.Tensor, attention: torch.Tensor, presence: torch.Tensor, readings: Readings
) -> torch.Tensor:
    """Scores [B, C, N] of the method "velocity" by the robust readings, in M2N2's kind of loops.

    Args:
        cosines: [B, C, N].
        attention: [B, N, N], rows sum to one.
        presence: [B, C], of the class token.
    """

    def deviation(x: torch.Tensor) -> torch.Tensor:
        return x.std((-2, -1), correction=0, keepdim=True)

    transition = attention
    for _ in range(readings.ipf_iters):
        transition = transition / transition.sum(-2, keepdim=True)
        transition = transition / transition.sum(-1, keepdim=True)
    p = (cosines / (readings.temperature * deviation(cosines))).softmax(-1)
    p = p / p.amax(-1, keepdim=True)
    steps = torch.where(p > readings.tau, 0, torch.nan)
    for step in range(readings.max_steps):
        after = p @ transition
        after = after / after.amax(-1, keepdim=True)
        crossing = step + (readings.tau - p) / (after - p)
        steps = torch.where(steps.isnan() & (after > readings.tau), crossing, steps)
        p = after
        if not steps.isnan().any():
            break
    beyond = readings.max_steps * (1 + (readings.tau / p).log())
    scores = -torch.where(steps.isnan(), beyond, steps).log1p()
    # In the unit of cosines: 0.6 of the deviation of what tells classes and patches apart.
    scores = scores - scores.mean(-2, keepdim=True)
    apart = cosines - cosines.mean(-1, keepdim=True)
    apart = apart - apart.mean(-2, keepdim=True)
    scores = scores * (0.6 * deviation(apart) / deviation(scores))
    return scores + readings.presence * presence[..., None]
