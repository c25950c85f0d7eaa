"""Chat templates that want out of their sandbox, or never to end."""

from __future__ import annotations

import sys
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
