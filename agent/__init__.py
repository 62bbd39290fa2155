# SPDX-License-Identifier: Apache-2.0
"""The node agent: joins sources, policy and kernel.

What belongs here: composition, the owner thread, edges to kernel and cluster, commands. What never
does: the meaning of labels (identity), of policies (policy) or of CNI requests (cni).
"""
