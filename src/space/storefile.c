/* SPDX-License-Identifier: MIT */
/*
 * storefile.c - see storefile.h.
 *
 * Direct I/O, so that the page cache holds no second copy. A file system that refuses it gets ordinary I/O, and the cache is
 * told to drop what was written, or read, each time.
 */
#define _GNU_SOURCE
#include "space/storefile.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/atomic.h"
#include "base/check.h"
#include "base/meta.h"
#include "sys/os.h"

#define EXTENTS_MOST ((size_t)1 << 30) /* 64 TiB */
#define MAGIC "gcuffd store\n"
#define TRIES 8                        /* files of one name, each gone before it was taken over */

static uint64_t bit_of(uint32_t i) { return (uint64_t)1 << (i % 64); }
static bool is_set(const uint64_t *bits, uint32_t i) { return bits[i / 64] & bit_of(i); }
static void set(uint64_t *bits, uint32_t i) { bits[i / 64] |= bit_of(i); }
static void clear(uint64_t *bits, uint32_t i) { bits[i / 64] &= ~bit_of(i); }
static off_t place_of(uint32_t extent) { return (off_t)(((uint64_t)extent + 1) * GU_EXTENT); } /* behind the header */
static size_t map_size(const struct gu_store_file *f) { return gu_align_up(((size_t)f->limit + 63) / 64 * 8, GU_PAGE); }

/* ---- texts, without the C library's stdio ---- */

static size_t add_text(char *to, size_t at, size_t size, const char *text)
{
	size_t len = strlen(text);
	if (at + len >= size)
		return size;
	memcpy(to + at, text, len + 1);
	return at + len;
}

static size_t add_number(char *to, size_t at, size_t size, uint64_t n)
{
	char digits[24];
	size_t i = sizeof(digits) - 1;
	digits[i] = 0;
	do
		digits[--i] = (char)('0' + n % 10);
	while (n /= 10);
	return add_text(to, at, size, digits + i);
}

/* ---- opening ---- */

/* path + middle + number; false: too long. */
static bool make_name(struct gu_store_file *f, const char *middle, uint64_t number)
{
	size_t at = add_text(f->name, 0, sizeof(f->name), f->path);
	if (*middle) {
		at = add_text(f->name, at, sizeof(f->name), middle);
		at = at < sizeof(f->name) ? add_number(f->name, at, sizeof(f->name), number) : at;
	}
	return at < sizeof(f->name);
}

static int read_all(int fd, char *to, size_t len, off_t at)
{
	while (len) {
		long n = gu_os->pread(fd, to, len, at);
		if (n == -EINTR)
			continue;
		if (n <= 0)
			return n ? (int)n : -EIO;
		to += n, at += n, len -= gu_min((size_t)n, len);
	}
	return 0;
}

/* Locked before it has a header: who sees one may trust the lock. Without a lock it is none, and nobody takes the file over. */
static int put_header(int fd)
{
	char page[GU_PAGE] = MAGIC;
	size_t at = add_text(page, sizeof(MAGIC) - 1, sizeof(page), "Of process ");
	at = add_number(page, at, sizeof(page), (uint64_t)gu_os->getpid());
	add_text(page, at, sizeof(page), ". In use while somebody has it open; else it may be removed.\n");
	struct iovec piece = {page, sizeof(page)};
	if (gu_os->lock(fd, F_RDLCK))
		page[0] = '-';
	long n = gu_os->pwritev(fd, &piece, 1, 0);
	return n == (long)sizeof(page) ? 0 : n < 0 ? (int)n : -EIO;
}

static bool has_header(int fd)
{
	char start[sizeof(MAGIC) - 1];
	return !read_all(fd, start, sizeof(start), 0) && !memcmp(start, MAGIC, sizeof(start));
}

static bool is_same(const struct statx *a, const struct statx *b)
{
	return a->stx_ino == b->stx_ino && a->stx_dev_major == b->stx_dev_major && a->stx_dev_minor == b->stx_dev_minor;
}

/* Nobody else's, and nobody else may look: what was in memory goes there. */
static bool is_private(const struct statx *st)
{
	return (st->stx_mode & (S_IFMT | 07777)) == (S_IFREG | 0600) && st->stx_uid == geteuid() && st->stx_nlink == 1;
}

/* -EAGAIN: it is gone, or another file by now. */
static int check_left(const struct gu_store_file *f, int fd)
{
	struct statx open, named;
	if (gu_os->statx(fd, NULL, &open) || !is_private(&open) || !has_header(fd))
		return -EEXIST;
	int err = gu_os->lock(fd, F_WRLCK);
	if (err)
		return err == -EAGAIN || err == -EACCES ? -EBUSY : -EEXIST;
	return gu_os->statx(-1, f->name, &named) || !is_same(&open, &named) ? -EAGAIN : 0;
}

/* Whoever had it was killed. Its owner removes the name before it gives up the lock (.inv.store.owner). */
static int take_over(const struct gu_store_file *f)
{
	int fd = gu_os->open(f->name, O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY);
	int err = fd == -ENOENT ? -EAGAIN : fd < 0 ? -EEXIST : check_left(f, fd);
	if (!err)
		err = gu_os->ftruncate(fd, 0);
	if (err && fd >= 0)
		gu_os->close(fd);
	return err ? err : fd;
}

static int create_named(struct gu_store_file *f, const char *middle, uint64_t number)
{
	if (!make_name(f, middle, number))
		return -ENAMETOOLONG;
	int fd = -EAGAIN;
	for (int i = 0; i < TRIES && fd == -EAGAIN; i++) {
		fd = gu_os->create(f->name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW, 0600);
		fd = fd == -EEXIST ? take_over(f) : fd;
	}
	int err = fd < 0 ? fd : put_header(fd);
	if (fd >= 0 && err) {
		gu_os->unlink(f->name);
		gu_os->close(fd);
	}
	return err ? err : fd;
}

/* Where the file system knows no files without a name. */
static int create_and_unlink(struct gu_store_file *f)
{
	int fd = create_named(f, "/.gcuffd-", gu_os->clock_ns());
	int err = fd < 0 ? fd : gu_os->unlink(f->name);
	if (fd >= 0 && err) {
		gu_os->close(fd);
		return err;
	}
	return fd;
}

/* A child's file beside its parent's has the child's number behind the name. */
static int create_file(struct gu_store_file *f, bool in_child)
{
	int fd = gu_os->create(f->path, O_RDWR | O_TMPFILE | O_EXCL, 0600);
	f->named = fd == -ENOTDIR || fd == -ENOENT;
	if (f->named)
		fd = create_named(f, in_child ? "." : "", (uint64_t)gu_os->getpid());
	else if (fd == -EOPNOTSUPP || fd == -EISDIR)
		fd = create_and_unlink(f);
	f->named = f->named && fd >= 0;
	return fd;
}

static int free_file(const struct gu_store_file *f)
{
	for (int i = 0; i < GU_STORE_FILES; i++)
		if (f->files[i].fd < 0 && !gu_load_relaxed(&f->files[i].chunks))
			return i;
	return -EMFILE;
}

static int open_own(struct gu_store_file *f, bool in_child)
{
	int i = free_file(f);
	if (i < 0)
		return i;
	int fd = create_file(f, in_child);
	if (fd < 0)
		return fd;
	f->files[i] = (struct gu_store_fd){fd, -1, !gu_os->set_flags(fd, O_DIRECT), 0};
	f->own = i;
	f->tid = gu_os->gettid();
	return 0;
}

static int map_bits(struct gu_store_file *f)
{
	f->used = gu_meta_map(map_size(f));
	f->stale = gu_meta_map(map_size(f));
	f->frozen = gu_meta_map(map_size(f));
	return f->used && f->stale && f->frozen ? 0 : -ENOMEM;
}

int gu_file_open(struct gu_store_file *f, const char *path, size_t limit)
{
	memset(f, 0, sizeof(*f));
	for (int i = 0; i < GU_STORE_FILES; i++)
		f->files[i].fd = f->files[i].child_fd = -1;
	f->own = -1;
	f->limit = (uint32_t)gu_min(limit / GU_EXTENT, EXTENTS_MOST);
	if (!f->limit)
		return 0;
	f->path = path;
	int err = map_bits(f);
	if (!err)
		err = open_own(f, false);
	if (err)
		gu_file_close(f);
	return err;
}

static void close_one(struct gu_store_fd *d)
{
	if (d->fd >= 0)
		gu_os->close(d->fd);
	d->fd = -1;
}

void gu_file_close_files(struct gu_store_file *f)
{
	for (int i = 0; i < GU_STORE_FILES; i++)
		close_one(&f->files[i]);
}

void gu_file_close(struct gu_store_file *f)
{
	if (f->named)
		gu_os->unlink(f->name);
	gu_file_close_files(f);
	gu_meta_unmap(f->used, map_size(f));
	gu_meta_unmap(f->stale, map_size(f));
	gu_meta_unmap(f->frozen, map_size(f));
	f->path = NULL;
	f->named = false;
}

int gu_file_ready(struct gu_store_file *f)
{
	if (!f->path)
		return -ENOSPC;
	f->tid = gu_os->gettid();
	return f->own >= 0 ? 0 : open_own(f, true);
}

/* ---- extents ---- */

static bool may_take(const struct gu_store_file *f, uint32_t i)
{
	return !is_set(f->used, i) || (is_set(f->stale, i) && !is_set(f->frozen, i));
}

static uint32_t run_from(const struct gu_store_file *f, uint32_t i, uint32_t n)
{
	uint32_t len = 0;
	while (len < n && i + len < f->limit && may_take(f, i + len))
		len++;
	return len;
}

static void take(struct gu_store_file *f, uint32_t i)
{
	f->nused += !is_set(f->used, i);
	f->nstale -= is_set(f->stale, i);
	set(f->used, i);
	clear(f->stale, i);
	f->high = i >= f->high ? i + 1 : f->high;
}

/* The first run that is long enough, else the longest. A word of 64 that are all in use is passed at once. */
uint32_t gu_file_take_locked(struct gu_store_file *f, uint32_t n, uint32_t *first)
{
	uint32_t best = 0;
	for (uint32_t i = 0; i < f->limit && i <= f->high && best < n;) {
		if (i % 64 == 0 && !(~f->used[i / 64] | (f->stale[i / 64] & ~f->frozen[i / 64]))) {
			i += 64;
			continue;
		}
		uint32_t len = run_from(f, i, n);
		if (len > best) {
			best = len;
			*first = i;
		}
		i += len + 1;
	}
	for (uint32_t i = 0; i < best; i++)
		take(f, *first + i);
	return best;
}

bool gu_file_is_used(const struct gu_store_file *f, uint32_t i)
{
	return i < f->high && is_set(f->used, i) && !is_set(f->stale, i);
}

void gu_file_stale_locked(struct gu_store_file *f, uint32_t i)
{
	GU_INVARIANT(is_set(f->used, i) && !is_set(f->stale, i), ".inv.store.extent");
	set(f->stale, i);
	f->nstale++;
}

static bool may_be_hole(const struct gu_store_file *f, uint32_t i)
{
	return is_set(f->stale, i) && !is_set(f->frozen, i);
}

uint32_t gu_file_next_hole_locked(struct gu_store_file *f, uint32_t *first)
{
	uint32_t i = *first, n = 0;
	if (!f->nstale)
		return 0;
	while (i < f->high && !may_be_hole(f, i))
		i += i % 64 == 0 && !f->stale[i / 64] ? 64 : 1;
	for (*first = i; i < f->high && may_be_hole(f, i); i++, n++)
		take(f, i);
	return n;
}

void gu_file_make_hole(struct gu_store_file *f, uint32_t first, uint32_t n)
{
	int fd = f->files[f->own].fd, err;
	do
		err = gu_os->fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, place_of(first), (off_t)(n * GU_EXTENT));
	while (err == -EINTR);
	f->holes_failed += err != 0;
}

void gu_file_hole_made_locked(struct gu_store_file *f, uint32_t first, uint32_t n)
{
	for (uint32_t i = first; i < first + n; i++)
		clear(f->used, i);
	f->nused -= n;
}

/* ---- I/O ---- */

/* Takes done bytes from the front. */
static void advance(struct iovec **pieces, int *n, size_t done)
{
	while (*n && done >= (*pieces)->iov_len) {
		done -= (*pieces)->iov_len;
		(*pieces)++, (*n)--;
	}
	if (*n) {
		(*pieces)->iov_base = (char *)(*pieces)->iov_base + done;
		(*pieces)->iov_len -= done;
	}
}

static int write_all(struct gu_store_fd *d, off_t at, struct iovec *pieces, int n)
{
	while (n) {
		long done = gu_os->pwritev(d->fd, pieces, n, at);
		if (done == -EINTR)
			continue;
		if (done == -EINVAL && d->direct && !gu_os->set_flags(d->fd, 0)) {
			gu_store_relaxed(&d->direct, false); /* refused only now */
			continue;
		}
		if (done <= 0)
			return done ? (int)done : -EIO;
		if (done % 512 && d->direct && !gu_os->set_flags(d->fd, 0))
			gu_store_relaxed(&d->direct, false); /* what is left is not aligned */
		at += done;
		advance(&pieces, &n, (size_t)done);
	}
	return 0;
}

/* An error of writing back would be told to nobody once the memory is gone: so it is waited for. */
static int settle(struct gu_store_fd *d, off_t at, size_t len)
{
	int err;
	do
		err = gu_os->fdatasync(d->fd);
	while (err == -EINTR);
	(void)gu_os->fadvise(d->fd, at, (off_t)len, POSIX_FADV_DONTNEED);
	return err;
}

int gu_file_write(struct gu_store_file *f, uint32_t first, struct iovec *pieces, int n)
{
	struct gu_store_fd *d = &f->files[f->own];
	off_t at = place_of(first);
	int err = write_all(d, at, pieces, n);
	return err || d->direct ? err : settle(d, at, (size_t)n * GU_EXTENT);
}

/* Whole pages are read either way: direct I/O wants them, and a page cache has no less. */
int gu_file_read(const struct gu_store_fd *d, uint64_t offset, size_t len, void *buffer, const void **bytes)
{
	char *to = (char *)gu_align_up((uintptr_t)buffer, GU_PAGE);
	offset += GU_EXTENT;
	uint64_t from = gu_align_down(offset, GU_PAGE), end = gu_align_up(offset + len, GU_PAGE);
	if (d->fd < 0)
		return -EIO;
	int err = read_all(d->fd, to, end - from, (off_t)from);
	if (!d->direct)
		(void)gu_os->fadvise(d->fd, (off_t)from, (off_t)(end - from), POSIX_FADV_DONTNEED);
	*bytes = to + (offset - from);
	return err;
}

/* ---- fork ---- */

static int open_again(const struct gu_store_file *f, const struct gu_store_fd *d)
{
	char name[80];
	size_t at = add_text(name, 0, sizeof(name), "/proc/self/task/");
	at = add_number(name, at, sizeof(name), (uint64_t)f->tid);
	at = add_text(name, at, sizeof(name), "/fd/");
	at = add_number(name, at, sizeof(name), (uint64_t)d->fd);
	int fd = gu_os->open(name, O_RDONLY | (d->direct ? O_DIRECT : 0));
	int err = fd < 0 ? fd : gu_os->flock(fd, LOCK_SH | LOCK_NB);
	if (!err)
		(void)gu_os->lock(fd, F_RDLCK);
	if (fd >= 0 && err)
		gu_os->close(fd);
	return err ? err : fd;
}

int gu_file_fork_prepare(struct gu_store_file *f)
{
	int err = 0;
	for (int i = 0; i < GU_STORE_FILES; i++) {
		struct gu_store_fd *d = &f->files[i];
		d->child_fd = d->fd < 0 || !d->chunks ? -1 : open_again(f, d);
		if (d->child_fd < -1 || (d->child_fd == -1 && d->fd >= 0 && d->chunks))
			err = d->child_fd;
		d->child_fd = d->child_fd < 0 ? -1 : d->child_fd;
	}
	return err;
}

static void freeze(struct gu_store_file *f)
{
	f->nfrozen = 0;
	for (uint32_t i = 0; i < (f->high + 63) / 64; i++) {
		f->frozen[i] |= f->used[i] & ~f->stale[i];
		f->nfrozen += (uint32_t)__builtin_popcountll(f->frozen[i]);
	}
}

void gu_file_fork_parent(struct gu_store_file *f)
{
	for (int i = 0; i < GU_STORE_FILES; i++) {
		struct gu_store_fd *d = &f->files[i];
		if (d->child_fd >= 0)
			gu_os->close(d->child_fd);
		d->child_fd = -1;
	}
	if (f->path)
		freeze(f);
}

/* The bits were of the parent's file: this process has written none yet. */
void gu_file_fork_child(struct gu_store_file *f)
{
	for (int i = 0; i < GU_STORE_FILES; i++) {
		struct gu_store_fd *d = &f->files[i];
		d->fd = d->child_fd;
		d->child_fd = -1;
	}
	for (uint32_t i = 0; f->path && i < (f->high + 63) / 64; i++)
		f->used[i] = f->stale[i] = f->frozen[i] = 0;
	f->high = f->nused = f->nstale = f->nfrozen = 0;
	f->own = -1;
	f->tid = gu_os->gettid();
	f->named = false;
}

int gu_file_leave_empty_locked(struct gu_store_file *f)
{
	for (int i = 0; i < GU_STORE_FILES; i++)
		if (i != f->own && !f->files[i].chunks && f->files[i].fd >= 0) {
			int fd = f->files[i].fd;
			f->files[i].fd = -1;
			return fd;
		}
	return -1;
}

bool gu_file_is_alone(const struct gu_store_file *f)
{
	if (f->own < 0 || !f->nfrozen || gu_os->flock(f->files[f->own].fd, LOCK_EX | LOCK_NB))
		return false;
	gu_os->flock(f->files[f->own].fd, LOCK_UN);
	return true;
}

void gu_file_thaw_locked(struct gu_store_file *f)
{
	memset(f->frozen, 0, (f->high + 63) / 64 * 8);
	f->nfrozen = 0;
}

/* ---- check ---- */

static uint32_t count(const uint64_t *bits, uint32_t n)
{
	uint32_t sum = 0;
	for (uint32_t i = 0; i < n; i++)
		sum += is_set(bits, i);
	return sum;
}

void gu_file_check(const struct gu_store_file *f)
{
	if (!f->path)
		return;
	GU_INVARIANT(count(f->used, f->high) == f->nused && f->nused <= f->limit, ".inv.store.extent");
	GU_INVARIANT(count(f->stale, f->high) == f->nstale, ".inv.store.extent");
	GU_INVARIANT(count(f->frozen, f->high) == f->nfrozen, ".inv.store.frozen");
	for (uint32_t i = 0; i < f->high; i++)
		GU_INVARIANT(is_set(f->used, i) || !(is_set(f->stale, i) || is_set(f->frozen, i)), ".inv.store.extent");
}
