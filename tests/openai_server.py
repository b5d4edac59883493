"""A real HTTP server on this machine that speaks the OpenAI protocol, and does to each request what a test says."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple


class Answer(NamedTuple):
    """What to do to a request: wait, then answer with a status and a text; text None: hang up without a word."""

    text: str | None = ""
    status: int = 200
    wait: float = 0.0
    after: float | None = None  # the server's Retry-After


class Server(NamedTuple):
    url: str
    requests: list[dict]  # their bodies, in the order they came
    times: list[float]
    keys: list[str]


@contextlib.contextmanager
def serve(answer: Callable[[dict, int], Answer], port: int = 0) -> Iterator[Server]:
    """`answer(body, n)` says what the n-th request gets; port 0: any that is free."""
    lock, requests, times, keys = threading.Lock(), [], [], []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                n = len(requests)
                requests.append(body)
                times.append(time.monotonic())
                keys.append(self.headers["Authorization"])
            said = answer(body, n)
            time.sleep(said.wait)
            if said.text is None:
                self.close_connection = True
                return
            if said.status == 200:
                message = {"role": "assistant", "content": said.text}
                usage = {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100}
                choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
                reply = {"id": "x", "object": "chat.completion", "created": 0, "model": body["model"]}
                reply |= {"choices": choices, "usage": usage}
            else:
                reply = {"error": {"message": said.text, "type": "error"}}
            data = json.dumps(reply).encode()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # who asked may have left
                self.send_response(said.status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                if said.after is not None:
                    self.send_header("Retry-After", str(said.after))
                self.end_headers()
                self.wfile.write(data)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield Server(f"http://127.0.0.1:{server.server_port}/v1", requests, times, keys)
    finally:
        server.shutdown()
        server.server_close()
