/* SPDX-License-Identifier: MIT */
/*
 * uffd.c - userfaultfd. Stateless; any thread, the fault resolver too: no lock, no memory of its own.
 *
 * .assume.uffd.progress: an ioctl that fills pages and stops half-way says in its last field how many
 * bytes it did; the field is not written in every case of EAGAIN, so it is zeroed before the call.
 */
#include "sys/uffd.h"

#include <errno.h>
#include <fcntl.h>

#include "base/check.h"
#include "sys/os.h"

/* EAGAIN without progress: another thread forks, remaps, or holds a page's lock. */
#define TRIES 1000

static int open_device(void)
{
	int device = gu_os->open(GU_UFFD_DEVICE, O_RDWR);
	if (device < 0)
		return device;
	long fd = gu_os->ioctl(device, GU_USERFAULTFD_IOC_NEW, (void *)(uintptr_t)(O_CLOEXEC | O_NONBLOCK));
	gu_os->close(device);
	return (int)fd;
}

/* A kernel before 5.11 calls the user-mode flag EINVAL: then what the full mode said counts. */
static int open_any(bool *user_mode_only)
{
	int flags = O_CLOEXEC | O_NONBLOCK;
	*user_mode_only = false;
	int fd = open_device();
	if (fd >= 0)
		return fd;
	int full = gu_os->userfaultfd(flags);
	if (full >= 0)
		return full;
	*user_mode_only = true;
	fd = gu_os->userfaultfd(flags | GU_UFFD_USER_MODE_ONLY);
	return fd == -EINVAL ? full : fd;
}

static int shake_hands(int fd, uint64_t features, struct gu_uffd_info *info)
{
	struct gu_uffdio_api api = {GU_UFFD_API, features, 0};
	long result = gu_os->ioctl(fd, GU_UFFDIO_API, &api);
	if (result < 0)
		return (int)result;
	info->features = api.features;
	info->ioctls = api.ioctls;
	return 0;
}

int gu_uffd_open_info(uint64_t features, struct gu_uffd_info *info)
{
	struct gu_uffd_info unused;
	if (!info)
		info = &unused;
	int fd = open_any(&info->user_mode_only);
	if (fd < 0)
		return fd;
	int result = shake_hands(fd, features, info);
	if (result == 0)
		return fd;
	gu_os->close(fd);
	return result;
}

int gu_uffd_open(uint64_t features, bool *user_mode_only)
{
	struct gu_uffd_info info;
	int fd = gu_uffd_open_info(features, &info);
	if (fd >= 0 && user_mode_only)
		*user_mode_only = info.user_mode_only;
	return fd;
}

int gu_uffd_register(int fd, uintptr_t start, size_t len, uint64_t mode, uint64_t *ioctls)
{
	struct gu_uffdio_register arg = {{start, len}, mode, 0};
	long result = gu_os->ioctl(fd, GU_UFFDIO_REGISTER, &arg);
	if (result == 0 && ioctls)
		*ioctls = arg.ioctls;
	return (int)result;
}

/* For what is done wholly or not at all. */
static int repeat_whole(int fd, unsigned long request, void *arg)
{
	long result = -EAGAIN;
	for (int i = 0; i < TRIES && result == -EAGAIN; i++) {
		if (i > 0)
			gu_os->sched_yield();
		result = gu_os->ioctl(fd, request, arg);
	}
	return (int)result;
}

int gu_uffd_unregister(int fd, uintptr_t start, size_t len)
{
	struct gu_uffdio_range arg = {start, len};
	return (int)gu_os->ioctl(fd, GU_UFFDIO_UNREGISTER, &arg);
}

int gu_uffd_wake(int fd, uintptr_t start, size_t len)
{
	struct gu_uffdio_range arg = {start, len};
	return (int)gu_os->ioctl(fd, GU_UFFDIO_WAKE, &arg);
}

int gu_uffd_writeprotect(int fd, uintptr_t start, size_t len, bool on)
{
	struct gu_uffdio_writeprotect arg = {{start, len}, on ? GU_UFFD_WRITEPROTECT_WP : 0};
	return repeat_whole(fd, GU_UFFDIO_WRITEPROTECT, &arg);
}

int gu_uffd_rwprotect(int fd, uintptr_t start, size_t len, bool on)
{
	struct gu_uffdio_rwprotect arg = {{start, len}, on ? GU_UFFD_RWPROTECT_RWP : 0};
	return repeat_whole(fd, GU_UFFDIO_RWPROTECT, &arg);
}

int gu_uffd_set_mode(int fd, uint64_t enable, uint64_t disable)
{
	struct gu_uffdio_set_mode arg = {enable, disable};
	return (int)gu_os->ioctl(fd, GU_UFFDIO_SET_MODE, &arg);
}

/* ---- filling pages ---- */

struct fill {
	int fd;
	uintptr_t dst, src; /* src: COPY and MOVE */
	size_t len;
	uint64_t mode;
};

/* Each does one ioctl on what is left, and says in *bytes what that did. */
typedef long fill_step(const struct fill *fill, size_t at, int64_t *bytes);

static long step_copy(const struct fill *fill, size_t at, int64_t *bytes)
{
	struct gu_uffdio_copy arg = {fill->dst + at, fill->src + at, fill->len - at, fill->mode, 0};
	long result = gu_os->ioctl(fill->fd, GU_UFFDIO_COPY, &arg);
	*bytes = arg.copy;
	return result;
}

static long step_move(const struct fill *fill, size_t at, int64_t *bytes)
{
	struct gu_uffdio_move arg = {fill->dst + at, fill->src + at, fill->len - at, fill->mode, 0};
	long result = gu_os->ioctl(fill->fd, GU_UFFDIO_MOVE, &arg);
	*bytes = arg.move;
	return result;
}

static long step_zeropage(const struct fill *fill, size_t at, int64_t *bytes)
{
	struct gu_uffdio_zeropage arg = {{fill->dst + at, fill->len - at}, fill->mode, 0};
	long result = gu_os->ioctl(fill->fd, GU_UFFDIO_ZEROPAGE, &arg);
	*bytes = arg.zeropage;
	return result;
}

static long step_poison(const struct fill *fill, size_t at, int64_t *bytes)
{
	struct gu_uffdio_poison arg = {{fill->dst + at, fill->len - at}, fill->mode, 0};
	long result = gu_os->ioctl(fill->fd, GU_UFFDIO_POISON, &arg);
	*bytes = arg.updated;
	return result;
}

/* After a part was done the next try tells what is wrong with the rest. */
static int fill_pages(fill_step *step, const struct fill *fill, size_t *done)
{
	size_t at = 0;
	long result = -EAGAIN;
	for (int idle = 0; result == -EAGAIN && idle < TRIES; idle++) {
		int64_t bytes = 0;
		if (idle > 0)
			gu_os->sched_yield();
		result = step(fill, at, &bytes);
		if (result == 0) {
			at = fill->len;
		} else if (result == -EAGAIN && bytes > 0) {
			at += gu_min((size_t)bytes, fill->len - at);
			result = at < fill->len ? -EAGAIN : 0;
			idle = -1;
		}
	}
	if (done)
		*done = at;
	return (int)result;
}

int gu_uffd_copy(int fd, uintptr_t dst, const void *src, size_t len, uint64_t mode, size_t *done)
{
	struct fill fill = {fd, dst, (uintptr_t)src, len, mode};
	return fill_pages(step_copy, &fill, done);
}

int gu_uffd_move(int fd, uintptr_t dst, uintptr_t src, size_t len, uint64_t mode, size_t *done)
{
	struct fill fill = {fd, dst, src, len, mode};
	return fill_pages(step_move, &fill, done);
}

int gu_uffd_zeropage(int fd, uintptr_t start, size_t len, uint64_t mode, size_t *done)
{
	struct fill fill = {fd, start, 0, len, mode};
	return fill_pages(step_zeropage, &fill, done);
}

int gu_uffd_poison(int fd, uintptr_t start, size_t len, uint64_t mode, size_t *done)
{
	struct fill fill = {fd, start, 0, len, mode};
	return fill_pages(step_poison, &fill, done);
}
