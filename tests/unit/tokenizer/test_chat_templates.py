"""Chat templates render as in transformers, and whatever they do wrong is the request's or the checkpoint's error."""

from typing import Any

import pytest

from core.errors import CheckpointError, InvalidRequest
from engine import chat_template
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
        ("{{ messages[0].content + 1 }}", "chat template rejects"),
        ("{{ messages[5].content.x }}", "chat template rejects"),
        ("{{ 1 / 0 }}", "chat template rejects"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "chat template rejects"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe|not safely"),
        ("{{ namespace(__init__=1) }}", "underscore"),
        ("{% for x in range(10**9) %}{% endfor %}", "[Rr]ange"),
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


def test_prompt_without_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "MAX_PROMPT_CHARACTERS", 1000)
    template = ChatTemplate("{% for x in range(99999) %}{{ 'x' }}{% endfor %}", {}, "model")
    with pytest.raises(InvalidRequest, match="too long"):
        template.render(USER)


@pytest.mark.parametrize("source", ["{% if %}", "{{ x", "{% endfor %}", "{{ x | no_such_filter }}", "x" * 1_000_001])
def test_template_that_does_not_compile_is_the_checkpoints_error(source: str) -> None:
    with pytest.raises(CheckpointError, match="the chat template (has|does not compile)"):
        ChatTemplate(source, {}, "the chat template")
