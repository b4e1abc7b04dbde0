/* Bitmaps and pages of zeros, for Python. */
#include "core.h"

#include <string.h>

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
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "y*O&O&|pO&:bitmap_runs", names, &bitmap, shared_u64, &at,
                                     shared_u64, &end, &value, shared_u64, &gap))
        return NULL;
    PyObject *list = NULL;
    if (at > end || end > (uint64_t)bitmap.len * 8) {
        PyErr_Format(PyExc_ValueError, "bits %llu to %llu do not lie in a bitmap of %zd bytes", (unsigned long long)at,
                     (unsigned long long)end, bitmap.len);
        goto done;
    }
    list = PyList_New(0);
    for (at = shared_next_bit(bitmap.buf, at, end, value); list != NULL && at < end;) {
        uint64_t start = at, stop;
        do {
            stop = shared_next_bit(bitmap.buf, at, end, !value);
            at = shared_next_bit(bitmap.buf, stop, end, value);
        } while (at < end && at - stop < gap);
        if (append_run(list, start, stop) != 0)
            Py_CLEAR(list);
    }
done:
    PyBuffer_Release(&bitmap);
    return list;
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
            if (shared_is_zero_page((const uint8_t *)buffer.buf + i * PAGE))
                bits[i / 8] |= (uint8_t)(1 << (i % 8));
        Py_END_ALLOW_THREADS;
    }
    PyBuffer_Release(&buffer);
    return result;
}
