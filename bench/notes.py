# SPDX-License-Identifier: MIT
"""What stands below a benchmark's table: what is meant, as ratios of a round or of medians, with ! where it is not so."""

import math
import statistics

TRACK_MOST = 1.1       # gcuffd to raw
RESTORE_MOST = 1.5     # from compressed memory: gcuffd to raw
TARGET_MOST = 1.1      # coldset: what gcuffd has resident, to its target
COLD_GC_MOST = 0.1     # coldset: a full collection, gcuffd to libgc-zram
COLD_OPS_LEAST = 5     # the mutator's operations meanwhile
COLD_MEMORY_MOST = 1.1 # process and store to process and zram
TRACK = ("first_write_ns", "first_access_ns", "arm_ns", "scan_clean_ns", "scan_dirty_ns", "access_arm_ns", "access_clean_ns", "access_dirty_ns", "collect_4g_ms")
STOPS_MOST = {"poll_ns": 1} | {f"{what}_{mode}_p50_us": 1000 for mode in ("declared", "undeclared", "safepoint") for what in ("halt", "stop")}
RESIDENT = ("rss_kib", "rss_after_kib", "collections_peak_kib")


def show_number(value):
    if value == math.inf:
        return "no end"
    if value == int(value) and abs(value) < 1e9:
        return str(int(value))
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.0f}"


def show_cell(numbers):
    if not numbers:
        return "-"
    median, low, high = statistics.median(numbers), min(numbers), max(numbers)
    return show_number(median) + (f" ({show_number(low)}..{show_number(high)})" if low != high else "")


def by_round(above, below):
    """A ratio for each round."""
    return [a / b for a, b in zip(above, below) if b]


def raw_ratios(by_name, metrics, most):
    """What gcuffd takes of what raw does."""
    for metric in metrics:
        numbers = [by_name[name].numbers(metric) if name in by_name else [] for name in ("gcuffd", "raw")]
        if all(numbers):
            ratios = by_round(*numbers)
            far = f" ! more than the {most:.1f} that are meant" if statistics.median(ratios) > most else ""
            yield f"{metric}: gcuffd / raw {show_cell(ratios)}{far}"


def track_notes(by_name):
    yield from raw_ratios(by_name, TRACK, TRACK_MOST)
    bare = by_name["raw"].numbers("access_protect_ns") if "raw" in by_name else []
    for name in ("gcuffd", "raw"):
        if bare and name in by_name:
            yield f"access_arm_ns: {name} / UFFDIO_RWPROTECT alone {show_cell(by_round(by_name[name].numbers('access_arm_ns'), bare))}"
    if "gcuffd" in by_name and by_name["gcuffd"].numbers("watchers_1_ns"):
        one, two, four = (by_name["gcuffd"].numbers(f"watchers_{n}_ns") for n in (1, 2, 4))
        yield f"watchers of the same pages: 2 take {show_cell(by_round(two, one))} times what 1 does, 4 take {show_cell(by_round(four, one))} times"


def stops_notes(by_name):
    """What is meant, and what gcuffd's stops take of what libgc's do, by medians."""
    ours, peer = by_name.get("gcuffd"), by_name.get("libgc")
    for metric, most in STOPS_MOST.items():
        mine, theirs = (s.numbers(metric) if s else [] for s in (ours, peer))
        if not mine:
            continue
        median = statistics.median(mine)
        ratio = f", gcuffd / libgc {show_number(median / statistics.median(theirs))}" if theirs else ""
        far = f" ! not below the {most} that is meant" if median >= most else f", below {most}"
        yield f"{metric}: {show_number(median)}{far}{ratio}"


# ---- coldset


def most_resident(run):
    return max(float(run[m]) for m in RESIDENT if run.get(m) is not None)


def target_note(series):
    shares = [most_resident(r) / float(r["target_kib"]) for r in series.runs if r.get("target_kib")]
    far = f" ! more than the {TARGET_MOST} that are meant" if shares and max(shares) > TARGET_MOST else ""
    return f"{series.system}: resident at most, settled and in the collections: {show_cell(shares)} of the target{far}"


def collection_note(ours, peer):
    """Of one that was ended it is known how long it took at least."""
    theirs = [float(r.get("full_gc_s") or r["full_gc_at_least_s"]) for r in peer.runs]
    ended = any("timed_out" in r for r in peer.runs)
    ratio = statistics.median(ours.numbers("full_gc_s")) / statistics.median(theirs)
    why = "says nothing: more --collect-timeout" if ended else f"more than the {COLD_GC_MOST} that is meant"
    far = f" ! {why}" if ratio > COLD_GC_MOST else ""
    return f"full_gc_s: gcuffd / {peer.system} {'at most ' if ended else ''}{show_number(ratio)}{far}"


def ops_note(ours, peer):
    mine, theirs = ours.numbers("hot_ops_per_s"), peer.numbers("hot_ops_per_s")
    if not theirs:
        return f"! hot_ops_per_s: {peer.system} did not tell any before it was ended"
    base = statistics.median(theirs)
    ratio = statistics.median(mine) / base if base else math.inf
    far = f" ! less than the {COLD_OPS_LEAST} that are meant" if ratio < COLD_OPS_LEAST else ""
    return f"hot_ops_per_s: gcuffd / {peer.system} {show_number(ratio)}{far}"


def memory_note(ours, peer):
    """Compressed memory is part of gcuffd's process; a file is not."""
    mine = statistics.median(most_resident(r) + float(r["store_file_kib"]) for r in ours.runs)
    theirs = statistics.median(peer.numbers("sum_peak_kib"))
    far = f" ! more than the {COLD_MEMORY_MOST} that are meant" if mine > COLD_MEMORY_MOST * theirs else ""
    return (f"memory at most: gcuffd's process and store {mine / 1024:.1f} MiB, {peer.system}'s process and zram {theirs / 1024:.1f} MiB: "
            f"{show_number(mine / theirs)}{far}")


def cold_notes(by_name):
    ours, peer = by_name.get("gcuffd"), by_name.get("libgc-zram")
    if ours:
        yield target_note(ours)
    if ours and peer:
        yield collection_note(ours, peer)
        yield ops_note(ours, peer)
        yield memory_note(ours, peer)
