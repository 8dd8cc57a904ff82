"""The one YAML loader: plain data; a key given twice is refused (plain YAML keeps the last)."""

from __future__ import annotations

from typing import Any

import yaml

MAX_CHARACTERS = 1 << 20
MAX_DEPTH = 32
"""Far beyond any file of ours; deeper ones only cost memory and recursion."""


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=deep)
            if not isinstance(key, str):
                text = " ".join(f"{key}".split())[:60]
                raise yaml.MarkedYAMLError(
                    problem=f"key {text} is no text; put it in quotes if that is meant",
                    problem_mark=key_node.start_mark,
                )
            if key in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"key '{key}' is given twice", problem_mark=key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        value = super().construct_yaml_int(node)
        if abs(value) >= 1 << 63:  # longer ones cannot even be printed
            raise yaml.MarkedYAMLError(
                problem="number beyond 64 bits", problem_mark=node.start_mark
            )
        return value


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def parse_yaml(text: str) -> Any:
    """The value of a YAML text.

    Raises:
        ValueError: not YAML, a key given twice or not a text, an alias (a few of them, each of the
            one before, make gigabytes), larger or deeper than any configuration; one line that says
            where.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"{len(text)} characters, expected at most {MAX_CHARACTERS}")
    try:
        _check_plain(text)
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        # Beside its own errors PyYAML passes on those of dates and numbers that cannot be.
        raise ValueError(f"not YAML: {' '.join(str(error).split())[:300]}") from None


def _check_plain(text: str) -> None:
    """Look at the events of a text, one by one, before anything is built of them."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = 1 + event.start_mark.line if event.start_mark else 1
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(
                f"line {line}: alias *{event.anchor} is not supported; write the value out"
            )
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            raise ValueError(f"line {line}: nested more than {MAX_DEPTH} deep")
