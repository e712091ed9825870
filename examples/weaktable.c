/* SPDX-License-Identifier: MIT */
/*
 * weaktable.c - a table with weak keys: an entry says something of an object of the heap for as long as that object lives, and does not keep it
 * alive, not even if the value points back to its key. What a runtime needs for properties of objects, interning, and caches.
 *
 * An entry is an ephemeron (gcuffd_weak_bind()): key and value are cleared together when the key dies. Objects don't move, so the
 * key's address is its hash. The table itself is ordinary memory: entries whose keys have died are found, and used again, as they
 * are met. One thread at a time; many would need a lock around put().
 *
 *   weaktable [N]   makes N entries (100000), drops every other key, collects, and says what is left
 */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <gcuffd.h>

struct entry {
	struct entry *next;
	struct gcuffd_weak *weak;
};

struct weaktable {
	struct gcuffd_heap *heap;
	size_t buckets; /* a power of two */
	struct entry **bucket;
};

static bool table_make(struct weaktable *table, struct gcuffd_heap *heap, size_t buckets)
{
	*table = (struct weaktable){heap, buckets, calloc(buckets, sizeof(*table->bucket))};
	return table->bucket;
}

static struct entry **chain_of(const struct weaktable *table, const void *key)
{
	return &table->bucket[((uintptr_t)key >> 4) * 0x9e3779b97f4a7c15u >> 32 & (table->buckets - 1)];
}

/* The key's entry; else one that has died, or NULL. */
static struct entry *find(const struct weaktable *table, const void *key, bool or_dead)
{
	struct entry *dead = NULL;

	for (struct entry *e = *chain_of(table, key); e; e = e->next) {
		const void *has = gcuffd_weak_get(table->heap, e->weak);

		if (has == key)
			return e;
		if (!has)
			dead = e;
	}
	return or_dead ? dead : NULL;
}

static struct entry *add_entry(const struct weaktable *table, const void *key)
{
	struct entry *e = malloc(sizeof(*e)), **chain = chain_of(table, key);

	if (!e || gcuffd_weak_create(table->heap, key, &e->weak)) {
		free(e);
		return NULL;
	}
	e->next = *chain;
	return *chain = e;
}

static bool table_put(struct weaktable *table, void *key, void *value)
{
	struct entry *e = find(table, key, true);

	if (!e)
		e = add_entry(table, key);
	return e && !gcuffd_weak_bind(table->heap, e->weak, key, value);
}

static void *table_get(const struct weaktable *table, const void *key)
{
	const struct entry *e = find(table, key, false);

	return e ? gcuffd_weak_value(table->heap, e->weak, NULL) : NULL;
}

static size_t table_count(const struct weaktable *table)
{
	size_t n = 0;

	for (size_t i = 0; i < table->buckets; i++)
		for (const struct entry *e = table->bucket[i]; e; e = e->next)
			n += gcuffd_weak_get(table->heap, e->weak) != NULL;
	return n;
}

static void table_free(struct weaktable *table)
{
	for (size_t i = 0; i < table->buckets; i++)
		for (struct entry *e = table->bucket[i], *next; e; e = next) {
			next = e->next;
			gcuffd_weak_destroy(table->heap, e->weak);
			free(e);
		}
	free(table->bucket);
}

/* ---- a use of it ---- */

struct thing {
	struct thing *next;
	uint64_t number;
};

struct property {
	struct thing *owner; /* points back: a table of strong values would keep every key for ever */
	uint64_t square;
};

static bool describe(struct weaktable *table, struct thing *thing)
{
	struct property *p = gcuffd_alloc(table->heap, sizeof(*p));

	if (!p)
		return false;
	*p = (struct property){thing, thing->number * thing->number};
	return table_put(table, thing, p);
}

/* A list of things, each with a property. */
static struct thing *make_things(struct weaktable *table, uint64_t n)
{
	struct thing *list = NULL;

	for (uint64_t i = 0; i < n; i++) {
		struct thing *thing = gcuffd_alloc(table->heap, sizeof(*thing));

		if (!thing)
			return NULL;
		*thing = (struct thing){list, i};
		list = thing;
		if (!describe(table, thing))
			return NULL;
	}
	return list;
}

static void drop_every_other(struct thing *list)
{
	for (; list && list->next; list = list->next)
		list->next = list->next->next;
}

static uint64_t count_wrong(const struct weaktable *table, const struct thing *list)
{
	uint64_t wrong = 0;

	for (; list; list = list->next) {
		const struct property *p = table_get(table, list);

		wrong += !p || p->owner != list || p->square != list->number * list->number;
	}
	return wrong;
}

int main(int argc, char **argv)
{
	uint64_t n = argc > 1 ? strtoull(argv[1], NULL, 0) : 100000;
	struct weaktable table;
	struct gcuffd_heap *heap;

	if (gcuffd_heap_create(NULL, &heap) || gcuffd_thread_attach() || !table_make(&table, heap, 1 << 16)) {
		fprintf(stderr, "weaktable: no heap can be made here; gcuffd probe says more\n");
		return 1;
	}
	struct thing *things = make_things(&table, n);
	if (!things) {
		fprintf(stderr, "weaktable: out of memory\n");
		return 1;
	}
	size_t before = table_count(&table);
	drop_every_other(things);
	if (gcuffd_collect(heap))
		return 1;
	size_t after = table_count(&table);
	uint64_t wrong = count_wrong(&table, things);
	printf("%zu entries; every other key dropped, and collected: %zu; wrong: %llu\n", before, after, (unsigned long long)wrong);
	table_free(&table);
	return wrong || gcuffd_heap_destroy(heap);
}
