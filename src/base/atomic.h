/* SPDX-License-Identifier: MIT */
/*
 * atomic.h - atomics whose memory order is in the name. Plain objects of 1 to 8 bytes; every use
 * that orders something says in a comment what it pairs with.
 */
#ifndef GU_BASE_ATOMIC_H
#define GU_BASE_ATOMIC_H

#define gu_load_relaxed(p) __atomic_load_n((p), __ATOMIC_RELAXED)
#define gu_load_acquire(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
#define gu_load_seqcst(p)  __atomic_load_n((p), __ATOMIC_SEQ_CST)
#define gu_store_relaxed(p, v) __atomic_store_n((p), (v), __ATOMIC_RELAXED)
#define gu_store_release(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
#define gu_store_seqcst(p, v)  __atomic_store_n((p), (v), __ATOMIC_SEQ_CST)
#define gu_add_relaxed(p, v) __atomic_fetch_add((p), (v), __ATOMIC_RELAXED)
#define gu_add_seqcst(p, v)  __atomic_fetch_add((p), (v), __ATOMIC_SEQ_CST)
#define gu_sub_relaxed(p, v) __atomic_fetch_sub((p), (v), __ATOMIC_RELAXED)
#define gu_sub_seqcst(p, v)  __atomic_fetch_sub((p), (v), __ATOMIC_SEQ_CST)
#define gu_or_relaxed(p, v)  __atomic_fetch_or((p), (v), __ATOMIC_RELAXED)
#define gu_or_seqcst(p, v)   __atomic_fetch_or((p), (v), __ATOMIC_SEQ_CST)
#define gu_and_relaxed(p, v) __atomic_fetch_and((p), (v), __ATOMIC_RELAXED)
#define gu_and_seqcst(p, v)  __atomic_fetch_and((p), (v), __ATOMIC_SEQ_CST)
#define gu_swap_acq_rel(p, v) __atomic_exchange_n((p), (v), __ATOMIC_ACQ_REL)
#define gu_swap_seqcst(p, v)  __atomic_exchange_n((p), (v), __ATOMIC_SEQ_CST)
#define gu_cas_seqcst(p, expected, v) \
	__atomic_compare_exchange_n((p), (expected), (v), 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)
#define gu_fence_seqcst() __atomic_thread_fence(__ATOMIC_SEQ_CST)
/* Orders this thread's accesses against its own signal handlers: costs no instruction. */
#define gu_fence_signal() __atomic_signal_fence(__ATOMIC_SEQ_CST)

static inline void gu_spin_hint(void)
{
#if defined(__x86_64__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ volatile("yield");
#endif
}

#endif
