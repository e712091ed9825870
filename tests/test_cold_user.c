/* SPDX-License-Identifier: MIT */
/* test_cold_user.c - cold memory without privilege: user code brings pages back, system calls get EFAULT, and only who asked for that has it. */
#include <fcntl.h>
#include <unistd.h>

#include "cold.h"
#include "sys/caps.h"

#define NODES 20000u

static int try_read(void *into)
{
	int fd = open("/dev/zero", O_RDONLY);
	must(fd >= 0, "errno %d", errno);
	int err = read(fd, into, 8) == 8 ? 0 : -errno;
	close(fd);
	return err;
}

static int use_as_nobody(void)
{
	heap = heap_make("cold=1,cold_user_faults=1,reservation=1G,verify=1");
	struct node *list = make_list(NODES, 0);
	char *room = gcuffd_alloc_atomic(heap, 1 << 20);
	memset(room, 7, 1 << 20);
	must_ok(gcuffd_collect(heap));
	must(cool_all() > NODES * sizeof(struct node) / GU_PAGE / 2, "%zu pages are out", (size_t)cold_of(heap).out_pages);
	must(is_out(room + 8192), "the room is not out");
	must(try_read(room + 8192) == -EFAULT, "a system call brought a page back");
	must_ok(gcuffd_collect(heap)); /* marks through what is out */
	must(is_out(room + 8192) && is_out(room + 65536), "a collection brought it back");
	must(room[8192] == 7, "%d", room[8192]);
	must_ok(try_read(room + 8192));
	must_ok(gcuffd_warm(heap, room, 1 << 20));
	must_ok(try_read(room + 65536));
	must(!room[8192] && !room[65536] && room[65536 + 8] == 7, "what was read is not there");
	check_list(list, NODES, 0);
	verified(heap);
	must_ok(gcuffd_heap_destroy(heap));
	return 0;
}

/* Objects of owner whose only pointers are in slots, of the cold heap: what is out can't be read, and nothing is swept then. */
static int slots_as_nobody(struct gcuffd_heap *owner, uint64_t **slots)
{
	for (int i = 0; i < 1000; i++) {
		slots[i] = gcuffd_alloc(owner, 100);
		must(slots[i] != NULL, "errno %d", errno);
		slots[i][0] = 0x600d;
	}
	must_ok(gcuffd_collect(owner));
	must(cool_all() > 0 && is_out(slots + 512), "no page is out");
	for (int i = 0; i < 3; i++)
		must(gcuffd_collect(owner) != 0, "a cycle that could not read all of its roots");
	must_ok(gcuffd_warm(heap, NULL, 0));
	must_ok(gcuffd_collect(owner));
	for (int i = 0; i < 20000; i++)
		must(gcuffd_alloc(owner, 100) != NULL, "errno %d", errno);
	for (int i = 0; i < 1000; i++)
		must(slots[i][0] == 0x600d, "object %d was taken", i);
	return 0;
}

static int roots_as_nobody(void)
{
	heap = heap_make("cold=1,cold_user_faults=1,reservation=1G");
	return slots_as_nobody(heap_make("process_roots=1,reservation=1G"), gcuffd_alloc(heap, 200000));
}

/* The same of a range that the program named. */
static int named_as_nobody(void)
{
	heap = heap_make("cold=1,cold_user_faults=1,reservation=1G");
	uint64_t **slots = gcuffd_alloc_atomic(heap, 200000);
	must_ok(gcuffd_root_add(heap, slots, 200000));
	return slots_as_nobody(heap, slots);
}

/* The same of a cycle that is wholly in a stop. */
static int stopped_as_nobody(void)
{
	heap = heap_make("cold=1,cold_user_faults=1,reservation=1G");
	return slots_as_nobody(heap_make("process_roots=1,reservation=1G,rung=stop"), gcuffd_alloc(heap, 200000));
}

/* Pages that there are not, in a region that had some out, are nothing to wait for. */
static int holes_as_nobody(void)
{
	heap = heap_make("cold=1,cold_user_faults=1,reservation=1G,verify=1");
	struct gcuffd_heap *all = heap_make("process_roots=1,reservation=1G");
	uint64_t *first = gcuffd_alloc_atomic(heap, 200000);
	memset(first, 7, 200000);
	must(cool_all() > 0, "no page is out");
	must_ok(gcuffd_warm(heap, NULL, 0));
	uint64_t **slots = gcuffd_alloc_atomic(heap, 200000);
	must_ok(gcuffd_root_add(heap, slots, 200000));
	slots[12000] = gcuffd_alloc(heap, 100);
	slots[12000][0] = 0x600d;
	must_ok(gcuffd_collect(heap));
	must_ok(gcuffd_collect(all));
	for (int i = 0; i < 20000; i++)
		must(gcuffd_alloc(heap, 100) != NULL, "errno %d", errno);
	must(slots[12000][0] == 0x600d, "the object was taken");
	return 0;
}

/* Privilege is given up after the heap was made, and before its collector opens a descriptor, which is for user code only then. */
static int roots_of_who_gave_up(void)
{
	heap = heap_make("cold=1,cold_user_faults=1,reservation=1G");
	struct gcuffd_heap *all = heap_make("process_roots=1,reservation=1G");
	become_nobody();
	return slots_as_nobody(all, gcuffd_alloc(heap, 200000));
}

/* Who did not ask for such faults has nothing taken out. */
static int unasked_of_who_gave_up(void)
{
	heap = heap_make("cold=1,reservation=1G");
	become_nobody();
	char *room = gcuffd_alloc_atomic(heap, 1 << 20);
	memset(room, 7, 1 << 20);
	must(gcuffd_cool(heap, NULL, 0, NULL) == -EOPNOTSUPP && !cold_of(heap).out_pages, "%zu pages are out", (size_t)cold_of(heap).out_pages);
	must_ok(try_read(room + 8192));
	return 0;
}

/* A child of one that gave it up with pages out has all of them back. */
static int child_of_who_gave_up(void)
{
	int status;
	heap = heap_make("cold=1,reservation=1G,verify=1");
	char *room = gcuffd_alloc_atomic(heap, 1 << 20);
	memset(room, 7, 1 << 20);
	must(cool_all() > 0 && is_out(room + 8192), "no page is out");
	become_nobody();
	pid_t pid = fork();
	if (pid == 0) {
		must_ok(try_read(room + 8192));
		must(room[65536] == 7 && !room[8192], "what was read is not there");
		must_ok(gcuffd_collect(heap));
		_exit(0);
	}
	must(waitpid(pid, &status, 0) == pid && status == 0, "status %#x", (unsigned)status);
	must(is_out(room + 8192), "the parent's page came back");
	must_ok(try_read(room + 8192)); /* its descriptor is from before */
	return 0;
}

static int look_as_nobody(void) { return gu_caps()->has_move && gu_caps()->user_mode_only ? 0 : 1; }

START_TEST(nobody_who_asked)
{
	if (ask_as_nobody(look_as_nobody) == 1)
		GU_SKIP("nobody has another userfaultfd here than one for user code, or no UFFDIO_MOVE");
	in_child_as_nobody(use_as_nobody);
	in_child_as_nobody(roots_as_nobody);
	in_child_as_nobody(named_as_nobody);
	in_child_as_nobody(stopped_as_nobody);
	in_child_as_nobody(holes_as_nobody);
}
END_TEST

START_TEST(who_gives_up_privilege)
{
	if (geteuid() || ask_as_nobody(look_as_nobody) == 1)
		GU_SKIP("no privilege to give up, or nobody has as much");
	ck_assert_int_eq(ask_child(roots_of_who_gave_up, false), 0);
	ck_assert_int_eq(ask_child(unasked_of_who_gave_up, false), 0);
	ck_assert_int_eq(ask_child(child_of_who_gave_up, false), 0);
}
END_TEST

/* Elsewhere the flag changes nothing: a system call brings pages back. */
START_TEST(with_privilege)
{
	cold_heap(",cold_user_faults=1");
	char *room = gcuffd_alloc_atomic(heap, 1 << 20);
	memset(room, 7, 1 << 20);
	ck_ok(gcuffd_collect(heap));
	cool_all();
	ck_assert(is_out(room + 8192));
	ck_ok(try_read(room + 8192));
	ck_assert(!room[8192] && room[8192 + 8] == 7);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

START_TEST(without_cold)
{
	struct gcuffd_heap *h;
	ck_assert_int_eq(heap_try(&h, "cold_user_faults=1"), -EINVAL);
	ck_assert_ptr_nonnull(strstr(core_log, "cold_user_faults: without cold=1"));
}
END_TEST

static Suite *make_suite(void)
{
	Suite *suite = suite_create("cold_user");
	tcase_add_test(test_case(suite, "nobody"), nobody_who_asked);
	tcase_add_test(test_case(suite, "privileged"), who_gives_up_privilege);
	tcase_add_loop_test(test_case(suite, "privileged"), with_privilege, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_test(test_case(suite, "refused"), without_cold);
	return suite;
}

TEST_MAIN(make_suite)
