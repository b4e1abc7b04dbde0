/* Reads pages from a file's pieces, compresses them one by one, and reads compressed pages by their descriptors. */
#include "dump.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* `length` bytes from `address` on lie in the file at `offset`. */
struct piece {
    uint64_t address, length, offset;
};

struct file {
    int fd;
    const struct piece *pieces;
    size_t count;
};

static int take_file(struct file *file, int fd, const Py_buffer *pieces)
{
    *file = (struct file){fd, pieces->buf, (size_t)pieces->len / sizeof(struct piece)};
    if ((size_t)pieces->len % sizeof(struct piece) == 0 && (uintptr_t)pieces->buf % 8 == 0)
        return 0;
    PyErr_SetString(PyExc_ValueError, "pieces are aligned triples of native u64");
    return -1;
}

/* Return the index of the first piece that ends behind `address`. */
static size_t piece_at(const struct file *file, uint64_t address)
{
    size_t low = 0, high = file->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (file->pieces[middle].address + file->pieces[middle].length <= address)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* Tell whether all of `length` bytes from `address` are in the pieces. */
static bool is_there(const struct file *file, uint64_t address, uint64_t length)
{
    for (size_t i = piece_at(file, address); length > 0; i++) {
        const struct piece *piece = &file->pieces[i];
        if (i >= file->count || address < piece->address)
            return false;
        uint64_t size = MIN(length, piece->address + piece->length - address);
        address += size;
        length -= size;
    }
    return true;
}

/* Read `length` bytes from `address`; 0, EFAULT when no piece has some of them, or as read_all. */
static int read_at(const struct file *file, uint64_t address, uint8_t *data, uint64_t length)
{
    size_t low = piece_at(file, address);
    while (length > 0) {
        const struct piece *piece = &file->pieces[low++];
        if (low > file->count || address < piece->address)
            return EFAULT;
        uint64_t size = MIN(length, piece->address + piece->length - address);
        int error = shared_read(file->fd, piece->offset + (address - piece->address), data, size);
        if (error != 0)
            return error;
        address += size;
        data += size;
        length -= size;
    }
    return 0;
}

static PyObject *raise_error(int error, const char *what, uint64_t where)
{
    /* Before Python 3.14 PyErr_Format does not know flags such as the # of %#llx, and prints the format unchanged. */
    if (error == EFAULT)
        PyErr_Format(dump_format_error, "there is no %s at 0x%llx", what, (unsigned long long)where);
    else if (error == ENODATA)
        PyErr_Format(dump_format_error, "the file is cut off: it ends before the %s at 0x%llx", what,
                     (unsigned long long)where);
    else if (error == EILSEQ)
        PyErr_Format(dump_format_error, "%s %llu is damaged", what, (unsigned long long)where);
    else if (error == ENOMEM)
        PyErr_NoMemory();
    else {
        errno = error;
        PyErr_SetFromErrno(PyExc_OSError);
    }
    return NULL;
}

static bool in_bitmap(const Py_buffer *bitmap, uint64_t start, uint64_t end)
{
    if (start <= end && end <= (uint64_t)bitmap->len * 8)
        return true;
    PyErr_SetString(PyExc_ValueError, "the frames do not lie in the bitmap");
    return false;
}

PyObject *dump_advance(PyObject *Py_UNUSED(module), PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"keep", "start", "end", "pages", NULL};
    Py_buffer keep;
    uint64_t start, end, most, found = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "y*O&O&O&:advance", names, &keep, shared_u64, &start, shared_u64,
                                     &end, shared_u64, &most))
        return NULL;
    PyObject *result = NULL;
    if (in_bitmap(&keep, start, end)) {
        uint64_t at = shared_next_bit(keep.buf, start, end, true), first = at;
        while (at < end && found < most) {
            uint64_t stop = MIN(shared_next_bit(keep.buf, at, end, false), at + (most - found));
            found += stop - at;
            at = stop < end && found < most ? shared_next_bit(keep.buf, stop, end, true) : stop;
        }
        result = Py_BuildValue("(KKK)", (unsigned long long)first, (unsigned long long)at, (unsigned long long)found);
    }
    PyBuffer_Release(&keep);
    return result;
}

static int gather(const struct file *file, const uint8_t *keep, const uint8_t *stored, uint64_t start, uint64_t end,
                  uint8_t *out, uint64_t *culprit)
{
    for (uint64_t at = start, stop; at < end; at = stop) {
        bool there = shared_bit(stored, at), kept = there && shared_bit(keep, at);
        stop = shared_next_bit(stored, at, end, !there);
        if (there)
            stop = MIN(stop, shared_next_bit(keep, at, end, !kept));
        size_t size = there ? (stop - at) * PAGE : 0;
        int error = kept ? read_at(file, at * PAGE, out, size) : 0;
        if (error != 0) {
            *culprit = at * PAGE;
            return error;
        }
        if (!kept)
            memset(out, 0, size);
        out += size;
    }
    return 0;
}

PyObject *dump_read_pages(PyObject *Py_UNUSED(module), PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"fd", "pieces", "keep", "stored", "start", "end", NULL};
    Py_buffer pieces, keep, stored;
    struct file file;
    uint64_t start, end, culprit = 0;
    int fd, error = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "iy*y*y*O&O&:read_pages", names, &fd, &pieces, &keep, &stored,
                                     shared_u64, &start, shared_u64, &end))
        return NULL;
    PyObject *result = NULL;
    if (in_bitmap(&keep, start, end) && in_bitmap(&stored, start, end) && take_file(&file, fd, &pieces) == 0) {
        uint64_t pages = shared_count_bits(stored.buf, start, end);
        result = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(pages * PAGE));
        uint8_t *out = result == NULL ? NULL : (uint8_t *)PyBytes_AsString(result);
        Py_BEGIN_ALLOW_THREADS;
        if (out != NULL)
            error = gather(&file, keep.buf, stored.buf, start, end, out, &culprit);
        Py_END_ALLOW_THREADS;
        if (error != 0) {
            Py_CLEAR(result);
            raise_error(error, "memory", culprit);
        }
    }
    PyBuffer_Release(&pieces);
    PyBuffer_Release(&keep);
    PyBuffer_Release(&stored);
    return result;
}

PyObject *dump_drop(PyObject *Py_UNUSED(module), PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"keep", "start", "end", "marks", NULL};
    Py_buffer keep, marks;
    uint64_t start, end, i = 0, dropped = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "w*O&O&y*:drop", names, &keep, shared_u64, &start, shared_u64, &end,
                                     &marks))
        return NULL;
    uint8_t *bits = keep.buf;
    bool good = in_bitmap(&keep, start, end);
    for (uint64_t at = start; good && i < (uint64_t)marks.len * 8; at++) {
        at = shared_next_bit(bits, at, end, true);
        if (at == end)
            break;
        if (shared_bit(marks.buf, i++)) {
            bits[at / 8] &= (uint8_t)~(1u << (at % 8));
            dropped++;
        }
    }
    PyBuffer_Release(&keep);
    PyBuffer_Release(&marks);
    return good ? PyLong_FromUnsignedLongLong(dropped) : NULL;
}

/* Compress all pages to `out`; return the bytes used. A zero page, if asked for, has a descriptor of all zeros. */
static size_t compress_all(struct codec *codec, uint32_t method, int level, bool zeros, const uint8_t *pages,
                           size_t count, struct desc *descs, uint8_t *out)
{
    size_t used = 0;
    for (size_t i = 0; i < count; i++) {
        const uint8_t *page = pages + i * PAGE;
        descs[i] = (struct desc){0};
        if (zeros && shared_is_zero_page(page))
            continue;
        size_t size = method == METHOD_NONE ? 0 : codec_compress(codec, method, level, page, out + used, CODEC_ROOM);
        if (size == 0)
            memcpy(out + used, page, PAGE);
        descs[i] = (struct desc){used, size ? (uint32_t)size : (uint32_t)PAGE, size ? method : METHOD_NONE, 0};
        used += descs[i].size;
    }
    return used;
}

PyObject *dump_compress_pages(PyObject *Py_UNUSED(module), PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"pages", "method", "level", "zeros", NULL};
    Py_buffer pages;
    int method, level, zeros = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "y*ii|p:compress_pages", names, &pages, &method, &level, &zeros))
        return NULL;
    PyObject *result = NULL, *table = NULL;
    size_t count = (size_t)pages.len / PAGE, used = 0;
    const char *missing = codec_open((uint32_t)method);
    uint8_t *out = malloc(count * PAGE + CODEC_ROOM);
    struct codec codec = {0};
    if ((size_t)pages.len % PAGE != 0) {
        PyErr_SetString(PyExc_ValueError, "not a whole number of pages");
    } else if (missing != NULL) {
        PyErr_Format(dump_format_error, "this compression needs %s", missing);
    } else if (out == NULL || !codec_prepare(&codec, (uint32_t)method, level)) {
        PyErr_NoMemory();
    } else if ((table = PyByteArray_FromStringAndSize(NULL, (Py_ssize_t)(count * sizeof(struct desc)))) != NULL) {
        struct desc *descs = (struct desc *)PyByteArray_AsString(table);
        Py_BEGIN_ALLOW_THREADS;
        used = compress_all(&codec, (uint32_t)method, level, zeros, pages.buf, count, descs, out);
        Py_END_ALLOW_THREADS;
        result = Py_BuildValue("(Oy#)", table, out, (Py_ssize_t)used);
    }
    Py_XDECREF(table);
    codec_free(&codec);
    free(out);
    PyBuffer_Release(&pages);
    return result;
}

PyObject *dump_place(PyObject *Py_UNUSED(module), PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"descs", "offset", "zero", NULL};
    Py_buffer descs;
    uint64_t offset, zero, zeros = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "w*O&O&:place", names, &descs, shared_u64, &offset, shared_u64,
                                     &zero))
        return NULL;
    struct desc *desc = descs.buf;
    for (size_t i = 0; i < (size_t)descs.len / sizeof *desc; i++) {
        if (desc[i].size == 0) {
            desc[i] = (struct desc){zero, (uint32_t)PAGE, METHOD_NONE, 0};
            zeros++;
        } else {
            desc[i].offset += offset;
        }
    }
    PyBuffer_Release(&descs);
    return PyLong_FromUnsignedLongLong(zeros);
}

/* Data of pages are read ahead; a page that many descriptors share (the zero page) is kept. */
#define AHEAD ((size_t)1 << 18)

struct reader {
    struct file file;
    struct codec codec;
    uint64_t ahead_at, shared_at;
    size_t ahead_size;
    uint8_t ahead[AHEAD], shared[PAGE], alone[2 * PAGE];
};

static int fetch(struct reader *reader, const struct desc *desc, const uint8_t **data)
{
    uint64_t end = desc->offset + desc->size;
    if (desc->offset >= reader->ahead_at && end <= reader->ahead_at + reader->ahead_size) {
        *data = reader->ahead + (desc->offset - reader->ahead_at);
        return 0;
    }
    *data = reader->alone;
    if (desc->offset > reader->ahead_at) {
        reader->ahead_size = 0;
        if (read_at(&reader->file, desc->offset, reader->ahead, AHEAD) == 0) {
            reader->ahead_at = desc->offset;
            reader->ahead_size = AHEAD;
            *data = reader->ahead;
            return 0;
        }
    }
    return read_at(&reader->file, desc->offset, reader->alone, desc->size);
}

static int read_page(struct reader *reader, const struct desc *desc, uint8_t *page)
{
    const uint8_t *data;
    if (desc->offset != 0 && desc->offset == reader->shared_at) {
        memcpy(page, reader->shared, PAGE);
        return 0;
    }
    if (desc->offset == 0 || desc->size == 0 || desc->size > PAGE || desc->offset > INT64_MAX - AHEAD)
        return EILSEQ;
    int error = fetch(reader, desc, &data);
    if (error == 0 && !codec_decompress(&reader->codec, desc->flags & METHODS, data, desc->size, page))
        error = EILSEQ;
    if (error == 0 && data == reader->alone) {
        memcpy(reader->shared, page, PAGE);
        reader->shared_at = desc->offset;
    }
    return error;
}

PyObject *dump_read_kdump(PyObject *Py_UNUSED(module), PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"fd", "pieces", "descs", "first", NULL};
    Py_buffer pieces, descs;
    uint64_t first, i = 0;
    int fd, error = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "iy*y*O&:read_kdump", names, &fd, &pieces, &descs, shared_u64,
                                     &first))
        return NULL;
    PyObject *result = NULL;
    const struct desc *desc = descs.buf;
    uint64_t count = (uint64_t)descs.len / sizeof *desc;
    const char *missing = NULL;
    for (uint64_t j = 0; missing == NULL && j < count; j++)
        missing = codec_open(desc[j].flags & METHODS);
    struct reader *reader = calloc(1, sizeof *reader);
    if (missing != NULL) {
        PyErr_Format(dump_format_error, "this compression needs %s", missing);
    } else if (reader == NULL) {
        PyErr_NoMemory();
    } else if (take_file(&reader->file, fd, &pieces) == 0 &&
               (result = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(count * PAGE))) != NULL) {
        uint8_t *out = (uint8_t *)PyBytes_AsString(result);
        Py_BEGIN_ALLOW_THREADS;
        for (i = 0; error == 0 && i < count; i++)
            error = read_page(reader, &desc[i], out + i * PAGE);
        Py_END_ALLOW_THREADS;
        if (error != 0) {
            Py_CLEAR(result);
            raise_error(error == EFAULT || error == ENODATA ? EILSEQ : error, "page", first + i - 1);
        }
    }
    if (reader != NULL)
        codec_free(&reader->codec);
    free(reader);
    PyBuffer_Release(&pieces);
    PyBuffer_Release(&descs);
    return result;
}

PyObject *dump_missing(PyObject *Py_UNUSED(module), PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"pieces", "descs", NULL};
    Py_buffer pieces, descs;
    struct file file;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "y*y*:missing", names, &pieces, &descs))
        return NULL;
    PyObject *result = NULL;
    uint64_t count = (uint64_t)descs.len / sizeof(struct desc);
    if (take_file(&file, -1, &pieces) == 0 &&
        (result = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)((count + 7) / 8))) != NULL) {
        uint8_t *marks = (uint8_t *)PyBytes_AsString(result);
        const struct desc *desc = descs.buf;
        memset(marks, 0, (count + 7) / 8);
        Py_BEGIN_ALLOW_THREADS;
        for (uint64_t i = 0; i < count; i++)
            if (desc[i].offset == 0 || (desc[i].size <= PAGE && !is_there(&file, desc[i].offset, desc[i].size)))
                marks[i / 8] |= (uint8_t)(1u << (i % 8));
        Py_END_ALLOW_THREADS;
    }
    PyBuffer_Release(&pieces);
    PyBuffer_Release(&descs);
    return result;
}
