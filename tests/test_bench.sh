#!/bin/sh
# SPDX-License-Identifier: MIT
# Smoke test of bench/run: the list, errors, and a tiny run of each benchmark with its JSON file.
# Runs from the build directory; systems that were not built, or are not installed, are left out.
set -eu

top=$(cd "$(dirname "$0")/.." && pwd)
build=${BENCH_BUILD:-$PWD}
run=$top/bench/run
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

fail() { echo "FAIL: $*" >&2; exit 1; }

python3 -c 'import sys; sys.exit(sys.version_info < (3, 9))' 2>/dev/null || { echo "skip: no python3 (3.9)"; exit 77; }
[ -x "$build/bench/gcbench-malloc" ] || { echo "skip: no programs in $build/bench (make check builds them)"; exit 77; }

systems=malloc
for s in gcuffd libgc; do
	[ ! -x "$build/bench/mutate-$s" ] || systems=$s,$systems
done

"$run" --list >"$out/list"
for b in gcbench binary-trees mutate restore track coldset image stops noise; do
	grep -q "^$b " "$out/list" || fail "--list lacks $b"
done

if "$run" --build "$build" nonesuch 2>"$out/err"; then fail "an unknown benchmark was taken"; fi
grep -q "unknown benchmark 'nonesuch'" "$out/err" || fail "no clear error for an unknown benchmark"
if "$run" --build "$build" gcbench --peer nonesuch 2>"$out/err"; then fail "an unknown system was taken"; fi
grep -q "unknown system 'nonesuch'" "$out/err" || fail "no clear error for an unknown system"
if "$run" --build "$build" coldset --collections 1 2>"$out/err"; then fail "one collection was taken"; fi
grep -q "at least 2" "$out/err" || fail "no clear error for too few collections"
if "$run" --build "$build" mutate --pairs 2 2>"$out/err"; then fail "pairs of mutate were taken"; fi
grep -q -- "--pairs is for" "$out/err" || fail "no clear error for pairs of mutate"
if "$run" --build "$build" gcbench --base huge=0 2>"$out/err"; then fail "a base without pairs was taken"; fi
grep -q -- "--base is for --pairs" "$out/err" || fail "no clear error for a base without pairs"
if "$run" --build "$build" coldset --systems libgc-zram --vm 2>"$out/err"; then fail "swap of its own was taken for the emulated machine"; fi
grep -q -- "--vm is not for" "$out/err" || fail "no clear error for swap in the emulated machine"
if "$run" --build "$out" gcbench 2>"$out/err"; then fail "missing programs were not noticed"; fi
grep -q "make" "$out/err" || fail "missing programs: the error does not say how to build them"
"$run" --build "$build" gcbench --systems libgc-zram 2>"$out/err" || fail "a system that does not fit is an error"
grep -q "not for this benchmark" "$out/err" || fail "no word about a system that does not fit"

# Nothing comes back but what is touched: where hot pages end, a cold one may come ahead of the mutator's touches, which is no collection's doing.
GCUFFD_WITHOUT=neighbours "$run" --build "$build" all --systems "$systems,raw,mprotect" --runs 1 --scale 64 --settle 5 --collections 4 --timeout 120 --json "$out/json" >"$out/table" ||
	fail "bench/run all --systems $systems"
cat "$out/table"
for mode in sleep sigbus threads4; do
	"$run" --build "$build" restore --systems raw --runs 1 --scale 64 --mode $mode --sequential >"$out/$mode" || fail "restore --mode $mode"
done

"$run" --build "$build" restore --systems "$systems,raw,sigbus" --runs 1 --scale 16 --source memory >"$out/memory" || fail "restore --source memory"
"$run" --build "$build" restore --systems "$systems,raw,sigbus" --runs 1 --live 4 --source file --sequential --gap 0 --mode threads4 >"$out/file" || fail "restore --source file"

for options in "--memory shmem --sequential --empty 5" "--empty 5" "--thp" "--memory hugetlb"; do
	# shellcheck disable=SC2086 # words
	"$run" --build "$build" track --systems "$systems,raw,mprotect" --runs 2 --scale 64 $options >"$out/track" || fail "track $options"
done

# Pages can be taken out on rungs move and rwp: elsewhere nothing is, and nothing may be wrong either.
case $systems in
*gcuffd*)
	"$run" --build "$build" image --systems gcuffd --runs 1 --live 4 --threads 2 --rate 0 >"$out/image" || fail "image at full speed"
	"$run" --build "$build" stops --systems gcuffd --runs 1 --threads 5 --running 2 --collections 3 --gap 1000 >"$out/stops" || fail "stops of few threads"
	grep -q "halt_safepoint_p50_us: .* 1000" "$out/stops" || fail "stops: not a word about what is meant"
	"$run" --build "$build" gcbench --pairs 2 --options cold=1,start_size=1M --scale 64 >"$out/pairs" || fail "gcbench --pairs"
	grep -q "cpu_s *with [-+]" "$out/pairs" || fail "gcbench --pairs: no figure"
	"$run" --build "$build" gcbench --pairs 1 --base huge=0 --options cold=1,resident_target=4G --scale 64 >"$out/pairs" || fail "gcbench --pairs --base"
	grep -q "both with huge=0" "$out/pairs" || fail "gcbench --pairs: not a word about what both have"
	if "$run" --build "$build" gcbench --pairs 1 --base nonesuch=1 --scale 64 >"$out/pairs" 2>&1; then fail "gcbench --pairs: a base that is no option was taken"; fi
	GCUFFD_WITHOUT=neighbours "$run" --build "$build" coldset --systems gcuffd --runs 1 --live 16 --target 6 --settle 4 --collections 2 --seconds 1 --fork --verify >"$out/coldset" ||
		fail "coldset --fork --verify"
	grep -q "of the target" "$out/coldset" || fail "coldset: not a word about the target"
	"$run" --build "$build" coldset --systems gcuffd --runs 1 --live 32 --target 6 --rung async --settle 4 --collections 2 --seconds 1 >"$out/coldset" ||
		fail "coldset --rung async"
	grep -q "of the target ! more than" "$out/coldset" || fail "coldset: nothing is taken out, and the target is said to be kept"
	;;
esac

# In the test kernel, where one was had before: a boot for each.
in_machine() {
	"$run" --build "$build" "$@" --systems gcuffd --runs 1 --vm --json "$out/vm" >"$out/table" || fail "--vm $*"
	version=$("$top/tools/vm" --kernel)
	grep -q "$version in an emulated machine" "$out/table" || fail "--vm $*: the table does not name the kernel"
	grep -q "\"kernel\": \"$version\"" "$out/vm" || fail "--vm $*: another kernel"
}
case ${VM:-auto}:$systems:$(ls -d "${XDG_CACHE_HOME:-$HOME/.cache}"/libgcuffd/vm/kernel_* 2>/dev/null) in
no:*) ;;
*:*gcuffd*:*kernel_*)
	if command -v qemu-system-x86_64 busybox >/dev/null; then
		in_machine track --live 8 --large 0
		if [ "${CHECK_SECONDS:-5}" -ge 60 ]; then
			in_machine restore --live 1
			in_machine restore --live 1 --source memory
			in_machine coldset --live 16 --target 6 --settle 4 --collections 2 --seconds 1
			grep -Eq "out_pages +[1-9]" "$out/table" || fail "coldset --vm: nothing was taken out"
		fi
	fi
	;;
esac

# Swap of its own, in a group of its own: both are gone afterwards, also when it is interrupted.
left() { ls -d /sys/fs/cgroup/memory/gcuffd-bench-* 2>/dev/null || true; }
case ${CHECK_SECONDS:-5}:$systems in # minutes: where there is time
[6-9][0-9]*:*libgc*|[1-9][0-9][0-9]*:*libgc*)
	before=$(left)
	if "$run" --build "$build" coldset --systems libgc-zram --runs 1 --live 64 --sum 64 --settle 3 --seconds 1 --collect-timeout 60 --json "$out/zram" >"$out/table" 2>"$out/err"; then
		grep -q '"sum_kib"' "$out/zram" || fail "libgc-zram: no sum"
		grep -q '"hot_ops_per_s", "unit": "1/s", "value": [0-9]' "$out/zram" || fail "libgc-zram: no operations"
		timeout -s INT 3 "$run" --build "$build" coldset --systems libgc-zram --runs 1 --live 64 --sum 64 >"$out/table" 2>"$out/err" || true
	else
		grep -Eq "need root|no zram|no memory cgroups|no swap on zram" "$out/err" || { cat "$out/err"; fail "coldset on libgc-zram"; }
	fi
	[ "$before" = "$(left)" ] || fail "a memory cgroup was left behind"
	;;
esac

python3 - "$out/json" "$systems" <<'PY'
import json, sys
head, *lines = [json.loads(line) for line in open(sys.argv[1])]
assert head["kernel"] and "rung" in head, head
keys = {"bench", "system", "run", "metric", "unit", "value"}
metrics = {"wall_s", "cpu_s", "gc_cpu_s", "rss_peak_kib", "pause_p50_us", "pause_p99_us", "pause_max_us",
           "stop_max_us", "cycles"}
seen = {}
for line in lines:
    assert set(line) == keys, line
    assert line["value"] is None or isinstance(line["value"], (int, float)), line
    seen.setdefault((line["bench"], line["system"]), {})[line["metric"]] = line["value"]
for system in sys.argv[2].split(","):
    for bench in ("gcbench", "binary-trees", "mutate"):
        got = seen[bench, system]
        assert metrics <= set(got), (bench, system, metrics - set(got))
        assert got["wall_s"] > 0 and got["rss_peak_kib"] > 0, (bench, system, got)
        assert (got["pause_max_us"] is not None) == (bench == "mutate"), (bench, system)
        assert bench != "mutate" or got["warm_s"] > 0, (system, got)
        assert (got["cycles"] is None) == (system == "malloc"), (bench, system)
for system in set(sys.argv[2].split(",")) & {"gcuffd"} | {"raw"}:
    got = seen["restore", system]
    restore = {"restore_p50_us", "restore_p99_us", "restore_max_us", "page_mean_us", "pages_per_fault"}
    assert restore <= set(got), (system, restore - set(got))
    assert got["restore_p50_us"] is None or 0 < got["restore_p50_us"] <= got["restore_max_us"], (system, got)
for system in sys.argv[2].split(","):
    got = seen["coldset", system]
    assert {"hot_ops_between_per_s", "returned_pages"} <= set(got), (system, got)
    assert system == "malloc" or got["full_gc_s"] > 0, (system, got)
    assert system != "gcuffd" or got["live_after_kib"] < got["live_before_kib"], (system, got)
    assert system != "gcuffd" or got["restored_pages"] == 0 and got["returned_pages"] == 0, got
    assert system != "gcuffd" or {"collections_peak_kib", "summary_bytes_per_page", "touched_store_pages", "touched_park_pages"} <= set(got), got
    assert system != "gcuffd" or got["collections_peak_kib"] <= got["rss_peak_kib"], got
    assert system != "gcuffd" or head["rung"] not in ("move", "rwp") or got["out_pages"] > 0, got
for system in sys.argv[2].split(","):
    got = seen["stops", system]
    for mode in ("declared", "undeclared", "safepoint"):
        stop, halt, pause = ([got[f"{what}_{mode}_{figure}_us"] for figure in ("p50", "max")] for what in ("stop", "halt", "pause"))
        known = system == "gcuffd" or system == "libgc" and mode != "safepoint"
        assert 0 < stop[0] <= stop[1] if known else stop == [None, None], (system, mode, got)
        assert 0 < halt[0] <= halt[1] if known else halt == [None, None], (system, mode, got)
        assert pause == [None, None] if mode == "safepoint" and system != "gcuffd" else 0 <= pause[0] <= pause[1], (system, mode, got)
    assert got["poll_loop_ns"] > 0 if system == "gcuffd" else got["poll_ns"] is None, (system, got)
track = {"first_write_ns", "arm_ns", "scan_clean_ns", "scan_dirty_ns"}
for system in set(sys.argv[2].split(",")) & {"gcuffd"} | {"raw", "mprotect"}:
    got = seen["track", system] if ("track", system) in seen else {}
    assert not got.get("first_write_ns") or track <= set(got) and all(got[m] > 0 for m in track), (system, got)
assert seen["track", "mprotect"]["first_write_ns"] > 0, seen["track", "mprotect"]
if "gcuffd" in sys.argv[2]:
    assert head["rung"] in ("stop", "async", "move", "rwp"), head
PY
echo "PASS: $systems"
