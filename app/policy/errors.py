"""The error that content policies raise."""

from __future__ import annotations


class PolicyError(ValueError):
    """A policy refuses a prompt or a clip, or a policy is misconfigured; `rule` names the rule that matched, if any."""

    rule = ""
