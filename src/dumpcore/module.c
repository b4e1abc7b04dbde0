/* The module object. Docstrings are in _dump.pyi. */
#include "dump.h"

PyObject *dump_format_error;

static PyMethodDef functions[] = {
    FUNCTION(dump, advance, "Find where the next pages of a bitmap end."),
    FUNCTION(dump, compress_pages, "Compress pages one by one, with descriptors."),
    FUNCTION(dump, drop, "Clear bits of a bitmap whose pages are marked."),
    FUNCTION(dump, missing, "Find page descriptors whose data are not in a file."),
    FUNCTION(dump, place, "Make the offsets of page descriptors absolute."),
    FUNCTION(dump, read_kdump, "Read pages of a kdump-compressed file by their descriptors."),
    FUNCTION(dump, read_pages, "Read the pages of a bitmap from a file's pieces."),
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
    dump_format_error = errors == NULL ? NULL : PyObject_GetAttrString(errors, "FormatError");
    Py_XDECREF(errors);
    return dump_format_error == NULL ? NULL : PyModule_Create(&definition);
}
