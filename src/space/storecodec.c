/* SPDX-License-Identifier: MIT */
/* storecodec.c - see storecodec.h. Other libraries' functions are called through pointers: the loader has bound these already. */
#define ZSTD_STATIC_LINKING_ONLY
#define XXH_INLINE_ALL
#include "space/storecodec.h"

#include <dlfcn.h>
#include <errno.h>
#include <lz4.h>
#include <string.h>
#include <xxhash.h>
#include <zstd.h>

#include "base/atomic.h"
#include "base/check.h"
#include "base/meta.h"

#define WORDS (GU_PAGE / sizeof(uint64_t))
#define DECODERS 4
#define FASTER 1 /* LZ4's acceleration: its default */

static int (*const lz4_encode)(void *, const char *, char *, int, int, int) = LZ4_compress_fast_extState;
static int (*const lz4_decode)(const char *, char *, int, int) = LZ4_decompress_safe;

struct decoder {
	struct gu_lock lock; /* rank STORE */
	ZSTD_DCtx *context;  /* guard: lock */
};

#define ZSTD_EACH(X) \
	X(estimateCCtxSize) X(estimateDCtxSize) X(initStaticCCtx) X(initStaticDCtx) \
	X(compressCCtx) X(decompressDCtx) X(isError) X(minCLevel) X(maxCLevel)

struct gu_zstd {
	void *library;
#define ZSTD_MEMBER(name) __typeof__(ZSTD_##name) *name;
	ZSTD_EACH(ZSTD_MEMBER)
	ZSTD_CCtx *encoder;
	void *decoder_memory;
	size_t decoder_size; /* of each */
	struct decoder decoders[DECODERS];
	uint32_t turn; /* atomic; the decoder to wait for, when all are in use */
};

/* ---- zstd ---- */

static bool load_zstd(struct gu_zstd *z)
{
	z->library = dlopen("libzstd.so.1", RTLD_NOW | RTLD_LOCAL);
	if (!z->library)
		return false;
#define ZSTD_LOAD(name) z->name = (__typeof__(z->name))dlsym(z->library, "ZSTD_" #name);
	ZSTD_EACH(ZSTD_LOAD)
#define ZSTD_IS_THERE(name) && z->name
	return true ZSTD_EACH(ZSTD_IS_THERE);
}

static int make_contexts(struct gu_coder *c, struct gu_zstd *z)
{
	c->state_size = gu_align_up(z->estimateCCtxSize(c->level), GU_PAGE);
	z->decoder_size = gu_align_up(z->estimateDCtxSize(), GU_PAGE);
	c->state = gu_meta_map(c->state_size);
	z->decoder_memory = gu_meta_map(z->decoder_size * DECODERS);
	if (!c->state || !z->decoder_memory)
		return -ENOMEM;
	z->encoder = z->initStaticCCtx(c->state, c->state_size);
	for (size_t i = 0; i < DECODERS; i++) {
		struct decoder *d = &z->decoders[i];
		gu_lock_init(&d->lock, GU_RANK_STORE);
		d->context = z->initStaticDCtx((char *)z->decoder_memory + i * z->decoder_size, z->decoder_size);
		if (!d->context)
			return -EOPNOTSUPP;
	}
	return z->encoder ? 0 : -EOPNOTSUPP;
}

static int open_zstd(struct gu_coder *c)
{
	struct gu_zstd *z = c->zstd = gu_meta_alloc(sizeof(*z));
	if (!z)
		return -ENOMEM;
	if (!load_zstd(z))
		return -EOPNOTSUPP;
	if (!c->level)
		c->level = 3;
	if (c->level < z->minCLevel() || c->level > z->maxCLevel())
		return -EINVAL;
	return make_contexts(c, z);
}

static void close_zstd(struct gu_zstd *z)
{
	gu_meta_unmap(z->decoder_memory, z->decoder_size * DECODERS);
	if (z->library)
		dlclose(z->library);
	gu_meta_free(z, sizeof(*z));
}

static struct decoder *take_decoder(struct gu_zstd *z)
{
	for (size_t i = 0; i < DECODERS; i++)
		if (gu_trylock(&z->decoders[i].lock))
			return &z->decoders[i];
	struct decoder *d = &z->decoders[gu_add_relaxed(&z->turn, 1) % DECODERS];
	gu_lock(&d->lock);
	return d;
}

static size_t decode_zstd(struct gu_zstd *z, const void *bytes, size_t len, void *page)
{
	struct decoder *d = take_decoder(z);
	size_t n = z->decompressDCtx(d->context, page, GU_PAGE, bytes, len);
	gu_unlock(&d->lock);
	return z->isError(n) ? 0 : n;
}

/* ---- opening ---- */

static int open_lz4(struct gu_coder *c)
{
	c->state_size = gu_align_up((size_t)LZ4_sizeofState(), GU_PAGE);
	c->state = gu_meta_map(c->state_size);
	return c->state ? 0 : -ENOMEM;
}

int gu_coder_open(struct gu_coder *c, enum gu_codec codec, int level)
{
	int err;
	if (codec != GU_CODEC_LZ4 && codec != GU_CODEC_ZSTD)
		return -EINVAL;
	memset(c, 0, sizeof(*c));
	c->level = level;
	c->form = codec == GU_CODEC_LZ4 ? GU_FORM_LZ4 : GU_FORM_ZSTD;
	err = codec == GU_CODEC_LZ4 ? open_lz4(c) : open_zstd(c);
	if (err)
		gu_coder_close(c);
	return err;
}

void gu_coder_close(struct gu_coder *c)
{
	gu_meta_unmap(c->state, c->state_size);
	if (c->zstd)
		close_zstd(c->zstd);
	memset(c, 0, sizeof(*c));
}

void gu_coder_forked(struct gu_coder *c)
{
	for (size_t i = 0; c->zstd && i < DECODERS; i++)
		gu_lock_init(&c->zstd->decoders[i].lock, GU_RANK_STORE);
}

/* ---- pages ---- */

bool gu_page_is_word(const void *page, uint64_t *word)
{
	const uint64_t *w = page;
	*word = w[0];
	if (w[WORDS / 2] != w[0] || w[WORDS - 1] != w[0])
		return false;
	for (size_t i = 1; i < WORDS; i++)
		if (w[i] != w[0])
			return false;
	return true;
}

void gu_page_fill(void *page, uint64_t word)
{
	uint64_t *w = page;
	for (size_t i = 0; i < WORDS; i++)
		w[i] = word;
}

/* 0: not smaller than GU_CODEC_MOST. */
static size_t shrink(struct gu_coder *c, const void *page)
{
	if (c->form == GU_FORM_LZ4)
		return (size_t)lz4_encode(c->state, page, (char *)c->out, GU_PAGE, GU_CODEC_MOST, FASTER);
	size_t n = c->zstd->compressCCtx(c->zstd->encoder, c->out, GU_CODEC_MOST, page, GU_PAGE, c->level);
	return c->zstd->isError(n) ? 0 : n;
}

const void *gu_encode(struct gu_coder *c, const void *page, uint16_t *len, enum gu_form *form)
{
	size_t n = shrink(c, page);
	*len = (uint16_t)(n ? n : GU_PAGE);
	*form = n ? c->form : GU_FORM_RAW;
	return n ? c->out : page;
}

void gu_encoded_wipe(struct gu_coder *c, size_t len) { memset(c->out, 0, gu_min(len, sizeof(c->out))); }

int gu_decode(struct gu_coder *c, enum gu_form form, const void *bytes, size_t len, void *page)
{
	uint64_t word;
	switch (form) {
	case GU_FORM_RAW:
		if (len == GU_PAGE)
			memcpy(page, bytes, GU_PAGE);
		return len == GU_PAGE ? 0 : -EBADMSG;
	case GU_FORM_WORD:
		memcpy(&word, bytes, sizeof(word));
		gu_page_fill(page, word);
		return 0;
	case GU_FORM_LZ4:
		return lz4_decode(bytes, page, (int)len, GU_PAGE) == (int)GU_PAGE ? 0 : -EBADMSG;
	case GU_FORM_ZSTD:
		return c->zstd && decode_zstd(c->zstd, bytes, len, page) == GU_PAGE ? 0 : -EBADMSG;
	}
	return -EBADMSG;
}

uint32_t gu_bytes_sum(const void *bytes, size_t len) { return (uint32_t)XXH3_64bits(bytes, len); }
