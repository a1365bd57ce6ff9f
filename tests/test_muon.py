"""Muon: what a step is, and that it is torch's, in fp32."""

import torch
import torch.distributed as dist

from dit.model import DiT, DiTConfig
from training.config import DiTRun
from training.loop import restore, state_tensors
from training.muon import Muon, muon, orthogonal, shared


def test_orthogonal_makes_all_singular_values_nearly_one_and_keeps_their_directions():
    torch.manual_seed(0)
    for shape in ((24, 96), (96, 24), (32, 32)):
        left, values, right = torch.linalg.svd(torch.randn(shape), full_matrices=False)
        found = torch.linalg.svdvals(orthogonal(left @ torch.diag(values) @ right))
        assert float(found.min()) > 0.5 and float(found.max()) < 1.3
        assert (
            torch.nn.functional.cosine_similarity(
                orthogonal(left @ torch.diag(values) @ right).flatten(), (left @ right).flatten(), dim=0
            )
            > 0.95
        )


def test_muon_goes_where_torchs_goes_but_for_bf16():
    torch.manual_seed(0)
    start, gradients = torch.randn(48, 64), torch.randn(5, 48, 64)
    ours, theirs = start.clone().requires_grad_(), start.clone().requires_grad_()
    group = {"params": [ours], "muon": True, "parts": [1], "weight_decay": 0.1}
    for value, optimizer in (
        (ours, Muon([group], rate=0.02, betas=(0.9, 0.99))),
        (theirs, torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")),
    ):
        for gradient in gradients:
            value.grad = gradient.clone()
            optimizer.step()
    moved, expected = ours.detach() - start, theirs.detach() - start
    assert float((moved - expected).norm() / expected.norm()) < 0.02


def test_what_is_not_a_hidden_matrix_goes_where_adamw_goes():
    torch.manual_seed(0)
    start, gradients = torch.randn(6, 4), torch.randn(5, 6, 4)
    ours, theirs = start.clone().requires_grad_(), start.clone().requires_grad_()
    for value, optimizer in (
        (ours, Muon([{"params": [ours], "muon": False, "weight_decay": 0.1}], rate=0.02, betas=(0.9, 0.99))),
        (theirs, torch.optim.AdamW([theirs], lr=0.02, betas=(0.9, 0.99), weight_decay=0.1)),
    ):
        for gradient in gradients:
            value.grad = gradient.clone()
            optimizer.step()
    torch.testing.assert_close(ours, theirs)


def test_queries_keys_and_values_are_matrices_of_their_own():
    torch.manual_seed(0)
    values = [torch.zeros(24, 8).requires_grad_(), torch.zeros(8, 8).requires_grad_()]
    gradient = torch.randn(24, 8)
    values[0].grad, values[1].grad = gradient, gradient[8:16].clone()
    groups = [{"params": values, "muon": True, "parts": [3, 1]}]
    Muon(groups, rate=1.0, betas=(0.9, 0.99)).step()
    torch.testing.assert_close(values[0][8:16], values[1])


def test_muons_state_is_restored():
    torch.manual_seed(0)
    model = DiT.from_dit_config(DiTConfig(depth=1, width=64, text_dim=16))
    optimizer = muon(model.muon_params(), model, DiTRun())
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))
    for value in model.parameters():
        value.grad = torch.randn_like(value)
    optimizer.step()
    state = {name: value.clone() for name, value in state_tensors(optimizer).items()}
    fresh = muon(model.muon_params(), model, DiTRun())
    restore(fresh, state)
    assert state.keys() == state_tensors(fresh).keys()
    assert all(torch.equal(value, state_tensors(fresh)[name]) for name, value in state.items())


def matrices_to_share():
    torch.manual_seed(0)
    return [torch.randn(shape) for shape in ((48, 16), (16, 16), (16, 48), (8, 8), (64, 32))]


def share_with_another(rank, processes, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=processes)
    torch.save(shared(matrices_to_share()), folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_processes_share_the_matrices_and_all_get_all(tmp_path):
    wanted = [orthogonal(matrix) for matrix in matrices_to_share()]
    for processes in (2, 7):  # seven have more hands than there are matrices
        folder = tmp_path / str(processes)
        folder.mkdir()
        torch.multiprocessing.spawn(share_with_another, (processes, folder), processes)
        for rank in range(processes):
            found = torch.load(folder / f"{rank}.pt")
            assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
