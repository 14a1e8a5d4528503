"""Chat templates that would never end, and those that a bound must not change."""

import pytest
from tests.modalities.text.test_chat import free, task
from transformers.utils.chat_template_utils import render_jinja_template

from fedcollm.errors import UserError
from fedcollm.modalities.text import bounded_template
from fedcollm.modalities.text.bounded_template import bounded

MESSAGES = [{"role": "user", "content": " hi "}, {"role": "assistant", "content": "yo\n"}]


def rendered(template: str) -> str:
    return render_jinja_template([MESSAGES], chat_template=template)[0][0]


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}\n  {{ m.content }}\n{% endfor %}\n",
        "  {%- for m in messages -%}  {{ m.role }}\n   {% endfor -%}\n  end",
        "\n\n {%+ for m in messages +%}\n {{ m.content }}{% else %}none{% endfor %}",
        "{% raw %}{% for %}{% endraw %}{# {% for %} #}{% for m in messages if m.content %}{{ '%}' }}{% endfor %}",
        "{% macro f(x) -%}\n  [{{ x }}]\n{%- endmacro %}{% for m in messages %}{{ f(1) }}{% continue %}{% endfor %}",
        "{% for m in [1, [2]] recursive %}{{ m if m is integer else loop(m) }}{% endfor %}",
        "   {% block a %}\n  B{% for m in messages %}x{% endfor %}{% endblock %}{{ self.a() }}\r\n\r\nx\r\n",
        "{% macro w() %}<{{ caller() }}>{% endmacro %}{% call w() %}\n in{% endcall %}",
    ],
)
def test_output_is_unchanged(template):
    assert rendered(bounded(template)[0]) == rendered(template)


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(9) %}{% for j in range(99999) -%}  {% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% macro range(n) %}{% endmacro %}{% for a in '1234567' %}{% for b in '1234567' %}{% for c in '1234567' %}"
        "{% endfor %}{% endfor %}{% endfor %}",
        "{{ 2 ** 100000000000 }}",
    ],
)
def test_template_that_never_ends_is_refused(template, monkeypatch):
    monkeypatch.setattr(bounded_template, "MOST_STEPS", 200)
    bounded.cache_clear()
    with pytest.raises(UserError, match=r"the chat template of .* may never end"):
        task(template).collate([free("yes", ("user", "hi"))])
    bounded.cache_clear()
