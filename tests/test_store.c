/* SPDX-License-Identifier: MIT */
/* test_store.c - what was put is what is got, or an error; memory and file shrink; nothing is lost when calls fail. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <sys/stat.h>

#include "base/atomic.h"
#include "base/check.h"
#include "base/meta.h"
#include "base/own.h"
#include "core.h"
#include "fake_os.h"
#include "space/store.h"
#include "space/storechunk.h"
#include "sys/files.h"

#define MIB ((size_t)1 << 20)
#define DIRECTORIES 2

static bool hide_zstd;

/* Most likely a disk. */
static const char *disk(void) { return test_folder; }
static const char *directory_of(int i) { return i % DIRECTORIES ? "/dev/shm" : disk(); }

/* The library's calls come here. */
void *dlopen(const char *file, int flags)
{
	void *(*real)(const char *, int) = (void *(*)(const char *, int))dlsym(RTLD_NEXT, "dlopen");
	return hide_zstd && file && strstr(file, "zstd") ? NULL : real(file, flags);
}

static bool has_zstd(void)
{
	void *library = dlopen("libzstd.so.1", RTLD_NOW);
	if (library)
		dlclose(library);
	return library;
}

#define NEED_CODEC(codec) \
	do { \
		if ((codec) == GU_CODEC_ZSTD && !has_zstd()) \
			GU_SKIP("no libzstd.so.1 here"); \
	} while (0)

#define NEED_DIRECTORY(path) \
	do { \
		if (access(path, W_OK)) \
			GU_SKIP("no %s here", path); \
	} while (0)

/* ---- pages ---- */

enum { ZERO, WORD, TINY, WIDE, RANDOM, TEXT, POINTERS, HALF, SPARSE, KINDS };

static void fill_page(uint64_t *page, unsigned kind, uint64_t seed)
{
	struct test_rng rng = {seed * 977 + kind};
	static const char text[] = "the quick brown fox jumps over the lazy dog ";
	for (size_t i = 0; i < GU_PAGE / 8; i++)
		switch (kind) {
		case ZERO: page[i] = 0; break;
		case WORD: page[i] = UINT64_MAX; break;
		case TINY: page[i] = 0x7fff000012340000u + seed; break;
		case WIDE: page[i] = 0xa5a5a5a5a5a5a5a5u; break;
		case RANDOM: page[i] = test_rand(&rng); break;
		case TEXT: memcpy(&page[i], text + test_below(&rng, sizeof(text) - 9), 8); break;
		case POINTERS: page[i] = 0x00007f1200000000u + test_below(&rng, 1 << 20) * 16; break;
		case HALF: page[i] = i / 4 % 2 ? test_rand(&rng) : i % 4 ? 0 : 0x00007f1200000000u + test_below(&rng, 1 << 20) * 64; break;
		default: page[i] = test_below(&rng, 64) ? 0 : seed;
		}
	if (kind >= RANDOM)
		page[GU_PAGE / 8 - 1] = seed + 1;
}

/* ---- kept pages ---- */

struct kept {
	gu_slot slot;
	uint64_t seed;
	unsigned kind;
};

struct model {
	struct gu_store *store;
	struct kept *kept;
	size_t n, max;
	uint64_t next_seed;
	struct test_rng rng;
	bool mixed; /* all kinds; else HALF alone */
};

static struct model model_make(struct gu_store *store, size_t max, uint64_t own)
{
	return (struct model){store, calloc(max, sizeof(struct kept)), 0, max, own << 32, test_rng(own), true};
}

/* How many of n were kept; *err says why not all. */
static size_t model_put(struct model *m, size_t n, int *err)
{
	static __thread uint64_t pages[64][GU_PAGE / 8] __attribute__((aligned(4096)));
	gu_slot slots[64];
	n = gu_min(n, m->max - m->n);
	for (size_t i = 0; i < n; i++) {
		struct kept *k = &m->kept[m->n + i];
		*k = (struct kept){0, m->next_seed++, m->mixed ? (unsigned)test_below(&m->rng, KINDS) : HALF};
		fill_page(pages[i], k->kind, k->seed);
	}
	size_t done = gu_store_put(m->store, pages, n, slots, err);
	must(done <= n && (done == n) == !*err, "done %zu of %zu, %d", done, n, *err);
	for (size_t i = 0; i < done; i++) {
		must(slots[i], "slot 0");
		m->kept[m->n + i].slot = slots[i];
	}
	m->n += done;
	return done;
}

static void fill_store(struct model *m, size_t n)
{
	int err = 0;
	for (size_t done = 0; done < n && !err; done += model_put(m, gu_min(64, n - done), &err))
		;
	ck_ok(err);
}

/* What get said; a right answer is right. */
static int model_get(struct model *m, size_t i)
{
	uint64_t page[GU_PAGE / 8], want[GU_PAGE / 8];
	int err = gu_store_get(m->store, m->kept[i].slot, page);
	fill_page(want, m->kept[i].kind, m->kept[i].seed);
	must(err || !memcmp(page, want, GU_PAGE), "wrong contents: kind %u", m->kept[i].kind);
	return err;
}

static void model_drop(struct model *m, size_t i)
{
	gu_store_drop(m->store, m->kept[i].slot);
	m->kept[i] = m->kept[--m->n];
}

static void model_verify(struct model *m)
{
	struct gu_store_counts c;
	for (size_t i = 0; i < m->n; i++)
		must_ok(model_get(m, i));
	gu_store_check(m->store);
	gu_store_counts(m->store, &c);
	must(c.pages == m->n, "pages %lu, %zu", (unsigned long)c.pages, m->n);
}

static struct gu_store_counts counts_of(struct gu_store *store)
{
	struct gu_store_counts c;
	gu_store_counts(store, &c);
	return c;
}

static void model_empty(struct model *m)
{
	while (m->n)
		model_drop(m, test_below(&m->rng, m->n));
	gu_store_tidy(m->store);
	gu_store_check(m->store);
	struct gu_store_counts c = counts_of(m->store);
	ck_assert_uint_eq(c.pages, 0);
	ck_assert_uint_eq(c.same, 0);
	ck_assert_uint_eq(c.record_bytes, 0);
	ck_assert_uint_eq(c.file_bytes, 0);
	ck_assert_uint_le(c.memory_bytes, 128 << 10);
}

static void model_free(struct model *m)
{
	free(m->kept);
	gu_store_close(m->store);
}

static struct gu_store *open_store(size_t memory, size_t file, const char *path, enum gu_codec codec)
{
	struct gu_store *store = NULL;
	ck_ok(gu_store_open(&(struct gu_store_options){memory, file, path, codec, 0}, &store));
	return store;
}

/* ---- in memory ---- */

START_TEST(contents)
{
	NEED_CODEC(_i);
	struct model m = model_make(open_store(64 * MIB, 0, NULL, (enum gu_codec)_i), 4096, 1);
	fill_store(&m, 4096);
	struct gu_store_counts c = counts_of(m.store);
	ck_assert_uint_gt(c.same, 4096 / KINDS);
	ck_assert_uint_lt(c.memory_bytes, 4096 * GU_PAGE * 6 / 10);
	ck_assert_uint_lt(c.memory_bytes, c.record_bytes * 106 / 100 + GU_CHUNK_CLASSES * GU_CHUNK / 2);
	model_verify(&m);
	model_empty(&m);
	model_free(&m);
}
END_TEST

/* A word of 62 bits takes no memory at all. */
START_TEST(one_word_over_and_over)
{
	static const uint64_t words[] = {0, 1, UINT64_MAX, 0x00007f1234567890u, 0xffff800000000000u, (uint64_t)1 << 60,
					 (uint64_t)1 << 61, (uint64_t)1 << 63, 0xdeadbeefdeadbeefu};
	struct gu_store *store = open_store(MIB, 0, NULL, GU_CODEC_LZ4);
	uint64_t page[GU_PAGE / 8], back[GU_PAGE / 8];
	gu_slot slots[GU_ARRAY_LEN(words)];
	int err;
	for (size_t i = 0; i < GU_ARRAY_LEN(words); i++) {
		for (size_t k = 0; k < GU_PAGE / 8; k++)
			page[k] = words[i];
		ck_assert_uint_eq(gu_store_put(store, page, 1, &slots[i], &err), 1);
		ck_assert_uint_ne(slots[i], 0);
		ck_ok(gu_store_get(store, slots[i], back));
		ck_assert(!memcmp(page, back, GU_PAGE));
		ck_assert(i >= 6 || counts_of(store).memory_bytes == 0);
	}
	ck_assert_uint_eq(counts_of(store).same, GU_ARRAY_LEN(words));
	gu_store_check(store);
	for (size_t i = 0; i < GU_ARRAY_LEN(words); i++)
		gu_store_drop(store, slots[i]);
	ck_assert_uint_eq(counts_of(store).same, 0);
	gu_store_close(store);
}
END_TEST

/* Full is -ENOSPC, each time, until something is dropped. */
START_TEST(limit_of_memory)
{
	int err = 0;
	struct model m = model_make(open_store(4 * MIB, 0, NULL, GU_CODEC_LZ4), 16384, 2);
	while (!err)
		model_put(&m, 64, &err);
	ck_assert_int_eq(err, -ENOSPC);
	ck_assert_uint_le(counts_of(m.store).memory_bytes, 4 * MIB + 256 * 1024);
	ck_assert_uint_ge(counts_of(m.store).record_bytes, 3 * MIB);
	model_verify(&m);
	size_t full = m.n;
	for (int i = 0; i < 2000; i++)
		model_drop(&m, test_below(&m.rng, m.n));
	do
		model_put(&m, 64, &err);
	while (!err);
	ck_assert_uint_gt(m.n, full - 1000);
	model_verify(&m);
	model_empty(&m);
	model_free(&m);
}
END_TEST

/* Where in memory of the library's own the text stands; NULL: nowhere. */
static const void *find_own(const void *text, size_t len)
{
	static char copy[GU_CHUNK];
	uintptr_t start, end;
	for (uintptr_t at = 0; gu_own_next(at, &start, &end); at = end)
		for (uintptr_t p = start; p < end; p += sizeof(copy)) {
			long n = gu_os->process_vm_readv(getpid(), copy, (void *)p, gu_min(sizeof(copy), end - p));
			const char *found = n > 0 ? memmem(copy, (size_t)n, text, len) : NULL;
			if (found)
				return (char *)p + (found - copy);
		}
	return NULL;
}

/* _i: a page that is compressed, or kept as it is; others stay in its chunk. */
START_TEST(dropped_pages_are_wiped)
{
	static const char secret[] = "squeamish ossifrage 0123456789";
	struct gu_store *store = open_store(4 * MIB, 0, NULL, GU_CODEC_LZ4);
	uint64_t pages[3][GU_PAGE / 8];
	gu_slot slots[3];
	int err;
	for (unsigned i = 0; i < 3; i++)
		fill_page(pages[i], _i ? RANDOM : SPARSE, 7);
	memcpy(pages[2] + 100, secret, sizeof(secret));
	ck_assert_uint_eq(gu_store_put(store, pages, 3, slots, &err), 3);
	ck_assert_ptr_nonnull(find_own(secret, sizeof(secret) - 1));
	gu_store_drop(store, slots[2]);
	ck_assert_ptr_null(find_own(secret, sizeof(secret) - 1));
	gu_store_check(store);
	gu_store_close(store);
}
END_TEST

START_TEST(options)
{
	struct gu_store *store;
	struct gu_store_options o = {MIB, MIB, NULL, GU_CODEC_LZ4, 0};
	ck_assert_int_eq(gu_store_open(&o, &store), -EINVAL);
	o.path = "/no/such/directory/file";
	ck_assert_int_eq(gu_store_open(&o, &store), -ENOENT);
	o = (struct gu_store_options){MIB, 0, NULL, GU_CODEC_ZSTD, 1000};
	ck_assert_int_eq(gu_store_open(&o, &store), has_zstd() ? -EINVAL : -EOPNOTSUPP);
	o = (struct gu_store_options){MIB, 0, NULL, (enum gu_codec)7, 0};
	ck_assert_int_eq(gu_store_open(&o, &store), -EINVAL);
}
END_TEST

START_TEST(no_zstd)
{
	struct gu_store *store;
	size_t before = gu_meta_used();
	hide_zstd = true;
	ck_assert_int_eq(gu_store_open(&(struct gu_store_options){MIB, 0, NULL, GU_CODEC_ZSTD, 0}, &store), -EOPNOTSUPP);
	ck_assert_uint_eq(gu_meta_used(), before);
	hide_zstd = false;
	NEED_CODEC(GU_CODEC_ZSTD);
	store = open_store(MIB, 0, NULL, GU_CODEC_ZSTD);
	gu_store_close(store);
	ck_assert_uint_eq(gu_meta_used(), before);
}
END_TEST

/* ---- the file ---- */

static int file_of(struct gu_store *store)
{
	int fds[GU_STORE_FDS];
	ck_assert_uint_eq(gu_store_files(store, fds), 1);
	return fds[0];
}

static bool takes_direct(const char *directory)
{
	int fd = open(directory, O_TMPFILE | O_RDWR, 0600);
	bool takes = !fcntl(fd, F_SETFL, O_DIRECT);
	close(fd);
	return takes;
}

/* _i: directory, and whether direct I/O is refused. */
START_TEST(spills)
{
	struct stat st;
	NEED_DIRECTORY(directory_of(_i));
	bool direct = _i < DIRECTORIES && takes_direct(directory_of(_i));
	fake_install();
	if (_i >= DIRECTORIES) {
		fake_fail(FAKE_SET_FLAGS, 1, -EINVAL);
		fake.sticky = true;
	}
	struct model m = model_make(open_store(2 * MIB, 64 * MIB, directory_of(_i), GU_CODEC_LZ4), 8192, 3);
	fill_store(&m, 8192);
	ck_assert_int_eq((fcntl(file_of(m.store), F_GETFL) & O_DIRECT) != 0, direct);
	struct gu_store_counts c = counts_of(m.store);
	ck_assert_uint_le(c.memory_bytes, 2 * MIB + 512 * 1024);
	ck_assert_uint_gt(c.file_bytes, 8 * MIB);
	ck_assert_uint_gt(c.spills, 100);
	ck_ok(fstat(file_of(m.store), &st));
	ck_assert_uint_eq(st.st_mode & 0777, 0600);
	ck_assert_uint_eq(st.st_nlink, 0);
	model_verify(&m);
	ck_assert_uint_gt(counts_of(m.store).reads, 3000);
	model_empty(&m);
	ck_ok(fstat(file_of(m.store), &st));
	ck_assert_uint_le((size_t)st.st_blocks * 512, 64 << 10);
	model_free(&m);
	fake_remove();
}
END_TEST

START_TEST(file_with_a_name)
{
	char path[TEST_PATH];
	struct gu_store *store;
	struct stat st;
	snprintf(path, sizeof(path), "%s/gu-store.XXXXXX", disk());
	int fd = mkstemp(path);
	ck_assert_int_eq(gu_store_open(&(struct gu_store_options){MIB, MIB, path, GU_CODEC_LZ4, 0}, &store), -EEXIST);
	ck_ok(access(path, F_OK));
	close(fd);
	ck_ok(unlink(path));
	store = open_store(MIB, 4 * MIB, path, GU_CODEC_LZ4);
	ck_ok(stat(path, &st));
	ck_assert_uint_eq(st.st_mode & 07777, 0600);
	gu_store_close(store);
	ck_assert_int_eq(access(path, F_OK), -1);
}
END_TEST

static int try_store(const char *path, struct gu_store **store)
{
	return gu_store_open(&(struct gu_store_options){MIB, 4 * MIB, path, GU_CODEC_LZ4, 0}, store);
}

/* A process that has a store at path, with a child of its own that reads it, if asked for; ends when it is killed. */
static pid_t start_owner(const char *path, bool with_child, pid_t *child)
{
	struct gu_store *store;
	int p[2];
	pid_t pid, grandchild = 0;
	ck_ok(pipe(p));
	fflush(stdout);
	ck_assert_int_ge(pid = fork(), 0);
	if (!pid) {
		limit_child();
		must_ok(try_store(path, &store));
		static char page[GU_PAGE];
		gu_slot slot;
		for (uint64_t i = 0; i < 512 || counts_of(store).file_bytes == 0; i++) {
			int err;
			struct test_rng rng = test_rng(i);
			for (size_t k = 0; k < GU_PAGE / 8; k++)
				((uint64_t *)(void *)page)[k] = test_rand(&rng);
			must(gu_store_put(store, page, 1, &slot, &err) == 1, "%d", err);
		}
		if (with_child) {
			must_ok(gu_store_fork_prepare(store));
			must((grandchild = fork()) >= 0);
			grandchild ? gu_store_fork_parent(store) : gu_store_fork_child(store);
		}
		if (!with_child || grandchild)
			must(write(p[1], &grandchild, sizeof(grandchild)) == sizeof(grandchild));
		for (;;)
			pause();
	}
	ck_assert_int_eq(read(p[0], &grandchild, sizeof(grandchild)), sizeof(grandchild));
	close(p[0]);
	close(p[1]);
	*child = grandchild;
	return pid;
}

static void end_owner(pid_t pid)
{
	ck_ok(kill(pid, SIGKILL));
	ck_assert_int_eq(waitpid(pid, NULL, 0), pid);
}

/* Not of a process that lives, nor as long as a child of it does; of one that was killed, and then it is as good as a new one. */
START_TEST(killed_and_taken_over)
{
	char path[TEST_PATH];
	struct gu_store *store, *other;
	struct stat st;
	snprintf(path, sizeof(path), "%s/gu-store.%d", disk(), (int)getpid());
	for (int with_child = 0; with_child < 2; with_child++) {
		pid_t child, pid = start_owner(path, with_child, &child);
		ck_assert_int_eq(try_store(path, &store), -EBUSY);
		ck_assert(strstr(gu_store_refusal(-EBUSY), "another process"));
		end_owner(pid);
		ck_ok(stat(path, &st));
		ck_assert_int_gt(st.st_size, GU_PAGE);
		if (with_child) {
			ck_assert_int_eq(try_store(path, &store), -EBUSY);
			ck_ok(kill(child, SIGKILL)); /* init's, or a reaper's, from here on */
			for (int ms = 0; ms < 20000 && try_store(path, &store) == -EBUSY; ms++)
				usleep(1000);
		} else
			ck_ok(try_store(path, &store));
		ck_ok(stat(path, &st));
		ck_assert_int_eq(st.st_size, GU_PAGE);
		ck_assert_int_eq(try_store(path, &other), -EBUSY);
		gu_store_close(store);
		ck_assert_int_eq(access(path, F_OK), -1);
	}
}
END_TEST

/* What looks like one and is not, or was not ours alone, is left as it is. */
START_TEST(not_taken_over)
{
	static const char mine[] = "gcuffd store\nOf process 1.\n";
	char path[TEST_PATH / 2 + 32], link_to[TEST_PATH];
	struct gu_store *store;
	struct stat st;
	snprintf(path, sizeof(path), "%s/gu-store.%d", disk(), (int)getpid());
	snprintf(link_to, sizeof(link_to), "%s.link", path);
	for (int i = 0; i < 7; i++) {
		int fd = open(path, O_RDWR | O_CREAT | O_EXCL, 0600);
		const char *text = i == 0 ? "" : i == 1 ? "gcuffd sto" : i == 2 ? "gcuffd stare\nOf process 1.\n" : mine;
		ck_assert_int_eq(write(fd, text, strlen(text)), (long)strlen(text));
		ck_ok(i == 3 ? fchmod(fd, 0644) : i == 4 ? link(path, link_to) : 0);
		if (i == 5) {
			ck_ok(rename(path, link_to));
			ck_ok(symlink(link_to, path));
		}
		fake_install();
		if (i == 6)
			fake_fail(FAKE_LOCK, 1, -ENOLCK);
		ck_assert_int_eq(try_store(path, &store), -EEXIST);
		fake_remove();
		ck_ok(fstat(fd, &st));
		ck_assert_int_eq(st.st_size, (long)strlen(text));
		close(fd);
		ck_ok(unlink(path));
		unlink(link_to);
	}
	ck_ok(mkfifo(path, 0600));
	ck_assert_int_eq(try_store(path, &store), -EEXIST);
	ck_ok(unlink(path));
	ck_assert(strstr(gu_store_refusal(-EEXIST), "store_path"));
}
END_TEST

/* A lock that its owner did not get tells nobody that the file is in use. */
START_TEST(no_lock)
{
	char path[TEST_PATH];
	struct gu_store *store, *other;
	snprintf(path, sizeof(path), "%s/gu-store.%d", disk(), (int)getpid());
	fake_install();
	fake_fail(FAKE_LOCK, 1, -ENOLCK);
	ck_ok(try_store(path, &store));
	ck_assert_int_eq(try_store(path, &other), -EEXIST);
	fake_remove();
	gu_store_close(store);
	ck_assert_int_eq(access(path, F_OK), -1);
}
END_TEST

/* Where there are no files without a name, one is made and unlinked. */
START_TEST(no_tmpfile)
{
	fake_install();
	fake_fail(FAKE_CREATE, 1, -EOPNOTSUPP);
	struct gu_store *store = open_store(MIB, 4 * MIB, disk(), GU_CODEC_LZ4);
	struct stat st;
	ck_ok(fstat(file_of(store), &st));
	ck_assert_uint_eq(st.st_nlink, 0);
	gu_store_close(store);
	fake_fail(FAKE_CREATE, 1, -EACCES);
	ck_assert_int_eq(gu_store_open(&(struct gu_store_options){MIB, MIB, disk(), GU_CODEC_LZ4, 0}, &store), -EACCES);
	fake_remove();
}
END_TEST

START_TEST(both_limits)
{
	int err = 0;
	struct model m = model_make(open_store(2 * MIB, 4 * MIB, disk(), GU_CODEC_LZ4), 16384, 4);
	while (!err)
		model_put(&m, 64, &err);
	ck_assert_int_eq(err, -ENOSPC);
	ck_assert_uint_eq(counts_of(m.store).file_bytes, 4 * MIB);
	ck_assert_uint_eq(counts_of(m.store).writes_failed, 0);
	ck_assert_uint_le(model_put(&m, 64, &err), 64);
	model_verify(&m);
	/* What was put first is in the file: extents come free. */
	size_t full = m.n;
	for (size_t i = full / 3; i-- > 0;)
		model_drop(&m, i);
	gu_store_check(m.store);
	do
		model_put(&m, 64, &err);
	while (!err);
	ck_assert_uint_gt(m.n, full * 9 / 10);
	ck_assert_uint_le(counts_of(m.store).file_bytes, 4 * MIB);
	model_verify(&m);
	model_empty(&m);
	model_free(&m);
}
END_TEST

/* Puts, gets, drops and tidying at random. */
START_TEST(against_a_model)
{
	NEED_DIRECTORY(directory_of(_i));
	struct model m = model_make(open_store(MIB, 24 * MIB, directory_of(_i), GU_CODEC_LZ4), 6000, 5 + (uint64_t)_i);
	uint64_t until = test_now_ns() + check_seconds() * 200000000ull;
	int err;
	for (unsigned round = 0; test_now_ns() < until; round++) {
		bool shrink = round / 64 % 2;
		model_put(&m, 1 + test_below(&m.rng, shrink ? 16 : 64), &err);
		must(!err || err == -ENOSPC, "%d", err);
		for (unsigned i = 0; i < (shrink ? 24 : 12) && m.n; i++)
			model_drop(&m, test_below(&m.rng, m.n));
		for (unsigned i = 0; i < 8 && m.n; i++)
			must_ok(model_get(&m, test_below(&m.rng, m.n)));
		if (round % 16 == 0)
			gu_store_check(m.store);
		if (round % 50 == 0)
			gu_store_tidy(m.store);
	}
	model_verify(&m);
	model_empty(&m);
	model_free(&m);
}
END_TEST

/* ---- failing calls ---- */

/* Puts beyond memory, drops, puts again: what calls it makes is the same each time. */
static void script(struct model *m)
{
	int err;
	for (int i = 0; i < 24; i++)
		model_put(m, 64, &err);
	for (size_t i = 0; i < 900 && m->n; i++)
		model_drop(m, m->n / 2);
	gu_store_tidy(m->store);
	for (int i = 0; i < 8; i++)
		model_put(m, 64, &err);
	for (size_t i = 0; i < m->n; i += 7)
		(void)model_get(m, i);
}

/* Each call in turn fails, once or from there on: what was kept is still there. */
START_TEST(each_call_fails)
{
	static const int errors[] = {-EIO, -ENOSPC, -EINTR, -ENOMEM};
	unsigned nth = 1, fired;
	do {
		struct gu_store *store = NULL;
		fake_install();
		fake_fail(FAKE_ANY, nth, errors[nth % 4]);
		fake.sticky = _i && errors[nth % 4] != -EINTR;
		int err = gu_store_open(&(struct gu_store_options){MIB, 8 * MIB, disk(), GU_CODEC_LZ4, 0}, &store);
		if (!err) {
			struct model m = model_make(store, 4096, 6);
			m.rng.state = 77;
			script(&m);
			fired = fake.fired;
			fake_clear();
			model_verify(&m);
			while (m.n)
				model_drop(&m, 0);
			gu_store_tidy(m.store);
			gu_store_check(m.store);
			ck_assert_uint_eq(counts_of(m.store).file_bytes, 0);
			model_free(&m);
		} else {
			fired = fake.fired;
		}
		fake_remove();
		nth += 1 + nth / 32;
	} while (fired);
	ck_assert_uint_gt(nth, 100);
}
END_TEST

/* A disk that fails: it is told once, then -ENOSPC without asking it again, until a second has passed. */
START_TEST(disk_fails)
{
	int err = 0, told = _i ? -EIO : -ENOSPC;
	struct model m = model_make(open_store(MIB, 64 * MIB, disk(), GU_CODEC_LZ4), 8192, 7);
	fill_store(&m, 2000);
	fake_install();
	fake_fail(FAKE_PWRITEV, 1, told);
	fake.sticky = true;
	while (!err)
		model_put(&m, 64, &err);
	ck_assert_int_eq(err, told);
	ck_assert_uint_eq(counts_of(m.store).writes_failed, 1);
	for (int i = 0; i < 20; i++) {
		model_put(&m, 64, &err);
		ck_assert_int_eq(err, -ENOSPC);
	}
	ck_assert_uint_eq(fake.fired, 1);
	model_verify(&m);
	fake_remove();
	usleep(1100000);
	fill_store(&m, 640);
	model_verify(&m);
	model_empty(&m);
	model_free(&m);
}
END_TEST

/* Without direct I/O an error of writing back counts as one of writing. */
START_TEST(writing_back_fails)
{
	int err = 0;
	fake_install();
	fake_fail(FAKE_SET_FLAGS, 1, -EINVAL);
	struct model m = model_make(open_store(MIB, 64 * MIB, disk(), GU_CODEC_LZ4), 8192, 11);
	fake_fail(FAKE_FDATASYNC, 1, -EIO);
	fake.sticky = true;
	while (!err)
		model_put(&m, 64, &err);
	ck_assert_int_eq(err, -EIO);
	ck_assert_uint_eq(counts_of(m.store).spills, 0);
	fake_remove();
	model_verify(&m);
	model_empty(&m);
	model_free(&m);
}
END_TEST

START_TEST(reads_fail)
{
	struct model m = model_make(open_store(MIB, 64 * MIB, disk(), GU_CODEC_LZ4), 4096, 8);
	fill_store(&m, 4096);
	fake_install();
	fake_fail(FAKE_PREAD, 1, -EIO);
	fake.sticky = true;
	unsigned bad = 0;
	for (size_t i = 0; i < m.n; i++) {
		int err = model_get(&m, i);
		ck_assert(err == 0 || err == -EIO);
		bad += err == -EIO;
	}
	ck_assert_uint_gt(bad, 1000);
	ck_assert_uint_eq(counts_of(m.store).reads_failed, bad);
	fake_remove();
	model_verify(&m);
	model_free(&m);
}
END_TEST

static struct gu_os short_os;
static uint32_t short_turn;

static long short_pwritev(int fd, const struct iovec *pieces, int n, off_t at)
{
	struct iovec one = {pieces->iov_base, pieces->iov_len > 4096 ? pieces->iov_len / 8192 * 4096 + 4096 * (n % 2) : pieces->iov_len};
	return short_turn++ % 5 == 0 ? -EINTR : gu_os_linux.pwritev(fd, &one, 1, at);
}

static long short_pread(int fd, void *to, size_t len, off_t at)
{
	return __atomic_fetch_add(&short_turn, 1, __ATOMIC_RELAXED) % 3 == 0 ? -EINTR :
	       gu_os_linux.pread(fd, to, len > 4096 ? 4096 : len, at);
}

static long odd_pwritev(int fd, const struct iovec *pieces, int n, off_t at)
{
	struct iovec one = {pieces->iov_base, 1 + pieces->iov_len / 2};
	(void)n;
	return gu_os_linux.pwritev(fd, &one, 1, at) < 0 ? gu_os_linux.pwritev(fd, pieces, n, at) : (long)one.iov_len;
}

static long end_pread(int fd, void *to, size_t len, off_t at)
{
	return (void)fd, (void)to, (void)len, (void)at, 0;
}

START_TEST(short_io)
{
	short_os = gu_os_linux;
	short_os.pwritev = short_pwritev;
	short_os.pread = short_pread;
	gu_os_set(&short_os);
	struct model m = model_make(open_store(MIB, 64 * MIB, disk(), GU_CODEC_LZ4), 4096, 9);
	fill_store(&m, 2048);
	model_verify(&m);
	fcntl(file_of(m.store), F_SETFL, 0);
	short_os.pwritev = odd_pwritev;
	fill_store(&m, 2048);
	model_verify(&m);
	short_os.pread = end_pread;
	unsigned bad = 0;
	for (size_t i = 0; i < m.n; i++)
		bad += model_get(&m, i) == -EIO;
	ck_assert_uint_gt(bad, 500);
	gu_os_set(NULL);
	model_empty(&m);
	model_free(&m);
}
END_TEST

/* One byte in each page of the file is another: that is noticed, or was of no page's. */
START_TEST(file_is_damaged)
{
	struct model m = model_make(open_store(MIB, 64 * MIB, disk(), GU_CODEC_LZ4), 4096, 10);
	struct stat st;
	fill_store(&m, 4096);
	int fd = file_of(m.store);
	char page[GU_PAGE] __attribute__((aligned(4096)));
	ck_ok(fstat(fd, &st));
	for (off_t at = 0; at < st.st_size; at += GU_PAGE) {
		ck_assert_int_eq(pread(fd, page, GU_PAGE, at), GU_PAGE);
		page[test_below(&m.rng, GU_PAGE)] ^= (char)(1 << test_below(&m.rng, 8));
		ck_assert_int_eq(pwrite(fd, page, GU_PAGE, at), GU_PAGE);
	}
	unsigned bad = 0;
	for (size_t i = 0; i < m.n; i++) {
		int err = model_get(&m, i);
		ck_assert(err == 0 || err == -EBADMSG);
		bad += err == -EBADMSG;
	}
	ck_assert_uint_gt(bad, 1000);
	model_empty(&m);
	model_free(&m);
}
END_TEST

/* ---- threads ---- */

#define THREADS 4
static bool stop_threads;

static void *work(void *arg)
{
	struct model *m = arg;
	int err;
	for (unsigned round = 0; !gu_load_relaxed(&stop_threads); round++) {
		if (round / 100 % 2 == 0)
			model_put(m, 1 + test_below(&m->rng, 16), &err);
		for (unsigned i = 0; i < 10 && m->n; i++)
			if (test_below(&m->rng, 3))
				must_ok(model_get(m, test_below(&m->rng, m->n)));
			else
				model_drop(m, test_below(&m->rng, m->n));
		if (round % 97 == 0)
			gu_store_tidy(m->store);
	}
	return NULL;
}

START_TEST(threads_at_once)
{
	NEED_CODEC(_i);
	pthread_t threads[THREADS];
	struct model models[THREADS];
	struct gu_store *store = open_store(MIB, 16 * MIB, disk(), (enum gu_codec)_i);
	uint64_t until = test_now_ns() + check_seconds() * 400000000ull;
	stop_threads = false;
	for (unsigned i = 0; i < THREADS; i++) {
		models[i] = model_make(store, 2000, 20 + i);
		ck_ok(pthread_create(&threads[i], NULL, work, &models[i]));
	}
	while (test_now_ns() < until) {
		usleep(5000);
		gu_store_check(store);
	}
	gu_store_relaxed(&stop_threads, true);
	uint64_t sum = 0;
	for (unsigned i = 0; i < THREADS; i++) {
		pthread_join(threads[i], NULL);
		for (size_t k = 0; k < models[i].n; k++)
			must_ok(model_get(&models[i], k));
		sum += models[i].n;
	}
	ck_assert_uint_eq(counts_of(store).pages, sum);
	for (unsigned i = 0; i < THREADS; i++) {
		while (models[i].n)
			model_drop(&models[i], 0);
		free(models[i].kept);
	}
	gu_store_tidy(store);
	gu_store_check(store);
	ck_assert_uint_eq(counts_of(store).file_bytes, 0);
	gu_store_close(store);
}
END_TEST

/* Memory of a chunk that is spilled stays while somebody reads it: these read what is about to be spilled. */
static struct model read_model;
static size_t published; /* atomic; kept[0 .. published) are set */

static void *read_recent(void *arg)
{
	struct test_rng rng = test_rng((uintptr_t)arg);
	while (!gu_load_relaxed(&stop_threads)) {
		size_t n = gu_load_acquire(&published), back = 128 + test_below(&rng, 160); /* 16 chunks hold 300 */
		must_ok(model_get(&read_model, n > back ? n - 1 - back : 0));
	}
	return NULL;
}

START_TEST(readers_keep_memory)
{
	pthread_t threads[THREADS];
	size_t most = sanitized() ? 6000 : 20000;
	int err = 0;
	read_model = model_make(open_store(MIB, 128 * MIB, disk(), GU_CODEC_LZ4), most, 50);
	read_model.mixed = false;
	fill_store(&read_model, 64);
	stop_threads = false;
	published = 64;
	for (uintptr_t i = 0; i < THREADS; i++)
		ck_ok(pthread_create(&threads[i], NULL, read_recent, (void *)(51 + i)));
	while (published < most && !err) {
		model_put(&read_model, 64, &err);
		gu_store_release(&published, read_model.n);
	}
	gu_store_relaxed(&stop_threads, true);
	for (unsigned i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	ck_ok(err);
	gu_store_check(read_model.store);
	ck_assert_uint_le(counts_of(read_model.store).memory_bytes, MIB + 512 * 1024);
	model_empty(&read_model);
	model_free(&read_model);
}
END_TEST

/* A drop does not wait for a disk. */
static uint32_t write_gate;

static long slow_pwritev(int fd, const struct iovec *pieces, int n, off_t at)
{
	gu_store_seqcst(&write_gate, 1);
	while (gu_load_seqcst(&write_gate) == 1)
		usleep(100);
	return gu_os_linux.pwritev(fd, pieces, n, at);
}

static void *put_until_full(void *arg)
{
	struct model *m = arg;
	int err = 0;
	while (!err && gu_load_seqcst(&write_gate) != 3)
		model_put(m, 64, &err);
	return NULL;
}

START_TEST(drops_go_on_while_it_writes)
{
	pthread_t thread;
	struct gu_store *store = open_store(MIB, 64 * MIB, disk(), GU_CODEC_LZ4);
	struct model m = model_make(store, 300, 30), other = model_make(store, 8192, 31);
	m.mixed = other.mixed = false;
	fill_store(&m, 300);
	short_os = gu_os_linux;
	short_os.pwritev = slow_pwritev;
	gu_os_set(&short_os);
	write_gate = 0;
	ck_ok(pthread_create(&thread, NULL, put_until_full, &other));
	while (gu_load_seqcst(&write_gate) != 1)
		usleep(100);
	for (size_t i = 0; i < m.n; i++)
		must_ok(model_get(&m, i));
	while (m.n)
		model_drop(&m, test_below(&m.rng, m.n));
	ck_assert_uint_eq(gu_load_seqcst(&write_gate), 1);
	gu_store_seqcst(&write_gate, 3);
	pthread_join(thread, NULL);
	gu_os_set(NULL);
	model_verify(&other);
	model_empty(&other);
	free(m.kept);
	model_free(&other);
}
END_TEST

static long slow_and_broken_pwritev(int fd, const struct iovec *pieces, int n, off_t at)
{
	long result = slow_pwritev(fd, pieces, n, at);
	return result < 0 ? result : -EIO;
}

/* What was dropped while its chunk was being written is wiped when that has failed. */
START_TEST(drops_during_a_failed_write)
{
	static const char secret[] = "squeamish ossifrage 9876543210";
	static uint64_t pages[16][GU_PAGE / 8]; /* a full chunk, the first to be spilled */
	pthread_t thread;
	gu_slot slots[16];
	int err;
	struct gu_store *store = open_store(MIB, 64 * MIB, disk(), GU_CODEC_LZ4);
	struct model other = model_make(store, 8192, 32);
	for (unsigned i = 0; i < 16; i++)
		fill_page(pages[i], RANDOM, i);
	memcpy(pages[5] + 100, secret, sizeof(secret));
	ck_assert_uint_eq(gu_store_put(store, pages, 16, slots, &err), 16);
	short_os = gu_os_linux;
	short_os.pwritev = slow_and_broken_pwritev;
	gu_os_set(&short_os);
	write_gate = 0;
	ck_ok(pthread_create(&thread, NULL, put_until_full, &other));
	while (gu_load_seqcst(&write_gate) != 1)
		usleep(100);
	gu_store_drop(store, slots[5]);
	gu_store_seqcst(&write_gate, 3);
	pthread_join(thread, NULL);
	gu_os_set(NULL);
	ck_assert_uint_eq(counts_of(store).writes_failed, 1);
	ck_assert_ptr_null(find_own(secret, sizeof(secret) - 1));
	gu_store_check(store);
	for (unsigned i = 0; i < 16; i++)
		if (i != 5)
			gu_store_drop(store, slots[i]);
	model_verify(&other);
	model_empty(&other);
	model_free(&other);
}
END_TEST

/* ---- fork ---- */

/* The store belongs to threads with a descriptor table of their own; this one stays for the fork. */
static uint32_t service_state; /* atomic; 1: opened and filled, 2: to go on, 3: to end */
static struct model service_model;

static void *serve(void *arg)
{
	(void)arg;
	must_ok(gu_files_own(NULL, 0));
	must_ok(gu_store_open(&(struct gu_store_options){MIB, 64 * MIB, disk(), GU_CODEC_LZ4, 0}, &service_model.store));
	fill_store(&service_model, 3000);
	gu_store_seqcst(&service_state, 1);
	while (gu_load_seqcst(&service_state) == 1)
		usleep(100);
	for (int i = 0; i < 20; i++) {
		fill_store(&service_model, 100);
		for (int k = 0; k < 100; k++)
			model_drop(&service_model, test_below(&service_model.rng, service_model.n));
	}
	model_verify(&service_model);
	gu_store_seqcst(&service_state, 3);
	while (gu_load_seqcst(&service_state) == 3)
		usleep(100);
	model_verify(&service_model);
	model_empty(&service_model); /* nothing is frozen: the child is gone */
	gu_store_close(service_model.store);
	return NULL;
}

/* The child's own service thread keeps what it was given. */
static void *serve_child(void *arg)
{
	struct model *m = arg;
	int fds[GU_STORE_FDS];
	size_t n = gu_store_files(m->store, fds);
	must(n == 1, "%zu", n);
	must_ok(gu_files_own(fds, n));
	for (int round = 0; round < 10; round++) {
		model_verify(m);
		fill_store(m, 200);
		for (int k = 0; k < 150; k++)
			model_drop(m, test_below(&m->rng, m->n));
	}
	model_verify(m);
	while (m->n)
		model_drop(m, 0);
	gu_store_tidy(m->store);
	gu_store_check(m->store);
	must(counts_of(m->store).file_bytes == 0, "%lu", (unsigned long)counts_of(m->store).file_bytes);
	gu_store_close(m->store);
	return NULL;
}

START_TEST(both_sides_of_a_fork)
{
	pthread_t thread;
	int status = -1;
	service_model = model_make(NULL, 8192, 40);
	ck_ok(pthread_create(&thread, NULL, serve, NULL));
	while (gu_load_seqcst(&service_state) != 1)
		usleep(100);
	ck_ok(gu_store_fork_prepare(service_model.store));
	pid_t pid = fork();
	if (pid == 0) {
		pthread_t own;
		gu_store_fork_child(service_model.store);
		service_model.rng.state++;
		pthread_create(&own, NULL, serve_child, &service_model);
		pthread_join(own, NULL);
		_exit(0);
	}
	gu_store_fork_parent(service_model.store);
	gu_store_seqcst(&service_state, 2);
	while (gu_load_seqcst(&service_state) != 3)
		usleep(100);
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	ck_assert_int_eq(status, 0);
	gu_store_seqcst(&service_state, 4);
	pthread_join(thread, NULL);
	free(service_model.kept);
}
END_TEST

/* What is frozen is not used again while the child lives, and is once it has gone. */
START_TEST(frozen_while_the_child_lives)
{
	int gate[2], status;
	struct model m = model_make(open_store(MIB, 8 * MIB, disk(), GU_CODEC_LZ4), 4096, 41);
	fill_store(&m, 3000);
	ck_ok(pipe(gate));
	ck_ok(gu_store_fork_prepare(m.store));
	pid_t pid = fork();
	if (pid == 0) {
		char c;
		gu_store_fork_child(m.store);
		close(gate[1]);
		must(read(gate[0], &c, 1) == 0, "gate");
		model_verify(&m);
		must_ok(gu_store_fork_prepare(m.store));
		pid_t grandchild = fork();
		if (grandchild == 0) {
			gu_store_fork_child(m.store);
			model_verify(&m);
			_exit(0);
		}
		gu_store_fork_parent(m.store);
		must(waitpid(grandchild, &status, 0) == grandchild && status == 0, "grandchild %#x", (unsigned)status);
		model_verify(&m);
		_exit(0);
	}
	gu_store_fork_parent(m.store);
	close(gate[0]);
	size_t frozen = counts_of(m.store).file_bytes;
	while (m.n)
		model_drop(&m, 0);
	gu_store_tidy(m.store);
	ck_assert_uint_eq(counts_of(m.store).file_bytes, frozen);
	gu_store_check(m.store);
	fill_store(&m, 1000);
	ck_assert_uint_ge(counts_of(m.store).file_bytes, frozen);
	close(gate[1]);
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	ck_assert_int_eq(status, 0);
	model_verify(&m);
	model_empty(&m);
	model_free(&m);
}
END_TEST

/* A file with a name: the child's is beside it, and each removes its own. */
START_TEST(child_beside_a_named_file)
{
	char path[TEST_PATH / 2 + 32], childs[TEST_PATH];
	int status;
	snprintf(path, sizeof(path), "%s/gu-store.XXXXXX", disk());
	close(mkstemp(path));
	ck_ok(unlink(path));
	struct model m = model_make(open_store(MIB, 64 * MIB, path, GU_CODEC_LZ4), 8192, 43);
	fill_store(&m, 2000);
	ck_ok(gu_store_fork_prepare(m.store));
	pid_t pid = fork();
	if (pid == 0) {
		gu_store_fork_child(m.store);
		fill_store(&m, 2000);
		model_verify(&m);
		snprintf(childs, sizeof(childs), "%s.%d", path, (int)getpid());
		must_ok(access(childs, F_OK));
		gu_store_close(m.store);
		must(access(childs, F_OK), "it is still there");
		_exit(0);
	}
	gu_store_fork_parent(m.store);
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	ck_assert_int_eq(status, 0);
	ck_ok(access(path, F_OK));
	model_verify(&m);
	model_empty(&m);
	model_free(&m);
	ck_assert_int_eq(access(path, F_OK), -1);
}
END_TEST

/* A child that was not given the file says so. */
START_TEST(child_without_the_file)
{
	int status;
	struct model m = model_make(open_store(MIB, 64 * MIB, disk(), GU_CODEC_LZ4), 4096, 42);
	fill_store(&m, 3000);
	fake_install();
	fake_fail(FAKE_OPEN, 1, -EACCES);
	ck_assert_int_eq(gu_store_fork_prepare(m.store), -EACCES);
	fake_remove();
	pid_t pid = fork();
	if (pid == 0) {
		unsigned bad = 0;
		gu_store_fork_child(m.store);
		for (size_t i = 0; i < m.n; i++) {
			int err = model_get(&m, i);
			must(err == 0 || err == -EIO, "%d", err);
			bad += err != 0;
		}
		_exit(bad < 500);
	}
	gu_store_fork_parent(m.store);
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	ck_assert_int_eq(status, 0);
	model_verify(&m);
	model_empty(&m);
	model_free(&m);
}
END_TEST

#define ADD(name) tcase_add_test(test_case(suite, #name), name)
#define ADD_EACH(name, n) tcase_add_loop_test(test_case(suite, #name), name, 0, n)

static Suite *make_suite(void)
{
	Suite *suite = suite_create("store");
	ADD_EACH(contents, 2);
	ADD(one_word_over_and_over);
	ADD(limit_of_memory);
	ADD_EACH(dropped_pages_are_wiped, 2);
	ADD(options);
	ADD(no_zstd);
	ADD_EACH(spills, 2 * DIRECTORIES);
	ADD(file_with_a_name);
	ADD(killed_and_taken_over);
	ADD(not_taken_over);
	ADD(no_lock);
	ADD(no_tmpfile);
	ADD(both_limits);
	ADD_EACH(against_a_model, DIRECTORIES);
	ADD_EACH(each_call_fails, 2);
	ADD_EACH(disk_fails, 2);
	ADD(writing_back_fails);
	ADD(reads_fail);
	ADD(short_io);
	ADD(file_is_damaged);
	ADD_EACH(threads_at_once, 2);
	ADD(readers_keep_memory);
	ADD(drops_go_on_while_it_writes);
	ADD(drops_during_a_failed_write);
	ADD(both_sides_of_a_fork);
	ADD(frozen_while_the_child_lives);
	ADD(child_beside_a_named_file);
	ADD(child_without_the_file);
	return suite;
}

TEST_MAIN(make_suite)
