"""A real S3 server on this machine (SeaweedFS), for tests, benchmarks and `make s3`.

python -m tests.s3 FOLDER BUCKET    serves until Ctrl-C, and prints the variables that a client sets
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import closing
from pathlib import Path

import s3fs

WEED = Path(sys.executable).with_name("weed")


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens on, and that connections do not take by themselves meanwhile: below
    those that the kernel gives out (32768 on Linux)."""
    sockets: list[socket.socket] = []
    while len(sockets) < count:
        each = socket.socket()
        try:
            each.bind(("127.0.0.1", secrets.choice(range(20_000, 32_000))))
        except OSError:
            each.close()
        else:
            sockets.append(each)
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


class ObjectStore:
    """One server that keeps its data in `folder`; it can be stopped and started again on the same address."""

    def __init__(self, folder: Path, host: str = "127.0.0.1") -> None:
        self.folder, self.host = folder, host
        self.process: subprocess.Popen[bytes] | None = None
        *self.ports, self.port = self._free_ports()
        self.environment = {
            "AWS_ACCESS_KEY_ID": secrets.token_hex(10),
            "AWS_SECRET_ACCESS_KEY": secrets.token_hex(20),
            "AWS_ENDPOINT_URL": f"http://{host}:{self.port}",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        """What a client's environment must have."""
        self.read_only = {name: secrets.token_hex(20) for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
        """Credentials that may not write."""

    @staticmethod
    def _free_ports() -> list[int]:
        """Below 50,000: SeaweedFS listens for gRPC at each port + 10,000."""
        ports: list[int] = []
        while len(ports) < 4:
            (port,) = free_ports(1)
            port = port if port < 50_000 else port - 20_000
            with closing(socket.socket()) as probe, closing(socket.socket()) as grpc:
                try:
                    probe.bind(("127.0.0.1", port))
                    grpc.bind(("127.0.0.1", port + 10_000))
                except OSError:
                    continue
            if port not in ports:
                ports.append(port)
        return ports

    def start(self, seconds: float = 60) -> None:
        """Start the server and wait until it answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        everything, reading = ["Admin", "Read", "Write", "List", "Tagging"], ["Read", "List"]
        identities = [
            {
                "name": name,
                "credentials": [{"accessKey": keys["AWS_ACCESS_KEY_ID"], "secretKey": keys["AWS_SECRET_ACCESS_KEY"]}],
                "actions": actions,
            }
            for name, keys, actions in (("tests", self.environment, everything), ("reads", self.read_only, reading))
        ]
        (self.folder / "s3.json").write_text(json.dumps({"identities": identities}))
        master, volume, filer = self.ports
        command = [
            *(str(WEED), "mini", f"-dir={self.folder}", f"-ip={self.host}", f"-ip.bind={self.host}"),
            *(f"-master.port={master}", f"-volume.port={volume}", "-volume.preStopSeconds=0", f"-filer.port={filer}"),
            *(f"-s3.port={self.port}", "-s3.port.iceberg=0", "-s3.port.lance=0", "-webdav=false", "-admin.ui=false"),
            *(f"-s3.config={self.folder}/s3.json", "-s3.allowDeleteBucketNotEmpty=false"),
            *("-s3.autoCreateBucket=false", "-master.telemetry=false"),
        ]
        # Without these four keys the filer's own port would serve everybody.
        names = ("SIGNING_KEY", "SIGNING_READ_KEY", "FILER_SIGNING_KEY", "FILER_SIGNING_READ_KEY")
        keys = {f"WEED_JWT_{name}": secrets.token_hex(16) for name in names}
        with (self.folder / "weed.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, env=os.environ | keys, stdout=log, stderr=log, cwd=self.folder, start_new_session=True
            )
        deadline = time.monotonic() + seconds
        while not self._answers():
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise RuntimeError(f"weed did not start: {(self.folder / 'weed.log').read_text()[-2000:]}")
            time.sleep(0.1)

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(f"{self.environment['AWS_ENDPOINT_URL']}/", timeout=2).close()
        except urllib.error.HTTPError as error:
            return error.code == 403  # it is there, and asks for a signature
        except OSError:
            return False
        return True

    def stop(self, kill: bool = False) -> None:
        """Stop the server; `kill`: as a crash would."""
        if self.process is None:
            return
        self.process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
        try:
            self.process.wait(3)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def filesystem(self) -> s3fs.S3FileSystem:
        """A client with the server's credentials, whatever this process's environment says."""
        return s3fs.S3FileSystem(
            key=self.environment["AWS_ACCESS_KEY_ID"],
            secret=self.environment["AWS_SECRET_ACCESS_KEY"],
            endpoint_url=self.environment["AWS_ENDPOINT_URL"],
            client_kwargs={"region_name": self.environment["AWS_DEFAULT_REGION"]},
            skip_instance_cache=True,
        )

    def make_bucket(self, name: str, seconds: float = 30) -> None:
        """Make a bucket, unless it is there; the server takes a moment after its start until it can."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                filesystem = self.filesystem()
                if not filesystem.exists(name):
                    filesystem.mkdir(name)
                return
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)


def serve(folder: str, bucket: str) -> None:
    """Serve `bucket` from `folder` until Ctrl-C."""
    store = ObjectStore(Path(folder).absolute())
    store.start()
    try:
        store.make_bucket(bucket)
        for name, value in store.environment.items():
            print(f"export {name}={value}")
        print(f"# s3://{bucket} is served from {store.folder}; Ctrl-C stops", flush=True)
        signal.pause()
    except KeyboardInterrupt:
        pass
    finally:
        store.stop()


if __name__ == "__main__":
    serve(*sys.argv[1:3])
