"""The access to JAX's coordinator: the processes of a run can reach it, and nobody else.

JAX's coordinator does not ask who connects: whoever reaches it can join a run, or end it. So it listens on a socket
file in a private directory of process 0. On the network only this door listens, at the address that the user gave. It
lets in those who have the run's token, passes on what they send, and closes once all have joined.
"""

import hmac
import os
import secrets
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

_PROOF_SECONDS = 10  # within which a process has to show that it has the token
_SIZE = 32  # bytes of a token, of a challenge and of its answer


def token(directory: Path) -> bytes:
    """Returns the run's token, kept in its directory, readable by its owner only. The first process makes both."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / ".token"
    with tempfile.NamedTemporaryFile(dir=directory, prefix=".token.") as made:  # of mode 0600
        made.write(secrets.token_bytes(_SIZE))
        made.flush()
        with suppress(FileExistsError):
            os.link(made.name, path)
    return path.read_bytes()


@contextmanager
def opened(address: tuple[str, int], key: bytes) -> Iterator[str]:
    """In process 0: listens at an address for those who have the key. Gives the address for the coordinator."""
    with tempfile.TemporaryDirectory(prefix="intlm-") as private, ExitStack() as stack:
        inside = f"{private}/door"
        kind, *_, where = socket.getaddrinfo(*address, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        outside = stack.enter_context(closing(socket.create_server(where[:2], family=kind)))

        def admit(guest: socket.socket) -> None:
            if _proves(guest, key, b"door", b"guest"):
                host = socket.socket(socket.AF_UNIX)
                host.connect(inside)
                _join(guest, host)

        _serve(outside, admit, stack)
        yield f"unix:{inside}"


@contextmanager
def entered(address: tuple[str, int], key: bytes) -> Iterator[str]:
    """In another process: connects through the door at an address. Gives the address to use as the coordinator's."""
    with tempfile.TemporaryDirectory(prefix="intlm-") as private, ExitStack() as stack:
        inside = f"{private}/door"
        own = stack.enter_context(closing(socket.socket(socket.AF_UNIX)))
        own.bind(inside)
        own.listen()

        warned = False

        def go(caller: socket.socket) -> None:
            nonlocal warned
            guest = socket.create_connection(address, _PROOF_SECONDS)
            if _proves(guest, key, b"guest", b"door"):
                _join(caller, guest)
            elif not warned:
                warned = True
                what = "another run listens there, or --run-dir is not the same directory for all processes"
                print(f"intlm: --coordinator = {address[0]}:{address[1]}: {what}", file=sys.stderr, flush=True)

        _serve(own, go, stack)
        yield f"unix:{inside}"


def _serve(listener: socket.socket, answer: Callable[[socket.socket], None], stack: ExitStack) -> None:
    """Answer each connection in a thread, until the stack ends."""

    def one(caller: socket.socket) -> None:
        with suppress(OSError):  # the other side tries again
            answer(caller)

    def all_of_them() -> None:
        with suppress(OSError):  # closed
            while True:
                threading.Thread(target=one, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=all_of_them, daemon=True).start()
    stack.callback(listener.shutdown, socket.SHUT_RDWR)  # close alone would leave it waiting


def _proves(other: socket.socket, key: bytes, own_side: bytes, other_side: bytes) -> bool:
    """Whether the other end has the same key. Neither end reveals it, and one end's answer does not serve the other."""
    other.settimeout(_PROOF_SECONDS)
    challenge = secrets.token_bytes(_SIZE)
    other.sendall(challenge)
    other.sendall(hmac.digest(key, own_side + _take(other), "sha256"))
    proves = hmac.compare_digest(_take(other), hmac.digest(key, other_side + challenge, "sha256"))
    other.settimeout(None)
    return proves


def _take(some: socket.socket) -> bytes:
    data = b""
    while len(data) < _SIZE:
        if not (part := some.recv(_SIZE - len(data))):
            raise ConnectionError
        data += part
    return data


def _join(one: socket.socket, other: socket.socket) -> None:
    """Pass data between two sockets in both directions, until one ends."""

    def hand_on(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while part := source.recv(1 << 16):
                sink.sendall(part)
        for some in (source, sink):
            with suppress(OSError):
                some.shutdown(socket.SHUT_RDWR)

    threading.Thread(target=hand_on, args=(one, other), daemon=True).start()
    hand_on(other, one)
