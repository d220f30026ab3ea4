"""Asana's own example server, on Flask.

Source: https://github.com/Asana/devrel-examples/blob/master/python/webhooks_v5/server.py
"""

import hashlib
import hmac
import os
import socket
import sys
from datetime import datetime
from multiprocessing.connection import Connection
from pathlib import Path
from pprint import pprint
from typing import Final

from flask import Flask, Response, request

from benchmarks.bodies import SECRET

_SECRET_FILE: Final = "FLASK_SECRET_FILE"

app = Flask(__name__)


@app.post("/asana/<endpoint>")
def _receive(endpoint: str) -> Response:  # noqa: ARG001 - as Flask wants it
    """Do with a delivery what Asana's example server does: everything it gets is printed."""
    print("Headers:", request.headers)  # noqa: T201
    secret = Path(os.environ[_SECRET_FILE]).read_text(encoding="utf-8").partition("=")[2]
    expected = hmac.new(secret.encode(), request.get_data(), hashlib.sha256).hexdigest()
    if not hmac.compare_digest(expected, request.headers["X-Hook-Signature"]):
        return Response(status=401)
    print(f"Events at {datetime.now()}:")  # noqa: T201, DTZ005 - for whoever looks at the terminal
    pprint(request.get_json()["events"])  # noqa: T203
    return Response(status=200)


def serve(listening: socket.socket, _: Connection, directory: str) -> None:
    """Asana's example server on gunicorn, with its default worker, one for the one core.

    What it prints goes nowhere, and the secret is in a file, as there; here in *directory*.
    """
    listening.set_inheritable(True)
    file = Path(directory, ".env")
    file.write_text(f"X_HOOK_SECRET={SECRET}", encoding="utf-8")
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
    options = ["--bind", f"fd://{listening.fileno()}", "--workers", "1", "--log-level", "error"]
    command = [sys.executable, "-m", "gunicorn", *options, "benchmarks.receivers.on_flask:app"]
    os.execve(sys.executable, command, os.environ | {_SECRET_FILE: str(file)})
