# SPDX-License-Identifier: MIT
"""A seeded workload for an unmodified python3 on another malloc: prints a digest and nothing else.

./try runs it twice, plain and under libgcuffd-preload.so, and compares what it prints. With
PYTHONMALLOC=malloc every object of Python's is a malloc of its own.
Argument: how many rounds (default 8; about half a second and a million blocks each).
"""

import gc
import hashlib
import json
import random
import re
import sys
import threading
import zlib


class Node:
    __slots__ = ("key", "left", "right", "__weakref__")

    def __init__(self, key):
        self.key, self.left, self.right = key, None, None


class Account:
    """Has a dict, a cycle back to itself and a finaliser's worth of garbage."""

    def __init__(self, name, amount):
        self.name, self.amount, self.log = name, amount, []
        self.me = self

    def pay(self, other, amount):
        self.amount -= amount
        other.amount += amount
        self.log.append((other.name, -amount))
        other.log.append((self.name, amount))


def build_tree(keys):
    root = Node(keys[0])
    for key in keys[1:]:
        node = root
        while True:
            side = "left" if key < node.key else "right"
            child = getattr(node, side)
            if child is None:
                setattr(node, side, Node(key))
                break
            node = child
    return root


def walk_tree(root):
    stack, node = [], root
    while stack or node:
        while node:
            stack.append(node)
            node = node.left
        node = stack.pop()
        yield node.key
        node = node.right


def run_dicts(rng, kept):
    table = {f"key{rng.randrange(1 << 30)}": rng.random() for _ in range(40000)}
    for key in list(table)[::3]:
        del table[key]
    kept.append(table)
    return sorted(table.items())[:100]


def run_json(rng, _kept):
    data = [{"id": i, "tags": [str(rng.random()) for _ in range(5)], "on": i % 2 == 0} for i in range(6000)]
    text = json.dumps(data)
    assert json.loads(text) == data
    return text[:1000], zlib.crc32(zlib.compress(text.encode()))


def run_sort(rng, _kept):
    words = ["".join(rng.choices("abcdefgh", k=8)) for _ in range(40000)]
    return sorted(words, key=lambda w: (w[::-1], w))[:100], len(set(words)), len(re.findall("ab+c", " ".join(words)))


def run_tree(rng, kept):
    root = build_tree([rng.randrange(1 << 40) for _ in range(12000)])
    kept.append(root)
    return list(walk_tree(root))[::500]


def run_classes(rng, _kept):
    accounts = [Account(f"a{i}", 1000) for i in range(2000)]
    for _ in range(30000):
        one, two = rng.sample(accounts, 2)
        one.pay(two, rng.randrange(50))
    return [a.amount for a in accounts[::100]], sum(len(a.log) for a in accounts)


def run_buffers(rng, _kept):
    pieces = [bytearray(rng.randbytes(rng.randrange(1, 20000))) for _ in range(600)]
    for piece in pieces[::2]:
        piece.extend(piece)
    return zlib.crc32(b"".join(pieces)), (3 ** 40000) % (10 ** 4000 + 7)


def run_threads(rng, _kept):
    seeds = [rng.random() for _ in range(4)]
    results = [None] * 4

    def work(i):
        own = random.Random(seeds[i])
        results[i] = sum(len(str([own.random() for _ in range(50)])) for _ in range(100))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def main():
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 8
    rng, digest, kept = random.Random(1), hashlib.sha256(), []
    for number in range(rounds):
        for run in (run_dicts, run_json, run_sort, run_tree, run_classes, run_buffers, run_threads):
            digest.update(repr(run(rng, kept)).encode())
        if number % 3 == 2:
            gc.collect()
        del kept[:-10]
    print(f"digest: {digest.hexdigest()}")


if __name__ == "__main__":
    main()
