/* The CPU's time stamp counter: the one clock that keeps counting while kernels take turns on a machine. */
#include "core.h"

#include <x86intrin.h>

PyObject *core_time_stamp(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {NULL};

    (void)module;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, ":time_stamp", names))
        return NULL;
    return PyLong_FromUnsignedLongLong(__rdtsc());
}
