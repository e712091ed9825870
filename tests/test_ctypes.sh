#!/bin/sh
# SPDX-License-Identifier: MIT
#
# test_ctypes.sh - the library loaded at run time into a large program, by python3's ctypes: heaps work, and
# malloc stays the program's own.
set -eu
python=/usr/bin/python3
lib=${top_builddir:-.}/.libs/libgcuffd.so
[ -x $python ] || { echo "no python3 here"; exit 77; }
[ -f "$lib" ] || { echo "no shared library was built"; exit 77; }
[ -z "${GU_SANITIZE:-}" ] || { echo "a library with a sanitizer can't be loaded late"; exit 77; }

"$python" - "$lib" <<'END'
import ctypes
import sys
import threading

libc = ctypes.CDLL(None, use_errno=True)
malloc_before = ctypes.cast(libc.malloc, ctypes.c_void_p).value
gc = ctypes.CDLL(sys.argv[1], use_errno=True)
p = ctypes.c_void_p
gc.gcuffd_alloc.restype = p
gc.gcuffd_alloc.argtypes = [p, ctypes.c_size_t]
gc.gcuffd_collect.argtypes = gc.gcuffd_heap_destroy.argtypes = [p]
gc.gcuffd_free.argtypes = [p, p]
gc.gcuffd_root_add.argtypes = [p, p, ctypes.c_size_t]
gc.gcuffd_object_find.argtypes = [p, p, p]
gc.gcuffd_version.restype = ctypes.c_char_p


def ok(result):
    assert result == 0, result


def use(heap):
    ok(gc.gcuffd_thread_attach())
    root = (ctypes.c_void_p * 100)()
    ok(gc.gcuffd_root_add(heap, ctypes.addressof(root), ctypes.sizeof(root)))
    for i in range(20000):
        at = gc.gcuffd_alloc(heap, 100 + i % 1000)
        ctypes.memset(at, i % 100, 100)
        if i % 200 == 0:
            root[i // 200] = at
    ok(gc.gcuffd_collect(heap))
    for i in range(100):
        assert ctypes.string_at(root[i], 100) == bytes([i * 200 % 100]) * 100, i
    ok(gc.gcuffd_free(heap, root[0]))
    root[0] = None
    ok(gc.gcuffd_root_remove(ctypes.c_void_p(heap), ctypes.c_void_p(ctypes.addressof(root))))
    ok(gc.gcuffd_thread_detach())


assert gc.gcuffd_version().decode().count(".") == 2
assert ctypes.cast(libc.malloc, ctypes.c_void_p).value == malloc_before
ok(gc.gcuffd_thread_attach())
for _ in range(3):
    heap = p()
    ok(gc.gcuffd_heap_create(None, ctypes.byref(heap)))
    threads = [threading.Thread(target=use, args=(heap.value,)) for _ in range(3)]
    for t in threads:
        t.start()
    use(heap.value)
    for t in threads:
        t.join()
    libc.malloc.restype = p
    of_malloc = libc.malloc(ctypes.c_size_t(100))
    out = (ctypes.c_void_p * 8)()
    assert gc.gcuffd_object_find(heap, of_malloc, ctypes.addressof(out)) == -2
    libc.free(p(of_malloc))
    ok(gc.gcuffd_heap_destroy(heap))
print("ok")
END
