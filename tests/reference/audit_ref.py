#!/usr/bin/env python3
"""Audit chains, implemented a second time from docs/AUDIT.md with nothing but the standard library.

    audit_ref.py mac KEY_HEX < RECORD                      the MAC of a record
    audit_ref.py link KEY_HEX PREVIOUS_HEX MAC_HEX         the link of a record
    audit_ref.py verify KEY_HEX... -- FILE...              every line of the files, in their order; the first line that is wrong

A key is given in the order of its versions, from 1. `verify` prints how many records each chain has.
"""

import hashlib
import hmac
import json
import sys

SUFFIX = len(',"mac":"","link":""}') + 128


def mac(key, data):
    return hmac.new(key, data, hashlib.sha256).digest()


def verify(keys, paths):
    ends = {}
    for path in paths:
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                where = f"{path}:{number}"
                if not line.endswith(b"}\n"):
                    sys.exit(f"{where}: not a whole line")
                line = line[:-1]
                record = json.loads(line)
                body = line[:-SUFFIX] + b"}"
                key = keys[record["key"] - 1]
                its_mac = mac(key, body)
                chain = (record["node"], record["boot"])
                n, previous = ends.get(chain, (0, bytes.fromhex(record.get("previousLink", "00" * 32))))
                if its_mac.hex() != record["mac"]:
                    sys.exit(f"{where}: wrong mac")
                if record["n"] != n + 1:
                    sys.exit(f"{where}: n is {record['n']} after {n}")
                link = mac(key, previous + its_mac)
                if link.hex() != record["link"]:
                    sys.exit(f"{where}: wrong link")
                ends[chain] = (record["n"], link)
    for (node, boot), (n, _) in ends.items():
        print(node, boot, n)


def main():
    command, *rest = sys.argv[1:]
    if command == "mac":
        print(mac(bytes.fromhex(rest[0]), sys.stdin.buffer.read()).hex())
    elif command == "link":
        key, previous, its_mac = map(bytes.fromhex, rest)
        print(mac(key, previous + its_mac).hex())
    elif command == "verify":
        split = rest.index("--")
        verify([bytes.fromhex(key) for key in rest[:split]], rest[split + 1 :])
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
