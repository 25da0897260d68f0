"""WebSocket clients of the benchmarks of scale and overload: a crowd that is idle, and one that measures latency.

Each crowd is a process of its own, forked, which ends when it is told to, when its time is over, or when the server has
closed all its connections. Frames are masked with a key of zero, which leaves the payload as it is.
"""

import multiprocessing
import os
import select
import socket
import struct
import time

IP_BIND_ADDRESS_NO_PORT = 24  # linux/in.h: the port is chosen at connect, so that it is unique by all four numbers
FORK = multiprocessing.get_context("fork")


def masked(first, payload=b""):
    """A client's frame: its first byte (FIN and opcode), and at most 64 KiB - 1 of payload."""
    size = len(payload)
    length = bytes([0x80 | size]) if size < 126 else struct.pack(">BH", 0xFE, size)
    return bytes([first]) + length + bytes(4) + payload


def connect(address, source=None, receive_buffer=None):
    """A blocking socket that is connected; each step may take 10 seconds."""
    sock = socket.socket()
    if receive_buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    if source:
        sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        sock.bind((source, 0))
    limit = struct.pack("ll", 10, 0)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.connect(address)
    return sock


def upgrade(headers=""):
    return ("GET /echo HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{headers}\r\n").encode()


def open_websocket(address, receive_buffer=None, headers=""):
    sock = connect(address, receive_buffer=receive_buffer)
    sock.sendall(upgrade(headers))
    answer = b""
    while b"\r\n\r\n" not in answer:
        piece = sock.recv(4096)
        if not piece:
            raise ConnectionError("the server closed during the handshake")
        answer += piece
    if b" 101 " not in answer[:16]:
        raise ConnectionError(answer.split(b"\r\n")[0].decode())
    return sock


class Idle:
    """Connections that are opened as fast as it goes and then answer pings and close frames only."""

    COUNTERS = ("opened", "refused", "pings", "going_away", "ended")

    def __init__(self, addresses, source, count, seconds):
        self.counters = FORK.RawArray("q", len(self.COUNTERS))
        self.addresses, self.source, self.count = addresses, source, count
        self.deadline = time.monotonic() + seconds
        self.process = FORK.Process(target=self._run, daemon=True)
        self.process.start()

    def __getattr__(self, name):
        if name in Idle.COUNTERS:
            return self.counters[Idle.COUNTERS.index(name)]
        raise AttributeError(name)

    def stop(self):
        self.process.terminate()
        self.process.join()

    def _add(self, name):
        self.counters[Idle.COUNTERS.index(name)] += 1

    def _run(self):
        self.poll, self.socks, self.upgrading = select.epoll(), {}, set()
        started = 0
        while time.monotonic() < self.deadline:
            if started < self.count and len(self.upgrading) < 64:
                self._start(self.addresses[started % len(self.addresses)])
                started += 1
                wait = 0
            else:
                wait = 1
            if started == self.count and not self.socks:
                return
            if wait or started % 16 == 0:
                for number, _ in self.poll.poll(wait, 256):
                    self._readable(number)

    def _start(self, address):
        try:
            sock = connect(address, self.source)
            sock.sendall(upgrade())
        except OSError:
            return self._add("refused")
        sock.setblocking(False)
        self.socks[sock.fileno()] = sock
        self.upgrading.add(sock.fileno())
        self.poll.register(sock.fileno(), select.EPOLLIN)

    def _readable(self, number):
        sock = self.socks[number]
        try:
            data = sock.recv(4096)
        except OSError:
            data = b""
        if number in self.upgrading and data:
            self.upgrading.discard(number)
            head, _, data = data.partition(b"\r\n\r\n")
            opened = b" 101 " in head[:16]
            self._add("opened" if opened else "refused")
            if opened and not data:
                return
            if not opened:
                return self._end(number)
        elif not data:
            if number in self.upgrading:
                self._add("refused")
            else:
                self._add("ended")
            return self._end(number)
        while len(data) >= 2:  # Control frames, which the server writes whole.
            first, size = data[0], data[1]
            payload, data = data[2:2 + size], data[2 + size:]
            try:
                if first == 0x89:
                    self._add("pings")
                    sock.send(masked(0x8A, payload))
                elif first == 0x88:
                    if payload[:2] == struct.pack(">H", 1001):
                        self._add("going_away")
                    sock.send(masked(0x88, payload[:2]))
            except OSError:
                pass  # Its end is the next event.

    def _end(self, number):
        self.upgrading.discard(number)
        self.socks.pop(number).close()


class Probe:
    """Well-behaved clients: each sends 20 bytes every 32 ms or, if the echo comes later than that, when it is there."""

    MESSAGE = masked(0x82, bytes(20))
    ECHO = 22
    PAUSE = 0.032

    def __init__(self, address, connections=16):
        self.socks = [open_websocket(address) for _ in range(connections)]

    def latencies(self, seconds):
        """In microseconds, sorted; at the end also of those whose echo has not come yet."""
        begin, found = time.monotonic(), []
        due = {sock: begin + self.PAUSE * number / len(self.socks) for number, sock in enumerate(self.socks)}
        waiting = {}  # By descriptor: socket, when it was sent, bytes still to come.
        poll = select.epoll()
        for sock in self.socks:
            poll.register(sock.fileno(), select.EPOLLIN)
        while (now := time.monotonic()) < begin + seconds:
            for sock in [sock for sock, when in due.items() if when <= now]:
                waiting[sock.fileno()] = [sock, time.monotonic(), self.ECHO]
                sock.sendall(self.MESSAGE)
                del due[sock]
            pause = min(due.values(), default=now + 0.1) - time.monotonic()
            for number, _ in poll.poll(max(pause, 0)):
                sock, sent, missing = waiting[number]
                piece = sock.recv(missing)
                if not piece:
                    raise ConnectionError("the server closed a well-behaved connection")
                waiting[number][2] -= len(piece)
                if len(piece) == missing:
                    done = time.monotonic()
                    found.append((done - sent) * 1e6)
                    due[sock] = max(sent + self.PAUSE, done)
                    del waiting[number]
        return sorted(found + [(time.monotonic() - sent) * 1e6 for _, sent, _ in waiting.values()])


def be_nice(amount):
    """Others first, or we first; what is not allowed is left as it is."""
    try:
        os.nice(amount)
    except OSError:
        pass
