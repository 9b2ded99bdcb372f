"""How the template sandbox changes the code that Jinja generates: its own tags, its namespace, calls of the budget.

The generated code calls these methods of its environment: `spend`, `ticked`, `concatenated`, `charged`, `measured`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.utils import Namespace


class Generation(Extension):
    """`{% generation %}` marks the assistant's words for training; in a prompt its content is plain content."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class TemplateNamespace(Namespace):
    """`namespace(...)`: the one object a template may assign to. It prints without its values, which may hold it."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # a template may name a value "self"
        values = dict(*args[1:], **kwargs)
        for name in values:
            _check_name(name)
        Namespace.__init__(args[0], values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<namespace>"


def _check_name(name: object) -> None:
    if not isinstance(name, str) or name.startswith("_"):
        raise SecurityError(f"{name!r} cannot be stored in a namespace")


class BudgetedCode(CodeGenerator):
    """Emits the budget's calls where a template could otherwise work or grow unseen."""

    def visit_Output(self, node: nodes.Output, frame: Frame) -> None:
        literal = sum(len(part.data) for part in node.nodes if isinstance(part, nodes.TemplateData))
        self.writeline(f"environment.spend({literal})")
        if node.nodes:
            super().visit_Output(node, frame)

    def visit_For(self, node: nodes.For, frame: Frame) -> None:
        node.body.insert(0, nodes.Output([], lineno=node.lineno))
        if node.test is not None:
            tick = nodes.EnvironmentAttribute("ticked", lineno=node.lineno)
            node.test = nodes.Call(tick, [node.test], [], None, None, lineno=node.lineno)
        super().visit_For(node, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.concatenated((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:
        sliced = isinstance(node.arg, nodes.Slice)
        self._checked("charged" if sliced else "", super().visit_Getitem, node, frame)

    def visit_List(self, node: nodes.List, frame: Frame) -> None:
        self._checked("measured", super().visit_List, node, frame)

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:
        self._checked("measured" if node.ctx == "load" else "", super().visit_Tuple, node, frame)

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:
        self._checked("measured", super().visit_Dict, node, frame)

    def _checked(self, method: str, visit: Callable[..., None], node: nodes.Node, frame: Frame) -> None:
        if method:
            self.write(f"environment.{method}(")
        visit(node, frame)
        if method:
            self.write(")")
