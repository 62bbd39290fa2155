# SPDX-License-Identifier: Apache-2.0
"""The agent's servers: sockets and threads in front, one call into the agent behind.

Belongs here: listening, who may connect, reading and bounding what comes in, turning it into a
request or a query and the answer into bytes or messages. CNI requests of the relay
(`cni_server`) and the gRPC API of the command line (`server`, `convert`).

Never belongs here: state of the agent, decisions about pods or policy, kernel access. A server
asks through the callable or view that its constructor was given.
"""
