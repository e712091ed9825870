/* SPDX-License-Identifier: MIT */
/* test_maps.c - /proc/self/maps: invented ones, cut anywhere; and the real one, while others map. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <sys/stat.h>

#include "base/check.h"
#include "fake_os.h"
#include "sys/maps.h"
#include "test.h"
#include "text.h"

static void invent(const char *contents) { text_invent("/proc/thread-self/maps", contents, 0); }

struct list {
	struct gu_map map[64];
	unsigned count, limit;
};

static bool add(void *data, const struct gu_map *map)
{
	struct list *list = data;
	ck_assert_uint_lt(list->count, GU_ARRAY_LEN(list->map));
	list->map[list->count++] = *map;
	return list->count != list->limit;
}

static const char sample[] =
	"00400000-00452000 r-xp 00001000 08:02 173521      /usr/bin/a b\n"
	"00e03000-00e24000 rw-p 00000000 00:00 0           [heap]\n"
	"7f0000000000-7f0000001000 ---s 00000000 00:05 99 \n"
	"7ffd00000000-7ffd00021000 rwxp 00000000 00:00 0 \n"
	"ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]\n";

static void check_sample(const struct list *list)
{
	const struct gu_map *map = list->map;
	ck_assert_uint_eq(list->count, 5);
	ck_assert_uint_eq(map[0].start, 0x400000);
	ck_assert_uint_eq(map[0].end, 0x452000);
	ck_assert_uint_eq(map[0].prot, PROT_READ | PROT_EXEC);
	ck_assert_uint_eq(map[0].offset, 0x1000);
	ck_assert_uint_eq(map[0].dev, (uint64_t)8 << 32 | 2);
	ck_assert_uint_eq(map[0].inode, 173521);
	ck_assert_str_eq(map[0].name, "/usr/bin/a b");
	ck_assert(!map[0].shared);
	ck_assert_str_eq(map[1].name, "[heap]");
	ck_assert_uint_eq(map[1].dev, 0);
	ck_assert(map[2].shared);
	ck_assert_uint_eq(map[2].prot, PROT_NONE);
	ck_assert_uint_eq(map[2].inode, 99);
	ck_assert_str_eq(map[2].name, "");
	ck_assert_uint_eq(map[3].prot, PROT_READ | PROT_WRITE | PROT_EXEC);
	ck_assert_str_eq(map[3].name, "");
	ck_assert_uint_eq(map[4].end, 0xffffffffff601000);
}

START_TEST(reads_may_end_anywhere)
{
	invent(sample);
	for (text_step = 0; text_step < sizeof(sample); text_step++) {
		struct list list = {.count = 0};
		interrupts = text_step % 3;
		ck_ok(gu_maps_each(add, &list));
		check_sample(&list);
	}
	fake_remove();
}
END_TEST

START_TEST(names_of_any_length_are_cut_off)
{
	static char lines[20000];
	struct list list = {.count = 0};
	char *p = lines + sprintf(lines, "1000-2000 r--p 00000000 00:01 7 /");
	memset(p, 'x', 15000);
	strcpy(p + 15000, "\n2000-3000 r--p 00000000 00:01 7 /short\n");
	invent(lines);
	ck_ok(gu_maps_each(add, &list));
	ck_assert_uint_eq(list.count, 2);
	ck_assert_uint_eq(strlen(list.map[0].name), GU_MAP_NAME - 1);
	ck_assert_str_eq(list.map[1].name, "/short");
	fake_remove();
}
END_TEST

/* .assume.maps.order: the second has merged with the first meanwhile, the third is wholly known. */
START_TEST(nothing_is_reported_twice)
{
	struct list list = {.count = 0};
	invent("1000-3000 rw-p 00000000 00:00 0 \n"
	       "1000-5000 rw-p 00002000 00:01 9 /f\n"
	       "4000-5000 rw-p 00000000 00:00 0 \n"
	       "5000-6000 rw-p 00000000 00:00 0 \n");
	ck_ok(gu_maps_each(add, &list));
	ck_assert_uint_eq(list.count, 3);
	ck_assert_uint_eq(list.map[1].start, 0x3000);
	ck_assert_uint_eq(list.map[1].end, 0x5000);
	ck_assert_uint_eq(list.map[1].offset, 0x4000);
	ck_assert_uint_eq(list.map[2].start, 0x5000);
	fake_remove();
}
END_TEST

START_TEST(errors_come_back)
{
	struct list list = {.count = 0};
	struct gu_map map;
	invent(sample);
	text_error = -EIO;
	ck_assert_int_eq(gu_maps_each(add, &list), -EIO);
	ck_assert_uint_eq(list.count, 5);
	ck_assert_int_eq(gu_maps_find(1, &map), -ENOENT);
	fake_install();
	fake_fail(FAKE_OPEN, 1, -EMFILE);
	ck_assert_int_eq(gu_maps_each(add, &list), -EMFILE);
	fake_fail(FAKE_READ, 1, -EIO);
	ck_assert_int_eq(gu_maps_find(0, &map), -EIO);
	fake_remove();
}
END_TEST

START_TEST(visit_can_end_the_walk)
{
	struct list list = {.limit = 2};
	invent(sample);
	text_error = -EIO;
	ck_ok(gu_maps_each(add, &list));
	ck_assert_uint_eq(list.count, 2);
	fake_remove();
}
END_TEST

START_TEST(finds_by_address)
{
	struct gu_map map;
	invent(sample);
	ck_ok(gu_maps_find(0x400000, &map));
	ck_ok(gu_maps_find(0x451fff, &map));
	ck_assert_uint_eq(map.start, 0x400000);
	ck_assert_int_eq(gu_maps_find(0x452000, &map), -ENOENT);
	ck_assert_int_eq(gu_maps_find(0x3fffff, &map), -ENOENT);
	ck_assert_int_eq(gu_maps_find(UINTPTR_MAX, &map), -ENOENT);
	ck_ok(gu_maps_find(0xe03000, &map));
	ck_assert_str_eq(map.name, "[heap]");
	fake_remove();
}
END_TEST

/* ---- the real one ---- */

START_TEST(real_mappings)
{
	struct gu_map map;
	int local = 0;
	ck_ok(gu_maps_find((uintptr_t)&local, &map));
	ck_assert_uint_eq(map.prot & (PROT_READ | PROT_WRITE), PROT_READ | PROT_WRITE);
	ck_ok(gu_maps_find((uintptr_t)real_mappings_fn, &map));
	ck_assert(map.prot & PROT_EXEC);
	ck_assert_uint_ne(map.inode, 0);
	char *p = mmap(NULL, 3 * GU_PAGE, PROT_READ, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ck_ok(gu_maps_find((uintptr_t)p + GU_PAGE, &map));
	ck_assert(map.shared);
	ck_assert_uint_eq(map.prot, PROT_READ);
	ck_ok(munmap(p, 3 * GU_PAGE));
	ck_assert_int_eq(gu_maps_find((uintptr_t)p + GU_PAGE, &map), -ENOENT);
}
END_TEST

START_TEST(files_are_told_by_device_and_inode)
{
	struct stat st;
	struct gu_map map;
	int fd = open("/proc/self/exe", O_RDONLY);
	ck_ok(fstat(fd, &st));
	void *p = mmap(NULL, GU_PAGE, PROT_READ, MAP_PRIVATE, fd, 0);
	ck_ok(gu_maps_find((uintptr_t)p, &map));
	ck_assert_uint_eq(map.inode, st.st_ino);
	ck_assert_uint_eq(map.offset, 0);
	ck_assert_uint_ne(map.dev, 0);
	munmap(p, GU_PAGE);
	close(fd);
}
END_TEST

static int done; /* atomic */

/* Splits, merges and drops mappings all the time. */
static void *churn(void *unused)
{
	(void)unused;
	while (!__atomic_load_n(&done, __ATOMIC_RELAXED)) {
		char *p = mmap(NULL, 16 * GU_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		for (int i = 1; i < 16; i += 2)
			mprotect(p + (size_t)i * GU_PAGE, GU_PAGE, PROT_READ);
		mprotect(p, 16 * GU_PAGE, PROT_NONE);
		munmap(p, 16 * GU_PAGE);
	}
	return NULL;
}

struct rising {
	uintptr_t end, wanted;
	bool found;
};

static bool must_rise(void *data, const struct gu_map *map)
{
	struct rising *r = data;
	ck_assert_uint_le(r->end, map->start);
	ck_assert_uint_lt(map->start, map->end);
	r->found |= map->start <= r->wanted && r->wanted < map->end;
	r->end = map->end;
	return true;
}

START_TEST(what_is_mapped_all_along_is_found_while_others_map)
{
	pthread_t thread;
	char *p = mmap(NULL, GU_PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint64_t end = test_now_ns() + check_seconds() * 200000000ull;
	__atomic_store_n(&done, 0, __ATOMIC_RELAXED);
	ck_ok(pthread_create(&thread, NULL, churn, NULL));
	do {
		struct rising r = {0, (uintptr_t)p, false};
		ck_ok(gu_maps_each(must_rise, &r));
		ck_assert(r.found);
	} while (test_now_ns() < end);
	__atomic_store_n(&done, 1, __ATOMIC_RELAXED);
	ck_ok(pthread_join(thread, NULL));
	munmap(p, GU_PAGE);
}
END_TEST

static Suite *make_suite(void)
{
	Suite *suite = suite_create("maps");
	TCase *invented = test_case(suite, "invented"), *real = test_case(suite, "real");
	tcase_add_test(invented, reads_may_end_anywhere);
	tcase_add_test(invented, names_of_any_length_are_cut_off);
	tcase_add_test(invented, nothing_is_reported_twice);
	tcase_add_test(invented, errors_come_back);
	tcase_add_test(invented, visit_can_end_the_walk);
	tcase_add_test(invented, finds_by_address);
	tcase_add_test(real, real_mappings);
	tcase_add_test(real, files_are_told_by_device_and_inode);
	tcase_add_test(real, what_is_mapped_all_along_is_found_while_others_map);
	return suite;
}

TEST_MAIN(make_suite)
