/* The module object. Docstrings are in _dump.pyi. */
#include "dump.h"

PyObject *FormatError;

int to_u64(PyObject *object, void *u64)
{
    unsigned long long value = PyLong_AsUnsignedLongLong(object);
    if (value == (unsigned long long)-1 && PyErr_Occurred()) {
        if (PyErr_ExceptionMatches(PyExc_OverflowError))
            PyErr_Format(PyExc_ValueError, "%R is negative or too large", object);
        return 0;
    }
    *(uint64_t *)u64 = value;
    return 1;
}

#define FUNCTION(name, doc) {#name, (PyCFunction)(void (*)(void))dump_##name, METH_VARARGS | METH_KEYWORDS, doc}

static PyMethodDef functions[] = {
    FUNCTION(advance, "Find where the next pages of a bitmap end."),
    FUNCTION(compress_pages, "Compress pages one by one, with descriptors."),
    FUNCTION(drop, "Clear bits of a bitmap whose pages are marked."),
    FUNCTION(place, "Make the offsets of page descriptors absolute."),
    FUNCTION(read_kdump, "Read pages of a kdump-compressed file by their descriptors."),
    FUNCTION(read_pages, "Read the pages of a bitmap from a file's pieces."),
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "kjump._dump",
    .m_doc = "Pages as dump files keep them, without the interpreter's lock.",
    .m_size = -1,
    .m_methods = functions,
};

PyMODINIT_FUNC PyInit__dump(void)
{
    PyObject *errors = PyImport_ImportModule("kjump.errors");
    FormatError = errors == NULL ? NULL : PyObject_GetAttrString(errors, "FormatError");
    Py_XDECREF(errors);
    return FormatError == NULL ? NULL : PyModule_Create(&definition);
}
