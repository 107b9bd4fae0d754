"""Peak memory of segmenting a large picture, above what the loaded model holds; on Linux."""

import json
import subprocess
import sys

_HEIGHT, _WIDTH, _CLASSES = 3000, 4000, 150

# A process of its own, so that its peak is this job's alone. The text embeddings are random: they
# are made once for a vocabulary and are no part of a picture's memory.
_JOB = f"""
import json, pathlib, re, resource, time
import jax, numpy as np
import dsolo_jax as dsolo
from dsolo_jax import clip, readings, vocabulary

config = clip.VIT_B16
model = dsolo.Model(
    config, clip.init(config, jax.random.key(0)), None, "clip", (0,), readings.Readings()
)
words = vocabulary.parse([str(c) for c in range({_CLASSES})])
text = np.random.default_rng(0).normal(size=({_CLASSES}, config.projection_dim))
model.embeddings[words] = (text / np.linalg.norm(text, axis=1, keepdims=True)).astype(np.float32)
blocks = np.random.default_rng(1).integers(0, 256, (30, 40, 3), np.uint8)
pixels = np.kron(blocks, np.ones(({_HEIGHT} // 30, {_WIDTH} // 40, 1), np.uint8))

status = pathlib.Path("/proc/self/status").read_text()
loaded, start = int(re.search(r"VmRSS:\\s+(\\d+) kB", status)[1]), time.perf_counter()
labels = dsolo.segment(model, pixels, words).labels
seconds = time.perf_counter() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps([1024 * (peak - loaded), seconds, list(labels.shape)]))
"""


def run() -> list[dict]:
    """One row: bytes above the loaded model, compilation included.

    An upper bound: the peak may be that of loading.
    """
    done = subprocess.run([sys.executable, "-c", _JOB], capture_output=True, text=True, check=True)
    peak_bytes, seconds, shape = json.loads(done.stdout.splitlines()[-1])
    return [
        {
            "stage": "memory",
            "case": f"segment {shape[1]} x {shape[0]}, {_CLASSES} classes, B/16",
            "seconds": seconds,
            "temporary_bytes": peak_bytes,
        }
    ]
