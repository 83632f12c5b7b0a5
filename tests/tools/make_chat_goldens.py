#!/usr/bin/env python3
"""Make tests/data/chat/goldens.jsonl, which tests/engine/chat_template_test.cc reads: templates, variables and what jinja2 makes
of them, set up as transformers does (utils/chat_template_utils.py), but that lists may change: Kimi's templates append to them.

Each line is {"source", "variables", "text"}, or "error": true where jinja2 refuses. The whole templates are written for this test
with the constructs that the real ones of DeepSeek, GLM, Kimi, LongCat, Mistral and GigaChat use; the short ones take one construct each;
the random ones mix tags, white space and signs. Needs: pip install jinja2==3.1.6.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import SandboxedEnvironment

OUT = Path(__file__).parent.parent / "data" / "chat"


class Generation(Extension):
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.Scope(body).set_lineno(line)


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


ENV = SandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
ENV.filters["tojson"] = tojson
ENV.globals["raise_exception"] = raise_exception

# Whole templates, by the constructs of the family named.
DEEPSEEK = """{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{% set ns = namespace(first=false, tool=false, out_first=true, system='', sys_first=true) %}
{%- for message in messages %}{%- if message['role'] == 'system' %}{%- if ns.sys_first %}{% set ns.system = ns.system + message['content'] %}{% set ns.sys_first = false %}{%- else %}{% set ns.system = ns.system + '\\n\\n' + message['content'] %}{%- endif %}{%- endif %}{%- endfor -%}
{{ bos_token }}{{ ns.system }}{%- for message in messages %}
{%- if message['role'] == 'user' %}{%- set ns.tool = false -%}{{'<User>' + message['content']}}{%- endif %}
{%- if message['role'] == 'assistant' and 'tool_calls' in message %}{%- set ns.tool = false -%}
{%- for call in message['tool_calls'] %}{%- if not ns.first %}{{'<Assistant><calls>' + call['type'] + '<sep>' + call['function']['name'] + '\\n```json\\n' + call['function']['arguments'] + '\\n```<end>'}}{%- set ns.first = true -%}
{%- else %}{{'\\n<call>' + call['function']['name']}}{%- endif %}{%- endfor %}{{'<calls end>'}}{%- endif %}
{%- if message['role'] == 'assistant' and message['tool_calls'] is not defined %}{%- if ns.tool %}{{'<outputs end>' + message['content'] + '<eos>'}}{%- set ns.tool = false -%}
{%- else %}{% set content = message['content'] %}{% if '</think>' in content %}{% set content = content.split('</think>', 1)[1] %}{% endif %}{{'<Assistant>' + content + '<eos>'}}{%- endif %}{%- endif %}
{%- if message['role'] == 'tool' %}{%- set ns.tool = true -%}{%- if ns.out_first %}{{'<outputs><output>' + message['content'] + '<end>'}}{%- set ns.out_first = false %}{%- else %}{{'\\n<output>' + message['content'] + '<end>'}}{%- endif %}{%- endif %}
{%- endfor -%}{% if ns.tool %}{{'<outputs end>'}}{% endif %}{% if add_generation_prompt and not ns.tool %}{{'<Assistant><think>\\n'}}{% endif %}"""
GLM = """[gMASK]<sop>
{%- if tools -%}
<|system|>
# Tools
<tools>
{% for tool in tools %}
{{ tool | tojson(ensure_ascii=False) }}
{% endfor %}
</tools>{%- endif -%}
{%- macro visible(content) -%}
    {%- if content is string -%}
        {{- content }}
    {%- elif content is iterable and content is not mapping -%}
        {%- for item in content -%}
            {%- if item is mapping and item.type == 'text' -%}
                {{- item.text }}
            {%- elif item is string -%}
                {{- item }}
            {%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{- content }}
    {%- endif -%}
{%- endmacro -%}
{%- set ns = namespace(last_user=-1) %}
{%- for m in messages %}
    {%- if m.role == 'user' %}
        {% set ns.last_user = loop.index0 -%}
    {%- endif %}
{%- endfor %}
{% for m in messages %}
{%- if m.role == 'user' -%}<|user|>
{{ visible(m.content) }}
{{- '/nothink' if (enable_thinking is defined and not enable_thinking and not visible(m.content).endswith("/nothink")) else '' -}}
{%- elif m.role == 'assistant' -%}
<|assistant|>
{%- set reasoning = '' %}
{%- set content = visible(m.content) %}
{%- if m.reasoning_content is string %}
    {%- set reasoning = m.reasoning_content %}
{%- elif '</think>' in content %}
    {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
    {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
{%- endif %}
{%- if loop.index0 > ns.last_user and reasoning -%}
{{ '\\n<think>' + reasoning.strip() +  '</think>'}}
{%- else -%}
{{ '\\n<think></think>' }}
{%- endif -%}
{%- if content.strip() -%}
{{ '\\n' + content.strip() }}
{%- endif -%}
{% if m.tool_calls %}
{% for tc in m.tool_calls %}
{%- if tc.function %}
    {%- set tc = tc.function %}
{%- endif %}
{{ '\\n<tool_call>' + tc.name }}
{% set _args = tc.arguments or {} %}
{% for k, v in _args.items() if k != 'skip' %}
<arg_key>{{ k }}</arg_key>
<arg_value>{{ v | tojson(ensure_ascii=False) if v is not string else v }}</arg_value>
{% endfor %}
</tool_call>{% endfor %}
{% endif %}
{%- elif m.role == 'tool' -%}
{%- if m.content is string -%}
{%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}
    {{- '<|observation|>' }}
{%- endif %}
{{- '\\n<tool_response>\\n' ~ m.content ~ '\\n</tool_response>' }}
{%- else -%}
<|observation|>{% for tr in m.content %}

<tool_response>
{{ tr.output if tr.output is defined else tr }}
</tool_response>{% endfor -%}
{% endif -%}
{%- elif m.role == 'system' -%}
<|system|>
{{ visible(m.content) }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    <|assistant|>{{- '\\n<think></think>' if (enable_thinking is defined and not enable_thinking) else '' -}}
{%- endif -%}
"""
KIMI = """{%- macro content_of(msg) -%}
    {%- set c = msg.get('content') -%}
    {%- if c is string -%}
      {{ c }}
    {%- elif c is not none -%}
      {% for part in c -%}
        {% if part['type'] == 'image' or 'image_url' in part -%}
          <|media|>
        {% else -%}
          {{ part['text'] }}
        {%- endif -%}
      {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{% macro role(message) -%}
  {%- set name =  message.get('name') or  message['role'] -%}
  {%- if message['role'] == 'user' -%}
    <|im_user|>{{name}}<|im_middle|>
  {%- elif message['role'] == 'assistant' -%}
    <|im_assistant|>{{name}}<|im_middle|>
  {%- else -%}
    <|im_system|>{{name}}<|im_middle|>
  {%- endif -%}
{%- endmacro -%}
{%- set queue = namespace(ids=[]) -%}
{%- set counter = namespace(value=0) -%}
{%- macro calls(message) -%}
  <|calls|>
  {%- for call in message['tool_calls'] -%}
    {%- if call['id'] is defined -%}
      {%- set id = call['id'] -%}
    {%- else -%}
      {%- set id = 'functions.' + call['function']['name'] + ':' + (counter.value | string) -%}
      {%- set counter.value = counter.value + 1 -%}
    {%- endif -%}
    {%- set _ = queue.ids.append(id) -%}
    <|call|>{{ id }}<|argument|>{% if call['function']['arguments'] is string %}{{ call['function']['arguments'] }}{% else %}{{ call['function']['arguments'] | tojson }}{% endif %}<|end|>
  {%- endfor -%}
{%- endmacro -%}
{# the last answer that calls no tool #}
{%- set ns = namespace(last=-1) -%}
{%- for idx in range(messages|length-1, -1, -1) -%}
    {%- if messages[idx]['role'] == 'assistant' and not messages[idx].get('tool_calls') -%}
        {%- set ns.last = idx -%}
    {%- endif -%}
{%- endfor -%}
{%- set history = messages[:ns.last+1] -%}
{%- set rest = messages[ns.last+1:] -%}
{%- if tools -%}
  <|im_system|>tool_declare<|im_middle|>{{ tools | tojson }}<|im_end|>
{%- endif -%}
{%- if messages|length == 0 or messages[0]['role'] != 'system' -%}
  <|im_system|>system<|im_middle|>You are helpful.<|im_end|>
{%- endif -%}
{%- for message in history + rest -%}
  {{role(message)}}
  {%- if message['role'] == 'assistant' -%}
    <think>{{ message.get('reasoning_content', '') }}</think>{{content_of(message)}}
    {%- if message.get('tool_calls') -%}
      {{calls(message)}}
    {%- endif -%}
  {%- elif message['role'] == 'tool' -%}
    {%- if queue.ids -%}
      {%- set call_id = queue.ids.pop(0) -%}
    {%- else -%}
      {%- set call_id = 'functions.' + message.get('name', 'unknown') + ':' + (counter.value | string) -%}
    {%- endif -%}
    ## Return of {{ call_id }}
{{content_of(message)}}
  {%- elif message['content'] is not none -%}
    {{content_of(message)}}
  {%- endif -%}
  <|im_end|>
{%- endfor -%}
{%- if add_generation_prompt -%}
  <|im_assistant|>assistant<|im_middle|>
{%- endif -%}
"""
MISTRAL = """{%- set default_system = "A line,\\
and the \\"next\\" one.\\n" %}
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] if messages[0]['content'] is string else messages[0]['content'][0]['text'] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set system = default_system %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- elif tools is not none %}
    {%- set system = "Tools:\\n" + system %}
{%- endif %}
{{- '[SYSTEM_PROMPT]' + system + '[/SYSTEM_PROMPT]' }}
{%- set users = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set filtered = [] %}
{%- for message in loop_messages %}
    {%- if message["role"] not in ["tool", "tool_results"] and not message.get("tool_calls") %}
        {%- set filtered = filtered + [message] %}
    {%- endif %}
{%- endfor %}
{%- set ns = namespace(index=0) %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or (message.tool_calls is defined and message.tool_calls is not none)) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("Roles must alternate user/assistant/user/assistant/...") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == users[-1]) %}
            {{- "[AVAILABLE_TOOLS] [" }}
            {%- for tool in tools %}
                {%- set tool = tool.function %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, val in tool.items() if key != "return" %}
                    {%- if val is string %}
                        {{- '"' + key + '": "' + val + '"' }}
                    {%- else %}
                        {{- '"' + key + '": ' + val|tojson }}
                    {%- endif %}
                    {%- if not loop.last %}
                        {{- ", " }}
                    {%- endif %}
                {%- endfor %}
                {{- "}}" }}
                {%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" }}{%- endif %}
            {%- endfor %}
            {{- "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if message['content'] is string %}
        {{- '[INST]' + message['content'] + '[/INST]' }}
        {%- else %}
            {{- '[INST]' }}
            {%- for block in message['content'] %}
                {%- if block['type'] == 'text' %}
                    {{- block['text'] }}
                {%- elif block['type'] in ['image', 'image_url'] %}
                    {{- '[IMG]' }}
                {%- else %}
                    {{- raise_exception('Only text and image blocks are supported!') }}
                {%- endif %}
            {%- endfor %}
            {{- '[/INST]' }}
        {%- endif %}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- "[TOOL_CALLS] [" }}
        {%- for call in message.tool_calls %}
            {%- set out = call.function|tojson %}
            {{- out[:-1] }}
            {%- if not call.id is defined or call.id|length != 9 %}
                {{- raise_exception("Tool call IDs should be alphanumeric strings with length 9!") }}
            {%- endif %}
            {{- ', "id": "' + call.id[-9:] + '"}' }}
            {%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" + eos_token }}{%- endif %}
        {%- endfor %}
    {%- elif message['role'] == 'assistant' %}
        {%- generation %}{{- message['content'] + eos_token }}{%- endgeneration %}
    {%- elif message["role"] == "tool" %}
        {%- set content = message.content.content if message.content is defined and message.content.content is defined else message.content %}
        {{- '[TOOL_RESULTS] {"content": ' + content|string + "}[/TOOL_RESULTS]" }}
    {%- else %}
        {{- raise_exception("Only user and assistant roles are supported!") }}
    {%- endif %}
{%- endfor %}
"""
LONGCAT = """{%- set tool_choice = tool_choice | default('auto') %}
{%- set ns = namespace(rounds = 0, tools = '') %}
{%- if tools and tool_choice != 'none' %}
    {{- "# Tools\\n" }}
    {%- for tool in tools %}
        {{- "## " ~ loop.index ~ ". " ~ tool.function.name ~ "\\n" ~ (tool | tojson(indent=2)) ~ "\\n" }}
    {%- endfor %}
{%- endif %}
{%- for message in messages %}
    {%- if loop.first and message.role == 'system' %}{{ 'SYSTEM:' ~ message.content | trim }}{% continue %}{% endif %}
    {%- if message.role == 'user' %}
        {{- ' [Round ' ~ (ns.rounds) ~ '] USER:' ~ message.content }}
        {%- set ns.rounds = ns.rounds + 1 %}
    {%- elif message.role == 'assistant' %}
        {{- ' ASSISTANT:' }}
        {%- if message.content is defined and message.content is not none %}{{ message.content }}{% endif %}
        {%- for call in message.tool_calls or [] %}
            {{- '<longcat_tool_call>\\n' + {'name': call.function.name, 'arguments': call.function.arguments} | tojson + '\\n</longcat_tool_call>' }}
        {%- endfor %}
        {{- '</longcat_s>' }}
    {%- elif message.role == 'tool' %}
        {{- ' TOOL:' ~ message.content }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ ' ASSISTANT:' }}{% if enable_thinking is defined and enable_thinking == false %}{{ '/think_off' }}{% endif %}{% endif %}"""
GIGACHAT = """{#---- a schema as a type ----#}
{%- macro type_of(schema, indent="", factor=2) -%}
\t{%- set ty = schema.get("type") -%}
\t{%- if ty == "object" -%}
\t\t{{- "{\\n" -}}
\t\t{%- set props = schema.get("properties", {}) -%}
\t\t{%- set required = schema.get("required", []) -%}
\t\t{%- for key, val in props.items() -%}
\t\t\t{%- if "description" in val -%}
\t\t\t\t{%- for line in val['description'].split('\\n') -%}
\t\t\t\t\t{%- if line.strip() -%}
\t\t\t\t\t\t{{- indent + '// ' + line + '\\n' -}}
\t\t\t\t\t{%- endif -%}
\t\t\t\t{%- endfor -%}
\t\t\t{%- endif -%}
            {%- set type = type_of(
                val,
                indent + (' ' * factor),
                factor
            ) -%}
\t\t\t{{- indent + key + ('' if key in required else '?') + ': ' + type + ',' -}}
\t\t\t{%- if "default" in val -%}{{- ' // default: ' ~ val.default -}}{%- endif -%}
\t\t\t{{- "\\n" -}}
\t\t{%- endfor -%}
\t\t{{- indent[:-factor] + '}' -}}
\t{%- elif ty == "string" -%}
\t\t{%- if schema.get("enum") -%}
            {%- set ns = namespace(enum = []) -%}
            {%- for en in schema['enum'] -%}
                {%- set ns.enum = ns.enum + ['"' ~ en ~ '"'] -%}
            {%- endfor -%}
\t\t\t{{- ns.enum | join(' | ') -}}
\t\t{%- else -%}
\t\t\t{{- 'string' -}}
\t\t{%- endif -%}
\t{%- elif ty in ["number", "integer"] -%}
\t\t{{- 'number' -}}
\t{%- elif ty == "array" -%}
\t\t{{- type_of(schema['items'], indent, factor) + '[]' if "items" in schema else 'Array<any>' -}}
\t{%- else -%}
\t\t{{- 'any' -}}
\t{%- endif -%}
{%- endmacro -%}
{%- macro turn(message, role=None) -%}
    {%- if not role -%}
        {%- set role = message["role"] -%}
    {%- endif -%}
    {%- set content = message['content'] or '' -%}
    {%- if content is not string -%}
        {%- set content = content | tojson(ensure_ascii=False) -%}
    {%- endif -%}
    {{- role + tokens.role_sep + content + tokens.message_sep -}}
{%- endmacro -%}
{%- set tokens = namespace(
    role_sep="<|role|>\\n",
    message_sep="<|message|>\\n\\n"
) -%}
{%- set PREAMBLE -%}
A first line with {{ bos_token }}

{% if tools %}and tools{% endif %}

the end.
{%- endset -%}
{{- bos_token -}}
{{- turn({"role": "developer", "content": PREAMBLE}) -}}
{%- if tools -%}
    {%- set lines = namespace(all=[]) -%}
    {%- for tool in tools -%}
        {%- set lines.all = lines.all + ['type ' ~ tool.function.name ~ ' = ' ~ type_of(tool.function.parameters, '  ')] -%}
    {%- endfor -%}
    {{- turn({'role': 'functions', 'content': (lines.all | join('\\n'))}) -}}
{%- endif -%}
{%- for message in messages -%}
    {%- if message['role'] == 'tool' -%}
        {{- turn(message, role='result') -}}
    {%- else -%}
        {{- turn(message) -}}
    {%- endif -%}
    {%- if loop.last and add_generation_prompt and message['role'] != 'assistant' -%}
        {{- 'assistant' + tokens.role_sep -}}
    {%- endif -%}
{%- endfor -%}
"""

TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "description": "Say \"how\" it is.\nAnd <why> & what's next; ünïcode 日本",
                                      "parameters": {"type": "object", "properties": {
                                          "city": {"type": "string", "description": "the city\n\nor town"}, "unit": {"type": "string", "enum": ["c", "f"], "default": "c"},
                                          "days": {"type": "array", "items": {"type": "integer"}}, "at": {"type": "object", "properties": {"x": {"type": "number"}}}},
                                          "required": ["city"]}}},
    {"type": "function", "function": {"name": "noop", "description": "", "parameters": {"type": "object", "properties": {}}, "return": None}},
]
CALLS = [{"id": "call00001", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "東京", "days": [1, 2.5, True, None], "skip": 1}}}]
TEXT_CALLS = [{"id": "call00001", "type": "function", "function": {"name": "get_weather", "arguments": "{\"city\": \"Oslo\"}"}},
              {"id": "call00002", "type": "function", "function": {"name": "noop", "arguments": "{}"}}]


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


CONVERSATIONS = [
    [],
    [user("Hello")],
    [user("")],
    [{"role": "system", "content": "Be brief."}, user("Hi"), assistant("Hello!"), user("How are you?")],
    [{"role": "system", "content": "One"}, {"role": "system", "content": "Two"}, user("  spaces \n\n around  ")],
    [user("a"), assistant("<think>\nhmm\n</think>\n\nb"), user("c"), assistant("<think>x</think>y</think>z")],
    [user("a"), assistant("b", reasoning_content=" because "), user("c")],
    [user("{{ 7 * 7 }} {% raw %} <|im_end|> [INST] \\n \\ ' \" 日本語 👩‍👩‍👧 \u0000\u001b\u2028 \r\n end")],
    [user("weather?"), assistant("", tool_calls=TEXT_CALLS), {"role": "tool", "content": "12°", "tool_call_id": "call00001"}, {"role": "tool", "content": "ok", "name": "noop"}, assistant("It is 12°."), user("thanks")],
    [user("weather?"), assistant(None, tool_calls=CALLS), {"role": "tool", "content": "{\"t\": 1}"}],
    [user("w"), assistant("x", tool_calls=[{"type": "function", "function": {"name": "f", "arguments": {"a": "b"}}}]), {"role": "tool", "content": [{"output": "o"}, "p"]}],
    [user([{"type": "text", "text": "look:"}, {"type": "image_url", "image_url": {"url": "x"}}, {"type": "text", "text": " what?"}])],
    [user([{"type": "audio"}])],
    [user("a"), user("b")],
    [assistant("first"), user("second")],
    [{"role": "critic", "content": "no such role"}],
    [{"role": "user"}],
    [user(None)],
    [user(7)],
    [user("x"), assistant("y", tool_calls=[])],
    [user("x"), assistant("y", tool_calls=None, prefix=True)],
    [{"role": "user", "content": "x", "name": "Ann"}, assistant("y", name="Bob")],
    [user("u" + str(i)) if i % 2 == 0 else assistant("a" + str(i)) for i in range(21)],
]
SETTINGS = [{}, {"add_generation_prompt": True}, {"add_generation_prompt": True, "tools": TOOLS}, {"add_generation_prompt": True, "enable_thinking": False, "tools": None}]

VARIABLES = {
    "s": "Hello, World", "u": "naïve 日本 👍", "pad": "\t  x y \n", "n": 7, "m": -3, "f": 2.5, "big": 12345678901234567, "yes": True, "no": False, "nil": None,
    "l": [3, 1, 2], "names": ["bob", "Alice", "carol", "alice"], "empty": [], "d": {"b": 1, "a": [1, {"c": None}], "items": "x", "get": 5}, "e": {},
    "people": [{"name": "A", "age": 3, "tags": ["x"]}, {"name": "B", "age": 1, "tags": []}, {"name": "C"}], "floats": [0.1, 1e100, 1e-7, 3.0, 123456.75, 1e16, 1e15, -0.0],
    "odd": "it's \"q\" \\ \n\t\x7f\u00a0é", "nested": [[1, 2], [3, [4]]],
}
EXPRESSIONS = """
s ;; n + 1 ;; n - m * 2 ;; n / 2 ;; n // 2 ;; m // 2 ;; m % 2 ;; n % m ;; 2 ** 10 ;; 2 ** -1 ;; -n ** 2 ;; n ~ s ~ nil ~ missing ;; f * 2 ;; f // 1 ;; f % 2 ;; 7 / 7 ;; 1 / 0 ;; n // 0 ;; n % 0 ;; s + n ;; s * 2 ;; 2 * 'ab' ;; l * 2 ;; l + [4] ;; [1] * 0 ;; s * -1
s == 'Hello, World' ;; n == 7.0 ;; yes == 1 ;; nil == none ;; missing == nil ;; l == [3, 1, 2] ;; d == {} ;; 'a' < 'b' ;; 1 < 2 < 3 ;; 3 > 2 > 2 ;; n != 7 ;; 'a' < 1 ;; [1, 2] < [1, 3] ;; nil < 1
'ell' in s ;; 'x' not in s ;; 3 in l ;; 'a' in d ;; 1 in d ;; 'x' in missing ;; n in s ;; not n in l ;; '' in s ;; nil in l
yes and no ;; yes or no ;; nil or 'x' ;; '' or e or [] or 0 ;; not nil ;; not not s ;; yes and 'kept' ;; missing and x.y ;; n and l
'y' if n else 'z' ;; 'y' if nil else 'z' ;; 'y' if nil ;; ('a' if no else 'b') ~ 'c' ;; 'a' if yes else 'b' if yes else 'c'
l[0] ;; l[-1] ;; l[9] ;; l[-9] ;; l[1:] ;; l[:-1] ;; l[::-1] ;; l[::2] ;; l[5:] ;; l[-2:9] ;; l[2:1] ;; l[::0] ;; s[0] ;; s[-1] ;; s[1:4] ;; s[::-1] ;; u[6] ;; u[6:8] ;; u[::-1] ;; u[-1:] ;; s[99] ;; d['b'] ;; d['zz'] ;; d.b ;; d.zz ;; d['items'] ;; d.a[1].c ;; missing.x ;; missing['x'] ;; nil.x ;; nil['x'] ;; n.x ;; nested[1][1][0] ;; people[0].tags[0] ;; l.0 ;; s[n:] ;; s[:m] ;; l[missing] ;; l['0'] ;; d[0]
s.upper() ;; s.lower() ;; s.title() ;; u.upper() ;; 'aBC dEF'.capitalize() ;; s.split() ;; s.split(', ') ;; s.split('l', 1) ;; s.rsplit('l', 1) ;; pad.strip() ;; pad.lstrip() ;; pad.rstrip() ;; 'xxaxx'.strip('x') ;; 'abcba'.strip('ab') ;; 'abcba'.rstrip('ba') ;; s.startswith('He') ;; s.endswith(('x', 'ld')) ;; s.startswith(('x', 'He')) ;; s.replace('l', 'L') ;; s.replace('l', 'L', 2) ;; s.find('World') ;; s.find('zz') ;; u.find('本') ;; '-'.join(names) ;; ','.join([]) ;; s.count('l') ;; 'a\\nb\\r\\nc'.splitlines() ;; '12'.isdigit() ;; '1a'.isdigit() ;; ''.isdigit() ;; 'unhappy'.removeprefix('un') ;; 'file.txt'.removesuffix('.txt') ;; 'a b  c'.split() ;; ' a b  c '.split(' ') ;; 'a,b,c'.split(',', 1) ;; 'a b c d'.split(none, 2) ;; s.nope() ;; s.split('') ;; n.upper()
d.keys()|length ;; d.keys()|list ;; d.values()|list ;; d.items()|list ;; d.get('b') ;; d.get('zz') ;; d.get('zz', 4) ;; d.get('zz') is none ;; e.get('x', {}).get('y', 'deep') ;; dict(a=1, b='x') ;; dict(e, k=2)
s|length ;; l|length ;; d|length ;; u|length ;; missing|length ;; nil|length ;; n|length ;; s|upper ;; s|lower ;; u|title ;; 'hello world'|capitalize ;; pad|trim ;; 'xxaxx'|trim('x') ;; s|replace('o', '0') ;; n|string ;; l|string ;; d|string ;; nil|string ;; '12'|int ;; 'x'|int ;; 'x'|int(9) ;; f|int ;; ' 42 '|int ;; '1.5'|float ;; 'z'|float ;; m|abs ;; s|list ;; d|list ;; l|first ;; l|last ;; empty|first ;; s|first ;; l|reverse|list ;; s|reverse ;; l|sort ;; l|sort(reverse=true) ;; names|sort ;; names|sort(case_sensitive=false) ;; people|map(attribute='name')|list ;; names|map('upper')|list ;; names|map('replace', 'o', '0')|list ;; l|sum ;; l|min ;; l|max ;; names|min ;; names|unique|list
l|join ;; l|join(', ') ;; people|join('-', attribute='name') ;; names|join(n) ;; d|join ;; s|join('.') ;; missing|join
missing|default('x') ;; nil|default('x') ;; nil|default('x', true) ;; ''|d('x', boolean=true) ;; s|default('x') ;; missing|default
l|select('odd')|list ;; l|reject('odd')|list ;; l|select('gt', 1)|list ;; l|select|list ;; [0, 1, '', 'a', none]|select|list ;; people|selectattr('age')|map(attribute='name')|list ;; people|selectattr('age', 'equalto', 3)|list ;; people|rejectattr('age', 'defined')|map(attribute='name')|list ;; people|selectattr('tags', 'defined')|selectattr('age', 'ge', 2)|list ;; people|selectattr('name', 'in', ['A', 'C'])|map(attribute='name')|join(',')
d|tojson ;; u|tojson ;; u|tojson(ensure_ascii=true) ;; l|tojson(indent=2) ;; d|tojson(indent=4) ;; e|tojson(indent=2) ;; empty|tojson(indent=2) ;; d|tojson(sort_keys=true) ;; d|tojson(separators=(',', ':')) ;; floats|tojson ;; odd|tojson ;; odd|tojson(ensure_ascii=true) ;; nil|tojson ;; yes|tojson ;; missing|tojson ;; big|tojson ;; nested|tojson ;; 'a/b</c>'|tojson
floats ;; odd ;; [odd] ;; [u] ;; [yes, no, nil] ;; nested ;; {'k': 'v', "it's": 'x'} ;; ('a', 1) ;; ('a',) ;; () ;; [] ;; {} ;; 1.0 ;; 1e3 ;; 1_000 ;; .5 ;; 3. ;; 'a' 'b' ;; "\\u00e9\\x41\\t ;; " ;; '\\q' ;; '\\'' ;; big * 10 ;; 1.5e300 * 1e10 ;; {'a': 1, 'a': 2} ;; [1, 2,] ;; {'a': 1,}
s is string ;; n is string ;; n is number ;; f is number ;; yes is number ;; yes is boolean ;; n is boolean ;; n is integer ;; f is integer ;; yes is integer ;; f is float ;; nil is none ;; nil is not none ;; missing is defined ;; missing is undefined ;; s is defined ;; d is mapping ;; l is mapping ;; l is iterable ;; s is iterable ;; n is iterable ;; nil is iterable ;; d is sequence ;; l is sequence ;; s is sequence ;; n is odd ;; n is even ;; n is divisibleby 7 ;; n is divisibleby(2) ;; n is eq 7 ;; n is equalto 7 ;; n is ne 7 ;; n is gt 3 ;; n is lt 3 ;; n is in [7] ;; n is in l ;; yes is true ;; yes is false ;; 1 is true ;; range is callable ;; s is callable ;; not s is string ;; s is string and n is string ;; l[0] is odd ;; d.b is defined ;; d.zz is not defined ;; n is nosuch ;; n is string is defined ;; n + 1 is string
range(3)|list ;; range(1, 4)|list ;; range(5, 0, -2)|list ;; range(0)|list ;; range(1, 2, 0) ;; namespace(a=1).a ;; namespace(a=1).b ;; namespace({'x': 2}).x ;; raise_exception('no') ;; s|nosuchfilter ;; (n) ;; ((n)) ;; n|abs|string ;; -n|abs ;; +n ;; - - n ;; not n == 7 ;; n==7 and f==2.5 ;; d|items|list ;; e|items|list ;; missing|items|list ;; d|dictsort ;; 'a b\\nc\\n\\nd'|indent ;; 'a\\nb'|indent(2, true) ;; 'a\\nb'|indent(width=1)
s,n ;; (1, 2)[0] ;; l[(0)] ;; {'a': {'b': [10, 20]}}.a.b[1] ;; '%s' is string ;; (s|length) + 1 ;; s|length + 1 ;; s ~ '!' | upper ;; 'a' ~ 'b' + 'c' ;; 1 + 2 ~ 3 ;; 2 * 3 ~ 4 ;; [l[0], l[1]] ;; l|length == 3 ;; not yes or yes ;; loop ;; none ;; None ;; True and true ;; False or false ;; names[1][0] ;; missing + 'x' ;; missing ~ 'x' ;; missing > 1 ;; s.x.y
""".strip().split("\n")

STATEMENTS = [
    "{% for x in l %}{{ x }}{% if not loop.last %}, {% endif %}{% endfor %}", "{% for x in empty %}a{% else %}none{% endfor %}", "{% for x in missing %}a{% else %}none{% endfor %}", "{% for x in nil %}{% endfor %}",
    "{% for x in l %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }};{% endfor %}", "{% for x in l %}{{ loop.previtem }}<{{ x }}>{{ loop.nextitem }};{% endfor %}",
    "{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}", "{% for k in d %}{{ k }};{% endfor %}", "{% for c in u %}[{{ c }}]{% endfor %}", "{% for (a, b) in nested %}{{ a }}/{{ b }};{% endfor %}", "{% for a, b in l %}{% endfor %}",
    "{% for x in l if x > 1 %}{{ loop.index }}:{{ x }} of {{ loop.length }};{% endfor %}", "{% for x in l if x > 9 %}{% else %}none{% endfor %}", "{% for x in 1, 2 %}{{ x }}{% endfor %}",
    "{% set x = 1 %}{% for i in l %}{{ x }}{% set x = i %}{{ x }};{% endfor %}{{ x }}", "{% for i in l %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{% endfor %}", "{% for i in l %}{% if i == 1 %}{% break %}{% endif %}{{ i }}{% endfor %}!",
    "{% for i in l %}{% for j in l %}{{ loop.index }}{% if j == i %}{% break %}{% endif %}{% endfor %}-{{ loop.index }};{% endfor %}",
    "{% set ns = namespace(c=0) %}{% for i in l %}{% set ns.c = ns.c + i %}{% endfor %}{{ ns.c }}", "{% set ns = namespace() %}{% set ns.x = [1] %}{% set ns.x = ns.x + [2] %}{{ ns.x }}", "{% set s.x = 1 %}", "{% set zz.x = 1 %}",
    "{% if n > 5 %}big{% elif n > 3 %}mid{% else %}small{% endif %}", "{% if nil %}a{% elif m < 0 %}b{% else %}c{% endif %}", "{% if missing %}a{% endif %}b", "{% if yes %}{% set y = 2 %}{% endif %}{{ y }}",
    "{% set a, b = 1, 'x' %}{{ a }}{{ b }}", "{% set a, b = l %}", "{% set t = 'x', 'y' %}{{ t }}", "{% set block %}  a {{ n }} b  {% endset %}[{{ block }}]", "{% set block %}{% for i in l %}{{ i }}{% endfor %}{% endset %}{{ block|length }}",
    "{% macro f(a, b=2, c='z') %}{{ a }}-{{ b }}-{{ c }}{% endmacro %}{{ f(1) }}|{{ f(1, c=3) }}|{{ f(b=1, a=2) }}|{{ f() }}", "{% macro f(a) %}{% endmacro %}{{ f(1, 2) }}", "{% macro f(a) %}{% endmacro %}{{ f(z=2) }}", "{{ f(1) }}",
    "{% macro f(n) %}{{ n }}{% if n > 0 %}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(5) }}", "{% set g = 1 %}{% macro f() %}{{ g }}{% set g = 5 %}{{ g }}{% endmacro %}{{ f() }}{{ g }}", "{% macro f() %}{{ later }}{% endmacro %}{% set later = 'L' %}{{ f() }}",
    "{% macro f(x) %} {{- x -}} {% endmacro %}[{{ f('a') }}]", "{% macro f(x=n * 2) %}{{ x }}{% endmacro %}{{ f() }}", "{% set r = namespace(f=1) %}{% macro f(x) %}{% set r.f = r.f + x %}{% endmacro %}{{ f(2) }}{{ r.f }}", "{{ f }}",
    "{% set q = [] %}{% set _ = q.append('a') %}{% set _ = q.append('b') %}{{ q }}{{ q.pop(0) }}{{ q }}{{ q.pop() }}{{ q }}", "{{ [].pop() }}", "{{ [1].pop(3) }}", "{{ [5, 6].index(6) }}{{ [5, 5].count(5) }}", "{{ l.append(4) }}{{ l }}",
    "{# a comment #}x{# {{ y }} {% if %} #}", "a\n{# c #}\nb", "a\n  {# c #}  \nb", "a {#- c -#} b", "{# unclosed", "{{ unclosed", "{% unclosed", "{{ }}", "{% %}", "{{ 1 2 }}", "{% for %}", "{% endfor %}", "{% if x %}", "{% nosuch %}", "{{ 'a }}", "{{ a. }}", "{{ a[ }}", "{{ (1 }}",
    "{{ a | }}", "{{ 1 + }}", "{{ ) }}", "{{ { }}", "{% set %}", "{% set x %}", "{% set 1 = 2 %}", "{% macro %}{% endmacro %}", "{% break %}", "{% else %}", "{% for x in l %}{% else %}", "{{ a b }}", "{{ ! }}", "{{ $ }}", "{{ a = 1 }}", "{% if a = 1 %}{% endif %}",
    "{% generation %}{{ n }}{% endgeneration %}", "a {%- generation %} {{ n }} {% endgeneration -%} b", "{{ '{{' }}{{ '}}' }}{{ '%}' }}", "{{ {'a': {'b': 1}} }}", "{ { a } } {a} {-} %}", "{%if yes%}tight{%endif%}", "{{n}}{{-n}}{{ n-1 }}", "}}", "a{b", "a{",
]


def whitespace_templates() -> list[str]:
    rng = random.Random(5)
    tags = [("{%", " if yes ", "%}"), ("{%", " set q = 1 ", "%}"), ("{{", " n ", "}}"), ("{#", " c ", "#}"), ("{{", " s ", "}}")]
    out = []
    for _ in range(400):
        text, open_ifs = "", 0
        for _ in range(rng.randint(1, 6)):
            text += "".join(rng.choices([" ", "\n", "\t", "a", "\r\n", "  ", "\n\n", "b\n"], k=rng.randint(0, 4)))
            begin, body, end = rng.choice(tags)
            if open_ifs and rng.random() < 0.4:
                begin, body, end = "{%", " endif ", "%}"
                open_ifs -= 1
            elif "if" in body:
                open_ifs += 1
            before = rng.choice(["", "", "-", "+"]) if begin != "{{" else rng.choice(["", "-"])
            after = rng.choice(["", "", "-", "+"]) if begin != "{{" else rng.choice(["", "-"])
            text += begin + before + body + after + end
        text += rng.choice(["", "\n", " \n", "\n\n", "x"]) + "{% endif %}" * open_ifs + rng.choice(["", "\n", "\r\n", "end\n"])
        out.append(text)
    return out


def cases() -> list[tuple[str, dict]]:
    out = []
    for source in (DEEPSEEK, GLM, KIMI, MISTRAL, LONGCAT, GIGACHAT):
        for messages in CONVERSATIONS:
            out += [(source, {"messages": messages, "bos_token": "<s>", "eos_token": "</s>", **setting}) for setting in SETTINGS]
    for line in EXPRESSIONS:
        out += [("{{ " + expression + " }}", VARIABLES) for expression in line.split(" ;; ")]
    out += [(source, VARIABLES) for source in STATEMENTS]
    out += [(source, {"yes": True, "n": 7, "s": "S"}) for source in whitespace_templates()]
    return out


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    sources: dict[str, int] = {}
    variables: dict[str, int] = {}
    lines, errors = [], 0
    for source, given in cases():
        case: dict = {"source": sources.setdefault(source, len(sources)), "variables": variables.setdefault(json.dumps(given), len(variables))}
        try:
            case["text"] = ENV.from_string(source).render(**json.loads(json.dumps(given)))
        except Exception as error:
            case["error"] = type(error).__name__
            errors += 1
        lines.append(case)
    head = {"sources": list(sources), "variables": [json.loads(text) for text in variables]}
    text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in [head, *lines])
    (OUT / "goldens.jsonl").write_text(text)
    print(f"goldens.jsonl: {len(lines)} cases, {errors} errors, {len(text)} bytes")


if __name__ == "__main__":
    main()
