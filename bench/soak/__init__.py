# SPDX-License-Identifier: Apache-2.0
"""Real programs on redirected sockets for a while, with every byte checked.

Here belong the mix and who checks it. What is claimed of it is in `bench.areas.redirect_soak`.
"""
