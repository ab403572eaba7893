"""The UNet's optimiser: orthogonal steps for matrices, AdamW for the rest, the same for any number of workers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from training import checkpoint
from training.optimiser import Orthogonal, matrices, orthogonalised


def network() -> nn.Module:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Flatten(), nn.Linear(8 * 4, 6), nn.LayerNorm(6))
    return net.to(memory_format=torch.channels_last)


def grow(net: nn.Module, optimiser: torch.optim.Optimizer, steps: int, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimiser.zero_grad()
        net(torch.randn(5, 4, 4, 4, generator=generator)).square().mul(torch.arange(6)).sum().backward()
        optimiser.step()


def made(net: nn.Module, hidden: list[nn.Parameter] | None = None, **kwargs: object) -> Orthogonal:
    groups = [{"params": list(net.parameters()), "weight_decay": 0.1}]
    return Orthogonal(groups, matrices(net) if hidden is None else hidden, lr=1e-2, **kwargs)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(16, 40), (40, 16), (24, 24)])
def test_singular_values_come_near_one(shape: tuple[int, int]) -> None:
    torch.manual_seed(1)
    left, right = (torch.linalg.qr(torch.randn(n, n)).Q for n in shape)
    spread = torch.zeros(shape)
    spread.diagonal().copy_(torch.logspace(0, -1.5, min(shape)))
    matrix = left @ spread @ right
    values = torch.linalg.svdvals(orthogonalised(matrix).float())
    assert values.min() > 0.5
    assert values.max() < 1.3


def test_which_parameters_are_matrices() -> None:
    net = nn.ModuleDict(
        {
            "conv_in": nn.Conv2d(4, 8, 3),
            "body": nn.Conv2d(8, 8, 3),
            "words": nn.Embedding(9, 8),
            "out": nn.Linear(8, 1),
            "mix": nn.Linear(8, 8),
        }
    )
    assert {id(p) for p in matrices(net)} == {id(net["body"].weight), id(net["mix"].weight)}


def test_the_rest_is_adamw() -> None:
    ours, theirs = network(), network()
    grow(ours, made(ours, hidden=[], rest=1.0), 5)
    grow(theirs, torch.optim.AdamW(theirs.parameters(), lr=1e-2, betas=(0.9, 0.98), weight_decay=0.1), 5)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_step_of_a_matrix_has_the_size_of_adams() -> None:
    net = network()
    before = net[2].weight.detach().clone()
    groups = [{"params": list(net.parameters()), "weight_decay": 0.0}]
    grow(net, Orthogonal(groups, matrices(net), lr=1e-2), 1)
    step = (net[2].weight - before).square().mean().sqrt().item()
    assert 0.1e-2 < step < 0.3e-2  # 0.2 lr


def test_workers_share_the_work_and_agree() -> None:
    parts: list[torch.Tensor] = []
    for rank in (0, 1):
        net = network()
        grow(net, made(net, rank=rank, workers=2, gather=lambda flat: parts.append(flat.clone())), 1)
    assert all(part.any() for part in parts)
    assert not (parts[0].bool() & parts[1].bool()).any()
    whole: list[torch.Tensor] = []
    net = network()
    grow(net, made(net, gather=lambda flat: whole.append(flat.clone())), 1)
    torch.testing.assert_close(parts[0] + parts[1], whole[0])


def test_resumed_from_a_file_it_goes_on_as_if_never_stopped(tmp_path: Path) -> None:
    straight = network()
    optimiser = made(straight)
    grow(straight, optimiser, 2)
    checkpoint.save(tmp_path / "c.safetensors", {"net": straight}, optimiser, step=2)
    grow(straight, optimiser, 2, seed=1)
    resumed = network()
    second = made(resumed)
    checkpoint.load(tmp_path / "c.safetensors", {"net": resumed}, second)
    grow(resumed, second, 2, seed=1)
    for a, b in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_takes_over_from_adamw() -> None:
    net = network()
    adam = torch.optim.AdamW([{"params": list(net.parameters()), "weight_decay": 0.1}], lr=1e-2)
    grow(net, adam, 2)
    ours = made(net)
    state = ours.state_dict() | {"state": adam.state_dict()["state"]}
    ours.load_state_dict(state)
    grow(net, ours, 1)
    assert "exp_avg_sq" not in ours.state[net[2].weight]
    assert all(p.isfinite().all() for p in net.parameters())
