# SPDX-License-Identifier: Apache-2.0
"""A user's check of a live cluster: may pods reach whom they should, and only them.

Here belong: the plan of checks, the objects that they need, their evaluation (all pure), and the
one module that speaks to a cluster. Never here: anything that an agent needs, or knowledge of how
bristle enforces a policy: the check holds for any network plugin.
"""
