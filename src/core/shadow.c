/*
 * Reads the kernel's indirection list. It has an entry for each page of a load, and scattered pages make tens of
 * thousands of runs, which Python would read slowly. Formats: kjump/kexec/kimage.py.
 */
#include "core.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WORDS (PAGE / sizeof(uint64_t))
#define MOST_PAGES (1u << 23)

struct run {
    uint64_t destination, source, count; /* frames */
};

_Static_assert(sizeof(struct run) == SHADOW_RUN_SIZE, "kjump.kexec.kimage unpacks runs");

struct list {
    struct run *runs;
    size_t count, room;
    struct run run; /* the run that is being read; it may be empty */
    bool placed;    /* a destination entry has been read */
};

/* Append the run that has been read to the result, and begin the next one. */
static bool next_run(struct list *list, uint64_t destination, uint64_t source, uint64_t count)
{
    if (list->run.count != 0) {
        if (list->count == list->room) {
            size_t room = list->room == 0 ? WORDS : 2 * list->room;
            struct run *runs = realloc(list->runs, room * sizeof *runs);
            if (runs == NULL) {
                PyErr_NoMemory();
                return false;
            }
            list->runs = runs;
            list->room = room;
        }
        list->runs[list->count++] = list->run;
    }
    list->run = (struct run){destination, source, count};
    return true;
}

/* Read `n` entries; false with an exception. `*following`: the address of the next page of entries, 0 at the end. */
static bool take(struct list *list, const uint64_t *entries, size_t n, uint64_t *following)
{
    for (size_t i = 0; i < n; i++) {
        uint64_t kind = entries[i] & (PAGE - 1), frame = entries[i] / PAGE;
        struct run *run = &list->run;
        if (kind & IND_DONE) {
            *following = 0;
            return next_run(list, 0, 0, 0);
        } else if (kind & IND_INDIRECTION) {
            *following = page_down(entries[i]);
            if (*following != 0)
                return true;
            break;
        } else if (kind & IND_DESTINATION) {
            if (!next_run(list, frame, 0, 0))
                return false;
            list->placed = true;
        } else if (!(kind & IND_SOURCE) || !list->placed) {
            char entry[24];
            snprintf(entry, sizeof entry, "%#llx", (unsigned long long)entries[i]);
            PyErr_Format(PyExc_ValueError, "the kernel's indirection list has an entry without meaning: %s", entry);
            return false;
        } else if (run->count != 0 && frame == run->source + run->count) {
            run->count++;
        } else if (run->count == 0) {
            run->source = frame;
            run->count = 1;
        } else if (!next_run(list, run->destination + run->count, frame, 1)) {
            return false;
        }
    }
    PyErr_SetString(PyExc_ValueError, "the kernel's indirection list does not end");
    return false;
}

/* Read the page at `address` with the Python function `read`; false with an exception. */
static bool read_page(PyObject *read, uint64_t address, uint64_t *entries)
{
    PyObject *page = PyObject_CallFunction(read, "Kn", (unsigned long long)address, (Py_ssize_t)PAGE);
    Py_buffer bytes;
    bool good = page != NULL && PyObject_GetBuffer(page, &bytes, PyBUF_SIMPLE) == 0;
    if (good) {
        good = bytes.len == (Py_ssize_t)PAGE;
        if (good)
            memcpy(entries, bytes.buf, PAGE);
        else
            PyErr_Format(PyExc_ValueError, "a page of the kernel's indirection list has %zd bytes", bytes.len);
        PyBuffer_Release(&bytes);
    }
    Py_XDECREF(page);
    return good;
}

PyObject *core_shadow_runs(PyObject *Py_UNUSED(module), PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"read", "head", NULL};
    struct list list = {0};
    PyObject *read, *result = NULL;
    uint64_t entries[WORDS], following;
    size_t pages = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO&:shadow_runs", names, &read, shared_u64, &entries[0]))
        return NULL;
    bool good = take(&list, entries, 1, &following);
    while (good && following != 0) {
        if (++pages > MOST_PAGES) {
            PyErr_SetString(PyExc_ValueError, "the kernel's indirection list does not end");
            good = false;
        } else {
            good = read_page(read, following, entries) && take(&list, entries, WORDS, &following);
        }
    }
    if (good)
        result = PyBytes_FromStringAndSize((const char *)list.runs, (Py_ssize_t)(list.count * sizeof *list.runs));
    free(list.runs);
    return result;
}
