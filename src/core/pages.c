/* Page classes and bitmaps: one bit a page frame, lowest bit of the lowest byte first (little endian hosts). */
#include "core.h"

#include <string.h>

#define MAX_ORDER 20

/* Set the bits [start, end) of `bits`; return how many were clear before. */
static uint64_t set_bits(uint8_t *bits, uint64_t start, uint64_t end)
{
    uint64_t fresh = 0;
    while (start < end) {
        uint64_t byte = start / 8, stop = MIN(end, (byte + 1) * 8);
        unsigned mask = (0xffu << (start % 8)) & (0xffu >> ((byte + 1) * 8 - stop));
        fresh += (uint64_t)__builtin_popcount(mask & ~bits[byte]);
        bits[byte] |= (uint8_t)mask;
        start = stop;
    }
    return fresh;
}

struct page_structs {
    const uint8_t *data;
    uint64_t count, stride, first;
    uint64_t type_at, private_at, buddy;
};

/* Mark free blocks; return true, or false with the pfn of a block whose order makes no sense. */
static bool mark_buddy(const struct page_structs *pages, uint8_t *bits, uint64_t bit_count, uint64_t bits_first,
                       uint64_t *marked, uint64_t *culprit)
{
    for (uint64_t i = 0; i < pages->count;) {
        const uint8_t *page = pages->data + i * pages->stride;
        uint64_t pfn = pages->first + i, order;
        uint32_t type;
        memcpy(&type, page + pages->type_at, sizeof type);
        if (type != pages->buddy) {
            i++;
            continue;
        }
        memcpy(&order, page + pages->private_at, sizeof order);
        if (order > MAX_ORDER) {
            *culprit = pfn;
            return false;
        }
        uint64_t start = MAX(pfn, bits_first) - bits_first;
        uint64_t end = MAX(pfn + (1ull << order), bits_first) - bits_first;
        *marked += set_bits(bits, MIN(start, bit_count), MIN(end, bit_count));
        i += 1ull << order;
    }
    return true;
}

PyObject *core_classify_buddy(PyObject *Py_UNUSED(module), PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"structs", "first_pfn", "stride", "off_type", "off_private",
                            "buddy_type", "bitmap", "bitmap_first_pfn", NULL};
    Py_buffer structs, bitmap;
    struct page_structs pages;
    uint64_t bits_first, marked = 0, culprit = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "y*O&O&O&O&O&w*O&:classify_buddy", names, &structs, to_u64,
                                     &pages.first, to_u64, &pages.stride, to_u64, &pages.type_at, to_u64,
                                     &pages.private_at, to_u64, &pages.buddy, &bitmap, to_u64, &bits_first))
        return NULL;
    PyObject *result = NULL;
    uint64_t size = (uint64_t)structs.len;
    if (pages.stride == 0 || size % pages.stride != 0) {
        PyErr_Format(PyExc_ValueError, "%zu bytes are not a whole number of page structs", (size_t)size);
    } else if (pages.type_at > pages.stride || pages.stride - pages.type_at < 4 || pages.private_at > pages.stride ||
               pages.stride - pages.private_at < 8) {
        PyErr_SetString(PyExc_ValueError, "a field lies outside the page struct");
    } else if (pages.first > UINT64_MAX / 2 || bits_first > UINT64_MAX / 2) {
        PyErr_SetString(PyExc_ValueError, "a page frame number is impossible");
    } else {
        bool good;
        pages.data = structs.buf;
        pages.count = size / pages.stride;
        Py_BEGIN_ALLOW_THREADS;
        good = mark_buddy(&pages, bitmap.buf, (uint64_t)bitmap.len * 8, bits_first, &marked, &culprit);
        Py_END_ALLOW_THREADS;
        if (good)
            result = PyLong_FromUnsignedLongLong(marked);
        else
            PyErr_Format(PyExc_ValueError, "free block at pfn %llu has an impossible order",
                         (unsigned long long)culprit);
    }
    PyBuffer_Release(&structs);
    PyBuffer_Release(&bitmap);
    return result;
}

/* Return the first bit in [at, end) that is `value`, or `end`. Words are read 8 bytes at a time. */
static uint64_t next_bit(const uint8_t *bits, uint64_t at, uint64_t end, bool value)
{
    while (at < end) {
        uint64_t byte = at / 8, word = 0, bytes = MIN((end + 7) / 8 - byte, 8);
        memcpy(&word, bits + byte, bytes);
        word = (value ? word : ~word) >> (at % 8);
        if (word != 0)
            return MIN(end, at + (uint64_t)__builtin_ctzll(word));
        at = (byte + bytes) * 8;
    }
    return end;
}

static int append_run(PyObject *list, uint64_t start, uint64_t end)
{
    PyObject *pair = Py_BuildValue("(KK)", (unsigned long long)start, (unsigned long long)end);
    int result = pair == NULL ? -1 : PyList_Append(list, pair);
    Py_XDECREF(pair);
    return result;
}

PyObject *core_bitmap_runs(PyObject *Py_UNUSED(module), PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"bitmap", "start_bit", "end_bit", "value", "min_gap", NULL};
    Py_buffer bitmap;
    uint64_t at, end, gap = 1;
    int value = 1;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "y*O&O&|pO&:bitmap_runs", names, &bitmap, to_u64, &at, to_u64, &end,
                                     &value, to_u64, &gap))
        return NULL;
    PyObject *list = NULL;
    if (at > end || end > (uint64_t)bitmap.len * 8) {
        PyErr_Format(PyExc_ValueError, "bits %llu to %llu do not lie in a bitmap of %zd bytes", (unsigned long long)at,
                     (unsigned long long)end, bitmap.len);
        goto done;
    }
    list = PyList_New(0);
    for (at = next_bit(bitmap.buf, at, end, value); list != NULL && at < end;) {
        uint64_t start = at, stop;
        do {
            stop = next_bit(bitmap.buf, at, end, !value);
            at = next_bit(bitmap.buf, stop, end, value);
        } while (at < end && at - stop < gap);
        if (append_run(list, start, stop) != 0)
            Py_CLEAR(list);
    }
done:
    PyBuffer_Release(&bitmap);
    return list;
}

static bool is_zero_page(const uint8_t *page)
{
    uint64_t first;
    memcpy(&first, page, sizeof first);
    /* Equal to itself shifted by eight bytes, of which the first are zero: then all are. */
    return first == 0 && memcmp(page, page + 8, PAGE - 8) == 0;
}

PyObject *core_zero_pages(PyObject *Py_UNUSED(module), PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"buffer", NULL};
    Py_buffer buffer;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "y*:zero_pages", names, &buffer))
        return NULL;
    PyObject *result = NULL;
    uint64_t pages = (uint64_t)buffer.len / PAGE;
    if ((uint64_t)buffer.len % PAGE != 0)
        PyErr_Format(PyExc_ValueError, "%zd bytes are not a whole number of pages", buffer.len);
    else
        result = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)((pages + 7) / 8));
    if (result != NULL) {
        uint8_t *bits = (uint8_t *)PyBytes_AsString(result);
        memset(bits, 0, (pages + 7) / 8);
        Py_BEGIN_ALLOW_THREADS;
        for (uint64_t i = 0; i < pages; i++)
            if (is_zero_page((const uint8_t *)buffer.buf + i * PAGE))
                bits[i / 8] |= (uint8_t)(1 << (i % 8));
        Py_END_ALLOW_THREADS;
    }
    PyBuffer_Release(&buffer);
    return result;
}
