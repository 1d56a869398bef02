"""UnifiedReward against endpoints on loopback: one that answers, and those that are down, slow, wrong or talk nonsense."""

import base64
import io
import subprocess
import sys
import threading

import numpy as np
import pytest
from PIL import Image

from chat_endpoint import chat, endpoint
from marble_core.config.schema import RewardConfig
from marble_core.rewards.registry import load_scorers
from marble_core.rewards.scoring import score_all
from marble_core.rewards.unifiedreward import UnifiedReward
from marble_core.types import MarbleError, Prompt
from tiny_rewards import PROMPTS, noise

QUICK = {"backoff": 0.0, "request_timeout": 5.0, "patience": 20.0}


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
        assert scorer.score(noise(8, 8), PROMPTS * 2) == [0.6] * 8
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


def test_answers_without_a_mark_are_no_value_and_never_a_0():
    def answer(request):
        return chat("Final Score: 4" if "dogs" in picture_and_text(request)[1] else "What a\nlovely picture!")

    with endpoint(answer) as (url, _):
        table = score_all([UnifiedReward(url, **QUICK)], noise(4, 8), PROMPTS)
    np.testing.assert_array_equal(table.R_NK[:, 0], [np.nan, 0.8, np.nan, np.nan])
    assert table.missing[0, 0] == "the answer holds no one 'Final Score' from 1 to 5: 'What a lovely picture!'"


def test_an_endpoint_that_is_down_when_it_is_loaded_is_one_sentence():
    with endpoint(judge) as (url, _):
        pass
    with pytest.raises(MarbleError) as caught:
        UnifiedReward(url, patience=0.3, backoff=0.01).self_check()
    said = one_sentence(caught)
    assert said.startswith(
        f"The endpoint {url}/chat/completions of the reward 'unifiedreward' has no answer on an image of known colour"
    )
    assert "it cannot be reached (NewConnectionError), " in said and "times within its patience of 0.3 s." in said


@pytest.mark.parametrize(
    "body",
    [b"<html>\nIt works!</html>", b"{}", b'{"choices": []}', b'{"choices": [{"message": {"content": null}}]}', b"[1", b"\xff"],
)
def test_an_endpoint_that_talks_nonsense_gives_no_value(body):
    with endpoint(lambda request: (200, body)) as (url, asked):
        (found,) = UnifiedReward(url, **QUICK).score(noise(1, 8), PROMPTS[:1])
    assert found.why.startswith("it does not answer as OpenAI's does: ") and "\n" not in found.why
    assert len(asked) == 1


def test_the_key_comes_from_the_environment_and_is_in_no_error(monkeypatch):
    monkeypatch.setenv("MY_API_KEY", "sk-s3cr3t")
    for status, sentence in (
        (401, "refuses the key .401 Unauth.*: set the environment variable MY_API_KEY"),
        (404, "answers 404"),
    ):
        with endpoint(lambda request, status=status: (status, b"the key sk-s3cr3t is wrong")) as (url, asked):
            with pytest.raises(MarbleError, match=sentence) as caught:
                UnifiedReward(url, key_variable="MY_API_KEY", **QUICK).score(noise(1, 8), PROMPTS[:1])
            assert asked[0][1]["Authorization"] == "Bearer sk-s3cr3t"
        assert "s3cr3t" not in one_sentence(caught)
    monkeypatch.setenv("MY_API_KEY", "sk-s3cr3t\nX-Other: 1")
    with pytest.raises(MarbleError, match="MY_API_KEY holds no key") as caught:
        UnifiedReward("http://127.0.0.1:9", key_variable="MY_API_KEY", **QUICK).score(noise(1, 8), PROMPTS[:1])
    assert "s3cr3t" not in one_sentence(caught)
    monkeypatch.delenv("MY_API_KEY")
    with endpoint(judge) as (url, asked):
        UnifiedReward(url, key_variable="MY_API_KEY", **QUICK).score(noise(1, 8), PROMPTS[:1])
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
