# SPDX-License-Identifier: Apache-2.0
"""The Helm chart in deploy/chart, rendered without Helm.

The chart's files are the one source of the manifests: Helm renders them, and so does this package
for `bristle install`, so the two cannot drift. Here belong: the part of Helm's template language
that the chart uses, the merging of values, and their check against values.schema.json. Anything
else in a template is an error. Never here: a manifest, a default, a name of Kubernetes, or a
connection to a cluster. Pure but for reading the chart's files.
"""
