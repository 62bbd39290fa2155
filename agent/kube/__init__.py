# SPDX-License-Identifier: Apache-2.0
"""Where facts come from: Kubernetes objects, read from manifests or from an API server.

Here belong: the translation of raw Kubernetes objects to facts (pure), and the sources that
deliver events: a watched folder of manifests, later the API server. A source only calls `emit`.

Here never belong: decisions about policy, identities or the kernel, and anything that changes
the store. Nothing below this package knows which source an event came from, but for its name.
"""
