"""The yes/no judge and question lists against an endpoint on loopback that looks at what it is sent."""

from __future__ import annotations

import base64
import io
import json
import math
import threading

import numpy as np
import pytest
from PIL import Image

from chat_endpoint import chat, endpoint
from marble_core.config.schema import RewardConfig
from marble_core.rewards.judge import Judge
from marble_core.rewards.questions import Questions
from marble_core.rewards.registry import load_scorers
from marble_core.rewards.scoring import score_all
from marble_core.types import MarbleError, Prompt

QUICK = {"backoff": 0.0, "request_timeout": 5.0, "patience": 20.0, "image_size": 8}
GREY = np.broadcast_to(np.arange(0, 240, 10, dtype=np.uint8)[:, None, None, None], (24, 8, 8, 3))


def seen(request):
    """(the red of the image's middle pixel, whether it is redder than blue, the text)."""
    image, text = request["messages"][0]["content"]
    picture = Image.open(io.BytesIO(base64.b64decode(image["image_url"]["url"].removeprefix("data:image/png;base64,"))))
    red, _, blue = picture.getpixel((picture.width // 2, picture.height // 2))
    return red, red > blue, text["text"]


def first_token(**shares):
    """An answer whose first token has these probabilities."""
    tokens = [{"token": token, "logprob": math.log(share)} for token, share in shares.items()]
    content = [{"token": tokens[0]["token"], "logprob": tokens[0]["logprob"], "top_logprobs": tokens}]
    return 200, json.dumps(
        {"choices": [{"message": {"content": tokens[0]["token"]}, "logprobs": {"content": content}}]}
    ).encode()


def test_the_value_is_the_share_of_yes_among_yes_and_no_of_the_first_token():
    def answer(request):
        assert (request["max_tokens"], request["logprobs"], request["top_logprobs"], request["temperature"]) == (1, True, 20, 0)
        grey, _, text = seen(request)
        assert f"shade {grey} of {{grey}}" in text
        return first_token(**{" Yes": 0.1 + grey / 1000, "yes": 0.1, "NO": 0.2, "Maybe": 0.2})

    prompts = [Prompt(f"shade {shade} of {{grey}}", "general") for shade in range(0, 240, 10)]
    with endpoint(answer) as (url, asked):
        judge = Judge(url, "vlm", workers=5, **QUICK)
        found = score_all([judge], GREY, prompts).R_NK[:, 0]
    yes = 0.2 + np.arange(0, 240, 10) / 1000
    np.testing.assert_allclose(found, yes / (yes + 0.2))
    assert len(asked) == 24 and {path for path, _, _ in asked} == {"/v1/chat/completions"} and judge.background


def test_a_question_may_name_metadata_and_applies_to_prompts_that_have_them():
    with endpoint(lambda request: chat("Yes." if "a wet dog" in seen(request)[2] else "No, it is a cat.")) as (url, asked):
        judge = Judge(url, "vlm", question="Is this {reference}? Not {this_one}: {prompt}", answer="text", **QUICK)
        assert not judge.applies(Prompt("x", "mine", {"reference": "a wet dog"}))
        judge = Judge(url, "vlm", question="Is this {reference}?", answer="text", **QUICK)
        prompts = [
            Prompt("x", "mine", {"reference": "a wet dog"}),
            Prompt("x", "mine", {"reference": "a cup"}),
            Prompt("x", "mine"),
        ]
        table = score_all([judge], GREY[:3], prompts)
    np.testing.assert_array_equal(table.R_NK[:, 0], [1, 0, np.nan])
    assert not table.missing and len(asked) == 2


def test_a_question_on_an_image_is_asked_once_and_requests_run_at_once():
    together = threading.Barrier(4)

    def answer(request):
        together.wait(timeout=20)  # passes only if four are here
        return first_token(yes=0.75, no=0.25)

    prompts = [Prompt("a", "general")] * 4
    with endpoint(answer) as (url, asked):
        judge = Judge(url, "vlm", workers=4, **QUICK)
        assert judge.score(GREY[[0, 1, 2, 3, 0]], [*prompts, prompts[0]]) == [0.75] * 5
        assert judge.score(GREY[:4], prompts) == [0.75] * 4
        assert len(asked) == 4
        assert judge.score(GREY[4:8], prompts) == [0.75] * 4 and len(asked) == 8


@pytest.mark.parametrize(
    ("how", "answer", "why"),
    [
        ("probability", first_token(maybe=0.5), "neither yes nor no is among its first 1 tokens"),
        ("probability", chat("yes"), "set answer: text if it has no logprobs"),
        ("text", chat("Hard to say"), "it answers neither yes nor no: 'Hard to say'"),
        ("text", (200, b"{}"), "does not answer as OpenAI's does"),
    ],
)
def test_an_answer_that_is_neither_yes_nor_no_is_no_value_and_is_asked_again(how, answer, why):
    with endpoint(lambda request: answer) as (url, asked):
        judge = Judge(url, "vlm", answer=how, **QUICK)
        for times in (1, 2):
            table = score_all([judge], GREY[:1], [Prompt("a", "general")])
            assert np.isnan(table.R_NK).all() and why in table.missing[0, 0]
            assert len(asked) >= times


def test_the_key_comes_from_the_environment_and_reaches_the_endpoint_alone(monkeypatch):
    monkeypatch.setenv("JUDGE_API_KEY", "sk-secret")
    refused = pytest.raises(MarbleError, match=r"refuses the key .*: set the environment variable JUDGE_API_KEY")
    with endpoint(lambda request: (401, b"no such key: sk-secret")) as (url, asked), refused as error:
        Judge(url, "vlm", key_variable="JUDGE_API_KEY", **QUICK).score(GREY[:1], [Prompt("a", "general")])
    assert asked[0][1]["Authorization"] == "Bearer sk-secret" and "sk-secret" not in str(error.value)


@pytest.mark.parametrize("name", ["judge", "questions"])
def test_it_is_loaded_by_its_name_once_it_tells_red_from_blue(name):
    def sighted(request):
        _, red, text = seen(request)
        return chat("yes" if ("a red square" in text) == red else "no")

    options = {"model": "vlm", "answer": "text", **QUICK}
    with endpoint(sighted) as (url, _):
        (scorer,) = load_scorers([RewardConfig(name=name, options={"url": url, **options})])
        assert scorer.name == name
    with endpoint(lambda request: chat("yes")) as (url, _), pytest.raises(MarbleError, match=f"'{name}' cannot tell a red"):
        load_scorers([RewardConfig(name=name, options={"url": url, **options})])


VQA = [["How many cows are in the image?", "three"], ["Are the cows plastic?", "Yes"]]


def test_of_geneval_2s_questions_the_means_of_the_right_answers_probabilities_are_taken():
    def answer(request):
        text = seen(request)[2]
        return first_token(**({"3": 0.3, " Three": 0.2, "4": 0.5} if "How many" in text else {"Yes": 0.9, "No": 0.1}))

    with endpoint(answer) as (url, asked):
        scorer = Questions(url, "vlm", **QUICK)
        prompts = [Prompt("three plastic cows", "geneval2", {"vqa_list": VQA}), Prompt("a cow", "general")]
        table = score_all([scorer], GREY[:2], prompts)
        other = score_all([Questions(url, "vlm", mean="arithmetic", **QUICK)], GREY[:1], prompts[:1])
    np.testing.assert_allclose(table.R_NK[:, 0], [math.sqrt(0.5 * 0.9), np.nan])
    np.testing.assert_allclose(table.side["questions/arithmetic"], [0.7, np.nan])
    np.testing.assert_allclose([other.R_NK[0, 0], other.side["questions/geometric"][0]], [0.7, math.sqrt(0.45)])
    assert len(asked) == 4


def test_a_question_counts_only_where_those_that_it_depends_on_are_answered_yes():
    """DPG-Bench's rule: no dog, so nothing about the dog counts."""
    questions = [
        {"id": 1, "question": "Is there a dog?", "dependency": [0]},
        {"id": 2, "question": "Is the dog brown?", "dependency": [1]},
        {"id": 3, "question": "Is there a tree?", "dependency": [0]},
        {"id": 4, "question": "Is the tree tall?", "dependency": [3]},
    ]
    with endpoint(lambda request: chat("No" if "Is there a dog" in seen(request)[2] else "Yes")) as (url, _):
        scorer = Questions(url, "vlm", mean="arithmetic", answer="text", **QUICK)
        table = score_all([scorer], GREY[:1], [Prompt("a brown dog, a tall tree", "dpg", {"questions": questions})])
    assert table.R_NK.tolist() == [[0.5]]


@pytest.mark.parametrize(
    "metadata",
    [
        {"vqa_list": [["How many?"]]},
        {"vqa_list": "How many?"},
        {"vqa_list": [["", "yes"]]},
        {"questions": [{"question": "x"}]},
        {"questions": [{"id": 1, "question": "x", "dependency": [7]}]},
        {"questions": [{"id": 1, "question": "x"}, {"id": 1, "question": "y"}]},
    ],
)
def test_a_list_of_another_form_is_refused_with_its_prompt(metadata):
    with pytest.raises(MarbleError, match="The questions on the prompt 'three cows' "):
        Questions("http://127.0.0.1:1/v1", "vlm", **QUICK).score(GREY[:1], [Prompt("three cows", "mine", metadata)])
