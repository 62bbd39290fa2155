# SPDX-License-Identifier: Apache-2.0
"""What the kernel says, on its way up: events, counters, metrics.

Here belong: reading the ring buffer, decoding, naming, delivering flows to readers, and
metrics. Never: anything that changes the store or the kernel's maps, or waits for them.
Events may be lost, and every loss is counted; counters of the kernel are exact.
"""
