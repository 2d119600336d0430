"""Chat templates render as in transformers, and whatever they do wrong is the request's or the checkpoint's error."""

import time
from typing import Any

import pytest

from core.errors import CheckpointError, InvalidRequest
from engine import template_sandbox
from engine.chat_template import ChatTemplate

USER = [{"role": "user", "content": "hi <b>&"}]
TOOLS = [
    {
        "type": "function",
        "function": {"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "é<"}}}},
    }
]

# Cut from the templates of Llama 3.1, Qwen 2.5, Qwen 3 and Mistral: the constructs they need of the environment.
CONSTRUCTS = [
    "{{ bos_token }}{% for m in messages %}\n  {% if m.role == 'user' %}\n[{{ m['content'] | trim }}]\n  {% endif %}\n"
    "{% endfor %}",
    "{{- messages | tojson(indent=4) }}{% if tools %}{{ tools | tojson }}{% endif %}",
    "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}",
    "{% generation %}\nx{{ messages[0].role }}\n{% endgeneration %}",
    "{% set ns = namespace(found=false) %}{% for m in messages %}{% set ns.found = true %}{% break %}{% endfor %}"
    "{{ ns.found }}",
    "{%- if documents is none %}none{% endif %}{{ messages[::-1] | length }}{{ undefined_name }}{{ enable_thinking }}",
    "{%- macro greet(name) %}hello {{ name }}{% endmacro %}{{ greet('you') }}{{ '%s' % 3 }}{{ dict(a=1) | tojson }}",
    "{% if add_generation_prompt %}<|assistant|>{% endif %}{{ messages | selectattr('role', 'eq', 'user') | list }}",
]


@pytest.mark.parametrize("source", CONSTRUCTS)
@pytest.mark.parametrize("tools", [None, TOOLS])
def test_constructs_of_real_templates_render_as_in_transformers(
    source: str, tools: list[dict[str, Any]] | None
) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    for prompt in (True, False):
        options: Any = {"tools": tools, "add_generation_prompt": prompt, "bos_token": "<s>", "enable_thinking": False}
        [expected], _ = render_jinja_template([USER], chat_template=source, **options)
        template = ChatTemplate(source, {"bos_token": "<s>"}, "model")
        assert template.render(USER, tools, prompt, {"enable_thinking": False}) == expected


def test_dates_are_those_of_today() -> None:
    assert ChatTemplate("{{ strftime_now('%Y') }}", {}, "model").render(USER).startswith("20")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[0].content + 1 }}", "TypeError"),
        ("{{ messages[5].content.x }}", "UndefinedError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "chat template rejects"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{{ namespace(__init__=1) }}", "SecurityError"),
        ("{{ 'a'.ljust(10**9) }}", "SecurityError"),
        ("{% for x in range(10**9) %}{% endfor %}", "OverflowError"),
    ],
)
def test_template_that_fails_is_an_invalid_request_on_messages(source: str, words: str) -> None:
    template = ChatTemplate(source, {}, "model")
    with pytest.raises(InvalidRequest, match=words) as caught:
        template.render(USER)
    assert caught.value.param == "messages"


def test_request_cannot_replace_messages_through_variables() -> None:
    template = ChatTemplate("{{ messages[0].content }}", {}, "model")
    assert template.render(USER, variables={"messages": [{"content": "other"}]}) == "hi <b>&"


def test_what_a_template_says_of_an_error_of_its_own_is_not_repeated() -> None:
    template = ChatTemplate(
        "{{ messages[0][messages[0].content] + 1 }}{{ [][messages[0].content | int] }}", {}, "model"
    )
    with pytest.raises(InvalidRequest) as caught:
        template.render([{"role": "user", "content": "canary"}])
    assert "canary" not in caught.value.message and "0x" not in caught.value.message


DOUBLING = "{% set ns = namespace(x='ab') %}{% for i in range(99) %}"
HOSTILE = {
    "nested loops": "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
    "a long text": "{{ 'a' * 1000000000 }}",
    "a wide number": "{{ '%1000000000d' % 1 }}",
    "lipsum": "{{ lipsum(n=3000000) }}",
    "a wide number of braces": "{{ '{:>1000000000}'.format(1) }}",
    "a wide number by a filter": "{{ '%1000000000d' | format(1) }}",
    "a width given apart": "{{ '%*d' | format(1000000000, 1) }}",
    "doubling by +": DOUBLING + "{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "doubling by ~": DOUBLING + "{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "doubling by blocks": DOUBLING + "{% set x %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = x %}{% endfor %}",
    "doubling by join": DOUBLING + "{% set ns.x = [ns.x, ns.x] | join %}{% endfor %}",
    "replace": "{% set x = 'a' * 1000000 %}{{ x.replace('a', x) }}",
    "replace by a filter": "{% set x = 'a' * 1000000 %}{{ x | replace('a', x) }}",
    "join": "{% set x = 'a' * 1000000 %}{{ x.join(range(100000) | map('string') | list) }}",
    "a huge number": "{{ 9 ** 999999999 }}",
    "squaring": "{% set ns = namespace(x=9) %}{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "a list of lists": "{{ ([[1] * 100000] * 100000) | tojson }}",
    "lists of each other": "{% set ns = namespace(x=1) %}{% for i in range(99) %}{% set ns.x = [ns.x, ns.x] %}"
    "{% endfor %}{{ ns.x }}",
    "macros that call twice": "{% macro f(n) %}{% if n %}{{ f(n - 1) ~ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "a block that calls twice": "{% block b %}{% set n = (n or 0) + 1 %}{{ self.b() }}{{ self.b() }}{% endblock %}",
    "indentation": "{{ 'a\n' * 100000 | indent(1000000) }}{{ 'a' | indent(1000000000, true) }}",
    "a recursive loop": "{% for i in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}",
    "text without end": "{% for x in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
    "a hidden counter": "{% set count_step = 1 %}" + "{% for i in range(99999) %}" * 3 + "{% endfor %}" * 3,
}


@pytest.mark.parametrize("source", HOSTILE.values(), ids=HOSTILE)
def test_template_that_never_ends_or_fills_the_memory_is_refused_within_two_seconds(
    source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template_sandbox, "MAX_RENDER_S", 0.1)
    started_s = time.thread_time()
    # Unconditional ones when the model is loaded, others when a message sets them off.
    with pytest.raises((CheckpointError, InvalidRequest)):
        ChatTemplate(source, {}, "model").render(USER)
    hidden = "{% if 'now' in messages[0].content %}" + source + "{% endif %}"
    with pytest.raises((CheckpointError, InvalidRequest)):
        ChatTemplate(hidden, {}, "model").render([{"role": "user", "content": "now"}])
    assert time.thread_time() - started_s < 4


@pytest.mark.parametrize("name", ["nested loops", "a long text", "a wide number", "lipsum"])
def test_hostile_template_is_refused_when_its_model_is_loaded(name: str) -> None:
    with pytest.raises(CheckpointError, match="model (costs too much|uses lipsum)"):
        ChatTemplate(HOSTILE[name], {}, "model")


def test_long_chat_is_far_from_every_bound() -> None:
    source = "{% for m in messages %}{{ '<|' + m.role ~ '|>' + m.content | trim }}{{ '\\n' }}{% endfor %}"
    messages = [{"role": "user", "content": "x" * 100_000}] * 30 + [{"role": "user", "content": "é"}] * 2000
    started_s = time.thread_time()
    text = ChatTemplate(source, {}, "model").render(messages)
    assert text.count("<|user|>") == 2030
    assert time.thread_time() - started_s < 2


@pytest.mark.parametrize("source", ["{% if %}", "{{ x", "{% endfor %}", "{{ x | no_such_filter }}", "x" * 1_000_001])
def test_template_that_does_not_compile_is_the_checkpoints_error(source: str) -> None:
    with pytest.raises(CheckpointError, match="the chat template (has|does not compile)"):
        ChatTemplate(source, {}, "the chat template")
