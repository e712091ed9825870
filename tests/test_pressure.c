/* SPDX-License-Identifier: MIT */
/*
 * test_pressure.c - limits of memory cgroups and PSI, from files that are made up: both versions, groups in groups, parts of a hierarchy that are
 * mounted, what is missing and what fails. And from this machine's own.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/stat.h>

#include "base/check.h"
#include "core.h"
#include "fake_os.h"
#include "sys/pressure.h"

#define MIB ((uint64_t)1 << 20)

/* Files of a folder of our own stand for those that begin with / */
static char root[TEST_PATH];
static unsigned opened, closed;

static int open_below(const char *path, int flags)
{
	char real[2048];
	snprintf(real, sizeof(real), "%s%s", root, path);
	int fd = fake_check(FAKE_OPEN, 0, path);
	fd = fd ? fd : gu_os_linux.open(real, flags);
	opened += fd >= 0;
	return fd;
}

static int count_close(int fd)
{
	closed++;
	return gu_os_linux.close(fd);
}

static void begin(void)
{
	snprintf(root, sizeof(root), "%s/pressure.XXXXXX", test_folder);
	ck_assert_ptr_nonnull(mkdtemp(root));
	fake_install();
	fake_os.open = open_below;
	fake_os.close = count_close;
	opened = closed = 0;
}

static void end(void)
{
	char command[TEST_PATH + 16];
	ck_assert_uint_eq(opened, closed);
	fake_remove();
	snprintf(command, sizeof(command), "rm -r %s", root);
	ck_ok(system(command));
}

static void put(const char *path, const char *text)
{
	char real[2048];
	snprintf(real, sizeof(real), "%s%s", root, path);
	for (char *p = real + strlen(root) + 1; (p = strchr(p, '/')); *p++ = '/') {
		*p = 0;
		mkdir(real, 0700);
	}
	FILE *f = fopen(real, "w");
	ck_assert_msg(f != NULL, "%s: %d", real, errno);
	fputs(text, f);
	fclose(f);
}

static void put_group(const char *directory, const char *max, const char *high, const char *current, const char *stat)
{
	const char *const names[] = {"memory.max", "memory.high", "memory.current", "memory.stat"}, *const texts[] = {max, high, current, stat};
	char path[512];
	for (int i = 0; i < 4; i++) {
		snprintf(path, sizeof(path), "%s/%s", directory, names[i]);
		put(path, texts[i]);
	}
}

#define MOUNT2 "30 20 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"

static struct gu_cgroup_memory read_group(void)
{
	struct gu_cgroup c;
	struct gu_cgroup_memory m;
	ck_ok(gu_cgroup_open(&c));
	ck_ok(gu_cgroup_read(&c, &m));
	gu_cgroup_close(&c);
	return m;
}

/* The group with the least room counts, its own or one around it. */
START_TEST(version_2)
{
	begin();
	put("/proc/self/cgroup", "0::/a/b\n");
	put("/proc/self/mountinfo", "22 1 8:1 / / rw - ext4 /dev/sda rw\n" MOUNT2);
	put_group("/sys/fs/cgroup/a", "max\n", "max\n", "99\n", "inactive_file 1\n");
	put_group("/sys/fs/cgroup/a/b", "max\n", "max\n", "99\n", "");
	ck_assert(!read_group().limited);
	put_group("/sys/fs/cgroup/a/b", "104857600\n", "max\n", "73400320\n", "anon 5\nfile 8\nactive_file 20971520\ninactive_file 10485760\nslab 7\n");
	struct gu_cgroup_memory m = read_group();
	ck_assert(m.limited);
	ck_assert_uint_eq(m.limit, 100 * MIB);
	ck_assert_uint_eq(m.used, 50 * MIB); /* all of what is inactive, half of the active */
	put("/sys/fs/cgroup/a/b/memory.high", "83886080\n");
	ck_assert_uint_eq(read_group().limit, 80 * MIB);
	put_group("/sys/fs/cgroup/a", "209715200\n", "max\n", "204472320\n", "inactive_file 0\n");
	m = read_group();
	ck_assert_uint_eq(m.limit, 200 * MIB);
	ck_assert_uint_eq(m.used, 195 * MIB);
	end();
}
END_TEST

/* Limits are read anew from the descriptors that are open, in few calls. */
START_TEST(read_again)
{
	struct gu_cgroup c;
	struct gu_cgroup_memory m;
	begin();
	put("/proc/self/cgroup", "0::/a\n");
	put("/proc/self/mountinfo", MOUNT2);
	put_group("/sys/fs/cgroup/a", "max\n", "max\n", "4096\n", "");
	ck_ok(gu_cgroup_open(&c));
	for (int i = 1; i < 4; i++) {
		char text[32];
		snprintf(text, sizeof(text), "%d\n", i * 1048576);
		put("/sys/fs/cgroup/a/memory.max", text);
		fake_clear();
		ck_ok(gu_cgroup_read(&c, &m));
		ck_assert_uint_eq(m.limit, (uint64_t)i * MIB);
		ck_assert_uint_eq(fake.seen[FAKE_ANY], 4);
	}
	put("/sys/fs/cgroup/a/memory.max", "max\n");
	fake_clear();
	ck_ok(gu_cgroup_read(&c, &m));
	ck_assert(!m.limited);
	ck_assert_uint_eq(fake.seen[FAKE_ANY], 2);
	for (unsigned n = 1; n <= 2; n++) {
		fake_fail(FAKE_PREAD, n, -ENODEV);
		ck_assert_int_eq(gu_cgroup_read(&c, &m), -ENODEV);
		fake_fail(FAKE_PREAD, n, -EINTR);
		ck_ok(gu_cgroup_read(&c, &m));
	}
	gu_cgroup_close(&c);
	end();
}
END_TEST

#define MOUNT1 "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n38 31 0:35 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"

static void put_v1(const char *directory, const char *limit, const char *usage, const char *stat)
{
	const char *const names[] = {"memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat"}, *const texts[] = {limit, usage, stat};
	char path[512];
	for (int i = 0; i < 3; i++) {
		snprintf(path, sizeof(path), "%s/%s", directory, names[i]);
		put(path, texts[i]);
	}
}

START_TEST(version_1)
{
	begin();
	put("/proc/self/cgroup", "9:name=systemd:/x\n4:hugetlb,memory:/a:b\n1:cpu:/\n0::/x\n");
	put("/proc/self/mountinfo", MOUNT1 "40 31 0:37 / /sys/fs/cgroup/mem\\040ory rw shared:1 master:2 - cgroup cgroup rw,hugetlb,memory\n");
	put_v1("/sys/fs/cgroup/mem ory", "9223372036854771712\n", "99999999999\n", "");
	put_v1("/sys/fs/cgroup/mem ory/a:b", "104857600\n", "73400320\n", "inactive_file 1\ntotal_inactive_file 10485760\ntotal_active_file 20971520\n");
	struct gu_cgroup_memory m = read_group();
	ck_assert(m.limited);
	ck_assert_uint_eq(m.limit, 100 * MIB);
	ck_assert_uint_eq(m.used, 50 * MIB);
	end();
}
END_TEST

/* As in a container: of the hierarchy only its own part is mounted, under the names of the host or its own. */
START_TEST(parts)
{
	const char *const groups[] = {"0::/docker/1234\n", "0::/docker/1234/sub\n", "0::/\n", "0::/../other\n", "0::/docker/12345\n"};
	const char *const directories[] = {"", "/sub", "", "", ""};
	for (size_t i = 0; i < GU_ARRAY_LEN(groups); i++) {
		char path[128];
		begin();
		put("/proc/self/cgroup", groups[i]);
		put("/proc/self/mountinfo", "30 20 0:26 /docker/1234 /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n");
		snprintf(path, sizeof(path), "/sys/fs/cgroup%s", directories[i]);
		put_group(path, "1048576\n", "max\n", "4096\n", "");
		ck_assert_uint_eq(read_group().limit, MIB);
		end();
	}
}
END_TEST

/* Of several mounts, the one that shows the group; a part that does not, if there is no other. */
START_TEST(mounts)
{
	begin();
	put("/proc/self/cgroup", "0::/a/b\n");
	put("/proc/self/mountinfo", "29 20 0:26 /other /mnt rw - cgroup2 cgroup2 rw\n" MOUNT2);
	put_group("/mnt", "4194304\n", "max\n", "4096\n", "");
	put_group("/sys/fs/cgroup/a/b", "1048576\n", "max\n", "4096\n", "");
	ck_assert_uint_eq(read_group().limit, MIB);
	put("/proc/self/mountinfo", "29 20 0:26 /other /mnt rw - cgroup2 cgroup2 rw\n29 20 0:26 /another /another rw - cgroup2 cgroup2 rw\n");
	ck_assert_uint_eq(read_group().limit, 4 * MIB);
	end();
}
END_TEST

/* Groups around that may not be looked at are passed over. */
START_TEST(hidden)
{
	begin();
	put("/proc/self/cgroup", "0::/a/b\n");
	put("/proc/self/mountinfo", MOUNT2);
	put_group("/sys/fs/cgroup/a", "1048576\n", "max\n", "4096\n", "");
	put_group("/sys/fs/cgroup/a/b", "4194304\n", "max\n", "4096\n", "");
	ck_assert_uint_eq(read_group().limit, MIB);
	fake_fail_open("/sys/fs/cgroup/a/memory.stat", 1, -EACCES);
	ck_assert_uint_eq(read_group().limit, 4 * MIB);
	fake_clear();
	end();
}
END_TEST

/* No kernel says so, but nothing is taken for a number that is none. */
START_TEST(numbers)
{
	const char *const bad[] = {"", "\n", "nonsense\n", "-1\n"};
	struct gu_cgroup c;
	struct gu_cgroup_memory m;
	begin();
	put("/proc/self/cgroup", "0::/a\n");
	put("/proc/self/mountinfo", MOUNT2);
	put_group("/sys/fs/cgroup/a", "99999999999999999999999\n", "max\n", "4096\n", "");
	ck_assert(!read_group().limited);
	put("/sys/fs/cgroup/a/memory.max", "4611686018427387903\n");
	ck_assert(read_group().limited);
	ck_ok(gu_cgroup_open(&c));
	for (size_t i = 0; i < GU_ARRAY_LEN(bad); i++) {
		put("/sys/fs/cgroup/a/memory.max", bad[i]);
		ck_assert_int_eq(gu_cgroup_read(&c, &m), -EINVAL);
		put("/sys/fs/cgroup/a/memory.max", "1048576\n");
		put("/sys/fs/cgroup/a/memory.current", bad[i]);
		ck_assert_int_eq(gu_cgroup_read(&c, &m), -EINVAL);
		put("/sys/fs/cgroup/a/memory.current", "4096\n");
		ck_ok(gu_cgroup_read(&c, &m));
	}
	gu_cgroup_close(&c);
	end();
}
END_TEST

/* Lines longer than the buffer, and buffers that end anywhere. */
START_TEST(long_lines)
{
	static char text[70000];
	size_t len = 0;
	begin();
	for (int i = 0; i < 8; i++) {
		len += (size_t)sprintf(text + len, "50 20 0:40 / /mnt/%d rw - overlay overlay lowerdir=", i);
		memset(text + len, 'x', (size_t)i * 700 + 4000);
		len += (size_t)i * 700 + 4000;
		text[len++] = '\n';
	}
	strcpy(text + len, MOUNT2);
	put("/proc/self/cgroup", "0::/a\n");
	put("/proc/self/mountinfo", text);
	put_group("/sys/fs/cgroup/a", "1048576\n", "max\n", "4096\n", "");
	ck_assert_uint_eq(read_group().limit, MIB);
	memset(text, 'y', 3000);
	strcpy(text + 3000, "\n");
	memcpy(text, "0::/", 4);
	put("/proc/self/cgroup", text);
	struct gu_cgroup c;
	ck_assert_int_eq(gu_cgroup_open(&c), -EOPNOTSUPP); /* a path longer than any */
	end();
}
END_TEST

START_TEST(without_groups)
{
	struct gu_cgroup c;
	begin();
	ck_assert_int_eq(gu_cgroup_open(&c), -EOPNOTSUPP);
	put("/proc/self/cgroup", "1:cpu:/\n");
	ck_assert_int_eq(gu_cgroup_open(&c), -EOPNOTSUPP);
	put("/proc/self/cgroup", "0::/a\n");
	put("/proc/self/mountinfo", MOUNT1);
	ck_assert_int_eq(gu_cgroup_open(&c), -EOPNOTSUPP);
	put("/proc/self/mountinfo", MOUNT2);
	ck_assert(!read_group().limited); /* a group whose memory nobody controls */
	end();
}
END_TEST

START_TEST(what_fails)
{
	struct gu_cgroup c;
	begin();
	put("/proc/self/cgroup", "0::/a/b\n");
	put("/proc/self/mountinfo", MOUNT2);
	put_group("/sys/fs/cgroup/a", "max\n", "max\n", "1\n", "");
	put_group("/sys/fs/cgroup/a/b", "1048576\n", "max\n", "1\n", "");
	unsigned failed = 0;
	for (unsigned n = 1; n < 100; n++) {
		fake_fail(FAKE_ANY, n, -EMFILE);
		int err = gu_cgroup_open(&c);
		bool fired = fake.fired;
		fake_clear();
		ck_assert_int_eq(err, fired ? -EMFILE : 0);
		if (!err)
			gu_cgroup_close(&c);
		ck_assert_uint_eq(opened, closed);
		failed += fired;
	}
	ck_assert_uint_ge(failed, 10);
	fake_fail(FAKE_OPEN, 3, -EACCES);
	ck_assert_int_eq(gu_cgroup_open(&c), -EOPNOTSUPP);
	fake_clear();
	end();
}
END_TEST

/* ---- PSI ---- */

#define PSI(total) "some avg10=0.10 avg60=0.00 avg300=0.00 total=" total "\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=77\n"

static uint64_t read_psi(void)
{
	uint64_t ns;
	int fd = gu_psi_open();
	ck_assert_int_ge(fd, 0);
	ck_ok(gu_psi_read(fd, &ns));
	gu_os->close(fd);
	return ns;
}

START_TEST(pressure)
{
	begin();
	ck_assert_int_eq(gu_psi_open(), -EOPNOTSUPP);
	put("/proc/pressure/memory", PSI("123"));
	ck_assert_uint_eq(read_psi(), 123000);
	put("/proc/self/cgroup", "4:memory:/v1\n0::/a\n");
	put("/proc/self/mountinfo", MOUNT1 MOUNT2);
	ck_assert_uint_eq(read_psi(), 123000);
	put("/sys/fs/cgroup/a/memory.pressure", PSI("456"));
	ck_assert_uint_eq(read_psi(), 456000);
	fake_fail(FAKE_PREAD, 1, -EOPNOTSUPP); /* cgroup.pressure says 0 */
	ck_assert_uint_eq(read_psi(), 123000);
	fake_fail(FAKE_PREAD, 1, -EOPNOTSUPP);
	fake.sticky = true;
	ck_assert_int_eq(gu_psi_open(), -EOPNOTSUPP); /* psi=0 */
	fake_clear();
	put("/sys/fs/cgroup/a/memory.pressure", "nonsense\n");
	put("/proc/pressure/memory", "some avg10=0.10\n");
	ck_assert_int_eq(gu_psi_open(), -EOPNOTSUPP);
	end();
}
END_TEST

/* That files can't be opened does not mean that the group has none. */
START_TEST(pressure_fails)
{
	begin();
	put("/proc/pressure/memory", PSI("123"));
	put("/proc/self/cgroup", "0::/a\n");
	put("/proc/self/mountinfo", MOUNT2);
	put("/sys/fs/cgroup/a/memory.pressure", PSI("456"));
	unsigned failed = 0;
	for (unsigned n = 1; n < 20; n++) {
		fake_fail(FAKE_ANY, n, -EMFILE);
		int fd = gu_psi_open();
		bool fired = fake.fired;
		fake_clear();
		ck_assert(fired ? fd == -EMFILE : fd >= 0);
		if (fd >= 0)
			gu_os->close(fd);
		ck_assert_uint_eq(opened, closed);
		failed += fired;
	}
	ck_assert_uint_ge(failed, 6);
	end();
}
END_TEST

/* ---- here ---- */

static struct gu_cgroup here;
static int here_err;

static void *look_again(void *leader)
{
	struct gu_cgroup c;
	struct gu_cgroup_memory m;
	pthread_join(*(pthread_t *)leader, NULL);
	int err = gu_cgroup_open(&c);
	bool same = err == here_err && c.version == here.version && c.n == here.n && (err || !gu_cgroup_read(&c, &m));
	_exit(same ? 0 : 1);
}

/* A process goes on when its first thread ends, whose files in /proc then say nothing, or what is wrong. */
START_TEST(first_thread_ends)
{
	int status;
	here_err = gu_cgroup_open(&here);
	pid_t pid = fork();
	if (pid == 0) {
		static pthread_t self;
		pthread_t t;
		limit_child();
		self = pthread_self();
		if (pthread_create(&t, NULL, look_again, &self))
			_exit(2);
		pthread_exit(NULL);
	}
	gu_cgroup_close(&here);
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	ck_assert_int_eq(status, 0);
}
END_TEST

START_TEST(this_machine)
{
	struct gu_cgroup c;
	struct gu_cgroup_memory m;
	uint64_t ns;
	int err = gu_cgroup_open(&c), psi = gu_psi_open();
	ck_assert(!err || err == -EOPNOTSUPP);
	if (!err)
		ck_ok(gu_cgroup_read(&c, &m));
	printf("cgroup: %d, version %u, %u levels, %s\n", err, c.version, c.n, !err && m.limited ? "limited" : "no limit");
	gu_cgroup_close(&c);
	ck_assert(psi >= 0 || psi == -EOPNOTSUPP);
	if (psi >= 0)
		ck_ok(gu_psi_read(psi, &ns));
	printf("psi: %d\n", psi);
	if (psi >= 0)
		close(psi);
}
END_TEST

static Suite *make_suite(void)
{
	Suite *suite = suite_create("pressure");
	TCase *cgroup = test_case(suite, "cgroup"), *psi = test_case(suite, "psi");
	tcase_add_test(cgroup, version_2);
	tcase_add_test(cgroup, read_again);
	tcase_add_test(cgroup, version_1);
	tcase_add_test(cgroup, parts);
	tcase_add_test(cgroup, mounts);
	tcase_add_test(cgroup, hidden);
	tcase_add_test(cgroup, numbers);
	tcase_add_test(cgroup, long_lines);
	tcase_add_test(cgroup, without_groups);
	tcase_add_test(cgroup, what_fails);
	tcase_add_test(cgroup, this_machine);
	tcase_add_test(cgroup, first_thread_ends);
	tcase_add_test(psi, pressure);
	tcase_add_test(psi, pressure_fails);
	return suite;
}

TEST_MAIN(make_suite)
