"""How several processes find each other before they are one run of JAX's."""

import contextlib
import socket
import sys
import time

import jax


def join(coordinator: str, count: int, index: int, patience: float) -> None:
    """Meets the other processes at the coordinator, then starts `jax.distributed` there.

    JAX aborts where one of them does not come: they meet on plain connections first.

    Args:
        coordinator: HOST:PORT of process 0.
        count, index: of the processes, and of this one among them.
        patience: seconds that the others are waited for.

    Raises:
        ValueError: no HOST:PORT, or an index or count that does not fit those of the others.
        OSError: the others did not come in time, or the port is taken.
    """
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(
            f"--coordinator={coordinator}: wanted HOST:PORT of process 0, such as 10.0.0.5:1234"
        )
    others = f"the others of {count} processes" if index == 0 else "process 0"
    print(f"process {index}: waiting for {others} at {coordinator}", file=sys.stderr, flush=True)
    if index == 0:
        _gather(int(port), count, patience)
    else:
        _report((host.strip("[]"), int(port)), f"{index} of {count}", patience)
    jax.distributed.initialize(coordinator, count, index)


def _gather(port: int, count: int, patience: float) -> None:
    """Waits for the others, then tells each of them that all are there."""
    missing, peers = {f"{i} of {count}" for i in range(1, count)}, []
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    with contextlib.ExitStack() as stack:
        try:
            server = socket.create_server(("", port), family=family, dualstack_ipv6=both)
        except OSError as error:
            raise OSError(f"process 0 cannot listen on port {port}: {error}") from error
        stack.enter_context(server).settimeout(patience)
        while missing:
            try:
                peer = stack.enter_context(server.accept()[0])
                peer.settimeout(patience)
                name = peer.recv(64).decode(errors="replace")
            except TimeoutError as error:
                raise OSError(
                    f"process {', '.join(sorted(missing))} did not come in {patience:.0f} s; start "
                    "each with the same --coordinator and --num_processes, and its --process_id"
                ) from error
            if name in missing:
                missing.remove(name)
                peers.append(peer)
            else:
                with contextlib.suppress(OSError):
                    peer.sendall(b"wanted the same --num_processes, and each --process_id once")
        for peer in peers:
            peer.sendall(b"go")


def _report(place: tuple[str, int], name: str, patience: float) -> None:
    """Tells process 0 that this one is there, and waits for its word."""
    until, answer, reason = time.monotonic() + patience, b"", ""
    while not answer:
        left = until - time.monotonic()
        if left < 0:
            raise OSError(
                f"process {name}: no word from process 0 in {patience:.0f} s ({reason}); start it "
                "and all others with the same --coordinator"
            )
        try:
            with socket.create_connection(place, timeout=left) as peer:
                peer.sendall(name.encode())
                answer = peer.recv(256)
        except OSError as error:
            reason = str(error)
        time.sleep(0.1)
    if answer != b"go":
        raise ValueError(f"process {name} was refused by process 0: {answer.decode()}")
