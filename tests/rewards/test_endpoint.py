"""A reward that is served elsewhere: what is asked again, for how long, and what is not."""

import threading
import time
from email.utils import formatdate

import pytest

from chat_endpoint import endpoint
from marble_core.rewards.endpoint import Endpoint, named, waiting
from marble_core.rewards.judge import Judge
from marble_core.rewards.questions import Questions
from marble_core.rewards.unifiedreward import UnifiedReward
from marble_core.types import MarbleError, NoValue


def ask(url, count=1, **options):
    """The answers to so many requests, and the seconds that they took."""
    began = time.monotonic()
    one = Endpoint(url, "the reward 'mine'", "set KEY", **{"patience": 30.0, "backoff": 0.0, "workers": 4, **options})
    return one.ask([{"n": n} for n in range(count)]), time.monotonic() - began


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529])
def test_what_is_worth_asking_again_is_asked_until_it_answers(status):
    answers = iter([(status, b"busy"), None, (status, b"busy"), (200, b"yes")])  # None: the connection breaks
    with endpoint(lambda _: next(answers)) as (url, asked):
        assert ask(url)[0] == [b"yes"] and len(asked) == 4


@pytest.mark.parametrize(
    "said",
    ["3600", "1e9", "inf", "nan", "soon", "", pytest.param(formatdate(time.time() + 3600, usegmt=True), id="in an hour"), "-5"],
)
def test_a_wait_above_the_patience_or_that_cannot_be_read_is_not_obeyed(said):
    answers = iter([(429, b"slow down", {"Retry-After": said}), (200, b"yes")])
    with endpoint(lambda _: next(answers)) as (url, _):
        found, seconds = ask(url, patience=20.0)
    assert found == [b"yes"] and seconds < 10


def test_a_wait_within_the_patience_is_obeyed():
    answers = iter([(503, b"", {"Retry-After": "1"}), (200, b"yes")])
    with endpoint(lambda _: next(answers)) as (url, _):
        found, seconds = ask(url)
    assert found == [b"yes"] and seconds >= 1


def test_a_date_is_a_wait_and_nonsense_is_none():
    assert waiting(formatdate(time.time() + 90, usegmt=True)) == pytest.approx(90, abs=2)
    assert (waiting("2.5"), waiting("-1"), waiting("soon"), waiting(None), waiting("nan"), waiting("inf")) == (
        2.5,
        0,
        *[None] * 4,
    )


def test_an_endpoint_that_stays_busy_is_given_up_within_the_patience_and_its_status_is_named():
    with endpoint(lambda _: (429, b"slow\ndown", {"Retry-After": "3600"})) as (url, asked):
        ((found,), seconds) = ask(url, patience=2, backoff=0.1)
    assert found.why.startswith("it answers 429 Too Many Requests: 'slow down', ") and seconds < 9
    assert f"{len(asked)} times within its patience of 2 s" in found.why
    assert [named(status) for status in (425, 503, 529, 599)] == [
        "425 Too Early",
        "503 Service Unavailable",
        "529 Site Is Overloaded",
        "599",
    ]


def test_an_endpoint_that_hangs_is_given_up_within_the_patience():
    over = threading.Event()
    with endpoint(lambda _: over.wait(60) and None) as (url, _):
        ((found,), seconds) = ask(url, patience=0.4)
        over.set()
    assert found.why == "it is too slow (ReadTimeoutError)" and seconds < 5


def test_an_answer_that_never_ends_is_given_up_within_the_patience():
    class Drops:
        """A body of a megabyte, a byte every 20 ms."""

        def __len__(self):
            return 10**6

        def __iter__(self):
            while not over.wait(0.02):
                yield b"x"

    over = threading.Event()
    with endpoint(lambda _: (200, Drops())) as (url, _):
        ((found,), seconds) = ask(url, patience=0.4)
        over.set()
    assert isinstance(found, NoValue) and "too slow" in found.why and seconds < 5


def test_where_nothing_answers_the_rest_is_not_asked_each_for_its_own_patience():
    with endpoint(lambda _: (503, b"down")) as (url, _):
        found, seconds = ask(url, count=400, patience=0.5, backoff=0.2)
    assert seconds < 20, "400 images, 4 at once, of half a second each would be 50 s"
    assert all(isinstance(one, NoValue) for one in found)
    assert found[-1].why == "nothing was answered in 0.5 s, so it was not asked"


def test_one_image_that_fails_takes_no_patience_from_the_others():
    def answer(request):
        return (500, b"cannot read this image") if request["n"] == 0 else (200, b"yes")

    with endpoint(answer) as (url, _):
        found, _ = ask(url, count=300, patience=4, backoff=0.3)
    assert found[1:] == [b"yes"] * 299 and "500 Internal Server Error" in found[0].why


@pytest.mark.parametrize("status", [400, 413, 422])
def test_what_is_refused_of_one_image_is_its_own_and_asked_once(status):
    with endpoint(lambda request: (status, b"too long") if request["n"] == 1 else (200, b"yes")) as (url, asked):
        found, _ = ask(url, count=3)
        assert (found[0], found[2]) == (b"yes", b"yes") and f"it answers {status} " in found[1].why and len(asked) == 3


@pytest.mark.parametrize(
    ("status", "sentence"),
    [
        (401, r"refuses the key \(401 Unauthorized\): set KEY"),
        (403, r"refuses the key \(403 Forbidden\): set KEY"),
        (404, "it answers 404 Not Found: 'no such model'; check its url and what it serves"),
        (301, "it answers 301 Moved Permanently"),
    ],
)
def test_what_every_image_would_meet_is_an_error_at_once(status, sentence):
    with endpoint(lambda _: (status, b"no such\nmodel")) as (url, asked), pytest.raises(MarbleError, match=sentence):
        ask(url, count=400)
    assert len(asked) < 100, "the others are not asked any more"


@pytest.mark.parametrize(
    "variable",
    [
        "AWS_SECRET_ACCESS_KEY",
        "AWS_API_KEY",
        "MLFLOW_TRACKING_PASSWORD",
        "HF_TOKEN",
        "kf_pipelines_token",
        "MARBLE_WEBHOOK",
        "PGPASSWORD",
        "GITHUB_TOKEN",
        "DATABASE_URL",
        "HOME",
        "API_KEY",
        "HF_API_KEY",
        "OPENAI_API_KEY\n",
        "openai_api_key",
        "",
    ],
)
def test_what_is_no_key_of_a_reward_is_sent_to_no_rewards_address(variable):
    for scorer in (Judge, UnifiedReward, Questions):
        with pytest.raises(MarbleError, match="which is not sent: it must end with"):
            scorer("http://elsewhere.example/v1", "vlm", key_variable=variable)
    assert Judge("http://elsewhere.example/v1", "vlm", key_variable="JUDGE_API_KEY").key() == ""
