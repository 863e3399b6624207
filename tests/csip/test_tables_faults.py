"""Which faults of storage are taken for passing: by what Lance and the system really say."""

import errno
import os
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from csip import tables
from csip.errors import StorageFaultError, StoreError
from csip.models.checkpoints import kind_of
from csip.types import TableRef

# As Lance 14 said them, shortened.
LOCAL = "LanceError(IO): Generic LocalFileSystem error: Unable to open file /s/x.lance: {} (os error {}), /home/x.rs"
S3 = "LanceError(IO): Generic S3 error: GET http://h/b in 3ms{} - Server returned non-2xx status code: {}"
RETRIED = ", after 3 retries, max_retries: 3, retry_timeout: 180s "


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        *((OSError(number, os.strerror(number)), True) for number in (errno.EIO, errno.ESTALE, errno.ETIMEDOUT)),
        *((OSError(number, os.strerror(number)), False) for number in (errno.ENOSPC, errno.EACCES, errno.EROFS)),
        (TimeoutError(errno.ETIMEDOUT, "timed out"), True),
        (FileNotFoundError(errno.ENOENT, "no such file"), False),
        (OSError(LOCAL.format("Stale file handle", 116)), True),
        (OSError(LOCAL.format("Input/output error", 5)), True),
        (OSError(LOCAL.format("No space left on device", 28)), False),
        (OSError(LOCAL.format("Permission denied", 13)), False),
        (OSError(LOCAL.format("Read-only file system", 30)), False),
        (OSError(S3.format(RETRIED, "503 Service Unavailable: <Code>SlowDown</Code>")), True),
        (OSError(S3.format("", "429 Too Many Requests")), True),
        (OSError(S3.format("", "403 Forbidden: <Code>AccessDenied</Code>")), False),
        (OSError(S3.format("", "404 Not Found: <Code>NoSuchBucket</Code>")), False),
        (OSError("LanceError(IO): Generic S3 error: ... - HTTP error: error sending request, /home/x.rs"), True),
        (ValueError("Dataset at path /cameras/503 was not found: /home/x.rs:1:2"), False),
    ],
    ids=str,
)
def test_what_may_pass_is_told_from_what_will_be_there_again(error, passes):
    assert tables.may_pass(error) == passes
    assert (kind_of(error) is StorageFaultError) == passes


def answer(status, reason):
    """A server that gives one answer to whatever it is asked."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            body = f"<Error><Code>{reason}</Code><Message>so it is</Message></Error>".encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *_):
            pass

    for verb in ("HEAD", "PUT", "POST", "DELETE"):
        setattr(Handler, f"do_{verb}", Handler.do_GET)
    return ThreadingHTTPServer(("127.0.0.1", 0), Handler)


@pytest.fixture
def storage(monkeypatch):
    """Let object storage be what answers so."""

    def lead_to(port):
        own = {"ENDPOINT_URL": f"http://127.0.0.1:{port}", "ALLOW_HTTP": "true", "REGION": "us-east-1"}
        for name, value in (own | {"ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret"}).items():
            monkeypatch.setenv(f"AWS_{name}", value)

    servers = []

    def start(status, reason):
        servers.append(answer(status, reason))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        lead_to(servers[-1].server_port)

    start.at = lead_to
    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.slow
def test_object_storage_that_asks_for_patience_is_a_fault_that_may_pass(storage):
    storage(503, "SlowDown")
    with pytest.raises(
        StorageFaultError, match=r"Table s3://bucket/\w+\.lance: cannot be opened .*SlowDown.* may pass"
    ):
        tables.prepare_store("s3://bucket")


def test_object_storage_that_lets_nobody_in_is_none(storage):
    storage(403, "AccessDenied")
    with pytest.raises(StoreError, match=r"cannot be opened .*AccessDenied") as caught:
        tables.prepare_store("s3://bucket")
    assert type(caught.value) is StoreError


@pytest.mark.slow
def test_a_version_is_not_taken_for_gone_where_nobody_answers(storage):
    # Else a stage would be done again, since what it made is gone.
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        storage.at(one.getsockname()[1])
        with pytest.raises(StorageFaultError, match="error sending request"):
            tables.exists(TableRef("s3://bucket/crops.lance", 1))
