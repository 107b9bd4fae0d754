"""What a traced program does, what a device could do, and how jobs are timed."""

import json
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dsolo_jax as dsolo
from experiments import profiling
from experiments.benchmarks import memory, timing
from experiments.benchmarks.account import Device, account, product_flops, roofline
from experiments.benchmarks.timing import Program


def _loop(x):
    return jax.lax.fori_loop(0, 5, lambda i, x: jax.jit(jnp.matmul)(x, x), x)


def _convolution(x):
    image, kernel = x.reshape(1, 4, 9, 1), x.reshape(3, 3, 1, 4)
    return jax.lax.conv_general_dilated(
        image, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@pytest.mark.parametrize(
    ("function", "flops"),
    [
        (lambda x: x + 1, 0),
        (lambda x: x @ x.T, 2 * 6 * 6 * 6),
        (lambda x: x[:, :2] @ x[:2], 2 * 6 * 2 * 6),
        (jax.vmap(lambda x: x[None] @ x[:, None]), 6 * 2 * 6),
        (_loop, 5 * 2 * 6**3),
        (lambda x: jax.lax.map(lambda y: x @ y, x), 6 * 2 * 6 * 6),
        (lambda x: jax.lax.cond(x[0, 0] > 0, lambda x: x @ x, lambda x: x, x), 2 * 6**3),
        (_convolution, 2 * 4 * 9 * 9 * 4),
    ],
)
def test_flops_are_two_for_each_multiplication(function, flops):
    assert product_flops(function, jnp.ones((6, 6))) == flops


@pytest.mark.parametrize(
    ("dtype", "precision", "peak"),
    [
        (jnp.bfloat16, None, "bfloat16"),
        (jnp.float16, "highest", "bfloat16"),
        (jnp.float32, None, "tf32"),
        (jnp.float32, "high", "tf32"),
        (jnp.float32, "highest", "float32"),
    ],
)
def test_a_product_is_bounded_by_the_peak_of_its_factors_and_precision(dtype, precision, peak):
    x = jnp.ones((4, 4), dtype)
    traced = jax.make_jaxpr(lambda x: jnp.matmul(x, x, precision=precision))(x)
    assert account(traced).flops == {peak: 2 * 4**3}


def test_a_loop_reads_what_does_not_change_once_a_round():
    def loop(x, matrix):
        return jax.lax.while_loop(lambda x: x[0, 0] < 1e9, lambda x: x @ matrix, x)

    traced = jax.make_jaxpr(loop)(jnp.ones((3, 8), jnp.float32), jnp.ones((8, 8), jnp.float32))
    once, seven = account(traced), account(traced, rounds=(7,))
    assert once.flops.total() == 2 * 3 * 8 * 8 and once.reread == 0
    assert seven.flops.total() == 7 * once.flops.total()
    assert seven.reread == 6 * 4 * 8 * 8


def test_a_scan_says_itself_how_often_it_runs():
    def step(matrix, carried, row):
        return carried + row @ matrix, row[0]

    def scan(matrix, rows):
        start = jnp.zeros(8, jnp.float32)
        return jax.lax.scan(lambda *given: step(matrix, *given), start, rows)

    traced = jax.make_jaxpr(scan)(jnp.ones((8, 8), jnp.float32), jnp.ones((5, 8), jnp.float32))
    found = account(traced)
    assert found.flops.total() == 5 * 2 * 8 * 8 and found.reread == 4 * 4 * 8 * 8


def test_the_solver_is_known_to_read_its_graph_once_a_round():
    """A's 15 rounds of two products with a vector, and 30 steps of every class."""
    f, graph = jnp.ones((3, 16), jnp.float32), jnp.eye(16, dtype=jnp.float32)
    traced = jax.make_jaxpr(lambda f, graph: dsolo.discrepancy(f, graph))(f, graph)
    found = account(traced, rounds=(30,))
    assert 1 <= found.flops.total() / (2 * 16**2 * (15 * 2 + 30 * 3)) < 1.1
    assert found.reread >= (14 + 29) * 4 * 16**2


def test_the_roofline_takes_the_nearer_bound():
    device = Device(bfloat16=100.0, tf32=50.0, float32=10.0, bandwidth=8.0)
    # 200 / 100 + 40 / 10 = 6 s of products, 16 / 8 = 2 s of memory.
    found = roofline({"bfloat16": 200, "float32": 40}, 16, 12.0, device)
    peaks = {"bfloat16": 100.0, "float32": 10.0}
    wanted = {"intensity": 15.0, "bound": "compute", "share_of_bound": 0.5, "peaks": peaks}
    assert found == wanted
    found = roofline({"float32": 40}, 64, 10.0, device)
    assert found["bound"] == "memory" and found["share_of_bound"] == 0.8
    assert found["peaks"] == {"bandwidth": 8.0}


def test_without_peaks_there_is_the_intensity_alone():
    assert roofline({"float32": 40}, 16, 1.0, None) == {"intensity": 2.5}
    assert roofline({}, 0, 1.0, Device(1.0, 1.0, 1.0, 1.0)) == {}


def test_jobs_take_turns_and_have_percentiles():
    calls = []
    jobs = {name: lambda name=name: calls.append(name) for name in ("ours", "torch")}
    found = timing.turns("row", jobs, scale=0.5)
    assert calls[:6] == ["ours", "torch"] * 3
    for timed in found.values():
        assert len(timed["timings"]) == len(calls) / 2 - 1
        assert timed["p10"] <= timed["seconds"] <= timed["p90"]
    known = timing.percentiles([float(x) for x in range(11)])
    assert (known["p10"], known["seconds"], known["p90"]) == (1.0, 5.0, 9.0)


def test_a_baseline_that_fails_is_told_and_left_out(capsys):
    def fails():
        raise RuntimeError("out of memory")

    assert timing.turns("row", {"ours": lambda: None, "torch": fails}).keys() == {"ours"}
    assert "row without torch: out of memory" in capsys.readouterr().err
    with pytest.raises(RuntimeError):
        timing.turns("row", {"ours": fails})


def test_a_program_is_run_and_accounted_for():
    x, y = jnp.ones((3, 4), jnp.float32), jnp.ones((4, 5), jnp.float32)
    program = Program(lambda x, y: x @ y, x, y=y)
    assert (program() == 4).all() and program().shape == (3, 5)
    columns = program.columns()
    assert columns["flops_by_peak"] == {"tf32": 2 * 3 * 4 * 5}
    assert columns["least_bytes"] == 4 * (3 * 4 + 4 * 5 + 3 * 5)
    assert columns["peak_bytes"] >= columns["least_bytes"]
    assert columns["lower_s"] > 0 and columns["compile_s"] > 0


def test_the_first_call_of_a_job_says_what_compilation_took():
    function = jax.jit(lambda x: x * 3.25 + 1)
    assert timing.first_call(lambda: function(np.ones(7)))["compile_s"] > 0
    assert timing.first_call(lambda: function(np.ones(7)))["compile_s"] == 0


def _plane(name, **lines):
    each = [
        SimpleNamespace(
            name=line.replace("_", " "), events=[SimpleNamespace(duration_ns=x) for x in durations]
        )
        for line, durations in lines.items()
    ]
    return SimpleNamespace(name=name, lines=each)


def test_device_time_is_that_of_the_kernels():
    gpu = _plane("/device:GPU:0", Stream_7=[3.0, 4.0], Stream_8=[5.0], XLA_Ops=[100.0])
    tpu = _plane("/device:TPU:0", XLA_Ops=[2.0, 1.0], Steps=[100.0])
    host = _plane("/host:CPU", Stream_1=[100.0])
    assert timing._kernels([gpu, host]) == 12.0 and timing._kernels([tpu]) == 3.0
    assert timing._kernels([host]) == 0


def test_a_profile_of_a_cpu_has_no_device_time_but_leaves_its_trace(tmp_path):
    job = lambda: jnp.ones(3) + 1  # noqa: E731
    assert timing.device_seconds(job) is None
    assert timing.device_seconds(job, tmp_path / "trace") is None
    assert list((tmp_path / "trace").rglob("*.xplane.pb"))


@pytest.mark.skipif(sys.platform != "linux", reason="resident bytes are Linux's account")
def test_a_peak_is_what_a_job_needs_above_what_is_resident(capsys):
    memory._print_peak(lambda: np.ones(2**28, np.uint8).sum())
    used, seconds = json.loads(capsys.readouterr().out)
    assert used >= 2**27 and seconds > 0
    assert profiling.peak_bytes() >= max(profiling.resident_bytes(), 2**28)
