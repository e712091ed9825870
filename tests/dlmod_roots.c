/* SPDX-License-Identifier: MIT */
/* dlmod_roots.c - a module that test_roots loads: a word in its data segment, one in its TLS. */
void *volatile *dlmod_data(void);
void *volatile *dlmod_tls(void);

static void *volatile in_data = (void *)1;
static __thread void *volatile in_tls;

__attribute__((visibility("default"))) void *volatile *dlmod_data(void) { return &in_data; }
__attribute__((visibility("default"))) void *volatile *dlmod_tls(void) { return &in_tls; }
