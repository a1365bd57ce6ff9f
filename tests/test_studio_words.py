"""What the studio says before it makes: unlearned words, the camera, what an upsampler added; and cookies per port."""

import shutil

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from app.queue.jobs import Queue
from app.registry import UPSAMPLER
from app.server.auth import AuthMiddleware
from app.server.downloads import download_name
from app.server.service import Service, served_models
from app.studio.actions import unlearned_words
from app.studio.forecast import LOAD_SECONDS, Forecast
from app.studio.gallery import Gallery
from app.studio.login import SIGN_IN, SIGN_OUT, add_sign_in
from app.studio.options import studio_options
from app.studio.views import StudioViews
from captioning.camera import CAMERA_MOVES
from captioning.learned_words import LearnedWords
from captioning.lexicon_set import load_lexicon_set
from captioning.text_encoder import tokenize, train_tokenizer
from captioning.upsampler import LEXICON_FILE
from dit.request import Moment, Request, RequestError
from tests.serving import OTHER_TOKEN, TOKEN

LEXICONS = load_lexicon_set(UPSAMPLER / LEXICON_FILE)


@pytest.fixture(scope="module")
def service(tiny_model, tmp_path_factory):
    """A service of two models: one with a list of learned words, one without."""
    folder = tmp_path_factory.mktemp("models")
    shutil.copytree(tiny_model, folder / "worded")
    LearnedWords({"a": 9, "red": 9, "ball": 9}, {"en": ("balls",), "zh": ("球",)}).save(folder / "worded")
    queue = Queue(folder / "queue")
    return Service(queue, served_models(queue, [str(folder / "worded"), str(tiny_model)]))


def test_the_page_is_told_which_words_its_model_never_learned(service):
    found = unlearned_words(service, {"texts": ["a red cat", "a dog, a cat"], "model": "worded"})
    assert list(found["unlearned"]) == ["cat", "dog"] and found["examples"] == {"en": ("balls",), "zh": ("球",)}
    assert unlearned_words(service, {"texts": ["a cat"], "model": "tiny"}) == {"unlearned": [], "examples": {}}
    for wrong in ({"texts": "a cat"}, {"texts": [1]}, {"texts": [], "model": "none"}):
        with pytest.raises(RequestError):
            unlearned_words(service, wrong)


def test_a_tile_is_marked_with_the_words_and_only_models_with_a_camera_offer_moves(service):
    views = StudioViews(service, Gallery(service), Forecast(service.queue))
    service.submit({"prompt": "a red cat", "model": "worded"}, "")
    (card,) = [views.card(item) for item in views.gallery.list_items("")]
    assert card["unlearned"] == ["cat"]
    assert [model["camera"] for model in studio_options(service, True)["models"]] == [[], []]
    assert "pan left" in CAMERA_MOVES


def test_the_first_estimate_has_the_time_to_load(service):
    forecast = Forecast(service.queue)
    assert forecast.loading_seconds() == LOAD_SECONDS > 0
    service.queue.connection.execute("UPDATE jobs SET began = ?, step = 1", (forecast.opened_at + 1,))
    assert forecast.loading_seconds() == 0


def test_what_an_upsampler_added_is_named_and_what_was_asked_for_is_not():
    caption = "A large matte red ball rolls to the left on the grass. The camera pans to the right. It is night."
    added = LEXICONS.added("a red ball on the grass", caption)
    assert {"size", "material", "camera", "time"} <= added.keys() and not {"ground", "colour"} & added.keys()
    assert added["camera"] == "pan right" and added["time"] == "night"
    assert "camera" not in LEXICONS.added("一个红球，镜头向右摇", caption)


@pytest.mark.parametrize(
    ("prompt", "sentence"),
    [
        ("red ball " * 60, r"about \d+ words for this model; got 120, so leave out"),
        ("红色的球" * 60, "characters .* got 240"),
    ],
)
def test_a_prompt_over_the_limit_is_counted_in_words_or_characters(prompt, sentence):
    tokenizer = train_tokenizer(["a red ball"], 300, 64)
    with pytest.raises(ValueError, match=sentence):
        tokenize(tokenizer, [prompt])


def test_two_studios_on_one_host_keep_their_own_cookies():
    app = FastAPI()
    add_sign_in(app, [TOKEN, OTHER_TOKEN])
    app.get("/studio/votes")(lambda: {})
    visitor = TestClient(AuthMiddleware(app, [TOKEN, OTHER_TOKEN], SIGN_IN), follow_redirects=False)
    one, other = {"host": "127.0.0.1:8000"}, {"host": "127.0.0.1:8001"}
    cookies = [
        visitor.post(SIGN_IN, data={"token": token}, headers=port | {"origin": f"http://{port['host']}"})
        .headers["set-cookie"]
        .split(";")[0]
        for token, port in ((TOKEN, one), (OTHER_TOKEN, other))
    ]
    assert [cookie.split("=")[0] for cookie in cookies] == ["longtake_token_8000", "longtake_token_8001"]
    both = {"cookie": "; ".join(cookies)}
    assert visitor.get("/studio/votes", headers=one | both).status_code == 200
    visitor.cookies.clear()
    assert visitor.get("/studio/votes", headers=one | {"cookie": cookies[1]}).status_code == 401
    gone = visitor.post(SIGN_OUT, headers=one | both | {"origin": "http://127.0.0.1:8000"}).headers["set-cookie"]
    assert gone.startswith("longtake_token_8000=")


def test_a_download_is_named_by_its_prompt_and_seed():
    assert download_name(Request(prompt="A red ball, it bounces!", seed=7), ".mp4") == "a-red-ball-it-bounces-7.mp4"
    assert download_name(Request(prompt="一个红球", seed=1), ".png") == "一个红球-1.png"
    assert download_name(Request(prompt="../..", seed=2), ".mp4") == "text-to-video-2.mp4"
    assert len(download_name(Request(prompt="red " * 90), ".mp4")) <= 66
    board = Request(mode="storyboard", moments=(Moment(0, "a ball rolls"),))
    assert download_name(board, ".mp4") == "a-ball-rolls-0.mp4"
