/* SPDX-License-Identifier: MIT */
/*
 * tables.c - hash tables, by eq?, eqv?, equal? or string=?; strong, or with weak keys. A strong one is a vector with keys and values by turns, open addressing.
 * Objects don't move, so an address is a hash, in an image too.
 *
 * An entry of a weak table is an ephemeron (mem_weak_bind()): it goes when its key does, also where the value leads back to the key. Ephemerons are no objects,
 * so what has them is ordinary memory, which is given back by a finalizer of the table. Keys that are no objects are in a strong part. In an
 * image entries are a plain list, of which a new weak table is made when somebody uses it.
 *
 * A table is one thread's at a time, as a vector is.
 */
#include <pthread.h>
#include <stdlib.h>

#include "lisp.h"

#define FN(name) static obj name(struct vm *vm __attribute__((unused)), unsigned n __attribute__((unused)), obj *args __attribute__((unused)))

#define GONE UNBOUND /* a key that was deleted */

enum how { BY_EQ, BY_EQV, BY_EQUAL };

struct table {
	obj header;
	obj how;     /* a fixnum */
	obj count, used; /* fixnums: entries, those deleted included for used */
	obj at;      /* a vector: key, value; key 0: none */
	obj weak;    /* FALSE; or a fixnum, the number of its weak part in this process */
	obj epoch;   /* world->epoch when that number was given */
	obj saved;   /* NIL, or entries of a weak part, in an image */
};

struct entry {
	struct entry *next;
	struct mem_weak *weak;
	obj key; /* seen by no collector: to be compared, once weak says that it lives */
};

struct weak_part {
	struct mem_weak *table; /* the table that it is of, weakly */
	struct entry **chain;
	size_t chains, count;
	uint64_t number;
	struct weak_part *next;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct weak_part *parts; /* guard: lock */
static uint64_t last_number;    /* guard: lock */

static uint64_t mix(uint64_t x)
{
	x *= 0x9e3779b97f4a7c15u;
	return x ^ x >> 32;
}

static uint64_t hash_equal(obj x, unsigned depth)
{
	uint64_t h = 17;

	if (is_flonum(x)) {
		memcpy(&h, (void *)(x - TAG_FLONUM), sizeof(h));
		return mix(h);
	}
	if (is_string(x) || is_type(x, T_BYTES))
		return hash_bytes(string_of(x)->at, length_of(x));
	if (is_vector(x) && depth < 4) {
		for (size_t i = 0; i < length_of(x) && i < 8; i++)
			h = mix(h + hash_equal(vector_of(x)->at[i], depth + 1));
		return h + length_of(x);
	}
	if (!is_pair(x))
		return is_vector(x) ? length_of(x) : mix(x);
	for (unsigned i = 0; is_pair(x) && i < 8 && depth < 4; i++, x = cdr(x))
		h = mix(h + hash_equal(car(x), depth + 1));
	return h;
}

static uint64_t hash(const struct table *t, obj key)
{
	enum how how = (enum how)fixnum_value(t->how);

	return how == BY_EQUAL || (how == BY_EQV && is_flonum(key)) ? hash_equal(key, 0) : mix(key);
}

static bool same(const struct table *t, obj a, obj b)
{
	if (a == b)
		return true;
	switch ((enum how)fixnum_value(t->how)) {
	case BY_EQ:
		return false;
	case BY_EQV:
		return eqv(a, b);
	default:
		return equal(a, b, 0);
	}
}

/* ---- the strong part ---- */

/* The key's place; else, with for_new, where it may go; or NULL. */
static obj *find(const struct table *t, obj key, bool for_new)
{
	struct vector *v = vector_of(t->at);
	size_t mask = length_of(t->at) / 2 - 1;
	obj *gone = NULL;

	for (size_t i = hash(t, key) & mask;; i = (i + 1) & mask) {
		obj *at = &v->at[2 * i];

		if (!*at)
			return for_new ? gone ? gone : at : NULL;
		if (*at == GONE)
			gone = gone ? gone : at;
		else if (same(t, *at, key))
			return at;
	}
}

static void resize(struct table *t, size_t places)
{
	struct vector *was = vector_of(t->at);

	t->at = make_vector(T_VECTOR, places * 2, 0);
	t->used = t->count;
	for (size_t i = 0; i < header_length(was->header); i += 2)
		if (was->at[i] && was->at[i] != GONE) {
			obj *to = find(t, was->at[i], true);

			to[0] = was->at[i];
			to[1] = was->at[i + 1];
		}
}

static void put_strong(struct table *t, obj key, obj value)
{
	obj *at = find(t, key, true);

	if (!*at || *at == GONE) {
		t->used += *at ? 0 : 2;
		t->count += 2;
		at[0] = key;
	}
	at[1] = value;
	size_t places = length_of(t->at) / 2;
	if ((size_t)fixnum_value(t->used) * 3 > places * 2)
		resize(t, (size_t)fixnum_value(t->count) * 3 > places ? places * 2 : places);
}

/* ---- the weak part ---- */

static void free_part(void *table, void *data)
{
	struct weak_part *part = data;

	(void)table;
	pthread_mutex_lock(&lock);
	for (struct weak_part **at = &parts; *at; at = &(*at)->next)
		if (*at == part) {
			*at = part->next;
			break;
		}
	pthread_mutex_unlock(&lock);
	for (size_t i = 0; i < part->chains; i++)
		for (struct entry *e = part->chain[i], *next; e; e = next) {
			next = e->next;
			mem_weak_destroy(e->weak);
			free(e);
		}
	mem_weak_destroy(part->table);
	free(part->chain);
	free(part);
}

static void *allocate(size_t size)
{
	void *p = calloc(1, size);

	if (!p)
		abort();
	return p;
}

static struct weak_part *make_part(struct table *t)
{
	struct weak_part *part = allocate(sizeof(*part));

	part->chains = 16;
	part->chain = allocate(part->chains * sizeof(*part->chain));
	part->table = mem_weak_create(t, NULL);
	mem_finalizer_set(t, free_part, part);
	pthread_mutex_lock(&lock);
	part->number = ++last_number;
	part->next = parts;
	parts = part;
	pthread_mutex_unlock(&lock);
	t->weak = fixnum((int64_t)part->number);
	t->epoch = world->epoch;
	return part;
}

static void put(struct table *t, obj key, obj value);

static struct weak_part *part_of(struct table *t)
{
	struct weak_part *part;

	if (t->epoch != world->epoch) { /* it comes from an image */
		obj saved = t->saved;

		t->saved = NIL;
		part = make_part(t);
		for (; saved != NIL; saved = cdr(saved))
			put(t, car(car(saved)), cdr(car(saved)));
		return part;
	}
	pthread_mutex_lock(&lock);
	for (part = parts; part->number != (uint64_t)fixnum_value(t->weak); part = part->next)
		;
	pthread_mutex_unlock(&lock);
	return part;
}

static bool is_weak_key(obj x) { return (is_object(x) || is_pair(x) || is_flonum(x)); }
static void *base_of(obj x) { return (void *)(x & ~(obj)7); }

/* Frees entries that died as it meets them. */
static struct entry *find_weak(const struct table *t, struct weak_part *part, obj key)
{
	struct entry **at = &part->chain[hash(t, key) & (part->chains - 1)];

	while (*at) {
		struct entry *e = *at;
		void *lives;

		mem_weak_value(e->weak, &lives);
		if (!lives) {
			*at = e->next;
			mem_weak_destroy(e->weak);
			free(e);
			part->count--;
			continue;
		}
		if (same(t, e->key, key))
			return e;
		at = &e->next;
	}
	return NULL;
}

static void grow_part(const struct table *t, struct weak_part *part)
{
	struct entry **more = allocate(part->chains * 2 * sizeof(*more));
	size_t mask = part->chains * 2 - 1, live = 0;

	for (size_t i = 0; i < part->chains; i++)
		for (struct entry *e = part->chain[i], *next; e; e = next) {
			void *lives;

			next = e->next;
			mem_weak_value(e->weak, &lives);
			if (!lives) {
				mem_weak_destroy(e->weak);
				free(e);
				continue;
			}
			struct entry **chain = &more[hash(t, e->key) & mask];
			e->next = *chain;
			*chain = e;
			live++;
		}
	free(part->chain);
	part->chain = more;
	part->chains *= 2;
	part->count = live;
}

static void put_weak(struct table *t, obj key, obj value)
{
	struct weak_part *part = part_of(t);
	struct entry *e = find_weak(t, part, key);

	if (e) {
		mem_weak_bind(e->weak, base_of(key), (void *)value);
		return;
	}
	if (part->count >= part->chains)
		grow_part(t, part);
	e = allocate(sizeof(*e));
	e->key = key;
	e->weak = mem_weak_create(base_of(key), (void *)value);
	struct entry **chain = &part->chain[hash(t, key) & (part->chains - 1)];
	e->next = *chain;
	*chain = e;
	part->count++;
}

static void put(struct table *t, obj key, obj value)
{
	if (t->weak != FALSE && is_weak_key(key))
		put_weak(t, key, value);
	else
		put_strong(t, key, value);
}

static obj get(struct table *t, obj key, obj otherwise)
{
	if (t->weak == FALSE || !is_weak_key(key)) {
		const obj *at = find(t, key, false);

		return at ? at[1] : otherwise;
	}
	struct entry *e = find_weak(t, part_of(t), key);
	void *lives = NULL;
	obj value = e ? (obj)mem_weak_value(e->weak, &lives) : 0;
	return lives ? value : otherwise;
}

static void delete(struct table *t, obj key)
{
	if (t->weak != FALSE && is_weak_key(key)) {
		struct entry *e = find_weak(t, part_of(t), key);

		if (e)
			mem_weak_bind(e->weak, NULL, NULL); /* as if it had died */
		return;
	}
	obj *at = find(t, key, false);
	if (at) {
		at[0] = GONE;
		at[1] = 0;
		t->count -= 2;
	}
}

/* All entries: a list of pairs. */
static obj entries(struct table *t)
{
	obj done = NIL;

	for (size_t i = 0; i < length_of(t->at); i += 2)
		if (vector_of(t->at)->at[i] && vector_of(t->at)->at[i] != GONE)
			done = cons(cons(vector_of(t->at)->at[i], vector_of(t->at)->at[i + 1]), done);
	if (t->weak == FALSE)
		return done;
	struct weak_part *part = part_of(t);
	for (size_t i = 0; i < part->chains; i++)
		for (struct entry *e = part->chain[i]; e; e = e->next) {
			void *lives;
			obj value = (obj)mem_weak_value(e->weak, &lives);

			if (lives)
				done = cons(cons((obj)lives | (e->key & 7), value), done);
		}
	return done;
}

/* ---- for images ---- */

/* Weak parts of all tables become lists, or go again. One thread, the others don't use their tables. */
void tables_save(bool begin)
{
	for (struct weak_part *part = parts; part; part = part->next) {
		void *table;
		struct table *t = (mem_weak_value(part->table, &table), table);

		if (!t)
			continue;
		t->saved = NIL;
		for (obj all = begin ? entries(t) : NIL; all != NIL; all = cdr(all))
			if (is_weak_key(car(car(all))))
				t->saved = cons(car(all), t->saved);
	}
}

/* ---- primitives ---- */

static obj make(obj how, bool weak)
{
	struct table *t = mem_words(sizeof(*t));

	*t = (struct table){HEADER(T_TABLE, 0), how, fixnum(0), fixnum(0), make_vector(T_VECTOR, 16, 0), FALSE, FALSE, NIL};
	if (weak) {
		mem_finalizers_run(); /* of tables that were dropped */
		make_part(t);
	}
	return (obj)t;
}

FN(make_table) { return make(args[0], n > 1 && args[1] != FALSE); }

static obj not_table(const char *who, obj x) { return fail(who, "not a hash table", x); }

FN(table_set)
{
	if (!is_type(args[0], T_TABLE))
		return not_table("hash-table-set!", args[0]);
	put((struct table *)args[0], args[1], args[2]);
	return UNSPECIFIED;
}

FN(table_ref_default)
{
	if (!is_type(args[0], T_TABLE))
		return not_table("hash-table-ref/default", args[0]);
	return get((struct table *)args[0], args[1], args[2]);
}

FN(table_delete)
{
	if (!is_type(args[0], T_TABLE))
		return not_table("hash-table-delete!", args[0]);
	delete((struct table *)args[0], args[1]);
	return UNSPECIFIED;
}

FN(table_entries)
{
	return is_type(args[0], T_TABLE) ? entries((struct table *)args[0]) : not_table("hash-table->alist", args[0]);
}

FN(table_count)
{
	if (!is_type(args[0], T_TABLE))
		return not_table("hash-table-count", args[0]);
	struct table *t = (struct table *)args[0];
	return t->weak == FALSE ? t->count : fixnum(list_length(entries(t)));
}

FN(table_p) { return boolean(is_type(args[0], T_TABLE)); }
FN(equal_hash) { return fixnum((int64_t)(hash_equal(args[0], 0) >> 2)); }

const struct primitive_entry table_primitives[] = {
	{"%make-table", make_table, 1, 2}, {"hash-table-set!", table_set, 3, 3}, {"hash-table-ref/default", table_ref_default, 3, 3},
	{"hash-table-delete!", table_delete, 2, 2}, {"hash-table->alist", table_entries, 1, 1}, {"hash-table-count", table_count, 1, 1},
	{"hash-table?", table_p, 1, 1}, {"equal-hash", equal_hash, 1, 1}, {NULL, NULL, 0, 0},
};
