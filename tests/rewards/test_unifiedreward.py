"""UnifiedReward against endpoints on loopback: one that answers, and those that are down, slow, wrong or talk nonsense."""

import base64
import io
import json
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from marble_core.config.schema import RewardConfig
from marble_core.rewards.registry import load_scorers
from marble_core.rewards.scoring import score_all
from marble_core.rewards.unifiedreward import UnifiedReward
from marble_core.types import MarbleError, Prompt
from stub_hub import serving
from tiny_rewards import PROMPTS, noise

QUICK = {"backoff": 0.0, "request_timeout": 5.0}


def chat(text):
    return 200, json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()


@contextmanager
def endpoint(answer):
    """An endpoint; ``answer`` makes (status, body) of the request's JSON. Yields its url and what it was asked: (headers, JSON)."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append((self.path, dict(self.headers), request))
            status, body = answer(request)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    with serving(server):
        yield f"http://127.0.0.1:{server.server_port}/v1", asked


def picture_and_text(request):
    (message,) = request["messages"]
    image, text = message["content"]
    kind, _, data = image["image_url"]["url"].partition(",")
    assert kind == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data))), text["text"]


def judge(request):
    """A judge that looks: 5 where the square's colour is named, else 1.5."""
    picture, text = picture_and_text(request)
    red, _, blue = picture.getpixel((picture.width // 2, picture.height // 2))
    named = "red" if red > blue else "blue"
    return chat(f"The square is {named}.\n\n**Final Score: {'5' if f'a {named} square' in text else '1.5'}**")


def one_sentence(caught):
    text = str(caught.value)
    assert "\n" not in text and text.endswith("."), text
    return text


def test_each_picture_is_marked_with_its_own_prompt_and_the_mark_is_divided_by_5():
    shades = np.arange(0, 240, 10, dtype=np.uint8)
    images = np.broadcast_to(shades[:, None, None, None], (24, 8, 8, 3))
    prompts = [Prompt(f"shade {shade} of {{grey}}", "general") for shade in shades]

    def answer(request):
        picture, text = picture_and_text(request)
        assert picture.size == (16, 16) and f"shade {picture.getpixel((3, 3))[0]} of {{grey}}" in text
        return chat(f"Final Score: {1 + picture.getpixel((3, 3))[0] / 100}")

    with endpoint(answer) as (url, asked):
        scorer = UnifiedReward(url, image_size=16, workers=5, **QUICK)
        found = score_all([scorer], images, prompts).R_NK[:, 0]
    np.testing.assert_allclose(found, (1 + shades / 100) / 5)
    assert len(asked) == 24 and {path for path, _, _ in asked} == {"/v1/chat/completions"}
    assert {(r["model"], r["temperature"]) for _, _, r in asked} == {("CodeGoat24/UnifiedReward-7b-v1.5", 0)}
    assert scorer.value_range == (0.2, 1.0) and scorer.background


def test_requests_run_at_once_up_to_the_number_of_workers():
    together, most, running = threading.Barrier(4), [], []

    def answer(request):
        running.append(1)
        most.append(len(running))
        together.wait(timeout=20)  # passes only if four are here
        running.pop()
        return chat("Final Score: 3")

    with endpoint(answer) as (url, _):
        scorer = UnifiedReward(url, workers=4, **QUICK)
        assert scorer.score(noise(8, 8), PROMPTS * 2).tolist() == [0.6] * 8
    assert max(most) == 4


def test_it_checks_itself_on_squares_of_a_known_colour():
    with endpoint(judge) as (url, asked):
        load_scorers([RewardConfig(name="unifiedreward", options={"url": url, **QUICK})])
        assert len(asked) == 4
    with (
        endpoint(lambda request: chat("Final Score: 4")) as (url, _),
        pytest.raises(MarbleError, match="cannot tell a red square"),
    ):
        load_scorers([RewardConfig(name="unifiedreward", options={"url": url, **QUICK})])


def test_answers_without_a_mark_are_counted_and_named_and_never_a_0():
    def answer(request):
        return chat("Final Score: 4" if "dogs" in picture_and_text(request)[1] else "What a\nlovely picture!")

    with endpoint(answer) as (url, _), pytest.raises(MarbleError) as caught:
        UnifiedReward(url, **QUICK).score(noise(4, 8), PROMPTS)
    said = one_sentence(caught)
    assert said.startswith("3 of 4 answers of 'CodeGoat24/UnifiedReward-7b-v1.5' at http://127.0.0.1")
    assert "to the prompt 'a red cat': 'What a lovely picture!'" in said


def test_an_endpoint_that_recovers_is_asked_again_and_one_that_does_not_is_given_up():
    statuses = iter([503, 500, 429])
    with endpoint(lambda request: (next(statuses), b"busy") if len(asked) <= 3 else chat("Final Score: 2")) as (url, asked):
        assert UnifiedReward(url, retries=3, **QUICK).score(noise(1, 8), PROMPTS[:1]).tolist() == [0.4]
        assert len(asked) == 4
    with endpoint(lambda request: (500, b"out of\nmemory")) as (url, asked):
        with pytest.raises(MarbleError, match="answers 500: 'out of memory'; check its url") as caught:
            UnifiedReward(url, retries=2, **QUICK).score(noise(1, 8), PROMPTS[:1])
        assert len(asked) == 3
    one_sentence(caught)


def test_an_endpoint_that_is_down_is_one_sentence():
    with endpoint(judge) as (url, _):
        pass
    with pytest.raises(
        MarbleError, match=f"The endpoint {url}/chat/completions of the reward 'unifiedreward' cannot be reached"
    ) as caught:
        UnifiedReward(url, retries=1, **QUICK).score(noise(2, 8), PROMPTS[:2])
    one_sentence(caught)


def test_an_endpoint_that_is_slow_is_given_up_in_time():
    over = threading.Event()

    def answer(request):
        over.wait(20)
        return chat("Final Score: 4")

    with endpoint(answer) as (url, asked):
        with pytest.raises(MarbleError, match="is too slow") as caught:
            UnifiedReward(url, retries=1, backoff=0.0, request_timeout=0.2).score(noise(1, 8), PROMPTS[:1])
        over.set()
        assert len(asked) == 2
    one_sentence(caught)


@pytest.mark.parametrize(
    "body",
    [b"<html>\nIt works!</html>", b"{}", b'{"choices": []}', b'{"choices": [{"message": {"content": null}}]}', b"[1", b"\xff"],
)
def test_an_endpoint_that_talks_nonsense_is_one_sentence(body):
    with (
        endpoint(lambda request: (200, body)) as (url, asked),
        pytest.raises(MarbleError, match="does not answer as OpenAI's does") as e,
    ):
        UnifiedReward(url, **QUICK).score(noise(1, 8), PROMPTS[:1])
    one_sentence(e)
    assert len(asked) == 1


@pytest.mark.parametrize("status", [301, 400, 404])
def test_a_request_that_is_refused_is_not_repeated(status):
    with endpoint(lambda request: (status, b"no such model")) as (url, asked):
        with pytest.raises(MarbleError, match=f"answers {status}: 'no such model'; check its url and that it serves 'm'"):
            UnifiedReward(url, model="m", **QUICK).score(noise(1, 8), PROMPTS[:1])
        assert len(asked) == 1


def test_the_key_comes_from_the_environment_and_is_in_no_error(monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-s3cr3t")
    for status, sentence in ((401, "refuses the key .401.: set the environment variable MY_KEY"), (400, "answers 400")):
        with endpoint(lambda request, status=status: (status, b"the key sk-s3cr3t is wrong")) as (url, asked):
            with pytest.raises(MarbleError, match=sentence) as caught:
                UnifiedReward(url, key_variable="MY_KEY", **QUICK).score(noise(1, 8), PROMPTS[:1])
            assert asked[0][1]["Authorization"] == "Bearer sk-s3cr3t"
        assert "s3cr3t" not in one_sentence(caught)
    monkeypatch.setenv("MY_KEY", "sk-s3cr3t\nX-Other: 1")
    with pytest.raises(MarbleError, match="MY_KEY holds no key") as caught:
        UnifiedReward("http://127.0.0.1:9", key_variable="MY_KEY", **QUICK).score(noise(1, 8), PROMPTS[:1])
    assert "s3cr3t" not in one_sentence(caught)
    monkeypatch.delenv("MY_KEY")
    with endpoint(judge) as (url, asked):
        UnifiedReward(url, key_variable="MY_KEY", **QUICK).score(noise(1, 8), PROMPTS[:1])
        assert "Authorization" not in asked[0][1]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, "needs the option 'url'"),
        ({"url": "host:80"}, "is of the form http://host:port/v1, without a name or key"),
        ({"url": "http://me:s3cr3t@host/v1"}, "is of the form http://host:port/v1, without a name or key"),
        ({"url": "http://host", "key": "s3cr3t"}, "has no option 'key'"),
        ({"url": "http://host", "instruction": "Judge this."}, "must name the caption, as {prompt}"),
    ],
)
def test_a_wrong_option_is_one_sentence_without_a_secret(options, sentence):
    with pytest.raises(MarbleError, match=sentence) as caught:
        load_scorers([RewardConfig(name="unifiedreward", options=options)])
    assert "s3cr3t" not in str(caught.value)


def test_it_imports_no_torch():
    script = "import sys, marble_core.rewards.unifiedreward; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "False\n"
