"""What the scripts of the playground do with the frames of the door. The door is played by the test
here; the e2e tests have the real one."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from playwright.sync_api import WebSocketRoute, expect
from pytest_django.live_server_helper import LiveServer

from apps.deployments.models import Deployment
from apps.rbac.models import User
from tests.browser import Browser, chromium

# Scripts of a page are the same on each database.
pytestmark = [pytest.mark.django_db, pytest.mark.any_database]

PAGE = "/admin/playground/"


@dataclass
class Door:
    """The far end of the page's WebSocket. Frames that the page sends are kept in ``frames``."""

    frames: list[dict[str, Any]] = field(default_factory=list)
    sockets: list[WebSocketRoute] = field(default_factory=list)
    on_open: Callable[[WebSocketRoute], None] = lambda ws: ws.send(
        '{"type":"ready","tenant":"acme"}'
    )

    def accept(self, ws: WebSocketRoute) -> None:
        self.sockets.append(ws)
        ws.on_message(lambda text: self.frames.append(json.loads(text)))
        self.on_open(ws)

    def send(self, kind: str, **fields: Any) -> None:
        self.sockets[-1].send(json.dumps({"type": kind, **fields}))

    def sent(self, kind: str) -> list[dict[str, Any]]:
        return [frame for frame in self.frames if frame["type"] == kind]

    def answer(self, id: str, text: str, *, reason: str = "stop") -> None:
        self.send("started", id=id, request_id="req_1", model="ready-model", n_prompt_tokens=31)
        self.send("delta", id=id, text=text)
        usage = {
            "prompt_tokens": 31,
            "completion_tokens": 7,
            "total_tokens": 38,
            "prompt_tokens_details": {"cached_tokens": 16},
        }
        self.send("finished", id=id, finish_reason=reason, usage=usage)


@pytest.fixture
def door() -> Door:
    return Door()


@pytest.fixture
def chat(
    transactional_db: None,
    live_server: LiveServer,
    admin_user: User,
    deployment: Deployment,
    door: Door,
) -> Iterator[Browser]:
    with chromium(base_url=live_server.url) as browser:
        browser.page.route_web_socket("**/v1/stream", door.accept)
        browser.sign_in(f"{live_server.url}{PAGE}", username="admin", password="pass-word-1")
        yield browser
        assert browser.complaints == []


def say(browser: Browser, text: str) -> None:
    browser.page.get_by_label("Message").fill(text)
    browser.page.keyboard.press("Enter")


def test_chat_of_several_turns(chat: Browser, door: Door) -> None:
    page = chat.page
    expect(page.locator("#pg-connection-text")).to_have_text("Connected")
    page.get_by_label("System prompt").fill("Be brief.")
    page.get_by_label("Temperature", exact=True).fill("0")
    page.get_by_label("Top-p", exact=True).fill("")
    page.get_by_label("Max tokens").fill("64")
    page.get_by_label("Seed").fill("7")
    say(chat, "Hello?")
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    door.answer("c1", "Hi **there**.")
    answer = page.locator(".pg-assistant").first
    expect(answer.locator("strong")).to_have_text("there")
    expect(answer.locator(".pg-figures")).to_contain_text("7 tokens")
    expect(answer.locator(".pg-figures")).to_contain_text("prompt 31, 16 cached")
    expect(answer.locator(".pg-figures")).to_contain_text("Complete")
    say(chat, "And?")
    expect(page.locator(".pg-turn")).to_have_count(4)
    assert door.sent("start") == [
        {
            "type": "start",
            "id": "c1",
            "model": "ready-model",
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Hello?"},
            ],
            "max_tokens": 64,
            "temperature": 0,
            "seed": 7,
        },
        {
            "type": "start",
            "id": "c2",
            "model": "ready-model",
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Hello?"},
                {"role": "assistant", "content": "Hi **there**."},
                {"role": "user", "content": "And?"},
            ],
            "max_tokens": 64,
            "temperature": 0,
            "seed": 7,
        },
    ]


def test_what_a_model_writes_never_becomes_markup(chat: Browser, door: Door) -> None:
    hostile = (
        "<img src=x onerror=\"document.title='owned'\">\n\n"
        "**<script>document.title='owned'</script>**\n\n"
        "```html\n<iframe src='javascript:1'></iframe>\n```\n\n"
        "- `<b>` [link](javascript:alert(1))\n"
    )
    say(chat, "<i>hi</i>")
    door.answer("c1", hostile)
    body = chat.page.locator(".pg-assistant .pg-body")
    expect(body.locator("pre code")).to_have_text("<iframe src='javascript:1'></iframe>")
    expect(body.locator("strong")).to_have_text("<script>document.title='owned'</script>")
    expect(body.locator("li")).to_contain_text("[link](javascript:alert(1))")
    assert body.locator("img, script, iframe, a, b").count() == 0
    assert chat.page.locator(".pg-bubble i").count() == 0
    assert chat.page.title().startswith("Playground")


def test_stop_cancels_and_keeps_what_came(chat: Browser, door: Door) -> None:
    say(chat, "A long story")
    door.send("started", id="c1", request_id="req_1", model="ready-model")
    door.send("delta", id="c1", text="Once upon")
    expect(chat.page.locator(".pg-body")).to_have_text("Once upon")
    chat.page.get_by_role("button", name="Stop").click()
    expect(chat.page.get_by_role("button", name="Stop")).to_be_disabled()
    assert door.sent("cancel") == [{"type": "cancel", "id": "c1"}]
    door.answer("c1", " a time", reason="cancelled")
    expect(chat.page.locator(".pg-body")).to_have_text("Once upon a time")
    expect(chat.page.locator(".pg-figures")).to_contain_text("Stopped by you")
    expect(chat.page.get_by_label("Message")).to_be_focused()


def test_error_in_place_then_retry(chat: Browser, door: Door) -> None:
    say(chat, "Hello?")
    error = {
        "message": "The prompt is too long.",
        "type": "invalid_request_error",
        "param": "messages",
        "code": "context_length_exceeded",
    }
    door.send("error", id="c1", error=error)
    alert = chat.page.locator(".pg-error")
    expect(alert).to_contain_text("The prompt is too long.")
    expect(alert).to_contain_text("context_length_exceeded · field “messages”")
    chat.page.get_by_role("button", name="Retry").click()
    expect(alert).to_be_hidden()
    door.answer("c2", "Hi.")
    expect(chat.page.locator(".pg-body")).to_have_text("Hi.")
    first, second = door.sent("start")
    assert second["messages"] == first["messages"] == [{"role": "user", "content": "Hello?"}]
    expect(chat.page.locator(".pg-turn")).to_have_count(2)


def test_a_question_without_an_answer_is_not_sent_again(chat: Browser, door: Door) -> None:
    say(chat, "first")
    door.send("error", id="c1", error={"message": "Busy.", "code": "overloaded", "param": None})
    expect(chat.page.locator(".pg-error")).to_contain_text("Busy.")
    say(chat, "second")
    door.answer("c2", "Hi.")
    expect(chat.page.locator(".pg-body").last).to_have_text("Hi.")
    assert door.sent("start")[1]["messages"] == [{"role": "user", "content": "second"}]


def test_reconnects_and_tells_of_the_answer_that_was_lost(chat: Browser, door: Door) -> None:
    say(chat, "Hello?")
    door.send("delta", id="c1", text="Half an")
    expect(chat.page.locator(".pg-body")).to_have_text("Half an")
    door.sockets[-1].close(code=1012)
    expect(chat.page.locator(".pg-error")).to_contain_text("The connection was lost")
    expect(chat.page.locator("#pg-connection-text")).to_have_text("Connected")
    assert len(door.sockets) == 2
    chat.page.get_by_role("button", name="Retry").click()
    door.answer("c2", "A whole answer")
    expect(chat.page.locator(".pg-body")).to_have_text("A whole answer")


def test_an_ended_session_asks_to_sign_in(chat: Browser, door: Door) -> None:
    expect(chat.page.locator("#pg-connection-text")).to_have_text("Connected")

    def refuse(ws: WebSocketRoute) -> None:
        error = {"message": "Your session has ended.", "code": "invalid_api_key", "param": None}
        ws.send(json.dumps({"type": "error", "id": None, "error": error}))
        ws.close(code=4401)

    door.on_open = refuse
    door.sockets[-1].close(code=1006)
    expect(chat.page.locator("#pg-notice-text")).to_have_text("Your session has ended.")
    sign_in = chat.page.get_by_role("link", name="Sign in")
    expect(sign_in).to_have_attribute("href", f"/admin/login/?next={PAGE}")
    expect(chat.page.locator("#pg-connection")).to_have_attribute("data-state", "refused")


def test_signing_out_elsewhere_is_noticed(chat: Browser, door: Door) -> None:
    expect(chat.page.locator("#pg-connection-text")).to_have_text("Connected")
    chat.page.context.clear_cookies()
    door.sockets[-1].close(code=1012)  # the page asks for the models again once it is connected
    expect(chat.page.locator("#pg-notice-text")).to_contain_text("Your session has ended.")
    expect(chat.page.locator("#pg-connection")).to_have_attribute("data-state", "refused")


def test_a_chat_over_the_servers_bound_says_so(chat: Browser, door: Door) -> None:
    say(chat, "a very long message")
    door.sockets[-1].close(code=1009)
    expect(chat.page.locator(".pg-error")).to_contain_text("more than the server takes")


def test_a_reload_keeps_the_chat_and_new_chat_ends_it(chat: Browser, door: Door) -> None:
    page = chat.page
    page.get_by_label("Max tokens").fill("99")
    say(chat, "Hello?")
    door.answer("c1", "Hi.")
    expect(page.locator(".pg-figures")).to_contain_text("Complete")
    page.reload()
    expect(page.locator(".pg-body")).to_have_text("Hi.")
    expect(page.locator(".pg-figures")).to_contain_text("7 tokens")
    expect(page.get_by_label("Max tokens")).to_have_value("99")
    page.get_by_role("button", name="New chat").click()
    expect(page.get_by_role("heading", name="Try a model")).to_be_visible()
    page.reload()
    expect(page.locator(".pg-turn")).to_have_count(0)


def test_shift_enter_makes_a_line_and_code_shows_the_request(chat: Browser, door: Door) -> None:
    page = chat.page
    message = page.get_by_label("Message")
    message.fill("it's")
    message.press("Shift+Enter")
    message.type("two")
    assert message.input_value() == "it's\ntwo"
    page.get_by_role("button", name="View code").click()
    snippet = page.locator("#pg-snippet")
    expect(snippet).to_contain_text('"content": "it\'\\\'\'s\\ntwo"')
    page.get_by_role("tab", name="Python (openai)").click()
    expect(snippet).to_contain_text('{"role": "user", "content": "it\'s\\ntwo"},')
    expect(snippet).to_contain_text(f'OpenAI(base_url="{page.url.split("/admin")[0]}/v1"')
    assert door.frames == []
