"""How a lineage is drawn: a tree of things, each with the run that made it and what that run was set to."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from csip.lineage import Node
from csip.settings import settings_of
from flows.terminal import OUT, brief

_UNFOLDED = 10_000
_Key = tuple[str, str]


def show_lineage(node: Node) -> None:
    """Draw a thing and all it was made from; a terminal folds long lines into the tree, a pipe gets them whole."""
    console = OUT if OUT.is_terminal else Console(highlight=False, width=_UNFOLDED)
    console.print(_tree(node), soft_wrap=False)


def lineage_text(node: Node, columns: int) -> str:
    """Draw a thing and all it was made from as plain text of that width."""
    console = Console(highlight=False, width=columns, color_system=None)
    with console.capture() as captured:
        console.print(_tree(node), soft_wrap=False)
    # The console fills lines up to its width.
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def _tree(node: Node) -> Tree:
    drawing = _Drawing(node)
    tree = Tree(drawing.label(node))
    drawing.grow(tree, node)
    return tree


class _Drawing:
    """One drawing: things that come again, and settings that the steps behind a step had too, are drawn once."""

    def __init__(self, root: Node) -> None:
        self._seen: set[_Key] = set()
        self._behind: dict[_Key, dict[str, str]] = {}
        self._gather(root)

    def _gather(self, node: Node) -> dict[str, str]:
        """Give what a thing's run and all runs behind it were set to."""
        key = (node.kind, node.name)
        if key not in self._behind:
            self._behind[key] = {}
            for source in node.sources:
                self._behind[key] |= self._gather(source)
        return {**self._behind[key], **_settings(node)}

    def grow(self, tree: Tree, node: Node) -> None:
        """Add what a thing was made from."""
        key = (node.kind, node.name)
        if key in self._seen and node.sources:
            tree.add(Text("(as above)", style="dim"))
            return
        self._seen.add(key)
        for source in node.sources:
            self.grow(tree.add(self.label(source)), source)

    def label(self, node: Node) -> Text:
        """Say what a thing is; where it comes for the first time, also what its run was set to."""
        text = Text.assemble((f"{node.kind} ", "bold"), brief(node.name))
        shown = {k: v for k, v in node.facts.items() if isinstance(v, str | int | float | list) and k != "table"}
        if shown:
            text.append("  " + ", ".join(f"{k.replace('_', ' ')} {brief(v)}" for k, v in shown.items()), style="cyan")
        if node.made_by is not None:
            run = node.made_by
            weights = "".join(f", weights {name} {sha[:12]}" for name, sha in run.weights.items())
            commit = f", commit {run.git_commit[:12]}" if run.git_commit else ""
            text.append(f"  by {run.stage} (run {run.run_id}, {run.seconds:.1f} s{commit}{weights})", style="dim")
            if (node.kind, node.name) not in self._seen and run.config:
                text.append("\n" + self._told(node), style="green")
        return text

    def _told(self, node: Node) -> str:
        own, behind = _settings(node), self._behind[node.kind, node.name]
        new = [f"{name}={value}" for name, value in own.items() if behind.get(name) != value]
        return "set: " + ("  ".join(new) or ("as what it was made from" if own else "defaults"))


def _settings(node: Node) -> dict[str, str]:
    """List what a thing's run was set to, but for what is said of the thing itself."""
    if node.made_by is None:
        return {}
    own = settings_of(node.made_by.config)
    return {name: value for name, value in own.items() if str(node.facts.get(name)) != value}
