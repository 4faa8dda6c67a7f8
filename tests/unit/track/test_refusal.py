import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from pipeline.track.refusal import for_good, unreachable
from pipeline.track.tracker import connect

JSON = {"error_code": "INVALID_PARAMETER_VALUE", "message": "no"}
ANSWERS = {
    "refused": (400, json.dumps(JSON), True, False),
    "too large": (413, "<html>", True, False),
    "unauthorised": (401, "<html>", False, False),
    "forbidden": (403, "<html>", False, False),
    "elsewhere": (404, "<html>", False, False),
    "slow request": (408, "<html>", False, True),
    "too many": (429, "<html>", False, True),
    "broken": (500, json.dumps({"error_code": "INTERNAL_ERROR", "message": "x"}), False, False),
    "broken, but says that it is the value": (500, json.dumps(JSON), False, False),
    "bad gateway": (502, "<html>", False, True),
    "busy": (503, json.dumps({"error_code": "TEMPORARILY_UNAVAILABLE", "message": "x"}), False, True),
    "slow gateway": (504, "<html>", False, True),
    "no JSON": (200, "<html>", False, False),
    "an error of a name that no MLflow has": (400, json.dumps({"error_code": "ODD", "message": "x"}), False, False),
}


@pytest.fixture
def answering():
    """An address at which each request gets one answer."""
    started = []

    def start(status, body):
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                self.rfile.read(int(self.headers["Content-Length"]))
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_):
                pass

        server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        started.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("what", ANSWERS)
def test_trouble_of_the_way_is_never_a_refusal(answering, what):
    status, body, refused, passing = ANSWERS[what]
    client = connect(answering(status, body))
    with pytest.raises(Exception) as caught:  # noqa: PT011
        client.set_tag("1", "key", "value")
    assert (for_good(caught.value), unreachable(caught.value)) == (refused, passing)


def test_nobody_there_is_no_refusal():
    client = connect("http://127.0.0.1:1")
    with pytest.raises(Exception) as caught:  # noqa: PT011
        client.set_tag("1", "key", "value")
    assert (for_good(caught.value), unreachable(caught.value)) == (False, True)
