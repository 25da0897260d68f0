"""Echoes through wshd with the Python package websockets: python_client.py ADDRESS|wss://ADDRESS [VARIANT]

Random messages of 0 bytes to 1 MiB, whole and in fragments, with pings between, without compression and with each
variant of permessage-deflate. Prints the number of messages of each variant; any difference is an error.
"""

import asyncio
import random
import sys

from websockets.asyncio.client import connect
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory

SIZES = [0, 1, 63, 64, 125, 126, 127, 1000, 65535, 65536, 300_000, 1 << 20]

# What the client offers; None is no compression.
OFFERS = {
    "none": None,
    "plain": {},
    "window bits 9": {"server_max_window_bits": 9, "client_max_window_bits": 9},
    "window bits 15 and 10": {"server_max_window_bits": 15, "client_max_window_bits": 10},
    "server without takeover": {"server_no_context_takeover": True},
    "client without takeover": {"client_no_context_takeover": True},
    "both without takeover": {"server_no_context_takeover": True, "client_no_context_takeover": True},
}


def payload(random, size):
    """Noise, repetition, or text of one to four bytes a character."""
    kind = random.randrange(3)
    if kind == 0:
        return random.randbytes(size)
    if kind == 1:
        return (random.randbytes(7) * (size // 7 + 1))[:size]
    return "".join(random.choices("aж€𝄞 ", k=size // 2))


async def exchange(address, handler, offer, random):
    extensions = None if offer is None else [ClientPerMessageDeflateFactory(**offer)]
    options = {"compression": None, "extensions": extensions, "max_size": None, "ping_interval": None}
    count = 0
    async with connect(f"{address}/{handler}", **options) as client:
        agreed = [extension.name for extension in client.protocol.extensions]
        assert agreed == ([] if offer is None else ["permessage-deflate"]), agreed
        for size in SIZES + [random.randrange(1 << 20) for _ in range(8)]:
            message = payload(random, size)
            if random.randrange(2) and len(message) > 3:
                at = sorted(random.sample(range(len(message)), 3))
                pieces = [message[a:b] for a, b in zip([0, *at], [*at, None])]
                sending = asyncio.create_task(client.send(iter(pieces)))
            else:
                sending = asyncio.create_task(client.send(message))
            pong = await client.ping(random.randbytes(random.randrange(126)))
            answer = await client.recv()
            await sending
            await pong
            assert answer == message, f"{handler}: {len(message)} of {type(message).__name__}"
            count += 1
            # The server allows 20 pings in a second.
            await asyncio.sleep(0.05)
    assert client.close_code == 1000, client.close_code
    return count


async def main(address, only=None):
    address = address if "://" in address else f"ws://{address}"
    for name, offer in OFFERS.items():
        if only not in (None, name):
            continue
        for handler in ["echo", "echo_blocking"]:
            count = await exchange(address, handler, offer, random.Random(name + handler))
            print(f"{name}, {handler}: {count}", flush=True)


asyncio.run(main(*sys.argv[1:]))
