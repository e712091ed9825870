/* SPDX-License-Identifier: MIT */
/*
 * storecodec.h - a page made smaller, and back. No memory but what gu_codec_open() mapped; liblz4 is linked, libzstd is
 * loaded when it is asked for. Encoding: one thread at a time. Decoding: any number.
 */
#ifndef GU_SPACE_STORECODEC_H
#define GU_SPACE_STORECODEC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/lock.h"
#include "space/store.h"

#define GU_CODEC_MOST 3840 /* a page that stays larger is kept as it is */

enum gu_form { GU_FORM_RAW, GU_FORM_WORD, GU_FORM_LZ4, GU_FORM_ZSTD };

struct gu_zstd; /* the library's functions */

struct gu_coder {
	enum gu_form form;
	int level;
	void *state; /* of the encoder */
	size_t state_size;
	uint8_t out[GU_CODEC_MOST];
	struct gu_zstd *zstd; /* NULL without */
};

/* -EOPNOTSUPP: no such library here; -EINVAL: level; -ENOMEM. Calls the loader, and so malloc. */
int gu_coder_open(struct gu_coder *coder, enum gu_codec codec, int level);
void gu_coder_close(struct gu_coder *coder);
/* In the child of a fork. */
void gu_coder_forked(struct gu_coder *coder);

/* Whether the page is one word over and over. */
bool gu_page_is_word(const void *page, uint64_t *word);
void gu_page_fill(void *page, uint64_t word);

/* Into coder->out, or the page as it is: where the bytes are. */
const void *gu_encode(struct gu_coder *coder, const void *page, uint16_t *len, enum gu_form *form);
/* len bytes of coder->out are no longer needed. What an encoder or decoder of zstd keeps for itself stays until its next page. */
void gu_encoded_wipe(struct gu_coder *coder, size_t len);
/* -EBADMSG: not what an encoder makes of a page. */
int gu_decode(struct gu_coder *coder, enum gu_form form, const void *bytes, size_t len, void *page);

uint32_t gu_bytes_sum(const void *bytes, size_t len);

#endif
