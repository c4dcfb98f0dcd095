"""A port for processes that find each other through a coordinator."""

import socket

__all__ = ["held_port"]


def held_port() -> socket.socket:
    """Binds a free port of this machine, and keeps it from all but the coordinator.

    The coordinator of `jax.distributed` binds with SO_REUSEPORT, as this socket does, so both may
    have the port; other programs are refused. Keep it open until the processes have joined.
    """
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    held.bind(("localhost", 0))
    return held
