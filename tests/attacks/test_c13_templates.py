"""Chat templates that want out of their sandbox, never to end, or to tell one conversation of another."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from bitnet_onnx.errors import PackageError
from bitnet_onnx.limited_process import Limits
from bitnet_onnx.runtime import Message, _template_worker
from bitnet_onnx.runtime.chat import ChatTemplate

ESCAPES = [
    "{{ ''.__class__.__mro__ }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__init__.__globals__ }}",
    "{{ raise_exception.__globals__['sys'] }}",
    "{{ cycler.__init__.__globals__.os.system('true') }}",
    "{{ self._TemplateReference__context.environment }}",
    "{{ ''['__cl' ~ 'ass__'].__mro__ }}",
    "{{ (messages | attr('__cla' ~ 'ss__')).__mro__ }}",
    "{{ '{0.__class__.__mro__}'.format('') }}",
    "{{ '%s'.format_map }}{{ namespace.__init__.__globals__['os'].environ }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update({'role': 'system'}) }}",
    "{% include '/etc/hostname' %}",
    "{% import 'os' as os %}",
    "{% extends 'x' %}",
]

ENDLESS = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a filter's loop": "{% for a in range(99999) %}{% set x = range(99999) | sum %}{% endfor %}",
    "a power": "{% set x = 7 ** (9 ** 9) %}",
    "two calls of itself": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
}

HUGE = {
    "output": "{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
    "range": "{{ range(10 ** 9) | list }}",
    "depth": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "parentheses": "{{ " + "(" * 50_000 + "1" + ")" * 50_000 + " }}",
}

MEMORY = {
    "one product": "{{ 'x' * 10 ** 10 }}",
    "one format": "{{ '%10000000000d' % 1 }}",
    "one filter": "{{ 'x' | center(10 ** 10) }}",
    "doubling": "{% set n = namespace(x='x' * 1000) %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "lists": "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
}


def refusal(source: str) -> str:
    with pytest.raises(PackageError) as caught:
        ChatTemplate(source, {}).render([[Message("user", "hello")]])
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 400
    return text


@pytest.mark.parametrize("source", ESCAPES)
def test_the_sandbox_holds(source: str) -> None:
    refusal(source)


@pytest.mark.parametrize("name", ENDLESS)
def test_a_template_without_end_is_ended(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The limit itself is 5 s; a shorter one keeps the tests quick.
    monkeypatch.setattr("bitnet_onnx.runtime.chat._LIMITS", Limits(megabytes=512, seconds=1))
    text = refusal(ENDLESS[name])
    assert "did not finish within 1 s" in text or "out of memory or of 1 s of time" in text


@pytest.mark.parametrize("name", HUGE)
def test_a_template_without_measure_is_refused(name: str) -> None:
    refusal(HUGE[name])


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux enforces the limit on the address space")
@pytest.mark.parametrize("name", MEMORY)
def test_a_template_that_wants_all_memory_is_refused(name: str) -> None:
    refusal(MEMORY[name])


def test_a_process_that_dies_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = tmp_path / "worker.py"
    monkeypatch.setattr("bitnet_onnx.runtime.chat._WORKER", worker)
    worker.write_text("raise SystemExit(3)", encoding="utf-8")
    assert "ended its process (status 3)" in refusal("hi")


def test_memory_without_end_within_the_process_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise MemoryError

    monkeypatch.setattr(_template_worker, "make_environment", fail)
    assert "memory" in _template_worker.render({"template": "", "max_characters": 1})["error"]


#: What each says of a conversation's first content must not depend on the conversations before it.
MEMORIES = {
    "a variable": "{{ kept | default('no') }}{% set kept = messages[0].content %}",
    "a namespace": "{% if n is not defined %}{% set n = namespace(x='no') %}{% endif %}{{ n.x }}"
    "{% set n.x = messages[0].content %}",
    "a cycler": "{% set c = c | default(cycler('no', 'yes')) %}{{ c.next() }}",
    "a joiner": "{% set j = j | default(joiner('yes')) %}{{ j() or 'no' }}",
    "a global that is hidden": "{{ range.kept | default('no') }}{% set range = {'kept': messages[0].content} %}",
    "a macro's default": "{% macro f(x=[]) %}{{ x[0] | default('no') }}{% endmacro %}{{ f() }}{{ list }}",
    "a macro's default, filled": "{% macro f(x={'a': 'no'}) %}{{ x.a }}{% set _ = dict.update(x, {'a': 'yes'}) %}"
    "{% endmacro %}{{ f() }}",
    "a constant list": "{% for x in [['no']] %}{{ x[0] }}{% set _ = dict.update({}, a=x) %}{% endfor %}",
    "a block": "{% block a %}{{ kept | default('no') }}{% set kept = messages[0].content %}{% endblock %}",
    "a loop": "{% for m in messages %}{{ 'yes' if loop.previtem else 'no' }}{% endfor %}",
    "the variables": "{{ bos | default('no') }}{% set bos = messages[0].content %}{% set messages = 1 %}",
    "the messages, changed": "{{ messages[0].kept | default('no') }}{{ dict.update(messages[0], kept='yes') or '' }}",
    "what was imported": "{{ self.kept | default('no') }}",
}

#: What would store something in an object that all conversations see is an error.
STORES = [
    "{% set cycler.kept = messages[0].content %}",
    "{% set raise_exception.kept = 1 %}",
    "{% set dict.kept = 1 %}",
    "{% set self.kept = 1 %}",
    "{% macro f() %}{% endmacro %}{% set f.kept = 1 %}",
    "{% macro f(x=[]) %}{{ x.append(1) }}{% endmacro %}{{ f() }}",
    "{% set _ = range.__dict__ %}{{ _.update(x=1) }}",
]


@pytest.mark.parametrize("name", MEMORIES)
def test_a_conversation_leaves_nothing_for_the_next(name: str) -> None:
    template = ChatTemplate(MEMORIES[name], {})
    with closing(template):
        one, other = ([Message("user", text)] for text in ("yes, a secret", "another"))
        texts = template.render([one, one, other]) + template.render([other]) + template.render([one])
        assert texts == ["no"] * 5
        (process,) = template._processes._idle  # a process for all of them, or this would prove nothing
        assert process.answers == 3


@pytest.mark.parametrize("source", STORES)
def test_what_all_conversations_see_cannot_be_changed(source: str) -> None:
    refusal(source)


def test_a_template_that_hangs_fails_its_own_request_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitnet_onnx.runtime.chat._LIMITS", Limits(megabytes=512, seconds=2))
    hang = "{% if messages[0].content == 'hang' %}" + ENDLESS["nested loops"] + "{% endif %}{{ messages[0].content }}"
    template = ChatTemplate(hang, {})
    with closing(template):
        assert template.render([[Message("user", "a")]]) == ["a"]
        (first,) = template._processes._idle
        with pytest.raises(PackageError, match="2 s"):
            template.render([[Message("user", "hang")]])
        assert not template._processes._idle
        assert not first.alive
        assert template.render([[Message("user", "b")]]) == ["b"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux enforces the limit on the address space")
def test_a_template_that_takes_much_memory_gets_a_fresh_process(monkeypatch: pytest.MonkeyPatch) -> None:
    source = "{% if messages[0].content == 'much' %}{{ messages[0].content * 10 ** 8 == 'y' }}{% endif %}"
    template = ChatTemplate(source, {})
    with closing(template):
        assert template.render([[Message("user", "a")]]) == [""]
        assert len(template._processes._idle) == 1
        assert template.render([[Message("user", "much")]]) == ["False"]
        assert not template._processes._idle


def test_conversations_at_the_same_time_get_their_own_texts() -> None:
    template = ChatTemplate("{% set n = namespace(x=messages[0].content) %}{{ n.x }}{{ messages | length }}", {})
    with closing(template), ThreadPoolExecutor(16) as threads:
        contents = [f"text {index}" for index in range(200)]
        texts = threads.map(lambda text: template.render([[Message("user", text)]] * 2), contents)
        assert list(texts) == [[f"{text}1"] * 2 for text in contents]


def test_the_processes_end_with_python_without_a_word() -> None:
    code = (
        "import threading, time\n"
        "from bitnet_onnx.runtime.chat import ChatTemplate, Message\n"
        "kept, dropped, hanging = (ChatTemplate(text, {}) for text in ('a', 'b', '" + ENDLESS["nested loops"] + "'))\n"
        "assert kept.render([[]]) == ['a'] and dropped.render([[]]) == ['b']\n"
        "del dropped\n"
        "def hang():\n"
        "    try: hanging.render([[]])\n"
        "    except Exception: pass\n"
        "threading.Thread(target=hang, daemon=True).start()\n"
        "time.sleep(0.5)\n"
    )
    done = subprocess.run([sys.executable, "-P", "-W", "error", "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
