"""A gRPC client that finds its servers by xDS, and the servers.

usage: xds_client.py TARGET METHOD [NAME=ADDRESS ...]

Serves METHOD at each ADDRESS with the answer NAME. Then, for every line of standard input, which is a number, calls
TARGET so many times and prints a line of JSON: how often each name answered, and each error.
"""

import collections
import json
import sys
from concurrent import futures

import grpc


class Answer(grpc.GenericRpcHandler):
    def __init__(self, name):
        self.name = name.encode()

    def service(self, call):
        return grpc.unary_unary_rpc_method_handler(lambda request, context: self.name)


target, method, *servers = sys.argv[1:]
running = []
for entry in servers:
    name, address = entry.split("=", 1)
    server = grpc.server(futures.ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((Answer(name),))
    if server.add_insecure_port(address) == 0:
        sys.exit(f"cannot listen on {address}")
    server.start()
    running.append(server)

with grpc.insecure_channel(target) as channel:
    call = channel.unary_unary(method)
    for line in sys.stdin:
        seen = collections.Counter()
        for _ in range(int(line)):
            try:
                seen[call(b"", timeout=5).decode()] += 1
            except grpc.RpcError as error:
                seen[f"{error.code().name}: {error.details()}"] += 1
        print(json.dumps(seen), flush=True)
