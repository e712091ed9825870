/* SPDX-License-Identifier: MIT */
/*
 * gcuffd.h - a concurrent garbage-collected heap whose barriers are page-table bits.
 *
 * Conventions of every call:
 *  - sizes and alignments are in bytes, times in nanoseconds unless the name says otherwise;
 *  - functions that return int return 0 or -errno and leave errno alone; functions that return
 *    memory return NULL and set errno;
 *  - every call is safe from any thread unless its comment says otherwise; calls that take or
 *    return objects need an attached thread (gcuffd_thread_attach);
 *  - an object stays alive while a pointer into it is in a register or on the stack of an
 *    attached thread, on a registered stack (gcuffd_stack_register), in TLS, in the data segment of a loaded module, in a range given to
 *    gcuffd_root_add, or in a live object that is not atomic; and while it is pinned (gcuffd_pin).
 *
 * Linux 4.x and later; concurrent marking needs userfaultfd's async write-protect (6.7).
 */
#ifndef GCUFFD_H
#define GCUFFD_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define GCUFFD_VERSION_MAJOR 0
#define GCUFFD_VERSION_MINOR 1
#define GCUFFD_VERSION "0.1.0"

#if defined(__GNUC__)
#define GCUFFD_API __attribute__((visibility("default")))
#else
#define GCUFFD_API
#endif

struct gcuffd_heap;
struct gcuffd_arena;
struct gcuffd_type;
struct gcuffd_stack;

/* The version of the library that is loaded, as "major.minor.patch". */
GCUFFD_API const char *gcuffd_version(void);

/* ---- options ---------------------------------------------------------------------------- */

/* What the kernel is asked to do for the collector; doc/architecture.md describes each. */
enum gcuffd_rung {
	GCUFFD_RUNG_AUTO = 0, /* the highest that this process can have; under valgrind: stop */
	GCUFFD_RUNG_STOP,     /* no userfaultfd: marking happens with the world stopped */
	GCUFFD_RUNG_ASYNC,    /* async write-protect finds what was written (6.7) */
	GCUFFD_RUNG_MOVE,     /* and pages can be moved out (6.8, privileged userfaultfd) */
	GCUFFD_RUNG_RWP,      /* and accesses can be seen (7.3) */
};

/* How an object is scanned. */
enum gcuffd_kind {
	GCUFFD_CONSERVATIVE = 0, /* every aligned word may be a pointer */
	GCUFFD_ATOMIC,           /* holds no pointers, never scanned */
	GCUFFD_TYPED,            /* a bitmap says which words hold pointers */
};

/* gcuffd_options.flags */
#define GCUFFD_NO_INTERIOR   0x1u /* a word in an object counts only if it points at an object's base */
#define GCUFFD_VERIFY        0x2u /* check every cycle with an independent trace (slow) */
#define GCUFFD_NO_HUGE       0x4u /* never ask for transparent huge pages */
#define GCUFFD_PROCESS_ROOTS 0x8u /* all private writable memory and every thread of the process is a root */
#define GCUFFD_NO_PACING     0x10u /* collect only on gcuffd_collect() and before ENOMEM */
#define GCUFFD_PAST_END      0x20u /* a pointer one past the end keeps its object alive (costs a byte each) */
#define GCUFFD_COLD          0x40u /* pages may be taken out to a store, and come back on first touch: gcuffd_cool() (6.8) */
#define GCUFFD_COLD_USER_FAULTS 0x80u /* with GCUFFD_COLD, without privilege too: a system call on what is out gives EFAULT */

/* gcuffd_options.debug: faults planted on purpose, which GCUFFD_VERIFY must find */
#define GCUFFD_PLANT_DROP_CARD   0x1u
#define GCUFFD_PLANT_SKIP_TLS    0x2u
#define GCUFFD_PLANT_EARLY_SWEEP 0x4u
#define GCUFFD_PLANT_SKIP_ROOT   0x8u
#define GCUFFD_PLANT_SKIP_FINALIZER 0x10u

enum gcuffd_codec { GCUFFD_CODEC_LZ4 = 0, GCUFFD_CODEC_ZSTD };
/* What makes a heap with GCUFFD_COLD take pages out by itself, beside resident_target. */
enum gcuffd_cool_mode {
	GCUFFD_COOL_TARGET = 0, /* nothing else */
	GCUFFD_COOL_CGROUP,     /* the memory limit of the process's cgroup, or of one around it: the heap keeps what others leave it of fifteen sixteenths */
	GCUFFD_COOL_PRESSURE,   /* threads that wait for memory (PSI; of the process's cgroup in version 2, else of the machine) */
	GCUFFD_COOL_IDLE,       /* time: what is not touched for cool_after_ms goes */
};
enum gcuffd_log_level { GCUFFD_LOG_ERROR = 0, GCUFFD_LOG_WARN, GCUFFD_LOG_INFO, GCUFFD_LOG_DEBUG };

/*
 * Set up by gcuffd_options_init(); zero in a field means its default. New fields are added at the
 * end: size tells the library how much of the struct the program knows.
 */
struct gcuffd_options {
	size_t size;
	size_t reservation;       /* address space; rounded up to 2 MiB. Default: 8 x RAM, at least 16 GiB; under valgrind 16 GiB */
	size_t soft_limit;        /* resident bytes, metadata included, above which cycles get frequent; 0: none */
	size_t hard_limit;        /* resident bytes, metadata included, as accounted; 0: none. Least: 2 MiB */
	size_t start_size;        /* no collection and no thread before the heap holds this. Default 4 MiB */
	enum gcuffd_rung rung;    /* AUTO, or the very rung demanded (-EOPNOTSUPP if it is not to be had) */
	unsigned mark_threads;    /* threads that may mark. Default: one per processor, at most 8 */
	unsigned flags;
	unsigned debug;
	unsigned growth_percent;  /* heap growth over live data between cycles. Default 100 */
	unsigned decay_ms;        /* how long freed memory may stay resident. Default 1000 */
	unsigned stop_timeout_ms; /* a cycle is put off if a thread does not stop in this time. Default 1000 */
	enum gcuffd_log_level log_level; /* Default WARN */
	void (*log)(void *data, int level, const char *line); /* Default: a line on log_fd */
	void *log_data;
	unsigned without;         /* optimisations that are left out: bits that gcuffd_options_parse() makes of names */
	size_t resident_target;   /* with GCUFFD_COLD: pages that are not touched are taken out while the heap takes more than this. 0: only on request */
	size_t store_memory;      /* compressed memory for pages taken out, at most. Default: a quarter of RAM; of resident_target an eighth with a file, else three quarters */
	size_t store_file;        /* bytes of a file for what exceeds that; 0: no file */
	const char *store_path;   /* directory of that file, which has no name there, or a name for it. Default /var/tmp. As long as the heap */
	enum gcuffd_codec store_codec;
	enum gcuffd_cool_mode cool_mode;
	unsigned cool_after_ms;    /* GCUFFD_COOL_IDLE: for so long a page is tried before it goes, at least 50. Default 60000 */
	unsigned pressure_percent; /* GCUFFD_COOL_PRESSURE: of time that threads may wait for memory. Default 1 */
	unsigned fault_percent;    /* of a processor's time that waiting for pages may cost before fewer are taken out. Default 5 */
	unsigned hang_seconds;     /* with GCUFFD_COLD: when a page, or a call on the store's file, has been waited for so long, a line says so and the process aborts. gcuffd_options_init() sets 60; 0: never */
	unsigned resolver_threads; /* with GCUFFD_COLD: threads that bring back pages that are touched, at most 16. Several where that waits for a disk. Default 1 */
	unsigned finalizer_thread; /* 1: finalizers run on a thread of the library's, which the first gcuffd_finalizer_set() starts. Default 0 */
	unsigned log_fd;           /* without log: the descriptor that lines go to, the program's of this number at that time, open for writing: of a file, a pipe, a terminal or, since Linux 5.6, a socket. Default 2, stderr */
};

/* Fills *options with defaults and its size. */
GCUFFD_API void gcuffd_options_init(struct gcuffd_options *options);

/*
 * Applies "name=value,name=value": names are the fields above and the flags in lower case
 * (verify=1, huge=0, ...), sizes take K, M, G or T, rung takes auto, stop, async, move or rwp, cool_mode takes target, cgroup,
 * pressure or idle, without takes names with + between (an unknown one is told to the log, with those that there are).
 * -EINVAL for an unknown name or a bad value, with *bad (if not NULL) at the offending text;
 * then *options is unchanged.
 */
GCUFFD_API int gcuffd_options_parse(struct gcuffd_options *options, const char *text, const char **bad);

/* ---- heaps ------------------------------------------------------------------------------ */

/*
 * Makes a heap. options may be NULL. -EINVAL: an option out of range (a line in the log says
 * which); -ENOMEM: the reservation does not fit the address space (RLIMIT_AS); -EOPNOTSUPP: the
 * rung or the cool_mode demanded is not to be had here; -EMFILE: 64 heaps exist, or no descriptor is left for
 * what the cool_mode goes by.
 */
GCUFFD_API int gcuffd_heap_create(const struct gcuffd_options *options, struct gcuffd_heap **heap);

/*
 * Ends a heap: its threads, its memory, its arenas and types. No other thread may use it during
 * or after the call. Objects of it that other heaps or the program point to are gone; finalizers don't run. -EBUSY in a handler
 * of fork(), and in a finalizer on the heap's thread.
 */
GCUFFD_API int gcuffd_heap_destroy(struct gcuffd_heap *heap);

/* ---- threads ---------------------------------------------------------------------------- */

/*
 * Attaches the calling thread as a mutator of every heap of the process; nests. Unblocks the stop
 * signal in this thread. -ENOMEM, or -errno if its stack can't be found.
 */
GCUFFD_API int gcuffd_thread_attach(void);

/*
 * The signal that stops threads: constant once there is a heap. A thread that blocks it puts cycles off.
 * In gdb: handle SIG63 nostop noprint pass.
 */
GCUFFD_API int gcuffd_stop_signal(void);

/*
 * Another one, before the first heap is made or thread attached, for programs that use that themselves. -EBUSY: it is too late; -EINVAL: no signal, or SIGKILL,
 * SIGSTOP, one that the processor raises, or one of the C library's own.
 */
GCUFFD_API int gcuffd_stop_signal_set(int sig);

/*
 * How the calling thread is stopped, from the next stop on. Safepoints are calls of gcuffd_safepoint(), and allocation now and then; the other two of them
 * need these to be frequent: of EITHER a thread that has come to none within half a millisecond is signalled, SAFEPOINT keeps all waiting
 * until it comes to one (a thread that sleeps instead, and not in gcuffd_blocking_enter(), puts the cycle off). -EINVAL, also if not attached.
 */
enum gcuffd_stop_by {
	GCUFFD_STOP_BY_SIGNAL = 0, /* at any instruction */
	GCUFFD_STOP_BY_EITHER,
	GCUFFD_STOP_BY_SAFEPOINT,  /* the stop signal may be blocked */
};
GCUFFD_API int gcuffd_thread_stop_by(enum gcuffd_stop_by how);

/*
 * The thread stops here if it is asked to: a load and a branch. Any thread; nothing happens in one that is not attached, or blocking. The other two are for it
 * alone, and for what compilers emit instead.
 */
GCUFFD_API extern uint32_t gcuffd_stop_asked;
GCUFFD_API void gcuffd_safepoint_obey(void);
#if defined(__GNUC__)
static inline void gcuffd_safepoint(void)
{
	if (__builtin_expect(__atomic_load_n(&gcuffd_stop_asked, __ATOMIC_RELAXED) != 0, 0))
		gcuffd_safepoint_obey();
}
#endif

/* Undoes one attach; a thread that ends while attached is detached. -EINVAL if not attached. */
GCUFFD_API int gcuffd_thread_detach(void);

/*
 * Between the two the thread, and handlers of signals in it, must not touch any heap's objects, and no stop waits for it: for
 * long system calls. leave() waits for the end of a stop under way. -EINVAL if not attached,
 * -EBUSY / -EINVAL if already / not blocking.
 */
GCUFFD_API int gcuffd_blocking_enter(void);
GCUFFD_API int gcuffd_blocking_leave(void);

/* ---- coroutines -------------------------------------------------------------------------- */

/*
 * For programs that switch between stacks by themselves. [low, low + length), without a guard, is a root until it is unregistered, and stays
 * mapped so long: all of it until it is switched from or given a pointer, from then on what is in use. Any thread may run on it, one at a
 * time. Constant time. -EINVAL: less than 256 bytes, or memory of a heap; -EFAULT: its ends can't be read; -ENOMEM.
 */
GCUFFD_API int gcuffd_stack_register(void *low, size_t length, struct gcuffd_stack **stack);

/* No thread may be on it, nor switch to it any more. -EINVAL: it is not registered; -EBUSY: a thread is on it, or told that it will be. */
GCUFFD_API int gcuffd_stack_unregister(struct gcuffd_stack *stack);

/*
 * The calling thread is about to switch to this stack, or with NULL to the one that it was made with: called on the stack that it leaves, in the
 * function that switches or one that it returns to. Until it has switched it calls nothing that takes more than 512 bytes of stack, and no other thread
 * runs on either stack. A stop may come at any instruction. What the stack in use and the registers hold that calls preserve stays alive while the stack
 * is left. Takes no lock. -EINVAL: not attached, or the stack is not registered; -EBUSY between gcuffd_blocking_enter() and gcuffd_blocking_leave().
 */
GCUFFD_API int gcuffd_stack_switch(struct gcuffd_stack *to);

/*
 * A stack that no thread is on is in use from sp up: when it was left without gcuffd_stack_switch(), was set up by hand, or is done with (sp is its end).
 * The registers are forgotten. NULL: all of it is in use. -EINVAL: not registered, or sp is not in it; -EBUSY: the calling thread is on it.
 */
GCUFFD_API int gcuffd_stack_set_pointer(struct gcuffd_stack *stack, void *sp);

/* ---- objects ---------------------------------------------------------------------------- */

/*
 * A new object, zeroed, aligned to 16 (or to align, a power of two up to 2 MiB). Size 0 counts as
 * 1. NULL with ENOMEM at the hard limit, after collecting; EINVAL for a bad alignment; EPERM from
 * a thread that is not attached.
 */
GCUFFD_API void *gcuffd_alloc(struct gcuffd_heap *heap, size_t size);
GCUFFD_API void *gcuffd_alloc_atomic(struct gcuffd_heap *heap, size_t size);
GCUFFD_API void *gcuffd_alloc_aligned(struct gcuffd_heap *heap, size_t size, size_t align, enum gcuffd_kind kind);

/*
 * A description of where an object's pointers are: bit i of bitmap set means that word i (8 bytes)
 * holds a pointer to an object's base or interior, or NULL. The bitmap is copied. Types live as
 * long as their heap. -EINVAL for words == 0 or > 4096; -ENOSPC for more than 65535 types.
 */
GCUFFD_API int gcuffd_type_create(struct gcuffd_heap *heap, const uint64_t *bitmap, size_t words,
				  struct gcuffd_type **type);

/*
 * The same of an array: a head, which may have no word, then elements up to the object's end, whose pointers are all in the same places. The bitmap is that
 * of the head with one element behind it. -EINVAL for element == 0 or head + element > 4096 words.
 */
GCUFFD_API int gcuffd_type_create_array(struct gcuffd_heap *heap, const uint64_t *bitmap, size_t head, size_t element,
					struct gcuffd_type **type);

/* Words after the described ones hold no pointers, but in an array. EINVAL if size is less than what is described, of an array than its head. */
GCUFFD_API void *gcuffd_alloc_typed(struct gcuffd_heap *heap, const struct gcuffd_type *type, size_t size);

/*
 * As realloc(3): same kind and arena; what is added is zeroed. object NULL allocates a conservative
 * object; size 0 counts as 1. NULL with EINVAL for what is no object's base, EBUSY for a pinned object that would
 * have to move (reported in the log).
 */
GCUFFD_API void *gcuffd_realloc(struct gcuffd_heap *heap, void *object, size_t size);

/*
 * Frees at once what nobody points to any more; NULL is ignored. Never needed. -EINVAL if object
 * is no object's base, -EALREADY if it was freed before and its block is still there (else -EINVAL, or,
 * once its memory was handed out again, it frees the new object), -EBUSY if it is pinned; reported in the log with a stack.
 */
GCUFFD_API int gcuffd_free(struct gcuffd_heap *heap, void *object);

/* The object is alive up to here, though the compiler may need the pointer no more, or have made another one of it. No code. */
#if defined(__GNUC__)
static inline void gcuffd_keep_alive(const void *object) { __asm__ volatile("" : : "g"(object) : "memory"); }
#endif

struct gcuffd_object {
	void *base;
	size_t size; /* usable bytes */
	enum gcuffd_kind kind;
	struct gcuffd_arena *arena;
};

/* What pointer points into, in constant time. -ENOENT if that is no live object of this heap. */
GCUFFD_API int gcuffd_object_find(struct gcuffd_heap *heap, const void *pointer, struct gcuffd_object *object);

/* ---- roots ------------------------------------------------------------------------------ */

/*
 * Scans [start, start + length) conservatively in every cycle; the range is readable until it is
 * removed. start is rounded up and the end down to whole words. -EINVAL, -ENOMEM, -EEXIST.
 */
GCUFFD_API int gcuffd_root_add(struct gcuffd_heap *heap, const void *start, size_t length);
GCUFFD_API int gcuffd_root_remove(struct gcuffd_heap *heap, const void *start);

/* ---- pinned memory ---------------------------------------------------------------------- */

/*
 * To be called before the kernel or a device is given [start, start + size), a part of one live object, to write to by
 * addresses of its own, of which the page table shows nothing: registered buffers of io_uring, O_DIRECT, RDMA. Until
 * gcuffd_unpin() the object is alive and cannot be freed or moved, its pages count as written in each cycle, and stay in
 * place. Pins count: each is undone by one unpin with the same start and size, after the device is done; heaps end with
 * their pins. -EINVAL: size 0 or too large; -ENOENT: no live object of a heap has all of the range; -ENOSPC: a page has
 * 65535; -ENOMEM.
 */
GCUFFD_API int gcuffd_pin(const void *start, size_t size);
/* -ENOENT: not pinned with this start and size. */
GCUFFD_API int gcuffd_unpin(const void *start, size_t size);

/* ---- weak references -------------------------------------------------------------------- */

/*
 * A reference that does not keep its object alive, and is cleared when the object dies: by a cycle, before its memory can be used anew;
 * by gcuffd_free() or a gcuffd_realloc() that moves it; with its arena. The reference itself lives until it is destroyed, or its heap is,
 * and nothing of it is in an image. object: what an allocation returned. Attached threads. -ENOENT: no live object begins there;
 * -ENOMEM (32 bytes each, and 4 to 8 for an index; 67108864 of a heap); -EPERM: not attached. Any number for an object.
 */
struct gcuffd_weak;
GCUFFD_API int gcuffd_weak_create(struct gcuffd_heap *heap, const void *object, struct gcuffd_weak **weak);
/*
 * The same, but it is cleared only when the object's memory goes: it sees one that waits for its finalizer, or has had it. While a cycle
 * decides that, gcuffd_weak_get() of a dead object waits.
 */
GCUFFD_API int gcuffd_weak_create_long(struct gcuffd_heap *heap, const void *object, struct gcuffd_weak **weak);
/* Another object, or NULL. -EINVAL: no reference of the heap; and as above. */
GCUFFD_API int gcuffd_weak_set(struct gcuffd_heap *heap, struct gcuffd_weak *weak, const void *object);
/*
 * An ephemeron: value, a pointer to or into an object of the heap, or any other, is reachable as long as key is, as if key pointed to it; both are
 * cleared together. Chains and cycles of such die as soon as nothing else leads to their keys; a cycle looks at each once. Errors as above.
 */
GCUFFD_API int gcuffd_weak_bind(struct gcuffd_heap *heap, struct gcuffd_weak *weak, const void *key, const void *value);
/*
 * The object, alive from here on for as long as the caller has the pointer; NULL if it was cleared. No lock, and pages of the object that are
 * out stay out. NULL with EINVAL or EPERM, as above. In any thread at any time; to destroy the reference meanwhile is an error of the program.
 */
GCUFFD_API void *gcuffd_weak_get(struct gcuffd_heap *heap, const struct gcuffd_weak *weak);
/* The value, or NULL; *key, unless key is NULL, is the object that it was bound to together with it. Otherwise as gcuffd_weak_get(). */
GCUFFD_API void *gcuffd_weak_value(struct gcuffd_heap *heap, const struct gcuffd_weak *weak, void **key);
/* -EINVAL: no reference of the heap. */
GCUFFD_API int gcuffd_weak_destroy(struct gcuffd_heap *heap, struct gcuffd_weak *weak);

/* ---- finalizers ------------------------------------------------------------------------- */

typedef void gcuffd_finalizer_fn(void *object, void *data);

struct gcuffd_finalizer {
	void *object;
	gcuffd_finalizer_fn *fn;
	void *data;
};

#define GCUFFD_UNORDERED 0x1u /* gcuffd_finalizer_set() */

/*
 * fn(object, data) is to run, once, when nothing leads to object any more: what an allocation returned. Another one that it had is replaced. A cycle that
 * finds it dead clears references to it (gcuffd_weak_create), then puts it on the heap's queue, which keeps it and what it leads to alive until it is taken; from then
 * on it is an object like any other, without a finalizer, and lives as long as something leads to it. data, if it leads into the heap, is kept until then, and so must not
 * lead to the object. In order: nothing that the object leads to is put on the queue before it was taken and is gone, so rings of such objects never
 * are (gcuffd_heap_stats() counts them); an object that leads to itself alone is in none. GCUFFD_UNORDERED: it holds up no other. gcuffd_free(), a
 * gcuffd_realloc() that moves the object, the end of its arena or heap: it does not run. Nothing of it is in an image. Attached threads. -ENOENT: no live object begins there;
 * -ENOMEM (32 bytes each, and 4 for an index; 67108864 of a heap); -EINVAL; -EPERM: not attached; with finalizer_thread -errno: it can't be started.
 */
GCUFFD_API int gcuffd_finalizer_set(struct gcuffd_heap *heap, const void *object, gcuffd_finalizer_fn *fn, void *data, unsigned flags);
/* It has none any more; *was, unless was is NULL, is the one that it had. -ENOENT: none, or it is on the queue; -EPERM. */
GCUFFD_API int gcuffd_finalizer_clear(struct gcuffd_heap *heap, const void *object, struct gcuffd_finalizer *was);
/*
 * Takes the first of the queue without running it. The caller keeps object and data alive: *next is on an attached thread's stack, or another root.
 * -EAGAIN: the queue is empty; -EPERM.
 */
GCUFFD_API int gcuffd_finalizer_next(struct gcuffd_heap *heap, struct gcuffd_finalizer *next);
/* Runs at most max of the queue in the calling thread; *count, unless count is NULL, is how many. From a finalizer too. -EPERM. */
GCUFFD_API int gcuffd_finalizer_run(struct gcuffd_heap *heap, size_t max, size_t *count);
/* Waits until the queue is not empty, whoever empties it then. timeout_ms below 0: for ever. -ETIMEDOUT. */
GCUFFD_API int gcuffd_finalizer_wait(struct gcuffd_heap *heap, int timeout_ms);
/*
 * notify(data) is called whenever a cycle has put something on the queue; NULL: no more, and no call is under way. On a thread of the library, which has other
 * descriptors and blocks all signals: it may write to memory that is no object's, sem_post(), pthread_kill(); it may not wait, and calls nothing of this
 * library. -EBUSY in a handler of fork().
 */
GCUFFD_API int gcuffd_finalizer_notify(struct gcuffd_heap *heap, void (*notify)(void *data), void *data);

/* ---- arenas ----------------------------------------------------------------------------- */

/* name is copied, at most 31 bytes. -ENOMEM; -ENOSPC after 255 arenas. */
GCUFFD_API int gcuffd_arena_create(struct gcuffd_heap *heap, const char *name, struct gcuffd_arena **arena);

/* As gcuffd_alloc_aligned, in an arena of its own; align 0 means 16. */
GCUFFD_API void *gcuffd_arena_alloc(struct gcuffd_arena *arena, size_t size, size_t align, enum gcuffd_kind kind);
GCUFFD_API void *gcuffd_arena_alloc_typed(struct gcuffd_arena *arena, const struct gcuffd_type *type, size_t size);

/*
 * Frees all objects of the arena at once; no thread may use or allocate them meanwhile. destroy
 * also ends the arena. Both wait for a cycle under way. -EINVAL for a heap's own first arena; -EBUSY: an object is pinned.
 */
GCUFFD_API int gcuffd_arena_reset(struct gcuffd_arena *arena);
GCUFFD_API int gcuffd_arena_destroy(struct gcuffd_arena *arena);

struct gcuffd_arena_stats {
	size_t size;      /* set by the caller: sizeof */
	size_t active;    /* bytes in blocks and large objects, from jemalloc's statistics */
	size_t dirty;     /* freed bytes that are still resident */
	size_t retained;  /* freed bytes that went back to the OS and keep their addresses */
	size_t metadata;  /* jemalloc's own, outside the reservation */
	size_t blocks;
	size_t large_objects;
};

GCUFFD_API int gcuffd_arena_stats(struct gcuffd_arena *arena, struct gcuffd_arena_stats *stats);

/* ---- collection ------------------------------------------------------------------------- */

/*
 * Runs a whole cycle that starts after the call, and waits for its end. -ETIMEDOUT if a thread did
 * not stop in time and the cycle was put off; -EBUSY while collection is disabled, and in a handler of fork(), as for all calls that would wait for
 * the collector.
 */
GCUFFD_API int gcuffd_collect(struct gcuffd_heap *heap);

/*
 * Between the two no cycle of the heap runs; nests, and counts for all threads. disable() waits for the end of a cycle under way. Meanwhile the heap grows, and
 * allocation at the hard limit fails with ENOMEM at once. A cycle that became due runs after the last enable(). disable(): -EBUSY in a handler of fork();
 * enable(): -EINVAL if it is not disabled.
 */
GCUFFD_API int gcuffd_collection_disable(struct gcuffd_heap *heap);
GCUFFD_API int gcuffd_collection_enable(struct gcuffd_heap *heap);

/* Gives freed memory back to the OS now. */
GCUFFD_API int gcuffd_trim(struct gcuffd_heap *heap);

/* ---- cold memory ------------------------------------------------------------------------ */

/*
 * Takes the pages of [start, start + size) out to the store: whole pages of blocks that nobody allocates from. NULL: all of the
 * heap. They come back on first touch, by whomever. Returns when it is done; *taken (may be NULL) says how many pages were taken out.
 * -EOPNOTSUPP: the heap was made without GCUFFD_COLD, or is on a rung below move, or system calls could not touch what is out;
 * -ENOSPC: the store is full, -EIO: it can't be written, -ENOMEM: pages that could not be stored are in place.
 * Pinned pages, pages shared with a child and pages of hot arenas stay. Any thread; not from a signal handler.
 */
GCUFFD_API int gcuffd_cool(struct gcuffd_heap *heap, const void *start, size_t size, size_t *taken);
/* Brings them back. -EIO: a page could not be read and is poisoned: who touches it gets SIGBUS. -ENOMEM; -EOPNOTSUPP. */
GCUFFD_API int gcuffd_warm(struct gcuffd_heap *heap, const void *start, size_t size);
/* Whether pages of the arena may be taken out from now on; they may in the beginning. Those that are out stay so until touched. */
GCUFFD_API int gcuffd_arena_set_hot(struct gcuffd_arena *arena, int hot);

struct gcuffd_cold_stats {
	size_t size;               /* set by the caller: sizeof */
	uint64_t out_pages;        /* now */
	uint64_t evicted_pages;    /* taken out so far */
	uint64_t restored_pages;   /* brought back so far, by touch or by gcuffd_warm() */
	uint64_t collector_pages;  /* of these, because the collector touched them */
	uint64_t dropped_pages;    /* never brought back: all that was on them died */
	uint64_t bounced_pages;    /* touched on their way to the store */
	uint64_t busy_pages;       /* not taken out: shared or pinned by the kernel */
	uint64_t poisoned_pages;
	uint64_t summary_bytes;    /* now, in memory: where pages that are out point to */
	uint64_t store_pages;      /* now; of these one word over and over: */
	uint64_t store_same_pages;
	uint64_t store_memory_bytes;
	uint64_t store_file_bytes;
	uint64_t store_reads;      /* of the file */
	uint64_t store_write_errors;
	uint64_t store_read_errors;
	uint64_t ahead_pages;      /* brought back untouched, since touches went on in order up to there */
	uint64_t followed_pages;   /* of these, those that touches have passed: the rest may have come back for nothing */
	uint64_t early_pages;      /* brought back by gcuffd_order_prefetch() */
	uint64_t touched_pages;    /* brought back by a touch after they were taken out, from the store or on their way to it */
	uint64_t refaulted_pages;  /* of these, from the store */
	uint64_t touch_ns;         /* that it took to bring them, sleeping and waking of threads not included */
	uint64_t target_bytes;     /* now; UINT64_MAX: none */
	uint64_t probation_ns;     /* now: for how long a page must not be touched before it goes to the store */
	uint64_t backoffs;         /* how often that was doubled because too many pages came back */
	uint64_t peeked_pages;     /* read in compressed memory by the collector so far: a summary would be large, and is not kept where there is no file */
	uint64_t watched_regions;  /* of 2 MiB, that stayed in place while the kernel told of accesses (rung rwp), each time one was */
	uint64_t accessed_pages;   /* found to be in use in this way: they were not taken out */
	/* restored_pages by cause: these and collector_pages, ahead_pages and early_pages are all of them */
	uint64_t read_pages;       /* a read, by the program or by the kernel for it, which nobody tells apart */
	uint64_t write_pages;      /* a write, likewise */
	uint64_t warmed_pages;     /* gcuffd_warm() */
	uint64_t exempted_pages;   /* their memory was marked to be kept out of dumps or children */
	uint64_t undone_pages;     /* gcuffd_cool() had taken them out, and the store did not take them */
	/* restored_pages by where they were */
	uint64_t from_park_pages;  /* on their way to the store */
	uint64_t from_store_pages;
	uint64_t from_image_pages; /* gcuffd_heap_load() */
	uint64_t at_once_pages;    /* besides those: filled all at once, in a child or of an image, where nobody can be told of touches */
	/* pages that were to be taken out, and left; each time. The first four are busy_pages */
	uint64_t left_pinned_pages;   /* gcuffd_pin() while it was about to be moved */
	uint64_t left_shared_pages;   /* with a child, or pinned by the kernel */
	uint64_t left_locked_pages;   /* mlock(2) */
	uint64_t left_failed_pages;   /* another error of the kernel's */
	uint64_t left_touched_pages;  /* it had come back meanwhile */
	uint64_t left_exempt_pages;   /* the memory is marked to be kept out of dumps or children */
	uint64_t left_no_room_pages;  /* in the store */
	uint64_t left_unstored_pages; /* an error of the store's */
	uint64_t unread_summaries; /* what is known of a page was not to be read in the store's file: the collector looked at the page itself */
};

/* -EINVAL: size. Any thread. */
GCUFFD_API int gcuffd_cold_stats(struct gcuffd_heap *heap, struct gcuffd_cold_stats *stats);

#define GCUFFD_AGES 8

/* Bytes, in pages of 4 KiB. A page's age is the time since a touch of it was last seen, or since when it is known not to be touched. */
struct gcuffd_working_set {
	size_t size;              /* set by the caller: sizeof */
	uint64_t resident_bytes;  /* of pages in place */
	uint64_t out_bytes;       /* of pages that are out */
	uint64_t touched_bytes;   /* known to have been touched within the time asked for, or passed over because they are touched often */
	uint64_t untouched_bytes; /* known not to have been */
	uint64_t estimate_bytes;  /* touched, and the same share of those of which nothing is known; of all if nothing is known of any */
	uint64_t refaulted_pages; /* brought back from the store by a touch, since the arena was made */
	uint64_t oldest_ns;       /* the age of the oldest page that is out; 0: there is none */
	uint64_t age_bytes[GCUFFD_AGES]; /* younger than 1 s, 4 s, 16 s, 64 s, ... (four times as much each), the last: all others. Where an age is known */
};

/*
 * What the heap has found out about the use of an arena's pages (NULL: of all the heap's) in the last window_ms, by taking pages out and seeing
 * which come back: so it knows nothing of a heap that takes no pages out. Takes time with the number of pages. -EINVAL: size;
 * -EOPNOTSUPP: the heap was made without GCUFFD_COLD. Any thread.
 */
GCUFFD_API int gcuffd_working_set(struct gcuffd_heap *heap, struct gcuffd_arena *arena, unsigned window_ms, struct gcuffd_working_set *set);

/*
 * Records from now on in which order pages that were out come back by touch, up to 1048576 pages. -EBUSY: that is under way; -EOPNOTSUPP;
 * -ENOMEM. Any thread.
 */
GCUFFD_API int gcuffd_order_begin(struct gcuffd_heap *heap);
/* Ends it: *count pages, the first max of them by their offsets in the heap's reservation. -EINVAL: nothing is recorded. */
GCUFFD_API int gcuffd_order_end(struct gcuffd_heap *heap, uint64_t *offsets, size_t max, size_t *count);
/*
 * Has these pages, as far as they are out, brought back in this order, and returns. That ends early where the heap takes more than
 * its target (gcuffd_cold_stats()). -EBUSY: an earlier call's are not all back; -EINVAL: too many; -EOPNOTSUPP; -ENOMEM. Any thread.
 */
GCUFFD_API int gcuffd_order_prefetch(struct gcuffd_heap *heap, const uint64_t *offsets, size_t count);

/* ---- images: a heap in a file -------------------------------------------------------------- */

/* Names are at most 63 bytes, each used once in its list. */
struct gcuffd_named {
	const char *name;
	const void *object; /* of the heap, or NULL */
};

/* Memory outside of the heap that objects may point into: a table of functions, constant data, ... */
struct gcuffd_external {
	const char *name;
	const void *start;
	size_t length;
};

struct gcuffd_image_options {
	size_t size; /* sizeof */
	const struct gcuffd_named *roots; /* gcuffd_heap_save() */
	size_t nroots;
	const struct gcuffd_external *externals;
	size_t nexternals;
};

/*
 * Writes the heap as it is at one moment to the file at path, which is replaced when all is written, or not at all (path.tmp-PID-N may be left
 * by a process that dies). Mutators run on, but for a stop of a few ms at that moment; where pages can't be tracked (rung stop), for all of it. What the named
 * roots don't reach is left out; where there are none a collection comes first, and all objects stay. No collection runs meanwhile, nor does fork(). Conservative words that lead into any mapping of the process but the heap count as
 * pointers out of it. options may be NULL. -EXDEV: a pointer out of the heap into no external (the log says where); -EINVAL: options, or a root
 * that is no object; -EIO: a page could not be brought back; -ETIMEDOUT: a thread did not stop; -ENOMEM; or what writing said.
 */
GCUFFD_API int gcuffd_heap_save(struct gcuffd_heap *heap, const char *path, const struct gcuffd_image_options *options);

/*
 * A heap from an image, at its addresses: pages are brought in on first touch, where the rung is move or rwp and system calls can do so too; else
 * all are read at once (a line in the log says so). The file may be replaced or removed meanwhile, not written to. Both options may be NULL; those of the
 * heap are as for gcuffd_heap_create(), but that GCUFFD_COLD is on, and reservation, GCUFFD_NO_INTERIOR and GCUFFD_PAST_END are the image's; NULL: limits, pacing,
 * cooling and flags are those of the heap that was saved, but GCUFFD_VERIFY, and store_memory where there was no resident_target.
 * Externals are found by name, and what points into those that have moved is corrected. Loaded objects are of the heap's first arena; their addresses are not used
 * for others once they died. -EINVAL: options, no image, or one of another machine or version; -EBADMSG: it is cut off or damaged; -EEXIST: its
 * addresses are taken; -ENOENT: no such file, or an external is missing or too small; -ENOMEM, or as gcuffd_heap_create() and open(2). The log says
 * which. A page that turns out damaged later is poisoned: who touches it gets SIGBUS.
 */
GCUFFD_API int gcuffd_heap_load(const char *path, const struct gcuffd_image_options *image, const struct gcuffd_options *options,
				struct gcuffd_heap **heap);

/* An object that was named when the heap was saved; it is alive as long as the heap. NULL with ENOENT: there is no such name (errno 0: it was NULL). */
GCUFFD_API void *gcuffd_image_root(struct gcuffd_heap *heap, const char *name);

#define GCUFFD_STATS_VERSION 1
#define GCUFFD_ROUNDS 8

/* Why a cycle ran. */
enum gcuffd_reason {
	GCUFFD_REASON_NONE = 0,   /* none has run */
	GCUFFD_REASON_ALLOCATION, /* so much was allocated */
	GCUFFD_REASON_ASKED,      /* gcuffd_collect() */
	GCUFFD_REASON_NO_MEMORY,  /* allocation would have failed */
	GCUFFD_REASON_SAVE,       /* gcuffd_heap_save() without roots begins with one */
};

/* Times in ns, sizes in bytes. "last" fields are of the last finished cycle, the rest are sums. */
struct gcuffd_stats {
	size_t size;       /* set by the caller: sizeof */
	uint32_t version;  /* set by the library: GCUFFD_STATS_VERSION */
	uint32_t rung;     /* enum gcuffd_rung in use */
	uint64_t cycles;
	uint64_t cycles_put_off;   /* a thread did not stop in time */
	uint64_t verify_failures;
	uint64_t live_bytes;       /* found by the last cycle */
	uint64_t resident_bytes;   /* of the heap and its metadata, as accounted */
	uint64_t metadata_bytes;
	uint64_t allocated_bytes;  /* since the heap was made, by blocks and large objects taken */
	uint64_t freed_bytes;      /* by sweeping */
	uint64_t stall_ns;         /* mutators waiting for memory */
	uint64_t gc_cpu_ns;        /* CPU time of the collector's threads */
	uint64_t stop_max_ns;      /* longest stop so far */
	uint64_t stop_total_ns;
	uint64_t remark_words_max; /* most words read by one remark */
	uint64_t last_stop1_ns;
	uint64_t last_stop2_ns;
	uint64_t last_arm_ns;
	uint64_t last_mark_ns;
	uint64_t last_preclean_ns;
	uint64_t last_sweep_ns;
	uint64_t last_marked_bytes;         /* in all */
	uint64_t last_marked_in_stop_bytes; /* of these, inside a stop */
	uint64_t last_freed_bytes;
	uint64_t last_pages_scanned;
	uint64_t last_dirty_pages;          /* found by precleaning, all rounds */
	uint64_t last_remark_dirty_pages;
	uint64_t last_remark_words;         /* words read in the remark: dirty pages, stacks, current blocks */
	uint64_t last_remark_stack_words;   /* of these, on stacks and in registers */
	uint64_t last_remark_block_words;   /* of these, in current blocks */
	uint64_t last_preclean_rounds;
	uint64_t dirty_pages;        /* found by precleaning, in all cycles */
	uint64_t remark_dirty_pages; /* found by remarks, in all cycles; pinned pages count in each */
	uint64_t pins;               /* now, by gcuffd_pin() */
	uint64_t pinned_bytes;       /* of the pages that they are on */
	uint64_t last_round_dirty_pages[GCUFFD_ROUNDS]; /* last_dirty_pages by round of precleaning */
	uint64_t last_reason;        /* enum gcuffd_reason */
	uint64_t last_rss_bytes;     /* of the whole process, as the kernel said at the cycle's end; 0: it did not say */
	uint64_t disabled;           /* now: gcuffd_collection_disable() without enable */
	uint64_t finalizers;         /* now: set, their objects not found dead */
	uint64_t finalizers_ready;   /* now: on the queue */
	uint64_t finalizers_taken;   /* from the queue, so far: run, or handed out */
	uint64_t finalizers_waiting; /* of the first: objects that the last cycle found dead, but for others with ordered finalizers that lead to them. If it stays while none is ready they are in rings */
	uint64_t last_finalize_ns;   /* beside mutators: finding out which, and marking what they need */
};

GCUFFD_API int gcuffd_heap_stats(struct gcuffd_heap *heap, struct gcuffd_stats *stats);

/* ---- events ----------------------------------------------------------------------------- */

enum gcuffd_event_kind {
	GCUFFD_EVENT_CYCLE_BEGIN = 1,
	GCUFFD_EVENT_PHASE_BEGIN,
	GCUFFD_EVENT_PHASE_END,
	GCUFFD_EVENT_ROUND,     /* of precleaning is over */
	GCUFFD_EVENT_STOP,      /* is over: of a cycle, a walk, ... */
	GCUFFD_EVENT_CYCLE_END,
	GCUFFD_EVENT_STALL,     /* of a thread is over, which waited for the collector */
};

/* Of a cycle, in their order. In one that marks in a stop those from FIRST_STOP to PRECLEAN are left out; one that fails goes on with SWEEP, which sweeps nothing, or has none. */
enum gcuffd_phase {
	GCUFFD_PHASE_ARM = 0, /* marks are cleared, pages protected */
	GCUFFD_PHASE_FIRST_STOP,
	GCUFFD_PHASE_MARK,
	GCUFFD_PHASE_PRECLEAN,
	GCUFFD_PHASE_SECOND_STOP,
	GCUFFD_PHASE_FINALIZE,
	GCUFFD_PHASE_SWEEP,
};

/* Why a thread waited. */
enum gcuffd_stall {
	GCUFFD_STALL_SLOWED = 0, /* it, or others, allocate faster than the cycle, or a save, goes on */
	GCUFFD_STALL_OUTRUN,     /* so much so that it waited until the cycle freed something */
	GCUFFD_STALL_NO_MEMORY,  /* there was no memory until a cycle freed some */
	GCUFFD_STALL_ASKED,      /* gcuffd_collect() */
};

/* What has no meaning in an event is 0. Times in ns of CLOCK_MONOTONIC. A later version may have more kinds, and more fields at the end. */
struct gcuffd_event {
	size_t size;             /* of the struct, as the library knows it */
	enum gcuffd_event_kind kind;
	enum gcuffd_phase phase; /* PHASE_BEGIN, PHASE_END */
	struct gcuffd_heap *heap;
	uint64_t cycle;          /* its number, as in the log if it is finished; 0: the event is of none, or a STALL */
	uint64_t lost;           /* how many events before this one there was no room for */
	uint64_t lost_ns;        /* how long the stalls among them took */
	uint64_t begin_ns;       /* of what is over; PHASE_BEGIN, CYCLE_BEGIN, ROUND: now. A STOP begins when threads are asked to */
	uint64_t end_ns;         /* now */
	uint64_t stopped_ns;     /* STOP: when all threads had; 0: it was given up */
	uint32_t threads;        /* STOP: how many, those that block included; the same */
	int error;               /* STOP, CYCLE_END: 0; or -errno: it was given up, or put off */
	int thread;              /* STALL: its number */
	enum gcuffd_stall stall; /* STALL */
	enum gcuffd_reason reason; /* CYCLE_BEGIN, CYCLE_END */
	uint64_t pages;          /* ROUND: dirty ones */
	uint64_t freed_bytes;    /* CYCLE_END; 0 with an error. So is the next */
	uint64_t live_bytes;
};

/*
 * Called by the heap's collector thread while no stop of the heap is under way: a STOP is told when it is over, and what happens from the first ROUND on when it is
 * known what is dead, so that no stop gets longer by it. The program runs meanwhile, and the cycle does not. The thread has other descriptors than the program, a
 * stack of 128 KiB and all signals blocked. The handler may write to memory that is no object's, sem_post(), pthread_kill(), read clocks. It waits for no other
 * thread, so takes no lock under which one allocates from a heap, calls this library or forks; it touches no object, does not fork, leaves by return, and calls
 * nothing of this library but gcuffd_event_handler_set() for the event's heap.
 */
typedef void gcuffd_event_fn(void *data, const struct gcuffd_event *event);

/*
 * fn(data, event) is called for each event of the heap from here on; NULL: no more. Waits for the end of a cycle under way, or of gcuffd_heap_save(): fn is told
 * whole cycles, and no call of the former one is under way when this returns. From the handler itself it does not wait. What is not told yet never is.
 * All events of a cycle were told when gcuffd_collect() returns, stalls of threads soon after. A child of fork() has the handler, too.
 * -EBUSY in a handler of fork(); -EDEADLK in the handler of another heap; -ENOMEM.
 */
GCUFFD_API int gcuffd_event_handler_set(struct gcuffd_heap *heap, gcuffd_event_fn *fn, void *data);

/* ---- looking into a heap ---------------------------------------------------------------- */

#define GCUFFD_WALKED_COLD 0x1u /* a page of it is out: reading it would bring it back */

/* An object, as gcuffd_heap_walk() tells of it. */
struct gcuffd_walked {
	void *base;
	size_t size; /* usable bytes */
	enum gcuffd_kind kind;
	unsigned flags;                  /* GCUFFD_WALKED_COLD */
	const struct gcuffd_type *type;  /* NULL: it has none */
	struct gcuffd_arena *arena;
};

/* 0 to go on. */
typedef int gcuffd_walk_fn(void *data, const struct gcuffd_walked *object);

/*
 * Calls visit for each object of the heap, garbage that no cycle has swept included, in no order, while all threads are stopped. No page is brought back.
 * visit runs on a thread of the library, with all signals blocked and a stack of 128 KiB. It may read objects, but those that are cold, and write to memory
 * that is no object's. It may not wait for another thread, so takes no lock that one may hold (malloc() does), and calls nothing of this library. The first
 * that it gives and that is not 0 ends the walk, and is given. -ETIMEDOUT: a thread did not stop; -EBUSY as gcuffd_collect(); -EINVAL: visit is NULL;
 * -errno: the heap's threads could not be started.
 */
GCUFFD_API int gcuffd_heap_walk(struct gcuffd_heap *heap, gcuffd_walk_fn *visit, void *data);

/* Objects of one arena, kind and size class. */
struct gcuffd_count {
	struct gcuffd_arena *arena;
	enum gcuffd_kind kind;
	size_t size; /* of a cell; of objects above 16 KiB the power of two that they do not exceed */
	uint64_t objects;
	uint64_t bytes; /* usable */
};

/*
 * Counts the objects of the heap, garbage that no cycle has swept included, by arena, kind and size class, while mutators run: what they allocate or free
 * meanwhile may be counted or not. Stops nobody, reads no object. At most max counts, of those that are not 0; *count is how many there are. -ENOMEM.
 */
GCUFFD_API int gcuffd_heap_histogram(struct gcuffd_heap *heap, struct gcuffd_count *counts, size_t max, size_t *count);

/* Where a path to an object begins. */
enum gcuffd_root_kind {
	GCUFFD_ROOT_STACK = 1, /* of thread tid; 0: a registered one that no thread is on, with its registers */
	GCUFFD_ROOT_REGISTERS, /* of thread tid, as they were when it began to block */
	GCUFFD_ROOT_TLS,       /* of thread tid, or its descriptor */
	GCUFFD_ROOT_MODULE,    /* the data segment of the module name */
	GCUFFD_ROOT_RANGE,     /* gcuffd_root_add() */
	GCUFFD_ROOT_PIN,       /* gcuffd_pin() */
	GCUFFD_ROOT_IMAGE,     /* a named object of the image that the heap was loaded from */
	GCUFFD_ROOT_HEAP,      /* another heap, with GCUFFD_PROCESS_ROOTS */
	GCUFFD_ROOT_MEMORY,    /* other memory of the process, likewise; name is the mapping's */
	GCUFFD_ROOT_FINALIZER, /* gcuffd_finalizer_set(): its data, or an object that waits for it to run */
};

struct gcuffd_root {
	size_t size;      /* set by the caller: sizeof */
	enum gcuffd_root_kind kind;
	int tid;
	const void *word; /* where the pointer lies; not to be read for ROOT_PIN, ROOT_REGISTERS, ROOT_FINALIZER */
	char name[64];    /* cut off if longer */
};

#define GCUFFD_STEP_VALUE SIZE_MAX /* none of its words: the next one is the value of a weak reference to it (gcuffd_weak_bind()) */

/* An object on the way. */
struct gcuffd_step {
	void *object;
	size_t size; /* usable bytes */
	enum gcuffd_kind kind;
	const struct gcuffd_type *type; /* NULL: it has none */
	struct gcuffd_arena *arena;
	size_t word; /* the index of its word that leads to the next one, or GCUFFD_STEP_VALUE; 0 in the last */
};

/*
 * Why the object that pointer leads into is alive: a shortest path to it from a root, as the collector sees them, found by a trace while all threads are
 * stopped. *root says where it begins, steps[0] is the object that the root leads to, the last one the object itself; *count is how many there are, of
 * which the first max are stored. What the calling thread has on its stack, in registers and, but for the main thread, in TLS counts only if there
 * is no other path, since pointer is there. Pages that are out are read where they are, and not brought back. root and steps may not be objects of the heap.
 * Takes 16 bytes for each object that is reached, and a bit for each cell. -ENOENT: nothing leads there, or it is no object; -ENOMEM; -ETIMEDOUT: a thread
 * did not stop; -EINVAL: root->size; -EBUSY as gcuffd_collect().
 */
GCUFFD_API int gcuffd_why_alive(struct gcuffd_heap *heap, const void *pointer, struct gcuffd_root *root, struct gcuffd_step *steps, size_t max,
				size_t *count);

/* Pages, in reports. */
struct gcuffd_run {
	void *start, *end; /* pages from start to before end; 4096 bytes each, or whole huge pages of hugetlb */
};

/* ---- memory that is filled, or noticed, on first touch ------------------------------------ */

struct gcuffd_lazy;
struct gcuffd_touch;

/* gcuffd_lazy_options.flags */
#define GCUFFD_LAZY_SIGBUS     0x1u /* no thread: a touch raises SIGBUS, whose handler calls gcuffd_lazy_resolve() */
#define GCUFFD_LAZY_USER_FAULTS 0x2u /* go without privilege too: then system calls on pages not yet filled give EFAULT */
#define GCUFFD_LAZY_WATCHABLE  0x4u /* gcuffd_watch_begin() takes it, for writes: to be filled is not to be written (6.7) */

/* size is sizeof this struct; zero in another field means its default. */
struct gcuffd_lazy_options {
	size_t size;
	unsigned flags;
	unsigned threads; /* that resolve faults; 1 (default) to 8 */
	unsigned spin_us; /* most that a thread spins before it sleeps. Default 50 with several processors, else 0; 1: never */
	size_t around;    /* bytes filled at once, aligned to it: a power of two from 4 KiB to 1 MiB. Default 16 KiB */
	void *at;         /* where the memory has to be; default anywhere */
	const int *fds;   /* descriptors that the callback uses; its threads have a table of their own with these and no other */
	unsigned nfds;    /* up to 16 */
};

struct gcuffd_lazy_stats {
	size_t size;       /* set by the caller */
	uint64_t faults;   /* resolved */
	uint64_t reads;    /* messages of how many system calls these were */
	uint64_t sleeps;   /* of resolving threads */
	uint64_t filled;   /* pages */
	uint64_t poisoned; /* pages that could not be filled */
	uint64_t shortages; /* times that the kernel had no memory for a page; each is counted once, and ends when it has */
};

/*
 * Puts what belongs at [offset, offset + length) of the memory into *into; both are multiples of 4 KiB. 0 or -errno: then
 * the page touched is poisoned, and who touches it gets SIGBUS. On a thread of the library, several at once if threads > 1,
 * with all signals blocked and no descriptors but options.fds; it may not touch lazy memory.
 */
typedef int gcuffd_fill_fn(void *data, size_t offset, size_t length, void *into);

/*
 * Maps length bytes (rounded up to pages) whose pages are filled by fill when they are first touched, by the program or by
 * a system call. options may be NULL. -EINVAL; -EEXIST: at is taken; -EPERM: only faults of user code can be had, and that was
 * not asked for; -EOPNOTSUPP: no userfaultfd, or none with UFFDIO_POISON (6.6); -ENOMEM. A child of fork() does not have the memory.
 */
GCUFFD_API int gcuffd_lazy_map(size_t length, gcuffd_fill_fn *fill, void *data, const struct gcuffd_lazy_options *options,
			       struct gcuffd_lazy **lazy, void **start);
/* Nobody may touch the memory any more. Not from fill. 0. */
GCUFFD_API int gcuffd_lazy_unmap(struct gcuffd_lazy *lazy);
/*
 * With GCUFFD_LAZY_SIGBUS: fills the page of address. Async-signal-safe if fill is. -EFAULT: the address is not in this memory; or what
 * fill said.
 */
GCUFFD_API int gcuffd_lazy_resolve(struct gcuffd_lazy *lazy, void *address);
GCUFFD_API int gcuffd_lazy_stats(struct gcuffd_lazy *lazy, struct gcuffd_lazy_stats *stats);

/* The first touch of an armed page by thread, read or write; it goes on when this has returned. As gcuffd_fill_fn otherwise. */
typedef void gcuffd_touch_fn(void *data, void *page, int write, int thread);

/*
 * Arms every populated page of [start, start + length), both multiples of the page size, of private anonymous, shared or hugetlb
 * memory: touch is called at the first touch of each. -EOPNOTSUPP before Linux 7.3; -EPERM as gcuffd_lazy_map();
 * -EBUSY: another userfaultfd has the memory; -EINVAL.
 */
GCUFFD_API int gcuffd_touch_begin(void *start, size_t length, gcuffd_touch_fn *touch, void *data,
				  const struct gcuffd_lazy_options *options, struct gcuffd_touch **out);
/* Arms populated pages of the range again. -EINVAL: not within what was begun. Not from touch. */
GCUFFD_API int gcuffd_touch_arm(struct gcuffd_touch *touch, void *start, size_t length);

#define GCUFFD_TOUCH_ASYNC 0x1u /* first touches are noted, for gcuffd_touch_collect(), and cost no wait; touch is not called */

/*
 * Says what becomes of first touches: at first touch is called for each (flags 0). None gets lost when that changes. Not from
 * touch. -EINVAL; -EOPNOTSUPP: the kernel can't switch; -ESRCH: in a forked child.
 */
GCUFFD_API int gcuffd_touch_switch(struct gcuffd_touch *touch, unsigned flags);
/*
 * Reports populated pages of the range that were touched since they were armed, told or noted, by rising address, in at most max
 * runs, and arms exactly these again. *next is where to go on, NULL when done. After an error what is in runs was armed too. Not
 * from touch. -EINVAL; -EACCES: the process may not read its own page map; -ESRCH.
 */
GCUFFD_API int gcuffd_touch_collect(struct gcuffd_touch *touch, void *start, size_t length, struct gcuffd_run *runs, size_t max,
				    size_t *count, void **next);
/* The memory is as before. Not from touch. 0. */
GCUFFD_API int gcuffd_touch_end(struct gcuffd_touch *touch);

/* ---- watching memory -------------------------------------------------------------------- */

/*
 * Tells for any memory of the process which pages were written, or accessed, since a watcher last asked. Needs no heap
 * and no attached thread. Watchers of the same pages are independent. What is not known counts as written.
 * Calls that give -errno give -EBADF for good once the program has closed the descriptors behind them.
 */
struct gcuffd_watch;

/* gcuffd_watch_create(): mremap(2) takes the watch along; slows down unmapping and remapping of watched memory */
#define GCUFFD_WATCH_EVENTS   0x1u
/* gcuffd_watch_begin() */
#define GCUFFD_WATCH_ACCESSES 0x2u /* pages read or written (7.3); else pages written */
#define GCUFFD_WATCH_PRECISE  0x4u /* empty anonymous pages are armed too, for 8 bytes of page table each */

/* -EOPNOTSUPP: no userfaultfd with WP_ASYNC, or no PAGEMAP_SCAN here (6.7); -EINVAL, -ENOMEM, -EMFILE. */
GCUFFD_API int gcuffd_watch_create(unsigned flags, struct gcuffd_watch **watch);

/* Ends all of its watching. No other thread may use it during or after the call. */
GCUFFD_API int gcuffd_watch_destroy(struct gcuffd_watch *watch);

/*
 * Watches [start, start + length): whole pages, all mapped. Nothing in it counts as written yet. -EINVAL; -EEXIST:
 * this watcher has a page of it; -ENOENT: a page is not mapped; -EBUSY: another userfaultfd has it (a heap's, too; or lazy
 * memory's without GCUFFD_LAZY_WATCHABLE), or it is watched for the other purpose; -EOPNOTSUPP: no accesses here; -EPERM:
 * memory that can never be written.
 */
GCUFFD_API int gcuffd_watch_begin(struct gcuffd_watch *watch, const void *start, size_t length, unsigned flags);

/* Ends it for the watched pages of the range. -ENOENT if there are none. */
GCUFFD_API int gcuffd_watch_end(struct gcuffd_watch *watch, const void *start, size_t length);

/*
 * Reports watched pages of the range (length SIZE_MAX: to the end of memory) that were written since they were last
 * reported, by rising address, in at most max runs, and resets exactly these. *next is where to go on, NULL when done.
 * After an error what is in runs was reset too, and *next is where it happened. -ENOENT: nothing is watched there;
 * -EBUSY, -ESTALE: what is mapped there now is another userfaultfd's, can't be watched.
 */
GCUFFD_API int gcuffd_watch_collect(struct gcuffd_watch *watch, const void *start, size_t length,
				    struct gcuffd_run *runs, size_t max, size_t *count, void **next);

/* The same, and resets nothing. */
GCUFFD_API int gcuffd_watch_peek(struct gcuffd_watch *watch, const void *start, size_t length,
				 struct gcuffd_run *runs, size_t max, size_t *count, void **next);

/* Pages that a device may write without the page table's knowing: they count as written until unpinned, inclusive. */
GCUFFD_API int gcuffd_watch_pin(struct gcuffd_watch *watch, const void *start, size_t length);
GCUFFD_API int gcuffd_watch_unpin(struct gcuffd_watch *watch, const void *start, size_t length);

struct gcuffd_watch_stats {
	size_t size;             /* set by the caller: sizeof */
	uint64_t ranges;         /* now: pieces of one kind that are watched */
	uint64_t watched_bytes;
	uint64_t pinned_bytes;
	uint64_t table_bytes;    /* of page tables that empty pages may cost */
	uint64_t bitmap_bytes;   /* of address space; memory only where pages were written */
	uint64_t collects;       /* so far */
	uint64_t found_pages;    /* by this watcher's scans, for all watchers */
	uint64_t reported_pages;
	uint64_t replaced_bytes; /* found to be another mapping: all of it was written */
	uint64_t ended_bytes;    /* found to be unmapped */
	uint64_t moved_bytes;    /* followed after mremap(2) */
	uint64_t events;         /* of the process */
};

GCUFFD_API int gcuffd_watch_stats(struct gcuffd_watch *watch, struct gcuffd_watch_stats *stats);

#define GCUFFD_WRITE_WATCH_RESET 0x1u

/*
 * As GetWriteWatch and ResetWriteWatch of Windows: addresses of written pages of the region, *count at most, then as
 * many as there were. -ENOENT: a page of it is not watched; -EINVAL: it has pages of several sizes.
 */
GCUFFD_API int gcuffd_write_watch_get(struct gcuffd_watch *watch, unsigned flags, const void *base, size_t size,
				      void **addresses, size_t *count, size_t *granularity);
GCUFFD_API int gcuffd_write_watch_reset(struct gcuffd_watch *watch, const void *base, size_t size);

#ifdef __cplusplus
}
#endif

#endif
