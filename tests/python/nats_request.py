"""Stands in for `nats request --raw` where there is no nats command line: the only verb of it that examples/shell uses.

    python nats_request.py --server URL request --raw [-H NAME:VALUE] SUBJECT BODY
"""

import argparse
import asyncio
import sys

import nats

parser = argparse.ArgumentParser()
parser.add_argument("--server", required=True)
parser.add_argument("verb", choices=["request"])
parser.add_argument("--raw", action="store_true", required=True)
parser.add_argument("-H", "--header", action="append", default=[])
parser.add_argument("subject")
parser.add_argument("body")


async def main(args):
    nc = await nats.connect(args.server, connect_timeout=10)
    headers = dict(header.split(":", 1) for header in args.header)
    reply = await nc.request(args.subject, args.body.encode(), timeout=10, headers=headers or None)
    sys.stdout.buffer.write(reply.data)
    await nc.close()


asyncio.run(main(parser.parse_args()))
