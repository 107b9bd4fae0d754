"""Tiny checkpoints, written by the libraries that are the oracles."""

import json
import os
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Most of the suite's time was LLVM's and MLIR's, on programs that run once: here they leave out
# what would make them faster, and XLA's older emitter writes what is fused, while there is one (XLA
# ends the process at an option that it does not know). What XLA itself does, and so FLOPs and
# memory, is as it is for users; test_world.py's commands compile as theirs do.
os.environ["XLA_FLAGS"] = " ".join(
    (
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        *(
            ("--xla_cpu_use_fusion_emitters=false",)
            if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11)
            else ()
        ),
        os.environ.get("XLA_FLAGS", ""),
    )
)
# All but the smallest programs are kept for other workers and for drivers, see `private_cache`.
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

import pytest

# A few merges, so that the tokenizer has words of one token, of some, and of one a letter.
_MERGES = ("a t</w>", "c at</w>", "p h", "ph o", "pho t", "phot o</w>", "o f</w>", "' s</w>")


def _write_tokenizer(folder) -> int:
    """Writes vocab.json and merges.txt of a byte-level CLIP tokenizer; returns its size."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    tokens += [merge.replace(" ", "") for merge in _MERGES]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(_MERGES) + "\n")
    return len(vocabulary)


def _torch_clip(*, seed=0, vocab_size=522, hidden_act="quick_gelu", legacy_eos=False):
    """A tiny transformers CLIPModel whose weights are large enough for every part to matter."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    config = CLIPConfig(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "patch_size": 16,
            "image_size": 64,
            "hidden_act": hidden_act,
        },
        text_config={
            "vocab_size": vocab_size,
            "hidden_size": 16,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "hidden_act": hidden_act,
            "bos_token_id": vocab_size - 2,
            "eos_token_id": 2 if legacy_eos else vocab_size - 1,
        },
        projection_dim=24,
    )
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = CLIPModel(config).eval()
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape)
    return model


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory):
    """Folder of a tiny CLIP checkpoint as transformers saves it, with a tokenizer."""
    folder = tmp_path_factory.mktemp("tiny_clip")
    _torch_clip(vocab_size=_write_tokenizer(folder)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def torch_clip():
    """The function that makes a tiny transformers CLIPModel, for tests that need another one."""
    return _torch_clip


@pytest.fixture(scope="session", autouse=True)
def private_cache(tmp_path_factory):
    """Caches of the test run: neither read from the user's nor left there.

    One for all workers of pytest-xdist, whose own folders lie side by side.
    """
    from dsolo_jax.utils import cache

    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    os.environ["DSOLO_CACHE"] = str(shared / "cache")
    cache.keep_compilations()


@pytest.fixture(scope="module", autouse=True)
def few_mappings():
    """Lets compiled programs go in time: each takes some of the 65,530 memory mappings that Linux
    gives a process by default, and XLA crashes without one."""
    yield
    maps = Path("/proc/self/maps")
    if maps.is_file() and len(maps.read_bytes().splitlines()) > 20_000:
        import jax

        jax.clear_caches()


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """Pictures, labels, classes.txt and a CLIP that knows colours, see `oracles.colours`."""
    from tests.oracles.colours import write

    folder = tmp_path_factory.mktemp("demo")
    write(folder, num_pictures=5)
    return folder


@pytest.fixture(scope="session")
def model(demo):
    """The demo's CLIP, loaded."""
    import dsolo_jax as dsolo

    sizes = {"short_side": 224, "attention_size": 256}
    return dsolo.load("dslo_b16", clip=demo / "clip", attention="clip", **sizes)
