"""A proxy before an S3 server that loses, delays and forges replies, as told."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

Fault = Callable[["Exchange"], None]


class Exchange(BaseHTTPRequestHandler):
    """One request on its way; a fault decides what becomes of it."""

    protocol_version = "HTTP/1.1"
    server: FaultyProxy

    def handle_one_request(self) -> None:
        self.raw_requestline = self.rfile.readline(65537)
        if not self.raw_requestline or not self.parse_request():
            self.close_connection = True
            return
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.server.next_fault(self)
        fault(self)
        self.wfile.flush()

    def forward(self) -> tuple[int, list[tuple[str, str]], bytes]:
        """Send the request on to the server, and return what it answers."""
        upstream = http.client.HTTPConnection(*self.server.upstream, timeout=30)
        upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in ("expect", "connection"):
                upstream.putheader(name, value)
        upstream.endheaders(self.body)
        reply = upstream.getresponse()
        answer = reply.status, reply.getheaders(), reply.read()
        upstream.close()
        return answer

    def answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        length = next((v for n, v in headers if n.lower() == "content-length"), len(body))
        self.send_header("Content-Length", str(length if self.command == "HEAD" else len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def hang_up(self) -> None:
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        return


class FaultyProxy(ThreadingHTTPServer):
    """Forwards everything; `faults` are used up, one for each conditional write or completion."""

    daemon_threads = True

    def __init__(self, endpoint_url: str) -> None:
        super().__init__(("127.0.0.1", 0), Exchange)
        parts = urlsplit(endpoint_url)
        self.upstream = (parts.hostname, parts.port)
        self.endpoint_url = f"http://127.0.0.1:{self.server_address[1]}"
        self.faults: list[Fault] = []
        self.is_down = False
        self.seen: list[str] = []

    def next_fault(self, exchange: Exchange) -> Fault:
        self.seen.append(f"{exchange.command} {urlsplit(exchange.path).path}")
        if self.is_down:
            return Exchange.hang_up
        if is_conditional(exchange) and self.faults:
            return self.faults.pop(0)
        return pass_on

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


@contextmanager
def faulty_proxy(endpoint_url: str) -> Iterator[FaultyProxy]:
    with FaultyProxy(endpoint_url) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield proxy
        proxy.shutdown()
        thread.join()
