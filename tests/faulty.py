"""A proxy in front of a real server that breaks connections, answers 503 or falls silent when it is told to."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

BUSY = (
    b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nConnection: close\r\nContent-Length: 70\r\n\r\n"
    b"<Error><Code>SlowDown</Code><Message>Please slow down.</Message></Error>"[:70]
)


class FaultyProxy:
    """Forwards TCP connections to `port` of this machine; `faults` says what happens to the next ones."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.faults: list[str] = []
        """For each coming connection: "reset" after some bytes of its answer, "busy" (503) or "silent"."""
        self.connections = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.open: set[socket.socket] = set()
        self.closed = False
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while not self.closed:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            self.connections += 1
            fault = self.faults.pop(0) if self.faults else ""
            self.open.add(client)
            threading.Thread(target=self._serve, args=(client, fault), daemon=True).start()

    def _serve(self, client: socket.socket, fault: str) -> None:
        try:
            if fault == "busy":
                client.recv(65_536)
                client.sendall(BUSY)
                client.close()
                return
            if fault == "silent":
                time.sleep(30)
                client.close()
                return
            server = socket.create_connection(("127.0.0.1", self.target))
        except OSError:
            client.close()
            return
        self.open.add(server)
        threading.Thread(target=self._pump, args=(client, server, None), daemon=True).start()
        self._pump(server, client, 200 if fault == "reset" else None)

    def _pump(self, source: socket.socket, sink: socket.socket, limit: int | None) -> None:
        """Forward until the end, or cut both ways after `limit` bytes."""
        sent = 0
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                if limit is not None and sent + len(data) > limit:
                    sink.sendall(data[: limit - sent])
                    break
                sink.sendall(data)
                sent += len(data)
        self._cut(source)
        self._cut(sink)

    def _cut(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
        connection.close()
        self.open.discard(connection)

    def cut_all(self) -> None:
        """Break every connection that is open now."""
        for connection in list(self.open):
            self._cut(connection)

    def close(self) -> None:
        self.closed = True
        self.listener.close()
        self.cut_all()
