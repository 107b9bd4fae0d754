"""How processes meet, and what is said where they do not."""

import socket
import threading

import pytest

from experiments import processes


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(autouse=True)
def started(monkeypatch):
    """What JAX was started with, instead of starting it."""
    found = []
    monkeypatch.setattr(processes.jax.distributed, "initialize", lambda *x: found.append(x))
    return found


def meet(port, *members, patience=10.0):
    """Joins as each of (index, count) at once; what each raised, or None."""
    raised = {}

    def join(place, index, count):
        try:
            processes.join(f"127.0.0.1:{port}", count, index, patience)
            raised[place] = None
        except (OSError, ValueError) as error:
            raised[place] = str(error)

    threads = [threading.Thread(target=join, args=(i, *member)) for i, member in enumerate(members)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [raised[i] for i in range(len(members))]


def test_all_start_when_all_are_there(port, started):
    assert meet(port, (2, 3), (1, 3), (0, 3)) == [None] * 3
    place = f"127.0.0.1:{port}"
    assert sorted(started) == [(place, 3, 0), (place, 3, 1), (place, 3, 2)]


def test_the_missing_are_named_in_time(port, started):
    zero, one = meet(port, (0, 3), (1, 3), patience=1.0)
    assert zero.startswith("process 2 of 3 did not come in 1 s; start each with the same")
    assert one.startswith("process 1 of 3: no word from process 0 in 1 s") and not started


def test_without_process_0_the_others_say_so(port, started):
    [said] = meet(port, (1, 2), patience=0.3)
    assert "no word from process 0" in said and "refused" in said and not started


@pytest.mark.parametrize("stranger", [(1, 2), (7, 8)])
def test_one_that_does_not_fit_is_refused(stranger, port, started):
    found = meet(port, (0, 2), stranger, stranger, patience=1.0)
    refused = [said for said in found[1:] if said and "was refused by process 0" in said]
    assert refused or "no word" in str(found[1:])
    assert len(started) == (2 if stranger == (1, 2) else 0)


def test_a_port_that_is_taken_is_named(port):
    with socket.create_server(("", port)):
        [said] = meet(port, (0, 2), patience=1.0)
    assert said.startswith(f"process 0 cannot listen on port {port}: ")
