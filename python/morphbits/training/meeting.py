"""Where the machines of a training meet, and by which address and interface this one is reached.

torch takes both from the machine's host name, which need not be known to the others, or means the
machine itself only (Debian: 127.0.1.1). The way to the meeting place tells.
"""

from __future__ import annotations

import fcntl
import ipaddress
import os
import socket
import struct
from contextlib import suppress
from pathlib import Path

from torch.distributed.elastic.rendezvous import RendezvousError

from morphbits.errors import UserError

_ELSEWHERE = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}  # for documentation
_SIOCGIFADDR = 0x8915  # its number in linux/sockios.h
_INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def options(endpoint: str) -> list[str]:
    """torchrun's options of this machine's own address for the meeting place HOST:PORT; what gloo
    and NCCL are told of its interface goes into the environment, where nothing is there yet."""
    host, _, port = endpoint.rpartition(":")
    host = host.strip("[]")
    try:
        family, _, _, _, place = socket.getaddrinfo(host, int(port), type=socket.SOCK_DGRAM)[0]
    except (OSError, ValueError) as error:
        raise UserError(
            f"RDZV={endpoint}: this machine knows no such place ({error}); give HOST:PORT, with "
            "the name or address of one of the machines that all of them reach"
        ) from None
    if host == "localhost" or _is_loopback(host):  # all on this machine
        return []
    there = str(place[0])
    own = _own_address(family, there)
    if own is None:
        raise UserError(f"RDZV={endpoint}: there is no way from this machine to {there}")
    found = [] if _is_loopback(there) else [f"--rdzv-conf=is_host={int(own == there)}"]
    if _is_loopback(own):  # a host's name for itself: by what others see of it
        own = _own_address(family, _ELSEWHERE[family])
    if own is None:
        return found
    if name := _interface(own):
        for variable in _INTERFACES:
            os.environ.setdefault(variable, name)
    return [*found, f"--local-addr={own}"]


def failure(endpoint: str, error: RendezvousError) -> UserError:
    """A meeting that came to nothing."""
    return UserError(
        f"RDZV={endpoint}: the machines did not meet ({type(error).__name__}): start the same "
        "command on each of them, with the same RUN_ID and as many as NNODES says; the port must "
        "be free on the one that RDZV names, and open to the others"
    )


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address.partition("%")[0]).is_loopback
    except ValueError:
        return False


def _own_address(family: int, there: str) -> str | None:
    """The address by which this machine goes there; None where there is no way."""
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((there, 9))  # nothing is sent
        except OSError:
            return None
        return str(probe.getsockname()[0])


def _interface(address: str) -> str | None:
    """The interface that has this address."""
    own = ipaddress.ip_address(address.partition("%")[0])
    if own.version == 6:
        for line in Path("/proc/net/if_inet6").read_text("ascii").splitlines():
            digits, *_, name = line.split()
            if digits == own.packed.hex():
                return name
        return None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # it has no address
                answer = fcntl.ioctl(asked, _SIOCGIFADDR, struct.pack("256s", name.encode()))
                if answer[20:24] == own.packed:
                    return name
    return None
