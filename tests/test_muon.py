"""Muon: its update equals that of torch, in fp32; its state; its work shared by processes."""

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from training.muon import Muon, build_muon, orthogonalize, orthogonalize_all


def test_orthogonalize_brings_all_singular_values_near_1_and_keeps_the_singular_vectors():
    torch.manual_seed(0)
    for shape in ((24, 96), (96, 24), (32, 32)):
        left, values, right = torch.linalg.svd(torch.randn(shape), full_matrices=False)
        result = orthogonalize(left @ torch.diag(values) @ right)
        singular_values = torch.linalg.svdvals(result)
        assert float(singular_values.min()) > 0.5 and float(singular_values.max()) < 1.3
        assert torch.nn.functional.cosine_similarity(result.flatten(), (left @ right).flatten(), dim=0) > 0.95


def test_muon_equals_the_muon_of_torch_but_for_bf16():
    torch.manual_seed(0)
    start, gradients = torch.randn(48, 64), torch.randn(5, 48, 64)
    ours, theirs = start.clone().requires_grad_(), start.clone().requires_grad_()
    group = {"params": [ours], "muon": True, "matrix_counts": [1], "weight_decay": 0.1}
    for value, optimizer in (
        (ours, Muon([group], lr=0.02, betas=(0.9, 0.99))),
        (theirs, torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")),
    ):
        for gradient in gradients:
            value.grad = gradient.clone()
            optimizer.step()
    moved, expected = ours.detach() - start, theirs.detach() - start
    assert float((moved - expected).norm() / expected.norm()) < 0.02


def test_other_parameters_are_updated_as_by_adamw():
    torch.manual_seed(0)
    start, gradients = torch.randn(6, 4), torch.randn(5, 6, 4)
    ours, theirs = start.clone().requires_grad_(), start.clone().requires_grad_()
    for value, optimizer in (
        (ours, Muon([{"params": [ours], "muon": False, "weight_decay": 0.1}], lr=0.02, betas=(0.9, 0.99))),
        (theirs, torch.optim.AdamW([theirs], lr=0.02, betas=(0.9, 0.99), weight_decay=0.1)),
    ):
        for gradient in gradients:
            value.grad = gradient.clone()
            optimizer.step()
    torch.testing.assert_close(ours, theirs)


def test_the_matrices_stacked_in_one_weight_are_orthogonalized_separately():
    torch.manual_seed(0)
    values = [torch.zeros(24, 8).requires_grad_(), torch.zeros(8, 8).requires_grad_()]
    gradient = torch.randn(24, 8)
    values[0].grad, values[1].grad = gradient, gradient[8:16].clone()
    groups = [{"params": values, "muon": True, "matrix_counts": [3, 1]}]
    Muon(groups, lr=1.0, betas=(0.9, 0.99)).step()
    torch.testing.assert_close(values[0][8:16], values[1])


def test_the_state_of_muon_is_restored():
    # Imported here: the processes of the last test import this module, and the model's libraries take seconds.
    from dit.model import DiT, DiTConfig
    from training.checkpoints import load_state_tensors, state_tensors
    from training.config import DiTRun

    torch.manual_seed(0)
    model = DiT.from_dit_config(DiTConfig(depth=1, width=64, text_dim=16))
    optimizer = build_muon(model.muon_params(), model, DiTRun())
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))
    for value in model.parameters():
        value.grad = torch.randn_like(value)
    optimizer.step()
    state = {name: value.clone() for name, value in state_tensors(optimizer).items()}
    fresh = build_muon(model.muon_params(), model, DiTRun())
    load_state_tensors(fresh, state)
    assert state.keys() == state_tensors(fresh).keys()
    assert all(torch.equal(value, state_tensors(fresh)[name]) for name, value in state.items())


def matrices(count):
    torch.manual_seed(0)
    return [torch.randn(shape) for shape in ((48, 16), (16, 16), (16, 48), (8, 8), (64, 32))[:count]]


def orthogonalize_in_process(rank, processes, count, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=processes)
    torch.save(orthogonalize_all(matrices(count)), folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_processes_share_the_matrices_and_each_gets_all_results(tmp_path):
    for processes, count in ((2, 5), (3, 2)):  # also more processes than matrices
        expected = [orthogonalize(matrix) for matrix in matrices(count)]
        folder = tmp_path / str(processes)
        folder.mkdir()
        spawn(orthogonalize_in_process, (processes, count, folder), processes)
        for rank in range(processes):
            results = torch.load(folder / f"{rank}.pt")
            assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))
