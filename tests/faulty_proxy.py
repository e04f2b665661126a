"""A proxy before an S3 server that loses, delays, cuts and forges, as told or at random."""

from __future__ import annotations

import http.client
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

Answer = tuple[int, list[tuple[str, str]], bytes]
Fault = Callable[["Exchange"], None]


class Exchange(BaseHTTPRequestHandler):
    """One request on its way; a fault decides what becomes of it."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: FaultyProxy

    def setup(self) -> None:
        super().setup()
        self.upstream = http.client.HTTPConnection(*self.server.upstream, timeout=30)

    def finish(self) -> None:
        self.upstream.close()
        with suppress(OSError):
            super().finish()

    def handle_one_request(self) -> None:
        self.__dict__.pop("body", None)
        self.raw_requestline = self.rfile.readline(65537)
        if not self.raw_requestline or not self.parse_request():
            self.close_connection = True
            return
        with self.server.counted():
            fault = self.server.next_fault(self)
            fault(self)
            self.wfile.flush()

    @property
    def length(self) -> int:
        return int(self.headers.get("Content-Length", 0))

    @cached_property
    def body(self) -> bytes:
        return self.rfile.read(self.length)

    def forward(self) -> Answer:
        """Send the request on to the server, and return what it answers."""
        body = self.body
        self._send_head()
        self.upstream.send(body)
        reply = self.upstream.getresponse()
        return reply.status, reply.getheaders(), reply.read()

    def forward_half(self) -> None:
        """Let the server see a request that breaks off in its body."""
        body = self.body
        self._send_head()
        self.upstream.send(body[: len(body) // 2])
        self.upstream.close()

    def _send_head(self) -> None:
        self.upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in ("expect", "connection"):
                self.upstream.putheader(name, value)
        self.upstream.endheaders()

    def answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        """Give the client this reply to its request, which has been read by then."""
        assert len(self.body) == self.length
        self.answer_head(status, headers, body)
        if self.command != "HEAD":
            self.wfile.write(body)

    def answer_head(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        length = next((v for n, v in headers if n.lower() == "content-length"), len(body))
        self.send_header("Content-Length", str(length if self.command == "HEAD" else len(body)))
        self.end_headers()

    def hang_up(self) -> None:
        self.close_connection = True

    def wait_for_the_client_to_go(self) -> None:
        with suppress(OSError):
            while self.rfile.read1(65536):
                continue
        self.hang_up()

    def log_message(self, *_: object) -> None:
        return


class FaultyProxy(ThreadingHTTPServer):
    """Forwards what no fault befalls.

    `faults` are used up, one for each conditional write or completion. `weather`, if it is
    set, decides about every other request.
    """

    daemon_threads = True

    def __init__(self, endpoint_url: str) -> None:
        super().__init__(("127.0.0.1", 0), Exchange)
        parts = urlsplit(endpoint_url)
        self.upstream = (parts.hostname, parts.port)
        self.endpoint_url = f"http://127.0.0.1:{self.server_address[1]}"
        self.faults: list[Fault] = []
        self.weather: Callable[[Exchange], Fault] | None = None
        self.is_down = False
        self.seen: list[str] = []
        self.closing = threading.Event()
        self._under_way = 0
        self._changed = threading.Condition()

    def next_fault(self, exchange: Exchange) -> Fault:
        self.seen.append(f"{exchange.command} {urlsplit(exchange.path).path}")
        if self.is_down:
            return Exchange.hang_up
        if is_conditional(exchange) and self.faults:
            return self.faults.pop(0)
        return pass_on if self.weather is None else self.weather(exchange)

    @contextmanager
    def counted(self) -> Iterator[None]:
        with self._changed:
            self._under_way += 1
        try:
            yield
        finally:
            with self._changed:
                self._under_way -= 1
                self._changed.notify_all()

    def wait_until_quiet(self) -> None:
        """Return once every request has come to its end, those that were delayed too."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._under_way == 0, timeout=60)

    def handle_error(self, *_: object) -> None:
        return  # clients that hang up are what these tests are about


def is_conditional(exchange: Exchange) -> bool:
    return "If-None-Match" in exchange.headers or "If-Match" in exchange.headers


def pass_on(exchange: Exchange) -> None:
    exchange.answer(*exchange.forward())


def lose_request(exchange: Exchange) -> None:
    exchange.hang_up()


def lose_reply(exchange: Exchange) -> None:
    exchange.forward()
    exchange.hang_up()


def lose_reply_then(act: Callable[[], object]) -> Fault:
    """The write is done and its reply lost; then `act` happens before anybody reads."""

    def fault(exchange: Exchange) -> None:
        exchange.forward()
        act()
        exchange.hang_up()

    return fault


def go_down(exchange: Exchange) -> None:
    exchange.forward()
    exchange.server.is_down = True
    exchange.hang_up()


def reply_with(status: int, code: str, *, forwarded: bool) -> Fault:
    """Answer with an S3 error, after the server did, or did not, get the request."""

    def fault(exchange: Exchange) -> None:
        if forwarded:
            exchange.forward()
        body = f"<Error><Code>{code}</Code><Message>A test says so.</Message></Error>"
        exchange.answer(status, [("Content-Type", "application/xml")], body.encode())

    return fault


def answer_instead(exchange: Exchange) -> None:
    """The page of a proxy that lets nothing through."""
    page = b"<html><p>Sign in to use this network.</html>"
    exchange.answer(200, [("Content-Type", "text/html")], page)


def cut_request(exchange: Exchange) -> None:
    exchange.forward_half()
    exchange.hang_up()


def cut_reply(exchange: Exchange) -> None:
    """The reply announces more than comes."""
    status, headers, body = exchange.forward()
    exchange.answer_head(status, headers, body)
    exchange.wfile.write(body[: len(body) // 2])
    exchange.hang_up()


def stall(exchange: Exchange) -> None:
    """The request is taken, and nothing ever comes back."""
    exchange.wait_for_the_client_to_go()


def stall_before_the_body(exchange: Exchange) -> None:
    """The client's buffers fill up, and nobody empties them."""
    exchange.server.closing.wait()
    exchange.hang_up()


def stall_in_the_reply(exchange: Exchange) -> None:
    status, headers, body = exchange.forward()
    exchange.answer_head(status, headers, body)
    exchange.wfile.write(body[: len(body) // 2])
    exchange.wfile.flush()
    exchange.wait_for_the_client_to_go()


def delay(seconds: float) -> Fault:
    """The request comes to the server late, perhaps when its client has long given up."""

    def fault(exchange: Exchange) -> None:
        assert len(exchange.body) == exchange.length
        time.sleep(seconds)
        pass_on(exchange)

    return fault


def flip_a_bit(exchange: Exchange) -> None:
    status, headers, body = exchange.forward()
    middle = len(body) // 2
    flipped = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :] if body else body
    exchange.answer(status, headers, flipped)


FAULTS: Mapping[str, Fault] = {
    "request lost": lose_request,
    "reply lost": lose_reply,
    "late": delay(0.05),
    "later than the time-out": delay(1.5),
    "reply cut": cut_reply,
    "request cut": cut_request,
    "500": reply_with(500, "InternalError", forwarded=False),
    "500 though done": reply_with(500, "InternalError", forwarded=True),
    "503": reply_with(503, "SlowDown", forwarded=False),
    "409": reply_with(409, "ConditionalRequestConflict", forwarded=False),
    "409, aborted": reply_with(409, "OperationAborted", forwarded=False),
    "200 with an error": reply_with(200, "InternalError", forwarded=False),
    "200 with an error though done": reply_with(200, "InternalError", forwarded=True),
    "stalled": stall,
    "stalled in the reply": stall_in_the_reply,
}


class Weather:
    """Lets a fault of `FAULTS` befall each request with the given chance, by its seed."""

    def __init__(self, seed: int, chance: float = 0.1) -> None:
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self.chance = chance
        self.met: Counter[str] = Counter()

    def __call__(self, exchange: Exchange) -> Fault:
        with self._lock:
            if self._random.random() >= self.chance:
                return pass_on
            name = self._random.choice([each for each in FAULTS if may_befall(each, exchange)])
            self.met[name] += 1
        return FAULTS[name]


class From:
    """Fair weather until the `first` request, and `fault` for it and all that come after."""

    def __init__(self, first: int, fault: Fault) -> None:
        self._left, self._fault, self._lock = first, fault, threading.Lock()

    def __call__(self, _: Exchange) -> Fault:
        with self._lock:
            self._left -= 1
            return self._fault if self._left < 0 else pass_on


def may_befall(name: str, exchange: Exchange) -> bool:
    """Return whether a real server could do that to such a request."""
    if name.startswith("409"):
        return exchange.command in ("PUT", "POST", "DELETE")
    if name.startswith("200 with an error"):
        # In chunks, so that the status is out before the work is done.
        return exchange.command == "POST" and "uploadId=" in exchange.path
    if name == "request cut":
        return exchange.length > 0
    return True


@contextmanager
def faulty_proxy(endpoint_url: str) -> Iterator[FaultyProxy]:
    with FaultyProxy(endpoint_url) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield proxy
        finally:
            proxy.closing.set()
            proxy.shutdown()
            thread.join()
