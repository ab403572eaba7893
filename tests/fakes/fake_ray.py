"""A stand-in for Ray's actors: they are names, and the test says what they answer. No server and no process."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

Ref = tuple[str, str, int]


class FakeActor:
    """An actor: which options it was asked for with, which of its methods were called, and whether it lives."""

    def __init__(self, name: str, options: dict[str, Any]):
        self.name, self.asked, self.alive = name, options, True
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def __getattr__(self, method: str) -> Any:
        def remote(*arguments: Any) -> Ref:
            self.calls.append((method, arguments))
            return (self.name, method, len(self.calls))

        return SimpleNamespace(remote=remote, options=lambda **options: SimpleNamespace(remote=remote))

    def called(self, method: str) -> int:
        """How many times ``method`` was called."""
        return sum(name == method for name, _ in self.calls)


class FakeRay:
    """As much of the module ``ray`` as ``ActorPool`` uses."""

    exceptions = SimpleNamespace(RayError=type("RayError", (Exception,), {}), RayTaskError=type("E", (Exception,), {}))

    def __init__(self) -> None:
        self.actors: list[FakeActor] = []
        self.killed: list[str] = []
        self.answers: dict[tuple[str, str], Any] = {}

    def remote(self, **options: Any) -> Callable[[type], Any]:
        """The decorator that makes a class one of actors."""

        def create(asked: dict[str, Any]) -> FakeActor:
            self.actors.append(FakeActor(f"worker {len(self.actors) + 1}", asked))
            return self.actors[-1]

        def asking(**more: Any) -> Any:
            return SimpleNamespace(remote=lambda *arguments: create(options | more))

        return lambda actor_class: SimpleNamespace(options=asking)

    def answer(self, name: str, method: str, reply: Any) -> None:
        """Lets the call of ``method`` that the actor ``name`` is at return ``reply``."""
        self.answers[name, method] = reply

    def wait(self, refs: list[Ref], **_: Any) -> tuple[list[Ref], list[Ref]]:
        """Those of ``refs`` whose answer is known, one at the most, and the others."""
        ready = [ref for ref in refs if ref[:2] in self.answers][:1]
        return ready, [ref for ref in refs if ref not in ready]

    def get(self, ref: Ref) -> Any:
        """The answer."""
        return self.answers.pop(ref[:2])

    def kill(self, actor: FakeActor, **_: Any) -> None:
        """Ends ``actor``."""
        actor.alive = False
        self.killed.append(actor.name)

    def nodes(self) -> list[dict[str, Any]]:
        """None: nobody asks for more than whether a node is alive."""
        return []

    @property
    def alive(self) -> list[FakeActor]:
        """The actors that live, in the order of their creation."""
        return [actor for actor in self.actors if actor.alive]

    @property
    def names(self) -> list[str]:
        """Their names."""
        return [actor.name for actor in self.alive]
