"""``serve.py`` as every bundle has it: what ``colever serve`` does, in a file of one's own to change."""

SERVE = '''\
"""Serve this bundle: python serve.py [--port 8000]. A program like any other: of a bundle that you do not trust run
`colever serve FOLDER` in its place. COLEVER_TOKEN is needed where others can reach the host."""

import argparse
from pathlib import Path

from colever.ship.server import Limits, serve

parser = argparse.ArgumentParser()
parser.add_argument("--host", default="127.0.0.1")
parser.add_argument("--port", type=int, default=8000)
parser.add_argument("--trust-code", action="store_true", help="let the task file in task_code/ run")
given = parser.parse_args()
serve(
    Path(__file__).parent,
    host=given.host,
    port=given.port,
    limits=Limits(concurrent=64, queue=256, seconds=60.0),
    trust_code=given.trust_code,
)
'''
