"""An endpoint on loopback that answers as OpenAI's does, or however else a test wants."""

import json
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from stub_hub import serving


def chat(text):
    return 200, json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()


@contextmanager
def endpoint(answer):
    """``answer`` makes (status, body) or (status, body, headers) of the request's JSON, or None: the connection is closed at once.

    Yields its url and what it was asked: (path, headers, JSON).
    """
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append((self.path, dict(self.headers), request))
            answered = answer(request)
            if answered is None:
                self.close_connection = True
                return
            status, body, *more = answered
            self.send_response(status)
            for name, value in (more[0] if more else {}).items():
                self.send_header(name, value)
            pieces = [body] if isinstance(body, bytes) else body
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            for piece in pieces:
                self.wfile.write(piece)
                self.wfile.flush()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    with serving(server):
        yield f"http://127.0.0.1:{server.server_port}/v1", asked
