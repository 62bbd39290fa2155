# SPDX-License-Identifier: Apache-2.0
"""What the policies say: parsed, compiled to final verdicts, explained and compared.

Belongs here: the policy model and its validation, compilation to (peer class x protocol x port)
entries, the naive evaluator that is its oracle. Never here: kernel maps and their layouts (only
`agent.core.desired` joins the two), Kubernetes clients, files, sockets, threads or clocks.
"""
