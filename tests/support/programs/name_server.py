"""A name server of a few names: `name_server ADDRESS NAME=IP...` answers what is asked for over UDP until it is killed."""

from __future__ import annotations

import socket
import struct
import sys

_A, _SECONDS = 1, 60  # the kind of an IPv4 address; how long an answer may be kept


def answer(query: bytes, names: dict[str, str]) -> bytes:
    """The address of a name; of IPv6 there is none, and what is not known does not exist."""
    labels, place = [], 12
    while size := query[place]:
        labels.append(query[place + 1 : place + 1 + size].decode())
        place += size + 1
    question = query[12 : place + 5]
    (kind,) = struct.unpack_from("!H", query, place + 1)
    known = names.get(".".join(labels).lower())
    record = b"\xc0\x0c" + struct.pack("!HHIH", _A, 1, _SECONDS, 4) + socket.inet_aton(known) if known and kind == _A else b""
    flags = 0x8580 | (0 if known else 3)
    return query[:2] + struct.pack("!HHHHH", flags, 1, bool(record), 0, 0) + question + record


def main() -> None:
    address, *pairs = sys.argv[1:]
    names = dict(pair.split("=") for pair in pairs)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((address, 53))
        print("ready", flush=True)
        while True:
            query, asker = server.recvfrom(512)
            server.sendto(answer(query, names), asker)


if __name__ == "__main__":
    main()
