# Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Templates construct by construct, for chat-templates.py. Where a case is an error, it is one in Jinja, too."""

V = {
    "none_value": None,
    "yes": True,
    "n": 7,
    "f": 2.5,
    "s": "  Héllo wörld, it's \"me\"  ",
    "l": [3, 1, 2, 1],
    "words": ["b", "A", "c", "a"],
    "d": {"b": 1, "a": [1, 2], "get it": {"x": None}},
    "users": [{"name": "Zoe", "age": 3, "on": True}, {"name": "adam", "age": 5, "on": False}, {"name": "Bob", "age": 4, "on": True}],
    "deep": {"a": {"b": [{"c": "found"}]}},
}

EXPRESSIONS = """
1 + 2 * 3 - 4 / 2 // 1 % 3
2 ** 3 ** 2
-2 ** 2
7 // 2, -7 // 2, 7 // -2, -7 % 3, 7 % -3, 7.5 // 2, -7.5 % 2
1 / 4, 3.0, 1e20, 1.5e-7, 0.1 + 0.2, 100000000000000000.0, 1e16, 123456789.123
true, True, false, none, None
"a" "b" 'c'
'\\n\\t\\x41\\u00e9\\\\\\'\\q'
"a" ~ 1 ~ none ~ 2.0 ~ [1, 'x'] ~ undefined_thing
[1, 'two', "it's", 3.5, none, true, (1,), (), {}, {'a': [1]}]
{'a': 1, "b": {'c': 2}, 3: 4, 'a': 5}
(1, 2) + (3,), [1] + [2, 3], [0] * 3, 'ab' * 3, 3 * 'ab', 'ab' * -1, (1, 2) * 2
1 < 2 < 3, 1 < 3 < 2, 1 == 1.0, true == 1, 'a' < 'b', [1, 2] < [1, 3], [1] == (1,), {'a': 1} == {'a': 1.0}
'a' in 'abc', 'd' not in 'abc', 1 in l, 4 not in l, 'b' in d, 'z' in d, 'x' in undefined_thing
not true, not 0, not '', not not [1], not [] and 1
0 or 'x', 1 and 'y', '' or none or 0, 1 and 0 and 2
'yes' if n > 5 else 'no', 'yes' if n > 9, ('a' if false else 'b' if false else 'c')
(1 if true else 2) ~ (3 if undefined_thing else 4)
n.foo, none_value.foo, s.foo, l.foo, d.zzz, d['zzz'], l[10], l['x'], s[100]
d.a, d['a'], d.a[1], d.a[-1], d['get it'], d['get it'].x, l[0], l[-1], l.0, s[2], s[-3]
l[1:], l[:-1], l[::-1], l[1:3], l[::2], l[5:], l[-2:], l[3:1:-1], s[2:7], s[::-1], s[:0]
'abc'[::-2], 'abc'[2::-1], 'abc'[-100:100], 'abc'[100:-100:-1], [1,2,3][none:none], (1,2,3)[1:]
users[0].name, users[-1]['name'], deep.a.b[0].c
s.strip(), s.lstrip(), s.rstrip(), 'xxaxx'.strip('x'), 'xyaxy'.lstrip('yx'), 'abc'.rstrip('cb')
'a,b,,c'.split(','), ' a  b '.split(), 'a b c'.split(' ', 1), 'a b c'.split(none, 1), 'a--b'.split('--'), ''.split(), ''.split('x'), 'a b c'.rsplit(' ', 1), ' a  b c '.rsplit(none, 1)
'abc'.startswith('ab'), 'abc'.endswith('bc'), 'abc'.startswith(('x', 'a')), 'abc'.endswith(('x',)), ''.startswith('')
'aXbXc'.replace('X', '-'), 'aaa'.replace('a', 'b', 2), 'abc'.replace('', '.'), 'aXb'.replace('X', '')
'héLLo wörld'.upper(), 'HÉLLO'.lower(), "they're bill's".title(), 'hELLO wORLD'.capitalize(), ''.capitalize()
', '.join(['a', 'b']), ''.join([]), '-'.join('abc')
'abc'.find('c'), 'abc'.find('z'), 'héhé'.rfind('é'), 'hello'.count('l'), 'abc'.index('b'), [1, 2, 2].count(2), [1, 2].index(2)
'12'.isdigit(), 'a1'.isdigit(), 'ab'.isalpha(), 'a1'.isalnum(), ' '.isspace(), ''.isspace(), 'AB'.isupper(), 'aB'.islower()
'a=b=c'.partition('='), 'a=b=c'.rpartition('='), 'abc'.partition('='), 'a\\nb\\r\\nc'.splitlines(), 'a\\n'.splitlines()
'prefix-x'.removeprefix('prefix-'), 'x.txt'.removesuffix('.txt'), 'x'.removesuffix('y')
d.items() | list, d.keys() | list, d.values() | list, d.get('b'), d.get('q'), d.get('q', 'default'), d['items'] is callable
s | trim, 'xax' | trim('x'), s | length, l | length, d | length, undefined_thing | length, l | count
undefined_thing | default('x'), undefined_thing | d, '' | default('x'), '' | default('x', true), none_value | default('x'), 0 | d('z', boolean=true)
l | first, l | last, [] | first, 'abc' | last, l | join('-'), l | join, users | join(', ', attribute='name'), 'abc' | join('.')
l | sort, l | sort(reverse=true), words | sort, words | sort(case_sensitive=true), users | sort(attribute='age') | map(attribute='name') | list
l | unique | list, words | unique | list, l | reverse | list, 'abc' | reverse, l | list, 'abc' | list, d | list
users | map(attribute='name') | list, users | map(attribute='zz', default='?') | list, words | map('upper') | join(','), [' a '] | map('trim') | list
[{'a': {'b': 1}}] | map(attribute='a.b') | list, [[1, 2]] | map(attribute=1) | list, ['a-b'] | map('replace', '-', '+') | list
users | selectattr('on') | map(attribute='name') | list, users | rejectattr('on') | list | length, users | selectattr('age', 'gt', 3) | list | length
users | selectattr('name', 'equalto', 'Bob') | first, users | selectattr('name', 'in', ['Bob', 'Zoe']) | list | count
l | select('odd') | list, l | reject('odd') | list, [0, 1, '', 'x', none] | select | list, [none, 1] | select('none') | list
'a b' | upper, 'A B' | lower, 'hello wOrld-foo (bar)' | title, 'ab CD' | capitalize, 1 | string, none | string, ('x' | safe) ~ ''
'3' | int, '3.7' | int, 'x' | int, 'x' | int(9), 3.9 | int, -3.9 | int, '0x1f' | int(base=16), '1f' | int(0, 16), ' 5 ' | int, none | int(4)
'3' | float, 'x' | float, 'x' | float(1.5), 3 | float, 'nan' | float, '-inf' | float
-3 | abs, 2.5 | abs, 2.567 | round(2), 2.5 | round, 3.5 | round, 2.1 | round(0, 'ceil'), 2.9 | round(method='floor'), 7 | round
[1, 2, 3] | sum, users | sum(attribute='age'), [1.5, 2] | sum, [] | sum, [1] | sum(start=10)
l | max, l | min, words | max, words | min, users | max(attribute='age'), [] | max
d | dictsort, d | dictsort(reverse=true), {'B': 2, 'a': 1} | dictsort, {'B': 2, 'a': 1} | dictsort(true), {'a': 2, 'b': 1} | dictsort(by='value')
d | items | list, d | items | first
'a\\nb\\n\\nc' | indent, 'a\\nb' | indent(2), 'a\\nb' | indent(2, true), 'a\\n\\nb' | indent(2, blank=true), 'a\\nb' | indent('> ')
d | tojson, l | tojson, s | tojson, none | tojson, 2.0 | tojson, 'é\\u2028\\x7f</script>' | tojson, "\\x01\\b\\f" | tojson
d | tojson(indent=2), [] | tojson(indent=2), {} | tojson(indent=2), [[], {}] | tojson(indent=1), d | tojson(separators=(',', ':')), {'b': 1, 'a': 2} | tojson(sort_keys=true), 'é\\U0001f600' | tojson(ensure_ascii=true)
{1: 2, none: 3, true: 4, 1.5: 5} | tojson, (1, 2) | tojson, d | tojson(indent='--')
('<a href="x">' | e) ~ ("it's & so" | escape)
'a.b' | replace('.', '-'), 112 | replace(1, 2), 'aaa' | replace('a', 'b', 2)
{'a': 1} | attr('keys') is callable, {'a': 1} | attr('a') is undefined
n is defined, zz is defined, zz is undefined, n is not defined, none_value is none, n is not none
s is string, n is string, d is mapping, l is sequence, s is sequence, d is iterable, n is iterable, l is iterable, n is number, yes is number, f is number
yes is boolean, n is boolean, yes is true, n is true, false is false, f is float, n is integer, yes is integer
n is odd, n is even, n is divisibleby 7, n is divisibleby(2), 2.0 is even
n is eq 7, n is equalto(7), n is ne 7, n is lt 8, n is le 7, n is gt 7, n is ge 7, n is lessthan 9, n is greaterthan 1, n is in [7], n is not in [7], none is sameas none, n is sameas 8
'AB' is upper, 'aB' is lower, range is callable, n is callable
n is odd and n is not even, not n is even, n is defined and n > 5 or false
range(5) | list, range(1, 4) | list, range(5, 0, -2) | list, range(0) | list
dict(a=1, b='x'), dict({'a': 1}, b=2), dict()
namespace(a=1).a, namespace({'q': 2}).q, namespace().zz is undefined
joiner() is callable, 'x' ~ joiner('|')()
strftime_now('%Y-%m-%d %H:%M'), strftime_now('')
[1, 2,], (1, 2,), {'a': 1,}, [[1], [2]][1][0], {'a': {'b': 5}}['a']['b']
{'a': '}}'}['a'], '{{ x }}', "{% y %}", [{'a': {}}]
1_000, 0.5, 5 - -3, +4, - 3 | abs, -n | abs
'a' 'b' | upper, ('a' ~ 'b') | upper, 'a' ~ 'b' | upper
dict(**{'a': 1}), 'a-b'.split(*['-'])
' \u2003x\u00a0' | trim, '\u2003x\u00a0'.strip() | length, 'straßenÄ' | length
loop is defined
['\\u00a0', '\\u200b', '\\U000e0001', 'é', '\\x07']
"""

STATEMENTS = [
    "{% if n %}a{% elif f %}b{% else %}c{% endif %}",
    "{% if zz %}a{% elif none_value %}b{% elif n == 7 %}c{% else %}d{% endif %}",
    "{% if zz %}a{% else %}b{% endif %}{% if 1 %}{% if 0 %}x{% endif %}y{% endif %}",
    "{% for x in l %}{{ loop.index }}/{{ loop.index0 }}/{{ loop.revindex }}/{{ loop.revindex0 }}/{{ loop.first }}/{{ loop.last }}/{{ loop.length }}:{{ x }} {% endfor %}",
    "{% for x in l %}{{ loop.previtem }}<{{ x }}>{{ loop.nextitem }} {{ loop.previtem is defined }}{{ loop.nextitem is defined }};{% endfor %}",
    "{% for x in l if x > 1 %}{{ loop.index }}={{ x }}{{ ',' if not loop.last }}{% else %}none{% endfor %}",
    "{% for x in [] %}a{% else %}empty{% endfor %}{% for x in l if x > 9 %}a{% else %}none{% endfor %}",
    "{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}{% for k in d %}{{ k }}{% endfor %}",
    "{% for (a, b), c in [[[1, 2], 3]] %}{{ a }}{{ b }}{{ c }}{% endfor %}",
    "{% for x in l %}{% if x == 2 %}{% break %}{% endif %}{{ x }}{% endfor %}|{% for x in l %}{% if x == 1 %}{% continue %}{% endif %}{{ x }}{% endfor %}",
    "{% for x in l %}{% for y in words %}{{ x }}{{ y }}{{ loop.index }}{{ loop.depth }}{% if y == 'A' %}{% break %}{% endif %}{% endfor %}{{ loop.index }}{% endfor %}",
    "{% for x in l %}{{ loop.cycle('odd', 'even') }}{{ loop.changed(x) }} {% endfor %}",
    "{% for c in 'héé' %}[{{ c }}]{% endfor %}{% for x in zz %}a{% else %}e{% endfor %}{% for x in range(3) %}{{ x }}{% endfor %}",
    "{% set x = 1 %}{% for i in l %}{{ x }}{% set x = i %}{{ x }} {% endfor %}{{ x }}",
    "{% set ns = namespace(found=false) %}{% for i in l %}{% if i == 1 %}{% set ns.found = i %}{% endif %}{% endfor %}{{ ns.found }}{{ ns.other }}",
    "{% set ns = namespace(stop=0) %}{% for i in [1, 2, 3, 4] if i > ns.stop %}{{ i }}{% set ns.stop = i + 1 %} {% endfor %}",
    "{% set a, b = 1, 2 %}{{ a }}{{ b }}{% set (c, d2) = [3, 4] %}{{ c }}{{ d2 }}{% set t = 1, 2 %}{{ t }}",
    "{% set x %}block {{ n }}{% endset %}[{{ x }}]{% set y | upper | trim %} ab {% endset %}[{{ y }}]{% set ns = namespace() %}{% set ns.z %}q{% endset %}{{ ns.z }}",
    "{% if true %}{% set x = 5 %}{% endif %}{{ x }}{% if false %}{% set y = 5 %}{% endif %}[{{ y }}]",
    "{% with a = 1, b = n %}{{ a }}{{ b }}{% set n = 9 %}{{ n }}{% endwith %}{{ a }}{{ n }}{% with %}{{ n }}{% endwith %}",
    "{% macro m(a, b=2, c=a) %}{{ a }}-{{ b }}-{{ c }}-{{ n }}{% endmacro %}{{ m(1) }} {{ m(1, 3) }} {{ m(b=4, a=5) }} {{ m() }} {{ m(1, c='x') | upper }} {{ m.name }}",
    "{% macro fact(i) %}{{ i * (fact(i - 1) | int) if i > 1 else 1 }}{% endmacro %}{{ fact(5) }}",
    "{% set late = 1 %}{% macro m() %}{{ late }}{% set late = 3 %}{{ late }}{% endmacro %}{{ m() }}{% set late = 2 %}{{ m() }}{{ late }}",
    "{% macro m(x) %}{% for i in x %}{{ i }}{% if loop.last %}{% break %}{% endif %}{% endfor %}{% endmacro %}{% for i in l %}{{ m([i, 9]) }}{{ loop.index }}{% endfor %}",
    "{% filter upper %}ab {{ s }}{% endfilter %}{% filter trim | title %} abc {% endfilter %}",
    "{% raw %}{{ not }} {% if %} {# x #}{% endraw %}|{%- raw -%}  a  {%- endraw -%}  |{% raw %}\n x\n{% endraw %}\ny",
    "{# comment #}a{# multi\nline #}\nb {#- c -#} d {# {{ x }} {% y %} #}",
    "a\n  {% if n %}\n  b\n  {% endif %}\nc\n",
    "a\n  {%- if n %}\n  b\n  {%- endif -%}\n  c\n",
    "  {%+ if n %}\nb{% endif +%}\nc\n  {%+ if n +%}\n d {%+ endif %}",
    "x  {% if n %}y{% endif %}  z\n{{ n }}\n{{- n }}\n  {{ n -}}\n  end\n",
    "   {{ n }}\n   {# c #}\n   {#- c #}\n  {#+ c +#}\nx   {# d -#}   \n y",
    "{% for x in l %}\n  {{ x }}\n{% endfor %}\n\n\n",
    "{% for x in l -%}\n  {{ x }}\n{%- endfor %}\n\n\n{{ n }}\n\n",
    "\r\na\rb\r\n{% if n %}\r\nc\r\n{% endif %}\r\n",
    "{{- n -}}   {{ n }}{{ n -}}\n\n{%- if n -%} x {%- endif -%}  ",
    "{{ {'a': {'b': {}}} }}{{ [{'a': 1}][0]['a'] }}{% set x = {'y': {'z': 1}} %}{{ x.y.z }}",
    "{{'{{'}} {{ '}}' }} { {a} % } {{ '%}' }}{% set q = '%}' %}{{ q }}",
    "{% generation %}a{{ n }}{% set n = 1 %}{% endgeneration %}{{ n }}",
    "{% set x = 'a' if n == 7 else 'b' %}{{ x }}{% if 'a' if n else 'b' %}y{% endif %}",
    "{% if n is defined and n is not none and n %}a{% endif %}{% if not n is none %}b{% endif %}",
    "{% for m in users | selectattr('on') %}{{ m.name }}{{ loop.last }}{% endfor %}{% if users | selectattr('zz') %}always{% endif %}",
    "{% set loop_messages = users[1:] %}{% for m in loop_messages %}{{ loop.index0 % 2 == 0 }}{{ m['name'] }}{% endfor %}",
    "{% if (users[0]['on'] == true) != (1 % 2 == 0) %}x{% endif %}",
    "{% set j = joiner(', ') %}{% for x in l %}{{ j() }}{{ x }}{% endfor %}",
    "{% set c = namespace(n=0) %}{% for u in users %}{% for i in range(u.age) %}{% set c.n = c.n + 1 %}{% endfor %}{% endfor %}{{ c.n }}",
    "\n\n  {% set x = 1 %}  \n\n{{ x }}",
    "{% if n %}  \n{% endif %}  \n  {% if n %}\t\n\t{% endif %}.",
    "é{% if n %}é{% endif %}\u2028{%- if n %} é\u3000{%- endif %}é",
    "{{ deep.a.b | map(attribute='c') | first }}{{ deep['a']['b'][0]['c'].upper()[1:3] }}",
    "{{ (s | trim).split(' ')[0].lower() | replace('h', 'H') ~ '!' }}",
    "{{ 'a' if false }}|{{ none }}|{{ true }}|{{ [] }}|{{ '' }}",
]

ERRORS = [
    "{{ zz.y }}", "{{ zz + 1 }}", "{{ zz['a'] }}", "{{ zz() }}", "{{ n() }}", "{{ d.zz() }}", "{{ d.zz.y }}", "{{ 1 + 'a' }}", "{{ 'a' + 1 }}",
    "{{ 'a' < 1 }}", "{{ zz < 1 }}", "{{ [1] + 'a' }}", "{{ 1 / 0 }}", "{{ 1 // 0 }}", "{{ 1 % 0 }}", "{{ -'a' }}", "{{ -zz }}", "{{ 1 in 5 }}", "{{ 1 in 'abc' }}",
    "{{ l[1:2:0] }}", "{{ {[1]: 2} }}", "{{ n | nosuchfilter }}", "{{ n is nosuchtest }}", "{{ n | length }}", "{{ n | list }}", "{{ l.append(1) }}", "{{ d.update({}) }}",
    "{{ l | join(attribute=zz.y) }}", "{{ zz | tojson }}", "{{ range | tojson }}", "{{ range(10000000) | list }}", "{{ range(1, 2, 0) | list }}", "{{ 'a'.split('') }}", "{{ ''.nosuch() }}",
    "{{ raise_exception('no') }}", "{{ n | default(1, 2, 3, 4) }}", "{{ n | default(nosuch=1) }}", "{{ n | map('upper') | list }}", "{{ [1, 'a'] | sort }}",
    "{{ ['a'] | map('nosuch') | list }}", "{{ 'a' is divisibleby 2 }}", "{{ 5 is divisibleby 0 }}", "{{ n | items | list }}", "{{ n | dictsort }}", "{{ {'a': 1} | dictsort(by='x') }}", "{{ 2 | round(0, 'x') }}",
    "{% for x in n %}{% endfor %}", "{% for a, b in [[1]] %}{% endfor %}", "{% for a, b in [[1, 2, 3]] %}{% endfor %}", "{% set a, b = 1 %}", "{% set n.x = 1 %}", "{% set zz.x = 1 %}",
    "{% macro m(a) %}{% endmacro %}{{ m(1, 2) }}", "{% macro m(a) %}{% endmacro %}{{ m(b=2) }}", "{% macro m(a) %}{% endmacro %}{{ m(1, a=2) }}", "{% macro m(a) %}{{ a.b }}{% endmacro %}{{ m() }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    # Of syntax.
    "{{ }}", "{{ 1 + }}", "{{ (1 }}", "{{ [1 }}", "{{ {1 }}", "{{ 1 2 }}", "{{ a b }}", "{{ 'a }}", "{{ a. }}", "{{ a[ }}", "{{ a | }}", "{{ a is }}", "{{ 1) }}", "{{ $ }}", "{{ a ! b }}", "{{ x",
    "{% if %}{% endif %}", "{% if n %}", "{% endif %}", "{% if n %}{% endfor %}", "{% for %}{% endfor %}", "{% for x %}{% endfor %}", "{% for x in %}{% endfor %}", "{% for x in l %}", "{% else %}", "{% nosuch %}",
    "{% set %}", "{% set 1 = 2 %}", "{% set none = 2 %}", "{% set x = %}", "{% set x %}", "{% break %}", "{% continue %}", "{% macro m %}{% endmacro %}", "{% macro m(a=1, b) %}{% endmacro %}", "{% macro m( %}{% endmacro %}",
    "{% if n", "{# never ends", "{% raw %} never ends", "{{ f(a=1, 2) }}", "{{ f(**a, b) }}", "{% if n %}{% else %}{% elif n %}{% endif %}", "{% for x in l %}{% macro m() %}{% break %}{% endmacro %}{% endfor %}",
    "{% with a %}{% endwith %}", "{% filter %}{% endfilter %}", "{% filter upper %}", "{{ 1 is odd is even }}", "{{ 1if }}", "{{ * }}", "{{ 'a' 'b' 1 }}", "{% 5 %}", "{% %}",
]

cases = [("{{ " + line + " }}", V) for line in EXPRESSIONS.strip().splitlines()]
cases += [(template, V) for template in STATEMENTS + ERRORS]
