"""The networks as they are, and side by side."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from pnc_cli.branch.fit_join import Evidence, Levels, fit_join
from pnc_cli.branch.join import Join
from pnc_cli.network.features import Answers, answers_of
from pnc_cli.network.graph import trace
from pnc_cli.network.head import find_head, mean_logit

from ..problem import Problem, Split
from .base import Made, Method, Settings


def target_alone(problem: Problem, known: Settings | None) -> Made:
    def predict(split: Split) -> Tensor:
        z = answers_of(problem.target, split.target).logits
        return torch.cat([z, torch.full((len(z), problem.new), -torch.inf)], dim=1)

    return Made(
        predict, run=problem.target.model, undo=lambda: predict(problem.test)[:, : problem.old]
    )


def source_alone(problem: Problem, known: Settings | None) -> Made:
    """Each clone class by its source, among all classes of that source."""

    def predict(split: Split) -> Tensor:
        out = torch.full((len(split.label), problem.old + problem.new), -torch.inf)
        at = problem.old
        for network, group, x in zip(problem.world.sources, problem.world.classes, split.sources):
            z = _seen(problem, network, split, x).logits
            columns = [c.source_index for c in group]
            of_group = (split.label >= at) & (split.label < at + len(group))
            known = z.argmax(1, keepdim=True) == torch.tensor(columns)
            chosen = torch.where(known, 0.0, -torch.inf) + z[:, columns]  # -inf: another class won
            out[of_group, at : at + len(group)] = chosen[of_group]
            at += len(group)
        return out

    return Made(predict)


class SideBySide(nn.Module):
    """Both whole networks, for the clock."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.target = problem.target.model
        self.sources = nn.ModuleList(n.model for n in problem.world.sources)
        self.sizes = [n.input_size[1:] for n in problem.world.sources]

    def forward(self, x: Tensor) -> Tensor:
        z = [self.target(x)]
        for source, grid in zip(self.sources, self.sizes):
            same = tuple(x.shape[2:]) == tuple(grid)
            z.append(source(x if same else nn.functional.interpolate(x, size=grid, mode="bicubic")))
        return torch.cat(z, dim=1)


def side_by_side(how: str):
    """All networks whole: logits "raw" or as "log-softmax", or "calibrated" by the join that pnc
    uses, learned from the few images."""

    def make(problem: Problem, known: Settings | None) -> Made:
        joins = _joins(problem) if how == "calibrated" else []

        def predict(split: Split) -> Tensor:
            seen = _seen(problem, problem.target, split, split.target)
            pre, z = seen.pre, seen.logits
            out = [z.log_softmax(1) if how == "log-softmax" else z]
            for k, (network, group) in enumerate(zip(problem.world.sources, problem.world.classes)):
                of_source = _seen(problem, network, split, split.sources[k])
                source_pre, z_s = of_source.pre, of_source.logits
                columns = [c.source_index for c in group]
                if how == "log-softmax":
                    out.append(z_s.log_softmax(1)[:, columns])
                elif how == "calibrated":
                    out.append(joins[k](pre, source_pre, z, z_s[:, columns]))
                else:
                    out.append(z_s[:, columns])
            return torch.cat(out, dim=1)

        networks = problem.world.sources
        files = sum(Path(s.checkpoint).stat().st_size for s in problem.scenario.sources)
        extra = sum(t.numel() for j in joins for t in j.state_dict().values())
        macs = sum(sum(trace(n.model, n.input_size).macs.values()) for n in networks)
        return Made(
            predict,
            run=SideBySide(problem),
            undo=lambda: _seen(problem, problem.target, problem.test, problem.test.target).logits,
            added_parameters=sum(n.parameters for n in networks) + extra,
            added_macs=macs + extra,
            bytes_shipped=files + 4 * extra,
        )

    return make


def _joins(problem: Problem) -> list[Join]:
    """One join a source: its clone classes against the target's."""
    few, old, seen = problem.few, problem.old, problem.few_features
    joins: list[Join] = []
    at = old
    for k, (network, group) in enumerate(zip(problem.world.sources, problem.world.classes)):
        use = (few.label < old) | ((few.label >= at) & (few.label < at + len(group)))
        label = few.label[use]
        label = torch.where(label < old, label, label - at + old)
        of_source = _seen(problem, network, few, few.sources[k])
        z_s = of_source.logits[:, [c.source_index for c in group]]
        evidence = Evidence(seen.pre, of_source.pre, seen.logits, z_s).of(use)
        traced = trace(network.model, network.input_size)
        mean = mean_logit(traced, find_head(traced, network.classifier))
        levels = Levels(mean, (problem.target.ref.num_classes, network.ref.num_classes))
        joins.append(fit_join(evidence, label, old, len(group), levels))
        at += len(group)
    return joins


def _seen(problem: Problem, network, split: Split, images: Tensor) -> Answers:
    """Pre-logits and logits of ``split``; those of the test images are kept for all seeds."""
    cache = problem.world.features if split is problem.test else problem.cache
    key = ("features", id(network), split is problem.few)
    if split is not problem.test and split is not problem.few:
        return answers_of(network, images)
    if key not in cache:
        cache[key] = answers_of(network, images)
    return cache[key]


METHODS = [
    Method("target alone", target_alone, "reference"),
    Method("source alone", source_alone, "both"),
    Method("both, raw logits", side_by_side("raw"), "both"),
    Method("both, log-softmax", side_by_side("log-softmax"), "both"),
    Method("both, calibrated", side_by_side("calibrated"), "both", uses_pnc=True),
]
