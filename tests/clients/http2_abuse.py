"""A client of HTTP/2, the Python package h2, that breaks rules: http2_abuse.py PORT CA

Each line of the output is a kind of abuse and what became of its connection, in which a WebSocket was open before.
"""

import socket
import ssl
import sys

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import ConnectionTerminated, DataReceived, ResponseReceived, StreamEnded, StreamReset
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

PORT, CA = int(sys.argv[1]), sys.argv[2]
REQUEST = [(":method", "GET"), (":scheme", "https"), (":authority", "localhost"), (":path", "/console.html")]
WEBSOCKET = [
    (":method", "CONNECT"),
    (":protocol", "websocket"),
    (":scheme", "https"),
    (":authority", "localhost"),
    (":path", "/echo"),
    ("sec-websocket-version", "13"),
]
HELLO = b"\x81\x85\0\0\0\0hello"  # a text frame
ANSWER = b"\x81\x05hello"


class Closed(Exception):
    """The server has closed the connection. Why it did (GOAWAY) is lost if something that it has not read was on the way."""


class Client:
    def __init__(self):
        context = ssl.create_default_context(cafile=CA)
        context.set_alpn_protocols(["h2"])
        plain = socket.create_connection(("127.0.0.1", PORT), timeout=30)
        self.socket = context.wrap_socket(plain, server_hostname="localhost")
        self.h2 = H2Connection(
            H2Configuration(
                client_side=True,
                header_encoding="utf-8",
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
            )
        )
        self.h2.initiate_connection()
        self.data, self.status, self.resets, self.ended = {}, {}, {}, set()
        self.send()
        self.websocket = self.begin(WEBSOCKET)
        self.until(lambda: self.websocket in self.status)
        assert self.status[self.websocket] == "200", self.status

    def send(self, raw=b""):
        """Sends what h2 has to say, and then bytes that it knows nothing of."""
        try:
            self.socket.sendall(self.h2.data_to_send() + raw)
        except OSError:
            self.read_to_end()

    def frames(self, *frames):
        self.send(b"".join(frame.serialize() for frame in frames))

    def begin(self, headers, end=False):
        stream = self.h2.get_next_available_stream_id()
        self.h2.send_headers(stream, headers, end_stream=end)
        self.send()
        return stream

    def read(self):
        try:
            data = self.socket.recv(65536)
        except OSError:
            data = b""
        if not data:
            raise Closed
        for event in self.h2.receive_data(data):
            match event:
                case ConnectionTerminated():
                    assert event.error_code in (ErrorCodes.ENHANCE_YOUR_CALM, ErrorCodes.PROTOCOL_ERROR), event
                    raise Closed
                case ResponseReceived():
                    self.status[event.stream_id] = dict(event.headers)[":status"]
                case DataReceived():
                    self.data[event.stream_id] = self.data.get(event.stream_id, b"") + event.data
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                case StreamEnded():
                    self.ended.add(event.stream_id)
                case StreamReset():
                    self.resets[event.stream_id] = ErrorCodes(event.error_code).name
        self.send()

    def read_to_end(self):
        while True:
            self.read()

    def until(self, is_so):
        while not is_so():
            self.read()

    def is_served(self):
        """The WebSocket still echoes."""
        before = len(self.data.get(self.websocket, b""))
        self.h2.send_data(self.websocket, HELLO)
        self.send()
        self.until(lambda: len(self.data.get(self.websocket, b"")) >= before + len(ANSWER))
        assert self.data[self.websocket].endswith(ANSWER)


def reset_at_once(client):
    for _ in range(1000):
        client.h2.reset_stream(client.begin(WEBSOCKET))


def resets_of_the_server(client):
    for _ in range(3000):
        stream = client.begin(WEBSOCKET)
        client.frames(WindowUpdateFrame(stream, window_increment=(1 << 31) - 1))
        client.until(lambda: stream in client.resets)


def settings(client):
    for _ in range(100):
        client.frames(*[SettingsFrame(0, settings={4: 65_535 + number}) for number in range(100)])


def pings(client):
    for _ in range(100):
        client.frames(*[PingFrame(0, opaque_data=b"12345678")] * 100)


def priorities(client):
    for _ in range(100):
        client.frames(*[PriorityFrame(2 * number + 101, depends_on=0, stream_weight=7) for number in range(100)])


def empty_data(client):
    for _ in range(100):
        client.frames(*[DataFrame(client.websocket, b"")] * 100)


def huge_header(client):
    block = client.h2.encoder.encode([*REQUEST, ("x", "y" * 1_000_000)], huffman=False)
    stream = client.h2.get_next_available_stream_id()
    client.frames(HeadersFrame(stream, block[:16_384], flags=["END_STREAM"]))
    for at in range(16_384, len(block), 16_384):
        client.frames(ContinuationFrame(stream, block[at : at + 16_384]))


def many_headers(client):
    client.begin([*REQUEST, *((f"x-{number}", "y") for number in range(20_000))], end=True)


def headers_that_unpack(client):
    """One entry of the table of HPACK, referred to a thousand times: each costs a byte."""
    block = client.h2.encoder.encode([*REQUEST, ("x", "y" * 3000)])
    reference = client.h2.encoder.encode([("x", "y" * 3000)])
    stream = client.h2.get_next_available_stream_id()
    client.frames(HeadersFrame(stream, block + reference * 1000, flags=["END_HEADERS", "END_STREAM"]))


def headers_that_never_end(client):
    stream = client.h2.get_next_available_stream_id()
    client.frames(HeadersFrame(stream, client.h2.encoder.encode(REQUEST)))
    while True:
        client.frames(*[ContinuationFrame(stream, b"\0\1x\1y" * 100)] * 100)


def streams_that_never_end(client):
    streams = [client.begin([*REQUEST[:3], (":path", "/echo"), ("content-length", "10")]) for _ in range(200)]
    client.until(lambda: all(stream in client.ended or stream in client.resets for stream in streams))


def too_many_streams(client):
    client.h2.remote_settings.max_concurrent_streams = 1000
    client.h2.remote_settings.acknowledge()
    for _ in range(400):
        client.begin(WEBSOCKET)
    client.until(lambda: "REFUSED_STREAM" in client.resets.values())


def data_on_a_closed_stream(client):
    stream = client.begin(REQUEST, end=True)
    client.until(lambda: stream in client.ended)
    client.frames(DataFrame(stream, b"x"))


def more_than_the_window(client):
    stream = client.begin(WEBSOCKET)
    client.frames(*[DataFrame(stream, b"\0" * 16_384)] * 5)
    # Or the worker was faster, and ends it, since these are no frames of a client.
    client.until(lambda: stream in client.resets or stream in client.ended)


def nothing_is_taken(client):
    """Messages whose echoes the window keeps back."""
    client.frames(SettingsFrame(0, settings={4: 0}))
    stream = client.begin(WEBSOCKET)
    client.until(lambda: stream in client.status)
    message = b"\x82\xfe\x3f\x00\0\0\0\0" + b"x" * 0x3F00
    for _ in range(3000):
        room = client.h2.local_flow_control_window(stream)
        if room < len(message):
            break
        client.h2.send_data(stream, message)
        client.send()
    client.frames(SettingsFrame(0, settings={4: 65_535}))


ABUSES = [
    ("streams reset at once", reset_at_once),
    ("streams that the server has to reset", resets_of_the_server),
    ("SETTINGS", settings),
    ("PING", pings),
    ("PRIORITY", priorities),
    ("DATA without data", empty_data),
    ("a huge header", huge_header),
    ("many headers", many_headers),
    ("headers that unpack", headers_that_unpack),
    ("headers that never end", headers_that_never_end),
    ("streams that never end", streams_that_never_end),
    ("too many streams", too_many_streams),
    ("DATA on a closed stream", data_on_a_closed_stream),
    ("more than the window allows", more_than_the_window),
    ("nothing is taken", nothing_is_taken),
]

for name, abuse in ABUSES:
    if len(sys.argv) > 3 and sys.argv[3] not in name:
        continue
    client = Client()
    try:
        abuse(client)
        client.is_served()
        outcome = "served"
    except Closed:
        outcome = "closed"
    print(f"{name}: {outcome}", flush=True)
    Client().is_served()
