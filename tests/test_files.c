/* SPDX-License-Identifier: MIT */
/*
 * test_files.c - what the library opens: closed on exec from the beginning, on every way that a descriptor comes about;
 * nothing is created, and nothing is mapped or open that another process could look at.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "base/check.h"
#include "core.h"
#include "sys/caps.h"
#include "sys/os.h"
#include "sys/uapi.h"

#define LEN ((size_t)64 << 10)
#define TEXT ((size_t)64 << 10)

/* ---- a table that looks at each descriptor when it is made ---- */

enum way { BY_DEVICE, BY_CALL, USER_MODE_ONLY, NO_USERFAULTFD, WAYS };

static enum way way;
static struct gu_os table;
static uint32_t opened, userfaultfds; /* atomic */

static int checked(long fd)
{
	if (fd >= 0) {
		int flags = fcntl((int)fd, F_GETFD);
		must(flags >= 0 && flags & FD_CLOEXEC, "descriptor %ld stays open", fd);
		__atomic_fetch_add(&opened, 1, __ATOMIC_RELAXED);
	}
	return (int)fd;
}

static int open_checked(const char *path, int flags)
{
	must(!(flags & O_CREAT) && (flags & O_TMPFILE) != O_TMPFILE, "%s is created", path);
	must((flags & O_ACCMODE) == O_RDONLY || !strcmp(path, GU_UFFD_DEVICE), "%s is opened for writing", path);
	if (way != BY_DEVICE && !strcmp(path, GU_UFFD_DEVICE))
		return -ENOENT;
	return checked(gu_os_linux.open(path, flags));
}

static int userfaultfd_checked(int flags)
{
	must(flags & O_CLOEXEC, "flags %x", flags);
	if (way == NO_USERFAULTFD)
		return -ENOSYS;
	if (way == USER_MODE_ONLY && !(flags & GU_UFFD_USER_MODE_ONLY))
		return -EPERM;
	__atomic_fetch_add(&userfaultfds, 1, __ATOMIC_RELAXED);
	return checked(gu_os_linux.userfaultfd(flags));
}

static long ioctl_checked(int fd, unsigned long request, void *arg)
{
	if (request != GU_USERFAULTFD_IOC_NEW)
		return gu_os_linux.ioctl(fd, request, arg);
	must((uintptr_t)arg & O_CLOEXEC, "flags %lx", (unsigned long)(uintptr_t)arg);
	__atomic_fetch_add(&userfaultfds, 1, __ATOMIC_RELAXED);
	return checked(gu_os_linux.ioctl(fd, request, arg));
}

static void look_at_descriptors(enum way w)
{
	way = w;
	table = gu_os_linux;
	table.open = open_checked;
	table.userfaultfd = userfaultfd_checked;
	table.ioctl = ioctl_checked;
	gu_os_set(&table);
	gu_caps_reset();
}

/* ---- all that can be open ---- */

static struct everything {
	struct gcuffd_heap *heap[2]; /* the second with process roots */
	struct gcuffd_watch *watch[2];
	struct gcuffd_lazy *lazy;
	struct gcuffd_touch *touch;
	void *lazy_at, *memory;
} all;

static int fill(void *data, size_t offset, size_t len, void *into)
{
	(void)data, (void)offset;
	memset(into, 1, len);
	return 0;
}

static void note(void *data, void *page, int write, int thread) { (void)data, (void)page, (void)write, (void)thread; }

static void open_heap(unsigned i)
{
	all.heap[i] = heap_make("start_size=1M,process_roots=%u", i);
	void *volatile p = gcuffd_alloc(all.heap[i], (size_t)4 << 20);
	p = gcuffd_realloc(all.heap[i], p, (size_t)16 << 20);
	ck_assert_ptr_nonnull(p);
	ck_ok(gcuffd_collect(all.heap[i]));
}

static void open_watch(unsigned i)
{
	struct gcuffd_run run;
	size_t count;
	void *next;
	ck_ok(gcuffd_watch_create(i ? GCUFFD_WATCH_EVENTS : 0, &all.watch[i]));
	ck_ok(gcuffd_watch_begin(all.watch[i], all.memory, LEN / 2, 0));
	ck_ok(gcuffd_watch_collect(all.watch[i], all.memory, LEN / 2, &run, 1, &count, &next));
}

/* The second half of the memory is noticed, the first watched. */
static void open_everything(void)
{
	struct gcuffd_lazy_options o = {.size = sizeof(o), .threads = 2};
	if (way == USER_MODE_ONLY || !gu_caps()->has_kernel_faults)
		o.flags = GCUFFD_LAZY_USER_FAULTS;
	memset(&all, 0, sizeof(all));
	all.memory = mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	memset(all.memory, 1, LEN);
	for (unsigned i = 0; i < 2 && gu_caps()->has_wp_async; i++)
		open_watch(i);
	if (gu_caps()->has_poison) {
		ck_ok(gcuffd_lazy_map(LEN, fill, NULL, &o, &all.lazy, &all.lazy_at));
		ck_assert_int_eq(*(volatile char *)all.lazy_at, 1);
	}
	if (gu_caps()->has_rwp)
		ck_ok(gcuffd_touch_begin((char *)all.memory + LEN / 2, LEN / 2, note, NULL, &o, &all.touch));
	open_heap(0);
	if (!sanitized()) /* whose shadow would be a root */
		open_heap(1); /* last, for it tracks what nobody else does */
}

static void close_everything(void)
{
	if (all.touch)
		ck_ok(gcuffd_touch_end(all.touch));
	if (all.lazy)
		ck_ok(gcuffd_lazy_unmap(all.lazy));
	for (unsigned i = 0; i < 2 && all.watch[i]; i++)
		ck_ok(gcuffd_watch_destroy(all.watch[i]));
	for (unsigned i = 0; i < 2 && all.heap[i]; i++)
		ck_ok(gcuffd_heap_destroy(all.heap[i]));
	munmap(all.memory, LEN);
}

START_TEST(each_way_of_opening)
{
	look_at_descriptors((enum way)_i);
	open_everything();
	must(opened > 0 && (_i == NO_USERFAULTFD) == !userfaultfds, "%u opened, %u of them userfaultfds", opened, userfaultfds);
	close_everything();
	gu_os_set(NULL);
	gu_caps_reset();
}
END_TEST

/* ---- what a program has that is executed ---- */

static void add_line(char *text, const char *format, ...)
{
	size_t len = strlen(text);
	va_list args;
	va_start(args, format);
	vsnprintf(text + len, TEXT - len, format, args);
	va_end(args);
}

/* A line for each descriptor in a folder of /proc but the one that reads it. */
static void list_descriptors(const char *folder, char *text)
{
	char target[256];
	DIR *dir = opendir(folder);
	must(dir || errno == ENOENT, "%s: errno %d", folder, errno); /* of a thread that has ended */
	for (struct dirent *d; dir && (d = readdir(dir));) {
		bool skip = d->d_name[0] == '.' || atoi(d->d_name) == dirfd(dir);
		long n = skip ? -1 : readlinkat(dirfd(dir), d->d_name, target, sizeof(target) - 1);
		if (n > 0)
			add_line(text, "%s %.*s\n", d->d_name, (int)n, target);
	}
	if (dir)
		closedir(dir);
}

static int list_own(void)
{
	static char text[TEXT];
	list_descriptors("/proc/self/fd", text);
	return write(STDOUT_FILENO, text, strlen(text)) < 0;
}

static int into[2]; /* a pipe to the executed program's list */

static void execute_list(int to)
{
	if (dup2(to, STDOUT_FILENO) < 0 || fcntl(STDOUT_FILENO, F_SETFD, 0)) /* it may be 1 already */
		_exit(126);
	execl("/proc/self/exe", "test_files", "--list", (char *)NULL);
	_exit(127);
}

/* Without handlers of fork(): from service threads too. */
static void list_in_vforked(int to)
{
	pid_t pid = vfork();
	if (!pid)
		execute_list(to);
	must(pid > 0, "errno %d", errno);
	int status;
	must(waitpid(pid, &status, __WALL) == pid && !status, "status %d", status);
}

static void list_in_forked(void)
{
	pid_t pid = fork();
	if (!pid)
		execute_list(into[1]);
	int status;
	must(waitpid(pid, &status, 0) == pid && !status, "status %d", status);
}

static char *read_list(void)
{
	static char text[TEXT];
	long n = read(into[0], text, TEXT - 1);
	must(n >= 0, "errno %d", errno);
	text[n] = 0;
	return text;
}

static void make_pipe(void) { ck_ok(pipe2(into, O_CLOEXEC | O_NONBLOCK)); }

START_TEST(executed_programs_have_none)
{
	make_pipe();
	list_in_forked();
	char *before = strdup(read_list());
	open_everything();
	list_in_forked();
	ck_assert_str_eq(read_list(), before);
	list_in_vforked(into[1]);
	ck_assert_str_eq(read_list(), before);
	close_everything();
	free(before);
}
END_TEST

/* The pipe is the only one that it has. */
static void expect_pipe_only(const char *list)
{
	const char *end = strchr(list, '\n');
	must(!strncmp(list, "1 pipe:", 7) && end && !end[1], "\n%s", list);
}

static int fill_and_execute(void *data, size_t offset, size_t len, void *to)
{
	list_in_vforked(into[1]);
	return fill(data, offset, len, to);
}

/* Their threads have the descriptors, and tables that a child gets. */
START_TEST(callbacks_that_execute)
{
	struct gcuffd_lazy_options o = {.size = sizeof(o)};
	if (!gu_caps()->has_poison || !gu_caps()->has_kernel_faults)
		GU_LACKS("poison", "no userfaultfd with poison here");
	make_pipe();
	o.fds = &into[1];
	o.nfds = 1;
	ck_ok(gcuffd_lazy_map(LEN, fill_and_execute, NULL, &o, &all.lazy, &all.lazy_at));
	ck_assert_int_eq(*(volatile char *)all.lazy_at, 1);
	expect_pipe_only(read_list());
	ck_ok(gcuffd_lazy_unmap(all.lazy));
}
END_TEST

/* In a table without the pipe: that is found where the process's first thread has it. */
static void log_and_execute(void *data, int level, const char *line)
{
	char path[64];
	(void)data, (void)level, (void)line;
	snprintf(path, sizeof(path), "/proc/self/fd/%d", into[1]);
	int to = open(path, O_WRONLY | O_CLOEXEC);
	must(to >= 0, "errno %d", errno);
	list_in_vforked(to);
	close(to);
}

START_TEST(log_functions_that_execute)
{
	struct gcuffd_options o;
	struct gcuffd_heap *h;
	NO_SANITIZER("it has descriptors of its own");
	NEED_RUNG(GCUFFD_RUNG_ASYNC);
	make_pipe();
	gcuffd_options_init(&o);
	o.log = log_and_execute;
	o.log_level = GCUFFD_LOG_INFO;
	ck_ok(gcuffd_heap_create(&o, &h));
	ck_ok(gcuffd_thread_attach());
	ck_ok(gcuffd_collect(h));
	expect_pipe_only(read_list());
	ck_ok(gcuffd_heap_destroy(h));
}
END_TEST

/* ---- what others could look at ---- */

/* Shared mappings, and those of files that are no modules. */
static void list_mappings(char *text)
{
	char line[1024];
	FILE *f = fopen("/proc/self/maps", "r");
	while (fgets(line, sizeof(line), f)) {
		const char *perms = strchr(line, ' ') + 1, *name = strchr(line, '/');
		if (perms[3] == 's' || (name && !strstr(name, ".so") && !strstr(name, "/test_files")))
			add_line(text, "%s", line);
	}
	fclose(f);
}

/* Of each thread's table. */
static void check_threads(const char *known)
{
	static char text[TEXT];
	char path[64];
	DIR *dir = opendir("/proc/self/task");
	for (struct dirent *d; (d = readdir(dir));) {
		if (d->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "/proc/self/task/%d/fd", atoi(d->d_name));
		list_descriptors(path, text);
	}
	closedir(dir);
	for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
		const char *target = strchr(line, ' ') + 1;
		bool ours = !strcmp(target, "anon_inode:[userfaultfd]") || strstr(target, "/pagemap") || strstr(target, "/task");
		must(ours || strstr(known, target), "open: %s", line);
	}
}

START_TEST(nothing_to_look_at)
{
	static char before[TEXT], after[TEXT], known[TEXT];
	NO_SANITIZER("it has mappings of its own");
	list_descriptors("/proc/self/fd", known);
	list_mappings(before);
	int dumpable = prctl(PR_GET_DUMPABLE);
	open_everything();
	check_threads(known);
	list_mappings(after);
	ck_assert_str_eq(after, before);
	ck_assert_int_eq(prctl(PR_GET_DUMPABLE), dumpable);
	close_everything();
}
END_TEST

#define ADD(name) tcase_add_test(test_case(suite, #name), name)

static Suite *make_suite(void)
{
	Suite *suite = suite_create("files");
	tcase_add_loop_test(test_case(suite, "each_way_of_opening"), each_way_of_opening, 0, WAYS);
	ADD(executed_programs_have_none);
	ADD(callbacks_that_execute);
	ADD(log_functions_that_execute);
	ADD(nothing_to_look_at);
	return suite;
}

int main(int argc, char **argv)
{
	return argc == 2 && !strcmp(argv[1], "--list") ? list_own() : test_run(make_suite());
}
