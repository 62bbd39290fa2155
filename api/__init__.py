# SPDX-License-Identifier: Apache-2.0
"""The agent's own API on its UNIX socket: .proto files and the stubs generated from them.

Here belong: .proto files and what tools/generate_api.sh makes of them. Never: code
written by hand, or imports of any other package of this repository.
"""
