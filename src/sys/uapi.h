/* SPDX-License-Identifier: MIT */
/*
 * uapi.h - the kernel's interface, written down here because installed headers may be older than the
 * running kernel: userfaultfd (with UFFDIO_MOVE, 6.8, and read-write protection, 7.3) and PAGEMAP_SCAN
 * (6.7). Names carry gu_ or GU_ so that the system's headers can be included too. That a thing is
 * defined here says nothing about the running kernel: sys/caps.h does.
 *
 * .assume.uapi.ioc: the generic _IOC encoding (x86-64, arm64, riscv64).
 */
#ifndef GU_SYS_UAPI_H
#define GU_SYS_UAPI_H

#include <stdint.h>
#include <sys/ioctl.h>

/* ---- opening ---- */
#define GU_UFFD_USER_MODE_ONLY 1 /* flag of userfaultfd(2), 5.11 */
#define GU_UFFD_DEVICE "/dev/userfaultfd"
#define GU_USERFAULTFD_IOC_NEW _IO(0xAA, 0x00) /* on the device, 6.1; the argument is open flags */
#define GU_UFFD_API 0xAAull

/* ---- gu_uffdio_api.features ---- */
#define GU_UFFD_FEATURE_PAGEFAULT_FLAG_WP   (1ull << 0)  /* 5.7 */
#define GU_UFFD_FEATURE_EVENT_FORK          (1ull << 1)  /* 4.11 */
#define GU_UFFD_FEATURE_EVENT_REMAP         (1ull << 2)
#define GU_UFFD_FEATURE_EVENT_REMOVE        (1ull << 3)
#define GU_UFFD_FEATURE_MISSING_HUGETLBFS   (1ull << 4)
#define GU_UFFD_FEATURE_MISSING_SHMEM       (1ull << 5)
#define GU_UFFD_FEATURE_EVENT_UNMAP         (1ull << 6)
#define GU_UFFD_FEATURE_SIGBUS              (1ull << 7)  /* 4.14 */
#define GU_UFFD_FEATURE_THREAD_ID           (1ull << 8)  /* 4.14 */
#define GU_UFFD_FEATURE_MINOR_HUGETLBFS     (1ull << 9)  /* 5.13 */
#define GU_UFFD_FEATURE_MINOR_SHMEM         (1ull << 10) /* 5.14 */
#define GU_UFFD_FEATURE_EXACT_ADDRESS       (1ull << 11) /* 5.18 */
#define GU_UFFD_FEATURE_WP_HUGETLBFS_SHMEM  (1ull << 12) /* 5.19 */
#define GU_UFFD_FEATURE_WP_UNPOPULATED      (1ull << 13) /* 6.4 */
#define GU_UFFD_FEATURE_POISON              (1ull << 14) /* 6.6 */
#define GU_UFFD_FEATURE_WP_ASYNC            (1ull << 15) /* 6.7 */
#define GU_UFFD_FEATURE_MOVE                (1ull << 16) /* 6.8 */
#define GU_UFFD_FEATURE_RWP                 (1ull << 17) /* 7.3 */
#define GU_UFFD_FEATURE_RWP_ASYNC           (1ull << 18) /* 7.3 */

/* ---- modes and flags ---- */
#define GU_UFFD_REGISTER_MISSING 1ull
#define GU_UFFD_REGISTER_WP      2ull
#define GU_UFFD_REGISTER_MINOR   4ull
#define GU_UFFD_REGISTER_RWP     8ull /* never together with WP on one mapping */

#define GU_UFFD_FAULT_WRITE 1ull
#define GU_UFFD_FAULT_WP    2ull
#define GU_UFFD_FAULT_MINOR 4ull
#define GU_UFFD_FAULT_RWP   8ull

#define GU_UFFD_EVENT_PAGEFAULT 0x12
#define GU_UFFD_EVENT_FORK      0x13
#define GU_UFFD_EVENT_REMAP     0x14
#define GU_UFFD_EVENT_REMOVE    0x15
#define GU_UFFD_EVENT_UNMAP     0x16

#define GU_UFFD_COPY_DONTWAKE         1ull
#define GU_UFFD_COPY_WP               2ull
#define GU_UFFD_ZEROPAGE_DONTWAKE     1ull
#define GU_UFFD_WRITEPROTECT_WP       1ull
#define GU_UFFD_WRITEPROTECT_DONTWAKE 2ull
#define GU_UFFD_CONTINUE_DONTWAKE     1ull
#define GU_UFFD_CONTINUE_WP           2ull
#define GU_UFFD_POISON_DONTWAKE       1ull
#define GU_UFFD_RWPROTECT_RWP         1ull
#define GU_UFFD_RWPROTECT_DONTWAKE    2ull
#define GU_UFFD_MOVE_DONTWAKE         1ull
#define GU_UFFD_MOVE_ALLOW_SRC_HOLES  2ull

/* ---- structs ---- */
struct gu_uffd_msg {
	uint8_t event;
	uint8_t reserved1;
	uint16_t reserved2;
	uint32_t reserved3;
	union {
		struct {
			uint64_t flags;
			uint64_t address;
			uint32_t ptid;
		} pagefault;
		struct {
			uint32_t ufd;
		} fork;
		struct {
			uint64_t from, to, len;
		} remap;
		struct {
			uint64_t start, end;
		} remove;
	} arg;
};

struct gu_uffdio_api {
	uint64_t api, features, ioctls;
};

struct gu_uffdio_range {
	uint64_t start, len;
};

struct gu_uffdio_register {
	struct gu_uffdio_range range;
	uint64_t mode, ioctls;
};

struct gu_uffdio_copy {
	uint64_t dst, src, len, mode;
	int64_t copy;
};

struct gu_uffdio_zeropage {
	struct gu_uffdio_range range;
	uint64_t mode;
	int64_t zeropage;
};

struct gu_uffdio_writeprotect {
	struct gu_uffdio_range range;
	uint64_t mode;
};

struct gu_uffdio_continue {
	struct gu_uffdio_range range;
	uint64_t mode;
	int64_t mapped;
};

struct gu_uffdio_poison {
	struct gu_uffdio_range range;
	uint64_t mode;
	int64_t updated;
};

struct gu_uffdio_move {
	uint64_t dst, src, len, mode;
	int64_t move;
};

struct gu_uffdio_rwprotect {
	struct gu_uffdio_range range;
	uint64_t mode;
};

struct gu_uffdio_set_mode {
	uint64_t enable, disable;
};

#define GU_UFFDIO_API          _IOWR(0xAA, 0x3F, struct gu_uffdio_api)
#define GU_UFFDIO_REGISTER     _IOWR(0xAA, 0x00, struct gu_uffdio_register)
#define GU_UFFDIO_UNREGISTER   _IOR(0xAA, 0x01, struct gu_uffdio_range)
#define GU_UFFDIO_WAKE         _IOR(0xAA, 0x02, struct gu_uffdio_range)
#define GU_UFFDIO_COPY         _IOWR(0xAA, 0x03, struct gu_uffdio_copy)
#define GU_UFFDIO_ZEROPAGE     _IOWR(0xAA, 0x04, struct gu_uffdio_zeropage)
#define GU_UFFDIO_MOVE         _IOWR(0xAA, 0x05, struct gu_uffdio_move)
#define GU_UFFDIO_WRITEPROTECT _IOWR(0xAA, 0x06, struct gu_uffdio_writeprotect)
#define GU_UFFDIO_CONTINUE     _IOWR(0xAA, 0x07, struct gu_uffdio_continue)
#define GU_UFFDIO_POISON       _IOWR(0xAA, 0x08, struct gu_uffdio_poison)
#define GU_UFFDIO_RWPROTECT    _IOWR(0xAA, 0x09, struct gu_uffdio_rwprotect)
#define GU_UFFDIO_SET_MODE     _IOW(0xAA, 0x0A, struct gu_uffdio_set_mode)

/* ---- PAGEMAP_SCAN ---- */
#define GU_PAGE_IS_WPALLOWED  (1ull << 0)
#define GU_PAGE_IS_WRITTEN    (1ull << 1)
#define GU_PAGE_IS_FILE       (1ull << 2)
#define GU_PAGE_IS_PRESENT    (1ull << 3)
#define GU_PAGE_IS_SWAPPED    (1ull << 4)
#define GU_PAGE_IS_PFNZERO    (1ull << 5)
#define GU_PAGE_IS_HUGE       (1ull << 6)
#define GU_PAGE_IS_SOFT_DIRTY (1ull << 7)
#define GU_PAGE_IS_GUARD      (1ull << 8)
#define GU_PAGE_IS_ACCESSED   (1ull << 9) /* 7.3, in RWP mappings; unknown bits are EINVAL */

#define GU_PM_SCAN_WP_MATCHING   1ull
#define GU_PM_SCAN_CHECK_WPASYNC 2ull

struct gu_page_region {
	uint64_t start, end, categories;
};

struct gu_pm_scan_arg {
	uint64_t size, flags, start, end;
	uint64_t walk_end; /* out: how far it came */
	uint64_t vec, vec_len, max_pages;
	uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};

#define GU_PAGEMAP_SCAN _IOWR('f', 16, struct gu_pm_scan_arg)

_Static_assert(sizeof(struct gu_uffd_msg) == 32, "uffd_msg");
_Static_assert(sizeof(struct gu_uffdio_api) == 24, "uffdio_api");
_Static_assert(sizeof(struct gu_uffdio_range) == 16, "uffdio_range");
_Static_assert(sizeof(struct gu_uffdio_register) == 32, "uffdio_register");
_Static_assert(sizeof(struct gu_uffdio_copy) == 40, "uffdio_copy");
_Static_assert(sizeof(struct gu_uffdio_zeropage) == 32, "uffdio_zeropage");
_Static_assert(sizeof(struct gu_uffdio_writeprotect) == 24, "uffdio_writeprotect");
_Static_assert(sizeof(struct gu_uffdio_continue) == 32, "uffdio_continue");
_Static_assert(sizeof(struct gu_uffdio_poison) == 32, "uffdio_poison");
_Static_assert(sizeof(struct gu_uffdio_move) == 40, "uffdio_move");
_Static_assert(sizeof(struct gu_uffdio_rwprotect) == 24, "uffdio_rwprotect");
_Static_assert(sizeof(struct gu_uffdio_set_mode) == 16, "uffdio_set_mode");
_Static_assert(sizeof(struct gu_page_region) == 24, "page_region");
_Static_assert(sizeof(struct gu_pm_scan_arg) == 96, "pm_scan_arg");

_Static_assert(GU_USERFAULTFD_IOC_NEW == 0xaa00, "IOC_NEW");
_Static_assert(GU_UFFDIO_API == 0xc018aa3f, "API");
_Static_assert(GU_UFFDIO_REGISTER == 0xc020aa00, "REGISTER");
_Static_assert(GU_UFFDIO_UNREGISTER == 0x8010aa01, "UNREGISTER");
_Static_assert(GU_UFFDIO_WAKE == 0x8010aa02, "WAKE");
_Static_assert(GU_UFFDIO_COPY == 0xc028aa03, "COPY");
_Static_assert(GU_UFFDIO_ZEROPAGE == 0xc020aa04, "ZEROPAGE");
_Static_assert(GU_UFFDIO_MOVE == 0xc028aa05, "MOVE");
_Static_assert(GU_UFFDIO_WRITEPROTECT == 0xc018aa06, "WRITEPROTECT");
_Static_assert(GU_UFFDIO_CONTINUE == 0xc020aa07, "CONTINUE");
_Static_assert(GU_UFFDIO_POISON == 0xc020aa08, "POISON");
_Static_assert(GU_UFFDIO_RWPROTECT == 0xc018aa09, "RWPROTECT");
_Static_assert(GU_UFFDIO_SET_MODE == 0x4010aa0a, "SET_MODE");
_Static_assert(GU_PAGEMAP_SCAN == 0xc0606610, "PAGEMAP_SCAN");

#endif
